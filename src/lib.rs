//! zvgate: a caching reverse proxy that signs, rate-limits and caches calls to the zvcms open platform.
//!
//! A request goes through the modules in this order, and each imports only from those above it:
//! [`listener`] → [`gateway`]: [`route`] → [`caller`] → [`limit`] of callers → [`envelope`] → [`tenant`] → [`cache`]; on a miss,
//! once for each question: [`limit`] of the platform → [`signer`] → [`upstream`] → [`answer`] → [`cache`]; then [`reply`].

pub mod backoff;
pub mod call_state;
pub mod clock;
pub mod line_limit;
pub mod secret;
pub mod skew;
pub mod tls;

pub mod json;

pub mod settings;

pub mod route;

pub mod envelope;

pub mod tenant;

pub mod configuration;

pub mod answer;

pub mod caller;

pub mod cache;

pub mod limit;

pub mod signer;

pub mod budget;

pub mod upstream;

pub mod metrics;
pub mod pseudonym;
pub mod trace;

pub mod cluster;

pub mod reply;

pub mod gateway;

pub mod listener;

pub mod admin;

pub mod sandbox;

pub mod app;

pub mod cli;
