//! Writes and passes: sent once, and for a write, everything known of its customers ends with its answer.

use std::sync::Arc;

use super::ask::{Allowance, Asked, Asking, Unanswered};
use super::incoming::MAX_CUSTOMERS;
use tokio_util::sync::CancellationToken;

use super::policy::Policy;
use super::{Arrival, Awaited, Begun, Facts, Gateway};
use crate::answer::{self, Verdict};
use crate::cache::Subject;
use crate::limit::Claimant;
use crate::metrics::Invalidation;
use crate::reply::{Refusal, Reply, Way};
use crate::route::Route;
use crate::settings::{UnknownCustomer, WriteSettings};
use crate::signer::Call;
use crate::upstream::{Failure, Reuse};

impl Gateway {
    /// Sends a write in a task of its own, which runs to its end even when its caller leaves.
    pub(super) fn write(self: &Arc<Self>, arrival: &Arrival<'_>, settings: &WriteSettings) -> Result<Begun, Refusal> {
        self.room_for_a_task(arrival.policy)?;
        let write = Write {
            policy: Arc::clone(arrival.policy),
            caller: arrival.caller.index,
            route: Arc::clone(arrival.route),
            call: arrival.call(),
            settings: settings.clone(),
            facts: arrival.facts.clone(),
        };
        Ok(Begun::Waits(Awaited::Task(self.tasks.spawn(Arc::clone(self).carry_out(write)), None)))
    }

    /// Sends a request that is neither kept nor ends anything; in a task of its own too, since a call that is dropped
    /// half-way would leave its slot and its counts wrong. It is not sent once its caller has left.
    pub(super) fn pass(self: &Arc<Self>, arrival: &Arrival<'_>, again: Again) -> Result<Begun, Refusal> {
        self.room_for_a_task(arrival.policy)?;
        let (reuse, retries) = match again {
            Again::Allowed => (Reuse::Idle, arrival.policy.settings.upstream.retries),
            // It may be lost with an idle connection, and nobody knows what it does.
            Again::Never => (Reuse::New, 0),
        };
        let allowance = Allowance {
            who: Claimant { caller: arrival.caller.index, write: false },
            wait: arrival.policy.settings.limits.max_wait,
            answer: arrival.policy.settings.upstream.attempt_timeout,
            deadline: arrival.deadline,
            reuse,
            retries,
        };
        let (route, call) = (Arc::clone(arrival.route), arrival.call());
        let (gateway, policy) = (Arc::clone(self), Arc::clone(arrival.policy));
        let left = CancellationToken::new();
        let presence = left.clone().drop_guard();
        let task = self.tasks.spawn(async move {
            let asking = Asking { policy: &policy, route: &route, call: &call, allowance };
            told(gateway.ask(&asking, None, || left.cancelled()).await, Refusal::of_read)
        });
        Ok(Begun::Waits(Awaited::Task(task, Some(presence))))
    }

    async fn carry_out(self: Arc<Self>, write: Write) -> Result<Reply, Refusal> {
        let Write { policy, route, call, .. } = &write;
        let allowance = Allowance {
            who: Claimant { caller: write.caller, write: true },
            wait: policy.settings.limits.max_wait_write,
            answer: policy.settings.upstream.write_timeout,
            deadline: self.clock.boot() + policy.settings.server.write_request_timeout,
            reuse: Reuse::Own,
            retries: 0,
        };
        let asking = Asking { policy, route, call, allowance };
        let mut end = End { gateway: &self, write: &write, told: false };
        let asked = self.ask(&asking, None, std::future::pending::<()>).await;
        let mut customers = write.facts.customers.clone();
        match &asked {
            Ok(asked) => {
                customers.extend(answer::customers(&asked.answer.body, &write.settings.customer_answer));
                self.invalidate_written(&write, &mut customers, Effect::of(asked));
            }
            Err(Unanswered::Failed(failure)) if failure.left => {
                self.invalidate_written(&write, &mut customers, Effect::Unknown);
            }
            Err(
                Unanswered::Failed(_)
                | Unanswered::Limited(_)
                | Unanswered::Rejected(_)
                | Unanswered::Late
                | Unanswered::Unwanted,
            ) => {}
        }
        end.told = true;
        let outcome = told(asked, Refusal::of_write);
        self.log_write(policy, &outcome, &write.facts, &customers);
        outcome
    }

    /// Invalidates what a write may have changed: no read that starts from here on is answered with data that was fetched before.
    fn invalidate_written(&self, write: &Write, customers: &mut Vec<String>, effect: Effect) {
        if effect == Effect::None {
            return;
        }
        let now = self.now();
        let settings = &write.policy.settings.cache;
        let settled = now.boot + if effect == Effect::Unknown { settings.settle_unknown } else { settings.settle };
        customers.sort_unstable();
        customers.dedup();
        let tenant = &write.call.tenant;
        let countable = (1..=MAX_CUSTOMERS).contains(&customers.len());
        if countable {
            for customer in customers {
                self.cache.invalidate(&Subject::customer(tenant.index, customer), settled, now);
                self.metrics.invalidations.of(Invalidation::Write).inc();
            }
        } else if !customers.is_empty()
            || (effect != Effect::Refused && write.settings.unknown_customer != UnknownCustomer::Ttl)
        {
            self.cache.invalidate_tenant(tenant.index, settled);
            self.metrics.invalidations.of(Invalidation::UnknownCustomer).inc();
            tracing::warn!(
                tenant = tenant.name,
                route = write.route.label,
                request_id = write.facts.shown_id(),
                "write without a known customer, or with too many: all answers of its tenant are invalidated"
            );
        }
    }
}

/// What a write did to the platform's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// It was executed.
    Executed,
    /// The platform refused it: what it knows of the customer may still be news, and nobody else is concerned.
    Refused,
    /// Certainly none: it was throttled.
    None,
    /// Nobody knows.
    Unknown,
}

impl Effect {
    fn of(asked: &Asked) -> Self {
        match asked.verdict {
            Verdict::Success(_) => Self::Executed,
            Verdict::Exception | Verdict::Error => Self::Refused,
            Verdict::Throttled => Self::None,
            Verdict::HttpOther if (400..500).contains(&asked.answer.status) => Self::Refused,
            Verdict::Http5xx | Verdict::HttpOther | Verdict::Garbage => Self::Unknown,
        }
    }
}

/// Whether a request may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// As any read.
    Allowed,
    /// It is forwarded once.
    Never,
}

/// What a write needs of the request that asked for it.
struct Write {
    policy: Arc<Policy>,
    caller: usize,
    route: Arc<Route>,
    call: Call,
    settings: WriteSettings,
    facts: Facts,
}

/// Ends what is known of a write's customers also where its task is lost.
struct End<'a> {
    gateway: &'a Gateway,
    write: &'a Write,
    told: bool,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        if !self.told {
            let customers = &mut self.write.facts.customers.clone();
            self.gateway.invalidate_written(self.write, customers, Effect::Unknown);
        }
    }
}

fn told(asked: Result<Asked, Unanswered>, failed: impl FnOnce(Failure) -> Refusal) -> Result<Reply, Refusal> {
    match asked {
        Ok(asked) => Ok(Reply { answer: asked.answer, way: Way::Bypass }),
        Err(Unanswered::Limited(limited)) => Err(Refusal::UpstreamLimited(limited)),
        Err(Unanswered::Rejected(rejected)) => Err(Refusal::rejected(rejected)),
        // Where it is unwanted, nobody hears it.
        Err(Unanswered::Late | Unanswered::Unwanted) => Err(Refusal::UpstreamTimeout),
        Err(Unanswered::Failed(failure)) => Err(failed(failure)),
    }
}
