use super::*;
use crate::call_state::CallWaiter;

const PACE: PaceSettings = PaceSettings { rate: 1, per: Duration::from_millis(40), transit: Duration::ZERO };
const LONG: Duration = Duration::from_secs(60);

/// One that shares nothing.
fn new_pace(settings: PaceSettings, counted: Option<Boot>, clock: &Clock) -> Arc<Pace> {
    Pace::new(settings, counted, clock, &Sharing::split(1), Arc::default())
}

/// A limit that is never reached.
fn inflight() -> Arc<InflightLimit> {
    InflightLimit::new(99)
}

/// For how long, and who joins later.
fn wait(key: QueueKey, max_wait: Duration) -> WaitFor<'static> {
    static NOBODY_JOINS: std::sync::LazyLock<CallState> = std::sync::LazyLock::new(CallState::default);
    WaitFor { key, max_wait, deadline: Boot::NEVER, call: &NOBODY_JOINS }
}

const fn key(caller: usize, write: bool) -> QueueKey {
    QueueKey { caller, tenant: 0, class: if write { Class::Write } else { Class::Interactive } }
}

/// On one thread, requests join the queue in the order in which they are spawned.
#[tokio::test]
async fn requests_are_woken_in_the_order_of_the_queue() {
    let clock = Clock::system();
    let pace = new_pace(PACE, None, &clock);
    let first = pace.acquire(&inflight(), wait(key(0, false), LONG)).await.unwrap();
    let served = Arc::new(Mutex::new(Vec::new()));
    let mut waiting = tokio::task::JoinSet::new();
    for (name, key) in
        [(1, key(1, false)), (2, key(1, false)), (3, key(2, false)), (4, key(1, true)), (5, key(1, true))]
    {
        let (pace, served) = (Arc::clone(&pace), Arc::clone(&served));
        waiting.spawn(async move {
            let permit = pace.acquire(&inflight(), wait(key, LONG)).await.unwrap();
            served.lock().push(name);
            permit.sent();
            permit.answered();
        });
    }
    tokio::task::yield_now().await;
    assert!(pace.try_acquire(&inflight()).is_none(), "a refresh has the lowest priority");
    first.sent();
    first.answered();
    drop(first);
    waiting.join_all().await;
    assert_eq!(*served.lock(), [4, 1, 5, 3, 2]);
}

#[tokio::test]
async fn a_request_that_cannot_get_a_permit_in_time_is_rejected_immediately() {
    let clock = Clock::system();
    let hour = PaceSettings { per: Duration::from_secs(3600), ..PACE };
    let pace = new_pace(hour, None, &clock);
    let first = pace.acquire(&inflight(), wait(key(0, false), LONG)).await.unwrap();
    first.sent();
    let Err(NoPermit::Limited(limited)) = pace.acquire(&inflight(), wait(key(0, false), LONG)).await else {
        panic!("there is no slot")
    };
    assert!(limited.retry_after > Duration::from_secs(3590), "{limited:?}");
    assert!(pace.queue.lock().waiting.is_empty());
}

#[tokio::test]
async fn requests_waiting_for_a_pause_continue_when_credentials_change() {
    let clock = Clock::system();
    let pace = new_pace(PaceSettings { rate: 2, per: Duration::from_secs(30), ..PACE }, None, &clock);
    let permit = pace.acquire(&inflight(), wait(key(0, false), LONG)).await.unwrap();
    permit.throttled(clock.boot());
    let other = Arc::clone(&pace);
    let waiting = tokio::spawn(async move { other.acquire(&inflight(), wait(key(0, false), LONG)).await.is_ok() });
    tokio::task::yield_now().await;
    pace.credentials_changed();
    assert!(waiting.await.unwrap());
}

/// Half of the slots are held back for a minute; then one that has long been free becomes available.
#[tokio::test]
async fn throttling_may_end_before_the_next_slot_is_free() {
    let (clock, hands) = Clock::shifted();
    let pace = new_pace(PaceSettings { rate: 4, per: Duration::from_secs(40), ..PACE }, None, &clock);
    pace.acquire(&inflight(), wait(key(0, false), LONG)).await.unwrap().throttled(clock.boot());
    hands.advance(Duration::from_secs(41));
    for _ in 0..2 {
        let permit = pace.acquire(&inflight(), wait(key(0, false), Duration::ZERO)).await.unwrap();
        permit.sent();
        permit.answered();
    }
    assert!(pace.try_acquire(&inflight()).is_none(), "half of the slots are held back");
    let refused = pace.acquire(&inflight(), wait(key(0, false), Duration::ZERO)).await;
    let Err(NoPermit::Limited(limited)) = refused else { panic!("{refused:?}") };
    assert!((18..=19).contains(&limited.retry_after.as_secs()), "{limited:?}");
    hands.advance(Duration::from_secs(19));
    assert!(pace.acquire(&inflight(), wait(key(0, false), Duration::ZERO)).await.is_ok());
}

#[tokio::test]
async fn a_changed_limit_applies_to_waiting_requests() {
    let clock = Clock::system();
    let pace = new_pace(PaceSettings { per: Duration::from_secs(3600), ..PACE }, None, &clock);
    let first = pace.acquire(&inflight(), wait(key(0, false), LONG)).await.unwrap();
    let other = Arc::clone(&pace);
    let waiting = tokio::spawn(async move { other.acquire(&inflight(), wait(key(0, false), LONG)).await.is_ok() });
    tokio::task::yield_now().await;
    pace.reconfigure(PaceSettings { rate: 2, ..PACE });
    assert!(waiting.await.unwrap());
    first.sent();
    pace.reconfigure(PaceSettings { rate: 0, ..PACE });
    assert!(pace.try_acquire(&inflight()).is_some());
}

#[tokio::test]
async fn calls_without_a_limit_count_once_a_limit_is_set() {
    let (clock, hands) = Clock::shifted();
    let limited = PaceSettings { rate: 2, per: Duration::from_secs(10), transit: Duration::from_secs(1) };
    let pace = new_pace(PaceSettings { rate: 0, ..limited }, None, &clock);
    for _ in 0..9 {
        pace.acquire(&inflight(), wait(key(0, false), Duration::ZERO)).await.unwrap().sent();
    }
    pace.reconfigure(limited);
    hands.advance(Duration::from_millis(10_900));
    assert!(pace.try_acquire(&inflight()).is_none(), "the platform may have counted nine calls less than 10 s ago");
    hands.advance(Duration::from_millis(200));
    assert!(pace.try_acquire(&inflight()).is_some());
}

#[tokio::test]
async fn a_pause_applies_without_a_limit_too() {
    let (clock, hands) = Clock::shifted();
    let pace = new_pace(PaceSettings { rate: 0, ..PACE }, None, &clock);
    let permit = pace.acquire(&inflight(), wait(key(0, false), Duration::ZERO)).await.unwrap();
    assert_eq!(pace.usage(clock.boot()).allowed, f64::INFINITY);
    permit.throttled(clock.boot());
    assert_eq!(pace.usage(clock.boot()).allowed, 0.0);
    assert!(
        pace.acquire(&inflight(), wait(key(0, false), Duration::ZERO)).await.is_err()
            && pace.try_acquire(&inflight()).is_none()
    );
    hands.advance(PACE.per);
    assert!(pace.acquire(&inflight(), wait(key(0, false), Duration::ZERO)).await.is_ok());
}

/// Those in progress when the limit begins, too.
#[tokio::test]
async fn calls_that_began_without_a_limit_take_slots_until_they_are_counted() {
    let (clock, hands) = Clock::shifted();
    let limited = PaceSettings { rate: 3, per: Duration::from_secs(10), transit: Duration::from_secs(1) };
    let pace = new_pace(PaceSettings { rate: 0, ..limited }, None, &clock);
    let mut unsent = Vec::new();
    for _ in 0..2 {
        unsent.push(pace.acquire(&inflight(), wait(key(0, false), Duration::ZERO)).await.unwrap());
    }
    pace.reconfigure(limited);
    hands.advance(Duration::from_secs(12));
    let own = pace.try_acquire(&inflight()).expect("two of three calls may still be sent");
    assert!(pace.try_acquire(&inflight()).is_none());
    unsent[0].sent();
    drop((own, unsent));
    let (first, second) = (pace.try_acquire(&inflight()), pace.try_acquire(&inflight()));
    assert!(first.is_some() && second.is_some() && pace.try_acquire(&inflight()).is_none(), "one was sent");
}

/// Makes a call of each key, all on one path, or each on a path of its own, and returns the order in which they get permits with
/// one in flight; the calls are made as fast as permits come.
async fn order_with_one_in_flight(calls: &[(usize, usize)]) -> Vec<usize> {
    let (clock, inflight) = (Clock::system(), InflightLimit::new(1));
    let many = PaceSettings { rate: 100, ..PACE };
    let paces: Vec<_> = (0..9).map(|_| new_pace(many, None, &clock)).collect();
    let first = paces[8].acquire(&inflight, wait(key(9, false), LONG)).await.unwrap();
    let served = Arc::new(Mutex::new(Vec::new()));
    let mut waiting = tokio::task::JoinSet::new();
    for (number, (caller, path)) in calls.iter().copied().enumerate() {
        let (pace, inflight, served) = (Arc::clone(&paces[path]), Arc::clone(&inflight), Arc::clone(&served));
        waiting.spawn(async move {
            let permit = pace.acquire(&inflight, wait(key(caller, false), LONG)).await.unwrap();
            served.lock().push(number);
            permit.sent();
            permit.answered();
        });
    }
    tokio::task::yield_now().await;
    assert!(paces[7].try_acquire(&inflight).is_none(), "there is no capacity to spare");
    drop(first);
    waiting.join_all().await;
    served.lock().split_off(0)
}

#[tokio::test]
async fn callers_take_turns_in_flight_however_many_paths_they_use() {
    // Caller 1 uses five paths, one of them twice; caller 2 comes last, with one call on a path of its own, or on one of those.
    for path in [6, 0, 2, 4] {
        let served = order_with_one_in_flight(&[(1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (1, 0), (2, path)]).await;
        let turn = served.iter().position(|number| *number == 6).unwrap();
        assert_eq!((turn, served.len()), (1, 7), "path {path}: {served:?}");
    }
}

#[tokio::test]
async fn no_slot_is_held_by_a_request_that_waits_for_capacity() {
    let (clock, inflight) = (Clock::system(), InflightLimit::new(1));
    let pace = new_pace(PaceSettings { rate: 2, per: LONG, ..PACE }, None, &clock);
    let first = pace.acquire(&inflight, wait(key(0, false), LONG)).await.unwrap();
    first.sent();
    let refused = pace.acquire(&inflight, wait(key(0, false), Duration::ZERO)).await;
    assert_eq!(refused.unwrap_err(), NoPermit::NoCapacity);
    let (other, full) = (Arc::clone(&pace), Arc::clone(&inflight));
    let waiting = tokio::spawn(async move { other.acquire(&full, wait(key(0, false), LONG)).await.is_ok() });
    tokio::task::yield_now().await;
    let behind = pace.acquire(&inflight, wait(key(0, false), Duration::from_millis(20))).await;
    assert!(matches!(behind, Err(NoPermit::Limited(_))), "the one slot that is free is another's: {behind:?}");
    assert!(pace.queue.lock().slots.next_free(2) < Some(clock.boot()), "one of two slots is free");
    waiting.abort();
    assert!(waiting.await.is_err());
    drop(first);
    assert!(pace.try_acquire(&inflight).is_some(), "who left waits for nothing");
}

/// Tenants of one `open_id` share slots, and have a limit in flight each.
#[tokio::test]
async fn a_request_that_waits_for_its_tenants_capacity_holds_up_no_other_tenant() {
    let (clock, busy, other) = (Clock::system(), InflightLimit::new(1), InflightLimit::new(1));
    let pace = new_pace(PaceSettings { rate: 9, ..PACE }, None, &clock);
    let _in_flight = pace.acquire(&busy, wait(key(0, false), LONG)).await.unwrap();
    let (waits, full) = (Arc::clone(&pace), Arc::clone(&busy));
    let waiting = tokio::spawn(async move { waits.acquire(&full, wait(key(0, false), LONG)).await.is_ok() });
    tokio::task::yield_now().await;
    for _ in 0..3 {
        let second = QueueKey { tenant: 1, ..key(0, false) };
        assert!(pace.acquire(&other, wait(second, Duration::ZERO)).await.is_ok());
    }
    waiting.abort();
}

/// In progress without a limit, they leave fewer slots, which is no throttling.
#[tokio::test]
async fn a_request_behind_calls_without_a_limit_waits_for_a_change() {
    let clock = Clock::system();
    let limited = PaceSettings { rate: 1, ..PACE };
    let pace = new_pace(PaceSettings { rate: 0, ..limited }, None, &clock);
    let unlimited = pace.acquire(&inflight(), wait(key(0, false), LONG)).await.unwrap();
    pace.reconfigure(limited);
    tokio::time::sleep(2 * PACE.per).await;
    let mut queue = pace.queue.lock();
    assert!(matches!(queue.take(&pace, clock.boot()), Err(None)), "it is known when none of them ends");
    drop(queue);
    drop(unlimited);
    assert!(pace.try_acquire(&inflight()).is_some());
}

#[tokio::test]
async fn a_call_that_began_without_a_limit_and_broke_counts_until_it_cannot_arrive() {
    let (clock, hands) = Clock::shifted();
    let limited = PaceSettings { rate: 1, per: Duration::from_secs(10), transit: Duration::from_secs(5) };
    let pace = new_pace(PaceSettings { rate: 0, ..limited }, None, &clock);
    let unlimited = pace.acquire(&inflight(), wait(key(0, false), LONG)).await.unwrap();
    pace.reconfigure(limited);
    hands.advance(Duration::from_secs(16));
    unlimited.sent();
    drop(unlimited);
    hands.advance(Duration::from_secs(12));
    assert!(pace.try_acquire(&inflight()).is_none(), "it may have been counted 5 s after it was sent");
    hands.advance(Duration::from_secs(4));
    assert!(pace.try_acquire(&inflight()).is_some());
}

/// Its call waits in the lane of each caller that waits for it, and each has the same time to wait.
#[tokio::test]
async fn whoever_joins_a_call_lets_it_wait_in_a_lane_of_their_own() {
    let (clock, pace) = (Clock::system(), new_pace(PaceSettings { rate: 1, ..PACE }, None, &Clock::system()));
    let first = pace.acquire(&inflight(), wait(key(9, false), LONG)).await.unwrap();
    let (served, joined) = (Arc::new(Mutex::new(Vec::new())), Arc::new(CallState::default()));
    let mut waiting = tokio::task::JoinSet::new();
    for number in 0..6 {
        let (pace, served) = (Arc::clone(&pace), Arc::clone(&served));
        let call = if number == 5 { Arc::clone(&joined) } else { Arc::default() };
        waiting.spawn(async move {
            let wait = WaitFor { key: key(1, false), max_wait: LONG, deadline: Boot::NEVER, call: &call };
            let permit = pace.acquire(&inflight(), wait).await.unwrap();
            served.lock().push(number);
            permit.sent();
            permit.answered();
        });
    }
    tokio::task::yield_now().await;
    joined.join(CallWaiter { caller: 2, is_batch: false });
    joined.join(CallWaiter { caller: 2, is_batch: false });
    tokio::task::yield_now().await;
    first.sent();
    first.answered();
    drop(first);
    waiting.join_all().await;
    assert_eq!(*served.lock(), [0, 5, 1, 2, 3, 4]);
    assert!(pace.queue.lock().waiting.is_empty());

    // The last of those that wait decides for how long.
    let blocked = new_pace(PaceSettings { per: LONG, ..PACE }, None, &clock);
    let first = blocked.acquire(&inflight(), wait(key(9, false), LONG)).await.unwrap();
    let call = CallState::default();
    let max_wait = Duration::from_millis(300);
    let started = clock.boot();
    let late = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        call.join(CallWaiter { caller: 2, is_batch: false });
    };
    let wait = |deadline| WaitFor { key: key(1, false), max_wait, deadline, call: &call };
    let inflight = inflight();
    let (refused, ()) = tokio::join!(blocked.acquire(&inflight, wait(Boot::NEVER)), late);
    assert!(refused.is_err() && clock.boot().since(started) >= Duration::from_millis(500));
    let started = clock.boot();
    let deadline = started + Duration::from_millis(100);
    assert!(blocked.acquire(&inflight, wait(deadline)).await.is_err());
    assert!(clock.boot().since(started) < max_wait, "the deadline holds for all");
    drop(first);
}
