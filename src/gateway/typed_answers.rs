//! The typed forms of answers, each kept with its answer once it was created.

use std::sync::Arc;

use super::coupon_query::CouponQuery;
use super::endpoint::COUPONS;
use super::policy::Policy;
use super::request_info::RequestInfo;
use super::time::Time;
use super::{Gateway, Routed, Step};
use crate::answer::Typed;
use crate::cache::{Cache, SharedAnswer};
use crate::reply::{CouponsView, GatewayError, Reply, Shape, TypedReply};

/// How many times as large as the largest answer its typed form may be: with all names, and what is not known beside them.
const LARGER: usize = 4;

/// Makes typed forms.
pub(super) struct TypedAnswers {
    pub(super) cache: Arc<Cache<GatewayError>>,
    pub(super) time: Arc<Time>,
    /// Most bytes of an answer of the platform, and of a batch.
    pub(super) max_bytes: usize,
}

impl TypedAnswers {
    /// The typed form of a reply about a customer.
    pub(super) fn of<'a>(&self, policy: &Policy, info: &RequestInfo, customer: &str, reply: &'a Reply) -> &'a Typed {
        let fetched_at = || self.time.clock.wall() - reply.age();
        let reader = policy.reader(info.route.unwrap_or_default());
        let (typed, is_new) = reader.typed(&reply.answer, customer, fetched_at, self.max_bytes.saturating_mul(LARGER));
        if is_new && let SharedAnswer::Cached(cached) = &reply.answer {
            self.cache.reweigh(cached);
        }
        typed
    }

    /// The typed form of a reply, as its caller wants it.
    pub(super) fn reply(
        &self,
        policy: &Policy,
        info: &RequestInfo,
        view: &CouponsView,
        reply: &Reply,
    ) -> Result<TypedReply, GatewayError> {
        view.reply(&reply.answer, self.of(policy, info, &view.customer, reply), || self.time.now().wall)
    }
}

impl Gateway {
    /// Asks for one customer's coupons.
    pub(super) fn coupons(
        &self,
        routed: &Routed<'_>,
        asked: &CouponQuery,
        info: &mut RequestInfo,
    ) -> Result<Step, GatewayError> {
        let customer = asked.customers.first().ok_or(GatewayError::UnknownRoute)?;
        let tenant = routed.tenant.clone().and_then(|header| asked.tenant(header));
        info.shape = Shape::Coupons(Box::new(CouponsView {
            customer: customer.clone(),
            usable: asked.usable,
            known: routed.head.if_none_match(),
        }));
        let body = asked.body(customer);
        self.dispatch(&Routed { path: COUPONS, tenant, body: body.as_bytes(), ..routed.clone() }, info)
    }
}
