//! The files in `deploy/`, checked by the tools that read them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step is a failed test")]

use std::path::Path;
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[track_caller]
fn passes(command: &mut Command) {
    let output = command.output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
}

#[test]
fn systemd_accepts_the_units_and_the_service_is_confined() {
    let folder = tempfile::tempdir().unwrap();
    let unit = std::fs::read_to_string(root().join("deploy/zvgate.service")).unwrap();
    // The program is not installed here, so the unit runs the built one.
    let unit = unit.replace("/usr/bin/zvgate", env!("CARGO_BIN_EXE_zvgate"));
    let path = folder.path().join("zvgate.service");
    std::fs::write(&path, unit).unwrap();
    let socket = folder.path().join("zvgate.socket");
    std::fs::copy(root().join("deploy/zvgate.socket"), &socket).unwrap();
    let mut verify = Command::new("systemd-analyze");
    passes(verify.args(["verify", "--man=no", "--recursive-errors=no"]).args([&path, &socket]));
    // Without /proc/stat there is no boot time, and so no process_start_time_seconds.
    assert!(!std::fs::read_to_string(&path).unwrap().contains("ProcSubset=pid"));
    passes(Command::new("systemd-analyze").args(["security", "--offline=yes", "--threshold=20"]).arg(&path));
}

#[test]
fn promtool_accepts_the_scrape_configuration() {
    passes(Command::new("promtool").args(["check", "config"]).arg(root().join("deploy/prometheus.yml")));
}

/// Checked without a Docker engine.
#[test]
fn every_file_that_the_dockerfile_copies_exists() {
    let text = std::fs::read_to_string(root().join("deploy/Dockerfile")).unwrap();
    let copies = text.lines().filter_map(|line| line.strip_prefix("COPY ")).filter(|line| !line.starts_with("--from"));
    let mut checked = 0;
    for line in copies {
        let paths: Vec<&str> = line.split(' ').collect();
        let (_, sources) = paths.split_last().unwrap();
        for source in sources {
            assert!(root().join(source).exists(), "{source}");
            checked += 1;
        }
    }
    assert!(checked >= 4, "{checked}");
}
