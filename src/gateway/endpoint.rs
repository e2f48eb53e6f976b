//! What a path of the data listener is for.

use std::sync::Arc;

use http::Method;

use super::policy::Policy;
use crate::caller::Caller;
use crate::reply::{Denied, GatewayError, Shape};
use crate::route::Route;
use crate::settings::KindSettings;

/// Where callers report changes that were made elsewhere.
pub(super) const INVALIDATE: &str = "/v1/invalidate";
/// The description of what callers can do.
pub(super) const OPENAPI: &str = "/openapi.json";
/// Where callers ask for one customer's coupons.
pub(super) const LIST: &str = "/v1/coupons:list";
/// Where callers ask for many customers' coupons.
pub(super) const BATCH_GET: &str = "/v1/coupons:batchGet";
/// The paths with a customer's id between the two.
pub(super) const CUSTOMER_COUPONS: (&str, &str) = ("/v1/customers/", "/coupons");
/// The platform's interface that the typed API asks.
pub(super) const COUPONS: &str = "/v3/crm/coupon/getCustomerCoupons";

/// What a path is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint<'a> {
    /// A route of the platform, as far as there is one.
    Route,
    Invalidate,
    OpenApi,
    /// The coupons of the customer with this id, percent-encoded.
    CustomerCoupons(&'a str),
    List,
    BatchGet,
}

impl<'a> Endpoint<'a> {
    pub(super) fn of(path: &'a str) -> Self {
        if !path.starts_with("/v1/") && path != OPENAPI {
            return Self::Route;
        }
        match path {
            INVALIDATE => Self::Invalidate,
            OPENAPI => Self::OpenApi,
            LIST => Self::List,
            BATCH_GET => Self::BatchGet,
            _ => {
                let (before, after) = CUSTOMER_COUPONS;
                let id = path.strip_prefix(before).and_then(|rest| rest.strip_suffix(after));
                id.filter(|id| !id.is_empty() && !id.contains('/')).map_or(Self::Route, Self::CustomerCoupons)
            }
        }
    }

    /// The methods that are allowed.
    pub(super) const fn methods(self) -> &'static str {
        if self.has_body() { "POST" } else { "GET, HEAD" }
    }

    pub(super) fn allows(self, method: &Method) -> bool {
        if self.has_body() { *method == Method::POST } else { matches!(*method, Method::GET | Method::HEAD) }
    }

    /// Whether parameters are in the body.
    pub(super) const fn has_body(self) -> bool {
        match self {
            Self::Route | Self::Invalidate | Self::List | Self::BatchGet => true,
            Self::CustomerCoupons(_) | Self::OpenApi => false,
        }
    }

    /// Checks that there is no query string where parameters belong in the body.
    pub(super) fn check_query(self, query: Option<&str>) -> Result<(), GatewayError> {
        match self {
            Self::CustomerCoupons(_) => Ok(()),
            _ if query.is_none() => Ok(()),
            _ => Err(GatewayError::BadRequest("a query string is not allowed here: parameters belong in the body")),
        }
    }

    /// The shape of its errors.
    pub(super) const fn shape(self) -> Shape {
        match self {
            Self::Route | Self::Invalidate => Shape::Platform,
            Self::OpenApi | Self::CustomerCoupons(_) | Self::List | Self::BatchGet => Shape::Own,
        }
    }

    /// Checks that a caller may use it, and the route that it needs.
    pub(super) fn permits(self, caller: &Caller, route: Option<&Arc<Route>>) -> Result<(), GatewayError> {
        match (self, route) {
            (_, Some(route)) if !caller.may_use_route(route) => Err(GatewayError::Forbidden(Denied::Route)),
            (Self::Invalidate, _) if !caller.invalidate => Err(GatewayError::Forbidden(Denied::Invalidate)),
            (Self::OpenApi, _) if !caller.may_use_anything() => Err(GatewayError::Forbidden(Denied::Anything)),
            _ => Ok(()),
        }
    }

    /// The route that it needs, if it needs one: the outer `None` if that is not served.
    pub(super) fn route<'p>(self, policy: &'p Policy, path: &str) -> Option<Option<&'p Arc<Route>>> {
        match self {
            Self::Route => policy.routes.find(path).map(Some),
            Self::Invalidate | Self::OpenApi => Some(None),
            Self::CustomerCoupons(_) | Self::List | Self::BatchGet => coupons_route(policy).map(Some),
        }
    }
}

/// The route that the typed API asks: its answers are cached, and about the customer that the typed API names.
pub(super) fn coupons_route(policy: &Policy) -> Option<&Arc<Route>> {
    let is_cached = |kind: &KindSettings| match kind {
        KindSettings::Cached(cached) => cached.customer.first().is_some_and(|pointer| pointer == "/params/customerId"),
        KindSettings::Write(_) | KindSettings::Pass | KindSettings::Off => false,
    };
    policy.routes.find(COUPONS).filter(|route| is_cached(&route.kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_paths_are_the_gateways_own() {
        for (path, endpoint) in [
            ("/v1/invalidate", Endpoint::Invalidate),
            ("/v1/coupons:list", Endpoint::List),
            ("/v1/coupons:batchGet", Endpoint::BatchGet),
            ("/openapi.json", Endpoint::OpenApi),
            ("/v1/customers/383933091455959041/coupons", Endpoint::CustomerCoupons("383933091455959041")),
            ("/v1/customers/a%2Fb/coupons", Endpoint::CustomerCoupons("a%2Fb")),
            ("/v1/customers/coupons/coupons", Endpoint::CustomerCoupons("coupons")),
            ("/v1/customers//coupons", Endpoint::Route),
            ("/v1/customers/coupons", Endpoint::Route),
            ("/v1/customers/1/2/coupons", Endpoint::Route),
            ("/v1/customers/1/coupons/", Endpoint::Route),
            ("/v1/coupons:List", Endpoint::Route),
            ("/v1/", Endpoint::Route),
            ("/openapi.json/", Endpoint::Route),
            (COUPONS, Endpoint::Route),
        ] {
            assert_eq!(Endpoint::of(path), endpoint, "{path}");
        }
    }
}
