//! Spans as OTLP has them, with attributes after OpenTelemetry's semantic conventions.

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{Span, Status};

use super::context::{SpanId, TraceContext};

/// What is known of a span.
pub type Attribute = KeyValue;

/// What a span is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A request of a caller.
    Server,
    /// A request to the platform or to Redis.
    Client,
    /// Something within the gateway.
    Internal,
}

/// The value of an attribute.
pub trait AttributeValue {
    /// As OTLP has it.
    fn value(self) -> Value;
}

impl AttributeValue for &str {
    fn value(self) -> Value {
        Value::StringValue(self.to_owned())
    }
}

impl AttributeValue for String {
    fn value(self) -> Value {
        Value::StringValue(self)
    }
}

impl AttributeValue for u32 {
    fn value(self) -> Value {
        Value::IntValue(self.into())
    }
}

impl AttributeValue for u16 {
    fn value(self) -> Value {
        Value::IntValue(self.into())
    }
}

/// An attribute.
pub fn attribute(name: &str, value: impl AttributeValue) -> Option<Attribute> {
    let value = Some(AnyValue { value: Some(value.value()) });
    Some(KeyValue { key: name.to_owned(), value, ..KeyValue::default() })
}

#[expect(clippy::too_many_arguments, reason = "they are the parts of a span")]
pub(super) fn new(
    name: &str,
    kind: Kind,
    context: &TraceContext,
    id: Option<SpanId>,
    parent: Option<SpanId>,
    [began, ended]: [u64; 2],
    attributes: impl IntoIterator<Item = Option<Attribute>>,
    error: Option<&str>,
) -> Span {
    let kind = match kind {
        Kind::Server => SpanKind::Server,
        Kind::Client => SpanKind::Client,
        Kind::Internal => SpanKind::Internal,
    };
    let mut attributes: Vec<Attribute> = attributes.into_iter().flatten().collect();
    attributes.extend(error.and_then(|error| attribute("error.type", error)));
    Span {
        trace_id: context.trace.to_vec(),
        span_id: id.unwrap_or_else(SpanId::random).0.to_vec(),
        parent_span_id: parent.map(|parent| parent.0.to_vec()).unwrap_or_default(),
        name: name.to_owned(),
        kind: kind.into(),
        start_time_unix_nano: began,
        end_time_unix_nano: ended,
        attributes,
        status: error.map(|_| Status { code: StatusCode::Error.into(), message: String::new() }),
        // Sampled (W3C Trace Context, section 3.2.2.5).
        flags: 1,
        ..Span::default()
    }
}
