//! What the process reports to the service manager that started it (sd_notify(3)): that it is ready, reloads or stops, a line of
//! status, and for its watchdog that it is alive.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::admin::Readiness;
use crate::clock::{Boot, Clock};
use crate::gateway::Gateway;
use crate::listener::Workers;

/// How often it is checked whether the process has become ready, and for how long: Redis may take 10 s, but a replica that waits for
/// others to stop must not keep the service manager waiting.
const UNTIL_READY: Duration = Duration::from_millis(100);
const READY_AFTER: Duration = Duration::from_secs(15);
/// How often the status is reported, unless the watchdog has a shorter timeout.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);
/// How much longer than its timeouts a stop may take.
const STOP_MARGIN: Duration = Duration::from_secs(10);

/// Messages that wait while the service manager does not read; further ones are dropped.
const MAX_QUEUED: usize = 16;

/// The service manager, if there is one that wants to be notified; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct ServiceManager {
    /// Where messages are sent; `None`: nobody is notified.
    messages: Option<SyncSender<String>>,
    /// Its timeout without a message.
    watchdog: Option<Duration>,
    /// Whether it knows that the process is ready.
    is_started: Arc<AtomicBool>,
}

impl ServiceManager {
    /// The one named by `NOTIFY_SOCKET`, with the watchdog of `WATCHDOG_USEC`. A thread sends the messages, because sending blocks
    /// while a service manager does not read.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn of_process() -> std::io::Result<Self> {
        #[expect(clippy::disallowed_methods, reason = "it belongs to the service manager, and is no configuration")]
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            return Ok(Self::default());
        }
        let (messages, queued) = sync_channel::<String>(MAX_QUEUED);
        thread::Builder::new().name("service-manager".to_owned()).spawn(move || {
            for message in queued {
                // A service manager that is gone is no reason to stop serving.
                let _ = sd_notify::notify(&[NotifyState::Custom(&message)]);
            }
        })?;
        Ok(Self { messages: Some(messages), watchdog: sd_notify::watchdog_enabled(), is_started: Arc::default() })
    }

    fn notify(&self, message: &[NotifyState<'_>]) {
        if let Some(messages) = &self.messages {
            let lines: Vec<String> = message.iter().map(ToString::to_string).collect();
            let _ = messages.try_send(lines.join("\n"));
        }
    }

    /// The configuration is being reloaded.
    pub fn reloading(&self) {
        if self.is_started.load(Ordering::Relaxed) {
            let now = NotifyState::monotonic_usec_now().ok();
            self.notify(&[NotifyState::Reloading].into_iter().chain(now).collect::<Vec<_>>());
        }
    }

    /// The configuration has been reloaded, or is as it was.
    pub fn reloaded(&self) {
        if self.is_started.load(Ordering::Relaxed) {
            self.notify(&[NotifyState::Ready]);
        }
    }

    /// The process ends within this time, and a while more, whatever timeout is configured.
    pub(super) fn stopping(&self, within: Duration) {
        let timeout = u32::try_from((within + STOP_MARGIN).as_micros()).unwrap_or(u32::MAX);
        self.notify(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(timeout)]);
    }

    /// Reports as long as the process runs: once, that it is ready; then its status, and for the watchdog that every worker runs
    /// its tasks.
    pub(super) async fn report(self, gateway: Arc<Gateway>, readiness: Arc<Readiness>, workers: Workers, clock: Clock) {
        if self.messages.is_none() {
            return std::future::pending().await;
        }
        let mut before = (gateway.requests(), clock.boot());
        let begun = clock.boot();
        while clock.boot().since(begun) < READY_AFTER
            && let Some(reason) = readiness.reason_not_ready(&gateway)
        {
            self.notify(&[NotifyState::Status(reason), NotifyState::Watchdog]);
            tokio::time::sleep(UNTIL_READY).await;
        }
        self.notify(&[NotifyState::Ready]);
        self.is_started.store(true, Ordering::Relaxed);
        let interval = self.watchdog.map_or(REPORT_INTERVAL, |watchdog| (watchdog / 3).min(REPORT_INTERVAL));
        loop {
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
            tokio::time::sleep(interval).await;
            workers.respond().await;
        }
    }
}

/// Requests a second.
fn rate((requests, at): (u64, Boot), (later_requests, later): (u64, Boot)) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a number to be shown")]
    let more = later_requests.saturating_sub(requests) as f64;
    // The first message follows at once.
    more / later.since(at).as_secs_f64().max(0.001)
}
