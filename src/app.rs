//! The composition root: builds everything that lives as long as the process, and takes it down again.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admin::{Access, Admin, Readiness};
use crate::clock::Clock;
use crate::gateway::{Equipment, Gateway};
use crate::limit::Before;
use crate::listener::{self, Bounds, Peer, Room, Tally};
use crate::pseudonym::Pseudonyms;
use crate::settings::{ServerSettings, Settings};
use crate::signer::Nonces;
use crate::tenant::{KeyFile, KeyNews};
use crate::upstream::Upstream;

/// How often memory and connections whose time is over are freed.
const TIDY_EVERY: Duration = Duration::from_secs(1);
/// How often the platform's name is looked up.
const LOOK_UP_EVERY: Duration = Duration::from_secs(5);
/// How often key files are read, and how soon again where one of them changed.
const READ_KEYS_EVERY: Duration = Duration::from_millis(500);
const CONFIRM_KEYS_AFTER: Duration = Duration::from_millis(100);

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
    data: TcpListener,
    admin: TcpListener,
    server: ServerSettings,
    readiness: Arc<Readiness>,
    clock: Clock,
}

impl App {
    /// Builds the gateway and binds its listeners. `before` tells what upstream may remember of earlier calls.
    ///
    /// # Errors
    /// Where the configuration is not enough to serve, or an address is taken.
    pub async fn bind(settings: &Settings, clock: Clock, before: Before) -> Result<Self, StartError> {
        let gateway = Arc::new(build(settings, clock.clone(), before)?);
        let listen = async |key, address| {
            TcpListener::bind(address).await.map_err(|error| StartError::Listen(key, address, error))
        };
        Ok(Self {
            gateway,
            data: listen("server.listen", settings.server.listen).await?,
            admin: listen("server.admin_listen", settings.server.admin_listen).await?,
            server: settings.server.clone(),
            readiness: Arc::default(),
            clock,
        })
    }

    /// Where callers come in.
    ///
    /// # Errors
    /// Where the system does not tell.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.data.local_addr()
    }

    /// Where operators come in.
    ///
    /// # Errors
    /// Where the system does not tell.
    pub fn admin_address(&self) -> io::Result<SocketAddr> {
        self.admin.local_addr()
    }

    /// What is served, to hand it another configuration.
    pub fn gateway(&self) -> Arc<Gateway> {
        Arc::clone(&self.gateway)
    }

    /// Serves until `stop`; then accepts for `server.drain_delay` more, and finishes what is in hand in
    /// `server.drain_timeout`. The admin listener stays until the end.
    pub async fn run(self, stop: CancellationToken) {
        let Self { gateway, data, admin, server, readiness, clock } = self;
        let bounds = Bounds::new(&server);

        let (stop_data, stop_admin) = (CancellationToken::new(), CancellationToken::new());
        let pages = Admin::new(Arc::clone(&gateway), Arc::clone(&readiness), Access::new(&server));
        let operators = move |request, peer: Peer| pages.clone().handle(request, peer.address);
        let admin = tokio::spawn(listener::serve(admin, bounds, None, stop_admin.clone(), operators));

        let front = Arc::clone(&gateway);
        let callers = move |request, peer: Peer| {
            let gateway = Arc::clone(&front);
            async move {
                match peer.room {
                    Room::Enough => gateway.handle(request).await,
                    Room::None => gateway.turn_away(&request),
                }
            }
        };
        let metrics = gateway.metrics();
        let dropped = metrics.connections_dropped.clone();
        let tally = Tally { open: metrics.connections.clone(), dropped };
        let data = tokio::spawn(listener::serve(data, bounds, Some(tally), stop_data.clone(), callers));
        readiness.ready();

        let mut housekeeping = JoinSet::new();
        housekeeping.spawn(tidy(Arc::clone(&gateway)));
        housekeeping.spawn(look_up(Arc::clone(&gateway)));
        housekeeping.spawn(read_keys(Arc::clone(&gateway)));

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

async fn read_keys(gateway: Arc<Gateway>) {
    let mut reloads = gateway.reloads();
    let mut files = gateway.key_files();
    loop {
        if gateway.reloads() != reloads {
            reloads = gateway.reloads();
            files = gateway.key_files();
        }
        let pending = files.iter().any(KeyFile::is_pending);
        tokio::time::sleep(if pending { CONFIRM_KEYS_AFTER } else { READ_KEYS_EVERY }).await;
        // A file system may let its readers wait.
        let read = tokio::task::spawn_blocking(move || {
            let news: Vec<KeyNews> = files.iter_mut().map(KeyFile::look).collect();
            (files, news)
        });
        let Ok((read, news)) = read.await else { return };
        files = read;
        files.iter().zip(&news).for_each(|(file, news)| gateway.learn_key(file.tenant(), news));
    }
}

fn build(settings: &Settings, clock: Clock, before: Before) -> Result<Gateway, StartError> {
    let missing = settings.missing_for_serving();
    let base_url = settings.upstream.base_url.clone().filter(|_| missing.is_empty());
    let base_url = base_url.ok_or(StartError::Missing(missing))?;
    let unusable = |key: &str, error: &dyn fmt::Display| StartError::Unusable(format!("{key}: {error}"));
    let upstream =
        Upstream::new(base_url, &settings.upstream, &clock).map_err(|error| StartError::Unusable(error.to_string()))?;
    let nonces = Nonces::new().map_err(|error| unusable("nonces", &error))?;
    let pseudonyms = Pseudonyms::new(settings.log.hash_key_file.as_deref())
        .map_err(|error| unusable("log.hash_key_file", &error))?;
    Ok(Gateway::new(settings, Equipment { clock, upstream, nonces, pseudonyms, before }))
}
