//! The description of the API: its examples work, it follows the configuration, and docs/api.md is made from it.

use std::collections::BTreeSet;
use std::fmt::Write;

use http::{Method, Request};
use http_body_util::Full;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{Platform, READ, Reply, TestGateway, WRITE, send};

async fn document(gateway: &TestGateway, headers: &[(&str, &str)]) -> Value {
    let reply = gateway.get("/openapi.json", headers).await;
    assert_eq!((reply.status, reply.header("content-type")), (200, "application/json"), "{reply:?}");
    reply.json()
}

/// What a reference stands for.
fn resolved<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value.get("$ref") {
        Some(target) => resolved(document, document.pointer(&target.as_str().unwrap()[1..]).unwrap()),
        None => value,
    }
}

/// Method, path, and operation, by the operation's tag.
fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let paths = document["paths"].as_object().unwrap();
    let all = paths.iter().flat_map(|(path, item)| {
        item.as_object()
            .unwrap()
            .iter()
            .map(|(method, operation)| (method.to_uppercase(), path.clone(), operation.clone()))
    });
    all.collect()
}

async fn call(gateway: &TestGateway, method: &str, path: &str, body: Option<&Value>) -> Reply {
    let mut request =
        Request::builder().method(Method::from_bytes(method.as_bytes()).unwrap()).uri(path).header("host", "localhost");
    if body.is_some() {
        request = request.header("content-type", "application/json");
    }
    let body = body.map_or_else(String::new, Value::to_string);
    send(gateway.address, request.body(Full::from(body)).unwrap()).await
}

/// Whether two values have the same members of the same types, where both say something.
fn have_one_shape(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            one.keys().eq(other.keys()) && one.iter().all(|(name, value)| have_one_shape(value, &other[name]))
        }
        (Value::Array(one), Value::Array(other)) => {
            one.first().zip(other.first()).is_none_or(|(one, other)| have_one_shape(one, other))
        }
        (Value::Null, _) | (_, Value::Null) => true,
        _ => std::mem::discriminant(one) == std::mem::discriminant(other),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_works_and_looks_like_what_is_returned() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[("limits.upstream.rate", "0")]).await;
    let document = document(&gateway, &[]).await;
    let mut requests = 0;
    for (method, path, operation) in operations(&document) {
        let mut bodies = Vec::new();
        let mut target = path.clone();
        if let Some(content) = operation.pointer("/requestBody/content/application~1json") {
            let examples = content["examples"].as_object().unwrap_or_else(|| panic!("{path} has no example"));
            bodies.extend(examples.values().map(|example| Some(example["value"].clone())));
        } else {
            bodies.push(None);
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                let parameter = resolved(&document, parameter);
                let Some(example) = parameter.get("example") else { continue };
                let example = example.as_str().map_or_else(|| example.to_string(), str::to_owned);
                if parameter["in"] == "path" {
                    target = target.replace(&format!("{{{}}}", parameter["name"].as_str().unwrap()), &example);
                } else {
                    write!(target, "?{}={example}", parameter["name"].as_str().unwrap()).unwrap();
                }
            }
        }
        assert!(!target.contains('{'), "{target} needs an example");
        for body in bodies {
            requests += 1;
            let reply = call(&gateway, &method, &target, body.as_ref()).await;
            assert_eq!(reply.status, 200, "{method} {target} {body:?}: {reply:?}");
            let documented = resolved(&document, &operation["responses"]["200"]);
            for header in documented["headers"].as_object().unwrap().keys() {
                let is_there = reply.headers.contains_key(header.as_str()) || header == "Age";
                assert!(is_there, "{method} {target} has no {header}: {reply:?}");
            }
            for example in documented["content"]["application/json"]["examples"].as_object().into_iter().flatten() {
                let example = &example.1["value"];
                assert!(have_one_shape(example, &reply.json()), "{target}: {example} is not like {}", reply.text());
            }
        }
    }
    assert_eq!(requests, 9, "each operation has at least one");
    // A result of a batch that is an error.
    let gateway = TestGateway::start(&platform, &[("limits.upstream.rate", "1"), ("limits.upstream.per", "10m")]).await;
    let example =
        "/paths/~1v1~1coupons:batchGet/post/responses/200/content/application~1json/examples/mixed/value/results/1";
    let body = json!({ "customerIds": ["1", "2"] });
    let reply = call(&gateway, "POST", "/v1/coupons:batchGet", Some(&body)).await.json();
    let limited = reply["results"].as_array().unwrap().iter().find(|one| one["status"] == 429).unwrap();
    assert!(have_one_shape(document.pointer(example).unwrap(), limited), "{reply}");
    let kind = |value: &Value| value["error"]["type"].clone();
    assert_eq!(kind(document.pointer(example).unwrap()), kind(limited));
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_that_may_be_empty_count_as_absent() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[("limits.upstream.rate", "0")]).await;
    let document = document(&gateway, &[]).await;
    let operation = &document["paths"]["/v1/customers/{customerId}/coupons"]["get"];
    let parameters = operation["parameters"].as_array().unwrap().iter().map(|one| resolved(&document, one));
    let queries: Vec<_> = parameters.filter(|one| one["in"] == "query").collect();
    assert!(queries.len() == 4 && queries.iter().all(|one| one["allowEmptyValue"] == true), "{queries:?}");
    let path = "/v1/customers/383933091455959041/coupons";
    let plain = call(&gateway, "GET", path, None).await;
    for query in queries {
        let empty = call(&gateway, "GET", &format!("{path}?{}=", query["name"].as_str().unwrap()), None).await;
        assert_eq!((empty.status, &empty.body), (200, &plain.body), "{query}: {empty:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_description_follows_the_configuration() {
    let platform = Platform::unlimited().await;
    let paths = |document: &Value| document["paths"].as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    let typed = ["/v1/coupons:batchGet", "/v1/coupons:list", "/v1/customers/{customerId}/coupons"];
    let gateway = TestGateway::start(&platform, &[]).await;
    let plain = document(&gateway, &[]).await;
    assert_eq!(plain["openapi"], "3.1.0");
    assert_eq!(plain["info"]["version"], env!("CARGO_PKG_VERSION"));
    assert!(
        typed.iter().chain(&[READ, WRITE, "/v1/invalidate", "/openapi.json"]).all(|path| paths(&plain).contains(*path))
    );
    assert_eq!((plain.get("security"), plain["components"].get("securitySchemes")), (None, None));
    let has_tenant = |document: &Value, pointer: &str| document.pointer(pointer).is_some();
    let member = "/components/schemas/ListRequest/properties/tenant";
    assert!(has_tenant(&plain, member) && has_tenant(&plain, "/components/parameters/tenant"), "there are two");
    let key = zvgate::secret::hex(&Sha256::digest("key"));
    let overrides = [
        ("callers.secret-caller.key_sha256", key.as_str()),
        ("callers.secret-caller.tenants", "*"),
        ("callers.secret-caller.routes", "*"),
    ];
    let file = "[[routes]]\npath = \"/v3/crm/coupon/getCustomerCoupons\"\nkind = \"pass\"\n\n[[routes]]\npath = \"/v3/crm/**\"\nkind = \"cached\"\ncustomer = []\n\n[[routes]]\npath = \"/v3/crm/coupon/couponReverse\"\nkind = \"off\"\n";
    let gateway = TestGateway::with_file(&platform, &overrides, file).await;
    let other = document(&gateway, &[("authorization", "Bearer key")]).await;
    assert_eq!(other["security"], json!([{ "key": [] }]));
    let paths = paths(&other);
    assert!(paths.contains("/v3/crm/{path}") && paths.contains(READ), "{paths:?}");
    assert!(!paths.iter().any(|path| typed.contains(&path.as_str()) || path.ends_with("couponReverse")), "{paths:?}");
    for name in ["secret-caller", "\"one\"", "\"two\"", &key] {
        assert!(!other.to_string().contains(name), "{name}");
    }
    let ids: Vec<_> =
        operations(&other).into_iter().map(|(_, _, operation)| operation["operationId"].to_string()).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "{ids:?}");
}

/// The reference for people, in the order of the tags.
fn markdown(document: &Value) -> String {
    let mut out = String::from(
        "<!-- Made from /openapi.json by the test docs_api_is_made_from_the_description; edit src/gateway/openapi instead. -->\n\n# API\n\n",
    );
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    writeln!(out, "{}\n", text(&document["info"]["description"])).unwrap();
    out += "`GET /openapi.json` returns this description for the configuration in force (OpenAPI 3.1); this page is made from that of the default\nroutes with two tenants. Headers of requests and of writes: [calls.md](calls.md). What the platform's answers mean:\n[coupons.md](coupons.md). Step by step: [recipes.md](recipes.md).\n";
    for tag in document["tags"].as_array().unwrap() {
        let name = text(&tag["name"]);
        writeln!(out, "\n## {}{}\n\n{}", name[..1].to_uppercase(), &name[1..], text(&tag["description"])).unwrap();
        for (method, path, operation) in operations(document).iter().filter(|one| one.2["tags"][0] == tag["name"]) {
            writeln!(out, "\n### {method} {path}\n\n{}.", text(&operation["summary"])).unwrap();
            if operation.get("description").is_some() {
                writeln!(out, "\n{}", text(&operation["description"])).unwrap();
            }
            add_request(&mut out, document, operation);
            out += "\n| status | answer | body |\n| --- | --- | --- |\n";
            for (status, response) in operation["responses"].as_object().unwrap() {
                let response = resolved(document, response);
                let schema = response["content"].as_object().and_then(|content| content.values().next());
                let body = schema.map_or_else(|| "none".to_owned(), |content| shown(&content["schema"]));
                writeln!(out, "| {status} | {} | {body} |", text(&response["description"])).unwrap();
            }
        }
    }
    out += "\n## Schemas\n";
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        writeln!(out, "\n### {name}\n").unwrap();
        if schema.get("description").is_some() {
            writeln!(out, "{}\n", text(&schema["description"])).unwrap();
        }
        match schema["properties"].as_object() {
            Some(_) => add_members(&mut out, schema),
            None => writeln!(out, "{}", shown(schema)).unwrap(),
        }
    }
    out
}

fn add_request(out: &mut String, document: &Value, operation: &Value) {
    let parameters: Vec<_> =
        operation["parameters"].as_array().into_iter().flatten().map(|one| resolved(document, one)).collect();
    if !parameters.is_empty() {
        *out += "\n| parameter | in | type | meaning |\n| --- | --- | --- | --- |\n";
    }
    for parameter in parameters {
        let needed = if parameter["required"] == true { " (required)" } else { "" };
        let [name, place, meaning] =
            ["name", "in", "description"].map(|member| parameter[member].as_str().unwrap_or_default());
        let empty = if parameter["allowEmptyValue"] == true { "; empty counts as absent" } else { "" };
        writeln!(out, "| `{name}`{needed} | {place} | {}{empty} | {meaning} |", shown(&parameter["schema"])).unwrap();
    }
    let Some(content) = operation.pointer("/requestBody/content/application~1json") else { return };
    if content["schema"].get("$ref").is_some() {
        writeln!(out, "\nBody: {}.", shown(&content["schema"])).unwrap();
    } else {
        *out += "\n";
        add_members(out, &content["schema"]);
    }
    for example in content["examples"].as_object().into_iter().flat_map(serde_json::Map::values) {
        writeln!(out, "\n```json\n{}\n```", example["value"]).unwrap();
    }
}

fn add_members(out: &mut String, schema: &Value) {
    *out += "| member | type | meaning |\n| --- | --- | --- |\n";
    let required = schema["required"].as_array();
    for (name, member) in schema["properties"].as_object().unwrap() {
        let optional = if required.is_some_and(|all| all.contains(&json!(name))) { "" } else { " (optional)" };
        writeln!(
            out,
            "| `{name}`{optional} | {} | {} |",
            shown(member),
            member["description"].as_str().unwrap_or_default()
        )
        .unwrap();
    }
}

/// A type in a few words.
fn shown(schema: &Value) -> String {
    if let Some(target) = schema["$ref"].as_str() {
        let name = target.rsplit('/').next().unwrap();
        return format!("[{name}](#{})", name.to_lowercase());
    }
    if let Some(any) = schema["anyOf"].as_array() {
        return any.iter().map(shown).collect::<Vec<_>>().join(" or ");
    }
    if let Some(constant) = schema.get("const") {
        return constant.to_string();
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().map(|kind| kind.as_str().unwrap()).collect::<Vec<_>>().join(" or "),
        Value::String(kind) => kind.clone(),
        _ => "anything".to_owned(),
    };
    let limits = [
        ("minItems", "at least"),
        ("maxItems", "at most"),
        ("minLength", "at least"),
        ("maxLength", "at most"),
        ("minimum", "from"),
        ("maximum", "to"),
    ];
    let limits: Vec<_> =
        limits.iter().filter_map(|(name, word)| Some(format!("{word} {}", schema.get(name)?))).collect();
    let of = if kind == "array" { format!(" of {}", shown(&schema["items"])) } else { String::new() };
    let form = schema["format"].as_str().map_or_else(String::new, |form| format!(", {form}"));
    if limits.is_empty() { format!("{kind}{of}{form}") } else { format!("{kind}{of}{form}, {}", limits.join(", ")) }
}

#[tokio::test(flavor = "multi_thread")]
async fn docs_api_is_made_from_the_description() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[]).await;
    let made = markdown(&document(&gateway, &[]).await);
    let root = env!("CARGO_MANIFEST_DIR");
    let file = std::fs::read_to_string(format!("{root}/docs/api.md")).unwrap_or_default();
    if file != made {
        std::fs::write(format!("{root}/target/api.md"), &made).unwrap();
        panic!("docs/api.md differs from the description: look at target/api.md, and copy it to docs/api.md");
    }
}
