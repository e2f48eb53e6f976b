//! zvgate: a caching reverse proxy that signs, paces and keeps calls to the zvcms open platform.

pub mod answer;
pub mod cache;
pub mod clock;
pub mod envelope;
pub mod gateway;
pub mod json;
pub mod limit;
pub mod metrics;
pub mod pseudonym;
pub mod reply;
pub mod route;
pub mod secret;
pub mod settings;
pub mod signer;
pub mod tenant;
pub mod upstream;
