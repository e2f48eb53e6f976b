//! Requests and responses pass through the gateway byte for byte.

use crate::scripted::{Action, Scripted};
use crate::support::{MERCHANTS, Platform, READ, TestGateway, envelope};

#[tokio::test(flavor = "multi_thread")]
async fn params_reach_the_platform_byte_for_byte() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[]).await;
    let params = "{ \"customerId\" : 3839330914559590410 ,\t\"t\\u0061g\":\"\\u4f60\\/好\", \"n\":1.50E+2,\"templateId\" : [ ], \"b\":{\"z\":1,\"a\":-0} }";
    let body = format!("{{\"nonce\":5,\"params\":{params},\"more\" : {{ \"x\" : 1e5 }} }}");
    assert_eq!(gateway.post(READ, &[], &body).await.status, 200);
    let last = platform.last().await;
    let request = last["request"].as_str().unwrap();
    assert!(request.ends_with(&format!(",\"params\":{params},\"more\":{{ \"x\" : 1e5 }}}}")), "{request}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_is_returned_byte_for_byte_fresh_and_from_the_cache() {
    let answer = "{ \"status\" : \"true\",\"code\":\"0\" ,\"message\":\"\\u8bf4明\",\r\n\"data\":[ { \"cardId\":390913445498200065123,\"endAt\":\"9999-12-31\",\"z\":1.0,\"a\":1e0 } ] }\n";
    let upstream = Scripted::start(move |_, _| Action::json(answer)).await;
    let gateway = TestGateway::start(&upstream, &[]).await;
    let miss = gateway.read("1").await;
    let hit = gateway.read("1").await;
    assert!(miss.is_stored_miss() && hit.is_hit());
    assert_eq!((miss.text().as_str(), hit.text().as_str()), (answer, answer));
}

/// The examples of the platform's documentation: request and response are forwarded as written.
#[tokio::test(flavor = "multi_thread")]
async fn the_documented_examples_pass_unchanged() {
    let answer = r#"{ "status": "true", "code": "0", "message": "说明", "data": { "beginAt": "2019-08-24 00:00:00", "cardId": "390913445498200065", "channel": "naixue", "couponId": "390913445519171584", "couponType": "0", "createdAt": "2019-10-15 17:10:28", "customerId": "383933091455959041", "title": "", "updatedAt": "2019-10-15 17:10:2", "useStatus": "0", "templateId": "951", "endAt": "2019-11-03 23:59:59", "extra": "" } }"#;
    let params = r#"{ "customerId": "383933091455959041", "useStatus": "", "cardId": "390913445498200065" }"#;
    let file = "[tenants.document]\nopen_id = \"6dc05b4ac175cf316d226252b05cf685\"\ngrant_code = \"782c281f62\"\nopen_key = \"k\"\n";
    let upstream = Scripted::start(move |_, _| Action::json(answer)).await;
    let gateway = TestGateway::with_file(&upstream, &[], file).await;
    let request = format!(
        r#"{{ "openId": "6dc05b4ac175cf316d226252b05cf685", "grantCode": "782c281f62", "timestamp": "1547186244", "nonce": "658965", "token": "0%2B%2B3c6hthjwAml4ABAXOYF4Q6UY%3D", "params": {params} }}"#
    );
    let reply = gateway.post(READ, &[], &request).await;
    assert_eq!(reply.text(), answer);
    assert_eq!(
        reply.header("cache-status"),
        "zvgate; fwd=miss; stored; ttl=3",
        "its coupon is past its end, and unused"
    );
    let sent = upstream.seen().remove(0);
    assert!(sent.ends_with(&format!("\"params\":{params}}}")), "{sent}");
    let sent = envelope(&sent);
    assert_eq!(
        (&sent["openId"], &sent["grantCode"]),
        (&"6dc05b4ac175cf316d226252b05cf685".into(), &"782c281f62".into())
    );
    for replaced in ["timestamp", "nonce", "token"] {
        assert!(sent[replaced].is_string() && !request.contains(sent[replaced].as_str().unwrap()), "{replaced}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_documented_headers_are_sent_upstream() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[]).await;
    let headers = [
        ("authorization", "Bearer callers-own"),
        ("cookie", "a=b"),
        ("x-forwarded-for", "10.0.0.1"),
        ("accept-encoding", "gzip"),
        ("user-agent", "caller/1"),
        ("x-zvgate-tenant", "one"),
    ];
    let body =
        format!(r#"{{"openId":"{}","grantCode":"{}","params":{{"customerId":"1"}}}}"#, MERCHANTS[0].0, MERCHANTS[0].1);
    assert_eq!(gateway.post(READ, &headers, &body).await.status, 200);
    let last = platform.last().await;
    let sent = last["headers"].as_object().unwrap();
    let names: Vec<_> = sent.keys().map(String::as_str).collect();
    assert_eq!(names, ["accept", "accept-encoding", "content-length", "content-type", "host", "user-agent"]);
    assert_eq!(sent["user-agent"], format!("zvgate/{}", env!("CARGO_PKG_VERSION")));
    assert_eq!(sent["accept-encoding"], "identity");
    assert_eq!(sent["host"], platform.address.to_string());
    assert_eq!((&sent["accept"], &sent["content-type"]), (&"application/json".into(), &"application/json".into()));
}
