//! Traces of sampled requests, sent by OTLP over HTTP (opentelemetry.io/docs/specs/otlp). Spans are built for sampled requests only, and
//! put into a bounded queue: no request waits for a collector, and what does not fit is dropped and counted.

mod context;
mod exporter;
mod span;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use opentelemetry_proto::tonic::trace::v1::Span;
use prometheus::IntCounter;
use tokio::sync::mpsc::{Receiver, Sender, channel};

pub use self::context::{SpanId, TraceContext};
pub use self::exporter::Exporter;
pub use self::span::{Attribute, Kind, attribute};
use crate::clock::{Boot, Clock};
use crate::settings::TraceSettings;

/// Spans that wait to be sent.
const MAX_QUEUED: usize = 4096;
/// Requests that are sampled in one second.
const MAX_SAMPLED: u64 = 50;

/// Decides which requests are traced; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Tracer(Option<Arc<Sampling>>);

#[derive(Debug)]
struct Sampling {
    share: f64,
    /// The current second, and how many were sampled in it in the lower half.
    sampled: AtomicU64,
    spans: Sender<Span>,
    dropped: IntCounter,
    clock: Clock,
}

/// The trace of one request.
#[derive(Debug)]
pub struct Trace {
    sampling: Arc<Sampling>,
    context: TraceContext,
    /// The caller's span, if it sent one.
    parent: Option<SpanId>,
    /// The span of the request.
    pub root: SpanId,
    /// The span of its fetch: the call to the platform, with all attempts.
    pub fetch: SpanId,
    /// Nanoseconds of the wall clock when the clock since boot began to count.
    epoch: u64,
}

impl Tracer {
    /// A tracer, and what sends its spans; without an endpoint nothing is traced.
    pub fn new(settings: &TraceSettings, dropped: &IntCounter, clock: &Clock) -> (Self, Option<Receiver<Span>>) {
        if settings.endpoint.is_none() {
            return (Self(None), None);
        }
        let (spans, queue) = channel(MAX_QUEUED);
        let sampling = Sampling {
            share: settings.sample.0,
            sampled: AtomicU64::new(0),
            spans,
            dropped: dropped.clone(),
            clock: clock.clone(),
        };
        (Self(Some(Arc::new(sampling))), Some(queue))
    }

    /// Begins the trace of a request if it is sampled: by its caller (`traceparent`, W3C Trace Context), or by chance.
    pub fn begin(&self, caller: Option<&TraceContext>) -> Option<Arc<Trace>> {
        let sampling = self.0.as_ref()?;
        let is_wanted = caller.is_some_and(|caller| caller.is_sampled) || fastrand::f64() < sampling.share;
        if !is_wanted || !sampling.admit() {
            return None;
        }
        let now = sampling.clock.now();
        let wall = u64::try_from(now.wall.unix_millis()).unwrap_or_default().saturating_mul(1_000_000);
        Some(Arc::new(Trace {
            sampling: Arc::clone(sampling),
            context: caller.copied().unwrap_or_else(TraceContext::random),
            parent: caller.map(|caller| caller.span),
            root: SpanId::random(),
            fetch: SpanId::random(),
            epoch: wall.saturating_sub(now.boot.nanos()),
        }))
    }
}

impl Sampling {
    /// Whether one more request may be sampled in this second.
    fn admit(&self) -> bool {
        let second = self.clock.boot().seconds() << 32;
        let admit = |sampled: u64| match sampled & !0xffff_ffff {
            current if current == second => (sampled - second < MAX_SAMPLED).then_some(sampled + 1),
            _ => Some(second + 1),
        };
        self.sampled.fetch_update(Ordering::Relaxed, Ordering::Relaxed, admit).is_ok()
    }
}

impl Trace {
    /// The trace that it belongs to.
    pub const fn context(&self) -> &TraceContext {
        &self.context
    }

    /// A span ended: its name and kind, which span it is and in which, when it began and ended, what is known of it, and the kind of
    /// error if it failed.
    pub fn span(
        &self,
        name: &str,
        kind: Kind,
        [id, parent]: [Option<SpanId>; 2],
        [began, ended]: [Boot; 2],
        attributes: impl IntoIterator<Item = Option<Attribute>>,
        error: Option<&str>,
    ) {
        let at = |moment: Boot| self.epoch.saturating_add(moment.nanos());
        let span = span::new(name, kind, &self.context, id, parent, [at(began), at(ended)], attributes, error);
        if self.sampling.spans.try_send(span).is_err() {
            self.sampling.dropped.inc();
        }
    }

    /// The same for the span of the request itself.
    pub fn request(
        &self,
        name: &str,
        times: [Boot; 2],
        attributes: impl IntoIterator<Item = Option<Attribute>>,
        error: Option<&str>,
    ) {
        self.span(name, Kind::Server, [Some(self.root), self.parent], times, attributes, error);
    }

    /// The time.
    pub fn now(&self) -> Boot {
        self.sampling.clock.boot()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;
    use std::time::Duration;

    fn tracer(share: &str) -> (Tracer, Receiver<Span>, IntCounter, Arc<crate::clock::Hands>) {
        let (clock, hands) = Clock::shifted();
        let mut settings = Settings::defaults().unwrap().fixed.traces;
        settings.endpoint = crate::settings::BaseUrl::parse("http://127.0.0.1:4318/v1/traces");
        settings.sample = crate::settings::Ratio(share.parse().unwrap());
        let dropped = IntCounter::new("dropped", "dropped").unwrap();
        let (tracer, queue) = Tracer::new(&settings, &dropped, &clock);
        (tracer, queue.unwrap(), dropped, hands)
    }

    #[test]
    fn at_most_fifty_requests_a_second_are_sampled() {
        let (tracer, _queue, _, hands) = tracer("1.0");
        for _ in 0..3 {
            let sampled = (0..1000).filter(|_| tracer.begin(None).is_some()).count();
            assert!((50..=100).contains(&sampled), "{sampled}, of one second or two");
            hands.advance(Duration::from_secs(2));
        }
    }

    #[test]
    fn a_caller_that_samples_is_followed_and_chance_decides_else() {
        let (tracer, _queue, ..) = tracer("0.0");
        let context = TraceContext::parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").unwrap();
        let trace = tracer.begin(Some(&context)).unwrap();
        assert_eq!(trace.context().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert!(
            tracer.begin(Some(&TraceContext { is_sampled: false, ..context })).is_none()
                && tracer.begin(None).is_none()
        );
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_counted() {
        let (tracer, mut queue, dropped, _) = tracer("1.0");
        let trace = tracer.begin(None).unwrap();
        let now = trace.now();
        (0..MAX_QUEUED + 3).for_each(|_| trace.request("r", [now, now], [], None));
        assert_eq!(dropped.get(), 3);
        assert_eq!(queue.try_recv().unwrap().name, "r");
    }

    #[test]
    fn without_an_endpoint_nothing_is_traced() {
        let settings = Settings::defaults().unwrap().fixed.traces;
        let dropped = IntCounter::new("dropped", "dropped").unwrap();
        let (tracer, queue) = Tracer::new(&settings, &dropped, &Clock::system());
        assert!(queue.is_none() && tracer.begin(None).is_none());
    }
}
