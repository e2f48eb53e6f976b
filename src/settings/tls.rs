//! `server.tls.*`

use std::path::PathBuf;
use std::sync::Arc;

use super::reader::Table;
use crate::tls::{Files, Tls};

/// Reads the table, and the files that it names; `None` where TLS is off.
pub(super) fn read(mut table: Table<'_>) -> Option<Arc<Tls>> {
    if !table.is_empty() {
        for key in ["cert", "key"].into_iter().filter(|key| !table.has(key)) {
            table.mistake(
                key,
                "is missing; TLS wants a certificate and its private key, server.tls.cert and server.tls.key",
            );
        }
    }
    let cert: Option<PathBuf> = table.optional("cert");
    let key: Option<PathBuf> = table.optional("key");
    let client_ca: Option<PathBuf> = table.optional("client_ca");
    let files = cert.zip(key).map(|(cert, key)| Files { cert, key, client_ca });
    let loaded = files.map(Tls::load).transpose();
    let loaded = loaded.map_err(|unusable| table.mistake(unusable.key, unusable.why));
    table.finish();
    loaded.ok().flatten().map(Arc::new)
}
