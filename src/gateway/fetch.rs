//! One call to the platform: its slot, its connection, its signature, its attempt; and for reads, retries.

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::attempt_result::result_of;
use super::call_log::{CallLog, count_rejection, may_retry};
use super::request::{Job, Spare};
use super::spending::Spending;
use super::time::Time;
use crate::answer::{Answer, Verdict};
use crate::budget::Day;
use crate::cluster::Cluster;
use crate::limit::{NoPermit, Paces, Permit, REPLY_WITHIN, WaitFor};
use crate::metrics::{AttemptResult, InFlight, Label};
use crate::signer::{Nonces, SignedRequest};
use crate::upstream::{
    Answered, Attempt, AttemptError, Circuit, ExchangeError, Exchanged, NotSent, Outcome, Rejected, Reuse, Upstream,
    pause_before_retry,
};

/// An idle connection that the platform closes just when it is used breaks within a round trip; one that breaks later was
/// broken by the request.
const IDLE_CLOSE_WITHIN: Duration = Duration::from_secs(1);

const SERVICE_UNAVAILABLE: u16 = 503;
const TOO_MANY_REQUESTS: u16 = 429;
const REQUEST_TIMEOUT: u16 = 408;

/// Makes calls to the platform.
pub(super) struct Fetcher {
    pub(super) time: Arc<Time>,
    pub(super) upstream: Arc<Upstream>,
    pub(super) paces: Arc<Paces>,
    pub(super) nonces: Nonces,
    pub(super) cluster: Cluster,
    pub(super) spending: Arc<Spending>,
}

/// How far a call has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// A request is about to be sent.
    Begun,
    /// Bytes of it were sent.
    Sent,
}

/// Why there was no exchange, or none that ended well.
enum Stopped {
    /// Its slot had come too early, and there was no other.
    NotSent(NotSent),
    /// It failed.
    Failed(ExchangeError),
}

impl From<NotSent> for Stopped {
    fn from(not_sent: NotSent) -> Self {
        Self::NotSent(not_sent)
    }
}

impl From<ExchangeError> for Stopped {
    fn from(failed: ExchangeError) -> Self {
        Self::Failed(failed)
    }
}

/// An attempt that ended.
struct Attempted {
    outcome: Outcome,
    /// Whether an idle connection was closed just when it was used, which says nothing about the platform.
    is_idle_close: bool,
}

impl From<NotSent> for Attempted {
    fn from(not_sent: NotSent) -> Self {
        Self { outcome: Outcome::NotSent(not_sent), is_idle_close: false }
    }
}

impl Fetcher {
    /// Makes a call and retries it up to `job.retries` times. `on_progress` is called before each request and each time that bytes were
    /// sent. Once `cancelled` completes nothing more is sent, except for a first attempt with what is to `spare`.
    pub(super) async fn fetch<C: Future<Output = ()>>(
        &self,
        job: &Job,
        spare: Option<Spare>,
        on_progress: impl Fn(Progress) + Sync,
        cancelled: impl Fn() -> C,
    ) -> Outcome {
        let began = job.traced_at();
        let outcome = self.attempts(job, spare, on_progress, cancelled).await;
        job.fetch_span(began, &outcome);
        outcome
    }

    async fn attempts<C: Future<Output = ()>>(
        &self,
        job: &Job,
        spare: Option<Spare>,
        on_progress: impl Fn(Progress) + Sync,
        cancelled: impl Fn() -> C,
    ) -> Outcome {
        let breaker = &job.policy.settings.attempts.breaker;
        let circuit = self.circuit(job);
        let mut reuse = job.reuse;
        let mut attempted = self.attempt(job, &circuit, reuse, spare, &on_progress, cancelled()).await;
        if job.retries > 0 && attempted.outcome.was_tried() {
            circuit.count_first();
        }
        let mut retries = 0;
        loop {
            let outcome = attempted.outcome;
            if attempted.is_idle_close && reuse == Reuse::Idle {
                // The platform did not fail: it closed a connection that was used too late.
                reuse = Reuse::New;
            } else if retries < job.retries
                && outcome.may_pass()
                && circuit.check(breaker).is_ok()
                && may_retry(job, &circuit)
            {
                tokio::select! {
                    () = tokio::time::sleep(pause_before_retry(retries, fastrand::f64())) => {}
                    () = cancelled() => return outcome,
                }
                retries += 1;
                job.metrics().retries.inc();
            } else {
                return outcome;
            }
            attempted = self.attempt(job, &circuit, reuse, None, &on_progress, cancelled()).await;
            // Whatever became of the retry, the call was sent if an earlier attempt was.
            if !attempted.outcome.was_tried() || (outcome.was_sent() && !attempted.outcome.was_sent()) {
                return outcome;
            }
        }
    }

    /// What a call needs that nobody waits for, if it is to spare.
    pub(super) fn spare(&self, job: &Job) -> Option<Spare> {
        let pace = self.paces.of(&job.call.tenant, &job.route, &job.call.path);
        let permit = pace.try_acquire(self.circuit(job).inflight()).map(Spare::Permit);
        permit.or_else(|| pace.may_have_spare().then_some(Spare::Shared))
    }

    fn circuit(&self, job: &Job) -> Circuit {
        self.upstream.circuit(&job.call.tenant, &job.route, &job.call.path)
    }

    /// Makes one attempt.
    async fn attempt(
        &self,
        job: &Job,
        circuit: &Circuit,
        reuse: Reuse,
        spare: Option<Spare>,
        on_progress: &(impl Fn(Progress) + Sync),
        cancelled: impl Future<Output = ()>,
    ) -> Attempted {
        let breaker = &job.policy.settings.attempts.breaker;
        let begun = match spare {
            Some(Spare::Permit(permit)) => self.begin(job, circuit).map(|attempt| (permit, attempt)),
            Some(Spare::Shared) => self.acquire(job, circuit, REPLY_WITHIN).await,
            None => tokio::select! {
                biased;
                acquired = self.acquire(job, circuit, job.max_wait) => {
                    acquired.inspect_err(|not_sent| count_rejection(job, circuit, not_sent))
                }
                rejected = circuit.rejects(breaker) => Err(NotSent::Rejected(rejected)),
                () = cancelled => Err(NotSent::Cancelled),
            },
        };
        let (mut permit, attempt) = match begun {
            Ok((permit, attempt)) => (Some(permit), attempt),
            Err(not_sent) => return not_sent.into(),
        };
        let (metrics, tenant) = (job.metrics(), job.policy.handles.tenant(job.call.tenant.index));
        let in_flight = InFlight::new(&tenant.inflight);
        job.call_state.attempt();
        job.call_state.upstream.start(self.time.boot());
        let (began, sent_on) = (job.traced_at(), self.spending.today(&job.policy));
        let exchanged = self.exchange(job, circuit, reuse, &mut permit, on_progress).await;
        drop(in_flight);
        metrics.duration.observe(job.call_state.upstream.stop(self.time.boot()).as_secs_f64());
        let exchanged = match exchanged {
            Ok(answered) => Ok(answered),
            Err(Stopped::Failed(failed)) => Err(failed),
            Err(Stopped::NotSent(not_sent)) => return not_sent.into(),
        };
        let is_idle_close = exchanged.as_ref().is_err_and(ExchangeError::is_idle_close);
        let outcome = match exchanged {
            // Only its bytes are passed on, and nobody knows what they mean.
            Ok(answered) if answered.verdict == Verdict::Garbage && job.needs_json() => {
                let Answer { status, .. } = answered.answer;
                let is_compressed = answered.answer.is_compressed();
                Outcome::Unknown(Arc::new(match is_compressed {
                    true => AttemptError::Compressed(status),
                    false => AttemptError::NotJson(status),
                }))
            }
            Ok(answered) => Outcome::Answered(answered),
            Err(failed) => Outcome::failed(failed.error, failed.sent),
        };
        job.attempt_span(began, &outcome);
        let attempted = Attempted { outcome, is_idle_close };
        self.record(job, circuit, attempt, permit.as_ref(), &attempted, sent_on);
        attempted
    }

    /// Records how an attempt ended: in the breaker, the rate limit, metrics and the log.
    fn record(
        &self,
        job: &Job,
        circuit: &Circuit,
        attempt: Attempt,
        permit: Option<&Permit>,
        attempted: &Attempted,
        sent_on: Day,
    ) {
        let Attempted { outcome, is_idle_close } = attempted;
        let call_log = CallLog::new(job, outcome);
        // An attempt that was cut off by the job's deadline, before its own timeout, is no sign of a failure.
        let is_answered = matches!(outcome, Outcome::Answered(_));
        let says_something = !is_idle_close && (is_answered || self.time.boot() < job.deadline);
        if let Some(health) = outcome.health().filter(|_| says_something) {
            attempt.record(&job.policy.settings.attempts.breaker, health, &call_log);
        }
        let result = result_of(outcome);
        job.metrics().attempts.of(result).inc();
        if outcome.was_sent() && !is_idle_close {
            self.spending.made(job, sent_on, result);
        }
        match result {
            AttemptResult::Ok | AttemptResult::Exception => {
                if circuit.succeeded() {
                    call_log.key_accepted();
                }
            }
            // It says nothing about the platform.
            _ if *is_idle_close => {}
            _ => {
                let reason = outcome.error().map_or_else(|| result.name(), |error| error.failure().name());
                if circuit.failed(reason, call_log.cause(), outcome.health()) {
                    call_log.failures_began(result.name(), reason);
                }
            }
        }
        let (Outcome::Answered(answered), Some(permit)) = (outcome, permit) else { return };
        // HTTP 429 is no answer to a signature.
        if result == AttemptResult::Throttled && answered.answer.status != TOO_MANY_REQUESTS && circuit.throttled() {
            call_log.key_suspect(&answered.answer);
        }
        if result == AttemptResult::Throttled {
            permit.throttled(answered.sent.boot).iter().for_each(|throttled| call_log.throttled(throttled));
        }
        if result == AttemptResult::Throttled || answered.answer.status == SERVICE_UNAVAILABLE {
            let pause = answered.answer.retry_delay(answered.received.wall);
            pause.filter(|pause| permit.pause(*pause)).iter().for_each(|pause| call_log.asked_to_pause(*pause));
        }
    }

    /// Waits for a permit, and begins an attempt.
    async fn acquire(&self, job: &Job, circuit: &Circuit, max_wait: Duration) -> Result<(Permit, Attempt), NotSent> {
        circuit.check(&job.policy.settings.attempts.breaker).map_err(NotSent::Rejected)?;
        let permit = self.permit(job, circuit, max_wait).await?;
        let attempt = self.begin(job, circuit)?;
        Ok((permit, attempt))
    }

    /// Waits for a slot, and until fewer than `upstream.max_inflight` attempts are in flight.
    async fn permit(&self, job: &Job, circuit: &Circuit, max_wait: Duration) -> Result<Permit, NotSent> {
        let (queued, traced) = (self.time.boot(), job.traced_at());
        job.call_state.queue.start(queued);
        let remaining = job.deadline.since(queued);
        let pace = self.paces.of(&job.call.tenant, &job.route, &job.call.path);
        let wait = WaitFor { key: job.queue_key, max_wait, deadline: job.deadline, call: &job.call_state };
        let permit = pace.acquire(circuit.inflight(), wait).await;
        let waited = job.call_state.queue.stop(self.time.boot());
        job.metrics().wait.observe(waited.as_secs_f64());
        let is_late = remaining < max_wait;
        let permit = permit.map_err(|no_permit| match no_permit {
            // Unless the next slot is further off than anybody waits for one.
            NoPermit::Limited(limited) if is_late && limited.retry_after <= max_wait => NotSent::DeadlineExceeded,
            NoPermit::NoCapacity if is_late => NotSent::DeadlineExceeded,
            NoPermit::Limited(limited) => NotSent::Limited { limited, is_key_suspect: circuit.is_key_suspect() },
            NoPermit::NoCapacity => NotSent::Rejected(Rejected::TooManyInFlight),
        });
        job.queue_span(traced, permit.as_ref().err().map(NotSent::name));
        permit
    }

    fn begin(&self, job: &Job, circuit: &Circuit) -> Result<Attempt, NotSent> {
        let settings = &job.policy.settings.attempts;
        let longest = self.upstream.connect_timeout() + job.attempt_timeout;
        circuit.begin(&settings.breaker, longest, &CallLog::begun(job)).map_err(NotSent::Rejected)
    }

    /// Signs as late as possible, and again if an idle connection proves closed before anything was sent.
    async fn exchange(
        &self,
        job: &Job,
        circuit: &Circuit,
        mut reuse: Reuse,
        own_permit: &mut Option<Permit>,
        on_progress: &(impl Fn(Progress) + Sync),
    ) -> Result<Answered, Stopped> {
        loop {
            let remaining = job.deadline.since(self.time.boot());
            let connection = tokio::time::timeout(remaining, self.upstream.connection(reuse)).await;
            let connection = connection.unwrap_or_else(|_| Err(ExchangeError::before(AttemptError::Timeout)))?;
            // If connecting took so long that its slot may count for others by now, it needs another one.
            let timely = own_permit.take().filter(Permit::is_timely);
            let permit = &*own_permit.insert(match timely {
                Some(permit) => permit,
                None => {
                    let permit = self.permit(job, circuit, job.max_wait).await;
                    permit.inspect_err(|not_sent| count_rejection(job, circuit, not_sent))?
                }
            });
            // It may have waited for long.
            if job.is_write() && !self.cluster.admits_writes() {
                return Err(NotSent::Unfenced.into());
            }
            on_progress(Progress::Begun);
            let sent = self.time.clock.now();
            let request = SignedRequest::sign(&job.call, &self.nonces, self.time.skew.signing_time(sent));
            let within = job.attempt_timeout.min(job.deadline.since(sent.boot));
            let answered_at = OnceLock::new();
            let bytes_sent = || {
                permit.sent();
                on_progress(Progress::Sent);
            };
            let answer_began = || {
                permit.answered();
                answered_at.get_or_init(|| self.time.clock.now());
            };
            let reused = connection.is_reused();
            match connection.exchange(&request, within, bytes_sent, answer_began).await {
                Err(failed) if failed.is_idle_close() && !failed.sent => reuse = Reuse::New,
                Err(failed) => {
                    let is_soon = self.time.boot().since(sent.boot) < IDLE_CLOSE_WITHIN;
                    return Err(ExchangeError { reused: failed.reused && is_soon, ..failed }.into());
                }
                // What a server says to an idle connection before it closes it (RFC 9110, section 15.5.9), just when it is used.
                Ok(Exchanged { answer, .. }) if reused && answer.status == REQUEST_TIMEOUT => {
                    return Err(ExchangeError {
                        error: AttemptError::Reset(None),
                        sent: true,
                        reused: true,
                        answering: false,
                    }
                    .into());
                }
                Ok(Exchanged { answer, date }) => {
                    let earliest = self.time.earliest(sent, date, answered_at.get());
                    let sent = self.time.skew.later(sent);
                    if let Some((date, answered)) = date.zip(answered_at.into_inner())
                        && self.time.learn(date, sent.boot, answered)
                    {
                        let tenants = job.policy.tenants.all();
                        tenants.iter().for_each(|tenant| self.paces.credentials_changed(tenant));
                    }
                    let verdict = job.policy.reader(job.route.index).read(&answer);
                    return Ok(Answered { answer, verdict, sent, earliest, received: self.time.now() });
                }
            }
        }
    }
}
