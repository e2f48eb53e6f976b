//! One request and its answer.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{
    ACCEPT, AGE, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, DATE, HOST, HeaderName, RETRY_AFTER,
    USER_AGENT,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri};
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming};

use super::failure::{Failure, FailureKind};
use super::link::Link;
use super::pool::Pool;
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

/// What all requests have in common.
#[derive(Debug)]
pub(super) struct Target {
    /// `Host`, where the address can be told as one.
    host: Option<HeaderValue>,
    path_prefix: String,
    max_response: usize,
}

impl Target {
    pub(super) fn new(base_url: &BaseUrl, max_response: usize) -> Self {
        let host = HeaderValue::from_str(base_url.authority()).ok();
        Self { host, path_prefix: base_url.path().to_owned(), max_response }
    }

    /// Only these headers go up, whatever the caller sent.
    fn request(&self, signed: &SignedRequest) -> Option<Request<Full<Bytes>>> {
        let body = signed.body().clone();
        let length = HeaderValue::from(body.len());
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = Uri::try_from([&self.path_prefix, signed.path()].concat()).ok()?;
        *request.headers_mut() = HeaderMap::from_iter([
            (HOST, self.host.clone()?),
            (CONTENT_TYPE, JSON),
            (CONTENT_LENGTH, length),
            (ACCEPT, JSON),
            (USER_AGENT, AGENT),
        ]);
        Some(request)
    }
}

/// A connection that is about to carry one request.
#[derive(Debug)]
pub struct Connection {
    link: Link,
    /// Where it goes afterwards; `None`: it is closed.
    home: Option<Arc<Pool>>,
    reused: bool,
    target: Arc<Target>,
}

impl Connection {
    pub(super) fn new(link: Link, reused: bool, home: Option<Arc<Pool>>, target: &Arc<Target>) -> Self {
        Self { link, home, reused, target: Arc::clone(target) }
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
        let (meter, reused) = (Arc::clone(self.link.meter()), self.reused);
        let before = meter.taken();
        let (mut answering, mut told) = (false, before);
        let outcome = if within.is_zero() {
            Err(FailureKind::Timeout)
        } else {
            let exchange = pin!(async {
                let response = self.send(request, &mut told, &left).await?;
                answering = true;
                answered();
                self.receive(response).await
            });
            tokio::time::timeout(within, exchange).await.unwrap_or(Err(FailureKind::Timeout))
        };
        outcome.map_err(|kind| {
            // Nobody drives the connection any more: what was taken until now is all that ever leaves.
            let taken = meter.taken();
            if taken > told {
                left();
            }
            Failure { kind, left: taken > before, reused, answering }
        })
    }

    async fn send(
        &mut self,
        request: &SignedRequest,
        told: &mut u64,
        left: &impl Fn(),
    ) -> Result<Response<Incoming>, FailureKind> {
        let request = self.target.request(request).ok_or(FailureKind::NotHttp)?;
        let mut response = pin!(self.link.send(request));
        poll_fn(|cx| {
            // First, as the answer comes by it.
            let over = self.link.drive(cx).is_ready();
            let flushed = self.link.meter().flushed();
            if flushed > *told {
                *told = flushed;
                left();
            }
            match response.as_mut().poll(cx) {
                Poll::Ready(response) => Poll::Ready(response.map_err(|error| kind_of(&error))),
                Poll::Pending if over => Poll::Ready(Err(FailureKind::Reset)),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
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
        let body = self.read(body).await?;
        let closes = head.headers.get(CONNECTION).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"));
        match self.home.take().filter(|_| !closes && head.version == http::Version::HTTP_11) {
            Some(pool) => pool.put(self.link, keep_alive_hint(&head.headers)),
            None => self.link.end(),
        }
        let header = |name| head.headers.get(name).map(copied);
        let rare = Rare { content_encoding: header(CONTENT_ENCODING), retry_after: header(RETRY_AFTER) };
        let rare = (rare != Rare::default()).then(|| Box::new(rare));
        let content_type = head.headers.get(CONTENT_TYPE).map(ContentType::from);
        let answer = Answer { status: head.status.as_u16(), content_type, rare, body };
        Ok(Exchanged { answer, date: date(&head.headers) })
    }

    /// Reads a body into one allocation of its own size.
    async fn read(&mut self, mut body: Incoming) -> Result<Box<[u8]>, FailureKind> {
        let max = self.target.max_response;
        let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        if announced > max {
            return Err(FailureKind::Oversized);
        }
        let mut whole = Vec::with_capacity(announced);
        while let Some(frame) = poll_fn(|cx| self.poll_frame(&mut body, cx)).await? {
            let Some(data) = frame.data_ref() else { continue };
            if whole.len() + data.len() > max {
                return Err(FailureKind::Oversized);
            }
            whole.extend_from_slice(data);
        }
        Ok(whole.into_boxed_slice())
    }

    /// The next part of a body; `None` at its end.
    fn poll_frame(
        &mut self,
        body: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Frame<Bytes>>, FailureKind>> {
        let mut next = Pin::new(&mut *body).poll_frame(cx);
        if next.is_pending() {
            // Now that it is asked for, it comes as the connection is driven.
            let over = self.link.drive(cx).is_ready();
            next = Pin::new(body).poll_frame(cx);
            if next.is_pending() && over {
                return Poll::Ready(Err(FailureKind::Reset));
            }
        }
        next.map(|frame| frame.transpose().map_err(|error| kind_of(&error)))
    }
}

/// `Date`, unless an `Age` tells that it is that of an earlier answer.
fn date(headers: &HeaderMap) -> Option<Wall> {
    let date = headers.get(DATE).filter(|_| !headers.contains_key(AGE))?.to_str().ok()?;
    let since = httpdate::parse_http_date(date).ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(Wall::from_unix_seconds(i64::try_from(since.as_secs()).ok()?))
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
    use std::io;
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::secret::Secret;
    use crate::settings::TenantSettings;
    use crate::signer::{Call, Nonces};
    use crate::tenant::{Identities, Tenants};
    use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

    const NOWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    async fn link(near: tokio::io::DuplexStream) -> Link {
        Link::open((Box::new(near), NOWHERE)).await.unwrap()
    }

    fn target() -> Arc<Target> {
        Arc::new(Target::new(&BaseUrl::parse("http://a").unwrap(), 1 << 20))
    }

    /// What the far side sees of a connection whose only request is given up at once, and what is told of it.
    async fn given_up(within: Duration) -> (bool, bool) {
        let (near, mut far) = tokio::io::duplex(1 << 16);
        let connection = Connection::new(link(near).await, false, None, &target());
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

    /// What is told of a request must hold wherever its time ends.
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

    /// Notes whether it was shut down, by which TLS tells its end.
    #[derive(Debug)]
    struct Noted(tokio::io::DuplexStream, Arc<AtomicBool>);

    impl AsyncRead for Noted {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Noted {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_write(cx, buf)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.1.store(true, Ordering::Relaxed);
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    #[tokio::test]
    async fn a_connection_that_is_not_kept_is_shut_down_after_its_answer_and_not_without_one() {
        for answers in [true, false] {
            let (near, mut far) = tokio::io::duplex(1 << 16);
            let ended = Arc::new(AtomicBool::new(false));
            let link = Link::open((Box::new(Noted(near, Arc::clone(&ended))), NOWHERE)).await.unwrap();
            let platform = async {
                far.read_u8().await.unwrap();
                if answers {
                    far.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await.unwrap();
                }
                far.read_to_end(&mut Vec::new()).await.unwrap();
            };
            let (request, connection) = (signed(), Connection::new(link, false, None, &target()));
            let answered = connection.exchange(&request, Duration::from_millis(500), || {}, || {});
            let (answered, ()) = tokio::join!(answered, platform);
            assert_eq!((answered.is_ok(), ended.load(Ordering::Relaxed)), (answers, answers));
        }
    }

    #[tokio::test]
    async fn an_idle_connection_that_closed_costs_nothing_that_left() {
        let (near, far) = tokio::io::duplex(1 << 16);
        let idle = Connection::new(link(near).await, true, None, &target());
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
