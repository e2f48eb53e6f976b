//! A connection to the platform, driven by whoever uses it: it has no task of its own, so that nothing happens on it unseen,
//! and a call wakes nobody but its caller.

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
use super::wire::{Meter, Wire};

type Driver = http1::Connection<TokioIo<Wire<Box<dyn Stream>>>, Full<Bytes>>;

/// The connection.
#[derive(Debug)]
pub(super) struct Link {
    sender: SendRequest<Full<Bytes>>,
    /// `None` once it is over.
    driver: Option<Box<Driver>>,
    meter: Arc<Meter>,
    /// Where it leads.
    pub(super) address: SocketAddr,
}

impl Link {
    /// HTTP on a stream.
    pub(super) async fn open((stream, address): (Box<dyn Stream>, SocketAddr)) -> hyper::Result<Self> {
        let (wire, meter) = Wire::new(stream);
        let (sender, driver) = http1::handshake(TokioIo::new(wire)).await?;
        Ok(Self { sender, driver: Some(Box::new(driver)), meter, address })
    }

    /// Hands a request over, which leaves as the connection is driven.
    pub(super) fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> impl Future<Output = hyper::Result<Response<Incoming>>> + use<> {
        self.sender.send_request(request)
    }

    /// Does what can be done on the connection now; ready once it is over. What went wrong also reaches the request that is
    /// on it.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let over = self.driver.as_mut().is_none_or(|driver| Pin::new(driver).poll(cx).is_ready());
        if over {
            self.driver = None;
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Whether another request can be sent on it: neither is one under way, nor did the other side close it.
    pub(super) fn is_ready(&mut self) -> bool {
        // Whoever sends on it will drive it, and be woken then.
        self.drive(&mut Context::from_waker(Waker::noop())).is_pending() && self.sender.is_ready()
    }

    /// Ends it as its protocols want it ended, if that needs no waiting: TLS tells the other side (RFC 8446, section 6.1). Only for
    /// one on which nothing is under way, as more may leave by it.
    pub(super) fn end(self) {
        let Self { sender, driver, .. } = self;
        drop(sender);
        if let Some(mut driver) = driver {
            let _ = Pin::new(&mut driver).poll(&mut Context::from_waker(Waker::noop()));
        }
    }

    /// What has left through it.
    pub(super) const fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }
}
