//! The platform's codes for the type and the status of a coupon, and names for them.

/// `couponType`, as documented.
pub(super) const TYPES: &[(i64, &str)] = &[
    (0, "cash_or_discount"),
    (2, "limited_free_item"),
    (3, "erp_exchange"),
    (4, "buy_m_get_n"),
    (5, "goods"),
    (6, "free_delivery"),
    (7, "skip_the_queue"),
    (8, "parking"),
];

/// `useStatus`, as documented for the interface; 4 and 5 are from another page of the platform.
pub(super) const STATUSES: &[(i64, &str)] = &[
    (UNUSED, "unused"),
    (1, "redeemed"),
    (2, "frozen"),
    (4, "being_given_away"),
    (5, "not_taken_in_time"),
    (6, "expired"),
    (7, "deleted"),
];

/// The status of a coupon that was not used, or whose use was reversed.
pub(super) const UNUSED: i64 = 0;

/// The name of a code.
pub(super) fn name_of(code: Option<i64>, known: &[(i64, &'static str)]) -> &'static str {
    known.iter().find(|(one, _)| Some(*one) == code).map_or("unknown", |(_, name)| name)
}
