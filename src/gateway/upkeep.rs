//! What callers and operators do to the cache by hand: invalidate, purge, look.

use std::sync::Arc;
use std::time::Duration;

use super::fields::Fields;
use super::incoming::MAX_CUSTOMERS;
use super::policy::Policy;
use super::{Facts, Gateway};
use crate::answer::{Answer, ContentType};
use crate::cache::{Life, Subject};
use crate::caller::Caller;
use crate::envelope::{MAX_DEPTH, check_names, push_text};
use crate::json::Node;
use crate::metrics::Invalidation;
use crate::reply::{Denied, Refusal, Reply, Way};
use crate::tenant::Tenant;

/// What is kept for a customer.
#[derive(Debug)]
pub struct Inspected {
    /// The question: path and canonical parameters.
    pub question: String,
    /// How long ago its answer came.
    pub age: Duration,
    /// How long it is still fresh; `None` where it is only told in a stale mode.
    pub left: Option<Duration>,
    /// How long it is still told in any mode.
    pub told_for: Duration,
}

impl Gateway {
    /// `POST /v1/invalidate`: for those who learn of a change made elsewhere. It moves the fence as a write does.
    pub(super) fn invalidate(
        &self,
        policy: &Policy,
        fields: &Fields<'_>,
        caller: &Caller,
        body: &[u8],
        facts: &mut Facts,
    ) -> Result<Reply, Refusal> {
        const WANTED: Refusal = Refusal::BadRequest("the body must be {\"customerIds\":[\"…\"]}, at most 1000");
        let text = std::str::from_utf8(body).map_err(|_| WANTED)?;
        let root = Node::parse(text, MAX_DEPTH).map_err(|_| WANTED)?;
        check_names(&root).map_err(Refusal::Body)?;
        let Some(Node::Array(ids)) = root.member("customerIds") else { return Err(WANTED) };
        let customers: Option<Vec<&str>> = ids.iter().map(Node::text).collect();
        let customers = customers.filter(|ids| ids.len() <= MAX_CUSTOMERS && ids.iter().all(|id| !id.is_empty()));
        let customers = customers.ok_or(WANTED)?;
        facts.customers = customers.iter().map(|id| (*id).to_owned()).collect();
        let named = fields.tenant()?;
        let tenant = policy.tenants.choose(named, &root).map_err(Refusal::UnknownTenant)?;
        facts.tenant = Some(tenant.index);
        if !caller.may_use_tenant(tenant) {
            return Err(Refusal::Forbidden(Denied::Tenant));
        }
        let dropped: usize =
            customers.iter().map(|id| self.end_of_customer(tenant, id, Invalidation::Invalidate)).sum();
        let answer = Answer {
            status: 200,
            content_type: Some(ContentType::json()),
            rare: None,
            body: format!("{{\"dropped\":{dropped}}}").into_bytes().into(),
        };
        Ok(Reply { answer: Arc::new(answer), way: Way::Own })
    }

    fn end_of_customer(&self, tenant: &Tenant, customer: &str, cause: Invalidation) -> usize {
        let now = self.now();
        self.metrics.invalidations.of(cause).inc();
        self.cache.invalidate(
            &Subject::customer(tenant.index, customer),
            now.boot + self.policy.load().settings.cache.settle,
            now,
        )
    }

    /// The tenant of a name, or of none the default one.
    pub fn tenant(&self, name: Option<&str>) -> Option<Arc<Tenant>> {
        let policy = self.policy.load();
        let tenants = &policy.tenants;
        name.map_or_else(|| tenants.default(), |name| tenants.all().iter().find(|tenant| tenant.name == name)).cloned()
    }

    /// Drops what is kept for a customer; answers how many answers that were.
    pub fn purge_customer(&self, tenant: &Tenant, customer: &str) -> usize {
        self.end_of_customer(tenant, customer, Invalidation::Purge)
    }

    /// Purges the entries of a tenant, or of all, those included that left the configuration; returns how many answers that were.
    pub fn purge(&self, tenant: Option<&Tenant>) -> usize {
        let all = 0..self.identities.lock().count();
        let now = self.now();
        let settled = now.boot + self.policy.load().settings.cache.settle;
        let purged = tenant.map_or(all, |tenant| tenant.index..tenant.index + 1).map(|index| {
            self.metrics.invalidations.of(Invalidation::Purge).inc();
            self.cache.purge_tenant(index, settled, now)
        });
        purged.sum()
    }

    /// What is kept for a customer.
    pub fn inspect(&self, tenant: &Tenant, customer: &str) -> Vec<Inspected> {
        let now = self.now();
        let shown = |(question, life): (Arc<str>, Life)| Inspected {
            question: question.to_string(),
            age: life.age(now),
            left: life.left(now),
            told_for: life.told_for(now),
        };
        self.cache.inspect(&Subject::customer(tenant.index, customer), now).into_iter().map(shown).collect()
    }

    /// The effective configuration, secrets and hashes masked.
    pub fn configuration(&self) -> String {
        self.policy.load().settings.effective()
    }

    /// A customer's name as the log may have it.
    pub fn pseudonym(&self, customer: &str) -> String {
        self.pseudonyms.of(customer)
    }
}

impl Inspected {
    /// As a JSON object; times in seconds.
    pub fn to_json(&self) -> String {
        let mut out = String::from("{\"question\":");
        push_text(&mut out, &self.question);
        let left = self.left.unwrap_or_default();
        out.push_str(&format!(
            ",\"age\":{:.3},\"fresh_for\":{:.3},\"told_for\":{:.3}}}",
            self.age.as_secs_f64(),
            left.as_secs_f64(),
            self.told_for.as_secs_f64()
        ));
        out
    }
}
