//! Routes of kind `pass`, and cached routes while the cache is off.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::Step;
use super::fetch::Fetcher;
use super::request::{Job, Request};
use super::tasks::Tasks;
use crate::cache::Deadline;
use crate::reply::{CacheStatus, GatewayError, Reply};
use crate::upstream::{Answered, AttemptError, Outcome};

/// Forwards requests.
pub(super) struct Passes {
    pub(super) fetcher: Arc<Fetcher>,
    pub(super) tasks: Tasks,
}

impl Passes {
    /// Forwards a request, in a task of its own: a call that was dropped half-way would leave its slot and its counts wrong. It is
    /// not sent any more once its caller has disconnected.
    pub(super) fn pass(&self, request: &Request<'_>, may_repeat: bool) -> Result<Step, GatewayError> {
        self.tasks.check_capacity()?;
        Ok(self.forward(request.pass_job(may_repeat), |_, result| {
            let answer = result?.answer;
            Ok(Reply::new(answer.into(), CacheStatus::Bypass, None, Deadline::NEVER))
        }))
    }

    /// The same for a job; `reply` makes the reply of what came of it.
    pub(super) fn forward(
        &self,
        job: Job,
        reply: impl FnOnce(&Job, Result<Answered, GatewayError>) -> Result<Reply, GatewayError> + Send + 'static,
    ) -> Step {
        let (call_state, fetcher) = (Arc::clone(&job.call_state), Arc::clone(&self.fetcher));
        let disconnected = CancellationToken::new();
        let connected = disconnected.clone().drop_guard();
        let counter = self.tasks.panic_counter();
        let task = self.tasks.spawn(async move {
            let _counter = counter;
            let result = match fetcher.fetch(&job, None, |_| {}, || disconnected.cancelled()).await {
                Outcome::Answered(answered) => Ok(answered),
                Outcome::NotSent(not_sent) => Err(GatewayError::NotSent(not_sent)),
                Outcome::Unknown(error) => Err(GatewayError::NoAnswer(error)),
            };
            reply(&job, result)
        });
        let answered = Box::pin(async move {
            let _connected = connected;
            task.await.unwrap_or_else(|_| Err(GatewayError::NoAnswer(Arc::new(AttemptError::Reset(None)))))
        });
        Step::Wait(answered, call_state)
    }
}
