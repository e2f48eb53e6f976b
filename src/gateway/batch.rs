//! Many customers' coupons in one request.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::coupon_query::CouponQuery;
use super::endpoint::COUPONS;
use super::policy::Policy;
use super::request_info::RequestInfo;
use super::typed_answers::TypedAnswers;
use super::{Gateway, Routed, Step};
use crate::answer::Typed;
use crate::cache::Deadline;
use crate::call_state::CallState;
use crate::envelope::push_text;
use crate::reply::{BatchSummary, GatewayError, Problem, Reply};

const STATUS_OK: &str = "\"status\":200,";

/// The results of a batch while they come in.
struct Results {
    typed: Arc<TypedAnswers>,
    info: RequestInfo,
    customers: Arc<[String]>,
    /// Whether only usable coupons are wanted.
    usable: bool,
    /// In the order in which was asked.
    found: Vec<Found>,
    /// Bytes that are left for further ones.
    bytes_left: usize,
    summary: BatchSummary,
}

/// What came of one customer's question, as JSON without the customer.
#[derive(Clone, Debug)]
struct Found {
    json: String,
    /// Until when it may be served.
    end: Deadline,
}

impl Results {
    /// Notes the result for the customer of this index. Nothing of an answer is kept that does not fit.
    fn note(&mut self, policy: &Policy, index: usize, result: &Result<Reply, GatewayError>) {
        let customers = Arc::clone(&self.customers);
        let Some(customer) = customers.get(index) else { return };
        let end = result.as_ref().map_or(Deadline::NEVER, |reply| reply.end);
        let json = match result {
            Err(error) => Err(error.clone()),
            Ok(_) if self.bytes_left == 0 => Err(GatewayError::BatchIsFull),
            Ok(reply) => match self.typed.of(policy, &self.info, customer, reply) {
                Typed::Coupons(coupons) => {
                    let usable_at = self.usable.then(|| self.typed.time.now().wall);
                    let contents = coupons.contents(usable_at);
                    match self.bytes_left.checked_sub(contents.len()) {
                        _ if contents.len() > self.typed.max_bytes => Err(GatewayError::TooManyCoupons),
                        None => Err(GatewayError::BatchIsFull),
                        Some(left) => {
                            self.bytes_left = left;
                            Ok([STATUS_OK, &contents].concat())
                        }
                    }
                }
                Typed::Failure(failure) => {
                    let problem = Problem::from(failure);
                    self.summary.fail(problem.name, None);
                    Ok(self.failed(&problem))
                }
                Typed::TooLarge => Err(GatewayError::TooManyCoupons),
            },
        };
        let json = json.unwrap_or_else(|error| self.error(policy, &error));
        if let Some(found) = self.found.get_mut(index) {
            *found = Found { json, end };
        }
    }

    /// A result that is an error of the gateway, counted.
    fn error(&mut self, policy: &Policy, error: &GatewayError) -> String {
        policy.count_error(&self.info, error);
        self.summary.fail(error.name(), error.reason());
        self.failed(&error.into())
    }

    fn failed(&self, problem: &Problem<'_>) -> String {
        format!("\"status\":{},\"error\":{}", problem.status.as_u16(), problem.json(self.info.shown_id()))
    }

    /// The reply, once all results are there; `copies` are customers that were asked for before, with the index of that. An answer that
    /// was there first may have ended while others were waited for.
    fn reply(mut self, policy: &Policy, copies: &[(usize, usize)]) -> Reply {
        let now = self.typed.time.now();
        for index in 0..self.found.len() {
            if self.found.get(index).is_some_and(|found| found.end.has_passed(now)) {
                self.note(policy, index, &Err(GatewayError::EndedMeanwhile));
            }
        }
        for (index, first) in copies {
            let Some(found) = self.found.get(*first).cloned() else { continue };
            match self.bytes_left.checked_sub(found.json.len()) {
                None => self.note(policy, *index, &Err(GatewayError::BatchIsFull)),
                Some(left) => {
                    self.bytes_left = left;
                    self.found.get_mut(*index).into_iter().for_each(|copy| copy.clone_from(&found));
                }
            }
        }
        let length: usize = self.found.iter().map(|one| one.json.len()).sum();
        let mut json = String::with_capacity(length + self.found.len() * 64);
        json.push_str("{\"results\":[");
        for (index, (found, customer)) in self.found.iter().zip(&*self.customers).enumerate() {
            json.push_str(if index > 0 { ",{\"customerId\":" } else { "{\"customerId\":" });
            push_text(&mut json, customer);
            json.push(',');
            json.push_str(&found.json);
            json.push('}');
        }
        json.push_str("]}");
        Reply { batch: Some(Box::new(self.summary)), ..Reply::own(json) }
    }
}

impl BatchSummary {
    fn fail(&mut self, error: &'static str, reason: Option<&'static str>) {
        self.failed += 1;
        if self.error.is_none() {
            (self.error, self.reason) = (Some(error), reason);
        }
    }
}

impl Gateway {
    /// Asks for many customers' coupons: what is cached is answered at once, and the rest waits as one of many that are not urgent.
    pub(super) fn batch(
        &self,
        routed: &Routed<'_>,
        asked: &CouponQuery,
        info: &mut RequestInfo,
    ) -> Result<Step, GatewayError> {
        let tenant = routed.tenant.clone().and_then(|header| asked.tenant(header))?;
        let (mut done, mut waiting, mut copies) = (Vec::new(), Vec::new(), Vec::new());
        let mut first_of: HashMap<&str, usize, RandomState> = HashMap::default();
        for (index, customer) in asked.customers.iter().enumerate() {
            // The request itself was counted as the first.
            let is_admitted = if index == 0 { Ok(()) } else { routed.policy.admit(routed.caller) };
            let first = *first_of.entry(customer).or_insert(index);
            if first != index && is_admitted.is_ok() {
                copies.push((index, first));
                continue;
            }
            let step = is_admitted.map_err(GatewayError::CallerLimited).and_then(|()| {
                let body = asked.body(customer);
                let (tenant, body, now) = (Ok(tenant), body.as_bytes(), self.time.now());
                self.dispatch(&Routed { path: COUPONS, tenant, body, now, is_batch: true, ..routed.clone() }, info)
            });
            match step {
                // Whatever is wrong with the request is so for each customer.
                Err(
                    error @ (GatewayError::UnknownTenant(_)
                    | GatewayError::Forbidden(_)
                    | GatewayError::Body(_)
                    | GatewayError::BadRequest(_)),
                ) => return Err(error),
                Err(error) => done.push((index, Err(error))),
                Ok(Step::Done(reply)) => done.push((index, Ok(reply))),
                Ok(Step::Wait(answered, call_state)) => waiting.push((index, answered, call_state)),
            }
        }
        info.customers = asked.customers.as_slice().into();
        let mut results = Results {
            typed: Arc::clone(&self.typed),
            info: info.clone(),
            customers: Arc::clone(&info.customers),
            usable: asked.usable,
            found: vec![Found { json: String::new(), end: Deadline::NEVER }; asked.customers.len()],
            bytes_left: self.typed.max_bytes,
            summary: BatchSummary { has_waited: !waiting.is_empty(), ..BatchSummary::default() },
        };
        let policy = Arc::clone(routed.policy);
        done.into_iter().for_each(|(index, result)| results.note(&policy, index, &result));
        if waiting.is_empty() {
            return Ok(Step::Done(results.reply(&policy, &copies)));
        }
        let call_state = Arc::new(CallState::default());
        let total = Arc::clone(&call_state);
        let all: FuturesUnordered<_> =
            waiting.into_iter().map(|(index, answered, state)| async move { (index, answered.await, state) }).collect();
        let answered = Box::pin(async move {
            let mut all = all;
            while let Some((index, result, state)) = all.next().await {
                total.add(&state);
                results.note(&policy, index, &result);
            }
            Ok(results.reply(&policy, &copies))
        });
        Ok(Step::Wait(answered, call_state))
    }
}
