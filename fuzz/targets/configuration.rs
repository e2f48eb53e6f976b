//! Loads a configuration: no panic, no secret in errors or in the effective configuration, which can be loaded again.
#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;
use zvgate::settings::{ConfigErrors, Settings, Sources};

const CANARY: &str = "canary-Zq1-canary";

fn load(text: &str) -> Result<Settings, ConfigErrors> {
    // In memory, if the system has such a file system.
    let folder = if std::path::Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" };
    let mut file = tempfile::NamedTempFile::new_in(folder).expect("a file");
    file.write_all(text.as_bytes()).expect("room for it");
    Sources { file: Some(file.path().to_path_buf()), ..Sources::default() }.settings()
}

fn shown(settings: &Settings) -> String {
    settings.effective.to_toml(&settings.dynamic.routes)
}

fuzz_target!(|text: &str| {
    if let Ok(settings) = load(text) {
        let text = shown(&settings);
        let (dynamic, admin_keys) = (&settings.dynamic, &settings.fixed.listeners.admin_keys);
        // Secrets are masked, so only a configuration without them can be loaded again.
        if dynamic.tenants.is_empty() && dynamic.callers.is_empty() && admin_keys.is_empty() {
            let again = load(&text).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
            assert_eq!(shown(&again), text);
        }
    }
    for secret in ["tenants", "callers"] {
        let marked = format!(
            "{text}\n[{secret}.fuzz]\nopen_key = \"{CANARY}\"\nx = [\"{CANARY}\"]\nkey_sha256 = \"{CANARY}\"\n"
        );
        let output = load(&marked).map_or_else(|errors| errors.to_string(), |settings| shown(&settings));
        assert!(!output.contains(CANARY), "{output}");
    }
});
