//! Streams of HTTP/2: each response has a send deadline of its own.
//!
//! Whatever else moves on a connection hides a stream that does not. A caller that gives a response no window
//! (RFC 9113, section 5.2) would hold its memory, and its part of what all callers share, for as long as it likes.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::rt::Executor;

/// A stalled response is noticed within this part of the timeout.
const TICKS: u32 = 4;

tokio::task_local! {
    static PROGRESS: Arc<SendProgress>;
}

/// How far a response has been sent.
#[derive(Debug, Default)]
pub(super) struct SendProgress(AtomicU64);

impl SendProgress {
    /// That of the stream whose task this is.
    pub(super) fn current() -> Arc<Self> {
        PROGRESS.try_with(Arc::clone).unwrap_or_default()
    }

    /// The response begins, or a part of it was taken to be sent.
    pub(super) fn advance(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Steps so far; 0 while the request is being answered.
    fn steps(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Runs the streams of a connection, each as a task. A stream whose response makes no progress for `send_timeout` is reset.
#[derive(Clone, Copy, Debug)]
pub(super) struct StreamExecutor {
    pub(super) send_timeout: Duration,
}

impl<F> Executor<F> for StreamExecutor
where
    F: Future + Send + 'static,
{
    fn execute(&self, stream: F) {
        let progress = Arc::new(SendProgress::default());
        let bounded = bounded(stream, Arc::clone(&progress), self.send_timeout / TICKS);
        tokio::spawn(PROGRESS.scope(progress, bounded));
    }
}

/// Dropping a stream's future resets the stream.
async fn bounded(stream: impl Future, progress: Arc<SendProgress>, tick: Duration) {
    let mut stream = pin!(stream);
    let (mut steps, mut stalled) = (0, 0);
    while stalled < TICKS && tokio::time::timeout(tick, stream.as_mut()).await.is_err() {
        let before = std::mem::replace(&mut steps, progress.steps());
        stalled = if steps > 0 && steps == before { stalled + 1 } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a stream that makes progress after each of these numbers of ticks; returns whether it was completed.
    async fn runs_to_its_end(steps: &'static [u32]) -> bool {
        let (tick, progress) = (Duration::from_millis(20), Arc::new(SendProgress::default()));
        let (ended, stream) = (Arc::new(AtomicU64::new(0)), Arc::clone(&progress));
        let mark = Arc::clone(&ended);
        let stream = async move {
            for ticks in steps {
                tokio::time::sleep(tick * *ticks).await;
                stream.advance();
            }
            mark.store(1, Ordering::Relaxed);
        };
        bounded(stream, progress, tick).await;
        ended.load(Ordering::Relaxed) == 1
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_response_is_aborted_and_a_pending_or_progressing_one_is_not() {
        assert!(runs_to_its_end(&[1000]).await, "upstream may be slow");
        assert!(runs_to_its_end(&[1, 3, 3, 3, 3, 3, 3]).await);
        assert!(!runs_to_its_end(&[1, 3, 10]).await);
        assert!(!runs_to_its_end(&[0, 10]).await);
    }
}
