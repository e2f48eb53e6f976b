//! A caller's stream that ends where nothing comes: slowly sent heads, and connections that are only held.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// Where a connection is between its requests; shared by the stream and the requests on it.
#[derive(Debug, Default)]
pub(super) struct Phase {
    /// Requests that have begun.
    begun: AtomicU64,
    /// Requests that were answered.
    answered: AtomicU64,
}

impl Phase {
    /// Marks a request as under way until its answer is known.
    pub(super) fn serving<F: Future>(self: &Arc<Self>, answer: F) -> impl Future<Output = F::Output> + use<F> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        let phase = Arc::clone(self);
        async move {
            let answer = answer.await;
            phase.answered.fetch_add(1, Ordering::Relaxed);
            answer
        }
    }

    fn stage(&self, head_begun: bool) -> Stage {
        let (begun, answered) = (self.begun.load(Ordering::Relaxed), self.answered.load(Ordering::Relaxed));
        if begun > answered {
            Stage::Serving
        } else if head_begun || begun == 0 {
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

/// The stream.
#[derive(Debug)]
pub(super) struct Timed<T> {
    stream: T,
    phase: Arc<Phase>,
    header_timeout: Duration,
    idle_timeout: Duration,
    /// The requests that had begun when bytes came last: more bytes after their answers begin the next head.
    bytes_after: Option<u64>,
    timer: Option<(Stage, Pin<Box<Sleep>>)>,
}

impl<T> Timed<T> {
    pub(super) fn new(stream: T, header_timeout: Duration, idle_timeout: Duration) -> (Self, Arc<Phase>) {
        let phase = Arc::new(Phase::default());
        let timed =
            Self { stream, phase: Arc::clone(&phase), header_timeout, idle_timeout, bytes_after: None, timer: None };
        (timed, phase)
    }

    /// Notes that bytes came: they begin a head, unless they belong to the request being answered.
    fn bytes_came(&mut self) {
        let stage = self.phase.stage(false);
        self.bytes_after = match stage {
            Stage::Head(begun) | Stage::Idle(begun) => Some(begun),
            Stage::Serving => None,
        };
    }

    /// Ready when the connection has waited for too long.
    fn poll_time(&mut self, cx: &mut Context<'_>) -> Poll<Stage> {
        let begun = self.phase.begun.load(Ordering::Relaxed);
        let stage = self.phase.stage(self.bytes_after == Some(begun));
        let time = match stage {
            Stage::Head(_) => self.header_timeout,
            Stage::Idle(_) => self.idle_timeout,
            Stage::Serving => {
                self.timer = None;
                return Poll::Pending;
            }
        };
        let (_, timer) = match self.timer.take().filter(|(armed, _)| *armed == stage) {
            Some(armed) => self.timer.insert(armed),
            None => self.timer.insert((stage, Box::pin(sleep(time)))),
        };
        timer.as_mut().poll(cx).map(|()| stage)
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
            Poll::Pending => match self.poll_time(cx) {
                Poll::Pending => Poll::Pending,
                // The end of the stream: nobody is told, since nobody asked.
                Poll::Ready(Stage::Idle(_)) => Poll::Ready(Ok(())),
                Poll::Ready(_) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            },
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Timed<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
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
