//! How a gateway is put together.

use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::Gateway;
use super::dropped_lines::{DroppedLines, DroppedLogLines};
use super::fetch::Fetcher;
use super::invalidate::Invalidator;
use super::log_level::{LogLevels, SetLogLevel};
use super::pass::Passes;
use super::policy::Policy;
use super::read::Reads;
use super::replica::Merchants;
use super::served::Served;
use super::spending::Spending;
use super::status::Watch;
use super::tasks::Tasks;
use super::time::Time;
use super::typed_answers::TypedAnswers;
use super::write::Writes;
use super::write_log::WriteLog;
use crate::budget::Budget;
use crate::cache::Cache;
use crate::clock::Clock;
use crate::cluster::Cluster;
use crate::configuration::Configuration;
use crate::limit::{EarlierCalls, Paces, Sharing};
use crate::line_limit::LineLimit;
use crate::metrics::Metrics;
use crate::pseudonym::Pseudonyms;
use crate::signer::Nonces;
use crate::skew::Skew;
use crate::tenant::Identities;
use crate::trace::Tracer;
use crate::upstream::Upstream;

/// What a gateway needs beside its configuration.
pub struct Dependencies {
    /// The time.
    pub clock: Clock,
    /// The client of the platform.
    pub upstream: Upstream,
    /// The one source of nonces.
    pub nonces: Nonces,
    /// Customers' names in logs.
    pub pseudonyms: Arc<Pseudonyms>,
    /// The metrics.
    pub metrics: Metrics,
    /// The other replicas.
    pub cluster: Cluster,
    /// How they share slots towards the platform.
    pub sharing: Arc<Sharing>,
    /// Which requests are traced.
    pub tracer: Tracer,
    /// The process that it runs in.
    pub process: Process,
}

/// What a gateway needs to know of its process.
pub struct Process {
    /// What the platform may have counted before.
    pub earlier_calls: EarlierCalls,
    /// How many log lines were dropped.
    pub dropped_log_lines: DroppedLogLines,
    /// Changes the level of the log.
    pub set_log_level: SetLogLevel,
}

impl Gateway {
    /// A gateway with an empty cache. `is_loopback`: whether only this machine can connect.
    pub fn new(configuration: Configuration, is_loopback: bool, dependencies: Dependencies) -> Self {
        let Dependencies { clock, upstream, nonces, pseudonyms, metrics, cluster, sharing, tracer, process } =
            dependencies;
        let Process { earlier_calls, dropped_log_lines, set_log_level } = process;
        let fixed = configuration.settings.fixed.clone();
        let mut identities = Identities::default();
        let started = clock.boot();
        let policy = Policy::new(configuration, None, is_loopback, &mut identities, &metrics, &clock);
        let time = Arc::new(Time { skew: Skew::new(fixed.client.follows_clock()), clock });
        let cache = Arc::new(Cache::new(&policy.cache_options(&identities), metrics.cache.clone()));
        let paces = Arc::new(Paces::new(policy.pace_rules(), earlier_calls, &time.clock, &sharing));
        let (upstream, tasks) =
            (Arc::new(upstream), Tasks::new(fixed.listeners.max_connections, metrics.panics.clone()));
        let merchants = Arc::new(Merchants::default());
        merchants.learn(policy.tenants.all(), &cluster);
        if !cluster.is_alone() {
            paces.prepare(policy.tenants.all(), policy.routes.all());
        }
        let served = Arc::new(Served::new(fixed.cache_max_bytes));
        let spending = Arc::new(Spending::new(Budget::new(fixed.budget_store.clone(), time.clock.wall()), &time));
        let fetcher = Arc::new(Fetcher {
            time: Arc::clone(&time),
            upstream: Arc::clone(&upstream),
            paces: Arc::clone(&paces),
            nonces,
            cluster: cluster.clone(),
            spending: Arc::clone(&spending),
        });
        let invalidator = Arc::new(Invalidator {
            cache: Arc::clone(&cache),
            time: Arc::clone(&time),
            counters: metrics.invalidations.clone(),
            cluster: cluster.clone(),
            merchants: Arc::clone(&merchants),
        });
        let passes = Arc::new(Passes { fetcher: Arc::clone(&fetcher), tasks: tasks.clone() });
        let reads = Arc::new(Reads {
            cache: Arc::clone(&cache),
            fetcher: Arc::clone(&fetcher),
            passes: Arc::clone(&passes),
            invalidator: Arc::clone(&invalidator),
            time: Arc::clone(&time),
            tasks: tasks.clone(),
            served: Arc::clone(&served),
            ttl: metrics.cache_ttl.clone(),
        });
        let writes = Arc::new(Writes {
            fetcher,
            invalidator: Arc::clone(&invalidator),
            log: Arc::new(WriteLog { time: Arc::clone(&time), pseudonyms: Arc::clone(&pseudonyms) }),
            tasks: tasks.clone(),
            served: Arc::clone(&served),
            unknown_customers: LineLimit::default(),
        });
        let typed = Arc::new(TypedAnswers {
            cache: Arc::clone(&cache),
            time: Arc::clone(&time),
            max_bytes: usize::try_from(fixed.client.max_response.0).unwrap_or(usize::MAX),
        });
        Self {
            typed,
            policy: ArcSwap::from_pointee(policy),
            identities: Mutex::new(identities),
            time,
            is_loopback,
            cache,
            upstream,
            paces,
            reads,
            writes,
            passes,
            invalidator,
            spending,
            served,
            cluster,
            merchants,
            pseudonyms,
            metrics,
            tasks,
            tracer,
            dropped_lines: DroppedLines::new(dropped_log_lines),
            log_levels: LogLevels::new(fixed.log.level, set_log_level),
            fixed,
            started,
            watch: Watch::default(),
        }
    }
}
