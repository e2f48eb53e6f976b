//! What operators, callers that learn of changes, and the process itself do to a running gateway.

use std::sync::Arc;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::body::MAX_CUSTOMERS;
use super::policy::Policy;
use super::replica::LocalReplica;
use super::request_head::RequestHead;
use super::{Gateway, RequestInfo};
use crate::cache::{Freshness, Subject};
use crate::caller::Caller;
use crate::clock::Now;
use crate::cluster::{Cluster, Completion, Replica};
use crate::configuration::Configuration;
use crate::envelope::{MAX_DEPTH, check_names};
use crate::json::Node;
use crate::metrics::{Invalidation, Label, Metrics};
use crate::reply::{Denied, GatewayError, Reply};
use crate::settings::{ConfigErrors, LogLevel, Settings};
use crate::tenant::{KeyFile, KeyReload, Tenant};
use crate::tls::{CertReload, Tls};
use crate::upstream::Resolved;

/// A question whose answer is cached; times in seconds.
#[derive(Clone, Debug, Serialize)]
pub struct CachedQuestion {
    /// Path and canonical parameters.
    pub question: String,
    /// How long ago the answer was received.
    #[serde(serialize_with = "millis_exact")]
    pub age: Duration,
    /// How long it is still fresh; zero if it is only served stale.
    #[serde(serialize_with = "millis_exact")]
    pub fresh_for: Duration,
    /// How long it may still be served in any way.
    #[serde(serialize_with = "millis_exact")]
    pub servable_for: Duration,
    /// What limited its freshness when it was received.
    pub bound: &'static str,
}

/// Seconds with three decimals.
fn millis_exact<S: Serializer>(span: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((span.as_secs_f64() * 1000.0).round() / 1000.0)
}

impl CachedQuestion {
    pub(super) fn new(question: String, freshness: &Freshness, now: Now) -> Self {
        Self {
            question,
            age: freshness.age(now),
            fresh_for: freshness.remaining(now).unwrap_or_default(),
            servable_for: freshness.servable_for(now),
            bound: freshness.limited_by.name(),
        }
    }
}

impl Gateway {
    /// `POST /v1/invalidate`: fences as a write does.
    pub(super) async fn invalidate(
        &self,
        policy: &Policy,
        caller: &Caller,
        head: &RequestHead<'_>,
        body: &[u8],
        info: &mut RequestInfo,
    ) -> Result<Reply, GatewayError> {
        const EXPECTED: GatewayError =
            GatewayError::BadRequest("expected {\"customerIds\":[\"…\"]} with at most 1000 ids, none of them empty");
        let text = std::str::from_utf8(body).map_err(|_| EXPECTED)?;
        let root = Node::parse(text, MAX_DEPTH).map_err(|_| EXPECTED)?;
        check_names(&root).map_err(GatewayError::Body)?;
        let Some(Node::Array(ids)) = root.member("customerIds") else { return Err(EXPECTED) };
        let customers: Option<Vec<&str>> = ids.iter().map(Node::text).collect();
        let customers = customers.filter(|ids| ids.len() <= MAX_CUSTOMERS && ids.iter().all(|id| !id.is_empty()));
        let customers = customers.ok_or(EXPECTED)?;
        info.customers = customers.iter().map(|id| (*id).to_owned()).collect();
        let tenant =
            policy.tenants.choose(head.tenant()?, &root, caller.sole_tenant()).map_err(GatewayError::UnknownTenant)?;
        info.tenant = Some(tenant.index);
        if !caller.may_use_tenant(tenant) {
            return Err(GatewayError::Forbidden(Denied::Tenant));
        }
        let settle = policy.settings.cache.settle;
        let (dropped, ended) =
            self.invalidator.customers(tenant.merchant, &customers, settle, Invalidation::Invalidate);
        self.audit_invalidation(policy, info, dropped);
        ended.wait().await;
        Ok(Reply::own(format!("{{\"dropped\":{dropped}}}")))
    }

    /// This gateway, for other replicas.
    pub fn replica(&self) -> Arc<dyn Replica> {
        Arc::new(LocalReplica {
            cache: Arc::clone(&self.cache),
            paces: Arc::clone(&self.paces),
            time: Arc::clone(&self.time),
            merchants: Arc::clone(&self.merchants),
        })
    }

    /// The other replicas.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The tenant of this name; without a name, the default one.
    pub fn tenant(&self, name: Option<&str>) -> Option<Arc<Tenant>> {
        let policy = self.policy.load();
        let tenants = &policy.tenants;
        name.map_or_else(|| tenants.default(), |name| tenants.all().iter().find(|tenant| tenant.name == name)).cloned()
    }

    /// The names of the tenants.
    pub fn tenant_names(&self) -> Vec<String> {
        self.policy.load().tenants.all().iter().map(|tenant| tenant.name.clone()).collect()
    }

    /// Purges the entries of a customer, in all replicas; returns how many answers were dropped in this one.
    pub async fn purge_customer(&self, tenant: &Tenant, customer: &str) -> usize {
        let settle = self.policy.load().settings.cache.settle;
        let (dropped, ended) = self.invalidator.customers(tenant.merchant, &[customer], settle, Invalidation::Purge);
        ended.wait().await;
        dropped
    }

    /// Purges the entries of a tenant, or of all, those included that left the configuration, in all replicas; returns how many
    /// answers were dropped in this one.
    pub async fn purge(&self, tenant: Option<&Tenant>) -> usize {
        let all = 0..self.identities.lock().merchants();
        let settle = self.policy.load().settings.cache.settle;
        let purged = tenant.map_or(all, |tenant| tenant.merchant..tenant.merchant + 1);
        let (dropped, ended) = self.invalidator.purge(purged, settle);
        futures_util::future::join_all(ended.into_iter().map(Completion::wait)).await;
        dropped
    }

    /// What is cached for a customer, in this replica.
    pub fn inspect(&self, tenant: &Tenant, customer: &str) -> Vec<CachedQuestion> {
        let now = self.time.now();
        let subject = Subject::customer(tenant.merchant, &self.cluster.customer(customer));
        let cached = self.cache.inspect(&subject, now).into_iter();
        cached.map(|(question, freshness)| CachedQuestion::new(question, &freshness, now)).collect()
    }

    /// What the replicas share of a customer; `None` if Redis does not answer.
    pub async fn inspect_shared(&self, tenant: &Tenant, customer: &str) -> Option<Vec<CachedQuestion>> {
        self.shared(tenant, &Subject::customer(tenant.merchant, &self.cluster.customer(customer))).await
    }

    /// The same of any subject.
    pub(super) async fn shared(&self, tenant: &Tenant, subject: &Subject) -> Option<Vec<CachedQuestion>> {
        let stored = self.cluster.inspect(&self.merchants.name(tenant.merchant), subject).await?;
        let now = self.time.now();
        let fresh = stored.into_iter().filter(|(_, freshness)| freshness.remaining(now).is_some());
        Some(fresh.map(|(question, freshness)| CachedQuestion::new(question, &freshness, now)).collect())
    }

    /// The effective configuration, secrets and hashes masked.
    pub fn configuration(&self) -> String {
        let policy = self.policy.load();
        policy.effective.to_toml(&policy.settings.routes)
    }

    /// A customer's name in the log.
    pub fn pseudonym(&self, customer: &str) -> String {
        self.pseudonyms.of(customer)
    }

    /// The metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Stores what was counted of calls, and adds what was stored before. Reads and writes a file, which may block.
    /// `is_last`: another process may use the file from now on.
    pub fn save_budget(&self, is_last: bool) {
        self.spending.count_saved(&self.policy.load());
        self.spending.save(is_last);
    }

    /// The level of the log, the configured one, and for how long they differ.
    pub fn log_level(&self) -> (LogLevel, LogLevel, Option<Duration>) {
        self.log_levels.current(self.time.boot())
    }

    /// Changes the level of the log for so long.
    pub fn set_log_level(&self, level: LogLevel, span: Duration) {
        self.log_levels.change(level, span, self.time.boot());
    }

    /// Resolves the platform's name again.
    pub async fn resolve_upstream(&self) {
        match self.upstream.resolve().await {
            Resolved::Unchanged => {}
            Resolved::Changed => tracing::info!("upstream DNS changed"),
            Resolved::Recovered => tracing::info!("upstream DNS lookup recovered"),
            Resolved::Failed(error) => {
                tracing::warn!(%error, "upstream DNS lookup failed; the last addresses are used");
            }
        }
    }

    /// The files that tenants' keys come from.
    pub fn key_files(&self) -> Vec<KeyFile> {
        self.policy.load().tenants.all().iter().filter_map(KeyFile::of).collect()
    }

    /// Reports what was found in a tenant's key file.
    pub fn key_reloaded(&self, tenant: &Arc<Tenant>, reload: &KeyReload) {
        match reload {
            KeyReload::Unchanged => {}
            KeyReload::Changed => {
                tracing::info!(tenant = tenant.name, "signing key changed");
                self.paces.credentials_changed(tenant);
            }
            KeyReload::Failed(error) => {
                tracing::error!(tenant = tenant.name, error, "signing key reload failed; the last good key is used");
            }
        }
    }

    /// TLS for callers.
    pub fn tls(&self) -> Option<Arc<Tls>> {
        self.policy.load().tls.clone()
    }

    /// Reports what was found in the files of `server.tls`.
    pub fn certificates_reloaded(&self, reload: &CertReload) {
        match reload {
            CertReload::Unchanged => {}
            CertReload::Changed => tracing::info!("TLS certificate changed"),
            CertReload::Failed(error) => {
                tracing::error!(%error, "TLS certificate reload failed; the last good one is used");
            }
        }
    }

    /// Applies a new configuration as a whole, or if it is unusable nothing of it; returns whether it was applied.
    ///
    /// Requests in progress end as they began. What is cached, limited and counted stays; answers that were read by other rules
    /// are not served any more.
    pub fn reload(&self, loaded: Result<Configuration, ConfigErrors>) -> bool {
        let loaded = loaded.map_err(|errors| errors.0.iter().map(ToString::to_string).collect::<Vec<_>>());
        let usable = loaded.and_then(|loaded| match self.problem_with(&loaded.settings) {
            None => Ok(loaded),
            Some(problem) => Err(vec![problem]),
        });
        let is_usable = usable.is_ok();
        match usable {
            Ok(loaded) => self.apply(loaded),
            Err(errors) => {
                for error in &errors {
                    tracing::error!(error, "configuration reload failed; the previous configuration stays in force");
                }
            }
        }
        self.metrics.reload_success.set(is_usable.into());
        *self.watch.reloaded.lock() = Some(self.time.clock.wall());
        is_usable
    }

    /// Requests that were answered since the process began.
    pub fn requests(&self) -> u64 {
        self.metrics.totals().requests.iter().sum()
    }

    /// Whether the last reload succeeded; also if there was none.
    pub fn is_reload_successful(&self) -> bool {
        self.metrics.reload_success.get() == 1
    }

    /// Why a configuration cannot be served by the listeners, which stay as they are.
    fn problem_with(&self, settings: &Settings) -> Option<String> {
        let missing = settings.missing_for_serving();
        if !missing.is_empty() {
            return Some(format!("the configuration lacks {}", missing.join(", ")));
        }
        if let Some(problem) = self.fixed.cluster.problem_with_rates(settings.dynamic.rates()) {
            return Some(format!("cluster.replicas: {problem}"));
        }
        let is_open = settings.dynamic.callers.is_empty() && !settings.dynamic.requests.allow_anonymous;
        (!self.is_loopback && is_open)
            .then(|| "server.listen: without callers, a restart is needed to listen on loopback".to_owned())
    }

    fn apply(&self, configuration: Configuration) {
        // One reload at a time.
        let mut identities = self.identities.lock();
        let old = self.policy.load_full();
        let differences = old.effective.differences(&configuration.settings.effective);
        let (metrics, clock) = (&self.metrics, &self.time.clock);
        let new = Policy::new(configuration, Some(&old), self.is_loopback, &mut identities, metrics, clock);
        let new = Arc::new(new);
        self.merchants.learn(new.tenants.all(), &self.cluster);
        self.cache.reconfigure(&new.cache_options(&identities));
        self.policy.store(Arc::clone(&new));
        // Requests in progress may keep the old policy for a while, and its memory counts no longer.
        old.hit_memo.clear();
        self.paces.reconfigure(new.pace_rules(), |path| new.pattern(path));
        if !self.cluster.is_alone() {
            self.paces.prepare(new.tenants.all(), new.routes.all());
        }
        for tenant in new.tenants.all() {
            let same = old.tenants.all().iter().find(|other| other.index == tenant.index);
            if same.is_some_and(|other| *other.open_key() != *tenant.open_key()) {
                self.paces.credentials_changed(tenant);
            }
        }
        let routes_changed = old.settings.routes != new.settings.routes;
        let changed = differences.dynamic.iter().map(String::as_str).chain(routes_changed.then_some("routes"));
        let changed: Vec<_> = changed.collect();
        tracing::info!(changed = changed.join(", "), "configuration reloaded");
        if !differences.fixed.is_empty() {
            tracing::warn!(keys = differences.fixed.join(", "), "configuration changed in keys that need a restart");
        }
    }

    /// How often the configuration was reloaded.
    pub fn reloads(&self) -> u64 {
        self.policy.load().number
    }

    /// Waits for fetches and writes whose callers have disconnected. None may begin any more.
    pub async fn finish(&self) {
        self.tasks.finish().await;
    }
}
