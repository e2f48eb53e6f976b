use super::*;
use proptest::prelude::*;

const LIFETIMES: Lifetimes = Lifetimes {
    ttl: Duration::from_secs(30),
    negative_ttl: Duration::from_secs(3),
    unsettled_ttl: Duration::from_secs(2),
    stale_while_revalidate: Duration::from_secs(10),
    stale_if_error: Duration::from_secs(20),
    expiry_margin: Duration::from_secs(1),
};

fn at(seconds: i64) -> Now {
    let boot = Boot::from_duration(Duration::from_secs(5000 + seconds.unsigned_abs()));
    Now { wall: wall(seconds), boot }
}

fn wall(seconds: i64) -> Wall {
    Wall::from_unix_seconds(1_000_000 + seconds)
}

fn list(ends: &[i64], open: Vec<Option<End>>) -> Verdict {
    Verdict::Success(Contents { ends: ends.iter().map(|end| wall(*end)).collect(), open, empty: false })
}

fn fate(verdict: &Verdict) -> Fate {
    Fate::of(verdict, &LIFETIMES, at(0), at(0))
}

fn life(verdict: &Verdict) -> (u64, Bound) {
    match fate(verdict) {
        Fate::Kept(life) => (life.lasts().as_secs(), life.bound),
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_kind_of_answer_has_its_life() {
    assert_eq!(life(&list(&[], vec![])), (30, Bound::Ttl));
    assert_eq!(life(&list(&[100], vec![Some(End::At(wall(100)))])), (30, Bound::Ttl));
    assert_eq!(life(&list(&[100, 11], vec![])), (10, Bound::EndAt));
    assert_eq!(life(&Verdict::Exception), (3, Bound::Negative));
    assert_eq!(life(&Verdict::Success(Contents { empty: true, ..Contents::default() })), (3, Bound::Negative));
    assert_eq!(life(&list(&[], vec![None])), (2, Bound::Unsettled));
    assert_eq!(life(&list(&[-5], vec![Some(End::At(wall(-5)))])), (2, Bound::Unsettled));
    assert_eq!(life(&list(&[], vec![Some(End::Never)])), (30, Bound::Ttl));
    assert_eq!(life(&list(&[3], vec![None])), (2, Bound::Unsettled));
    for failure in [Verdict::Error, Verdict::Throttled, Verdict::Garbage, Verdict::Http5xx] {
        assert_eq!(fate(&failure), Fate::Failure, "{failure:?}");
    }
}

#[test]
fn what_is_no_failure_and_no_answer_changes_nothing() {
    assert_eq!(fate(&Verdict::HttpOther), Fate::Ignored);
}

#[test]
fn only_a_settled_success_is_told_past_its_freshness_and_never_past_its_end() {
    let kept = |verdict: &Verdict| match fate(verdict) {
        Fate::Kept(life) => life,
        other => panic!("{other:?}"),
    };
    let modes = |life: &Life, seconds: i64| life.stale(at(seconds)).map(|stale| (stale.revalidate, stale.if_error));
    let settled = kept(&list(&[], vec![]));
    let told: Vec<_> = [29, 30, 39, 40, 49, 50].into_iter().map(|seconds| modes(&settled, seconds)).collect();
    assert_eq!(told, [None, Some((true, true)), Some((true, true)), Some((false, true)), Some((false, true)), None]);
    let ending = kept(&list(&[36], vec![]));
    assert_eq!([modes(&ending, 34), modes(&ending, 35)], [Some((true, true)), None]);
    let stepped = Now { wall: wall(35), boot: at(31).boot };
    assert_eq!(ending.stale(stepped), None, "the wall clock stepped forward");
    let stepped = Now { wall: wall(-100), boot: at(35).boot };
    assert_eq!(ending.stale(stepped), None, "the wall clock stepped back");
    for short in [Verdict::Exception, list(&[], vec![None])] {
        assert!((0..60).all(|seconds| modes(&kept(&short), seconds).is_none()), "{short:?}");
    }
    assert!((0..60).all(|seconds| modes(&settled.unsettled(Duration::from_secs(90)), seconds).is_none()));
}

#[test]
fn an_end_that_had_passed_when_it_was_asked_for_bounds_nothing() {
    assert_eq!(life(&list(&[-10, 0], vec![])), (30, Bound::Ttl));
}

#[test]
fn an_answer_whose_first_end_passed_on_its_way_is_not_kept() {
    let verdict = list(&[2], vec![]);
    assert_eq!(Fate::of(&verdict, &LIFETIMES, at(0), at(1)), Fate::Supersedes);
    assert_eq!(Fate::of(&verdict, &LIFETIMES, at(0), at(3)), Fate::Supersedes);
    assert_eq!(fate(&list(&[1], vec![])), Fate::Supersedes, "the margin is all that is left");
}

#[test]
fn either_clock_ends_an_answer() {
    let Fate::Kept(life) = fate(&list(&[11], vec![])) else { panic!("it is kept") };
    let stepped = |boot: i64, seconds: i64| Now { wall: wall(seconds), boot: at(boot).boot };
    assert!(life.left(stepped(9, 9)).is_some());
    assert_eq!(life.left(stepped(10, 10)), None);
    assert_eq!(life.left(stepped(1, 10)), None, "the wall clock stepped forward");
    assert_eq!(life.left(stepped(10, -100)), None, "the wall clock stepped back");
}

proptest! {
    /// However the wall clock steps between sending, receiving and asking, nothing is told at or after the earliest
    /// end that lay ahead when the request was sent, less the margin, on any clock that was right at either time.
    #[test]
    fn no_answer_outlives_its_first_end(
        ends in proptest::collection::vec(-50i64..200, 0..5),
        rtt in 0i64..20,
        step in -40i64..40,
        asked in 0i64..300,
        later_step in -40i64..40,
    ) {
        let sent = at(0);
        let received = Now { wall: wall(rtt + step), boot: at(rtt).boot };
        let verdict = list(&ends, vec![]);
        if let Fate::Kept(life) = Fate::of(&verdict, &LIFETIMES, sent, received) {
            let now = Now { wall: wall(rtt + asked + step + later_step), boot: at(rtt + asked).boot };
            let fresh = life.left(now).is_some();
            let told = fresh || life.stale(now).is_some();
            let ahead_when_sent = ends.iter().filter(|end| **end > 0).min();
            if let Some(end) = ahead_when_sent {
                prop_assert!(!told || rtt + asked < end - 1, "by the clock at sending");
                prop_assert!(!told || rtt + asked + step + later_step < end - 1, "by the clock now");
            }
            prop_assert!(!fresh || asked < 30, "by its freshness");
            prop_assert!(!told || asked < 50, "by its stale modes");
        }
    }
}
