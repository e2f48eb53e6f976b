//! Many customers' coupons in one request.

use std::borrow::Cow;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::access_log::RequestInfo;
use super::coupon_query::CouponQuery;
use super::endpoint::COUPONS;
use super::policy::Policy;
use super::typed_answers::TypedAnswers;
use super::{Gateway, Routed, Step};
use crate::answer::Typed;
use crate::call_state::CallState;
use crate::envelope::push_text;
use crate::reply::{GatewayError, Problem, Reply};

/// The results of a batch while they come in.
struct Results {
    typed: Arc<TypedAnswers>,
    info: RequestInfo,
    customers: Arc<[String]>,
    /// Whether only usable coupons are wanted.
    usable: bool,
    /// In the order in which was asked; empty: not there yet.
    found: Vec<String>,
    /// Bytes that are left for further ones.
    bytes_left: usize,
}

impl Results {
    /// Notes the result for the customer of this index. Nothing of an answer is kept that does not fit.
    fn note(&mut self, policy: &Policy, index: usize, result: &Result<Reply, GatewayError>) {
        let Some(customer) = self.customers.get(index) else { return };
        let id = self.info.shown_id();
        let (mut status, mut contents) = match result {
            Err(error) => {
                policy.count_error(&self.info, error);
                failed(&error.into(), id)
            }
            Ok(reply) => match self.typed.of(policy, &self.info, customer, reply) {
                Typed::Coupons(coupons) => {
                    let usable_at = self.usable.then(|| self.typed.time.now().wall);
                    (200, coupons.contents(usable_at))
                }
                Typed::Failure(failure) => failed(&failure.into(), id),
                Typed::TooLarge => failed(&Problem::too_large(), id),
            },
        };
        match self.bytes_left.checked_sub(contents.len()) {
            Some(left) => self.bytes_left = left,
            None => (status, contents) = failed(&Problem::batch_is_full(), id),
        }
        let mut json = String::with_capacity(contents.len() + customer.len() + 40);
        json.push_str("{\"customerId\":");
        push_text(&mut json, customer);
        json.push_str(",\"status\":");
        json.push_str(itoa::Buffer::new().format(status));
        json.push(',');
        json.push_str(&contents);
        json.push('}');
        if let Some(found) = self.found.get_mut(index) {
            *found = json;
        }
    }

    fn reply(self) -> Reply {
        let length = self.found.iter().map(|one| one.len() + 1).sum::<usize>();
        let mut json = String::with_capacity(length + 16);
        json.push_str("{\"results\":[");
        for (index, one) in self.found.iter().enumerate() {
            if index > 0 {
                json.push(',');
            }
            json.push_str(one);
        }
        json.push_str("]}");
        Reply::own(json)
    }
}

/// The status and the contents of a result that is an error.
fn failed<'a>(problem: &Problem<'_>, request_id: &str) -> (u16, Cow<'a, str>) {
    (problem.status.as_u16(), Cow::Owned(format!("\"error\":{}", problem.json(request_id))))
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
        let (mut done, mut waiting) = (Vec::new(), Vec::new());
        for (index, customer) in asked.customers.iter().enumerate() {
            // The request itself was counted as the first.
            let is_admitted = if index == 0 { Ok(()) } else { routed.policy.admit(routed.caller) };
            let step = is_admitted.map_err(GatewayError::CallerLimited).and_then(|()| {
                let body = asked.body(customer);
                let (tenant, body) = (Ok(tenant), body.as_bytes());
                self.dispatch(&Routed { path: COUPONS, tenant, body, is_batch: true, ..routed.clone() }, info)
            });
            match step {
                // Whatever is wrong with the request is so for each customer.
                Err(error @ (GatewayError::UnknownTenant(_) | GatewayError::Forbidden(_))) => return Err(error),
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
            found: vec![String::new(); asked.customers.len()],
            bytes_left: self.typed.max_bytes,
        };
        let policy = Arc::clone(routed.policy);
        done.into_iter().for_each(|(index, result)| results.note(&policy, index, &result));
        if waiting.is_empty() {
            return Ok(Step::Done(results.reply()));
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
            Ok(results.reply())
        });
        Ok(Step::Wait(answered, call_state))
    }
}
