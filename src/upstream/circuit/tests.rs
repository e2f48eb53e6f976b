use super::*;
use crate::route::Routes;
use crate::settings::{KindSettings, RouteSettings, Settings};

#[derive(Default)]
struct Changes(Mutex<Vec<(Scope, Transition)>>);

impl Observer for Changes {
    fn breaker_changed(&self, scope: Scope, transition: Transition) {
        self.0.lock().push((scope, transition));
    }
}

fn settings() -> BreakerSettings {
    Settings::defaults().unwrap().dynamic.attempts.breaker
}

fn route() -> Arc<Route> {
    route_of("/v3/**")
}

fn route_of(path: &str) -> Arc<Route> {
    let settings = RouteSettings { path: path.to_owned(), kind: KindSettings::Pass, pace: None };
    Arc::clone(&Routes::new(&[settings]).all()[0])
}

fn circuits(clock: &Clock) -> Arc<TenantCircuits> {
    Arc::new(TenantCircuits::new(4, clock))
}

fn begin(circuit: &Circuit, changes: &Changes) -> Result<Attempt, Rejected> {
    circuit.begin(&settings(), Duration::from_secs(5), changes)
}

fn run(circuit: &Circuit, health: Health, changes: &Changes) {
    begin(circuit, changes).unwrap().record(&settings(), health, changes);
}

#[test]
fn a_failing_path_affects_only_itself_and_connect_failures_affect_all_paths() {
    let (clock, changes) = (Clock::system(), Changes::default());
    let all = circuits(&clock);
    let (one, other) = (Arc::clone(&all).of(&route(), "/v3/a"), Arc::clone(&all).of(&route(), "/v3/b"));
    for _ in 0..5 {
        run(&one, Health::Failed, &changes);
    }
    assert!(one.check(&settings()).is_err() && other.check(&settings()).is_ok());
    assert!(all.breaker(&settings(), &route(), None) != BreakerPosition::Closed);
    for _ in 0..5 {
        run(&other, Health::Unreachable, &changes);
    }
    let third = Arc::clone(&all).of(&route(), "/v3/c");
    assert!(other.check(&settings()).is_err() && third.check(&settings()).is_err());
    let scopes: Vec<Scope> = changes.0.lock().iter().map(|(scope, _)| *scope).collect();
    assert_eq!(scopes, [Scope::Path, Scope::Tenant]);
}

#[test]
fn an_abandoned_probe_is_followed_by_another_in_both_breakers() {
    for health in [Health::Failed, Health::Unreachable] {
        let ((clock, hands), changes) = (Clock::shifted(), Changes::default());
        let circuit = circuits(&clock).of(&route(), "/v3/a");
        for _ in 0..5 {
            run(&circuit, health, &changes);
        }
        hands.advance(Duration::from_secs(1));
        drop(begin(&circuit, &changes).unwrap());
        let probe = begin(&circuit, &changes).unwrap();
        assert!(begin(&circuit, &changes).is_err(), "one probe at a time");
        probe.record(&settings(), Health::Answered, &changes);
        assert!(begin(&circuit, &changes).is_ok());
        let changes: Vec<Transition> = changes.0.lock().iter().map(|(_, change)| *change).collect();
        assert!(matches!(changes[..], [Transition::Opened(_), Transition::HalfOpened, Transition::Closed]));
    }
}

/// While the tenant's breaker rejects attempts, a path's breaker must not wait for a probe that was never sent.
#[test]
fn an_attempt_that_one_breaker_rejects_is_not_a_probe_of_the_other() {
    let ((clock, hands), changes) = (Clock::shifted(), Changes::default());
    let all = circuits(&clock);
    let (one, other) = (Arc::clone(&all).of(&route(), "/v3/a"), Arc::clone(&all).of(&route(), "/v3/b"));
    for _ in 0..5 {
        run(&one, Health::Failed, &changes);
    }
    hands.advance(Duration::from_secs(1));
    for _ in 0..5 {
        run(&other, Health::Unreachable, &changes);
    }
    assert!(begin(&one, &changes).is_err());
    hands.advance(Duration::from_secs(1));
    run(&other, Health::Answered, &changes);
    run(&one, Health::Answered, &changes);
    assert!(one.check(&settings()).is_ok());
}

#[test]
fn paths_under_a_wildcard_are_bounded() {
    let all = circuits(&Clock::system());
    for number in 0..1000 {
        let circuit = Arc::clone(&all).of(&route(), &format!("/v3/{number}"));
        circuit.rejected("no_slot");
    }
    assert_eq!(all.paths.lock().len(), MAX_PATHS + 1);
}

#[test]
fn a_path_that_a_reload_moves_to_another_route_is_found_there() {
    let (clock, changes) = (Clock::system(), Changes::default());
    let (all, exact) = (circuits(&clock), route_of("/v3/a"));
    let circuit = Arc::clone(&all).of(&route(), "/v3/a");
    let circuit_now = Arc::clone(&all).of(&exact, "/v3/a");
    for _ in 0..5 {
        run(&circuit_now, Health::Failed, &changes);
    }
    circuit_now.failed("timeout", "no answer".to_owned(), None);
    assert!(all.breaker(&settings(), &exact, None).rejects() && circuit.check(&settings()).is_err());
    assert_eq!(all.breaker(&settings(), &route(), None), BreakerPosition::Closed);
    assert_eq!(all.failures(&exact).0.len(), 1);
}

#[test]
fn failures_of_one_kind_on_many_paths_are_one() {
    let all = circuits(&Clock::system());
    for number in 0..20 {
        Arc::clone(&all).of(&route(), &format!("/v3/{number}")).failed("http_other", format!("status {number}"), None);
    }
    let (episodes, last) = all.failures(&route());
    let [episode] = episodes.as_slice() else { panic!("{episodes:?}") };
    assert_eq!((episode.count, last.unwrap().reason), (20, "http_other"));
}
