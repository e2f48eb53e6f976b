//! TLS: for callers, certificates in files, which are read completely, checked, and read again when they change; towards
//! servers, the CAs that are trusted.

mod client;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest, Sha256};
use x509_cert::der::Decode;
use zeroize::Zeroizing;

pub use self::client::{ClientTls, client_tls, read_certificates};

/// Longer than any chain or bundle of roots, so that another file that is named by mistake is not read completely.
const MAX_FILE: u64 = 4 << 20;

/// The files of the certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The gateway's certificate and its chain, in PEM.
    pub cert: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
    /// The CAs of the certificates that callers must have, in PEM; none: callers need no certificate.
    pub client_ca: Option<PathBuf>,
}

/// Why certificates cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("server.tls.{key} {problem}")]
pub struct TlsError {
    /// The key of the file, below `server.tls`.
    pub key: &'static str,
    /// What is wrong with it, to be put after its key.
    pub problem: String,
}

/// A hash of what the files contained: a private key is not kept for comparison.
type Fingerprint = [u8; 32];

/// The certificates in use.
pub struct Tls {
    files: TlsFiles,
    current: ArcSwap<ServerConfig>,
    /// When the certificate in use expires, in seconds since the Unix epoch; 0: it does not say so readably.
    expires: AtomicU64,
    seen: Mutex<Seen>,
}

/// What was read from the files.
struct Seen {
    /// What is in use.
    used: Fingerprint,
    /// What was read last, once: it may be half written, or one of two files.
    candidate: Option<Fingerprint>,
    /// What was read and cannot be used.
    rejected: Option<Fingerprint>,
}

/// What reading the files again brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertReload {
    /// The same certificates, or others that are not confirmed yet.
    Unchanged,
    /// Other certificates, which are used from now on.
    Changed,
    /// An error; the last good certificates are used.
    Failed(TlsError),
}

impl Tls {
    /// Reads the files, which may block.
    ///
    /// # Errors
    /// Which file cannot be used, and why.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let (contents, used) = Contents::read(&files);
        let (config, expires) = contents?.config()?;
        let (current, expires) = (ArcSwap::from_pointee(config), AtomicU64::new(expires));
        Ok(Self { files, current, expires, seen: Mutex::new(Seen { used, candidate: None, rejected: None }) })
    }

    /// The configuration for new connections.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }

    /// When the certificate in use expires, in seconds since the Unix epoch, if it says so.
    pub fn expires(&self) -> Option<u64> {
        Some(self.expires.load(Ordering::Relaxed)).filter(|expires| *expires > 0)
    }

    /// Whether something new was read that has to be confirmed.
    pub fn is_pending(&self) -> bool {
        self.seen.lock().candidate.is_some()
    }

    /// Reads the files again, which may block. What they contain is used once it was read twice: the first time it may be half
    /// written, or a certificate without its key.
    pub fn reload(&self) -> CertReload {
        let (contents, fingerprint) = Contents::read(&self.files);
        let mut seen = self.seen.lock();
        if seen.used == fingerprint || seen.rejected == Some(fingerprint) {
            seen.candidate = None;
            return CertReload::Unchanged;
        }
        if seen.candidate != Some(fingerprint) {
            seen.candidate = Some(fingerprint);
            return CertReload::Unchanged;
        }
        seen.candidate = None;
        match contents.and_then(|contents| contents.config()) {
            Ok((config, expires)) => {
                self.current.store(Arc::new(config));
                self.expires.store(expires, Ordering::Relaxed);
                *seen = Seen { used: fingerprint, candidate: None, rejected: None };
                CertReload::Changed
            }
            Err(error) => {
                seen.rejected = Some(fingerprint);
                CertReload::Failed(error)
            }
        }
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

/// The contents of the files.
struct Contents {
    cert: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
    client_ca: Option<Vec<u8>>,
}

impl Contents {
    /// Reads the files; returns their contents with a fingerprint, or the error with one.
    fn read(files: &TlsFiles) -> (Result<Self, TlsError>, Fingerprint) {
        let read = || -> Result<Self, TlsError> {
            let cert = read_file("cert", &files.cert)?;
            let key = Zeroizing::new(read_file("key", &files.key)?);
            let client_ca = files.client_ca.as_deref().map(|file| read_file("client_ca", file)).transpose()?;
            Ok(Self { cert, key, client_ca })
        };
        let contents = read();
        let mut fingerprint = Sha256::new();
        match &contents {
            Ok(Self { cert, key, client_ca }) => {
                for part in [cert, &**key, client_ca.as_deref().unwrap_or_default()] {
                    fingerprint.update(Sha256::digest(part));
                }
            }
            Err(error) => fingerprint.update(error.to_string()),
        }
        (contents, fingerprint.finalize().into())
    }

    /// What they configure, and when the certificate expires.
    fn config(&self) -> Result<(ServerConfig, u64), TlsError> {
        let invalid = |key, problem: String| TlsError { key, problem };
        let chain = certificates("cert", &self.cert)?;
        let expires = chain.first().map(expiry).unwrap_or_default();
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|_| invalid("key", "names a file without a private key in PEM".to_owned()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| invalid("cert", format!("cannot be used: TLS cannot be configured ({error})")))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(pem) => {
                let mut roots = RootCertStore::empty();
                for root in certificates("client_ca", pem)? {
                    let added = roots.add(root);
                    added.map_err(|error| invalid("client_ca", format!("contains an invalid certificate: {error}")))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(
                    verifier.map_err(|error| invalid("client_ca", format!("cannot be used: {error}")))?,
                )
            }
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|error| invalid("key", format!("does not match server.tls.cert: {error}")))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        if self.client_ca.is_some() {
            // A session that resumes does not show its certificate again, which may have expired.
            config.session_storage = Arc::new(NoServerSessionStorage {});
        } else {
            // Sessions resume without a table of them, and never under other certificates than those they began with.
            config.ticketer = rustls::crypto::ring::Ticketer::new()
                .map_err(|error| invalid("cert", format!("cannot be used: TLS cannot be configured ({error})")))?;
        }
        Ok((config, expires))
    }
}

/// When a certificate expires (RFC 5280, section 4.1.2.5), in seconds since the Unix epoch; 0 if that cannot be read.
fn expiry(certificate: &CertificateDer<'_>) -> u64 {
    let certificate = x509_cert::Certificate::from_der(certificate);
    certificate.map_or(0, |one| one.tbs_certificate().validity().not_after.to_unix_duration().as_secs())
}

fn read_file(key: &'static str, file: &Path) -> Result<Vec<u8>, TlsError> {
    read_limited(file).map_err(|problem| TlsError { key, problem })
}

/// Reads a file of certificates or keys.
pub fn read_limited(file: &Path) -> Result<Vec<u8>, String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let read = std::fs::File::open(file).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes));
    match read {
        Ok(length) if length as u64 > MAX_FILE => {
            Err(format!("names {}, a file of more than {MAX_FILE} bytes", file.display()))
        }
        Ok(_) => Ok(bytes),
        Err(error) => Err(format!("names {}, which cannot be read: {error}", file.display())),
    }
}

fn certificates(key: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(TlsError { key, problem: "names a file without a certificate in PEM".to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issue(files: &TlsFiles) {
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(&files.cert, certified.cert.pem()).unwrap();
        std::fs::write(&files.key, certified.signing_key.serialize_pem()).unwrap();
    }

    #[test]
    fn new_certificates_are_used_once_read_twice_and_errors_are_reported_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        let files = TlsFiles { cert: file("cert"), key: file("key"), client_ca: None };
        issue(&files);
        let tls = Tls::load(files.clone()).unwrap();
        let first = tls.config();
        assert_eq!((tls.reload(), tls.is_pending()), (CertReload::Unchanged, false));
        issue(&files);
        assert_eq!((tls.reload(), tls.is_pending()), (CertReload::Unchanged, true));
        issue(&files);
        assert_eq!((tls.reload(), tls.is_pending()), (CertReload::Unchanged, true), "the files have changed again");
        assert!(Arc::ptr_eq(&first, &tls.config()));
        assert_eq!((tls.reload(), tls.is_pending()), (CertReload::Changed, false));
        let second = tls.config();
        assert!(!Arc::ptr_eq(&first, &second));
        std::fs::remove_file(&files.key).unwrap();
        assert_eq!(tls.reload(), CertReload::Unchanged);
        assert!(matches!(tls.reload(), CertReload::Failed(TlsError { key: "key", .. })));
        assert_eq!((tls.reload(), tls.reload()), (CertReload::Unchanged, CertReload::Unchanged));
        assert!(Arc::ptr_eq(&second, &tls.config()));
    }
}
