//! The program, run as a process.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::support::MERCHANTS;

pub(crate) fn zvgate() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zvgate"));
    command.env_clear();
    command
}

pub(crate) fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// A process that is killed at the end of the test, by its own id.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    pub(crate) fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([format!("-{signal}"), self.0.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    pub(crate) fn code(&mut self) -> i32 {
        let status = self.0.wait().unwrap();
        status.code().unwrap_or_else(|| panic!("{status}"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

pub(crate) fn write_config(folder: &Path, upstream: &str, more: &str) -> PathBuf {
    let (open_id, grant_code, open_key) = MERCHANTS[0];
    let path = folder.join("zvgate.toml");
    let text = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nadmin_listen = \"127.0.0.1:0\"\n[upstream]\nbase_url = \"{upstream}\"\n[tenants.a]\nopen_id = \"{open_id}\"\ngrant_code = \"{grant_code}\"\nopen_key = \"{open_key}\"\n{more}"
    );
    std::fs::write(&path, text).unwrap();
    // It holds a key, and the log would warn.
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    path
}

/// Starts `serve`; returns the process, its log, and the log record with its addresses.
pub(crate) fn serve(config: &Path) -> (Running, BufReader<std::process::ChildStderr>, Value) {
    serve_with(config, &[])
}

/// Starts `serve` with these environment variables.
pub(crate) fn serve_with(
    config: &Path,
    environment: &[(&str, PathBuf)],
) -> (Running, BufReader<std::process::ChildStderr>, Value) {
    let mut command = zvgate();
    command.args(["serve", "--config"]).arg(config).envs(environment.iter().cloned());
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let record = log_record(&mut log, "serving");
    (Running(child), log, record)
}

/// The next record of a log with this message.
pub(crate) fn log_record(log: &mut impl BufRead, message: &str) -> Value {
    loop {
        let mut line = String::new();
        log.read_line(&mut line).unwrap();
        let record: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}"));
        if record["message"] == message {
            return record;
        }
    }
}
