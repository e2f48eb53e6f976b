//! A configuration: never a panic, no secret in what is told, and what is shown can be read again.
#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;
use zvgate::settings::{Mistakes, Settings, Sources};

const CANARY: &str = "canary-Zq1-canary";

fn load(text: &str) -> Result<Settings, Mistakes> {
    // In memory, where the system has such a place.
    let folder = if std::path::Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" };
    let mut file = tempfile::NamedTempFile::new_in(folder).expect("a file");
    file.write_all(text.as_bytes()).expect("room for it");
    Sources { file: Some(file.path().to_path_buf()), ..Sources::default() }.load()
}

fuzz_target!(|text: &str| {
    if let Ok(settings) = load(text) {
        let shown = settings.effective();
        // Without merchants and callers, whose secrets are masked, nothing is lost.
        if settings.tenants.is_empty() && settings.callers.is_empty() && settings.server.admin_keys.is_empty() {
            let again = load(&shown).unwrap_or_else(|mistakes| panic!("{mistakes}\n{shown}"));
            assert_eq!(again.effective(), shown);
        }
    }
    for secret in ["tenants", "callers"] {
        let marked = format!(
            "{text}\n[{secret}.fuzz]\nopen_key = \"{CANARY}\"\nx = [\"{CANARY}\"]\nkey_sha256 = \"{CANARY}\"\n"
        );
        let told = load(&marked).map_or_else(|mistakes| mistakes.to_string(), |settings| settings.effective());
        assert!(!told.contains(CANARY), "{told}");
    }
});
