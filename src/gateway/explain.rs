//! What the gateway would do with a request, and why: for operators who look for the cause of one bad request. Nothing is sent, and nothing
//! changes: no order of eviction, no limit, no metric.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use serde::Serialize;

use super::body;
use super::coupon_query::CouponQuery;
use super::endpoint::{COUPONS, Endpoint};
use super::policy::Policy;
use super::request::question_of;
use super::request_head::RequestHead;
use super::{CachedQuestion, Gateway};
use crate::cache::{Lookup, Peek, PeekedFlight, Question, RequestCacheControl};
use crate::clock::Now;
use crate::cluster::Standing;
use crate::limit::Limited;
use crate::reply::{Denied, GatewayError, OverCapacity};
use crate::route::Route;
use crate::settings::{CacheMode, KindSettings};
use crate::signer::string_to_sign;
use crate::tenant::Tenant;
use crate::upstream::{BreakerPosition, NotSent, Rejected};

/// What would become of a request.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Explanation {
    /// `hit`, `stale`, `collapsed`, `miss`, `bypass` or `rejected`.
    pub would: &'static str,
    /// Why, in one sentence.
    pub because: String,
    /// The error that its caller would get.
    pub error: Option<ExplainedError>,
    /// The pattern of the route.
    pub route: Option<String>,
    /// `cached`, `write` or `pass`.
    pub kind: Option<&'static str>,
    /// The tenant's name.
    pub tenant: Option<String>,
    /// Whom it is about.
    pub customers: Vec<ExplainedCustomer>,
    /// The canonical question, on a cached route.
    pub question: Option<String>,
    /// What is cached for this question.
    pub cached: Option<CachedQuestion>,
    /// What is cached for its customer beside that: questions that are not the same.
    pub other_questions: Vec<CachedQuestion>,
    /// What the replicas share of its customer; `null` if Redis did not answer, and absent without others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared: Option<Option<Vec<CachedQuestion>>>,
    /// Until when an answer lives shortly, because a write of its customer ended just before, in seconds.
    pub settles_for_s: f64,
    /// The rate limit that a call would wait for.
    pub rate: Option<ExplainedRate>,
    /// The circuit breaker: `closed`, `half-open` or `open`.
    pub breaker: Option<&'static str>,
    /// For how many more seconds it is open.
    pub breaker_open_for_s: Option<f64>,
    /// What would be signed, identities masked.
    pub string_to_sign: Option<String>,
}

/// An error that a caller would get.
#[derive(Clone, Debug, Serialize)]
pub struct ExplainedError {
    /// The HTTP status.
    pub status: u16,
    /// Its name.
    pub error: &'static str,
    /// Its message.
    pub message: String,
}

/// Whom a request is about.
#[derive(Clone, Debug, Serialize)]
pub struct ExplainedCustomer {
    /// The customer's id.
    pub id: String,
    /// Its name in the log.
    pub logged_as: String,
}

/// The rate limit that a call would wait for.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ExplainedRate {
    /// Calls that a window allows now; `None` without a limit.
    pub allowed: Option<f64>,
    /// Slots that are taken; `None`: all replicas share them.
    pub taken: Option<usize>,
    /// Calls that wait for a slot.
    pub waiting: usize,
    /// In how many seconds the next call in line can have a slot at the earliest.
    pub next_slot_in_s: f64,
    /// For how many more seconds nothing is sent.
    pub paused_for_s: Option<f64>,
}

impl Gateway {
    /// Explains a request: its path and body, and the header fields of the data listener that were sent along. `caller`: the name of
    /// the caller; without one, none is rejected for what it may not use.
    pub async fn explain(&self, path: &str, body: &[u8], headers: &HeaderMap, caller: Option<&str>) -> Explanation {
        let policy = self.policy.load_full();
        let mut explanation = Explanation::default();
        match self.examine(&policy, path, body, headers, caller, &mut explanation) {
            Ok(None) => {}
            Ok(Some((tenant, question, wants_new))) => {
                self.add_shared(&tenant, &question, wants_new, &mut explanation).await;
            }
            Err(error) => explanation.reject(&error),
        }
        explanation
    }

    /// The stages of a request, in their order.
    fn examine(
        &self,
        policy: &Policy,
        path: &str,
        body: &[u8],
        headers: &HeaderMap,
        caller: Option<&str>,
        out: &mut Explanation,
    ) -> Result<Option<(Arc<Tenant>, Question, bool)>, GatewayError> {
        let (head, now) = (RequestHead::of(headers), self.time.now());
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        let endpoint = Endpoint::of(path);
        let route = endpoint.route(policy, path).flatten().ok_or(GatewayError::UnknownRoute)?;
        out.route = Some(route.pattern.to_string());
        endpoint.check_query(query)?;
        let caller = match caller {
            Some(name) => Some(
                (policy.callers.named().iter())
                    .find(|caller| caller.name.as_deref() == Some(name))
                    .ok_or(GatewayError::BadRequest("no caller has this name"))?,
            ),
            None => None,
        };
        if caller.is_some_and(|caller| !caller.may_use_route(route)) {
            return Err(GatewayError::Forbidden(Denied::Route));
        }
        // Of a batch, its first customer is explained.
        let asked = CouponQuery::of(endpoint, query, body)?;
        let own = asked.as_ref().and_then(|asked| Some(asked.body(asked.customers.first()?)));
        let (path, body) = own.as_ref().map_or((path, body), |own| (COUPONS, own.as_bytes()));
        let named = asked.as_ref().map_or_else(|| head.tenant(), |asked| asked.tenant(head.tenant()?));
        let envelope = body::envelope(&route.kind, body)?;
        let customers = body::customers(&route.kind, &head, &envelope)?;
        out.customers = customers
            .iter()
            .map(|id| ExplainedCustomer { id: id.clone(), logged_as: self.pseudonyms.of(id) })
            .collect();
        let sole = caller.and_then(|caller| caller.sole_tenant());
        let tenant = policy.tenants.choose(named?, envelope.root(), sole).map_err(GatewayError::UnknownTenant)?;
        out.tenant = Some(tenant.name.clone());
        if caller.is_some_and(|caller| !caller.may_use_tenant(tenant)) {
            return Err(GatewayError::Forbidden(Denied::Tenant));
        }
        let call = self.add_call(policy, tenant, route, path, now, out);
        let (kind, because) = match &route.kind {
            KindSettings::Cached(cached) => {
                out.kind = Some("cached");
                let customer = customers.first().map(String::as_str);
                let question = question_of(&envelope, path, cached, tenant, customer, &self.cluster);
                let mut cache_control = head.cache_control();
                if caller.map_or(policy.callers.anonymous(), |caller| caller).ignores_no_cache {
                    cache_control = cache_control.without_bypass();
                }
                self.add_cached(policy, &cache_control, &question, now, call, out)?;
                return Ok(Some((Arc::clone(tenant), question, cache_control.wants_new())));
            }
            KindSettings::Write(_) => {
                ("write", "A write is always sent, once, and its customers' answers are invalidated.")
            }
            KindSettings::Pass => ("pass", "A route of kind pass is always sent, once."),
            KindSettings::Off => return Err(GatewayError::UnknownRoute),
        };
        (out.kind, out.would, out.because) = (Some(kind), "bypass", because.to_owned());
        if matches!(route.kind, KindSettings::Write(_)) && !self.cluster.admits_writes() {
            return Err(GatewayError::NotSent(NotSent::Unfenced));
        }
        call.map(|()| None)
    }

    /// What a call would meet.
    ///
    /// # Errors
    /// Why it would not be made.
    fn add_call(
        &self,
        policy: &Policy,
        tenant: &Tenant,
        route: &Route,
        path: &str,
        now: Now,
        out: &mut Explanation,
    ) -> Result<(), GatewayError> {
        let usage = self.paces.usage(tenant, route, Some(path));
        out.rate = Some(ExplainedRate {
            allowed: usage.allowed.is_finite().then_some(usage.allowed),
            taken: usage.taken,
            waiting: usage.waiting,
            next_slot_in_s: usage.next.since(now.boot).as_secs_f64(),
            paused_for_s: usage.paused_until.map(|until| until.since(now.boot).as_secs_f64()),
        });
        let breaker = self.upstream.breaker(&policy.settings.attempts.breaker, tenant, route, Some(path));
        out.breaker = Some(breaker.name());
        if let BreakerPosition::Open(remaining) = breaker {
            out.breaker_open_for_s = Some(remaining.as_secs_f64());
        }
        let timestamp = self.time.skew.signing_time(self.time.clock.now()).unix_seconds().to_string();
        out.string_to_sign = Some(string_to_sign("***", "NONCE", "***", &timestamp));

        if breaker.rejects() {
            let wait = if let BreakerPosition::Open(remaining) = breaker { remaining } else { Duration::ZERO };
            return Err(GatewayError::NotSent(NotSent::Rejected(Rejected::BreakerOpen(wait))));
        }
        let limits = &policy.settings.limits;
        let (limit, max_wait) = match route.kind {
            KindSettings::Write(_) => (limits.upstream, limits.max_wait_write),
            _ => (limits.upstream, limits.max_wait),
        };
        // Behind those that wait.
        let retry_after = usage.next.since(now.boot);
        if retry_after > max_wait {
            let limited = Limited { quota: limit.rate, per: limit.per, retry_after };
            let is_key_suspect = self.upstream.is_key_suspect(tenant);
            return Err(GatewayError::NotSent(NotSent::Limited { limited, is_key_suspect }));
        }
        Ok(())
    }

    /// What the cache would do. `call`: why a call would not be made.
    fn add_cached(
        &self,
        policy: &Policy,
        cache_control: &RequestCacheControl,
        question: &Question,
        now: Now,
        call: Result<(), GatewayError>,
        out: &mut Explanation,
    ) -> Result<(), GatewayError> {
        let generation = self.cache.generation(question.subject.tenant, policy.rules);
        let Peek { lookup, flight, settle_until } = self.cache.peek(question, generation, cache_control, now);
        out.question = Some(question.key.to_string());
        out.settles_for_s = settle_until.since(now.boot).as_secs_f64();
        for (key, freshness) in self.cache.inspect(&question.subject, now) {
            let is_same = *key == *question.key;
            let found = CachedQuestion::new(key, &freshness, now);
            if is_same {
                out.cached = Some(found);
            } else {
                out.other_questions.push(found);
            }
        }
        if policy.settings.cache.mode != CacheMode::On {
            out.because("bypass", "The cache serves nothing (cache.mode).");
            return if cache_control.only_if_cached { Err(GatewayError::NotCached) } else { call };
        }
        // What is in memory is served in place of any error while it is not certain that other replicas' writes are known.
        let is_fenced = self.cluster.standing(now.boot).is_none_or(|standing| standing == Standing::Fenced);
        let may_be_held = !is_fenced && cache_control.allows_stale();
        let held = || if may_be_held { self.cache.held(question, now) } else { None };
        let on_failure = || match cache_control.allows_stale() {
            true => held().or_else(|| self.cache.stale_for_error(question, generation, now)),
            false => None,
        };
        let (error, stale) = match lookup {
            Lookup::Fresh(hit) => {
                let bound = out.cached.as_ref().map_or("", |cached| cached.bound);
                let remaining = hit.remaining.as_secs_f64();
                let because = format!("A fresh answer is cached, for {remaining:.1} s more (limited by {bound}).");
                out.because("hit", &because);
                return Ok(());
            }
            Lookup::Stale(..) => {
                out.because(
                    "stale",
                    "The cached answer is stale, and is served while it is refreshed (stale_while_revalidate).",
                );
                return Ok(());
            }
            Lookup::Miss if cache_control.only_if_cached => (GatewayError::NotCached, held()),
            Lookup::Miss => match flight {
                PeekedFlight::Joinable => {
                    out.because("collapsed", "The answer is being fetched, and this request would wait for it.");
                    return Ok(());
                }
                PeekedFlight::Full => (GatewayError::OverCapacity(OverCapacity::Waiters), held()),
                PeekedFlight::None => match call {
                    Ok(()) => {
                        out.because("miss", out.reason_for_miss(cache_control, held().is_some()));
                        return Ok(());
                    }
                    Err(error) => (error, on_failure()),
                },
            },
        };
        if stale.is_none() {
            return Err(error);
        }
        out.because(
            "stale",
            &format!("An older answer is served in place of an error (stale_if_error): {}.", error.message()),
        );
        Ok(())
    }

    /// What other replicas have.
    async fn add_shared(&self, tenant: &Tenant, question: &Question, wants_new: bool, out: &mut Explanation) {
        if self.cluster.is_alone() {
            return;
        }
        let shared = self.shared(tenant, &question.subject).await;
        let is_same = |found: &&CachedQuestion| *found.question == *question.key && !found.fresh_for.is_zero();
        if let Some(found) = shared.iter().flatten().find(is_same)
            && out.would == "miss"
            && !wants_new
        {
            let fresh_for = found.fresh_for.as_secs_f64();
            out.because(
                "hit",
                &format!("Another replica stored a fresh answer in Redis, for {fresh_for:.1} s more (detail=shared)."),
            );
        }
        out.shared = Some(shared);
    }
}

impl Explanation {
    fn because(&mut self, would: &'static str, because: &str) {
        (self.would, self.because) = (would, because.to_owned());
    }

    fn reject(&mut self, error: &GatewayError) {
        let message = error.message();
        self.because("rejected", &message);
        self.error = Some(ExplainedError { status: error.status().as_u16(), error: error.name(), message });
    }

    /// Why the cache has no answer that may be served.
    fn reason_for_miss(&self, cache_control: &RequestCacheControl, is_held: bool) -> &'static str {
        if cache_control.wants_new() {
            return "Cache-Control of the request asks for a new fetch.";
        }
        if is_held {
            return "This replica is cut off from the others: what it has in memory is served if no slot is free at once, or if the call fails.";
        }
        if self.cached.is_some() {
            return "What is cached is stale, or older than Cache-Control of the request allows; it may be served if the platform fails.";
        }
        if !self.other_questions.is_empty() {
            return "Nothing is cached for this question; for its customer other questions are (see other_questions for what differs).";
        }
        if self.settles_for_s > 0.0 {
            return "A write of this customer ended just before and invalidated what was cached; answers live shortly until the platform has settled.";
        }
        "Nothing is cached for this customer: it was not asked for, it has expired, or it was invalidated or evicted."
    }
}
