//! No output of the gateway contains a secret, and no log or metric a customer: marked values are sent in every way, and all
//! output is searched for them.

use std::fmt::Write as _;
use std::io::BufRead as _;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::program::{Running, log_record, run};
use crate::support::{MERCHANTS, Platform, READ, Upstream, WRITE};
use crate::tls::Authority;

/// None of these is part of another.
const OPEN_KEY: &str = "canary-openkey-Zq1";
const CALLER_KEY: &str = "canary-callerkey-Zq2";
const OTHER_KEY: &str = "canary-strangerskey-Zq3";
const ADMIN_KEY: &str = "canary-adminkey-Zq4";
const MISPLACED: &str = "canary-misplaced-Zq5";
const CUSTOMER: &str = "777000777000777000";
/// One that does not look like an id.
const NAMED: &str = "canary-alice";

fn hash(key: &str) -> String {
    Sha256::digest(key.as_bytes()).iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    })
}

/// The configuration of a gateway, with additional lines for the table of its tenant and for that of its caller.
fn configuration(folder: &Path, upstream: &str, authority: &Authority, more: [&str; 2]) -> String {
    let (open_id, grant_code, _) = MERCHANTS[0];
    let (key_file, cert, key) = (folder.join("open-key"), authority.path("cert"), authority.path("key"));
    let (admin, caller) = (hash(ADMIN_KEY), hash(CALLER_KEY));
    let [tenants, callers] = more;
    format!(
        r#"
[server]
listen = "127.0.0.1:0"
admin_listen = "127.0.0.1:0"
admin_key_sha256 = "{admin}"
max_body = "1KiB"
body_timeout = "300ms"
[server.tls]
cert = "{cert}"
key = "{key}"
[upstream]
base_url = "{upstream}"
attempt_timeout = "300ms"
write_timeout = "300ms"
retries = 1
[limits.upstream]
rate = 0
[log]
level = "trace"
access = "all"
[tenants.shop]
open_id = "{open_id}"
grant_code = "{grant_code}"
open_key_file = {key_file:?}
{tenants}
[callers.orders]
key_sha256 = "{caller}"
tenants = ["*"]
routes = ["{READ}", "{WRITE}"]
{callers}
"#
    )
}

/// The output of `curl` over HTTP/2, head and body.
fn curl(authority: &Authority, url: &str, key: &str, more: &[&str]) -> String {
    let mut command = Command::new("curl");
    command.args(["-sSi", "--http2", "-m", "10", "--cacert", &authority.path("ca")]);
    if !key.is_empty() {
        command.args(["-H", &format!("Authorization: Bearer {key}")]);
    }
    let (_, out, err) = run(command.args(more).arg(url));
    out + &err
}

/// A gateway process and all its output.
struct GatewayProcess {
    child: Running,
    log: Arc<Mutex<String>>,
    reading: std::thread::JoinHandle<()>,
    data: String,
    admin: String,
    responses: String,
}

impl GatewayProcess {
    /// Starts the process with core dumps allowed.
    fn start(config: &Path) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -c unlimited; exec \"$0\" serve --config \"$1\"", env!("CARGO_BIN_EXE_zvgate")]);
        command.arg(config).env_clear().current_dir(config.parent().unwrap()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut log = std::io::BufReader::new(child.stderr.take().unwrap());
        let child = Running(child);
        let line = log_record(&mut log, "serving");
        let port = |key: &str| line[key].as_str().unwrap().rsplit(':').next().unwrap().to_owned();
        let data = format!("https://localhost:{}", port("listen"));
        let admin = format!("http://localhost:{}", port("admin_listen"));
        let text = Arc::new(Mutex::new(String::new()));
        let read = Arc::clone(&text);
        let reading = std::thread::spawn(move || {
            for line in log.lines() {
                writeln!(read.lock().unwrap(), "{}", line.unwrap()).unwrap();
            }
        });
        Self { child, log: text, reading, data, admin, responses: String::new() }
    }

    fn ask(&mut self, authority: &Authority, url: &str, key: &str, more: &[&str]) -> String {
        let text = tokio::task::block_in_place(|| curl(authority, url, key, more));
        writeln!(self.responses, "{text}").unwrap();
        text
    }

    /// Ends the process with a signal that would dump core; returns its log and its responses.
    fn end(mut self) -> (String, String) {
        self.child.signal("ABRT");
        let status = self.child.0.wait().unwrap();
        assert_eq!((status.signal(), status.core_dumped()), (Some(6), false), "a dump would hold keys");
        self.reading.join().unwrap();
        let log = self.log.lock().unwrap().clone();
        (log, self.responses)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_output_has_a_secret_and_no_log_or_metric_has_a_customer() {
    let platform = Platform::unlimited().await;
    platform.keys(&[OPEN_KEY]).await;
    let (authority, folder) = (Authority::new(), tempfile::tempdir().unwrap());
    let (config, key_file) = (folder.path().join("zvgate.toml"), folder.path().join("open-key"));
    let whole = configuration(folder.path(), &platform.url(), &authority, ["", ""]);
    std::fs::write(&key_file, OPEN_KEY).unwrap();
    std::fs::write(&config, &whole).unwrap();
    let body = json!({ "params": { "customerId": CUSTOMER, "bizId": "b" } }).to_string();
    let post = ["-H", "Content-Type: application/json", "-d", &body];
    let no_cache = [&post[..], &["-H", "Cache-Control: no-cache"]].concat();
    let customers = format!("X-Zvgate-Customer: {CUSTOMER}");
    let named = [&post[..], &["-H", &customers]].concat();
    let (mut logs, mut responses) = (String::new(), String::new());
    let typed = |data: &str, customer: &str| format!("{data}/v1/customers/{customer}/coupons?useStatus=0");
    let ids = json!({ "customerIds": [NAMED, CUSTOMER] }).to_string();

    // Every failure of the platform: for a cached answer, for a read, and for writes. Each has its own process, since its breaker
    // opens.
    for fault in ["throttle", "http500", "http503", "redirect", "error", "hang", "reset", "truncate", "garbage"] {
        platform.faults(json!({ "fault": "none" })).await;
        let mut process = GatewayProcess::start(&config);
        let (read, write) = (format!("{}{READ}", process.data), format!("{}{WRITE}", process.data));
        assert!(process.ask(&authority, &read, CALLER_KEY, &post).contains("stored"));
        platform.faults(json!({ "fault": fault })).await;
        let before = platform.requests(WRITE).await;
        for url in [
            typed(&process.data, CUSTOMER),
            typed(&process.data, NAMED),
            format!("{}/v1/customers/{NAMED}/x", process.data),
        ] {
            process.ask(&authority, &url, CALLER_KEY, &["-H", "Cache-Control: max-age=0"]);
        }
        for (url, more) in [(&read, &post[..]), (&read, &no_cache), (&write, &post), (&write, &named)] {
            process.ask(&authority, url, CALLER_KEY, more);
        }
        // A 503 of the sandbox has Retry-After, which pauses the route.
        let sent = if fault == "http503" { 1 } else { 2 };
        assert_eq!(platform.requests(WRITE).await, before + sent, "{fault} was encountered");
        let (log, replies) = process.end();
        logs += &log;
        responses += &replies;
    }
    platform.faults(json!({ "fault": "none" })).await;

    let mut process = GatewayProcess::start(&config);
    let (data, admin) = (process.data.clone(), process.admin.clone());
    let mut ask = |url: &str, key: &str, more: &[&str]| process.ask(&authority, url, key, more);
    let (read, write) = (format!("{data}{READ}"), format!("{data}{WRITE}"));
    assert!(ask(&read, CALLER_KEY, &post).contains("stored"));
    assert!(ask(&read, CALLER_KEY, &post).contains("hit"));
    assert!(ask(&write, CALLER_KEY, &post).contains("HTTP/2 200"));
    for expected in ["stored", "hit"] {
        assert!(ask(&typed(&data, NAMED), CALLER_KEY, &[]).contains(expected));
    }
    let batch = ["-H", "Content-Type: application/json", "-d", &ids];
    assert!(ask(&format!("{data}/v1/coupons:batchGet"), CALLER_KEY, &batch).contains(NAMED));

    // Every rejection.
    let json = "Content-Type: application/json";
    let twice = format!(r#"{{"params":{{"customerId":"{CUSTOMER}","customerId":"{CUSTOMER}"}}}}"#);
    let stranger = json!({ "openId": "x", "grantCode": MISPLACED, "params": { "customerId": CUSTOMER } }).to_string();
    let long = format!("{{\"params\":{{\"customerId\":\"{CUSTOMER}\",\"x\":\"{}\"}}}}", "x".repeat(2000));
    for (path, key, more, status) in [
        (READ, "", &post[..], 401),
        (READ, OTHER_KEY, &post, 401),
        (READ, OPEN_KEY, &post, 401),
        ("/v1/invalidate", CALLER_KEY, &post, 403),
        (&*format!("/v3/{CUSTOMER}/{OTHER_KEY}"), CALLER_KEY, &post, 404),
        (READ, CALLER_KEY, &["-X", "GET"], 405),
        (&format!("/v1/customers/{NAMED}/coupons"), OTHER_KEY, &[], 401),
        (&format!("/v1/customers/{NAMED}/coupons?cardId={NAMED}&{NAMED}={CUSTOMER}"), CALLER_KEY, &[], 400),
        (&format!("/v1/customers/{NAMED}/coupons/x"), CALLER_KEY, &[], 404),
        (&format!("/v1/customers/{NAMED}/coupons"), CALLER_KEY, &["-X", "PUT"], 405),
        (READ, CALLER_KEY, &["-d", &body], 415),
        (READ, CALLER_KEY, &["-H", json, "-d", &long], 413),
        (READ, CALLER_KEY, &["-H", json, "-H", "Content-Length: 100", "--http1.1", "-d", &body], 408),
        (READ, CALLER_KEY, &["-H", json, "-d", CUSTOMER], 400),
        (READ, CALLER_KEY, &["-H", json, "-d", &twice], 400),
        (READ, CALLER_KEY, &["-H", json, "-d", &stranger], 400),
        (READ, CALLER_KEY, &[&post[..], &["-H", &format!("X-Zvgate-Tenant: {MISPLACED}")]].concat(), 400),
        (READ, CALLER_KEY, &[&post[..], &["-H", "Cache-Control: only-if-cached, max-age=0"]].concat(), 504),
        (READ, CALLER_KEY, &[&post[..], &["-H", &format!("X-Request-Timeout-Ms: {MISPLACED}")]].concat(), 400),
    ] {
        let text = ask(&format!("{data}{path}"), key, more);
        let first = text.lines().next().unwrap_or_default();
        assert_eq!(first.split(' ').nth(1), Some(&*status.to_string()), "{path} {more:?}: {text}");
    }

    // Every admin page, with the admin key, with another key, and without.
    for key in [ADMIN_KEY, CALLER_KEY, ""] {
        for page in ["metrics", "healthz", "readyz", "config", CUSTOMER, OTHER_KEY] {
            ask(&format!("{admin}/{page}"), key, &[]);
        }
        ask(&format!("{admin}/cache/customers/{CUSTOMER}"), key, &["-X", "DELETE"]);
        ask(&format!("{admin}/cache?tenant={MISPLACED}"), key, &["-X", "DELETE"]);
        ask(&format!("{admin}/cache?all=true"), key, &["-X", "DELETE"]);
    }

    // Invalid configurations: secrets in the wrong place, of the wrong type, under the wrong name.
    let pid = process.child.0.id().to_string();
    let private = std::fs::read_to_string(authority.file("key")).unwrap();
    let rejected = |process: &GatewayProcess| {
        process.log.lock().unwrap().matches("the previous configuration stays in force").count()
    };
    let misplaced = format!("\"{MISPLACED}\"");
    for more in [
        [&*format!("open_key = {misplaced}"), ""],
        [&*format!("grant_codes = {misplaced}\npace = {misplaced}"), &*format!("limit = {misplaced}")],
        ["default = 5", &*format!("key = {misplaced}\ninvalidate = {misplaced}")],
        [&*format!("x = {{ y = {misplaced} }}"), &*format!("z = [{misplaced}]")],
        [&*format!("open_id = {misplaced}"), ""],
        [&*format!("x = {MISPLACED}"), ""],
    ] {
        std::fs::write(&config, configuration(folder.path(), &platform.url(), &authority, more)).unwrap();
        let before = rejected(&process);
        assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
        while rejected(&process) == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    std::fs::write(&config, &whole).unwrap();
    std::fs::write(&key_file, format!("{MISPLACED}\n{MISPLACED}")).unwrap();
    std::fs::write(
        authority.file("key"),
        format!("-----BEGIN PRIVATE KEY-----\n{MISPLACED}\n-----END PRIVATE KEY-----\n"),
    )
    .unwrap();
    while !process.log.lock().unwrap().contains("the last good one is used") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let metrics = process.ask(&authority, &format!("{admin}/metrics"), "", &[]);
    assert!(metrics.contains("zvgate_config_reload_success 0"));

    let (log, replies) = process.end();
    let (log, responses) = (logs + &log, responses + &replies);
    for expected in [
        "\"request\"",
        "\"write\"",
        "\"purge\"",
        "configuration reload failed",
        "open_key_file",
        "unauthenticated",
        "outcome_unknown",
    ] {
        assert!(log.contains(expected), "{expected} in {log}");
    }
    let keys = [OPEN_KEY, CALLER_KEY, OTHER_KEY, ADMIN_KEY, MISPLACED];
    for secret in keys.into_iter().chain([&*hash(CALLER_KEY), &*hash(ADMIN_KEY), private.lines().nth(1).unwrap()]) {
        assert!(!log.contains(secret), "{secret} in the log: {log}");
        assert!(!responses.contains(secret), "{secret} in the responses: {responses}");
    }
    for unseen in [CUSTOMER, NAMED, "成功", "couponsCardList"] {
        assert!(!log.contains(unseen), "{unseen} in the log: {log}");
        assert!(!metrics.contains(unseen), "{unseen} in {metrics}");
    }
}
