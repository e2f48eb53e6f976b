//! An HTTP/1.1 connection to the platform, driven by the task that uses it: without a task of its own, nothing happens on it
//! unseen, and a call wakes only its caller.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;

use super::connect::Stream;
use super::counting_io::{ByteCounter, CountingIo};

type Driver = http1::Connection<TokioIo<CountingIo<Box<dyn Stream>>>, Full<Bytes>>;

/// The connection.
#[derive(Debug)]
pub(super) struct Http1Connection {
    sender: SendRequest<Full<Bytes>>,
    /// `None` once it is closed.
    driver: Option<Box<Driver>>,
    counter: Arc<ByteCounter>,
    /// The remote address.
    pub(super) address: SocketAddr,
}

impl Http1Connection {
    /// HTTP on a stream.
    pub(super) async fn open((stream, address): (Box<dyn Stream>, SocketAddr)) -> hyper::Result<Self> {
        let (io, counter) = CountingIo::new(stream);
        let mut builder = http1::Builder::new();
        // Such an answer is read as it is meant, as nginx and browsers do (RFC 9112, section 5.1: a proxy removes the blanks).
        builder.allow_spaces_after_header_name_in_responses(true);
        let (sender, driver) = builder.handshake(TokioIo::new(io)).await?;
        Ok(Self { sender, driver: Some(Box::new(driver)), counter, address })
    }

    /// Queues a request, which is sent as the connection is driven.
    pub(super) fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> impl Future<Output = hyper::Result<Response<Incoming>>> + use<> {
        self.sender.send_request(request)
    }

    /// Reads and writes what can be read and written now; ready once the connection is closed. An error also reaches the
    /// request in progress.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let is_closed = self.driver.as_mut().is_none_or(|driver| Pin::new(driver).poll(cx).is_ready());
        if is_closed {
            self.driver = None;
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Whether another request can be sent: none is in progress, and the other side did not close the connection.
    pub(super) fn is_ready(&mut self) -> bool {
        // The task that sends on it will drive it, and be woken then.
        self.drive(&mut Context::from_waker(Waker::noop())).is_pending() && self.sender.is_ready()
    }

    /// Closes it as its protocols require, if that needs no waiting: TLS sends a close_notify alert (RFC 8446, section 6.1). Only
    /// for a connection without a request in progress, as more may be sent by it.
    pub(super) fn close(self) {
        let Self { sender, driver, .. } = self;
        drop(sender);
        if let Some(mut driver) = driver {
            let _ = Pin::new(&mut driver).poll(&mut Context::from_waker(Waker::noop()));
        }
    }

    /// The bytes that were sent on it.
    pub(super) const fn counter(&self) -> &Arc<ByteCounter> {
        &self.counter
    }
}
