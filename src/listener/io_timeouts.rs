//! The timeouts of a caller's connection that hyper lacks: hyper times a request head from the end of the request before it,
//! and knows no idle timeout and no write timeout.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep, sleep_until};

use super::connection_state::ConnectionState;

/// What a connection that reads is waiting for, after so many requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    /// The rest of a request head; before the first request, all of it.
    Head(u64),
    /// The next request.
    Idle(u64),
}

/// A stream with timeouts.
#[derive(Debug)]
pub(super) struct IoTimeouts<T> {
    stream: T,
    state: Arc<ConnectionState>,
    header_timeout: Duration,
    idle_timeout: Duration,
    /// The number of requests that had begun when bytes were received last while none was in progress: the next head has begun.
    head_after: Option<u64>,
    /// What the timer is set for; `None`: it has to be set.
    timed: Option<Waiting>,
    timer: Option<Pin<Box<Sleep>>>,
    /// Set while nothing can be written.
    write_timer: Option<Pin<Box<Sleep>>>,
}

impl<T> IoTimeouts<T> {
    pub(super) fn new(stream: T, header_timeout: Duration, idle_timeout: Duration) -> (Self, Arc<ConnectionState>) {
        let state = Arc::new(ConnectionState::default());
        let timeouts = Self {
            stream,
            state: Arc::clone(&state),
            header_timeout,
            idle_timeout,
            head_after: None,
            timed: None,
            timer: None,
            write_timer: None,
        };
        (timeouts, state)
    }

    /// What the connection is waiting for; `None`: for a request that is in progress and has its own timeouts.
    fn waiting(&self) -> Option<Waiting> {
        if !self.state.is_idle() {
            return None;
        }
        let begun = self.state.begun();
        let is_head = begun == 0 || (self.head_after == Some(begun) && !self.state.is_multiplexed());
        Some(if is_head { Waiting::Head(begun) } else { Waiting::Idle(begun) })
    }

    /// Ready once the connection has waited for too long.
    fn poll_timeout(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(waiting) = self.waiting() else {
            // hyper reads while a request is in progress, and not again once its response was sent: without a timer
            // nothing would notice that the connection is idle from then on.
            if self.timer.as_ref().is_none_or(|timer| timer.is_elapsed()) {
                self.timed = None;
                return self.set_timer(self.idle_timeout).poll(cx).map(|()| Ok(()));
            }
            return Poll::Pending;
        };
        if self.timed != Some(waiting) {
            let timeout = match waiting {
                Waiting::Head(_) => self.header_timeout,
                Waiting::Idle(_) => self.idle_timeout,
            };
            self.set_timer(timeout);
            self.timed = Some(waiting);
        }
        let Some(timer) = &mut self.timer else { return Poll::Pending };
        if timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.timed = None;
        match waiting {
            // HTTP/2 can say that it closes the connection, so that no request is lost.
            Waiting::Idle(_) if self.state.is_multiplexed() => {
                self.state.shut_down();
                self.timer = None;
                self.timed = Some(waiting);
                Poll::Pending
            }
            // The end of the stream: no request is in progress that had to be answered.
            Waiting::Idle(_) => Poll::Ready(Ok(())),
            Waiting::Head(_) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
        }
    }

    fn set_timer(&mut self, timeout: Duration) -> Pin<&mut Sleep> {
        #[expect(clippy::disallowed_methods, reason = "tokio's timers run by tokio's own clock")]
        let deadline = tokio::time::Instant::now() + timeout;
        let mut timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline))).as_mut();
        timer.as_mut().reset(deadline);
        timer
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for IoTimeouts<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Ready(result) => {
                if buf.filled().len() > before && self.state.is_idle() {
                    self.head_after = Some(self.state.begun());
                }
                Poll::Ready(result)
            }
            Poll::Pending => self.poll_timeout(cx),
        }
    }
}

impl<T: AsyncWrite + Unpin> IoTimeouts<T> {
    /// Limits how long nothing can be written. A caller that takes its response is not idle.
    fn written<V>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<V>>) -> Poll<io::Result<V>> {
        if result.is_ready() {
            self.write_timer = None;
            if !self.state.is_multiplexed() && matches!(self.timed, Some(Waiting::Idle(_))) {
                self.timed = None;
            }
            return result;
        }
        let idle_timeout = self.idle_timeout;
        let timer = self.write_timer.get_or_insert_with(|| Box::pin(sleep(idle_timeout)));
        timer.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for IoTimeouts<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.written(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.written(cx, result)
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex, split};

    use super::*;

    const HEADER: Duration = Duration::from_millis(100);
    const IDLE: Duration = Duration::from_millis(400);

    #[expect(clippy::disallowed_methods, reason = "tokio's timers run by tokio's own clock")]
    fn now() -> tokio::time::Instant {
        tokio::time::Instant::now()
    }

    async fn pause(millis: u64) {
        sleep(Duration::from_millis(millis)).await;
    }

    /// Whenever its last request ended or its response was written, a connection whose task then reads again is closed once it has been
    /// idle for as long as configured.
    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_closed_at_its_timeout() {
        for (before, duration, written_after) in
            (0..60).flat_map(|n| [(n * 6, 0, 0), (n * 6, 130, 0), (n, 900, n * 13 % 350)])
        {
            let (stream, _caller) = duplex(64);
            let (stream, state) = IoTimeouts::new(stream, HEADER, IDLE);
            let (mut reading, mut writing) = split(stream);
            drop(state.begin(None));
            let requests = async {
                pause(before).await;
                let request = state.begin(None);
                pause(duration).await;
                drop(request);
                pause(written_after).await;
                writing.write_all(b"end").await.unwrap();
                // As hyper does, the task reads again after it has written.
                tokio::task::yield_now().await;
                now()
            };
            let mut buffer = [0];
            let closed = async { (reading.read(&mut buffer).await.unwrap(), now()) };
            let (active, (length, closed)) = tokio::join!(requests, closed);
            let idle = closed - active;
            assert_eq!(length, 0);
            assert!(
                (IDLE..=IDLE + Duration::from_millis(2)).contains(&idle),
                "{idle:?} after {before}, {duration}, {written_after}"
            );
        }
    }

    /// The timeout of a head runs from its first byte, also after the connection was idle.
    #[tokio::test(start_paused = true)]
    async fn a_head_that_does_not_end_is_timed_from_its_beginning() {
        for (requests, idle_before) in [(0, 0), (1, 0), (1, 130), (1, 390)] {
            let (stream, mut caller) = duplex(64);
            let (mut stream, state) = IoTimeouts::new(stream, HEADER, IDLE);
            (0..requests).for_each(|_| drop(state.begin(None)));
            let start = now();
            let read = async {
                let mut buffer = [0; 8];
                while stream.read(&mut buffer).await? > 0 {}
                io::Result::Ok(())
            };
            let head = async {
                pause(idle_before).await;
                caller.write_all(b"POST").await.unwrap();
            };
            let (read, ()) = tokio::join!(read, head);
            assert_eq!(read.unwrap_err().kind(), io::ErrorKind::TimedOut);
            let took = start.elapsed() - Duration::from_millis(idle_before);
            assert!(
                (HEADER..HEADER + Duration::from_millis(3)).contains(&took),
                "{took:?} after {requests}, {idle_before}"
            );
        }
    }
}
