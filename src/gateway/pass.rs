//! Routes of kind `pass`, and cached routes while the cache is off.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::Step;
use super::fetch::Fetcher;
use super::request::Request;
use super::tasks::Tasks;
use crate::reply::{CacheStatus, GatewayError, Reply};
use crate::upstream::{AttemptError, Outcome};

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
        let (job, fetcher) = (request.pass_job(may_repeat), Arc::clone(&self.fetcher));
        let call_state = Arc::clone(&job.call_state);
        let disconnected = CancellationToken::new();
        let connected = disconnected.clone().drop_guard();
        let task = self.tasks.spawn(async move {
            match fetcher.fetch(&job, None, |_| {}, || disconnected.cancelled()).await {
                Outcome::Answered(answered) => {
                    Ok(Reply { answer: answered.answer, cache_status: CacheStatus::Bypass, effect: None })
                }
                Outcome::NotSent(not_sent) => Err(GatewayError::NotSent(not_sent)),
                Outcome::Unknown(error) => Err(GatewayError::NoAnswer(error)),
            }
        });
        let answered = Box::pin(async move {
            let _connected = connected;
            task.await.unwrap_or_else(|_| Err(GatewayError::NoAnswer(Arc::new(AttemptError::Reset(None)))))
        });
        Ok(Step::Wait(answered, call_state))
    }
}
