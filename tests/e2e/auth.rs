//! Authentication and authorization: callers' keys, limits, hosts, and the admin key.

use http::{Method, Request};
use http_body_util::Full;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{MERCHANTS, Platform, READ, Reply, TestGateway, WRITE, raw, send};

const BODY: &str = r#"{"params":{"customerId":"1"}}"#;

fn hash(key: &str) -> String {
    Sha256::digest(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Two callers: `all`, with two keys and every permission, and `few`, for one tenant and one route.
fn callers(more: &str) -> String {
    format!(
        "[callers.all]\nkey_sha256 = [\"{}\", \"{}\"]\ntenants = [\"*\"]\nroutes = [\"*\"]\ninvalidate = true\n[callers.few]\nkey_sha256 = \"{}\"\ntenants = [\"one\"]\nroutes = [\"{READ}\"]\n{more}",
        hash("old"),
        hash("new"),
        hash("few")
    )
}

async fn post(gateway: &TestGateway, key: &str, path: &str, tenant: &str) -> Reply {
    let bearer = format!("Bearer {key}");
    gateway.post(path, &[("authorization", &bearer), ("x-zvgate-tenant", tenant)], BODY).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_key_of_a_caller_gives_access_to_its_tenants_and_routes() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::with_file(&platform, &[], &callers("")).await;
    for key in ["old", "new"] {
        for (path, tenant) in [(READ, "one"), (READ, "two"), (WRITE, "one")] {
            assert_eq!(post(&gateway, key, path, tenant).await.status, 200, "{key} {path} {tenant}");
        }
    }
    assert_eq!(post(&gateway, "few", READ, "one").await.status, 200);
    post(&gateway, "few", READ, "two").await.assert_error(403, "forbidden");
    post(&gateway, "few", WRITE, "one").await.assert_error(403, "forbidden");
    for headers in [
        &[][..],
        &[("authorization", "Bearer wrong")],
        &[("authorization", "Basic old")],
        &[("authorization", "Bearer old"), ("authorization", "Bearer few")],
        &[("authorization", "old")],
    ] {
        let rejected = gateway.post(READ, headers, BODY).await;
        rejected.assert_error(401, "unauthenticated");
        assert_eq!(rejected.header("www-authenticate"), "Bearer realm=\"zvgate\"");
    }
    let requests = |caller: &str, status: u16| {
        format!("zvgate_requests_total{{caller=\"{caller}\",route=\"{READ}\",status=\"{status}\"}}")
    };
    assert_eq!(gateway.metric(&requests("all", 200)).await, 4.0);
    assert_eq!((gateway.metric(&requests("few", 200)).await, gateway.metric(&requests("few", 403)).await), (1.0, 1.0));
    assert_eq!(gateway.metric(&requests("anonymous", 401)).await, 5.0);
}

/// The memo of parsed requests is shared by all callers; their permissions are not.
#[tokio::test(flavor = "multi_thread")]
async fn authorization_is_checked_even_for_a_request_seen_before() {
    let platform = Platform::unlimited().await;
    let file = callers("").replace("tenants = [\"one\"]", "tenants = [\"two\"]");
    let gateway = TestGateway::with_file(&platform, &[], &file).await;
    let ask = async |key: &str, more: &[(&str, &str)]| {
        let bearer = format!("Bearer {key}");
        gateway.post(READ, &[&[("authorization", &*bearer)], more].concat(), BODY).await
    };
    for _ in 0..3 {
        assert_eq!(ask("old", &[]).await.status, 200);
        ask("few", &[("x-zvgate-tenant", "one")]).await.assert_error(403, "forbidden");
        assert_eq!(ask("few", &[]).await.status, 200, "its only tenant");
    }
    assert!(ask("old", &[]).await.is_hit());
    assert!(ask("old", &[("x-zvgate-tenant", "two")]).await.is_hit());
    assert!(ask("old", &[]).await.is_hit() && ask("few", &[("x-zvgate-tenant", "two")]).await.is_hit());
    assert_eq!(ask("old", &[("cache-control", "no-cache")]).await.header("cache-status"), "zvgate; fwd=request");
    assert_eq!(platform.requests(READ).await, 3);
}

/// Each check hides the results of later ones: only authenticated callers learn of routes and tenants.
#[tokio::test(flavor = "multi_thread")]
async fn errors_are_reported_in_the_order_of_the_checks() {
    let platform = Platform::unlimited().await;
    let overrides = [("server.max_body", "100B"), ("limits.caller.rate", "1"), ("limits.caller.per", "1h")];
    let gateway = TestGateway::with_file(&platform, &overrides, &callers("")).await;
    let few = ("authorization", "Bearer few");
    let text = ("content-type", "text/plain");
    let long = "x".repeat(200);
    let ask = async |path: &str, headers: &[(&str, &str)], body: &str| gateway.post(path, headers, body).await;
    ask("/nowhere", &[text], &long).await.assert_error(404, "unknown_route");
    let get = Request::get(READ).header("host", "localhost").body(Full::default()).unwrap();
    send(gateway.address, get).await.assert_error(405, "method_not_allowed");
    ask(WRITE, &[text], &long).await.assert_error(401, "unauthenticated");
    ask(WRITE, &[few, text], &long).await.assert_error(403, "forbidden");
    ask(READ, &[few, text], &long).await.assert_error(415, "unsupported_media_type");
    ask(READ, &[few, text], &long).await.assert_error(429, "caller_limited");
    gateway.clock.advance(std::time::Duration::from_secs(3600));
    ask(READ, &[few], &long).await.assert_error(413, "body_too_large");
    gateway.clock.advance(std::time::Duration::from_secs(3600));
    ask(READ, &[few, ("x-zvgate-tenant", "nobody")], "{}").await.assert_error(400, "bad_request");
    gateway.clock.advance(std::time::Duration::from_secs(3600));
    ask(READ, &[few, ("x-zvgate-tenant", "nobody")], BODY).await.assert_error(400, "unknown_tenant");
    gateway.clock.advance(std::time::Duration::from_secs(3600));
    ask(READ, &[few, ("x-zvgate-tenant", "two")], BODY).await.assert_error(403, "forbidden");
    assert_eq!(platform.requests(READ).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_caller_has_its_own_limit_and_hits_count_towards_it() {
    let platform = Platform::unlimited().await;
    let overrides = [("limits.caller.rate", "2"), ("limits.caller.per", "1h")];
    let gateway = TestGateway::with_file(&platform, &overrides, &callers("limit = { rate = 4, per = \"1h\" }\n")).await;
    for _ in 0..2 {
        assert_eq!(post(&gateway, "old", READ, "one").await.status, 200);
    }
    let limited = post(&gateway, "new", READ, "one").await;
    limited.assert_error(429, "caller_limited");
    assert_eq!(limited.header("ratelimit-policy"), "\"caller\";q=2;w=3600");
    for _ in 0..4 {
        assert!(post(&gateway, "few", READ, "one").await.is_hit(), "one caller's limit does not affect another");
    }
    post(&gateway, "few", READ, "one").await.assert_error(429, "caller_limited");
    for caller in ["all", "few"] {
        let limited = format!("zvgate_limited_total{{caller=\"{caller}\",limit=\"caller\"}}");
        assert_eq!(gateway.metric(&limited).await, 1.0, "{caller}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_permitted_callers_may_invalidate() {
    let platform = Platform::unlimited().await;
    let file = callers("").replace("invalidate = true", "invalidate = true\n#");
    let gateway = TestGateway::with_file(&platform, &[], &file).await;
    let invalidate = async |key: &str, tenant: &str| {
        let headers = [("authorization", &*format!("Bearer {key}")), ("x-zvgate-tenant", tenant)];
        gateway.post("/v1/invalidate", &headers, r#"{"customerIds":["1"]}"#).await
    };
    post(&gateway, "few", READ, "one").await;
    invalidate("few", "one").await.assert_error(403, "forbidden");
    invalidate("wrong", "one").await.assert_error(401, "unauthenticated");
    assert!(post(&gateway, "few", READ, "one").await.is_hit());
    assert_eq!(invalidate("all", "one").await.status, 401);
    assert_eq!(invalidate("old", "one").await.json(), json!({ "dropped": 1 }));
    assert!(!post(&gateway, "few", READ, "one").await.is_hit());
}

/// Callers are then authenticated by their keys, wherever they connect from.
#[tokio::test(flavor = "multi_thread")]
async fn with_keys_the_gateway_may_listen_beyond_loopback() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::with_file(&platform, &[("server.listen", "0.0.0.0:0")], &callers("")).await;
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], gateway.address.port()));
    let ask = async |headers: &[(&str, &str)]| crate::support::post(address, READ, headers, BODY).await;
    ask(&[]).await.assert_error(401, "unauthenticated");
    let page = [("authorization", "Bearer new"), ("origin", "https://shop.example"), ("host", "gateway.example")];
    assert_eq!(ask(&page).await.status, 200, "a caller with a key may be anywhere");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_anonymous_gateway_rejects_requests_from_web_pages() {
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[("server.hosts", "zvgate.internal,gate")]).await;
    let ask = |host: &str, more: &str| {
        let request = format!(
            "POST {READ} HTTP/1.1\r\n{host}Connection: close\r\nContent-Type: application/json\r\n{more}Content-Length: {}\r\n\r\n{BODY}",
            BODY.len()
        );
        let reply = tokio::task::block_in_place(|| raw(gateway.address, request.as_bytes()));
        reply.get(9..12).unwrap_or_default().to_owned()
    };
    for host in ["127.0.0.1", "127.0.0.1:8080", "[::1]:80", "LocalHost", "gate:9", "zvgate.Internal"] {
        assert_eq!(ask(&format!("Host: {host}\r\n"), ""), "200", "{host}");
    }
    for host in ["shop.example", "localhost.shop.example", "127.0.0.1.shop.example", "a@localhost", ""] {
        assert_eq!(ask(&format!("Host: {host}\r\n"), ""), "421", "{host}");
    }
    assert_eq!(ask("", ""), "400");
    assert_eq!(ask("Host: localhost\r\nHost: localhost\r\n", ""), "400");
    assert_eq!(ask("Host: localhost\r\n", "Origin: http://localhost\r\n"), "403");
    let absolute = format!("POST http://shop.example{READ} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let reply = tokio::task::block_in_place(|| raw(gateway.address, absolute.as_bytes()));
    assert!(reply.starts_with("HTTP/1.1 421 "), "{reply}");
    let rejected = gateway.post(READ, &[("host", "shop.example")], BODY).await;
    rejected.assert_error(421, "wrong_host");
    assert!(rejected.headers.get("access-control-allow-origin").is_none());
    let wrong =
        "zvgate_requests_total{caller=\"anonymous\",route=\"/v3/crm/coupon/getCustomerCoupons\",status=\"421\"}";
    assert_eq!(gateway.metric(wrong).await, 7.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_rejects_params_that_it_does_not_list() {
    let platform = Platform::unlimited().await;
    let file = format!("[[routes]]\npath = \"{READ}\"\nkind = \"cached\"\nparams = [\"customerId\", \"useStatus\"]\n");
    let gateway = TestGateway::with_file(&platform, &[], &file).await;
    let ask = async |params: Value| gateway.post(READ, &[], &json!({ "params": params }).to_string()).await;
    assert_eq!(ask(json!({ "customerId": "1", "useStatus": "0" })).await.status, 200);
    let rejected = ask(json!({ "customerId": "1", "page\"": 1 })).await;
    rejected.assert_error(400, "bad_request");
    assert!(rejected.json()["message"].as_str().unwrap().contains("page"), "{rejected:?}");
    assert_eq!(platform.requests(READ).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn admin_pages_that_are_not_public_require_the_admin_key() {
    let platform = Platform::unlimited().await;
    for listen in ["127.0.0.1:0", "0.0.0.0:0"] {
        let overrides = [("server.admin_listen", listen), ("server.admin_key_sha256", &*hash("admin"))];
        let gateway = TestGateway::start(&platform, &overrides).await;
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], gateway.admin.port()));
        let ask = async |method: Method, path: &str, key: &str| {
            let request = Request::builder().method(method).uri(path).header("host", "admin.example");
            let request =
                if key.is_empty() { request } else { request.header("authorization", format!("Bearer {key}")) };
            send(address, request.body(Full::default()).unwrap()).await
        };
        for path in ["/metrics", "/healthz", "/readyz"] {
            assert_eq!(ask(Method::GET, path, "").await.status, 200, "{path}");
        }
        for (method, path) in [
            (Method::GET, "/config"),
            (Method::GET, "/cache/customers/1"),
            (Method::DELETE, "/cache?all=true"),
            (Method::GET, "/x"),
        ] {
            for key in ["", "wrong"] {
                let rejected = ask(method.clone(), path, key).await;
                assert_eq!((rejected.status, rejected.header("www-authenticate")), (401, "Bearer realm=\"zvgate\""));
            }
            assert_eq!(ask(method, path, "admin").await.status, if path == "/x" { 404 } else { 200 }, "{path}");
        }
        let config = ask(Method::GET, "/config", "admin").await.text();
        assert!(config.contains("server.admin_key_sha256 = \"***\""), "{config}");
        assert!(!config.contains(&hash("admin")) && !config.contains(MERCHANTS[0].2));
    }
    let gateway = TestGateway::start(&platform, &[]).await;
    for (name, value, status) in
        [("host", "admin.example", 421), ("origin", "http://localhost", 403), ("x-nothing", "1", 200)]
    {
        let host = if name == "host" { value } else { "localhost" };
        let request = Request::get("/config").header("host", host);
        let request = if name == "host" { request } else { request.header(name, value) };
        assert_eq!(send(gateway.admin, request.body(Full::default()).unwrap()).await.status, status, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_with_one_tenant_has_it_as_its_default() {
    let platform = Platform::unlimited().await;
    let key = hash;
    let (both, second) = (key("both"), key("second"));
    let overrides = [
        ("callers.both.key_sha256", both.as_str()),
        ("callers.both.tenants", "*"),
        ("callers.both.routes", "*"),
        ("callers.second.key_sha256", &second),
        ("callers.second.tenants", "two"),
        ("callers.second.routes", "*"),
        ("callers.second.no_cache", "ignore"),
    ];
    let gateway = TestGateway::start(&platform, &overrides).await;
    let body = r#"{"params":{"customerId":"1"}}"#;
    for _ in 0..3 {
        for (caller, open_id) in [("second", MERCHANTS[1].0), ("both", MERCHANTS[0].0)] {
            let key = format!("Bearer {caller}");
            let reply = gateway.post(READ, &[("authorization", &key), ("x-zvgate-tenant", "")], body).await;
            reply.assert_error(400, "unknown_tenant");
            let reply = gateway.post(READ, &[("authorization", &key)], body).await;
            assert_eq!(reply.status, 200, "{reply:?}");
            if !reply.is_hit() {
                let last = platform.last().await["request"].as_str().unwrap().to_owned();
                assert!(last.contains(open_id), "{last}");
            }
        }
    }
    // It may have been configured by a library for all requests.
    for directive in ["no-cache", "no-store", "max-age=0"] {
        let headers = [("authorization", "Bearer second"), ("cache-control", directive)];
        assert!(gateway.post(READ, &headers, body).await.is_hit(), "{directive}");
        let headers = [("authorization", "Bearer both"), ("cache-control", directive)];
        assert!(!gateway.post(READ, &headers, body).await.is_hit(), "{directive}");
    }
}

/// It would not decide who the caller is, and others on the way could take the request for another host's.
#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_or_ambiguous_host_is_rejected_with_keys_too() {
    let platform = Platform::unlimited().await;
    let (key, admin_key) = (hash("key"), hash("admin"));
    let overrides = [
        ("callers.one.key_sha256", key.as_str()),
        ("callers.one.tenants", "*"),
        ("callers.one.routes", "*"),
        ("server.admin_key_sha256", &admin_key),
    ];
    let gateway = TestGateway::start(&platform, &overrides).await;
    let status = |address: std::net::SocketAddr, line: &str, hosts: &str, key: &str| {
        let request = format!(
            "{line} HTTP/1.1\r\n{hosts}Authorization: Bearer {key}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{BODY}",
            BODY.len()
        );
        let reply = tokio::task::block_in_place(|| raw(address, request.as_bytes()));
        reply.get(9..12).unwrap_or_default().to_owned()
    };
    let (read, config) = (format!("POST {READ}"), "GET /config");
    for host in ["shop.example", "shop.example:80", "[::1]:80", "1.2.3.4", "a_b.example"] {
        let hosts = format!("Host: {host}\r\n");
        assert_eq!(status(gateway.address, &read, &hosts, "key"), "200", "{host}");
        assert_eq!(status(gateway.admin, config, &hosts, "admin"), "200", "{host}");
    }
    for host in
        ["", "a b", "a/b", "a@b", "a, b", "[::1", "a:b:c", "\"a\"", "a:port", "a:-1", "a:99999999", "[zz]", "[1.2.3.4]"]
    {
        let hosts = format!("Host: {host}\r\n");
        assert_eq!(status(gateway.address, &read, &hosts, "key"), "400", "{host}");
        assert_eq!(status(gateway.admin, config, &hosts, "admin"), "400", "{host}");
    }
    for hosts in ["", "Host: a\r\nHost: a\r\n", "Host: a\r\nHost: b\r\n"] {
        assert_eq!(status(gateway.address, &read, hosts, "key"), "400", "{hosts}");
        for page in [config, "GET /metrics", "GET /healthz"] {
            assert_eq!(status(gateway.admin, page, hosts, "admin"), "400", "{page} {hosts}");
        }
    }
}
