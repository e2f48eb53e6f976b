//! Who may use the pages that are not public.

use std::net::SocketAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, ORIGIN};
use http::{HeaderValue, Request, StatusCode};

use super::{CUSTOMERS, Page, is_read, not_found};
use crate::gateway::{CrossSite, Gateway, RequestHead, shown_path};
use crate::line_limit::LineLimit;
use crate::reply::BEARER;
use crate::secret::KeyHash;
use crate::settings::ListenerSettings;

/// The challenge of the pages that a browser shows (RFC 7617).
const BASIC: HeaderValue = HeaderValue::from_static("Basic realm=\"zvgate\", charset=\"UTF-8\"");

/// Who may use the pages that are not public.
#[derive(Debug)]
pub struct Access {
    /// Whoever has one of these keys; if there is none, whoever is on this machine.
    keys: Vec<KeyHash>,
    /// Whether only this machine can connect.
    is_loopback: bool,
    /// Lines about refused keys: whoever guesses must not fill the log.
    refusals: LineLimit,
}

impl Access {
    /// As configured. `is_loopback`: whether only this machine can connect.
    pub fn new(settings: &ListenerSettings, is_loopback: bool) -> Self {
        Self { keys: settings.admin_keys.clone(), is_loopback, refusals: LineLimit::default() }
    }

    /// Logs a refused key.
    fn log_refusal(&self, peer: SocketAddr, path: &str) {
        if let Some(suppressed) = self.refusals.next() {
            // Whatever is behind it may be a customer's id.
            let page = if path.starts_with(CUSTOMERS) { CUSTOMERS.into() } else { shown_path(path) };
            tracing::warn!(target: crate::gateway::AUDIT, %peer, path = &*page, suppressed, "admin key refused");
        }
    }

    /// Checks that a request may use a page that is not public. `is_for_browsers`: whether the key may be a Basic password, too.
    pub(super) fn check(
        &self,
        request: &Request<()>,
        gateway: &Gateway,
        peer: SocketAddr,
        is_for_browsers: bool,
    ) -> Result<(), Page> {
        let head = RequestHead::of(request.headers());
        if self.keys.is_empty() {
            if !self.is_loopback {
                return Err(not_found());
            }
            match gateway.cross_site(&head, request.uri()) {
                Some(CrossSite::Host) => {
                    return Err(Page::text(
                        StatusCode::MISDIRECTED_REQUEST,
                        "Host must be an IP address, localhost, or one of server.hosts",
                    ));
                }
                Some(CrossSite::Origin) if is_read(request) => return Err(foreign_page()),
                Some(CrossSite::Origin) | None => {}
            }
            return check_origin(request, gateway);
        }
        head.check_valid_host().map_err(|expected| Page::text(StatusCode::BAD_REQUEST, expected))?;
        let password = basic_password(request).filter(|_| is_for_browsers);
        let key = head.bearer().map(<[u8]>::to_vec).or(password);
        if key.is_some_and(|key| KeyHash::of(&key).is_one_of(&self.keys)) {
            return check_origin(request, gateway);
        }
        self.log_refusal(peer, request.uri().path());
        let expected = match is_for_browsers {
            true => "an admin key is required: expected Authorization: Bearer KEY, or KEY as the password for Basic",
            false => "an admin key is required: expected Authorization: Bearer KEY",
        };
        let challenge = if is_for_browsers { BASIC } else { BEARER };
        Err(Page { challenge: Some(challenge), ..Page::text(StatusCode::UNAUTHORIZED, expected) })
    }
}

fn foreign_page() -> Page {
    Page::text(
        StatusCode::FORBIDDEN,
        "requests of other sites' web pages are rejected: expected no Origin, or for methods that write one equal to Host, which must be an IP address, localhost, or one of server.hosts",
    )
}

/// Checks that a request that writes does not come from another site's page: a browser adds its user's credentials to those, too.
fn check_origin(request: &Request<()>, gateway: &Gateway) -> Result<(), Page> {
    let mut origins = request.headers().get_all(ORIGIN).iter();
    let Some(origin) = origins.next().filter(|_| !is_read(request)) else { return Ok(()) };
    let own = request.headers().get(http::header::HOST).map(HeaderValue::as_bytes);
    let own = own.or(request.uri().authority().map(|authority| authority.as_str().as_bytes()));
    let host = [&b"http://"[..], b"https://"].iter().find_map(|scheme| origin.as_bytes().strip_prefix(*scheme));
    let is_same = host.zip(own).is_some_and(|(host, own)| host.eq_ignore_ascii_case(own));
    let is_own = is_same && host.is_some_and(|host| gateway.is_own_host(host)) && origins.next().is_none();
    if is_own { Ok(()) } else { Err(foreign_page()) }
}

/// The password in `Authorization: Basic` (RFC 7617), whatever the user's name is.
fn basic_password(request: &Request<()>) -> Option<Vec<u8>> {
    let mut all = request.headers().get_all(AUTHORIZATION).iter();
    let (scheme, credentials) =
        all.next().filter(|_| all.next().is_none())?.as_bytes().split_at_checked("Basic ".len())?;
    let decoded = STANDARD.decode(credentials.trim_ascii()).ok().filter(|_| scheme.eq_ignore_ascii_case(b"Basic "))?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    decoded.get(colon + 1..).filter(|password| !password.is_empty()).map(<[u8]>::to_vec)
}
