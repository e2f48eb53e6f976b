//! `zvgate serve`

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::stop::Stops;
use super::{Configuration, UNUSABLE, complain, fail, logging, runtime};
use crate::app::App;
use crate::clock::Clock;
use crate::limit::Before;
use crate::settings::Settings;

pub(super) fn run(configuration: &Configuration) -> Result<(), u8> {
    let settings = configuration.load()?;
    logging::begin(&settings.log);
    runtime(settings.server.workers)?.block_on(serve(configuration, &settings))
}

async fn serve(configuration: &Configuration, settings: &Settings) -> Result<(), u8> {
    let mut stops = Stops::new().map_err(fail)?;
    let mut hangups = signal(SignalKind::hangup()).map_err(fail)?;
    let app = App::bind(settings, Clock::system(), Before::Unknown).await.map_err(|error| {
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
