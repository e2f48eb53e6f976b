//! What a caller of the typed API asks, and the body with which the platform's own interface is asked the same: so both share the
//! cache, the memo of hits, and fetches in progress.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use super::endpoint::Endpoint;
use crate::envelope::{parse_body, push_text};
use crate::json::Node;
use crate::reply::GatewayError;

/// Most customers of one request.
pub(super) const MAX_BATCH: usize = 100;
/// Most characters of an id.
pub(super) const MAX_ID: usize = 128;
/// The largest status; the platform's have one digit.
pub(super) const MAX_STATUS: u8 = 99;

/// The question about one customer or several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CouponQuery {
    pub(super) customers: Vec<String>,
    use_status: Option<u8>,
    card_id: Option<String>,
    /// Whether only usable coupons are wanted.
    pub(super) usable: bool,
    /// The tenant's name.
    pub(super) tenant: Option<String>,
}

/// The members of a request, as far as an operation has them.
const CUSTOMER_ID: &str = "customerId";
const CUSTOMER_IDS: &str = "customerIds";
const USE_STATUS: &str = "useStatus";
const CARD_ID: &str = "cardId";
const USABLE: &str = "usable";
const TENANT: &str = "tenant";

const IS_STATUS: &str = "a whole number from 0 to 99, such as 0 for unused coupons; leave it out for all";
const IS_ID: &str = "1 to 128 characters, none of them a control character";
const IS_ID_STRING: &str = "a string of 1 to 128 characters, none of them a control character: as a number, an id loses digits in many JSON libraries";
const IS_TENANT: &str = "the name of a tenant, as configured";

fn invalid(name: &str, expected: &str) -> GatewayError {
    GatewayError::Invalid(format!("{name} is invalid: expected {expected}"))
}

fn unknown(name: &str, expected: &[&str]) -> GatewayError {
    let name: String = name.chars().take(64).collect();
    GatewayError::Invalid(format!("{name:?} is not a parameter: expected one of {}", expected.join(", ")))
}

fn is_id(text: &str) -> bool {
    !text.chars().any(char::is_control) && (1..=MAX_ID).contains(&text.chars().count())
}

impl CouponQuery {
    /// What a request to the typed API asks; `None`: the endpoint is not one of its.
    pub(super) fn of(endpoint: Endpoint<'_>, query: Option<&str>, body: &[u8]) -> Result<Option<Self>, GatewayError> {
        match endpoint {
            Endpoint::CustomerCoupons(id) => Self::of_query(id, query).map(Some),
            Endpoint::List => Self::of_list(body).map(Some),
            Endpoint::BatchGet => Self::of_batch(body).map(Some),
            Endpoint::Route | Endpoint::Invalidate | Endpoint::OpenApi => Ok(None),
        }
    }

    /// Of a path with a customer's id and a query string; a parameter without a value counts as absent.
    fn of_query(id: &str, query: Option<&str>) -> Result<Self, GatewayError> {
        let customer = decode(id).filter(|id| is_id(id)).ok_or_else(|| invalid(CUSTOMER_ID, IS_ID))?;
        let mut asked = Self { customers: vec![customer.into_owned()], ..Self::default() };
        let mut seen: Vec<Cow<'_, str>> = Vec::new();
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decoded = |text| decode_plus(text).ok_or(GatewayError::BadRequest("the query string is not UTF-8"));
            let (name, value) = (decoded(name)?, decoded(value)?);
            if seen.contains(&name) {
                return Err(GatewayError::Invalid(format!("{name:?} is given twice: expected it once")));
            }
            let is_given = !value.is_empty();
            match &*name {
                USE_STATUS if is_given => asked.use_status = Some(status(&value)?),
                CARD_ID if is_given => asked.card_id = Some(card(&value)?),
                USABLE if is_given => {
                    asked.usable = value.parse().map_err(|_| invalid(USABLE, "true or false"))?;
                }
                TENANT if is_given => asked.tenant = Some(value.into_owned()),
                USE_STATUS | CARD_ID | USABLE | TENANT => {}
                other => return Err(unknown(other, &[USE_STATUS, CARD_ID, USABLE, TENANT])),
            }
            seen.push(name);
        }
        Ok(asked)
    }

    /// Of the body of a request for one customer's coupons.
    fn of_list(body: &[u8]) -> Result<Self, GatewayError> {
        let mut asked = Self::default();
        read(body, &[CUSTOMER_ID, USE_STATUS, CARD_ID, USABLE, TENANT], |name, value| {
            match (name, value) {
                (CUSTOMER_ID, Node::String(id)) if is_id(id) => asked.customers.push(id.to_string()),
                (CUSTOMER_ID, _) => return Err(invalid(CUSTOMER_ID, IS_ID_STRING)),
                (CARD_ID, Node::String(id)) => asked.card_id = Some(card(id)?),
                (CARD_ID, _) => return Err(invalid(CARD_ID, IS_ID_STRING)),
                _ => asked.common(name, value)?,
            }
            Ok(())
        })?;
        match asked.customers.is_empty() {
            true => Err(GatewayError::BadRequest("customerId is missing: expected {\"customerId\":\"…\"}")),
            false => Ok(asked),
        }
    }

    /// Of the body of a request for many customers' coupons.
    fn of_batch(body: &[u8]) -> Result<Self, GatewayError> {
        const EXPECTED: &str =
            "1 to 100 strings of 1 to 128 characters: as numbers, ids lose digits in many JSON libraries";
        let mut asked = Self::default();
        let id = |node: &Node<'_>| match node {
            Node::String(id) if is_id(id) => Some(id.to_string()),
            _ => None,
        };
        read(body, &[CUSTOMER_IDS, USE_STATUS, USABLE, TENANT], |name, value| {
            match (name, value) {
                (CUSTOMER_IDS, Node::Array(ids)) if ids.len() <= MAX_BATCH => {
                    let ids: Option<Vec<String>> = ids.iter().map(id).collect();
                    asked.customers = ids.ok_or_else(|| invalid(CUSTOMER_IDS, EXPECTED))?;
                }
                (CUSTOMER_IDS, _) => return Err(invalid(CUSTOMER_IDS, EXPECTED)),
                _ => asked.common(name, value)?,
            }
            Ok(())
        })?;
        match asked.customers.is_empty() {
            true => {
                Err(GatewayError::BadRequest("customerIds is missing or empty: expected {\"customerIds\":[\"…\"]}"))
            }
            false => Ok(asked),
        }
    }

    /// Reads a member that both bodies have.
    fn common(&mut self, name: &str, value: &Node<'_>) -> Result<(), GatewayError> {
        match (name, value) {
            (USE_STATUS, Node::Number(number)) => self.use_status = Some(status_number(number)?),
            (USE_STATUS, _) => return Err(invalid(USE_STATUS, IS_STATUS)),
            (USABLE, Node::Bool(usable)) => self.usable = *usable,
            (USABLE, _) => return Err(invalid(USABLE, "true or false")),
            (_, Node::String(tenant)) => self.tenant = Some(tenant.to_string()),
            _ => return Err(invalid(TENANT, IS_TENANT)),
        }
        Ok(())
    }

    /// The tenant that is named, in a header or as a parameter.
    pub(super) fn tenant<'a>(&'a self, header: Option<&'a [u8]>) -> Result<Option<&'a [u8]>, GatewayError> {
        let named = self.tenant.as_ref().map(String::as_bytes);
        match (header, named) {
            (Some(header), Some(named)) if header != named => Err(GatewayError::BadRequest(
                "tenant and X-Zvgate-Tenant name two tenants: expected one of them, or the same name",
            )),
            (header, named) => Ok(header.or(named)),
        }
    }

    /// The body that asks the platform's own interface about one of the customers.
    pub(super) fn body(&self, customer: &str) -> String {
        let mut body = String::with_capacity(96);
        body.push_str("{\"params\":{\"customerId\":");
        push_text(&mut body, customer);
        if let Some(status) = self.use_status {
            body.push_str(",\"useStatus\":");
            body.push_str(itoa::Buffer::new().format(status));
        }
        if let Some(card) = &self.card_id {
            body.push_str(",\"cardId\":");
            push_text(&mut body, card);
        }
        body.push_str("}}");
        body
    }
}

/// Calls `member` with each member of a body, all of which must be known; `null` counts as absent.
fn read(
    body: &[u8],
    known: &[&str],
    mut member: impl FnMut(&str, &Node<'_>) -> Result<(), GatewayError>,
) -> Result<(), GatewayError> {
    let root = parse_body(body).map_err(GatewayError::Body)?;
    let members = root.members().ok_or(GatewayError::BadRequest("the body must be a JSON object"))?;
    if let Some(other) = members.iter().find(|one| !known.contains(&&*one.name)) {
        return Err(unknown(&other.name, known));
    }
    members.iter().filter(|one| one.value != Node::Null).try_for_each(|one| member(&one.name, &one.value))
}

fn status(digits: &str) -> Result<u8, GatewayError> {
    let is_plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let status = digits.parse().ok().filter(|status| is_plain && *status <= MAX_STATUS);
    status.ok_or_else(|| invalid(USE_STATUS, IS_STATUS))
}

/// A number in JSON, where 6, 6.0 and 0.6e1 are the same.
fn status_number(number: &str) -> Result<u8, GatewayError> {
    let number: f64 = number.parse().unwrap_or(f64::NAN);
    let same = |status: &u8| number == f64::from(*status);
    (0..=MAX_STATUS).find(same).ok_or_else(|| invalid(USE_STATUS, IS_STATUS))
}

fn card(id: &str) -> Result<String, GatewayError> {
    if is_id(id) { Ok(id.to_owned()) } else { Err(invalid(CARD_ID, IS_ID)) }
}

/// What a part of a path means; `None` if it is not UTF-8.
fn decode(text: &str) -> Option<Cow<'_, str>> {
    percent_decode_str(text).decode_utf8().ok()
}

/// The same in a query string, where a plus sign is a space.
fn decode_plus(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('+') {
        return decode(text);
    }
    let spaced = text.replace('+', " ");
    decode(&spaced).map(|decoded| Cow::Owned(decoded.into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(result: Result<CouponQuery, GatewayError>) -> String {
        result.unwrap_err().message()
    }

    #[test]
    fn a_query_string_asks_what_the_body_asks() {
        let of_query = CouponQuery::of_query("a%2F%E5%88%B8", Some("useStatus=0&cardId=5&usable=true&tenant=shop"));
        let of_list = CouponQuery::of_list(
            r#"{"customerId":"a/券","useStatus":0.0,"cardId":"5","usable":true,"tenant":"shop"}"#.as_bytes(),
        );
        assert_eq!(of_query.as_ref().unwrap(), of_list.as_ref().unwrap());
        let asked = of_query.unwrap();
        assert_eq!(asked.body("a\"b"), r#"{"params":{"customerId":"a\"b","useStatus":0,"cardId":"5"}}"#);
        assert_eq!(asked.tenant(None).unwrap(), Some(&b"shop"[..]));
        assert_eq!(asked.tenant(Some(b"shop")).unwrap(), Some(&b"shop"[..]));
        assert!(asked.tenant(Some(b"other")).is_err());
    }

    #[test]
    fn what_is_empty_or_null_is_absent() {
        let plain = CouponQuery { customers: vec!["1".to_owned()], ..CouponQuery::default() };
        assert_eq!(CouponQuery::of_query("1", Some("useStatus=&cardId=&usable=&tenant=&&")).unwrap(), plain);
        assert_eq!(CouponQuery::of_query("1", None).unwrap(), plain);
        let body = br#"{"customerId":"1","useStatus":null,"cardId":null,"usable":null,"tenant":null}"#;
        assert_eq!(CouponQuery::of_list(body).unwrap(), plain);
        assert_eq!(plain.body("1"), r#"{"params":{"customerId":"1"}}"#);
        assert_eq!(plain.tenant(Some(b"x")).unwrap(), Some(&b"x"[..]));
    }

    #[test]
    fn each_rejection_names_the_parameter_and_what_is_expected() {
        for (query, expected) in [
            ("usestatus=0", "\"usestatus\" is not a parameter: expected one of useStatus, cardId, usable, tenant"),
            ("useStatus=unused", "useStatus is invalid: expected a whole number"),
            ("useStatus=100", "useStatus is invalid"),
            ("useStatus=-1", "useStatus is invalid"),
            ("useStatus=%2B1", "useStatus is invalid"),
            ("usable=yes", "usable is invalid: expected true or false"),
            ("useStatus=0&useStatus=1", "\"useStatus\" is given twice"),
            ("useStatus=&useStatus=1", "\"useStatus\" is given twice"),
            ("cardId=%00", "cardId is invalid"),
            ("cardId=%ff", "the query string is not UTF-8"),
        ] {
            let message = message(CouponQuery::of_query("1", Some(query)));
            assert!(message.starts_with(expected), "{query}: {message}");
        }
        for id in ["%ff", "a%0ab", &"9".repeat(MAX_ID + 1)] {
            assert!(message(CouponQuery::of_query(id, None)).starts_with("customerId is invalid"), "{id}");
        }
        for (body, expected) in [
            ("[]", "the body must be a JSON object"),
            ("{", "the body is invalid"),
            ("{}", "customerId is missing"),
            (r#"{"customerId":1}"#, "customerId is invalid: expected a string"),
            (r#"{"customerId":""}"#, "customerId is invalid"),
            (r#"{"customerId":"1","useStatus":"0"}"#, "useStatus is invalid"),
            (r#"{"customerId":"1","useStatus":0.5}"#, "useStatus is invalid"),
            (r#"{"customerId":"1","useStatus":1e9}"#, "useStatus is invalid"),
            (r#"{"customerId":"1","useStatus":-1}"#, "useStatus is invalid"),
            (r#"{"customerId":"1","cardId":""}"#, "cardId is invalid"),
            (r#"{"customerId":"1","usable":1}"#, "usable is invalid"),
            (r#"{"customerId":"1","tenant":1}"#, "tenant is invalid"),
            (r#"{"customerId":"1","params":{}}"#, "\"params\" is not a parameter"),
            (r#"{"customerId":"1","customerId":"1"}"#, "an object has the member \"customerId\" twice"),
        ] {
            let message = message(CouponQuery::of_list(body.as_bytes()));
            assert!(message.starts_with(expected), "{body}: {message}");
        }
        let many = format!("{{\"customerIds\":[{}]}}", vec!["\"1\""; MAX_BATCH + 1].join(","));
        for (body, expected) in [
            ("{}", "customerIds is missing"),
            (r#"{"customerIds":[]}"#, "customerIds is missing or empty"),
            (r#"{"customerIds":"1"}"#, "customerIds is invalid: expected 1 to 100 strings"),
            (r#"{"customerIds":[1]}"#, "customerIds is invalid"),
            (r#"{"customerIds":["1",""]}"#, "customerIds is invalid"),
            (&many, "customerIds is invalid"),
            (r#"{"customerIds":["1"],"cardId":"1"}"#, "\"cardId\" is not a parameter"),
            (r#"{"customerIds":["1"],"more":null}"#, "\"more\" is not a parameter"),
            (r#"{"customerIds":["1"],"usable":[]}"#, "usable is invalid"),
        ] {
            let message = message(CouponQuery::of_batch(body.as_bytes()));
            assert!(message.starts_with(expected), "{body}: {message}");
        }
    }
}
