//! A caller's stream that ends where nothing comes: slowly sent heads, and connections that are only held.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::header::CONNECTION;
use http::{HeaderValue, Response};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// Where a connection is between its requests; shared by the stream and the requests on it.
#[derive(Debug, Default)]
pub(super) struct Phase {
    /// Requests that have begun.
    begun: AtomicU64,
    /// Requests that were answered.
    answered: AtomicU64,
    /// Whether the next answer is to tell that it is the connection's last.
    ending: AtomicBool,
    /// Whether bytes between requests may be anything but a head.
    multiplexed: AtomicBool,
}

impl Phase {
    /// Marks a request as under way until its answer is known.
    pub(super) fn serving<F, B, E>(self: &Arc<Self>, answer: F) -> impl Future<Output = F::Output> + use<F, B, E>
    where
        F: Future<Output = Result<Response<B>, E>>,
    {
        self.begun.fetch_add(1, Ordering::Relaxed);
        let phase = Arc::clone(self);
        async move {
            let mut answer = answer.await;
            phase.answered.fetch_add(1, Ordering::Relaxed);
            if phase.ending.load(Ordering::Relaxed)
                && let Ok(answer) = &mut answer
            {
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            answer
        }
    }

    /// From now on an answer is the connection's last.
    pub(super) fn end(&self) {
        self.ending.store(true, Ordering::Relaxed);
    }

    /// The connection carries several requests at once, and other things between them.
    pub(super) fn multiplex(&self) {
        self.multiplexed.store(true, Ordering::Relaxed);
    }

    fn stage(&self, head_begun: bool) -> Stage {
        let (begun, answered) = (self.begun.load(Ordering::Relaxed), self.answered.load(Ordering::Relaxed));
        if begun > answered {
            Stage::Serving
        } else if begun == 0 || (head_begun && !self.multiplexed.load(Ordering::Relaxed)) {
            Stage::Head(begun)
        } else {
            Stage::Idle(begun)
        }
    }
}

/// What a connection waits for, and after how many requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The rest of a head; before the first request, all of it.
    Head(u64),
    /// The next request.
    Idle(u64),
    /// Nothing: a request is being answered, and has its own time.
    Serving,
}

/// Idle time is counted in ticks of this part of its limit: a busy connection then sets no timer for each request, and an
/// idle one is closed after at most one tick more than its limit.
const TICKS: u32 = 4;

/// What the timer is set for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Alarm {
    /// The end of a head's time.
    Head(u64),
    /// A tick; the connection was idle, after so many requests, for so many ticks.
    Tick { begun: u64, idle: u32 },
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
    timer: Option<(Alarm, Pin<Box<Sleep>>)>,
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
        self.bytes_after = match self.phase.stage(false) {
            Stage::Head(begun) | Stage::Idle(begun) => Some(begun),
            Stage::Serving => None,
        };
    }

    /// Ready when the connection has waited for too long.
    fn poll_time(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let begun = self.phase.begun.load(Ordering::Relaxed);
            let stage = self.phase.stage(self.bytes_after == Some(begun));
            let (armed, timer) = self.timer_for(stage);
            ready!(timer.as_mut().poll(cx));
            self.timer = None;
            let wrote = std::mem::take(&mut self.wrote);
            let next = match (armed, stage) {
                (Alarm::Head(_), _) => return Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
                (Alarm::Tick { begun: before, idle }, Stage::Idle(begun)) if before == begun && !wrote => {
                    Alarm::Tick { begun, idle: idle + 1 }
                }
                (Alarm::Tick { .. }, _) => Alarm::Tick { begun, idle: 0 },
            };
            if matches!(next, Alarm::Tick { idle: TICKS.., .. }) {
                // The end of the stream: nobody is told, since nobody asked.
                return Poll::Ready(Ok(()));
            }
            self.timer = Some((next, Box::pin(sleep(self.idle_timeout / TICKS))));
        }
    }

    /// The timer that fits the stage: a running one, or a new one.
    fn timer_for(&mut self, stage: Stage) -> (Alarm, &mut Pin<Box<Sleep>>) {
        let fits = |alarm: &Alarm| match stage {
            Stage::Head(begun) => *alarm == Alarm::Head(begun),
            Stage::Idle(_) | Stage::Serving => matches!(alarm, Alarm::Tick { .. }),
        };
        let (alarm, timer) = match self.timer.take().filter(|(alarm, _)| fits(alarm)) {
            Some(running) => self.timer.insert(running),
            None => {
                let (alarm, time) = match stage {
                    Stage::Head(begun) => (Alarm::Head(begun), self.header_timeout),
                    Stage::Idle(begun) => (Alarm::Tick { begun, idle: 0 }, self.idle_timeout / TICKS),
                    Stage::Serving => (Alarm::Tick { begun: 0, idle: 0 }, self.idle_timeout / TICKS),
                };
                self.timer.insert((alarm, Box::pin(sleep(time))))
            }
        };
        (*alarm, timer)
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
