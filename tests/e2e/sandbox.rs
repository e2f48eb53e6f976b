//! The sandbox as its users see it: its faults and the changes that can be made in it.

use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::{Value, json};
use zvgate::clock::Clock;
use zvgate::secret::Secret;
use zvgate::settings::{KeySource, TenantSettings};
use zvgate::signer::{Call, Nonces, SignedRequest};
use zvgate::tenant::{Identities, TenantKeys, Tenants};

use crate::support::{MERCHANTS, Platform, READ, Reply, TestGateway, raw, send};

/// A body that the platform accepts.
fn signed(customer: &str) -> String {
    let (open_id, grant_code, open_key) = MERCHANTS[0];
    let tenants = Tenants::new(
        &[TenantSettings {
            name: "a".to_owned(),
            open_id: open_id.to_owned(),
            grant_code: grant_code.to_owned(),
            key: KeySource::Inline(Secret::new(open_key.to_owned())),
            default: true,
            pace: None,
        }],
        &TenantKeys::new([("a".to_owned(), Secret::new(open_key.to_owned()))].into()),
        &mut Identities::default(),
    );
    let members = format!("\"params\":{{\"customerId\":\"{customer}\"}}").into();
    let call = Call { tenant: Arc::clone(&tenants.all()[0]), path: READ.into(), members };
    let signed = SignedRequest::sign(&call, &Nonces::new().unwrap(), Clock::system().wall());
    String::from_utf8(signed.body().to_vec()).unwrap()
}

async fn send_body(platform: &Platform, body: String) -> Reply {
    let request = Request::post(READ).header("host", "platform").body(Full::new(body.into())).unwrap();
    send(platform.address, request).await
}

/// The bytes of the response, complete or not.
async fn raw_response(platform: &Platform) -> String {
    let body = signed("1");
    let head =
        format!("POST {READ} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    let address = platform.address;
    let exchange = move || std::panic::catch_unwind(|| raw(address, format!("{head}{body}").as_bytes()));
    tokio::task::spawn_blocking(exchange).await.unwrap().unwrap_or_else(|_| "reset".to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_has_its_documented_effect() {
    let platform = Platform::unlimited().await;
    for (fault, status, code) in [
        ("none", 200, json!(0)),
        ("throttle", 200, json!(110_004)),
        ("error", 200, json!(100_001)),
        ("http500", 500, Value::Null),
        ("http503", 503, Value::Null),
    ] {
        platform.faults(json!({ "fault": fault })).await;
        let reply = send_body(&platform, signed("1")).await;
        assert_eq!((reply.status, &reply.json()["code"]), (status, &code), "{fault}");
    }
    platform.faults(json!({ "fault": "redirect" })).await;
    assert_eq!(send_body(&platform, signed("1")).await.header("location"), "/elsewhere");
    platform.faults(json!({ "fault": "garbage" })).await;
    assert!(send_body(&platform, signed("1")).await.text().starts_with("<html>"));
    platform.faults(json!({ "fault": "truncate" })).await;
    let cut = raw_response(&platform).await;
    let (head, body) = cut.split_once("\r\n\r\n").unwrap();
    let content_length =
        head.to_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    assert!(body.len() < content_length.unwrap_or(0), "{cut}");
    platform.faults(json!({ "fault": "reset" })).await;
    assert_eq!(raw_response(&platform).await, "reset");
    platform.faults(json!({ "fault": "hang" })).await;
    let waited = tokio::time::timeout(std::time::Duration::from_millis(300), send_body(&platform, signed("1"))).await;
    assert!(waited.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_respect_every_times_and_route() {
    let platform = Platform::unlimited().await;
    platform.faults(json!({ "fault": "http500", "every": 2, "times": 2, "route": READ })).await;
    let mut statuses = Vec::new();
    for _ in 0..6 {
        statuses.push(send_body(&platform, signed("1")).await.status);
    }
    assert_eq!(statuses, [200, 500, 200, 500, 200, 200]);
}

#[tokio::test(flavor = "multi_thread")]
async fn clock_skew_shows_in_date_and_rejects_old_timestamps() {
    let platform = Platform::unlimited().await;
    let date = async || {
        let reply = send_body(&platform, signed("1")).await;
        (httpdate::parse_http_date(reply.header("date")).unwrap(), reply.json()["code"].clone())
    };
    let (before, code) = date().await;
    assert_eq!(code, 0);
    platform.faults(json!({ "clock_skew_s": 301 })).await;
    let (after, code) = date().await;
    assert_eq!(code, 110_002);
    assert!(after.duration_since(before).unwrap().as_secs() >= 300);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_customers_coupons_are_stable_until_they_are_changed() {
    let platform = Platform::unlimited().await;
    let list = async |customer: &str| send_body(&platform, signed(customer)).await.json()["data"]["list"].clone();
    let first = list("383933091455959041").await;
    assert_eq!((first.as_array().unwrap().len() >= 2, &list("383933091455959041").await), (true, &first));
    assert_ne!(first, list("383933091455959042").await);
    let other = Platform::unlimited().await;
    let again = send_body(&other, signed("383933091455959041")).await.json()["data"]["list"].clone();
    assert_eq!(again, first, "another sandbox generates the same coupons");
    for (change, status) in [("use", 1), ("freeze", 2), ("give", 4)] {
        let card = first[0]["cardId"].clone();
        let changed = platform.change("383933091455959041", change, json!({ "cardId": card })).await;
        assert_eq!((&changed["useStatus"], &changed["cardId"]), (&json!(status), &card));
        assert_eq!(list("383933091455959041").await[0]["useStatus"], status);
    }
    platform.change("383933091455959041", "issue", json!({ "seconds": 0 })).await;
    let now = list("383933091455959041").await;
    let issued = now.as_array().unwrap().last().unwrap();
    assert_eq!(issued["useStatus"], 6, "it has expired");
    assert_eq!(now.as_array().unwrap().len(), first.as_array().unwrap().len() + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn control_pages_have_a_journal_and_a_reset_and_reject_web_pages_and_unknown_members() {
    let platform = Platform::rate_limited().await;
    let gateway = TestGateway::start(&platform, &[]).await;
    let control = async |method: http::Method, page: &str, headers: &[(&str, &str)], body: &str| {
        let mut request = Request::builder().method(method).uri(format!("/_sandbox/{page}")).header("host", "a");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        send(platform.address, request.body(Full::new(Bytes::from(body.to_owned()))).unwrap()).await
    };
    let (get, post) = (http::Method::GET, http::Method::POST);
    gateway.read("1").await;
    gateway.read("2").await;
    let journal = control(get.clone(), "requests", &[], "").await.json();
    let customers = journal.as_array().unwrap().iter().map(|line| line["request"].as_str().unwrap().to_owned());
    let customers: Vec<_> = customers.collect();
    assert!(customers.len() == 2 && customers[1].contains("\"customerId\":\"2\""), "{customers:?}");
    assert_eq!(journal[0]["path"], READ);

    let page = [("origin", "http://shop.example")];
    let fault = r#"{"fault":"http500"}"#;
    assert_eq!(control(post.clone(), "faults", &page, fault).await.status, 403);
    assert_eq!(control(get.clone(), "faults", &[], "").await.json()["fault"], "none");
    let unknown = control(post.clone(), "customers/1/issue", &[], r#"{"second":1}"#).await;
    assert!(unknown.status == 400 && unknown.text().contains("second"), "{unknown:?}");
    for (page, body) in [
        ("keys", r#"{"openId":"x","keys":[]}"#),
        ("faults", r#"{"faults":1}"#),
        ("reset", r#"{"all":1}"#),
        ("faults", r#"{"route":5}"#),
        ("customers/1/use", r#"{"cardId":8}"#),
        ("customers/1/issue", r#"{"seconds":"60"}"#),
    ] {
        let unknown = control(post.clone(), page, &[], body).await;
        assert!(unknown.status == 400 && unknown.text().contains("expected"), "{page}: {unknown:?}");
    }
    let long = format!("{{\"a\":\"{}\"}}", "x".repeat(2 << 20));
    assert_eq!(control(post.clone(), "faults", &[], &long).await.status, 413);

    control(post.clone(), "faults", &[], fault).await;
    assert_eq!(control(post, "reset", &[], "").await.status, 200);
    assert_eq!(control(get.clone(), "faults", &[], "").await.json()["fault"], "none");
    assert_eq!(control(get, "requests", &[], "").await.text(), "[]");
    assert_eq!(gateway.read("3").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_have_the_shape_that_was_chosen() {
    let platform = Platform::unlimited().await;
    let control = async |page: &str, body: Value| {
        let request =
            Request::post(format!("/_sandbox/{page}")).header("host", "a").body(Full::new(body.to_string().into()));
        send(platform.address, request.unwrap()).await
    };
    let answer = async || send_body(&platform, signed("1")).await.json();
    let paged = answer().await;
    let list = paged["data"]["list"].as_array().unwrap();
    assert_eq!((&paged["status"], &paged["code"]), (&json!(true), &json!(0)));
    assert_eq!(paged["data"]["total"], list.len());
    let first = &list[0];
    assert!(first["useStatus"].is_u64() && first["couponType"].is_u64() && first["cardId"].is_string(), "{first}");
    for (name, other) in [("couponId", "couponNo"), ("title", "templateName"), ("endAt", "endTime")] {
        assert!(first[name].is_string() && first[name] == first[other], "{first}");
    }
    assert_eq!(control("shape", json!({ "shape": "list", "members": "strings" })).await.status, 200);
    let listed = answer().await;
    assert_eq!((&listed["status"], &listed["code"]), (&json!("true"), &json!("0")));
    assert_eq!(listed["data"].as_array().unwrap().len(), list.len());
    assert_eq!((&listed["data"][0]["useStatus"], &listed["data"][0]["couponNo"]), (&json!("0"), &Value::Null));
    control("shape", json!({ "shape": "object" })).await;
    assert_eq!(answer().await["data"]["cardId"], first["cardId"]);
    for (wrong, named) in
        [(json!({ "shape": "tree" }), "paged, list, object"), (json!({ "form": "list" }), "shape or members")]
    {
        let refused = control("shape", wrong).await;
        assert!(refused.status == 400 && refused.text().contains(named), "{refused:?}");
    }
    control("customers/1/clear", json!({})).await;
    assert_eq!(answer().await["data"], Value::Null);
    control("reset", json!({})).await;
    assert_eq!(answer().await, paged);
    control("customers/1/clear", json!({})).await;
    assert_eq!(answer().await["data"], json!({ "list": [], "total": 0 }));
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_have_pages_and_unknown_interfaces_are_the_platforms_error() {
    const ALL: &str = "[[routes]]\npath = \"/v3/crm/coupon/**\"\nkind = \"pass\"\n";
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::with_file(&platform, &[], ALL).await;
    for _ in 0..53 {
        platform.change("1", "issue", json!({})).await;
    }
    let list = async |params: Value| {
        let body = json!({ "params": params }).to_string();
        gateway.post("/v3/crm/coupon/getCustomerCouponList", &[], &body).await.json()["data"].clone()
    };
    let whole = list(json!({ "customerId": "1" })).await;
    let total = whole["total"].as_u64().unwrap();
    assert!(total > 53 && whole["list"].as_array().unwrap().len() == 50, "{whole}");
    assert_eq!(list(json!({ "customerId": "1", "pageSize": 99 })).await, whole, "no page is longer");
    let second = list(json!({ "customerId": "1", "page": 2, "pageSize": "20" })).await;
    assert_eq!(second["list"].as_array().unwrap()[..], whole["list"].as_array().unwrap()[20..40]);
    let last = list(json!({ "customerId": "1", "page": 2 })).await;
    assert_eq!((last["list"].as_array().unwrap().len() as u64, &last["total"]), (total - 50, &whole["total"]));
    let unknown = gateway.post("/v3/crm/coupon/getCustomerCuopons", &[], r#"{"params":{}}"#).await;
    assert_eq!((unknown.status, &unknown.json()["status"]), (200, &json!(false)), "{unknown:?}");
}
