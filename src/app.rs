//! The composition root: builds everything that lives as long as the process, and takes it down again.

mod sockets;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use self::sockets::Inherited;
use self::sockets::Sockets;
use crate::admin::{Access, Admin, Readiness};
use crate::clock::Clock;
use crate::gateway::{Equipment, Gateway};
use crate::limit::Before;
pub use crate::listener::Workers;
use crate::listener::{Bounds, Door, Peer, Tally};
use crate::pseudonym::Pseudonyms;
use crate::settings::{ServerSettings, Settings};
use crate::signer::Nonces;
use crate::tenant::{KeyFile, KeyNews};
use crate::upstream::Upstream;

/// How often memory and connections whose time is over are freed.
const TIDY_EVERY: Duration = Duration::from_secs(1);
/// How often the platform's name is looked up.
const LOOK_UP_EVERY: Duration = Duration::from_secs(5);
/// How often files of keys and certificates are read, and how soon again where one of them changed.
const READ_FILES_EVERY: Duration = Duration::from_millis(500);
const CONFIRM_FILES_AFTER: Duration = Duration::from_millis(100);

/// Why the gateway cannot start.
#[derive(Debug)]
pub enum StartError {
    /// The configuration lacks these keys.
    Missing(Vec<&'static str>),
    /// Something in the configuration cannot be had; the text names the key.
    Unusable(String),
    /// An address cannot be listened on.
    Listen(&'static str, SocketAddr, io::Error),
}

impl StartError {
    /// Whether another configuration would help.
    pub const fn is_configuration(&self) -> bool {
        match self {
            Self::Missing(_) | Self::Unusable(_) => true,
            Self::Listen(..) => false,
        }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(keys) => write!(f, "the configuration lacks {}", keys.join(", ")),
            Self::Unusable(text) => f.write_str(text),
            Self::Listen(key, address, error) => write!(f, "{key}: cannot listen on {address}: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

/// A gateway that listens and does not serve yet.
pub struct App {
    gateway: Arc<Gateway>,
    sockets: Sockets,
    server: ServerSettings,
    readiness: Arc<Readiness>,
    clock: Clock,
}

impl App {
    /// Builds the gateway and binds its listeners, but for those that are `inherited`. `before` tells what upstream may
    /// remember of earlier calls.
    ///
    /// # Errors
    /// Where the configuration is not enough to serve, or an address is taken.
    pub async fn bind(
        settings: &Settings,
        clock: Clock,
        before: Before,
        inherited: Inherited,
    ) -> Result<Self, StartError> {
        // What can fail without listening fails first. It reads files, which may block.
        let (given, now) = (settings.clone(), clock.clone());
        let equipment = tokio::task::spawn_blocking(move || equip(&given, &now, before)).await;
        let equipment = equipment.unwrap_or_else(|lost| Err(StartError::Unusable(lost.to_string())))?;
        let sockets = Sockets::open(settings, inherited).await?;
        let gateway = Arc::new(Gateway::new(settings, sockets.are_private(), equipment));
        Ok(Self { gateway, sockets, server: settings.server.clone(), readiness: Arc::default(), clock })
    }

    /// Where callers come in.
    ///
    /// # Errors
    /// Where the system does not tell.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.sockets.data.local_addr()
    }

    /// Where operators come in.
    ///
    /// # Errors
    /// Where the system does not tell.
    pub fn admin_address(&self) -> io::Result<SocketAddr> {
        self.sockets.admin.address()
    }

    /// What is served, to hand it another configuration.
    pub fn gateway(&self) -> Arc<Gateway> {
        Arc::clone(&self.gateway)
    }

    /// Serves callers on `workers` until `stop`; then accepts for `server.drain_delay` more, and finishes what is in hand
    /// in `server.drain_timeout`. Operators are served where this runs, however busy the workers are, and until the end.
    pub async fn run(self, workers: Workers, stop: CancellationToken) {
        let Self { gateway, sockets, server, readiness, clock } = self;
        let (bounds, operators_bounds) = (Bounds::new(&server), Bounds::for_operators(&server));

        let (stop_data, stop_admin) = (CancellationToken::new(), CancellationToken::new());
        let access = Access::new(&server, sockets.operators_are_private());
        let pages = Admin::new(Arc::clone(&gateway), Arc::clone(&readiness), access);
        let operators = move |request, peer: Peer| pages.clone().handle(request, peer.address);
        let (desk, stop_desk) = (sockets.admin, stop_admin.clone());
        let admin = tokio::spawn(async move {
            let door = Door {
                socket: desk.open().await,
                bounds: operators_bounds,
                tally: None,
                secured: Arc::new(|| None),
                workers: Workers::new(Vec::new()),
            };
            door.serve(stop_desk, operators).await
        });

        let front = Arc::clone(&gateway);
        let callers = move |request, peer: Peer| Arc::clone(&front).handle(request, peer.capacity);
        let metrics = gateway.metrics();
        let tally = Tally { open: metrics.connections.clone(), dropped: metrics.connections_dropped.clone() };
        let front = Arc::clone(&gateway);
        let secured = Arc::new(move || front.tls().map(|tls| tls.config()));
        let door = Door { socket: sockets.data, bounds, tally: Some(tally), secured, workers };
        let data = tokio::spawn(door.serve(stop_data.clone(), callers));
        readiness.ready();

        let mut housekeeping = JoinSet::new();
        housekeeping.spawn(tidy(Arc::clone(&gateway)));
        housekeeping.spawn(look_up(Arc::clone(&gateway)));
        housekeeping.spawn(read_files(Arc::clone(&gateway)));

        stop.cancelled().await;
        readiness.draining();
        tracing::info!("draining");
        tokio::time::sleep(server.drain_delay).await;
        stop_data.cancel();
        let deadline = clock.boot() + server.drain_timeout;
        let drained = data.await.unwrap_or(false);
        let finished = tokio::time::timeout(deadline.since(clock.boot()), gateway.finish()).await.is_ok();
        if !(drained && finished) {
            tracing::warn!("stopped before everything in hand was finished: server.drain_timeout is over");
        }
        housekeeping.abort_all();
        stop_admin.cancel();
        admin.abort();
    }
}

async fn tidy(gateway: Arc<Gateway>) {
    let mut ticks = tokio::time::interval(TIDY_EVERY);
    loop {
        ticks.tick().await;
        gateway.tidy();
    }
}

async fn look_up(gateway: Arc<Gateway>) {
    loop {
        tokio::time::sleep(LOOK_UP_EVERY).await;
        gateway.look_up().await;
    }
}

async fn read_files(gateway: Arc<Gateway>) {
    let mut reloads = gateway.reloads();
    let mut files = (gateway.key_files(), gateway.tls());
    loop {
        if gateway.reloads() != reloads {
            reloads = gateway.reloads();
            files = (gateway.key_files(), gateway.tls());
        }
        let (mut keys, tls) = files;
        let pending = keys.iter().any(KeyFile::is_pending) || tls.iter().any(|tls| tls.is_pending());
        tokio::time::sleep(if pending { CONFIRM_FILES_AFTER } else { READ_FILES_EVERY }).await;
        // A file system may let its readers wait.
        let read = tokio::task::spawn_blocking(move || {
            let news: Vec<KeyNews> = keys.iter_mut().map(KeyFile::look).collect();
            let tls_news = tls.as_ref().map(|tls| tls.look());
            ((keys, tls), news, tls_news)
        });
        let Ok((read, news, tls_news)) = read.await else { return };
        files = read;
        files.0.iter().zip(&news).for_each(|(file, news)| gateway.learn_key(file.tenant(), news));
        tls_news.iter().for_each(|news| gateway.learn_certificates(news));
    }
}

/// Checks that a gateway could be started with a configuration, as far as that can be known without listening.
///
/// # Errors
/// Those of [`App::bind`].
pub fn check(settings: &Settings) -> Result<(), StartError> {
    equip(settings, &Clock::system(), Before::Unknown).map(|_| ())
}

fn equip(settings: &Settings, clock: &Clock, before: Before) -> Result<Equipment, StartError> {
    let missing = settings.missing_for_serving();
    let base_url = settings.upstream.base_url.clone().filter(|_| missing.is_empty());
    let base_url = base_url.ok_or(StartError::Missing(missing))?;
    let unusable = |key: &str, error: &dyn fmt::Display| StartError::Unusable(format!("{key}: {error}"));
    let upstream =
        Upstream::new(&base_url, &settings.upstream, clock).map_err(|error| StartError::Unusable(error.to_string()))?;
    let nonces = Nonces::new().map_err(|error| unusable("nonces", &error))?;
    let hash_key_file = settings.log.hash_key_file.as_deref();
    let pseudonyms = Pseudonyms::new(hash_key_file).map_err(|error| match hash_key_file {
        Some(file) => unusable(&format!("log.hash_key_file: {}", file.display()), &error),
        None => unusable("random numbers", &error),
    })?;
    Ok(Equipment { clock: clock.clone(), upstream, nonces, pseudonyms, before })
}
