//! One request and its answer.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{
    ACCEPT, AGE, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, DATE, HOST, HeaderName, RETRY_AFTER,
    USER_AGENT,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper_util::rt::TokioIo;

use super::connect::Stream;
use super::failure::{Failure, FailureKind};
use super::pool::{Idle, Pool};
use super::wire::{Meter, Wire};
use crate::answer::{Answer, ContentType, Rare, copied};
use crate::clock::Wall;
use crate::settings::BaseUrl;
use crate::signer::SignedRequest;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const AGENT: HeaderValue = HeaderValue::from_static(concat!("zvgate/", env!("CARGO_PKG_VERSION")));
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// An answer, and what came with it beside what callers get.
#[derive(Clone, Debug)]
pub struct Exchanged {
    /// The answer.
    pub answer: Answer,
    /// The platform's clock as it answered; `None` where it does not tell, or the answer was kept on the way.
    pub date: Option<Wall>,
}

/// A connection that is about to carry one request.
#[derive(Debug)]
pub struct Connection {
    idle: Idle,
    /// Where it goes afterwards; `None`: it is closed.
    home: Option<Arc<Pool>>,
    reused: bool,
    authority: String,
    path_prefix: String,
    max_response: usize,
}

impl Connection {
    pub(super) async fn open(
        (stream, address): (Box<dyn Stream>, SocketAddr),
        home: Option<Arc<Pool>>,
        base_url: &BaseUrl,
        max_response: usize,
    ) -> Result<Self, Failure> {
        let (wire, meter) = Wire::new(stream);
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(wire)).await;
        let (sender, driver) = handshake.map_err(|_| Failure::before(FailureKind::Connect))?;
        // What goes wrong on the connection also reaches the request that is on it.
        tokio::spawn(async move { driver.await.ok() });
        Ok(Self { reused: false, ..Self::reused(Idle { sender, meter, address }, home, base_url, max_response) })
    }

    pub(super) fn reused(idle: Idle, home: Option<Arc<Pool>>, base_url: &BaseUrl, max_response: usize) -> Self {
        let (authority, path_prefix) = (base_url.authority().to_owned(), base_url.path().to_owned());
        Self { idle, home, reused: true, authority, path_prefix, max_response }
    }

    /// Sends a signed request and reads its whole answer in `within`. Tells `left` each time that its bytes have left,
    /// and `answered` when the answer begins.
    ///
    /// # Errors
    /// Where no whole and usable answer came; a failure on this connection is never tried again here.
    pub async fn exchange(
        mut self,
        request: &SignedRequest,
        within: Duration,
        left: impl Fn(),
        answered: impl Fn(),
    ) -> Result<Exchanged, Failure> {
        let before = self.idle.meter.written();
        let meter = Arc::clone(&self.idle.meter);
        let reused = self.reused;
        let (mut answering, told) = (false, AtomicU64::new(before));
        let outcome = if within.is_zero() {
            drop(self);
            Err(FailureKind::Timeout)
        } else {
            let exchange = pin!(async {
                let response = self.send(request, &meter, before, &told, &left).await?;
                answering = true;
                answered();
                self.receive(response).await
            });
            tokio::time::timeout(within, exchange).await.unwrap_or(Err(FailureKind::Timeout))
        };
        outcome.map_err(|kind| {
            let written = meter.close();
            if written > told.into_inner() {
                left();
            }
            Failure { kind, left: written > before, reused, answering }
        })
    }

    async fn send(
        &mut self,
        request: &SignedRequest,
        meter: &Meter,
        before: u64,
        told: &AtomicU64,
        left: &impl Fn(),
    ) -> Result<Response<Incoming>, FailureKind> {
        let request = self.request(request).map_err(|_| FailureKind::NotHttp)?;
        let mut response = pin!(self.idle.sender.send_request(request));
        loop {
            tokio::select! {
                response = &mut response => return response.map_err(|error| kind_of(&error)),
                () = meter.left(before) => {
                    told.store(meter.written(), Ordering::Relaxed);
                    left();
                }
            }
        }
    }

    /// Only these headers go up, whatever the caller sent.
    fn request(&self, signed: &SignedRequest) -> http::Result<Request<Full<Bytes>>> {
        let body = signed.body().clone();
        Request::builder()
            .method(Method::POST)
            .uri(format!("{}{}", self.path_prefix, signed.path()))
            .header(HOST, &self.authority)
            .header(CONTENT_TYPE, JSON)
            .header(CONTENT_LENGTH, body.len())
            .header(ACCEPT, JSON)
            .header(USER_AGENT, AGENT)
            .body(Full::new(body))
    }

    async fn receive(mut self, response: Response<Incoming>) -> Result<Exchanged, FailureKind> {
        let (head, body) = response.into_parts();
        if head.status.is_redirection() {
            return Err(FailureKind::Redirect);
        }
        if head.status.is_informational() {
            // Switching protocols: nobody asked for that, and it is no answer.
            return Err(FailureKind::NotHttp);
        }
        let body = read(body, self.max_response).await?;
        let closes = head.headers.get(CONNECTION).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"));
        if let Some(pool) = self.home.take().filter(|_| !closes && head.version == http::Version::HTTP_11) {
            pool.put(self.idle, keep_alive_hint(&head.headers));
        }
        let header = |name| head.headers.get(name).map(copied);
        let rare = Rare { content_encoding: header(CONTENT_ENCODING), retry_after: header(RETRY_AFTER) };
        let rare = (rare != Rare::default()).then(|| Box::new(rare));
        let content_type = head.headers.get(CONTENT_TYPE).map(ContentType::from);
        let answer = Answer { status: head.status.as_u16(), content_type, rare, body };
        Ok(Exchanged { answer, date: date(&head.headers) })
    }
}

/// `Date`, unless an `Age` tells that it is that of an earlier answer.
fn date(headers: &HeaderMap) -> Option<Wall> {
    let date = headers.get(DATE).filter(|_| !headers.contains_key(AGE))?.to_str().ok()?;
    let since = httpdate::parse_http_date(date).ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(Wall::from_unix_seconds(i64::try_from(since.as_secs()).ok()?))
}

/// Reads a body into one allocation of its own size.
async fn read(mut body: Incoming, max: usize) -> Result<Box<[u8]>, FailureKind> {
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > max {
        return Err(FailureKind::Oversized);
    }
    let mut whole = Vec::with_capacity(announced);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| kind_of(&error))?;
        let Some(data) = frame.data_ref() else { continue };
        if whole.len() + data.len() > max {
            return Err(FailureKind::Oversized);
        }
        whole.extend_from_slice(data);
    }
    Ok(whole.into_boxed_slice())
}

fn kind_of(error: &hyper::Error) -> FailureKind {
    if error.is_parse() { FailureKind::NotHttp } else { FailureKind::Reset }
}

/// `Keep-Alive: timeout=5`: how long upstream keeps an idle connection.
fn keep_alive_hint(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(KEEP_ALIVE)?.to_str().ok()?;
    let timeout = value.split(',').find_map(|part| part.trim().strip_prefix("timeout="))?;
    timeout.trim().parse().ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;
    use crate::settings::TenantSettings;
    use crate::signer::{Call, Nonces};
    use crate::tenant::{Identities, Tenants};
    use tokio::io::AsyncReadExt;

    const NOWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    /// What the far side sees of a connection whose only request is given up at once, and what is told of it.
    async fn given_up(within: Duration) -> (bool, bool) {
        let (near, mut far) = tokio::io::duplex(1 << 16);
        let url = BaseUrl::parse("http://a").unwrap();
        let connection = Connection::open((Box::new(near), NOWHERE), None, &url, 1 << 20).await.unwrap();
        let failure = connection.exchange(&signed(), within, || {}, || {}).await.unwrap_err();
        let mut seen = Vec::new();
        far.read_to_end(&mut seen).await.unwrap();
        assert_eq!(failure.kind, FailureKind::Timeout);
        (failure.left, !seen.is_empty())
    }

    fn signed() -> SignedRequest {
        let tenants = Tenants::new(
            &[TenantSettings {
                name: "a".to_owned(),
                open_id: "i".to_owned(),
                grant_code: "g".to_owned(),
                open_key: Secret::new("k".to_owned()),
                open_key_file: None,
                default: true,
                pace: None,
            }],
            &mut Identities::default(),
        );
        let call = Call { tenant: Arc::clone(&tenants.all()[0]), path: "/".into(), members: "\"params\":{}".into() };
        SignedRequest::sign(&call, &Nonces::new().unwrap(), Wall::from_unix_seconds(0))
    }

    /// The driver writes on another thread: what is told of a request must hold whichever of the two comes first.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_request_that_is_given_up_has_left_exactly_where_the_far_side_has_it() {
        let mut told_left = 0;
        for nanos in [0, 1, 10_000, 30_000, 100_000, 1_000_000].into_iter().cycle().take(3000) {
            let (told, seen) = given_up(Duration::from_nanos(nanos)).await;
            assert_eq!(told, seen, "within {nanos} ns");
            told_left += u32::from(told);
        }
        assert!((100..2900).contains(&told_left), "{told_left}: both kinds are tried");
    }

    #[tokio::test]
    async fn an_idle_connection_that_closed_costs_nothing_that_left() {
        let (near, far) = tokio::io::duplex(1 << 16);
        let url = BaseUrl::parse("http://a").unwrap();
        let fresh = Connection::open((Box::new(near), NOWHERE), None, &url, 1 << 20).await.unwrap();
        let idle = Connection::reused(fresh.idle, None, &url, 1 << 20);
        drop(far);
        let failure = idle.exchange(&signed(), Duration::from_secs(5), || {}, || {}).await.unwrap_err();
        assert!(failure.is_stale_connection(), "{failure:?}");
    }

    #[test]
    fn a_date_is_read_where_it_is_that_of_this_answer() {
        let told = HeaderValue::from_static("Wed, 21 Oct 2015 07:28:00 GMT");
        let mut headers = HeaderMap::from_iter([(DATE, told)]);
        assert_eq!(date(&headers), Some(Wall::from_unix_seconds(1_445_412_480)));
        headers.insert(AGE, HeaderValue::from_static("0"));
        assert_eq!(date(&headers), None);
        for bad in ["", "yesterday", "Wed, 21 Oct 1915 07:28:00 GMT"] {
            let headers = HeaderMap::from_iter([(DATE, HeaderValue::from_static(bad))]);
            assert_eq!(date(&headers), None, "{bad}");
        }
    }

    #[test]
    fn the_keep_alive_hint_is_found_among_its_neighbours() {
        let hint = |value| keep_alive_hint(&HeaderMap::from_iter([(KEEP_ALIVE, HeaderValue::from_static(value))]));
        assert_eq!(hint("timeout=5, max=100"), Some(Duration::from_secs(5)));
        assert_eq!(hint("max=100, timeout=7"), Some(Duration::from_secs(7)));
        assert_eq!(hint("max=100"), None);
        assert_eq!(hint("timeout=soon"), None);
    }
}
