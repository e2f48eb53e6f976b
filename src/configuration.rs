//! A configuration, loaded: its settings, and the keys and certificates in the files that they name.

use std::collections::{BTreeSet, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue};
use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::secret::Secret;
use crate::settings::{ConfigError, ConfigErrors, FileReference, Holds, KeySource, Parsed, Settings, Sources};
use crate::tenant::{TenantKeys, read_key};
use crate::tls::{ClientTls, Tls, client_tls, read_certificates, read_limited};

/// A configuration that can be used.
pub struct Configuration {
    /// The settings.
    pub settings: Settings,
    /// The tenants' signing keys.
    pub keys: TenantKeys,
    /// TLS for callers; `None`: plain text.
    pub tls: Option<Arc<Tls>>,
    /// What connecting to the platform needs.
    pub connect: ConnectKeys,
    /// What connecting to Redis needs.
    pub redis: RedisKeys,
    /// What sending traces needs.
    pub traces: TraceKeys,
    /// What an operator should know of it although it is valid.
    pub warnings: Vec<String>,
}

/// What connecting to the platform needs beside settings.
#[derive(Clone, Debug, Default)]
pub struct ConnectKeys {
    /// TLS towards the platform; `None`: plain text.
    pub tls: Option<Arc<ClientConfig>>,
    /// `Proxy-Authorization` for the forward proxy, marked as sensitive.
    pub proxy_authorization: Option<HeaderValue>,
}

/// What connecting to Redis needs beside settings.
#[derive(Clone, Debug, Default)]
pub struct RedisKeys {
    /// TLS towards it; `None`: plain text.
    pub tls: Option<Arc<ClientConfig>>,
    /// The password of its user.
    pub password: Option<Secret>,
}

/// What sending traces needs beside settings.
#[derive(Clone, Debug, Default)]
pub struct TraceKeys {
    /// TLS towards the collector; `None`: plain text.
    pub tls: Option<Arc<ClientConfig>>,
    /// Header fields that it wants, marked as sensitive.
    pub headers: HeaderMap,
}

/// The contents of files that a configuration names.
#[derive(Default)]
struct Contents {
    keys: HashMap<String, Secret>,
    trusted: Option<Vec<CertificateDer<'static>>>,
    proxy_authorization: Option<HeaderValue>,
    redis_trusted: Option<Vec<CertificateDer<'static>>>,
    redis_password: Option<Secret>,
    trace_headers: HeaderMap,
}

impl Configuration {
    /// Reads settings, keys and certificates, which may block.
    ///
    /// # Errors
    /// All errors, not only the first.
    pub fn load(sources: &Sources) -> Result<Self, ConfigErrors> {
        let Parsed { settings, mut errors, mut warnings, secret_files, files, tls_files } = sources.parse();
        let mut contents = Contents::default();
        for file in files {
            if let Err(problem) = contents.read(&file) {
                errors.push(ConfigError { origin: file.origin, key: file.key, text: problem });
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
        let base_url = settings.as_ref().and_then(|settings| settings.fixed.client.base_url.as_ref());
        let cluster = settings.as_ref().and_then(|settings| settings.fixed.cluster.redis.as_ref());
        let roots = &sources.named_roots;
        let platform = base_url.filter(|url| url.is_tls());
        let platform = platform.map(|_| trust("upstream.ca", contents.trusted.as_deref(), roots, Some("http/1.1")));
        let redis = cluster.filter(|redis| redis.url.is_tls());
        let redis = redis.map(|_| trust("cluster.ca", contents.redis_trusted.as_deref(), roots, None));
        let collector = settings.as_ref().and_then(|settings| settings.fixed.traces.endpoint.as_ref());
        let collector = collector.filter(|url| url.is_tls()).map(|_| trust("traces.endpoint", None, roots, None));
        let [platform, redis, collector] = [platform, redis, collector].map(|tls| {
            tls.transpose().unwrap_or_else(|error| {
                errors.push(error);
                None
            })
        });
        if [&platform, &redis, &collector].into_iter().flatten().any(|tls| tls.uses_bundled) {
            let warning = "the system has no trusted CA certificates; those included in this program are used";
            warnings.push(warning.to_owned());
        }
        let connect = ConnectKeys {
            tls: platform.map(|tls| tls.config),
            proxy_authorization: contents.proxy_authorization.take(),
        };
        let redis = RedisKeys { tls: redis.map(|tls| tls.config), password: contents.redis_password.take() };
        let traces = TraceKeys { tls: collector.map(|tls| tls.config), headers: contents.trace_headers };
        if let Some(settings) = &settings {
            warnings.extend(exposures(settings, secret_files, tls.is_some()));
        }
        let Some(settings) = settings.filter(|_| errors.is_empty()) else { return Err(ConfigErrors(errors)) };
        let inline = settings.dynamic.tenants.iter().filter_map(|tenant| match &tenant.key {
            KeySource::Inline(key) => Some((tenant.name.clone(), key.clone())),
            KeySource::File(_) => None,
        });
        contents.keys.extend(inline);
        Ok(Self {
            settings,
            keys: TenantKeys::new(contents.keys),
            tls: tls.map(Arc::new),
            connect,
            redis,
            traces,
            warnings,
        })
    }
}

/// Secrets that any user of the machine can see, in these files and in those that they name.
fn exposures(settings: &Settings, secret_files: BTreeSet<PathBuf>, has_tls: bool) -> Vec<String> {
    let keys = settings.dynamic.tenants.iter().filter_map(|tenant| match &tenant.key {
        KeySource::File(path) => Some(path),
        KeySource::Inline(_) => None,
    });
    let fixed = &settings.fixed;
    let redis = fixed.cluster.redis.as_ref().and_then(|redis| redis.password_file.as_ref());
    let others = fixed.client.proxy_auth_file.iter().chain(&fixed.log.hash_key_file).chain(redis);
    let others = others.chain(&fixed.traces.headers_file);
    let files = secret_files.into_iter().chain(keys.chain(others).cloned());
    let is_exposed = |file: &PathBuf| std::fs::metadata(file).is_ok_and(|metadata| metadata.mode() & 0o006 != 0);
    let warning = |file: PathBuf| {
        format!(
            "{} holds a secret, and any user of this machine can read or write it; expected mode 0600 or 0640",
            file.display()
        )
    };
    let mut warnings: Vec<String> = files.filter(is_exposed).map(warning).collect();
    let listen = settings.fixed.listeners.listen;
    if !settings.dynamic.callers.is_empty() && !listen.ip().is_loopback() && !has_tls {
        warnings.push(format!(
            "server.listen: callers' keys and coupons cross the network to {listen} in plain text; expected server.tls, or a proxy on this machine that terminates TLS"
        ));
    }
    if let Some(redis) = &fixed.cluster.redis
        && redis.password_file.is_some()
        && !redis.url.is_tls()
        && !redis.url.is_loopback()
    {
        warnings.push(
            "cluster.url: the password of Redis crosses the network in plain text; expected rediss://, or a network that nobody else is in"
                .to_owned(),
        );
    }
    warnings
}

/// TLS towards a server that also trusts the CAs in the file of `key`; `named_roots` are the variables that name the system's CAs.
fn trust(
    key: &str,
    ca: Option<&[CertificateDer<'static>]>,
    named_roots: &[&str],
    protocol: Option<&str>,
) -> Result<ClientTls, ConfigError> {
    client_tls(ca, named_roots, protocol).map_err(|text| match named_roots {
        [] => ConfigError { origin: None, key: key.to_owned(), text },
        named => ConfigError { origin: Some("environment".to_owned()), key: named.join(", "), text },
    })
}

impl Contents {
    /// Reads a file.
    fn read(&mut self, file: &FileReference) -> Result<(), String> {
        let secret = |expected: &str| read_key(&file.path).map_err(|problem| format!("{problem}; {expected}"));
        match &file.holds {
            Holds::SigningKey(tenant) => {
                let key = secret("expected a file that holds the signing key")?;
                self.keys.insert(tenant.clone(), key);
            }
            Holds::TrustedCas => self.trusted = Some(read_certificates(&file.path)?),
            Holds::RedisCas => self.redis_trusted = Some(read_certificates(&file.path)?),
            Holds::RedisPassword => {
                self.redis_password = Some(secret("expected a file that holds the password")?);
            }
            Holds::TraceHeaders => {
                const EXPECTED: &str = "expected lines such as name: value";
                let bytes = Zeroizing::new(read_limited(&file.path)?);
                let text = std::str::from_utf8(&bytes)
                    .map_err(|_| format!("names {}, which is not UTF-8; {EXPECTED}", file.path.display()))?;
                for line in text.lines().filter(|line| !line.trim().is_empty()) {
                    let field = line.split_once(':').and_then(|(name, value)| {
                        Some((HeaderName::try_from(name.trim()).ok()?, HeaderValue::from_str(value.trim()).ok()?))
                    });
                    let (name, value) = field
                        .ok_or_else(|| format!("names {}, which has another line; {EXPECTED}", file.path.display()))?;
                    self.trace_headers.append(name, sensitive(value));
                }
            }
            Holds::ProxyCredentials => {
                const EXPECTED: &str = "expected a file that holds user:password";
                let credentials = secret(EXPECTED)?;
                if !credentials.expose().contains(':') {
                    return Err(format!("names {}, which has no colon; {EXPECTED}", file.path.display()));
                }
                let basic = format!("Basic {}", STANDARD.encode(credentials.expose()));
                let value = HeaderValue::from_str(&basic).map_err(|_| EXPECTED.to_owned())?;
                self.proxy_authorization = Some(sensitive(value));
            }
        }
        Ok(())
    }
}

/// Marked, so that it is not printed.
fn sensitive(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}
