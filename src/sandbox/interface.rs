//! The platform's interfaces: how signed requests are answered.

use serde_json::{Value, json};

use super::Platform;
use super::coupons::Exception;
use super::gatekeeper::Refused;
use crate::clock::Wall;
use crate::json::Node;

const MAX_DEPTH: usize = 128;

impl Platform {
    /// The text of the answer to a request. The platform answers HTTP 200 to nearly everything.
    pub(super) fn interface(&self, path: &str, body: &[u8]) -> String {
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
                failure(refused.code(), refused.message())
            }
            Ok(root) => {
                let params = root.member("params").unwrap_or(&Node::Null);
                self.carry_out(path, params, now.wall).map_or_else(exception, |data| success(&data))
            }
        }
    }

    fn carry_out(&self, path: &str, params: &Node<'_>, now: Wall) -> Result<Value, Exception> {
        let text = |name: &str| params.member(name).and_then(Node::text).filter(|text| !text.is_empty());
        let customer = || text("customerId").ok_or(MISSING);
        let mut coupons = self.coupons.lock();
        match path {
            "/v3/crm/coupon/getCustomerCoupons" => coupons.list(customer()?, text("useStatus"), text("cardId"), now),
            "/v3/crm/coupon/getCustomerCouponList" => {
                let list = coupons.list(customer()?, text("useStatus"), text("cardId"), now)?;
                Ok(json!({ "total": list.as_array().map_or(0, Vec::len), "list": list }))
            }
            "/v3/crm/coupon/writeOffCoupon" => {
                coupons.redeem(text("bizId").ok_or(MISSING)?, text("customerId"), &cards(params), now)
            }
            "/v3/crm/coupon/couponReverse" => coupons.reverse(text("bizId").ok_or(MISSING)?),
            _ => Ok(Value::Null),
        }
    }
}

const MISSING: Exception = Exception { code: 200_000, message: "缺少参数 (a required parameter is missing)" };

/// `couponsCardList`: card ids, or objects that have one.
fn cards(params: &Node<'_>) -> Vec<String> {
    let Some(Node::Array(items)) = params.member("couponsCardList") else { return Vec::new() };
    let id = |item: &Node<'_>| item.text().or_else(|| item.member("cardId")?.text()).map(str::to_owned);
    items.iter().filter_map(id).collect()
}

fn success(data: &Value) -> String {
    json!({ "status": true, "code": 0, "message": "成功", "data": data }).to_string()
}

fn exception(exception: Exception) -> String {
    json!({ "status": true, "code": exception.code, "message": exception.message }).to_string()
}

/// A system error.
pub(super) fn failure(code: u32, message: &str) -> String {
    json!({ "status": false, "code": code, "message": message }).to_string()
}
