//! A stream that was put aside while nothing came, and goes on with what came first.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// The stream.
#[derive(Debug)]
pub(super) struct Resumed<T> {
    stream: T,
    /// What came first, as far as it was not taken yet.
    first: Bytes,
}

impl<T: AsyncRead + Unpin> Resumed<T> {
    pub(super) const fn new(stream: T) -> Self {
        Self { stream, first: Bytes::new() }
    }

    /// Waits until something comes; tells whether it did, before the stream ended. No room for more is held meanwhile.
    pub(super) async fn resume(&mut self) -> bool {
        if let Ok(first) = self.stream.read_u8().await {
            self.first = Bytes::copy_from_slice(&[first]);
        }
        !self.first.is_empty()
    }

    /// Gives back what was read too early.
    pub(super) fn put_back(&mut self, first: Bytes) {
        self.first = first;
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Resumed<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let taken = buf.remaining().min(self.first.len());
            buf.put_slice(&self.first.split_to(taken));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Resumed<T> {
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
