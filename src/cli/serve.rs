//! `zvgate serve`

use listenfd::ListenFd;
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::stop::Stops;
use super::{Configuration, UNUSABLE, complain, fail, logging, runtime};
use crate::app::{App, Inherited};
use crate::clock::Clock;
use crate::limit::Before;
use crate::settings::{ServerSettings, Settings};

pub(super) fn run(configuration: &Configuration) -> Result<(), u8> {
    let settings = configuration.load()?;
    logging::begin(&settings.log);
    // A dump of its memory would hold keys and customers' answers. Where the system has no limits to set, it has no dumps.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    raise_descriptor_limit(&settings.server);
    let inherited = inherited().map_err(|error| {
        complain(&format!(
            "zvgate: LISTEN_FDS: {error}; wanted listening TCP sockets: server.listen's, then server.admin_listen's"
        ));
        UNUSABLE
    })?;
    runtime(settings.server.workers)?.block_on(serve(configuration, &settings, inherited))
}

/// Descriptors beside those of callers' connections: upstream, operators, files.
const OTHER_DESCRIPTORS: u64 = 1024;

/// Asks for a descriptor for every connection that may come, as far as the system allows: shells and service managers hand
/// out few, for the sake of programs that this is none of.
fn raise_descriptor_limit(server: &ServerSettings) {
    let wanted = u64::from(server.max_connections) + OTHER_DESCRIPTORS;
    let limit = getrlimit(Resource::Nofile);
    let allowed = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    if limit.current.is_some_and(|current| current < allowed) {
        // Where it is refused, the warning below tells.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(allowed), maximum: limit.maximum });
    }
    if let Some(current) = getrlimit(Resource::Nofile).current.filter(|current| *current < wanted) {
        tracing::warn!(
            descriptors = current,
            wanted,
            "too few file descriptors for server.max_connections: connections will wait for one another"
        );
    }
}

/// The sockets that the process was started with, as systemd hands them over (sd_listen_fds(3)).
fn inherited() -> std::io::Result<Inherited> {
    let mut sockets = ListenFd::from_env();
    if sockets.len() > 2 {
        return Err(std::io::Error::other(format!("{} sockets are too many", sockets.len())));
    }
    Ok(Inherited { data: sockets.take_tcp_listener(0)?, admin: sockets.take_tcp_listener(1)? })
}

async fn serve(configuration: &Configuration, settings: &Settings, inherited: Inherited) -> Result<(), u8> {
    let mut stops = Stops::new().map_err(fail)?;
    let mut hangups = signal(SignalKind::hangup()).map_err(fail)?;
    let app = App::bind(settings, Clock::system(), Before::Unknown, inherited).await.map_err(|error| {
        complain(&format!("zvgate: {error}"));
        if error.is_configuration() { UNUSABLE } else { super::FAILED }
    })?;
    let (data, admin) = (app.address().map_err(fail)?, app.admin_address().map_err(fail)?);
    tracing::info!(version = env!("CARGO_PKG_VERSION"), listen = %data, admin_listen = %admin, "serving");
    let (gateway, sources) = (app.gateway(), configuration.sources());
    let reloading = async {
        while hangups.recv().await.is_some() {
            let sources = sources.clone();
            // Files are read, which may block.
            if let Ok(loaded) = tokio::task::spawn_blocking(move || sources.load()).await {
                gateway.reload(loaded.as_ref());
            }
        }
        std::future::pending::<()>().await;
    };
    let stop = CancellationToken::new();
    let running = app.run(stop.clone());
    let stopping = async {
        stops.next().await;
        stop.cancel();
        stops.next().await;
        tracing::warn!("stopped at once, by a second signal");
    };
    tokio::select! {
        () = running => {}
        () = stopping => {}
        () = reloading => {}
    }
    Ok(())
}
