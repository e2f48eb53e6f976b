//! `zvgate serve`

use std::future::pending;
use std::io;
use std::num::NonZero;
use std::sync::Arc;
use std::thread;

use listenfd::ListenFd;
use rustix::net::sockopt::socket_acceptconn;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::stop::Stops;
use super::{ConfigArguments, UNUSABLE, eprint, fail, logging, runtime};
use crate::app::{App, Inherited, ServiceManager, Surroundings, Workers};
use crate::clock::Clock;
use crate::configuration::Configuration;
use crate::gateway::Process;
use crate::limit::EarlierCalls;
use crate::settings::ListenerSettings;

pub(super) fn run(configuration: &ConfigArguments) -> Result<(), u8> {
    let runtime = runtime()?;
    let served = runtime.block_on(start(configuration));
    // A file system or a resolver that blocks must not delay the end.
    runtime.shutdown_background();
    served
}

async fn start(configuration: &ConfigArguments) -> Result<(), u8> {
    // Before anything that takes time: an earlier signal would kill the process.
    let mut signals = Signals::catch().map_err(fail)?;
    let given = configuration.clone();
    // Files are read, which may block.
    let loading = tokio::task::spawn_blocking(move || given.load());
    let loaded = tokio::select! {
        loaded = loading => loaded.map_err(fail)??,
        () = signals.stops.next() => return Ok(()),
    };
    let fixed = &loaded.settings.fixed;
    let log = logging::begin(&fixed.log);
    loaded.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    raise_descriptor_limit(&fixed.listeners);
    let inherited = inherited().map_err(|error| {
        eprint(&format!(
            "zvgate: LISTEN_FDS: {error}; expected listening TCP sockets: server.listen's, then server.admin_listen's, or named listen and admin_listen in LISTEN_FDNAMES"
        ));
        UNUSABLE
    })?;
    let workers = start_workers(fixed.listeners.workers)?;
    let process = Process {
        earlier_calls: EarlierCalls::Unknown,
        dropped_log_lines: Arc::new(log.dropped_lines()),
        set_log_level: log.set_level(),
    };
    let service_manager = ServiceManager::of_process().map_err(fail)?;
    let surroundings = Surroundings { inherited, process, service_manager: service_manager.clone() };
    let app = tokio::select! {
        app = App::bind(loaded, Clock::system(), surroundings) => app,
        () = signals.stops.next() => return Ok(()),
    };
    let app = app.map_err(|error| configuration.report(&error))?;
    serve(configuration, app, signals, workers, &service_manager).await
}

/// The signals that are handled.
struct Signals {
    stops: Stops,
    hangups: Signal,
}

impl Signals {
    /// Handles them from here on.
    fn catch() -> io::Result<Self> {
        Ok(Self { stops: Stops::new()?, hangups: signal(SignalKind::hangup())? })
    }
}

/// Starts so many workers; 0: one per core. They end with the process.
fn start_workers(number: u32) -> Result<Workers, u8> {
    let cores = || thread::available_parallelism().map_or(1, NonZero::get);
    let number = usize::try_from(number).ok().filter(|number| *number > 0).unwrap_or_else(cores);
    let start = |number| {
        let runtime = runtime()?;
        let handle = runtime.handle().clone();
        let work = move || runtime.block_on(pending::<()>());
        let started = thread::Builder::new().name(format!("worker-{number}")).spawn(work);
        started.map(|_| handle).map_err(|error| fail(format!("server.workers: thread {number}: {error}")))
    };
    Ok(Workers::new((1..=number).map(start).collect::<Result<_, _>>()?))
}

/// Descriptors beside those of callers' connections: for the platform, operators, files.
const OTHER_DESCRIPTORS: u64 = 1024;

/// Raises the limit of descriptors to one for every connection, as far as the system allows: shells and service managers set a
/// low one, for the sake of programs that use select(2).
fn raise_descriptor_limit(settings: &ListenerSettings) {
    let needed = u64::from(settings.max_connections) + OTHER_DESCRIPTORS;
    let limit = getrlimit(Resource::Nofile);
    let allowed = limit.maximum.map_or(needed, |maximum| maximum.min(needed));
    if limit.current.is_some_and(|current| current < allowed) {
        // If it fails, the warning below says so.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(allowed), maximum: limit.maximum });
    }
    if let Some(current) = getrlimit(Resource::Nofile).current.filter(|current| *current < needed) {
        tracing::warn!(descriptors = current, needed, "too few file descriptors for server.max_connections");
    }
}

/// The names that inherited sockets may have, after the keys of their addresses.
const SOCKETS: [&str; 2] = ["listen", "admin_listen"];

/// The sockets that the process inherited, as systemd passes them (sd_listen_fds(3)): by their names, or in order.
fn inherited() -> io::Result<Inherited> {
    #[expect(clippy::disallowed_methods, reason = "it belongs to the sockets, which are no configuration")]
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names: Vec<&str> = names.split(':').collect();
    let mut sockets = ListenFd::from_env();
    if sockets.len() > SOCKETS.len() {
        return Err(io::Error::other(format!("{} sockets are too many", sockets.len())));
    }
    // Without a name of ours, they have those that systemd gives them.
    let is_named = sockets.len() > 0 && names.iter().any(|name| SOCKETS.contains(name));
    let is_valid = names.len() == sockets.len()
        && names.iter().all(|name| SOCKETS.contains(name))
        && names.first() != names.get(1);
    if is_named && !is_valid {
        return Err(io::Error::other(format!("{} sockets are named {}", sockets.len(), names.join(", "))));
    }
    let mut take = |place: usize, name: &str| {
        let place = if is_named { names.iter().position(|other| *other == name) } else { Some(place) };
        let Some(place) = place else { return Ok(None) };
        match sockets.take_tcp_listener(place)? {
            Some(socket) if !socket_acceptconn(&socket)? => {
                Err(io::Error::other(format!("socket {place} does not listen")))
            }
            taken => Ok(taken),
        }
    };
    let [data, admin] = SOCKETS;
    Ok(Inherited { data: take(0, data)?, admin: take(1, admin)? })
}

async fn serve(
    configuration: &ConfigArguments,
    app: App,
    signals: Signals,
    workers: Workers,
    service_manager: &ServiceManager,
) -> Result<(), u8> {
    let Signals { mut stops, mut hangups } = signals;
    let (data, admin) = (app.address().map_err(fail)?, app.admin_address().map_err(fail)?);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), listen = %data, admin_listen = %admin, "serving");
    let (gateway, sources) = (app.gateway(), configuration.sources());
    let reloading = async {
        while hangups.recv().await.is_some() {
            let sources = sources.clone();
            service_manager.reloading();
            // Files are read, which may block.
            if let Ok(loaded) = tokio::task::spawn_blocking(move || Configuration::load(&sources)).await {
                gateway.reload(loaded);
            }
            service_manager.reloaded();
        }
        pending::<()>().await;
    };
    let stop = CancellationToken::new();
    let running = app.run(workers, stop.clone());
    let stopping = async {
        stops.next().await;
        stop.cancel();
        stops.next().await;
        tracing::warn!("stopped immediately by a second signal");
    };
    tokio::select! {
        ran = running => ran.inspect(|()| tracing::info!("stopped")).map_err(|ended| {
            tracing::error!("{ended}; the process exits");
            fail(ended)
        }),
        () = stopping => Ok(()),
        () = reloading => Ok(()),
    }
}
