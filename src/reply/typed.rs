//! Replies of the typed API.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, StatusCode};

use super::JSON;
use super::error::GatewayError;
use super::problem::{PROBLEM_JSON, Problem};
use crate::answer::{PlatformFailure, Typed};
use crate::cache::SharedAnswer;
use crate::clock::Wall;

const PRIVATE: HeaderValue = HeaderValue::from_static("private, no-cache");

/// The shape in which a request is answered.
#[derive(Clone, Debug, Default)]
pub enum Shape {
    /// The platform's.
    #[default]
    Platform,
    /// JSON of the gateway's own, with errors as problem details (RFC 9457).
    Own,
    /// The typed API's list of coupons, with the same errors.
    Coupons(Box<CouponsView>),
}

/// What a request wants to see of a customer's coupons.
#[derive(Clone, Debug)]
pub struct CouponsView {
    /// The customer.
    pub customer: String,
    /// Whether only usable coupons are wanted.
    pub usable: bool,
    /// `If-None-Match`.
    pub known: Option<HeaderValue>,
}

/// The typed form of a reply.
#[derive(Debug)]
pub struct TypedReply {
    /// The HTTP status.
    pub status: StatusCode,
    /// The name of the error, if it is one.
    pub error: Option<&'static str>,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Coupons { etag: HeaderValue, json: Bytes },
    NotModified { etag: HeaderValue },
    Failure { failure: PlatformFailure, retry_after: Option<HeaderValue> },
}

/// A list of coupons as the owner of a body that is being sent.
struct Owner(SharedAnswer);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        self.0.typed.coupons().map_or(&[], |coupons| coupons.json().as_bytes())
    }
}

impl CouponsView {
    /// The reply with an answer, whose typed form was made.
    ///
    /// # Errors
    /// If that is too large.
    pub fn reply(
        &self,
        answer: &SharedAnswer,
        typed: &Typed,
        now: impl FnOnce() -> Wall,
    ) -> Result<TypedReply, GatewayError> {
        let (status, error, content) = match typed {
            Typed::Coupons(coupons) => {
                let usable = self.usable.then(|| coupons.usable(now()));
                let etag = usable.as_ref().map_or_else(|| coupons.etag(), |(_, etag)| etag);
                match self.knows(etag) {
                    true => (StatusCode::NOT_MODIFIED, None, Content::NotModified { etag: etag.clone() }),
                    false => {
                        let etag = etag.clone();
                        let whole = || Bytes::from_owner(Owner(answer.clone()));
                        let json = usable.map_or_else(whole, |(json, _)| json.into());
                        (StatusCode::OK, None, Content::Coupons { etag, json })
                    }
                }
            }
            Typed::Failure(failure) => {
                let Problem { status, name, .. } = Problem::from(failure);
                let retry_after = answer.retry_after().cloned();
                (status, Some(name), Content::Failure { failure: failure.clone(), retry_after })
            }
            Typed::TooLarge => return Err(GatewayError::TooManyCoupons),
        };
        Ok(TypedReply { status, error, content })
    }

    /// Whether the caller has what this entity tag names (RFC 9110, section 13.1.2); compared weakly.
    fn knows(&self, etag: &HeaderValue) -> bool {
        let own = opaque(etag.as_bytes());
        let listed = self.known.iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
        listed.map(<[u8]>::trim_ascii).any(|tag| tag == b"*" || opaque(tag) == own)
    }
}

/// An entity tag without its mark of weakness.
fn opaque(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

impl TypedReply {
    /// The platform's code, if it said something else than coupons.
    pub fn platform_code(&self) -> Option<&str> {
        if let Content::Failure { failure, .. } = &self.content { failure.code.as_deref() } else { None }
    }

    /// Bytes of its body, unless it is an error.
    pub fn bytes(&self) -> usize {
        if let Content::Coupons { json, .. } = &self.content { json.len() } else { 0 }
    }

    pub(super) fn write(self, request_id: &str, headers: &mut HeaderMap) -> (StatusCode, Bytes) {
        headers.insert(CACHE_CONTROL, PRIVATE);
        let body = match self.content {
            Content::Coupons { etag, json } => {
                headers.insert(CONTENT_TYPE, JSON);
                headers.insert(ETAG, etag);
                json
            }
            Content::NotModified { etag } => {
                headers.insert(ETAG, etag);
                Bytes::new()
            }
            Content::Failure { failure, retry_after } => {
                headers.extend(retry_after.map(|value| (RETRY_AFTER, value)));
                headers.insert(CONTENT_TYPE, PROBLEM_JSON);
                Problem::from(&failure).json(request_id).into()
            }
        };
        (self.status, body)
    }
}
