//! The description of what callers can do (OpenAPI 3.1): what is the same for every gateway is in a template, and the routes, keys
//! and tenants follow the configuration in force. It names no tenant and no caller.

use serde_json::{Map, Value, json};

use super::endpoint::{BATCH_GET, COUPONS, CUSTOMER_COUPONS, LIST, coupons_route};
use super::policy::Policy;
use crate::route::Route;
use crate::settings::{KindSettings, UnknownCustomer};

const TEMPLATE: &str = include_str!("openapi/template.json");

/// The customer of examples.
const CUSTOMER: &str = "383933091455959041";
const REDEEM: &str = "/v3/crm/coupon/writeOffCoupon";
const REVERSE: &str = "/v3/crm/coupon/couponReverse";

/// The description of a policy, as JSON.
pub(super) fn document(policy: &Policy) -> String {
    let mut document: Value = serde_json::from_str(TEMPLATE).unwrap_or_default();
    set(&mut document, "/info", "version", json!(env!("CARGO_PKG_VERSION")));
    if policy.callers.are_anonymous() {
        remove(&mut document, "/components", "securitySchemes");
    } else {
        set(&mut document, "", "security", json!([{ "key": [] }]));
    }
    let customer_coupons = format!("{}{{customerId}}{}", CUSTOMER_COUPONS.0, CUSTOMER_COUPONS.1);
    if coupons_route(policy).is_none() {
        [&*customer_coupons, LIST, BATCH_GET].iter().for_each(|path| remove(&mut document, "/paths", path));
    }
    for route in policy.routes.all().iter().filter(|route| route.kind != KindSettings::Off) {
        let path = route
            .pattern
            .strip_suffix("**")
            .map_or_else(|| route.pattern.to_string(), |prefix| format!("{prefix}{{path}}"));
        set(&mut document, "/paths", &path, path_item(route));
    }
    // With one tenant there is nothing to choose.
    if policy.tenants.all().len() > 1 {
        add_tenant(&mut document);
    } else {
        ["tenant", "X-Zvgate-Tenant"].iter().for_each(|name| remove(&mut document, "/components/parameters", name));
    }
    document.to_string()
}

fn set(document: &mut Value, pointer: &str, name: &str, value: Value) {
    if let Some(object) = document.pointer_mut(pointer).and_then(Value::as_object_mut) {
        object.insert(name.to_owned(), value);
    }
}

fn remove(document: &mut Value, pointer: &str, name: &str) {
    if let Some(object) = document.pointer_mut(pointer).and_then(Value::as_object_mut) {
        object.remove(name);
    }
}

/// Lets every operation that is about a tenant name it.
fn add_tenant(document: &mut Value) {
    let schema =
        json!({ "type": ["string", "null"], "description": "The tenant's name; `X-Zvgate-Tenant` does the same." });
    for request in ["ListRequest", "BatchRequest"] {
        set(document, &format!("/components/schemas/{request}/properties"), "tenant", schema.clone());
    }
    let Some(paths) = document.pointer_mut("/paths").and_then(Value::as_object_mut) else { return };
    for operation in paths.values_mut().filter_map(Value::as_object_mut).flat_map(Map::values_mut) {
        let Some(operation) =
            operation.as_object_mut().filter(|one| one.get("operationId") != Some(&json!("getOpenApi")))
        else {
            continue;
        };
        let is_query = !operation.contains_key("requestBody");
        let parameters = operation.entry("parameters").or_insert_with(|| json!([]));
        if let Some(parameters) = parameters.as_array_mut() {
            if is_query {
                parameters.push(json!({ "$ref": "#/components/parameters/tenant" }));
            }
            parameters.push(json!({ "$ref": "#/components/parameters/X-Zvgate-Tenant" }));
        }
    }
}

/// `post` and the path: a name that each generator of clients accepts, and another one for each path.
fn operation_id(path: &str) -> String {
    let mut id = String::from("post");
    for c in path.chars() {
        match c {
            '/' => id.push('_'),
            '*' => id.push('X'),
            '_' => id.push_str("__"),
            c if c.is_ascii_alphanumeric() => id.push(c),
            other => id.push_str(&format!("_{:x}_", u32::from(other))),
        }
    }
    id
}

fn path_item(route: &Route) -> Value {
    let (summary, description, [success, error]) = match &route.kind {
        KindSettings::Cached(_) => (
            "cached",
            "Answered from the cache for as long as the answer is fresh.",
            ["PlatformAnswer", "GatewayError"],
        ),
        KindSettings::Write(_) => (
            "write",
            "Sent once and never repeated. Then whatever is cached for its customers is invalidated, before the caller is answered. `X-Zvgate-Customer` names customers that are neither in the request nor in the answer.",
            ["WriteAnswer", "WriteError"],
        ),
        KindSettings::Pass | KindSettings::Off => {
            ("pass", "Signed and forwarded once.", ["PlatformAnswer", "GatewayError"])
        }
    };
    let name = route.pattern.rsplit('/').find(|part| *part != "**").unwrap_or_default();
    let response = |name: &str| json!({ "$ref": format!("#/components/responses/{name}") });
    let mut operation = json!({
        "operationId": operation_id(&route.pattern),
        "tags": ["platform"],
        "summary": format!("{name} ({summary})"),
        "description": description,
        "requestBody": { "required": true, "content": { "application/json": body(route) } },
        "responses": { "200": response(success), "4XX": response(error), "5XX": response(error) },
    });
    if route.wildcard {
        set(
            &mut operation,
            "",
            "parameters",
            json!([{
                "name": "path",
                "in": "path",
                "required": true,
                "description": "The rest of the path; it may have several segments.",
                "schema": { "type": "string", "pattern": "^[A-Za-z0-9_~-]+$" },
            }]),
        );
    }
    json!({ "post": operation })
}

/// The body that a route takes.
fn body(route: &Route) -> Value {
    const CUSTOMER_ID: &str = "customerId";
    let is_customer_id = |pointers: &[String]| *pointers == ["/params/customerId"];
    let id = json!({ "anyOf": [{ "type": "string", "minLength": 1 }, { "type": "number" }] });
    let mut params = json!({ "type": "object", "required": [CUSTOMER_ID], "properties": { CUSTOMER_ID: id.clone() } });
    match &route.kind {
        KindSettings::Cached(cached) if is_customer_id(&cached.customer) => {
            if let Some(allowed) = &cached.params {
                let mut properties: Map<_, _> = allowed.iter().map(|name| (name.clone(), json!({}))).collect();
                properties.insert(CUSTOMER_ID.to_owned(), id);
                set(&mut params, "", "properties", Value::Object(properties));
                set(&mut params, "", "additionalProperties", json!(false));
            }
        }
        KindSettings::Write(write)
            if write.unknown_customer == UnknownCustomer::Refuse && is_customer_id(&write.customer) => {}
        _ => params = json!({ "$ref": "#/components/schemas/Params" }),
    }
    let mut body =
        json!({ "schema": { "type": "object", "required": ["params"], "properties": { "params": params } } });
    let example = match &*route.pattern {
        COUPONS => Some(json!({ "customerId": CUSTOMER, "useStatus": 0 })),
        REDEEM => {
            Some(json!({ "bizId": "order-1", "customerId": CUSTOMER, "couponsCardList": ["390913445498200065"] }))
        }
        REVERSE => Some(json!({ "bizId": "order-1", "customerId": CUSTOMER })),
        _ => None,
    };
    if let Some(params) = example {
        set(&mut body, "", "examples", json!({ "example": { "value": { "params": params } } }));
    }
    body
}
