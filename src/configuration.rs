//! A configuration, loaded: its settings, and the keys and certificates in the files that they name.

use std::collections::HashMap;
use std::sync::Arc;

use crate::secret::Secret;
use crate::settings::{ConfigError, ConfigErrors, KeySource, Parsed, Settings, Sources};
use crate::tenant::{TenantKeys, read_key};
use crate::tls::Tls;

/// A configuration that can be used.
pub struct Configuration {
    /// The settings.
    pub settings: Settings,
    /// The tenants' signing keys.
    pub keys: TenantKeys,
    /// TLS for callers; `None`: plain text.
    pub tls: Option<Arc<Tls>>,
}

impl Configuration {
    /// Reads settings, keys and certificates, which may block.
    ///
    /// # Errors
    /// All errors, not only the first.
    pub fn load(sources: &Sources) -> Result<Self, ConfigErrors> {
        let Parsed { settings, mut errors, key_files, tls_files } = sources.parse();
        let mut keys: HashMap<String, Secret> = HashMap::new();
        for file in key_files {
            match read_key(&file.path) {
                Ok(key) => drop(keys.insert(file.tenant, key)),
                Err(problem) => errors.push(ConfigError {
                    origin: file.origin,
                    key: format!("tenants.{}.open_key_file", file.tenant),
                    text: format!("{problem}; expected a file that holds the signing key"),
                }),
            }
        }
        let tls = tls_files.map(|(origin, files)| {
            Tls::load(files).map_err(|error| ConfigError {
                origin,
                key: format!("server.tls.{}", error.key),
                text: error.problem,
            })
        });
        let tls = tls.transpose().unwrap_or_else(|error| {
            errors.push(error);
            None
        });
        let Some(settings) = settings.filter(|_| errors.is_empty()) else { return Err(ConfigErrors(errors)) };
        let inline = settings.dynamic.tenants.iter().filter_map(|tenant| match &tenant.key {
            KeySource::Inline(key) => Some((tenant.name.clone(), key.clone())),
            KeySource::File(_) => None,
        });
        keys.extend(inline);
        Ok(Self { settings, keys: TenantKeys::new(keys), tls: tls.map(Arc::new) })
    }
}
