//! A connection that knows what left: the difference between "nothing was sent" and "nobody knows".

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

/// What has left through a [`Wire`].
#[derive(Debug, Default)]
pub(super) struct Meter {
    taken: Mutex<Taken>,
    flushed: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    /// Bytes that were taken for sending since the connection was made, TLS not counted.
    bytes: u64,
    /// Whether nothing more may leave.
    closed: bool,
}

impl Meter {
    /// Bytes that were taken for sending so far.
    pub(super) fn written(&self) -> u64 {
        self.taken.lock().bytes
    }

    /// Lets nothing more leave, and answers what was taken until now. Whoever gives a request up must know whether it
    /// left, and the connection is driven by a task of its own, which may be about to write.
    pub(super) fn close(&self) -> u64 {
        let mut taken = self.taken.lock();
        taken.closed = true;
        taken.bytes
    }

    /// Waits until more than `before` bytes were taken, and all that was taken has left.
    pub(super) async fn left(&self, before: u64) {
        loop {
            self.flushed.notified().await;
            if self.written() > before {
                return;
            }
        }
    }

    /// Writes and counts in one step, unless closed.
    fn write(&self, write: impl FnOnce() -> Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let mut taken = self.taken.lock();
        if taken.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let bytes = ready!(write())?;
        taken.bytes += bytes as u64;
        Poll::Ready(Ok(bytes))
    }
}

/// A stream that counts.
#[derive(Debug)]
pub(super) struct Wire<T> {
    stream: T,
    meter: Arc<Meter>,
    unflushed: bool,
}

impl<T> Wire<T> {
    pub(super) fn new(stream: T) -> (Self, Arc<Meter>) {
        let meter = Arc::new(Meter::default());
        (Self { stream, meter: Arc::clone(&meter), unflushed: false }, meter)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Wire<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Wire<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Self { stream, meter, unflushed } = &mut *self;
        *unflushed = true;
        meter.write(|| Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, meter, unflushed } = &mut *self;
        *unflushed = true;
        meter.write(|| Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        if std::mem::take(&mut self.unflushed) {
            self.meter.flushed.notify_one();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
