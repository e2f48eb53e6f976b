//! TLS for callers: certificates that lie in files, read whole, checked, and read again when they change.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Longer than any chain or bundle of roots, so that another file named by mistake is not taken in whole.
const LONGEST_FILE: u64 = 4 << 20;

/// Where the certificates lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The gateway's own certificate, and those that lead from it to a root, in PEM.
    pub cert: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
    /// Who signs the certificates that callers must have, in PEM; none: callers need no certificate.
    pub client_ca: Option<PathBuf>,
}

/// Why certificates cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    /// The key of the file that is at fault, below `server.tls`.
    pub key: &'static str,
    /// Why, in words that follow the key.
    pub why: String,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "server.tls.{} {}", self.key, self.why)
    }
}

impl std::error::Error for Unusable {}

/// What the files held, told apart by its hash: a private key is not kept for comparing.
type Print = [u8; 32];

/// The certificates in use.
pub struct Tls {
    files: Files,
    current: ArcSwap<ServerConfig>,
    seen: Mutex<Seen>,
}

/// What was found in the files.
struct Seen {
    /// What is in use.
    used: Print,
    /// What was found last, once: it may be half written, or one of two files.
    candidate: Option<Print>,
    /// What was found and cannot be used.
    refused: Option<Print>,
}

/// What a look into the files brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsNews {
    /// Nothing new.
    None,
    /// Other certificates, which are in use from now on.
    Changed,
    /// What lies there cannot be used; what was in use stays.
    Unusable(Unusable),
}

impl Tls {
    /// Reads the files, which may block.
    ///
    /// # Errors
    /// Which file cannot be used, and why.
    pub fn load(files: Files) -> Result<Self, Unusable> {
        let (contents, used) = Contents::read(&files);
        let current = ArcSwap::from_pointee(contents?.config()?);
        Ok(Self { files, current, seen: Mutex::new(Seen { used, candidate: None, refused: None }) })
    }

    /// What a new connection is to be served with.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }

    /// Whether something new was found that only another look confirms.
    pub fn is_pending(&self) -> bool {
        self.seen.lock().candidate.is_some()
    }

    /// Reads the files again, which may block. What they hold counts once it is found twice: the first time it may be half
    /// written, or a certificate without its key.
    pub fn look(&self) -> TlsNews {
        let (contents, print) = Contents::read(&self.files);
        let mut seen = self.seen.lock();
        if seen.used == print || seen.refused == Some(print) {
            seen.candidate = None;
            return TlsNews::None;
        }
        if seen.candidate != Some(print) {
            seen.candidate = Some(print);
            return TlsNews::None;
        }
        seen.candidate = None;
        match contents.and_then(|contents| contents.config()) {
            Ok(config) => {
                self.current.store(Arc::new(config));
                *seen = Seen { used: print, candidate: None, refused: None };
                TlsNews::Changed
            }
            Err(unusable) => {
                seen.refused = Some(print);
                TlsNews::Unusable(unusable)
            }
        }
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

/// What the files hold.
struct Contents {
    cert: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
    client_ca: Option<Vec<u8>>,
}

impl Contents {
    /// What the files hold, and what tells it from anything else that they may hold or be.
    fn read(files: &Files) -> (Result<Self, Unusable>, Print) {
        let read = || -> Result<Self, Unusable> {
            let cert = read_file("cert", &files.cert)?;
            let key = Zeroizing::new(read_file("key", &files.key)?);
            let client_ca = files.client_ca.as_deref().map(|file| read_file("client_ca", file)).transpose()?;
            Ok(Self { cert, key, client_ca })
        };
        let contents = read();
        let mut print = Sha256::new();
        match &contents {
            Ok(Self { cert, key, client_ca }) => {
                for part in [cert, &**key, client_ca.as_deref().unwrap_or_default()] {
                    print.update(Sha256::digest(part));
                }
            }
            Err(unusable) => print.update(unusable.to_string()),
        }
        (contents, print.finalize().into())
    }

    fn config(&self) -> Result<ServerConfig, Unusable> {
        let unusable = |key, why: String| Unusable { key, why };
        let chain = certificates("cert", &self.cert)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|_| unusable("key", "names a file without a private key in PEM".to_owned()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable("cert", format!("is of no use: TLS cannot be set up ({error})")))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(pem) => {
                let mut roots = RootCertStore::empty();
                for root in certificates("client_ca", pem)? {
                    let added = roots.add(root);
                    added.map_err(|error| unusable("client_ca", format!("holds a certificate of no use: {error}")))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(
                    verifier.map_err(|error| unusable("client_ca", format!("is of no use: {error}")))?,
                )
            }
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|error| unusable("key", format!("does not fit server.tls.cert: {error}")))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // A session can be taken up again without a table of them, and not under other certificates than it began.
        config.ticketer = rustls::crypto::ring::Ticketer::new()
            .map_err(|error| unusable("cert", format!("is of no use: TLS cannot be set up ({error})")))?;
        Ok(config)
    }
}

fn read_file(key: &'static str, file: &Path) -> Result<Vec<u8>, Unusable> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let read = std::fs::File::open(file).and_then(|file| file.take(LONGEST_FILE + 1).read_to_end(&mut bytes));
    match read {
        Ok(length) if length as u64 > LONGEST_FILE => {
            Err(Unusable { key, why: format!("names a file of more than {LONGEST_FILE} bytes") })
        }
        Ok(_) => Ok(bytes),
        Err(error) => Err(Unusable { key, why: format!("names a file that cannot be read ({})", error.kind()) }),
    }
}

fn certificates(key: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(Unusable { key, why: "names a file without a certificate in PEM".to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issue(files: &Files) {
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(&files.cert, certified.cert.pem()).unwrap();
        std::fs::write(&files.key, certified.signing_key.serialize_pem()).unwrap();
    }

    #[test]
    fn new_certificates_count_when_they_are_found_twice_and_others_are_told_of_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        let files = Files { cert: file("cert"), key: file("key"), client_ca: None };
        issue(&files);
        let tls = Tls::load(files.clone()).unwrap();
        let first = tls.config();
        assert_eq!((tls.look(), tls.is_pending()), (TlsNews::None, false));
        issue(&files);
        assert_eq!((tls.look(), tls.is_pending()), (TlsNews::None, true));
        issue(&files);
        assert_eq!((tls.look(), tls.is_pending()), (TlsNews::None, true), "what is found now is something else");
        assert!(Arc::ptr_eq(&first, &tls.config()));
        assert_eq!((tls.look(), tls.is_pending()), (TlsNews::Changed, false));
        let second = tls.config();
        assert!(!Arc::ptr_eq(&first, &second));
        std::fs::remove_file(&files.key).unwrap();
        assert_eq!(tls.look(), TlsNews::None);
        assert!(matches!(tls.look(), TlsNews::Unusable(Unusable { key: "key", .. })));
        assert_eq!((tls.look(), tls.look()), (TlsNews::None, TlsNews::None));
        assert!(Arc::ptr_eq(&second, &tls.config()));
    }
}
