//! TLS towards servers: the platform and Redis. Which CAs are trusted.

use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use super::{Arc, read_limited};

/// TLS towards a server.
#[derive(Debug)]
pub struct ClientTls {
    /// Its configuration.
    pub config: Arc<ClientConfig>,
    /// Whether the system has no trusted CAs, so that those of the Mozilla root program, which this program includes, are.
    pub uses_bundled: bool,
}

/// Trusts the system's CAs, and `ca`. `named`: the system's are those that these environment variables name
/// (`SSL_CERT_FILE`, `SSL_CERT_DIR`), and must be usable. Without any, those that this program includes. `protocol` is the one that
/// is negotiated, if any is (RFC 7301).
///
/// # Errors
/// Which file cannot be used, and why.
pub fn client_tls(
    ca: Option<&[CertificateDer<'static>]>,
    named: &[&str],
    protocol: Option<&str>,
) -> Result<ClientTls, String> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    if let Some(error) = system.errors.first().filter(|_| !named.is_empty()) {
        return Err(format!("names trusted CAs that cannot be read: {error}"));
    }
    let (added, _) = roots.add_parsable_certificates(system.certs);
    if added == 0 && !named.is_empty() {
        return Err("names no file with a certificate in PEM".to_owned());
    }
    for certificate in ca.unwrap_or_default() {
        roots.add(certificate.clone()).map_err(|error| format!("contains an invalid certificate: {error}"))?;
    }
    let uses_bundled = roots.is_empty();
    if uses_bundled {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| format!("cannot be used: TLS cannot be configured ({error})"))?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocol.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    Ok(ClientTls { config: Arc::new(config), uses_bundled })
}

/// The certificates in a PEM file.
///
/// # Errors
/// What is wrong with the file, to be put after its key.
pub fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = read_limited(file)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(format!("names {}, which has no certificate in PEM", file.display())),
    }
}
