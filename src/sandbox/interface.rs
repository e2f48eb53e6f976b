//! The platform's interfaces: how signed requests are answered.

use serde_json::Value;

use super::Platform;
use super::coupons::Exception;
use super::faults::Fault;
use super::gatekeeper::Refused;
use super::shape::Page;
use crate::clock::Wall;
use crate::json::Node;

const MAX_DEPTH: usize = 128;

impl Platform {
    /// The text of the answer to a request, and what it asks is done unless a fault prevents that. The platform answers HTTP 200 to
    /// nearly everything.
    pub(super) fn interface(&self, path: &str, body: &[u8], fault: Fault) -> String {
        let now = self.now();
        let text = std::str::from_utf8(body).ok();
        let root = text.and_then(|text| Node::parse(text, MAX_DEPTH).ok());
        let checked = match &root {
            None => Err(Refused::Malformed),
            Some(root) => self.gatekeeper.lock().check(root, path, now).map(|()| root),
        };
        match checked {
            Err(refused) => {
                self.seen.lock().refuse(refused);
                self.failure(refused.code(), refused.message())
            }
            Ok(_) if !fault.carries_out() => String::new(),
            Ok(root) => {
                let params = root.member("params").unwrap_or(&Node::Null);
                match self.carry_out(path, params, now.wall) {
                    None => self.failure(NO_INTERFACE.code, NO_INTERFACE.message),
                    Some(Ok(data)) => self.format.lock().answer(true, 0, "成功", Some(&data)),
                    Some(Err(exception)) => self.exception(exception),
                }
            }
        }
    }

    /// A business exception.
    pub(super) fn exception(&self, exception: Exception) -> String {
        self.format.lock().answer(true, exception.code, exception.message, None)
    }

    /// A system error.
    pub(super) fn failure(&self, code: u32, message: &str) -> String {
        self.format.lock().answer(false, code, message, None)
    }

    /// Does what is asked; `None`: there is no such interface.
    fn carry_out(&self, path: &str, params: &Node<'_>, now: Wall) -> Option<Result<Value, Exception>> {
        let text = |name: &str| params.member(name).and_then(Node::text).filter(|text| !text.is_empty());
        let required = |name: &str| text(name).ok_or(MISSING);
        let number = |name: &str| text(name)?.parse().ok();
        let mut coupons = self.coupons.lock();
        Some(match path {
            "/v3/crm/coupon/getCustomerCoupons" | "/v3/crm/coupon/getCustomerCouponList" => {
                let page = Page::new(number("page").or_else(|| number("pageNum")), number("pageSize"));
                let list = required("customerId")
                    .and_then(|customer| coupons.list(customer, text("useStatus"), text("cardId"), now));
                list.map(|list| self.format.lock().page(list, page))
            }
            "/v3/crm/coupon/writeOffCoupon" => {
                required("bizId").and_then(|id| coupons.redeem(id, text("customerId"), &cards(params), now))
            }
            "/v3/crm/coupon/couponReverse" => required("bizId").and_then(|id| coupons.reverse(id)),
            other => return ACCEPTED.contains(&other).then_some(Ok(Value::Null)),
        })
    }
}

/// Interfaces that accept everything and do nothing.
const ACCEPTED: [&str; 6] = [
    "/v3/crm/coupon/status",
    "/v3/crm/coupon/getCouponDetail",
    "/v3/crm/coupon/issueCouponsToCustomer",
    "/v3/crm/coupon/recycleCoupons",
    "/v3/crm/customer/customerConsume",
    "/v3/crm/customer/consumeReverse",
];

const NO_INTERFACE: Exception = Exception { code: 100_004, message: "接口不存在 (no such interface)" };
const MISSING: Exception = Exception { code: 200_000, message: "缺少参数 (a required parameter is missing)" };

/// `couponsCardList`: card ids, or objects that have one.
fn cards(params: &Node<'_>) -> Vec<String> {
    let Some(Node::Array(items)) = params.member("couponsCardList") else { return Vec::new() };
    let id = |item: &Node<'_>| item.text().or_else(|| item.member("cardId")?.text()).map(str::to_owned);
    items.iter().filter_map(id).collect()
}
