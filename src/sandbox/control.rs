//! The sandbox's own pages, under `/_sandbox/`: what it saw, its faults, and changes to coupons that
//! the gateway does not see.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode};
use serde_json::{Value, json};

use super::coupons::{Change, Coupons};
use super::gatekeeper::{Gatekeeper, Refused};
use super::{Body, Faults, Platform};
use crate::secret::Secret;

/// How long a coupon lasts that is issued without a word about it.
const USUAL_LIFE: u64 = 30 * 24 * 3600;

/// Requests that the journal holds.
const MAX_JOURNAL: usize = 1000;

/// What the sandbox saw.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) connections: u64,
    requests: BTreeMap<String, u64>,
    refused: BTreeMap<&'static str, u64>,
    /// Path, body and answer of the last requests.
    journal: VecDeque<[String; 3]>,
    last_request: Bytes,
    last_headers: BTreeMap<String, String>,
    last_answer: String,
}

impl Seen {
    /// Counts a request; returns how many there were on its path.
    pub(super) fn count(&mut self, path: &str) -> u64 {
        let count = self.requests.entry(path.to_owned()).or_default();
        *count += 1;
        *count
    }

    /// Records a request and its answer.
    pub(super) fn record(&mut self, path: &str, headers: &HeaderMap, body: &Bytes, answer: &str) {
        let header = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        if self.journal.len() == MAX_JOURNAL {
            self.journal.pop_front();
        }
        let text = String::from_utf8_lossy(body).into_owned();
        self.journal.push_back([path.to_owned(), text, answer.to_owned()]);
        self.last_request = body.clone();
        self.last_headers = headers.iter().map(header).collect();
        answer.clone_into(&mut self.last_answer);
    }

    pub(super) fn refuse(&mut self, refused: Refused) {
        let name = match refused {
            Refused::Malformed => "malformed",
            Refused::UnknownIdentity => "unknown_identity",
            Refused::Clock => "clock",
            Refused::Signature => "signature",
            Refused::Repeated => "repeated",
            Refused::TooMany => "too_many",
        };
        *self.refused.entry(name).or_default() += 1;
    }
}

impl Platform {
    pub(super) fn control(&self, method: &Method, page: &str, body: &Bytes) -> Response<Body> {
        let wanted: Value =
            if body.is_empty() { json!({}) } else { serde_json::from_slice(body).unwrap_or(Value::Null) };
        let steps: Vec<&str> = page.split('/').collect();
        let shown = match (method, steps.as_slice()) {
            (&Method::GET, ["stats"]) => {
                let seen = self.seen.lock();
                Ok(json!({ "connections": seen.connections, "requests": seen.requests, "refused": seen.refused }))
            }
            (&Method::GET, ["last"]) => {
                let seen = self.seen.lock();
                Ok(json!({
                    "request": String::from_utf8_lossy(&seen.last_request),
                    "headers": seen.last_headers,
                    "answer": seen.last_answer,
                }))
            }
            (&Method::GET, ["requests"]) => {
                let seen = self.seen.lock();
                let line = |[path, request, answer]: &[String; 3]| json!({ "path": path, "request": request, "answer": answer });
                Ok(seen.journal.iter().map(line).collect())
            }
            (&Method::POST, ["reset"]) if wanted != json!({}) => {
                Err((StatusCode::BAD_REQUEST, "expected no member, or no body".to_owned()))
            }
            (&Method::POST, ["reset"]) => {
                self.reset();
                Ok(json!({}))
            }
            (&Method::GET, ["faults"]) => Ok(self.faults.lock().shown()),
            (&Method::POST, ["faults"]) => self.misbehave(&wanted),
            (&Method::DELETE, ["faults"]) => {
                *self.faults.lock() = Faults::default();
                Ok(self.faults.lock().shown())
            }
            (&Method::GET, ["shape"]) => Ok(self.format.lock().shown()),
            (&Method::POST, ["shape"]) => self.reshape(&wanted),
            (&Method::POST, ["keys"]) => self.change_keys(&wanted),
            (&Method::POST, ["customers", id, change]) => self.change(id, change, &wanted),
            _ => Err((StatusCode::NOT_FOUND, PAGES.to_owned())),
        };
        match shown {
            Ok(value) => super::json(StatusCode::OK, value.to_string()),
            Err((status, error)) => super::json(status, json!({ "error": error }).to_string()),
        }
    }

    /// Everything as it was at the start.
    fn reset(&self) {
        let options = self.options.clone();
        *self.gatekeeper.lock() = Gatekeeper::new(options.merchants, options.rate);
        *self.coupons.lock() = Coupons::new(self.clock.wall());
        *self.faults.lock() = options.faults;
        *self.format.lock() = options.format;
        *self.seen.lock() = Seen::default();
    }

    fn misbehave(&self, wanted: &Value) -> Result<Value, (StatusCode, String)> {
        let mut faults = self.faults.lock();
        let mut changed = faults.clone();
        changed.update(wanted).map_err(|error| (StatusCode::BAD_REQUEST, error))?;
        *faults = changed;
        Ok(faults.shown())
    }

    fn reshape(&self, wanted: &Value) -> Result<Value, (StatusCode, String)> {
        let mut format = self.format.lock();
        let mut changed = *format;
        changed.update(wanted).map_err(|error| (StatusCode::BAD_REQUEST, error))?;
        *format = changed;
        Ok(format.shown())
    }

    fn change_keys(&self, wanted: &Value) -> Result<Value, (StatusCode, String)> {
        const WANTED: &str = "expected {\"openId\":\"…\",\"openKeys\":[\"…\"]} of a known merchant";
        let names = wanted.as_object().into_iter().flat_map(|members| members.keys());
        if names.into_iter().any(|name| !["openId", "openKeys"].contains(&name.as_str())) {
            return Err((StatusCode::BAD_REQUEST, WANTED.to_owned()));
        }
        let keys = wanted.get("openKeys").and_then(Value::as_array);
        let keys: Option<Vec<Secret>> =
            keys.and_then(|keys| keys.iter().map(|key| Some(Secret::new(key.as_str()?.to_owned()))).collect());
        let open_id = wanted.get("openId").and_then(Value::as_str);
        let changed = open_id.zip(keys).is_some_and(|(id, keys)| self.gatekeeper.lock().change_keys(id, &keys));
        if changed { Ok(json!({})) } else { Err((StatusCode::BAD_REQUEST, WANTED.to_owned())) }
    }

    fn change(&self, customer: &str, change: &str, wanted: &Value) -> Result<Value, (StatusCode, String)> {
        let change = match change {
            "issue" => Change::Issue,
            "use" => Change::Use,
            "freeze" => Change::Freeze,
            "give" => Change::Give,
            "clear" => Change::Clear,
            _ => return Err((StatusCode::NOT_FOUND, PAGES.to_owned())),
        };
        let names = wanted.as_object().ok_or((StatusCode::BAD_REQUEST, "expected a JSON object".to_owned()))?.keys();
        if let Some(unknown) = names.into_iter().find(|name| !["seconds", "cardId"].contains(&name.as_str())) {
            let error = format!("unknown member {unknown:?}; expected seconds or cardId");
            return Err((StatusCode::BAD_REQUEST, error));
        }
        let wrong = |expected: &str| (StatusCode::BAD_REQUEST, expected.to_owned());
        let seconds =
            wanted.get("seconds").map(|value| value.as_u64().ok_or_else(|| wrong("seconds: expected a whole number")));
        let lasts = Duration::from_secs(seconds.transpose()?.unwrap_or(USUAL_LIFE));
        let card = wanted.get("cardId").map(|value| value.as_str().ok_or_else(|| wrong("cardId: expected a string")));
        let card = card.transpose()?;
        let changed = self.coupons.lock().change(customer, change, card, lasts, self.now().wall);
        let shown =
            changed.map(|coupon| if change == Change::Clear { coupon } else { self.format.lock().coupon(coupon) });
        shown.map_err(|exception| (StatusCode::CONFLICT, exception.message.to_owned()))
    }
}

const PAGES: &str = "expected GET stats, GET last, GET requests, POST reset, GET|POST|DELETE faults, GET|POST shape, POST keys, or POST customers/{id}/{issue|use|freeze|give|clear}";
