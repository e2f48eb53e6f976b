//! Paths in the log: callers choose them, and may put ids or keys in them.

use std::borrow::Cow;

/// Longest path that is logged; those of the platform are less than half as long.
const MAX_SHOWN: usize = 128;
/// Digits in a row that may be an id.
const ID: usize = 5;
/// Length of a step with digits that may be a key.
const KEY: usize = 9;

/// A path as it is logged: bounded, and without the steps that may be an id or a key.
pub fn shown_path(path: &str) -> Cow<'_, str> {
    let path = path.get(..path.floor_char_boundary(MAX_SHOWN)).unwrap_or_default();
    if !path.split('/').any(may_be_secret) {
        return Cow::Borrowed(path);
    }
    let shown: Vec<&str> = path.split('/').map(|step| if may_be_secret(step) { "…" } else { step }).collect();
    Cow::Owned(shown.join("/"))
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
        ] {
            assert_eq!(shown_path(path), shown);
        }
        assert_eq!(shown_path(&"/x".repeat(100)).len(), MAX_SHOWN);
        assert_eq!(shown_path(&format!("/{}é{}", "a".repeat(126), "b".repeat(5000))).len(), MAX_SHOWN - 1);
    }
}
