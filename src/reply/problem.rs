//! Errors of the typed API, as problem details (RFC 9457).

use std::borrow::Cow;

use http::{HeaderValue, StatusCode};

use super::error::{GatewayError, RetryAfter};
use super::whole_seconds;
use crate::answer::PlatformFailure;
use crate::envelope::push_text;

pub(super) const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

/// Why a request got no coupons.
#[derive(Clone, Debug)]
pub struct Problem<'a> {
    /// The HTTP status.
    pub status: StatusCode,
    /// Its name: the last part of its type.
    pub name: &'static str,
    detail: Cow<'a, str>,
    /// What the platform said, if it did.
    platform: Option<&'a PlatformFailure>,
    /// After how many seconds a retry may help.
    retry_after: Option<u64>,
}

impl<'a> From<&'a GatewayError> for Problem<'a> {
    fn from(error: &'a GatewayError) -> Self {
        let (status, name, _) = error.kind();
        let retry_after = match error.retry_after() {
            RetryAfter::Limit(_, limited) => Some(whole_seconds(limited.retry_after)),
            RetryAfter::In(pause) => Some(whole_seconds(pause)),
            RetryAfter::Unknown => None,
        };
        Self { status, name, detail: error.message().into(), platform: None, retry_after }
    }
}

impl<'a> From<&'a PlatformFailure> for Problem<'a> {
    fn from(failure: &'a PlatformFailure) -> Self {
        let (status, name, detail) = match failure.is_exception {
            true => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "platform_exception",
                "the open platform answered with a business exception, for instance that nothing was found: platformCode and platformMessage are its own",
            ),
            false => (
                StatusCode::BAD_GATEWAY,
                "platform_error",
                "the open platform answered with an error: platformCode and platformMessage are its own; a later try may succeed",
            ),
        };
        Self { status, name, detail: detail.into(), platform: Some(failure), retry_after: None }
    }
}

impl Problem<'_> {
    /// Its JSON.
    pub fn json(&self, request_id: &str) -> String {
        let mut json = format!("{{\"type\":\"urn:problem-type:zvgate:{}\",\"title\":", self.name);
        push_text(&mut json, &title(self.name));
        json.push_str(&format!(",\"status\":{},\"detail\":", self.status.as_u16()));
        push_text(&mut json, &self.detail);
        json.push_str(&format!(",\"code\":990{},\"requestId\":", self.status.as_u16()));
        push_text(&mut json, request_id);
        if let Some(seconds) = self.retry_after {
            json.push_str(&format!(",\"retryAfter\":{seconds}"));
        }
        let said =
            self.platform.map(|failure| [("platformCode", &failure.code), ("platformMessage", &failure.message)]);
        for (member, value) in said.into_iter().flatten() {
            if let Some(value) = value {
                json.push_str(&format!(",\"{member}\":"));
                push_text(&mut json, value);
            }
        }
        json.push('}');
        json
    }
}

/// A name as a title: `upstream_limited` is `Upstream limited`.
fn title(name: &str) -> String {
    let mut title = name.replace('_', " ");
    if let Some(first) = title.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    title
}
