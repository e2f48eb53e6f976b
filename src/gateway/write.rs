//! Writes and passes: sent once, and for a write, everything known of its customers ends with its answer.

use std::sync::Arc;

use super::ask::{Allowance, Asked, Unanswered};
use super::{Arrival, Gateway};
use crate::answer::{self, Reader};
use crate::cache::Subject;
use crate::clock::Boot;
use crate::metrics::Invalidation;
use crate::reply::{Refusal, Reply, Unavailable, Way};
use crate::route::Route;
use crate::settings::{UnknownCustomer, WriteSettings};
use crate::signer::Call;
use crate::upstream::Reuse;

impl Gateway {
    /// Sends a write in a task of its own, which runs to its end even when its caller leaves.
    pub(super) async fn write(
        self: &Arc<Self>,
        arrival: &mut Arrival<'_>,
        settings: &WriteSettings,
    ) -> Result<Reply, Refusal> {
        let mut customers = super::incoming::customers(arrival.headers)?;
        customers.extend(arrival.envelope.customers(&settings.customer));
        if customers.is_empty() && settings.unknown_customer == UnknownCustomer::Refuse {
            return Err(Refusal::BadRequest("this write must name its customer, in X-Zvgate-Customer or in params"));
        }
        arrival.facts.customers.clone_from(&customers);
        let write = Write {
            route: Arc::clone(arrival.route),
            call: arrival.call(),
            reader: arrival.reader(&[]),
            settings: settings.clone(),
            customers,
        };
        let task = self.tasks.spawn(Arc::clone(self).carry_out(write));
        task.await.unwrap_or(Err(Refusal::Unavailable(Unavailable::Stopping)))
    }

    /// Sends a request that is neither kept nor ends anything.
    pub(super) async fn pass(self: &Arc<Self>, arrival: &Arrival<'_>, deadline: Boot) -> Result<Reply, Refusal> {
        let allowance = Allowance { wait: self.waits.read, answer: self.waits.attempt, deadline, reuse: Reuse::Idle };
        let (route, call, reader) = (Arc::clone(arrival.route), arrival.call(), arrival.reader(&[]));
        let gateway = Arc::clone(self);
        // In a task of its own: a call that is dropped half-way would leave its slot and its counts wrong.
        let task = self.tasks.spawn(async move { gateway.ask(&route, &call, &reader, allowance).await });
        task.await.map_or(Err(Refusal::Unavailable(Unavailable::Stopping)), |asked| told(asked, Refusal::of_read))
    }

    async fn carry_out(self: Arc<Self>, write: Write) -> Result<Reply, Refusal> {
        let allowance = Allowance {
            wait: self.waits.write,
            answer: self.waits.write_attempt,
            deadline: self.clock.boot() + self.waits.write_request,
            reuse: Reuse::Own,
        };
        let asked = self.ask(&write.route, &write.call, &write.reader, allowance).await;
        match &asked {
            Ok(asked) => self.end_of(&write, Some(&asked.answer.body)),
            Err(Unanswered::Failed(failure)) if failure.left => self.end_of(&write, None),
            Err(Unanswered::Failed(_) | Unanswered::Limited(_)) => {}
        }
        told(asked, Refusal::of_write)
    }

    /// From here on no read is answered with what was asked for before.
    fn end_of(&self, write: &Write, answer: Option<&[u8]>) {
        let tenant = &write.call.tenant;
        let mut customers = write.customers.clone();
        customers
            .extend(answer.map(|body| answer::customers(body, &write.settings.customer_answer)).unwrap_or_default());
        customers.sort_unstable();
        customers.dedup();
        for customer in &customers {
            self.cache.invalidate(&Subject::customer(tenant.index, customer));
            self.metrics.invalidations.of(Invalidation::Write).inc();
        }
        if customers.is_empty() && write.settings.unknown_customer != UnknownCustomer::Ttl {
            self.cache.invalidate_tenant(tenant.index);
            self.metrics.invalidations.of(Invalidation::UnknownCustomer).inc();
            tracing::warn!(
                tenant = tenant.name,
                route = write.route.label,
                "a write named no customer: all answers of its tenant are invalidated"
            );
        }
        if self.log.writes {
            let customers: Vec<_> = customers.iter().map(|customer| self.pseudonyms.of(customer)).collect();
            tracing::info!(
                tenant = tenant.name,
                route = write.route.label,
                customers = customers.join(","),
                answered = answer.is_some(),
                "write"
            );
        }
    }
}

/// What a write needs of the request that asked for it.
struct Write {
    route: Arc<Route>,
    call: Call,
    reader: Reader,
    settings: WriteSettings,
    customers: Vec<String>,
}

fn told(
    asked: Result<Asked, Unanswered>,
    failed: impl FnOnce(crate::upstream::Failure) -> Refusal,
) -> Result<Reply, Refusal> {
    match asked {
        Ok(asked) => Ok(Reply { answer: asked.answer, way: Way::Bypass }),
        Err(Unanswered::Limited(limited)) => Err(Refusal::UpstreamLimited(limited)),
        Err(Unanswered::Failed(failure)) => Err(failed(failure)),
    }
}
