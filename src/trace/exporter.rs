//! Sends spans to a collector: OTLP over HTTP/1.1, in protobuf. A batch that fails is not sent again: what can be lost without harm must not
//! collect.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prometheus::IntCounter;
use prost::Message;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::span::attribute;
use crate::settings::BaseUrl;

/// Spans that are sent together.
const MAX_BATCH: usize = 512;
/// How long spans are collected before they are sent.
const COLLECT_FOR: Duration = Duration::from_secs(1);
/// How long sending a batch may take.
const SEND_WITHIN: Duration = Duration::from_secs(10);
/// Longest response that is read, in bytes.
const MAX_RESPONSE: usize = 64 << 10;
const PROTOBUF: HeaderValue = HeaderValue::from_static("application/x-protobuf");
const AGENT: HeaderValue = HeaderValue::from_static(concat!("zvgate/", env!("CARGO_PKG_VERSION")));

type Sender = SendRequest<Full<Bytes>>;

/// Sends spans.
pub struct Exporter {
    /// The collector's URL, path included.
    pub endpoint: BaseUrl,
    /// TLS towards it; `None`: plain text.
    pub tls: Option<Arc<ClientConfig>>,
    /// Header fields that it wants, such as a key.
    pub headers: HeaderMap,
    /// Counts what is dropped.
    pub dropped: IntCounter,
    /// What distinguishes this process from others of the service.
    pub instance: String,
}

impl Exporter {
    /// Sends what comes out of the queue, until it is to stop and the queue is empty.
    pub async fn run(self, mut queue: Receiver<Span>, stop: CancellationToken) {
        let (mut connection, mut is_failing, mut lost) = (None, false, 0);
        loop {
            let batch = collect(&mut queue, &stop).await;
            if batch.is_empty() {
                return;
            }
            let number = batch.len() as u64;
            let sent = timeout(SEND_WITHIN, self.send(batch, &mut connection)).await;
            match sent.unwrap_or_else(|_| Err("no answer in time".to_owned())) {
                Ok(()) if std::mem::take(&mut is_failing) => {
                    tracing::info!(spans = std::mem::take(&mut lost), "trace export recovered");
                }
                Ok(()) => {}
                Err(error) => {
                    connection = None;
                    self.dropped.inc_by(number);
                    lost += number;
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::warn!(error, "trace export failed; spans are dropped");
                    }
                }
            }
        }
    }

    /// Sends one batch on the connection, or on a new one.
    async fn send(&self, spans: Vec<Span>, connection: &mut Option<Sender>) -> Result<(), String> {
        let reusable = match connection {
            Some(sender) => sender.ready().await.is_ok(),
            None => false,
        };
        if !reusable {
            *connection = Some(self.connect().await?);
        }
        let sender = connection.as_mut().ok_or("no connection")?;
        let response = sender.send_request(self.request(spans)?).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let body =
            Limited::new(response.into_body(), MAX_RESPONSE).collect().await.map_err(|error| error.to_string())?;
        drop(body);
        if status.is_success() { Ok(()) } else { Err(format!("HTTP status {}", status.as_u16())) }
    }

    fn request(&self, spans: Vec<Span>) -> Result<Request<Full<Bytes>>, String> {
        let resource = [
            attribute("service.name", "zvgate"),
            attribute("service.version", env!("CARGO_PKG_VERSION")),
            attribute("service.instance.id", self.instance.as_str()),
        ];
        let scope = InstrumentationScope { name: "zvgate".to_owned(), ..InstrumentationScope::default() };
        let message = ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(Resource {
                    attributes: resource.into_iter().flatten().collect(),
                    ..Resource::default()
                }),
                scope_spans: vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }],
                ..ResourceSpans::default()
            }],
        };
        let mut request = Request::new(Full::new(Bytes::from(message.encode_to_vec())));
        *request.method_mut() = Method::POST;
        let path = if self.endpoint.path().is_empty() { "/" } else { self.endpoint.path() };
        *request.uri_mut() = path.parse().map_err(|_| "the path is invalid")?;
        *request.headers_mut() = self.headers.clone();
        let host = HeaderValue::from_str(self.endpoint.authority()).map_err(|_| "the host is invalid")?;
        request.headers_mut().extend(
            [(HOST, host), (CONTENT_TYPE, PROTOBUF), (USER_AGENT, AGENT)].map(|(name, value)| (Some(name), value)),
        );
        Ok(request)
    }

    async fn connect(&self) -> Result<Sender, String> {
        let (host, port) = (self.endpoint.host(), self.endpoint.port());
        let tcp = TcpStream::connect((host, port)).await.map_err(|error| error.to_string())?;
        let Some(tls) = &self.tls else { return driven(tcp).await };
        let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
        let stream = TlsConnector::from(Arc::clone(tls)).connect(name, tcp).await.map_err(|error| error.to_string())?;
        driven(stream).await
    }
}

/// The next spans to send; none once the queue is closed and empty.
async fn collect(queue: &mut Receiver<Span>, stop: &CancellationToken) -> Vec<Span> {
    let mut batch = Vec::new();
    tokio::select! {
        _ = queue.recv_many(&mut batch, MAX_BATCH) => {}
        () = stop.cancelled() => {
            queue.close();
            queue.recv_many(&mut batch, MAX_BATCH).await;
            return batch;
        }
    }
    // More may follow soon.
    let mut collected = pin!(tokio::time::sleep(COLLECT_FOR));
    while batch.len() < MAX_BATCH {
        let room = MAX_BATCH - batch.len();
        tokio::select! {
            more = queue.recv_many(&mut batch, room) => if more == 0 { break },
            () = &mut collected => break,
            () = stop.cancelled() => break,
        }
    }
    batch
}

/// HTTP on a stream, which a task of its own drives until it is closed.
async fn driven(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
) -> Result<Sender, String> {
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    // Its error also reaches the request in progress.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}
