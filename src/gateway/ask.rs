//! One call upstream: its turn, its connection, its signature, its attempt.

use std::sync::Arc;
use std::time::Duration;

use super::Gateway;
use crate::answer::{Answer, Reader, Verdict};
use crate::clock::{Boot, Now};
use crate::limit::{Limited, Turn};
use crate::metrics::Outcome;
use crate::route::Route;
use crate::signer::{Call, SignedRequest};
use crate::upstream::{Failure, FailureKind, Reuse};

/// What a call may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance {
    /// For its turn.
    pub(super) wait: Duration,
    /// For its answer, once sent.
    pub(super) answer: Duration,
    /// For everything.
    pub(super) deadline: Boot,
    /// Whether it may use an idle connection.
    pub(super) reuse: Reuse,
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
    /// All of `upstream.max_inflight` were busy for as long; nothing was sent.
    Crowded,
    /// The attempt failed.
    Failed(Failure),
}

impl Gateway {
    /// Makes one call, on a turn that it has or waits for.
    pub(super) async fn ask(
        &self,
        route: &Route,
        call: &Call,
        reader: &Reader,
        allowance: Allowance,
        turn: Option<Turn>,
    ) -> Result<Asked, Unanswered> {
        let metrics = self.metrics.call(call.tenant.index, route.index);
        let queued = self.clock.boot();
        let wait = allowance.wait.min(allowance.deadline.since(queued));
        let turn = match turn {
            Some(turn) => turn,
            None => {
                let turn = self.paces.of(&call.tenant, route, &call.path).turn(wait).await;
                metrics.wait.observe(self.clock.boot().since(queued).as_secs_f64());
                turn.map_err(Unanswered::Limited)?
            }
        };

        let left = wait.saturating_sub(self.clock.boot().since(queued));
        let permit = tokio::time::timeout(left, self.upstream.permit(&call.tenant)).await;
        let _permit = permit.map_err(|_| Unanswered::Crowded)?;
        let inflight = self.metrics.inflight(call.tenant.index);
        inflight.inc();
        let started = self.clock.boot();
        let outcome = self.attempt(call, allowance, &turn).await;
        let received = self.clock.now();
        inflight.dec();
        metrics.duration.observe(received.boot.since(started).as_secs_f64());

        let outcome = outcome.map(|(answer, sent)| {
            let verdict = reader.read(answer.status, &answer.body);
            Asked { answer: Arc::new(answer), verdict, sent, received }
        });
        metrics.attempts.of(outcome_of(outcome.as_ref())).inc();
        outcome.map_err(Unanswered::Failed)
    }

    /// Signs last: an idle connection that proves closed before anything left costs a signature, not the call.
    async fn attempt(&self, call: &Call, allowance: Allowance, turn: &Turn) -> Result<(Answer, Now), Failure> {
        let mut reuse = allowance.reuse;
        loop {
            let left = allowance.deadline.since(self.clock.boot());
            let connection = tokio::time::timeout(left, self.upstream.connection(reuse));
            let late = Failure { kind: FailureKind::ConnectTimeout, left: false, reused: false };
            let connection = connection.await.map_err(|_| late)??;
            let sent = self.clock.now();
            let request = SignedRequest::sign(call, &self.nonces, sent.wall);
            let within = allowance.answer.min(allowance.deadline.since(sent.boot));
            match connection.exchange(&request, within, || turn.sent(), || turn.answered()).await {
                Err(failure) if failure.is_stale_connection() => reuse = Reuse::New,
                outcome => return outcome.map(|answer| (answer, sent)),
            }
        }
    }
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
