//! The example configurations: each serves the calls that it describes.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::program::{run, serve, zvgate};
use crate::support::{MERCHANTS, Platform, READ, Upstream, WRITE, post};
use crate::tls::Authority;

const BODY: &str = r#"{"params":{"customerId":"1"}}"#;

/// An example with the addresses and files of this machine in place of those of production.
struct Example {
    folder: tempfile::TempDir,
    text: String,
}

impl Example {
    fn of(name: &str, platform: &Platform) -> Self {
        let path = format!("{}/examples/{name}.toml", env!("CARGO_MANIFEST_DIR"));
        let mut example = Self { folder: tempfile::tempdir().unwrap(), text: std::fs::read_to_string(path).unwrap() };
        for (name, (_, _, key)) in ["shop", "outlet"].into_iter().zip(MERCHANTS) {
            let file = example.folder.path().join(name);
            std::fs::write(&file, key).unwrap();
            std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        }
        let folder = example.folder.path().display().to_string();
        example.replace("https://openapi.zvcms.com", &platform.url());
        example.replace("/run/secrets/zvgate", &folder);
        for port in ["8080", "8443", "9464"] {
            example.text = example.text.replace(&format!(":{port}\""), ":0\"");
        }
        example
    }

    fn replace(&mut self, from: &str, to: &str) {
        assert!(self.text.contains(from), "{from}");
        self.text = self.text.replace(from, to);
    }

    /// Gives a caller this key.
    fn set_key(&mut self, caller: &str, key: &str) {
        let hash: String = Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect();
        let start = self.text.find(&format!("[callers.{caller}]")).unwrap();
        let start = start + self.text[start..].find("[\"").unwrap() + 2;
        self.text.replace_range(start..start + hash.len(), &hash);
    }

    /// Writes the file, and has `zvgate check` judge it.
    fn checked(&self) -> PathBuf {
        let path = self.folder.path().join("zvgate.toml");
        std::fs::write(&path, &self.text).unwrap();
        let (code, _, err) = run(zvgate().args(["check", "--config"]).arg(&path));
        // The listener of that example is behind a proxy that terminates TLS.
        let warned = err.lines().filter(|line| !line.contains("in plain text")).count();
        assert_eq!((code, warned), (0, 0), "{err}");
        path
    }
}

#[test]
fn every_example_has_a_test() {
    let folder = format!("{}/examples", env!("CARGO_MANIFEST_DIR"));
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    assert_eq!(names, ["behind-tls.toml", "clients", "one-merchant.toml", "several-merchants.toml"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_of_one_merchant_serves_callers_without_keys() {
    let platform = Platform::unlimited().await;
    let (_gateway, _log, record) = serve(&Example::of("one-merchant", &platform).checked());
    let address = record["listen"].as_str().unwrap().parse().unwrap();
    assert!(post(address, READ, &[], BODY).await.is_stored_miss());
    assert!(post(address, READ, &[], BODY).await.is_hit());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_of_several_merchants_gives_each_caller_what_it_may_use() {
    let platform = Platform::unlimited().await;
    let mut example = Example::of("several-merchants", &platform);
    for caller in ["checkout", "app", "crm"] {
        example.set_key(caller, caller);
    }
    let (_gateway, _log, record) = serve(&example.checked());
    let port = record["listen"].as_str().unwrap().rsplit_once(':').unwrap().1;
    let address = format!("127.0.0.1:{port}").parse().unwrap();
    let call = async |caller: &str, tenant: &str, path: &str, body: &str| {
        let key = format!("Bearer {caller}");
        post(address, path, &[("authorization", &key), ("x-zvgate-tenant", tenant)], body).await
    };
    for tenant in ["shop", "outlet"] {
        assert_eq!(call("checkout", tenant, READ, BODY).await.status, 200);
    }
    assert!(call("app", "shop", READ, BODY).await.is_hit());
    call("app", "outlet", READ, BODY).await.assert_error(403, "forbidden");
    call("app", "shop", WRITE, BODY).await.assert_error(403, "forbidden");
    post(address, READ, &[], BODY).await.assert_error(401, "unauthenticated");
    let ids = r#"{"customerIds":["1"]}"#;
    assert_eq!(call("crm", "shop", "/v1/invalidate", ids).await.text(), r#"{"dropped":1}"#);
    call("app", "shop", "/v1/invalidate", ids).await.assert_error(403, "forbidden");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_behind_tls_serves_callers_with_a_certificate_and_a_key() {
    let platform = Platform::unlimited().await;
    let mut example = Example::of("behind-tls", &platform);
    let authority = Authority::new();
    for (name, file) in [("cert", "cert"), ("key", "key"), ("callers", "ca")] {
        example.replace(&format!("/etc/zvgate/tls/{name}.pem"), &authority.path(file));
    }
    authority.issue("client", "client-key");
    example.set_key("checkout", "checkout");
    let (_gateway, _log, record) = serve(&example.checked());
    let port = record["listen"].as_str().unwrap().rsplit_once(':').unwrap().1.parse().unwrap();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let (cert, key) = (authority.path("client"), authority.path("client-key"));
    let certified = ["--cert", &cert, "--key", &key, "-o", "/dev/null"];
    let (code, out) = authority.curl(address, &[&certified[..], &["-H", "Authorization: Bearer checkout"]].concat());
    assert_eq!((code, out.trim()), (0, "2 200"));
    let (code, out) = authority.curl(address, &certified);
    assert_eq!((code, out.trim()), (0, "2 401"));
    assert_ne!(authority.curl(address, &["-H", "Authorization: Bearer checkout"]).0, 0);
}
