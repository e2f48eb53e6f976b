//! What the process reports to the service manager that started it (sd_notify(3)): that it is ready, reloads or stops, a line of
//! status, and that it is alive.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::admin::Readiness;
use crate::clock::{Boot, Clock};
use crate::gateway::Gateway;
use crate::listener::Workers;

/// How often it is checked whether the process has become ready.
const UNTIL_READY: Duration = Duration::from_millis(100);
/// How often the status is reported, unless the watchdog expects a sign of life more often.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);
/// How much longer than announced a step may take before the service manager gives up.
const MARGIN: Duration = Duration::from_secs(10);

/// The service manager, if there is one that wants to be notified; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct ServiceManager {
    /// Sends a message of several assignments. `None`: nobody is notified.
    notify: Option<fn(&[NotifyState<'_>])>,
    /// How soon after the last sign of life the process is killed.
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// The one named by `NOTIFY_SOCKET`, with the watchdog of `WATCHDOG_USEC`; without a socket, messages go nowhere.
    pub fn of_process() -> Self {
        // A service manager that does not listen is no reason to stop serving.
        let notify = |message: &[NotifyState<'_>]| drop(sd_notify::notify(message));
        Self { notify: Some(notify), watchdog: sd_notify::watchdog_enabled() }
    }

    fn notify(&self, message: &[NotifyState<'_>]) {
        if let Some(notify) = self.notify {
            notify(message);
        }
    }

    /// The configuration is being reloaded.
    pub fn reloading(&self) {
        let now = NotifyState::monotonic_usec_now().ok();
        self.notify(&[NotifyState::Reloading].into_iter().chain(now).collect::<Vec<_>>());
    }

    /// The configuration has been reloaded, or is as it was.
    pub fn reloaded(&self) {
        self.notify(&[NotifyState::Ready]);
    }

    /// The process ends within this time.
    pub(super) fn stopping(&self, within: Duration) {
        self.notify(&[NotifyState::Stopping, extend_by(within)]);
    }

    /// Reports as long as the process runs: once, that it is ready; then its status, and that it is alive, which means
    /// that every worker runs its tasks.
    pub(super) async fn report(self, gateway: Arc<Gateway>, readiness: Arc<Readiness>, workers: Workers, clock: Clock) {
        if self.notify.is_none() {
            return std::future::pending().await;
        }
        while let Some(reason) = readiness.reason_not_ready(&gateway) {
            self.notify(&[NotifyState::Status(reason), NotifyState::Watchdog, extend_by(Duration::ZERO)]);
            tokio::time::sleep(UNTIL_READY).await;
        }
        self.notify(&[NotifyState::Ready]);
        let interval = self.watchdog.map_or(REPORT_INTERVAL, |watchdog| (watchdog / 3).min(REPORT_INTERVAL));
        let mut before = (gateway.requests(), clock.boot());
        loop {
            tokio::time::sleep(interval).await;
            workers.respond().await;
            let after = (gateway.requests(), clock.boot());
            let mut status = match readiness.reason_not_ready(&gateway) {
                None => format!("serving {:.1} requests a second", rate(before, after)),
                Some(reason) => reason.to_owned(),
            };
            if !gateway.is_reload_successful() {
                status.push_str("; the last reload failed: the previous configuration is in force");
            }
            self.notify(&[NotifyState::Watchdog, NotifyState::Status(&status)]);
            before = after;
        }
    }
}

/// Tells the service manager to wait for so long, and a while more, however long it is configured to wait.
fn extend_by(time: Duration) -> NotifyState<'static> {
    NotifyState::ExtendTimeoutUsec(u32::try_from((time + MARGIN).as_micros()).unwrap_or(u32::MAX))
}

/// Requests a second.
fn rate((requests, at): (u64, Boot), (later_requests, later): (u64, Boot)) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a number to be shown")]
    let more = later_requests.saturating_sub(requests) as f64;
    more / later.since(at).as_secs_f64().max(f64::MIN_POSITIVE)
}
