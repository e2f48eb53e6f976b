//! The composition root: builds everything that lives as long as the process, and stops it again.

mod background;
mod service_manager;
mod sockets;

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::Receiver;
use tokio_util::sync::CancellationToken;

use self::background::{keep_budget, maintain, read_files, resolve, save_budget};
pub use self::service_manager::ServiceManager;
pub use self::sockets::Inherited;
use self::sockets::Sockets;
use crate::admin::{Access, Admin, Readiness};
use crate::clock::Clock;
use crate::cluster::{Cluster, Member};
use crate::configuration::{Configuration, ConnectKeys, TraceKeys};
use crate::gateway::{Dependencies, Gateway, Process};
use crate::limit::EarlierCalls;
pub use crate::listener::Workers;
use crate::listener::{Bounds, Listener, ListenerMetrics, PeerInfo, Rejections};
use crate::metrics::Metrics;
use crate::pseudonym::Pseudonyms;
use crate::settings::{ListenerSettings, Settings};
use crate::signer::Nonces;
use crate::trace::{Exporter, Span, Tracer};
use crate::upstream::{ConnectorError, Upstream};

/// How long sending the last traces may take.
const TRACES_WITHIN: Duration = Duration::from_secs(2);

/// Why the gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration lacks these keys.
    #[error("the configuration lacks {}", .0.join(", "))]
    Missing(Vec<&'static str>),
    /// The platform's address cannot be used.
    #[error(transparent)]
    Upstream(ConnectorError),
    /// Something else in the configuration cannot be used; the text names the key.
    #[error("{0}")]
    Unusable(String),
    /// An address cannot be listened on.
    #[error("{0}: cannot listen on {1}: {2}")]
    Listen(&'static str, SocketAddr, #[source] io::Error),
}

impl StartError {
    /// Whether another configuration would help.
    pub const fn is_configuration(&self) -> bool {
        match self {
            Self::Missing(_) | Self::Upstream(_) | Self::Unusable(_) => true,
            Self::Listen(..) => false,
        }
    }
}

/// A task that must run as long as the process ended.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("{0} ended unexpectedly")]
pub struct TaskEnded(&'static str);

/// What a gateway finds in its process and machine.
pub struct Surroundings {
    /// Listening sockets.
    pub inherited: Inherited,
    /// The process.
    pub process: Process,
    /// What started it.
    pub service_manager: ServiceManager,
}

impl Surroundings {
    /// Without sockets, a log and a service manager.
    pub fn new(earlier_calls: EarlierCalls) -> Self {
        let process =
            Process { earlier_calls, dropped_log_lines: Arc::new(|| [0, 0]), set_log_level: Arc::new(|_| {}) };
        Self { inherited: Inherited::default(), process, service_manager: ServiceManager::default() }
    }
}

/// A gateway that listens and does not serve yet.
pub struct App {
    gateway: Arc<Gateway>,
    sockets: Sockets,
    member: Option<Member>,
    listeners: ListenerSettings,
    readiness: Arc<Readiness>,
    clock: Clock,
    service_manager: ServiceManager,
    /// What sends traces.
    export: Option<(Exporter, Receiver<Span>)>,
}

impl App {
    /// Builds the gateway and binds its listeners, except for those that are inherited.
    ///
    /// # Errors
    /// If the configuration is not enough to serve, or an address cannot be bound.
    pub async fn bind(
        configuration: Configuration,
        clock: Clock,
        surroundings: Surroundings,
    ) -> Result<Self, StartError> {
        let Surroundings { inherited, process, service_manager } = surroundings;
        // What can fail without listening fails first. It reads files, which may block.
        let (settings, connect, now) = (configuration.settings.clone(), configuration.connect.clone(), clock.clone());
        let prepared = tokio::task::spawn_blocking(move || prepare(&settings, connect, &now)).await;
        let prepared = prepared.unwrap_or_else(|lost| Err(StartError::Unusable(lost.to_string())))?;
        let Prepared { upstream, nonces, pseudonyms } = prepared;
        let sockets = Sockets::open(&configuration.settings, inherited).await?;
        let listeners = configuration.settings.fixed.listeners.clone();
        let metrics = Metrics::new();
        let base_url = &configuration.settings.fixed.client.base_url;
        let upstream_address = base_url.as_ref().map(ToString::to_string).unwrap_or_default();
        let (cluster, sharing, member) = Cluster::new(
            &configuration.settings.fixed.cluster,
            configuration.redis.clone(),
            &pseudonyms,
            &metrics,
            &clock,
            [&instance(&sockets), &upstream_address],
        );
        let (tracer, export) = tracing_of(&configuration, &metrics, &clock, instance(&sockets));
        let dependencies = Dependencies {
            clock: clock.clone(),
            upstream,
            nonces,
            pseudonyms,
            metrics,
            cluster,
            sharing,
            tracer,
            process,
        };
        let gateway = Arc::new(Gateway::new(configuration, sockets.is_loopback(), dependencies));
        Ok(Self { gateway, sockets, member, listeners, readiness: Arc::default(), clock, service_manager, export })
    }

    /// The address of the data listener.
    ///
    /// # Errors
    /// Those of the system.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.sockets.data.local_addr()
    }

    /// The address of the admin listener.
    ///
    /// # Errors
    /// Those of the system.
    pub fn admin_address(&self) -> io::Result<SocketAddr> {
        self.sockets.admin.address()
    }

    /// The gateway, to reload its configuration.
    pub fn gateway(&self) -> Arc<Gateway> {
        Arc::clone(&self.gateway)
    }

    /// Serves callers on `workers` until `stop`; then keeps accepting for `server.drain_delay`, and finishes requests in progress
    /// within `server.drain_timeout`. Operators are served on this runtime, however busy the workers are, and until the end.
    ///
    /// # Errors
    /// If a task that must run as long as the process has ended: a gateway that does not accept, resolve or reload any more shall
    /// be restarted.
    pub async fn run(self, workers: Workers, stop: CancellationToken) -> Result<(), TaskEnded> {
        let Self { gateway, sockets, member, listeners, readiness, clock, service_manager, export } = self;
        let stop_export = CancellationToken::new();
        let exporting = export.map(|(exporter, spans)| tokio::spawn(exporter.run(spans, stop_export.clone())));
        let exchanging = member.map(|member| member.start(gateway.replica())).transpose();
        let exchanging = exchanging.map_err(|error| {
            tracing::error!(%error, "cluster: thread cannot be started");
            TaskEnded("exchange with other replicas")
        })?;
        let mut exchanging = pin!(async {
            match exchanging {
                Some(exchanging) => exchanging.await,
                None => std::future::pending().await,
            }
        });
        let (stop_data, stop_admin) = (CancellationToken::new(), CancellationToken::new());

        let access = Access::new(&listeners, sockets.admin_is_loopback());
        let pages = Admin::new(Arc::clone(&gateway), Arc::clone(&readiness), access);
        let operators = move |request, peer: PeerInfo| pages.clone().handle(request, peer.address);
        let (admin_bounds, admin_socket, admin_stop) =
            (Bounds::for_operators(&listeners), sockets.admin, stop_admin.clone());
        let mut admin = tokio::spawn(async move {
            let listener = Listener {
                socket: admin_socket.open().await,
                bounds: admin_bounds,
                metrics: None,
                tls: Arc::new(|| None),
                workers: Workers::new(Vec::new()),
            };
            listener.serve(admin_stop, operators).await
        });

        let handler = Arc::clone(&gateway);
        let callers = move |request, peer: PeerInfo| Arc::clone(&handler).handle(request, peer.capacity, peer.address);
        let metrics = gateway.metrics();
        let tls = Arc::clone(&gateway);
        let listener = Listener {
            socket: sockets.data,
            bounds: Bounds::new(&listeners),
            metrics: Some(ListenerMetrics {
                open: metrics.connections.clone(),
                dropped: metrics.connections_dropped.clone(),
                rejections: Arc::new(Rejections::new(metrics.handshake_failures.clone(), metrics.unparsed.clone())),
            }),
            tls: Arc::new(move || tls.tls().map(|tls| tls.config())),
            workers: workers.clone(),
        };
        let mut data = tokio::spawn(listener.serve(stop_data.clone(), callers));
        readiness.ready();

        let mut maintaining = tokio::spawn(maintain(Arc::clone(&gateway)));
        let mut budgeting = tokio::spawn(keep_budget(Arc::clone(&gateway)));
        let mut resolving = tokio::spawn(resolve(Arc::clone(&gateway)));
        let mut reading = tokio::spawn(read_files(Arc::clone(&gateway)));
        let (manager, now) = (service_manager.clone(), clock.clone());
        let reporting = manager.report(Arc::clone(&gateway), Arc::clone(&readiness), workers, now);
        let mut reporting = tokio::spawn(reporting);

        let ended = tokio::select! {
            () = stop.cancelled() => None,
            _ = &mut data => Some("accepting connections"),
            _ = &mut admin => Some("serving operators"),
            _ = &mut maintaining => Some("maintenance"),
            _ = &mut budgeting => Some("storing the budget"),
            _ = &mut resolving => Some("resolving the platform's name"),
            _ = &mut reading => Some("reading key and certificate files"),
            _ = &mut reporting => Some("reporting to the service manager"),
            () = &mut exchanging => Some("exchange with other replicas"),
        };
        if let Some(task) = ended {
            save_budget(&gateway, true).await;
            return Err(TaskEnded(task));
        }
        readiness.draining();
        service_manager.stopping(listeners.drain_delay + listeners.drain_timeout);
        tracing::info!("draining");
        tokio::time::sleep(listeners.drain_delay).await;
        stop_data.cancel();
        let deadline = clock.boot() + listeners.drain_timeout;
        let is_drained = data.await.unwrap_or(false);
        let has_finished = tokio::time::timeout(deadline.since(clock.boot()), gateway.finish()).await.is_ok();
        if !(is_drained && has_finished) {
            tracing::warn!("drain timed out: requests in progress are abandoned");
        }
        gateway.cluster().leave().await;
        [maintaining, budgeting, resolving, reading, reporting].iter().for_each(tokio::task::JoinHandle::abort);
        save_budget(&gateway, true).await;
        stop_export.cancel();
        if let Some(exporting) = exporting {
            // What is queued is sent; a collector that hangs must not delay the end.
            let _ = tokio::time::timeout(TRACES_WITHIN, exporting).await;
        }
        stop_admin.cancel();
        admin.abort();
        Ok(())
    }
}

/// What traces requests, and what sends the traces.
fn tracing_of(
    configuration: &Configuration,
    metrics: &Metrics,
    clock: &Clock,
    instance: String,
) -> (Tracer, Option<(Exporter, Receiver<Span>)>) {
    let (settings, dropped) = (&configuration.settings.fixed.traces, &metrics.spans_dropped);
    let (tracer, spans) = Tracer::new(settings, dropped, clock);
    let TraceKeys { tls, headers } = configuration.traces.clone();
    let exporter = |endpoint| Exporter { endpoint, tls, headers, dropped: dropped.clone(), instance };
    (tracer, settings.endpoint.clone().map(exporter).zip(spans))
}

/// What distinguishes this replica from others, also after a restart: its machine and address.
fn instance(sockets: &Sockets) -> String {
    let host = rustix::system::uname();
    let address = sockets.data.local_addr().map_or_else(|_| String::new(), |address| address.to_string());
    format!("{} {address}", host.nodename().to_string_lossy())
}

/// Checks that a gateway could be started with these settings, as far as that can be known without listening.
///
/// # Errors
/// Those of [`App::bind`].
pub fn check(configuration: &Configuration) -> Result<(), StartError> {
    let Configuration { settings, connect, .. } = configuration;
    prepare(settings, connect.clone(), &Clock::system()).map(|_| ())
}

/// What may fail without listening.
struct Prepared {
    upstream: Upstream,
    nonces: Nonces,
    pseudonyms: Arc<Pseudonyms>,
}

fn prepare(settings: &Settings, connect: ConnectKeys, clock: &Clock) -> Result<Prepared, StartError> {
    let missing = settings.missing_for_serving();
    let fixed = &settings.fixed;
    let base_url = fixed.client.base_url.as_ref().filter(|_| missing.is_empty()).ok_or(StartError::Missing(missing))?;
    let upstream = Upstream::new(base_url, &fixed.client, connect, clock).map_err(StartError::Upstream)?;
    let no_randomness = |error: io::Error| StartError::Unusable(format!("random numbers: {error}"));
    let nonces = Nonces::new().map_err(|error| no_randomness(io::Error::other(error)))?;
    let pseudonyms = Pseudonyms::new(fixed.log.hash_key_file.as_deref());
    let pseudonyms = pseudonyms.map_err(|error| match &fixed.log.hash_key_file {
        Some(file) => StartError::Unusable(format!("log.hash_key_file: {}: {error}", file.display())),
        None => no_randomness(error),
    })?;
    if fixed.cluster.redis.is_some() && pseudonyms.is_weak() {
        return Err(StartError::Unusable(
            "log.hash_key_file: found a key of fewer than 16 bytes; expected a random one, since with cluster.url it also seals what is stored in Redis".to_owned(),
        ));
    }
    Ok(Prepared { upstream, nonces, pseudonyms: Arc::new(pseudonyms) })
}
