//! zvgate: a caching reverse proxy that signs, paces and keeps calls to the zvcms open platform.

pub mod clock;
pub mod json;
pub mod secret;
pub mod settings;
