//! One call upstream: its turn, its room in flight, its connection, its signature, its attempt; and for reads, once more
//! where that may help.

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::Gateway;
use super::call_log::CallLog;
use super::policy::Policy;
use crate::answer::{Answer, Verdict};
use crate::clock::{Boot, Now};
use crate::limit::{Claimant, Limited, Turn};
use crate::metrics::{Label, Outcome};
use crate::route::Route;
use crate::signer::{Call, SignedRequest};
use crate::upstream::{Attempt, Circuit, Exchanged, Failure, FailureKind, Health, Rejected, Reuse, pause_before};

/// An idle connection that upstream closes just when it is used breaks within a round trip; one that breaks later was
/// broken by what was asked.
const IDLE_CLOSE_WITHIN: Duration = Duration::from_millis(250);

/// A call that is to be made.
pub(super) struct Asking<'a> {
    pub(super) policy: &'a Policy,
    pub(super) route: &'a Route,
    pub(super) call: &'a Call,
    pub(super) allowance: Allowance,
}

/// What a call may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance {
    /// Who takes it.
    pub(super) who: Claimant,
    /// For its turn.
    pub(super) wait: Duration,
    /// For its answer, once sent.
    pub(super) answer: Duration,
    /// For everything.
    pub(super) deadline: Boot,
    /// Whether it may use an idle connection.
    pub(super) reuse: Reuse,
    /// How often it may be asked again.
    pub(super) retries: u32,
}

/// A call that was answered.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) answer: Arc<Answer>,
    pub(super) verdict: Verdict,
    /// Just before its bytes left.
    pub(super) sent: Now,
    /// When its answer was whole.
    pub(super) received: Now,
}

/// Why a call was not answered.
#[derive(Clone, Copy, Debug)]
pub(super) enum Unanswered {
    /// No turn came in time; nothing was sent.
    Limited(Limited),
    /// Upstream is not to be asked now; nothing was sent.
    Rejected(Rejected),
    /// Its time was over; nothing was sent.
    Late,
    /// Nobody waits for it any more; nothing was sent.
    Unwanted,
    /// The attempt failed.
    Failed(Failure),
}

impl Gateway {
    /// Makes a call, on a turn that it has or waits for, and again as often as it may be. `unwanted` comes to its end
    /// when nobody waits for the answer any more: then nothing is sent that has not left yet.
    pub(super) async fn ask<U: Future<Output = ()>>(
        &self,
        asking: &Asking<'_>,
        turn: Option<Turn>,
        unwanted: impl Fn() -> U,
    ) -> Result<Asked, Unanswered> {
        let circuit = self.circuit(asking);
        let mut reuse = asking.allowance.reuse;
        let mut outcome = self.ask_once(asking, reuse, turn, unwanted()).await;
        if asking.allowance.retries > 0 && !is_unsent(&outcome) {
            circuit.count_first();
        }
        let mut retries = 0;
        loop {
            if is_lost_to_idle_close(&outcome) && reuse == Reuse::Idle {
                // Upstream did not fail: it closed a connection that we used too late.
                reuse = Reuse::New;
            } else if retries < asking.allowance.retries
                && may_pass(&outcome)
                && circuit.check(&asking.policy.settings.upstream.breaker).is_ok()
                && circuit.take_retry()
            {
                tokio::select! {
                    () = tokio::time::sleep(pause_before(retries, fastrand::f64())) => {}
                    () = unwanted() => return outcome,
                }
                retries += 1;
            } else {
                return outcome;
            }
            let again = self.ask_once(asking, reuse, None, unwanted()).await;
            if is_unsent(&again) {
                return outcome;
            }
            outcome = again;
        }
    }

    /// Makes one attempt.
    async fn ask_once(
        &self,
        asking: &Asking<'_>,
        reuse: Reuse,
        turn: Option<Turn>,
        unwanted: impl Future<Output = ()>,
    ) -> Result<Asked, Unanswered> {
        let Asking { policy, route, call, allowance } = asking;
        let metrics = policy.handles.call(call.tenant.index, route.index);
        let circuit = self.circuit(asking);
        let breaker = &policy.settings.upstream.breaker;
        let (turn, attempt) = match turn {
            Some(turn) => (turn, self.begin_attempt(asking, &circuit, allowance.wait).await?),
            None => tokio::select! {
                biased;
                leave = self.leave(asking, &circuit) => leave?,
                rejected = circuit.rejects(breaker) => return Err(Unanswered::Rejected(rejected)),
                () = unwanted => return Err(Unanswered::Unwanted),
            },
        };
        let inflight = &policy.handles.tenant(call.tenant.index).inflight;
        inflight.inc();
        let started = self.clock.boot();
        let outcome = async {
            let (exchanged, sent) = self.attempt(call, allowance, reuse, &turn).await?;
            let verdict = policy.reader(route).read(exchanged.answer.status, &exchanged.answer.body);
            Ok(Asked { answer: Arc::new(exchanged.answer), verdict, sent, received: self.now() })
        }
        .await;
        let call_log = CallLog { policy, route, call, cause: cause(&outcome) };
        // An attempt that was cut off by its caller's deadline, before its own timeout, is no sign of a failure.
        let in_time = || self.clock.boot() < allowance.deadline;
        if let Some(health) = health(&outcome).filter(|_| outcome.is_ok() || in_time()) {
            attempt.record(breaker, health, &call_log);
        }
        inflight.dec();
        metrics.duration.observe(self.clock.boot().since(started).as_secs_f64());
        let kind = outcome_of(outcome.as_ref());
        metrics.attempts.of(kind).inc();
        match kind {
            Outcome::Ok | Outcome::Exception => circuit.succeeded(),
            failed if circuit.failed(failed.name()) => call_log.failures_began(failed.name()),
            _ => {}
        }
        if let Some(asked) = outcome.as_ref().ok().filter(|asked| asked.verdict == Verdict::Throttled) {
            turn.throttled(asked.sent.boot).iter().for_each(|backoff| call_log.throttled(backoff));
        }
        outcome.map_err(Unanswered::Failed)
    }

    /// Waits for leave to make an attempt: a turn, and room in flight.
    async fn leave(&self, asking: &Asking<'_>, circuit: &Circuit) -> Result<(Turn, Attempt), Unanswered> {
        let Asking { policy, route, call, allowance, .. } = asking;
        circuit.check(&policy.settings.upstream.breaker).map_err(Unanswered::Rejected)?;
        let queued = self.clock.boot();
        let time = allowance.deadline.since(queued);
        let wait = allowance.wait.min(time);
        let pace = self.paces.of(&call.tenant, route, &call.path);
        let turn = pace.turn(allowance.who, wait).await;
        let waited = self.clock.boot().since(queued);
        policy.handles.call(call.tenant.index, route.index).wait.observe(waited.as_secs_f64());
        let limited = |limited| if time < allowance.wait { Unanswered::Late } else { Unanswered::Limited(limited) };
        let turn = turn.map_err(limited)?;
        let attempt = self.begin_attempt(asking, circuit, wait.saturating_sub(waited)).await?;
        Ok((turn, attempt))
    }

    fn circuit(&self, asking: &Asking<'_>) -> Circuit {
        self.upstream.circuit(&asking.call.tenant, asking.route, &asking.call.path)
    }

    /// Waits until fewer than `upstream.max_inflight` attempts are in flight.
    async fn begin_attempt(
        &self,
        asking: &Asking<'_>,
        circuit: &Circuit,
        within: Duration,
    ) -> Result<Attempt, Unanswered> {
        let Asking { policy, route, call, allowance } = asking;
        let settings = &policy.settings.upstream;
        let call_log = CallLog { policy, route, call, cause: String::new() };
        let begun = circuit.begin(&settings.breaker, within, settings.connect_timeout + allowance.answer, &call_log);
        begun.await.map_err(Unanswered::Rejected)
    }

    /// Signs last: an idle connection that proves closed before anything left costs a signature, not the attempt.
    async fn attempt(
        &self,
        call: &Call,
        allowance: &Allowance,
        mut reuse: Reuse,
        turn: &Turn,
    ) -> Result<(Exchanged, Now), Failure> {
        loop {
            let left = allowance.deadline.since(self.clock.boot());
            let connection = tokio::time::timeout(left, self.upstream.connection(reuse));
            let connection = connection.await.unwrap_or(Err(Failure::before(FailureKind::Timeout)))?;
            let sent = self.clock.now();
            let request = SignedRequest::sign(call, &self.nonces, self.skew.signing_time(sent));
            let within = allowance.answer.min(allowance.deadline.since(sent.boot));
            let begun = OnceLock::new();
            let answered = || {
                turn.answered();
                begun.get_or_init(|| self.clock.now());
            };
            match connection.exchange(&request, within, || turn.sent(), answered).await {
                Err(failure) if failure.is_stale_connection() => reuse = Reuse::New,
                Err(failure) => {
                    let soon = self.clock.boot().since(sent.boot) < IDLE_CLOSE_WITHIN;
                    return Err(Failure { reused: failure.reused && soon, ..failure });
                }
                Ok(exchanged) => {
                    let sent = self.skew.later(sent);
                    if let Some((date, begun)) = exchanged.date.zip(begun.into_inner()) {
                        self.learn_time(date, sent.boot, begun);
                    }
                    return Ok((exchanged, sent));
                }
            }
        }
    }
}

/// Whether nothing of a call left.
const fn is_unsent(outcome: &Result<Asked, Unanswered>) -> bool {
    matches!(outcome, Err(Unanswered::Limited(_) | Unanswered::Rejected(_) | Unanswered::Late | Unanswered::Unwanted))
}

const fn is_lost_to_idle_close(outcome: &Result<Asked, Unanswered>) -> bool {
    matches!(outcome, Err(Unanswered::Failed(failure)) if failure.is_idle_close())
}

/// Whether a failure may pass by itself.
fn may_pass(outcome: &Result<Asked, Unanswered>) -> bool {
    match outcome {
        Ok(asked) => matches!(asked.verdict, Verdict::Http5xx | Verdict::Throttled),
        Err(Unanswered::Failed(failure)) => match failure.kind {
            FailureKind::Resolve
            | FailureKind::Connect
            | FailureKind::Tls
            | FailureKind::ConnectTimeout
            | FailureKind::Timeout
            | FailureKind::Reset => true,
            FailureKind::Oversized | FailureKind::Redirect | FailureKind::NotHttp => false,
        },
        Err(Unanswered::Limited(_) | Unanswered::Rejected(_) | Unanswered::Late | Unanswered::Unwanted) => false,
    }
}

/// What an attempt came to, in words.
fn cause(outcome: &Result<Asked, Failure>) -> String {
    match outcome {
        Ok(asked) => match asked.verdict {
            Verdict::Http5xx | Verdict::HttpOther => format!("HTTP status {}", asked.answer.status),
            Verdict::Throttled => "throttled".to_owned(),
            Verdict::Error => "system error".to_owned(),
            Verdict::Garbage => "the answer is not JSON".to_owned(),
            Verdict::Success(_) | Verdict::Exception => String::new(),
        },
        Err(failure) => failure.kind.to_string(),
    }
}

/// What an attempt's end says about the platform, if anything.
fn health(outcome: &Result<Asked, Failure>) -> Option<Health> {
    Some(match outcome {
        Ok(asked) if asked.verdict == Verdict::Http5xx => Health::Failed,
        Ok(_) => Health::Answered,
        Err(failure) if failure.is_idle_close() => return None,
        Err(failure) => match failure.kind {
            FailureKind::Oversized | FailureKind::Redirect => Health::Answered,
            FailureKind::Resolve | FailureKind::Connect | FailureKind::Tls | FailureKind::ConnectTimeout => {
                Health::Unreachable
            }
            FailureKind::Timeout | FailureKind::Reset | FailureKind::NotHttp => Health::Failed,
        },
    })
}

fn outcome_of(outcome: Result<&Asked, &Failure>) -> Outcome {
    match outcome {
        Ok(asked) => match asked.verdict {
            Verdict::Success(_) => Outcome::Ok,
            Verdict::Exception => Outcome::Exception,
            Verdict::Error => Outcome::Error,
            Verdict::Throttled => Outcome::Throttled,
            Verdict::Garbage => Outcome::Garbage,
            Verdict::Http5xx => Outcome::Http5xx,
            Verdict::HttpOther => Outcome::HttpOther,
        },
        Err(failure) => match failure.kind {
            FailureKind::Resolve | FailureKind::Connect | FailureKind::Tls | FailureKind::ConnectTimeout => {
                Outcome::Connect
            }
            FailureKind::Timeout => Outcome::Timeout,
            FailureKind::Reset => Outcome::Reset,
            FailureKind::Redirect => Outcome::HttpOther,
            FailureKind::Oversized | FailureKind::NotHttp => Outcome::Garbage,
        },
    }
}
