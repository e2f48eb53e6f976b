//! Traces: sampled requests are sent to a collector by OTLP over HTTP.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Response};
use http_body_util::{BodyExt, Full};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message;
use serde_json::json;
use tokio::net::TcpListener;

use crate::scripted::{Action, Scripted};
use crate::support::{Platform, READ, TestGateway, WRITE, captured_log, loopback, until};

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// A collector that keeps what it receives.
struct Collector {
    url: String,
    received: Arc<parking_lot::Mutex<Vec<(HeaderMap, ExportTraceServiceRequest)>>>,
}

impl Collector {
    async fn start(status: u16) -> Self {
        let listener = TcpListener::bind(loopback()).await.unwrap();
        let url = format!("http://{}/v1/traces", listener.local_addr().unwrap());
        let received: Arc<parking_lot::Mutex<Vec<_>>> = Arc::default();
        let keep = Arc::clone(&received);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let keep = Arc::clone(&keep);
                let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let keep = Arc::clone(&keep);
                    async move {
                        assert_eq!(request.uri().path(), "/v1/traces");
                        let (head, body) = request.into_parts();
                        let message = ExportTraceServiceRequest::decode(body.collect().await?.to_bytes()).unwrap();
                        keep.lock().push((head.headers, message));
                        Ok::<_, hyper::Error>(
                            Response::builder().status(status).body(Full::<bytes::Bytes>::default()).unwrap(),
                        )
                    }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { url, received }
    }

    fn spans(&self) -> Vec<Span> {
        let received = self.received.lock();
        let scopes = received.iter().flat_map(|(_, message)| &message.resource_spans).flat_map(|one| &one.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }

    async fn wait_for(&self, number: usize) -> Vec<Span> {
        until("spans", async || self.spans().len() >= number).await;
        self.spans()
    }
}

fn find<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no span {name}"))
}

/// An attribute as text.
fn text(span: &Span, name: &str) -> String {
    let found = span.attributes.iter().find(|attribute| attribute.key == name);
    match found.and_then(|attribute| attribute.value.clone()?.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        _ => String::new(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sampled_request_has_a_span_for_each_of_its_stages_in_its_callers_trace() {
    let (platform, collector) = (Platform::unlimited().await, Collector::start(200).await);
    let gateway = TestGateway::start(&platform, &[("traces.endpoint", &collector.url), ("traces.sample", "0")]).await;
    let body = json!({ "params": { "customerId": "383933091455959041" } }).to_string();
    let reply = gateway.post(READ, &[("traceparent", PARENT), ("x-request-id", "one")], &body).await;
    assert_eq!(reply.status, 200);
    let spans = collector.wait_for(4).await;
    assert_eq!(spans.len(), 4, "{spans:?}");
    let [request, fetch, queue, attempt] =
        [&format!("POST {READ}"), "fetch", "queue", "POST"].map(|name| find(&spans, name).clone());
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE && span.flags == 1));
    assert_eq!(hex(&request.parent_span_id), "b7ad6b7169203331");
    assert_eq!(fetch.parent_span_id, request.span_id);
    assert_eq!((&queue.parent_span_id, &attempt.parent_span_id), (&fetch.span_id, &fetch.span_id));
    assert_eq!(
        [request.kind, fetch.kind, attempt.kind],
        [SpanKind::Server, SpanKind::Internal, SpanKind::Client].map(|kind| kind as i32)
    );
    for (span, name, value) in [
        (&request, "http.request.method", "POST"),
        (&request, "http.route", READ),
        (&request, "http.response.status_code", "200"),
        (&request, "zvgate.cache", "miss"),
        (&request, "zvgate.tenant", "one"),
        (&request, "zvgate.request_id", "one"),
        (&attempt, "http.response.status_code", "200"),
        (&attempt, "url.path", READ),
        (&attempt, "server.address", "127.0.0.1"),
        (&attempt, "server.port", &platform.address.port().to_string()),
        (&fetch, "zvgate.attempts", "1"),
    ] {
        assert_eq!(text(span, name), value, "{name} of {span:?}");
    }
    for span in &spans {
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano && span.status.is_none(), "{span:?}");
        let is_within = |outer: &Span| {
            outer.start_time_unix_nano <= span.start_time_unix_nano
                && span.end_time_unix_nano <= outer.end_time_unix_nano
        };
        assert!(is_within(&request), "{span:?}");
    }
    #[expect(clippy::cast_precision_loss, reason = "seconds")]
    let began = request.start_time_unix_nano as f64 / 1e9;
    assert!((crate::support::unix_now() - began).abs() < 60.0);
    let (headers, message) = collector.received.lock()[0].clone();
    assert_eq!(headers["content-type"], "application/x-protobuf");
    let resource = message.resource_spans[0].resource.clone().unwrap();
    assert!(resource.attributes.iter().any(|attribute| attribute.key == "service.name"));
    let all = format!("{message:?}");
    assert!(
        !all.contains("383933091455959041") && !all.contains(crate::support::MERCHANTS[0].2),
        "no customer, no key"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_callers_context_is_not_sent_to_the_platform_and_failures_are_marked() {
    let platform =
        Scripted::start(|_, _| Action::Respond(crate::scripted::http_text("500 Internal Server Error", "", "{}")))
            .await;
    let collector = Collector::start(200).await;
    let overrides = [("traces.endpoint", &*collector.url), ("traces.sample", "0"), ("upstream.retries", "0")];
    let gateway = TestGateway::start(&platform, &overrides).await;
    gateway.post(READ, &[("traceparent", PARENT)], r#"{"params":{"customerId":"1"}}"#).await;
    let spans = collector.wait_for(4).await;
    assert!(!platform.requests.lock().unwrap()[0].to_ascii_lowercase().contains("traceparent"));
    let attempt = find(&spans, "POST");
    assert_eq!(
        (text(attempt, "error.type"), text(attempt, "http.response.status_code")),
        ("http_5xx".to_owned(), "500".to_owned())
    );
    assert_eq!(attempt.status.clone().unwrap().code, 2);
    assert_eq!(find(&spans, &format!("POST {READ}")).status.clone().unwrap().code, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn hits_writes_and_what_chance_samples_are_traced_and_what_callers_do_not_sample_is_not() {
    let log = captured_log();
    let (platform, collector) = (Platform::unlimited().await, Collector::start(200).await);
    let overrides = [("traces.endpoint", &*collector.url), ("traces.sample", "0"), ("log.access", "all")];
    let gateway = TestGateway::start(&platform, &overrides).await;
    let body = r#"{"params":{"customerId":"1"}}"#;
    gateway.post(READ, &[("traceparent", &PARENT.replace("-01", "-00"))], body).await;
    gateway.post(READ, &[("traceparent", PARENT)], body).await;
    gateway
        .post(WRITE, &[("traceparent", PARENT)], r#"{"params":{"bizId":"1","customerId":"1","couponsCardList":[]}}"#)
        .await;
    let spans = collector.wait_for(5).await;
    assert_eq!(spans.len(), 5, "one of the hit, four of the write");
    assert_eq!(text(find(&spans, &format!("POST {READ}")), "zvgate.cache"), "hit");
    assert_eq!(text(find(&spans, &format!("POST {WRITE}")), "zvgate.cache"), "bypass");
    let all = TestGateway::start(&platform, &[("traces.endpoint", &collector.url), ("traces.sample", "1")]).await;
    all.post(READ, &[], body).await;
    let spans = collector.wait_for(9).await;
    let own = spans.iter().map(|span| hex(&span.trace_id)).find(|trace| trace != TRACE).unwrap();
    assert!(spans.iter().any(|span| hex(&span.trace_id) == own && span.parent_span_id.is_empty()));
    let logged: Vec<_> = log.lines().into_iter().filter(|line| line["message"] == "request").collect();
    assert_eq!(logged[1]["trace_id"], TRACE, "{logged:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_fails_delays_no_request_and_its_spans_are_counted() {
    let log = captured_log();
    let (platform, collector) = (Platform::unlimited().await, Collector::start(503).await);
    let gateway = TestGateway::start(&platform, &[("traces.endpoint", &collector.url), ("traces.sample", "0")]).await;
    gateway.post(READ, &[("traceparent", PARENT)], r#"{"params":{"customerId":"1"}}"#).await;
    until("dropped", async || gateway.metric("zvgate_spans_dropped_total").await >= 4.0).await;
    let failed = log.lines().into_iter().find(|line| line["message"] == "trace export failed; spans are dropped");
    assert_eq!(failed.unwrap()["error"], "HTTP status 503");
    // It accepts connections and never answers.
    let hung = TcpListener::bind(loopback()).await.unwrap();
    let url = format!("http://{}/v1/traces", hung.local_addr().unwrap());
    let gateway = TestGateway::start(&platform, &[("traces.endpoint", &url), ("traces.sample", "0")]).await;
    for number in 0..5000 {
        let body = json!({ "params": { "customerId": "1", "number": number % 2 } }).to_string();
        gateway.post(READ, &[("traceparent", PARENT)], &body).await;
        if number % 50 == 49 {
            gateway.clock.advance(Duration::from_secs(1));
        }
        if gateway.metric("zvgate_spans_dropped_total").await > 0.0 {
            break;
        }
    }
    assert!(gateway.metric("zvgate_spans_dropped_total").await > 0.0, "the queue is bounded");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_in_a_path_is_not_in_its_spans() {
    let (platform, collector) = (Platform::unlimited().await, Collector::start(200).await);
    let overrides = [("traces.endpoint", &*collector.url), ("traces.sample", "1")];
    let file = "[[routes]]\npath = \"/v3/member/**\"\nkind = \"pass\"\n";
    let gateway = TestGateway::with_file(&platform, &overrides, file).await;
    gateway.post("/v3/member/383933091455959041/x", &[], r#"{"params":{}}"#).await;
    let spans = collector.wait_for(4).await;
    assert!(!format!("{spans:?}").contains("383933091455959041"), "{spans:?}");
    assert_eq!(text(find(&spans, "POST"), "url.path"), "/v3/member/\u{2026}/x");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_queued_is_sent_before_the_end() {
    let (platform, collector) = (Platform::unlimited().await, Collector::start(200).await);
    let gateway = TestGateway::start(&platform, &[("traces.endpoint", &collector.url), ("traces.sample", "0")]).await;
    gateway.post(READ, &[("traceparent", PARENT)], r#"{"params":{"customerId":"1"}}"#).await;
    gateway.stop.cancel();
    gateway.done.await.unwrap().unwrap();
    assert_eq!(collector.spans().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_collector_gets_its_header_fields() {
    let (platform, collector) = (Platform::unlimited().await, Collector::start(200).await);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "authorization: Bearer secret-of-the-collector\nx-scope: one\n").unwrap();
    let path = file.path().display().to_string();
    let overrides = [("traces.endpoint", &*collector.url), ("traces.sample", "1"), ("traces.headers_file", &path)];
    let gateway = TestGateway::start(&platform, &overrides).await;
    gateway.read("1").await;
    collector.wait_for(4).await;
    let (headers, _) = collector.received.lock()[0].clone();
    assert_eq!(headers["authorization"], "Bearer secret-of-the-collector");
    assert_eq!(headers["x-scope"], "one");
    assert!(!gateway.page("/config").await.text().contains("secret-of-the-collector"));
}
