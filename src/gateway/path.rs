//! Paths in the log: callers choose them, and may put ids or keys in them.

use std::borrow::Cow;

use super::endpoint::CUSTOMER_COUPONS;

/// Longest path that is logged; those of the platform are less than half as long.
const MAX_SHOWN: usize = 128;
/// Digits in a row that may be an id.
const ID: usize = 5;
/// Length of a step with digits that may be a key.
const KEY: usize = 9;

/// The step of a path of the typed API that is a customer's id, whatever it looks like.
const CUSTOMER_STEP: usize = 3;

/// A path as it is logged: bounded, and without the steps that may be an id or a key.
pub fn shown_path(path: &str) -> Cow<'_, str> {
    let path = path.get(..path.floor_char_boundary(MAX_SHOWN)).unwrap_or_default();
    let has_customer = path.starts_with(CUSTOMER_COUPONS.0);
    if !has_customer && !path.split('/').any(may_be_secret) {
        return Cow::Borrowed(path);
    }
    let shown = |(place, step): (usize, &'_ str)| {
        let is_secret = may_be_secret(step) || (has_customer && place == CUSTOMER_STEP);
        if is_secret { "…".to_owned() } else { step.to_owned() }
    };
    Cow::Owned(path.split('/').enumerate().map(shown).collect::<Vec<_>>().join("/"))
}

fn may_be_secret(step: &str) -> bool {
    let digits = step.bytes().filter(u8::is_ascii_digit).count();
    digits >= ID || (digits > 0 && step.len() >= KEY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_shown_without_what_may_be_an_id_or_a_key() {
        for (path, shown) in [
            ("/v3/crm/coupon/getCustomerCoupons", "/v3/crm/coupon/getCustomerCoupons"),
            ("/v3/383933091455959041/x", "/v3/…/x"),
            ("/v3/c1ZkTs8pLq", "/v3/…"),
            ("/v3/step2", "/v3/step2"),
            ("/v1/customers/alice/coupons", "/v1/customers/…/coupons"),
            ("/v1/customers/1", "/v1/customers/…"),
            ("/v1/coupons:list", "/v1/coupons:list"),
        ] {
            assert_eq!(shown_path(path), shown);
        }
        assert_eq!(shown_path(&"/x".repeat(100)).len(), MAX_SHOWN);
        assert_eq!(shown_path(&format!("/{}é{}", "a".repeat(126), "b".repeat(5000))).len(), MAX_SHOWN - 1);
    }
}
