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

fn decision(verdict: &Verdict) -> StoreDecision {
    StoreDecision::of(verdict, &LIFETIMES, at(0).wall, at(0), at(0))
}

fn lifetime(verdict: &Verdict) -> (u64, LimitedBy) {
    match decision(verdict) {
        StoreDecision::Store(freshness) => (freshness.lifetime().as_secs(), freshness.limited_by),
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_kind_of_answer_has_its_lifetime() {
    assert_eq!(lifetime(&list(&[], vec![])), (30, LimitedBy::Ttl));
    assert_eq!(lifetime(&list(&[100], vec![Some(End::At(wall(100)))])), (30, LimitedBy::Ttl));
    assert_eq!(lifetime(&list(&[100, 11], vec![])), (10, LimitedBy::EndAt));
    assert_eq!(lifetime(&Verdict::Exception), (3, LimitedBy::Negative));
    assert_eq!(lifetime(&Verdict::Success(Contents { empty: true, ..Contents::default() })), (3, LimitedBy::Negative));
    assert_eq!(lifetime(&list(&[], vec![None])), (2, LimitedBy::Unsettled));
    assert_eq!(lifetime(&list(&[-5], vec![Some(End::At(wall(-5)))])), (2, LimitedBy::Unsettled));
    assert_eq!(lifetime(&list(&[], vec![Some(End::Never)])), (30, LimitedBy::Ttl));
    assert_eq!(lifetime(&list(&[3], vec![None])), (2, LimitedBy::Unsettled));
    for failure in [Verdict::Error, Verdict::Throttled, Verdict::Garbage, Verdict::Http5xx] {
        assert_eq!(decision(&failure), StoreDecision::Failure, "{failure:?}");
    }
}

#[test]
fn other_http_statuses_change_nothing() {
    assert_eq!(decision(&Verdict::HttpOther), StoreDecision::Ignore);
}

#[test]
fn only_a_settled_success_is_served_stale_and_never_past_its_end() {
    let stored = |verdict: &Verdict| match decision(verdict) {
        StoreDecision::Store(freshness) => freshness,
        other => panic!("{other:?}"),
    };
    let modes = |freshness: &Freshness, seconds: i64| {
        freshness.stale(at(seconds)).map(|stale| (stale.revalidate, stale.if_error))
    };
    let settled = stored(&list(&[], vec![]));
    let served: Vec<_> = [29, 30, 39, 40, 49, 50].into_iter().map(|seconds| modes(&settled, seconds)).collect();
    assert_eq!(served, [None, Some((true, true)), Some((true, true)), Some((false, true)), Some((false, true)), None]);
    let ending = stored(&list(&[36], vec![]));
    assert_eq!([modes(&ending, 34), modes(&ending, 35)], [Some((true, true)), None]);
    let stepped = Now { wall: wall(35), boot: at(31).boot };
    assert_eq!(ending.stale(stepped), None, "the wall clock stepped forward");
    let stepped = Now { wall: wall(-100), boot: at(35).boot };
    assert_eq!(ending.stale(stepped), None, "the wall clock stepped back");
    for short in [Verdict::Exception, list(&[], vec![None])] {
        assert!((0..60).all(|seconds| modes(&stored(&short), seconds).is_none()), "{short:?}");
    }
    assert!((0..60).all(|seconds| modes(&settled.unsettled(Duration::from_secs(90)), seconds).is_none()));
}

#[test]
fn an_end_that_had_passed_when_the_request_was_sent_limits_nothing() {
    assert_eq!(lifetime(&list(&[-10, 0], vec![])), (30, LimitedBy::Ttl));
}

#[test]
fn an_answer_whose_first_end_passed_in_transit_is_not_stored() {
    let verdict = list(&[2], vec![]);
    assert_eq!(StoreDecision::of(&verdict, &LIFETIMES, at(0).wall, at(0), at(1)), StoreDecision::Supersede);
    assert_eq!(StoreDecision::of(&verdict, &LIFETIMES, at(0).wall, at(0), at(3)), StoreDecision::Supersede);
    assert_eq!(decision(&list(&[1], vec![])), StoreDecision::Supersede, "it ends within the margin");
}

#[test]
fn either_clock_expires_an_answer() {
    let StoreDecision::Store(freshness) = decision(&list(&[11], vec![])) else { panic!("it is stored") };
    let stepped = |boot: i64, seconds: i64| Now { wall: wall(seconds), boot: at(boot).boot };
    assert!(freshness.remaining(stepped(9, 9)).is_some());
    assert_eq!(freshness.remaining(stepped(10, 10)), None);
    assert_eq!(freshness.remaining(stepped(1, 10)), None, "the wall clock stepped forward");
    assert_eq!(freshness.remaining(stepped(10, -100)), None, "the wall clock stepped back");
}

proptest! {
    /// However the wall clock steps between sending, receiving and serving, nothing is served from the margin before the
    /// earliest end that was in the future when the request was sent, by the clock at sending or by the clock now.
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
        if let StoreDecision::Store(freshness) = StoreDecision::of(&verdict, &LIFETIMES, sent.wall, sent, received) {
            let now = Now { wall: wall(rtt + asked + step + later_step), boot: at(rtt + asked).boot };
            let fresh = freshness.remaining(now).is_some();
            let served = fresh || freshness.stale(now).is_some();
            let ahead_when_sent = ends.iter().filter(|end| **end > 0).min();
            if let Some(end) = ahead_when_sent {
                prop_assert!(!served || rtt + asked < end - 1, "by the clock at sending");
                prop_assert!(!served || rtt + asked + step + later_step < end - 1, "by the clock now");
            }
            prop_assert!(!fresh || asked < 30, "by its freshness");
            prop_assert!(!served || asked < 50, "by its stale modes");
        }
    }
}

mod elsewhere {
    use proptest::prelude::*;

    use super::*;

    fn spans() -> impl Strategy<Value = Duration> {
        (0u64..200_000).prop_map(Duration::from_micros)
    }

    proptest! {
        /// A span is never longer than what it was made of, nor shorter by more than its unit; and they are ordered alike.
        #[test]
        fn a_span_is_rounded_down_to_its_unit(millis in 0u64..100_000_000_000, micros in 0u64..1000, other in 0u64..100_000_000_000) {
            let of = |millis: u64| Duration::from_millis(millis) + Duration::from_micros(micros);
            let (span, kept) = (of(millis), Span::of(of(millis)).duration());
            let unit = if millis < 1 << 31 { Duration::from_millis(1) } else { Duration::from_secs(1) };
            prop_assert!(kept <= span && span - kept < unit);
            prop_assert!(millis >= other || Span::of(span) <= Span::of(of(other)));
        }
    }

    proptest! {
        /// Another process, whose clock since boot shows another time, whose wall clock is ahead or behind, and which knows a little less
        /// than what has passed: the answer never lives longer there than here.
        #[test]
        fn an_answer_never_outlives_itself_in_another_process(
            (fresh, revalidate, if_error, end, age) in (spans(), spans(), spans(), proptest::option::of(spans()), spans()),
            (here, there, passed, late) in (200_000u64..400_000, 600_000u64..9_000_000, 0u64..250_000, 0u64..50_000),
            (wall, off) in (0i64..1000, -100i64..100),
        ) {
            let boot = |micros: u64| Boot::from_duration(Duration::from_micros(micros));
            let at = boot(here);
            let freshness = Freshness {
                received: at - age,
                fresh_for: Span::of(age + fresh),
                revalidate_for: Span::of(age + fresh + revalidate),
                if_error_for: Span::of(age + fresh + if_error),
                end: end.map_or(Deadline::NEVER, |span| Deadline {
                    boot: at + span,
                    wall: Wall::from_unix_millis(wall + i64::try_from(span.as_millis()).unwrap()),
                }),
                negative: false,
                limited_by: LimitedBy::Ttl,
            };
            // The reader counts at least what has passed, in whole milliseconds.
            let elapsed = Duration::from_millis((passed + late).div_ceil(1000));
            let shared = freshness.relative(at).after(elapsed).from(boot(there)).unwrap();
            let now_here = Now { boot: boot(here + passed), wall: Wall::from_unix_millis(wall + i64::try_from(passed / 1000).unwrap()) };
            let now_there = Now { boot: boot(there), wall: now_here.wall.plus(off) };
            // By the same wall clock.
            let now_here = Now { wall: now_there.wall, ..now_here };
            let left = |freshness: &Freshness, now: Now| freshness.remaining(now).unwrap_or_default();
            prop_assert!(left(&shared, now_there) <= left(&freshness, now_here));
            prop_assert!(shared.servable_for(now_there) <= freshness.servable_for(now_here));
            prop_assert!(shared.age(now_there) >= freshness.age(now_here));
            prop_assert!(!freshness.has_ended(now_here) || shared.has_ended(now_there));
        }
    }

    #[test]
    fn a_machine_that_was_booted_later_cannot_tell_its_age() {
        let freshness = Freshness {
            received: Boot::from_duration(Duration::from_secs(1000)),
            fresh_for: Span(60_000),
            revalidate_for: Span(60_000),
            if_error_for: Span(60_000),
            end: Deadline::NEVER,
            negative: false,
            limited_by: LimitedBy::Ttl,
        };
        let relative = freshness.relative(Boot::from_duration(Duration::from_secs(1020)));
        assert_eq!(relative.from(Boot::from_duration(Duration::from_secs(20))), None);
        assert!(relative.from(Boot::from_duration(Duration::from_secs(21))).is_some());
    }
}
