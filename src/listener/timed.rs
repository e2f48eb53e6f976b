//! A caller's stream that ends where nothing comes: slowly sent heads, and connections that are only held.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::phase::{Phase, Stage};
use super::seldom::Seldom;

/// Idle time is counted in ticks of this part of its limit, or shorter ones: a busy connection then sets no timer for each
/// request, and an idle one is closed after at most one tick more than its limit.
const TICKS: u32 = 4;
/// After so long without a request a connection rests: what it is served with is made anew when something comes.
const RESTS_AFTER: Duration = Duration::from_secs(2);

/// What the timer is set for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Alarm {
    /// The end of a head's time.
    Head(u64),
    /// A tick; nothing has moved, since so many moves, for so many ticks.
    Tick { moves: u64, idle: u32 },
    /// The end of idle time, for a connection at rest.
    Rest,
}

/// A timer that is seldom due.
type Timer = Seldom<Pin<Box<Sleep>>>;

fn timer(time: Duration) -> Timer {
    Seldom::new(Box::pin(sleep(time)))
}

/// The stream.
#[derive(Debug)]
pub(super) struct Timed<T> {
    stream: T,
    phase: Arc<Phase>,
    header_timeout: Duration,
    idle_timeout: Duration,
    /// The requests that had begun when bytes came last: more bytes after their answers begin the next head.
    bytes_after: Option<u64>,
    timer: Option<(Alarm, Timer)>,
    /// Whether anything was written since the last tick.
    wrote: bool,
    /// Set while nothing of what is written leaves.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<T> Timed<T> {
    pub(super) fn new(stream: T, header_timeout: Duration, idle_timeout: Duration) -> (Self, Arc<Phase>) {
        let phase = Arc::new(Phase::default());
        let timed = Self {
            stream,
            phase: Arc::clone(&phase),
            header_timeout,
            idle_timeout,
            bytes_after: None,
            timer: None,
            wrote: false,
            stalled: None,
        };
        (timed, phase)
    }

    /// Notes that bytes came: they begin a head, unless they belong to the request being answered.
    fn bytes_came(&mut self) {
        if self.phase.is_at_rest() {
            self.phase.rest(false);
            self.timer = None;
        }
        self.bytes_after = match self.phase.stage(false) {
            Stage::Head(begun) | Stage::Idle(begun) => Some(begun),
            Stage::Serving => None,
        };
    }

    /// Ready when the connection has waited for too long.
    fn poll_time(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let begun = self.phase.begun();
            let stage = self.phase.stage(self.bytes_after == Some(begun));
            let (armed, running) = self.timer_for(stage);
            ready!(Pin::new(running).poll(cx));
            self.timer = None;
            let (moves, multiplexed) = (self.phase.moves(), self.phase.is_multiplexed());
            // What a connection that carries several writes may be answers to nothing that was asked.
            let wrote = std::mem::take(&mut self.wrote) && !multiplexed;
            let (next, time) = match armed {
                Alarm::Head(_) => return Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
                // The end of the stream: nobody is told, since nobody asked.
                Alarm::Rest => return Poll::Ready(Ok(())),
                Alarm::Tick { moves: before, .. } if before != moves || wrote || stage == Stage::Serving => {
                    (Alarm::Tick { moves, idle: 0 }, self.tick())
                }
                Alarm::Tick { idle, .. } if multiplexed => (Alarm::Tick { moves, idle: idle + 1 }, self.tick()),
                // What has not left yet has a time of its own.
                Alarm::Tick { .. } if self.stalled.is_some() => (Alarm::Tick { moves, idle: 0 }, self.tick()),
                Alarm::Tick { .. } => {
                    self.phase.rest(true);
                    (Alarm::Rest, self.idle_timeout.saturating_sub(self.tick()))
                }
            };
            if matches!(next, Alarm::Tick { idle: TICKS.., .. }) {
                self.phase.ask_to_end();
            }
            self.timer = Some((next, timer(time)));
        }
    }

    fn tick(&self) -> Duration {
        let part = self.idle_timeout / TICKS;
        if self.phase.is_multiplexed() { part } else { part.min(RESTS_AFTER) }
    }

    /// The timer that fits the stage: a running one, or a new one.
    fn timer_for(&mut self, stage: Stage) -> (Alarm, &mut Timer) {
        let fits = |alarm: &Alarm| match stage {
            Stage::Head(begun) => *alarm == Alarm::Head(begun),
            Stage::Idle(_) | Stage::Serving => !matches!(alarm, Alarm::Head(_)),
        };
        let (alarm, running) = match self.timer.take().filter(|(alarm, _)| fits(alarm)) {
            Some(running) => self.timer.insert(running),
            None => {
                let (alarm, time) = match stage {
                    Stage::Head(begun) => (Alarm::Head(begun), self.header_timeout),
                    Stage::Idle(_) | Stage::Serving => {
                        (Alarm::Tick { moves: self.phase.moves(), idle: 0 }, self.tick())
                    }
                };
                self.timer.insert((alarm, timer(time)))
            }
        };
        (*alarm, running)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Timed<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Ready(outcome) => {
                if buf.filled().len() > before {
                    self.bytes_came();
                }
                Poll::Ready(outcome)
            }
            Poll::Pending => self.poll_time(cx),
        }
    }
}

impl<T: AsyncWrite + Unpin> Timed<T> {
    /// Bounds how long nothing of what is written may leave, and notes what does: a caller who reads is not idle.
    fn progress<V>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<V>>) -> Poll<io::Result<V>> {
        if written.is_ready() {
            self.wrote = true;
            self.stalled = None;
            return written;
        }
        let idle_timeout = self.idle_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(idle_timeout)));
        stalled.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Timed<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.progress(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.progress(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// Reads, and tells what came of it; `None`: nothing yet.
    async fn poll(timed: &mut Timed<tokio::io::DuplexStream>) -> Option<usize> {
        let mut bytes = [0; 16];
        let mut buffer = ReadBuf::new(&mut bytes);
        let read = poll_fn(|cx| Poll::Ready(Pin::new(&mut *timed).poll_read(cx, &mut buffer))).await;
        match read {
            Poll::Ready(outcome) => outcome.ok().map(|()| buffer.filled().len()),
            Poll::Pending => None,
        }
    }

    /// Reads again and again until something is so.
    async fn poll_until(
        timed: &mut Timed<tokio::io::DuplexStream>,
        so: impl Fn(Option<usize>, &Phase) -> bool,
    ) -> Option<usize> {
        loop {
            let come = poll(timed).await;
            if so(come, &Arc::clone(&timed.phase)) {
                return come;
            }
            sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn a_connection_rests_once_nothing_was_asked_for_a_while_until_something_comes_or_its_idle_time_is_over() {
        let (near, mut far) = tokio::io::duplex(64);
        let idle_timeout = Duration::from_millis(200);
        let (mut timed, phase) = Timed::new(near, Duration::from_secs(60), idle_timeout);
        let in_hand = phase.begin(None);
        let served =
            tokio::time::timeout(idle_timeout * 2, poll_until(&mut timed, |_, phase| phase.is_at_rest())).await;
        assert!(served.is_err(), "not while a request is in hand");
        drop(in_hand);
        assert_eq!(poll_until(&mut timed, |_, phase| phase.is_at_rest()).await, None);
        tokio::io::AsyncWriteExt::write_all(&mut far, b"P").await.unwrap();
        assert_eq!((poll(&mut timed).await, phase.is_at_rest()), (Some(1), false), "a head has begun");
        drop(phase.begin(None));
        assert_eq!(poll_until(&mut timed, |_, phase| phase.is_at_rest()).await, None);
        assert_eq!(poll_until(&mut timed, |come, _| come.is_some()).await, Some(0), "the end");
    }
}
