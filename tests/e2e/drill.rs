//! A night drill: the failures that wake an operator, each on a gateway of its own. Whoever reads only its log finds out what was
//! wrong, since when, for whom, and when it ended; whoever has only the status page finds the cause, and so do the alerts' metrics.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{CertificateParams, date_time_ymd};
use serde_json::{Value, json};
use tokio_rustls::TlsAcceptor;

use crate::addresses::nss_wrapper;
use crate::program::{Running, run, serve_with, write_config, zvgate};
use crate::support::{Platform, READ, Reply, TestGateway, Upstream, admin_page, captured_log, post};
use crate::tls::{Authority, TlsFront};

/// Failures have ended when none came for ten seconds, so that there is time to wait for.
const PATIENCE: Duration = Duration::from_secs(40);

/// Settings of all gateways of the drill.
const COMMON: &str = "[limits.upstream]\nper = \"50ms\"\ntransit = \"0s\"\n";

/// A gateway whose log is read.
struct Watched {
    _process: Running,
    address: SocketAddr,
    admin: SocketAddr,
    lines: Arc<Mutex<Vec<Value>>>,
}

impl Watched {
    fn start(config: &Path, environment: &[(&str, PathBuf)]) -> Self {
        let (process, log, record) = serve_with(config, environment);
        let lines = Arc::new(Mutex::new(Vec::new()));
        let read = Arc::clone(&lines);
        std::thread::spawn(move || {
            let parsed = log.lines().map_while(Result::ok).map(|line| serde_json::from_str(&line).unwrap());
            parsed.for_each(|line| read.lock().unwrap().push(line));
        });
        let [address, admin] = ["listen", "admin_listen"].map(|key| record[key].as_str().unwrap().parse().unwrap());
        Self { _process: process, address, admin, lines }
    }

    async fn read(&self, customer: usize) -> Reply {
        post(self.address, READ, &[], &json!({ "params": { "customerId": customer.to_string() } }).to_string()).await
    }

    /// Reads until a line with this message was logged.
    async fn read_until_logged(&self, message: &str) {
        let logged = async {
            for customer in 1000.. {
                if self.lines.lock().unwrap().iter().any(|line| line["message"] == message) {
                    return;
                }
                self.read(customer).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let logged = tokio::time::timeout(PATIENCE, logged).await;
        assert!(logged.is_ok(), "{message:?} was not logged: {:#?}", self.lines.lock().unwrap());
    }

    /// Asserts that the page alone names a cause, and the metrics that an alert has.
    async fn assert_shown(&self, alert: &str, cause: &str, metric: (&str, f64)) {
        assert_shown(self.admin, alert, cause, metric).await;
    }

    fn lines(&self) -> Vec<Value> {
        self.lines.lock().unwrap().clone()
    }
}

/// Asserts that the page alone names a cause, and that the metric of an alert has at least this value.
async fn assert_shown(admin: SocketAddr, alert: &str, cause: &str, (metric, least): (&str, f64)) {
    let verdict = admin_page(admin, "/status.json").await.json()["verdict"].clone();
    let findings = verdict["findings"].as_array().unwrap();
    let finding = findings.iter().find(|finding| finding["runbook"] == alert);
    let says = |finding: &Value| finding["what"].as_str().unwrap().contains(cause);
    assert!(finding.is_some_and(says), "{alert} {cause}: {verdict}");
    assert!(admin_page(admin, "/").await.text().contains(alert));
    let value = crate::support::metric(admin, metric).await.unwrap();
    assert!(if least < 0.0 { value == 0.0 } else { value >= least }, "{metric} {value}");
}

/// Asserts that the log has lines with these messages in this order, each with these fields; a string is a part of the field's.
fn assert_explained(lines: &[Value], expected: &[(&str, &str, Value)]) {
    let mut rest = lines.iter();
    for (level, message, fields) in expected {
        let fits = |line: &&Value| {
            let has = |(name, value): (&String, &Value)| match (value, &line[name]) {
                (Value::String(part), Value::String(whole)) => whole.contains(part.as_str()),
                (expected, seen) => expected == seen,
            };
            line["level"] == *level && line["message"] == *message && fields.as_object().unwrap().iter().all(has)
        };
        let line = rest.find(fits);
        assert!(line.is_some(), "no {level} {message:?} with {fields} after the lines before: {lines:#?}");
    }
    let times: Vec<&str> = lines.iter().map(|line| line["timestamp"].as_str().unwrap()).collect();
    assert!(times.is_sorted() && times[0].len() == "2026-11-26T14:25:08.073036Z".len(), "since when: {times:?}");
    // How often and for how long is said where something ends.
    for line in lines.iter().filter(|line| line["message"] == "upstream attempts recovered") {
        let failed =
            lines.iter().filter(|other| other["attempts"].as_u64() > Some(0) && other["status"].as_u64() > Some(499));
        assert!(
            line["count"].as_u64().unwrap() >= failed.count().min(1) as u64 && line["lasted_ms"].is_u64(),
            "{line}"
        );
    }
}

fn valid_until(authority: &Authority, year: i32) -> TlsAcceptor {
    let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    (params.not_before, params.not_after) = (date_time_ymd(2019, 1, 1), date_time_ymd(year, 1, 1));
    TlsAcceptor::from(Arc::new(authority.server(&params)))
}

async fn expired_certificate() {
    let (platform, authority, folder) = (Platform::unlimited().await, Authority::new(), tempfile::tempdir().unwrap());
    let front = TlsFront::start(platform.address, valid_until(&authority, 2020)).await;
    let more = format!("{COMMON}[upstream]\nca = \"{}\"\n", authority.path("ca"));
    let config = write_config(folder.path(), &format!("https://localhost:{}", front.port), "");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("[upstream]\n", &more)).unwrap();
    let gateway = Watched::start(&config, &[]);
    gateway.read_until_logged("breaker opened").await;
    gateway
        .assert_shown(
            "ZvgateBreakerOpen",
            "expired",
            (&format!("zvgate_upstream_attempts_total{{outcome=\"tls\",route=\"{READ}\",tenant=\"a\"}}"), 5.0),
        )
        .await;
    front.replace(valid_until(&authority, 2999));
    gateway.read_until_logged("upstream attempts recovered").await;
    assert_explained(
        &gateway.lines(),
        &[
            (
                "WARN",
                "upstream attempts failing",
                json!({ "tenant": "a", "route": READ, "outcome": "tls", "reason": "certificate_expired", "cause": "expired" }),
            ),
            ("WARN", "breaker opened", json!({ "tenant": "a", "route": "all", "cause": "expired" })),
            ("INFO", "breaker closed", json!({ "tenant": "a", "route": "all" })),
            (
                "INFO",
                "upstream attempts recovered",
                json!({ "tenant": "a", "route": READ, "reason": "certificate_expired" }),
            ),
        ],
    );
}

async fn dns_gone() {
    let (platform, folder) = (Platform::unlimited().await, tempfile::tempdir().unwrap());
    let hosts = folder.path().join("hosts");
    std::fs::write(&hosts, "127.0.0.1 platform.test\n").unwrap();
    let upstream = format!("http://platform.test:{}\"\nallow_plaintext = true #\"", platform.address.port());
    let config = write_config(folder.path(), upstream.trim_end_matches('"'), COMMON);
    let gateway = Watched::start(&config, &[("LD_PRELOAD", nss_wrapper()), ("NSS_WRAPPER_HOSTS", hosts.clone())]);
    let replace = |text: &str| {
        std::fs::write(hosts.with_extension("next"), text).unwrap();
        std::fs::rename(hosts.with_extension("next"), &hosts).unwrap();
    };
    assert_eq!(gateway.read(0).await.status, 200);
    replace("");
    gateway.read_until_logged("upstream DNS lookup failed; the last addresses are used").await;
    assert_eq!(gateway.read(1).await.status, 200, "the last addresses are used");
    gateway.assert_shown("ZvgateDnsFailing", "cannot be resolved", ("zvgate_upstream_dns_success", -1.0)).await;
    replace("127.0.0.1 platform.test\n");
    gateway.read_until_logged("upstream DNS lookup recovered").await;
    assert_explained(
        &gateway.lines(),
        &[
            ("WARN", "upstream DNS lookup failed; the last addresses are used", json!({ "error": "" })),
            ("INFO", "upstream DNS lookup recovered", json!({})),
        ],
    );
}

async fn key_rotated_at_the_platform() {
    let (platform, folder) = (Platform::unlimited().await, tempfile::tempdir().unwrap());
    let key = folder.path().join("key");
    let set = |text: &str| {
        std::fs::write(&key, text).unwrap();
        std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    };
    set(crate::support::MERCHANTS[0].2);
    let config = write_config(folder.path(), &platform.url(), COMMON);
    let text = std::fs::read_to_string(&config).unwrap();
    let lines = text.lines().map(|line| match line.starts_with("open_key = ") {
        true => "open_key_file = \"key\"",
        false => line,
    });
    std::fs::write(&config, lines.collect::<Vec<_>>().join("\n")).unwrap();
    let gateway = Watched::start(&config, &[]);
    assert_eq!(gateway.read(1).await.json()["code"], 0);
    platform.keys(&["the platform's new key"]).await;
    let suspect =
        "signing key may be refused: the platform has the same code for throttling, but the rate limit was kept";
    gateway.read_until_logged(suspect).await;
    gateway.assert_shown("ZvgateKeySuspect", "key of tenant a", ("zvgate_key_suspect{tenant=\"a\"}", 1.0)).await;
    set("the platform's new key");
    gateway.read_until_logged("signing key accepted again").await;
    assert_explained(
        &gateway.lines(),
        &[
            (
                "WARN",
                "upstream attempts failing",
                json!({ "tenant": "a", "route": READ, "outcome": "throttled", "reason": "throttled" }),
            ),
            ("WARN", "upstream throttled, route paused", json!({ "tenant": "a", "route": READ, "rate": 10 })),
            ("WARN", suspect, json!({ "tenant": "a", "route": READ, "code": "110004" })),
            ("INFO", "signing key changed", json!({ "tenant": "a" })),
            ("INFO", "signing key accepted again", json!({ "tenant": "a" })),
        ],
    );
}

async fn clock_off() {
    let (platform, folder) = (Platform::unlimited().await, tempfile::tempdir().unwrap());
    platform.faults(json!({ "clock_skew_s": 400 })).await;
    let gateway = Watched::start(&write_config(folder.path(), &platform.url(), COMMON), &[]);
    gateway.read_until_logged("signing time corrected by the upstream clock").await;
    assert_eq!(gateway.read(1).await.json()["code"], 0, "corrected by 300 s, it is near enough");
    gateway.assert_shown("ZvgateClockSkew", "s ahead of this machine's", ("zvgate_clock_skew_seconds", 399.0)).await;
    platform.faults(json!({ "clock_skew_s": 0 })).await;
    gateway.read_until_logged("upstream clock agrees again").await;
    let differs = "upstream clock differs; the platform rejects signatures that are too far off";
    assert_explained(
        &gateway.lines(),
        &[
            (
                "WARN",
                "upstream attempts failing",
                json!({ "tenant": "a", "route": READ, "outcome": "error", "cause": "system error" }),
            ),
            ("WARN", differs, json!({})),
            ("INFO", "signing time corrected by the upstream clock", json!({ "correction_s": 300 })),
            ("INFO", "upstream clock agrees again", json!({})),
        ],
    );
    // Its clock is known to half a second.
    for (message, range) in [(differs, 399..=401), ("upstream clock agrees again", -1..=1)] {
        let line = gateway.lines().into_iter().find(|line| line["message"] == message).unwrap();
        assert!(range.contains(&line["ahead_s"].as_i64().unwrap()), "{line}");
    }
}

async fn platform_5xx() {
    let (platform, folder) = (Platform::unlimited().await, tempfile::tempdir().unwrap());
    let gateway = Watched::start(&write_config(folder.path(), &platform.url(), COMMON), &[]);
    platform.faults(json!({ "fault": "http500" })).await;
    gateway.read_until_logged("breaker opened").await;
    gateway
        .assert_shown(
            "ZvgateBreakerOpen",
            "HTTP status 500",
            (&format!("zvgate_upstream_attempts_total{{outcome=\"http_5xx\",route=\"{READ}\",tenant=\"a\"}}"), 5.0),
        )
        .await;
    platform.faults(json!({ "fault": "none" })).await;
    gateway.read_until_logged("upstream attempts recovered").await;
    assert_explained(
        &gateway.lines(),
        &[
            (
                "WARN",
                "upstream attempts failing",
                json!({ "tenant": "a", "route": READ, "reason": "http_5xx", "cause": "HTTP status 500" }),
            ),
            ("WARN", "breaker opened", json!({ "tenant": "a", "route": READ, "cause": "HTTP status 500" })),
            ("INFO", "breaker closed", json!({ "tenant": "a", "route": READ })),
            ("INFO", "upstream attempts recovered", json!({ "tenant": "a", "route": READ, "reason": "http_5xx" })),
        ],
    );
}

/// The platform fails now and then, more often than may be retried.
async fn retries_exhausted() {
    let (platform, folder) = (Platform::unlimited().await, tempfile::tempdir().unwrap());
    let config = write_config(folder.path(), &platform.url(), COMMON);
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("[upstream]\n", "[upstream]\nbreaker = { consecutive = 0, ratio = 0 }\n"))
        .unwrap();
    let gateway = Watched::start(&config, &[]);
    platform.faults(json!({ "fault": "http500" })).await;
    gateway.read_until_logged("retry budget exhausted, failed reads are not retried").await;
    platform.faults(json!({ "fault": "none" })).await;
    gateway.read_until_logged("retry budget available again").await;
    assert_explained(
        &gateway.lines(),
        &[
            ("INFO", "request", json!({ "tenant": "a", "attempts": 3, "status": 500, "path": READ })),
            ("WARN", "retry budget exhausted, failed reads are not retried", json!({ "tenant": "a", "route": READ })),
            ("INFO", "retry budget available again", json!({ "tenant": "a" })),
        ],
    );
}

/// The log's own disk: the size of its file is limited, until that is lifted.
async fn disk_full() {
    let (platform, folder) = (Platform::unlimited().await, tempfile::tempdir().unwrap());
    let (config, log) = (write_config(folder.path(), &platform.url(), ""), folder.path().join("log"));
    let mut command = Command::new("sh");
    // An ignored signal stays ignored: writing fails, as on a full disk.
    command.args(["-c", "trap '' XFSZ; ulimit -S -f 16; exec \"$0\" serve --config \"$1\" 2>\"$2\""]);
    command
        .args([zvgate().get_program(), config.as_os_str(), log.as_os_str()])
        .env_clear()
        .env("PATH", "/usr/bin:/bin");
    let process = Running(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap());
    let lines = || -> Vec<Value> {
        let text = std::fs::read(&log).unwrap_or_default();
        // The line that was being written when the disk was full is torn.
        let lines = BufReader::new(&text[..]).lines().map_while(Result::ok);
        lines.filter_map(|line| serde_json::from_str(&line).ok()).collect()
    };
    let serving = async || {
        loop {
            if let Some(line) = lines().iter().find(|line| line["message"] == "serving") {
                return line["listen"].as_str().unwrap().parse::<SocketAddr>().unwrap();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let address = tokio::time::timeout(PATIENCE, serving()).await.unwrap();
    for _ in 0..200 {
        assert_eq!(post(address, "/nowhere", &[], "{}").await.status, 404, "the log delays and fails no request");
    }
    let (code, _, err) = run(Command::new("prlimit").args(["--fsize=unlimited", "--pid", &process.0.id().to_string()]));
    assert_eq!(code, 0, "{err}");
    let lost = async || {
        while !lines().iter().any(|line| line["other"].is_u64()) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, lost()).await.unwrap();
    assert_explained(
        &lines(),
        &[
            ("INFO", "request", json!({ "status": 404 })),
            ("WARN", "log lines dropped: they were read too slowly, or could not be written", json!({ "audit": 0 })),
        ],
    );
    let line = lines().into_iter().find(|line| line["other"].is_u64()).unwrap();
    assert!(line["other"].as_u64().unwrap() > 100, "{line}");
    let lines = lines();
    let serving = lines.iter().find(|line| line["message"] == "serving").unwrap();
    let admin = serving["admin_listen"].as_str().unwrap().parse().unwrap();
    assert_shown(admin, "ZvgateLogLinesDropped", "Log lines dropped", ("zvgate_log_lines_dropped_total", 100.0)).await;
}

/// Others use the same identity. It takes a minute of silence until it counts as ended, which the clock skips.
async fn throttled_by_others() {
    let log = captured_log();
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[("upstream.retries", "0")]).await;
    assert_eq!(gateway.read("1").await.json()["code"], 0);
    platform.faults(json!({ "fault": "throttle" })).await;
    gateway.read("2").await;
    let throttled = format!("zvgate_upstream_attempts_total{{outcome=\"throttled\",route=\"{READ}\",tenant=\"one\"}}");
    assert_shown(gateway.admin, "ZvgateThrottledByOthers", "although the rate was kept", (&throttled, 1.0)).await;
    platform.faults(json!({ "fault": "none" })).await;
    gateway.clock.advance(Duration::from_secs(2));
    assert_eq!(gateway.read("3").await.json()["code"], 0);
    gateway.page("/metrics").await;
    assert!(!log.has("upstream throttling ended"));
    gateway.clock.advance(Duration::from_secs(61));
    gateway.page("/metrics").await;
    gateway.page("/metrics").await;
    let (rate, ended) = ("upstream throttled, route paused", "upstream throttling ended");
    assert_explained(
        &log.lines(),
        &[
            ("WARN", rate, json!({ "tenant": "one", "route": READ, "pause_ms": 1000, "allowed": 5, "rate": 10 })),
            ("INFO", ended, json!({ "tenant": "one", "route": READ, "rate": 10 })),
        ],
    );
    assert_eq!(log.lines().iter().filter(|line| line["message"] == ended).count(), 1, "one line for one transition");
}

/// Redis does not answer.
async fn redis_gone() {
    let (platform, folder) = (Platform::unlimited().await, tempfile::tempdir().unwrap());
    let hash_key = folder.path().join("hash");
    std::fs::write(&hash_key, "a key of more than sixteen bytes").unwrap();
    let more = format!(
        "{COMMON}[log]\nhash_key_file = {:?}\n[cluster]\nurl = \"redis://127.0.0.1:1\"\nreplicas = 2\n",
        hash_key.display().to_string()
    );
    let gateway = Watched::start(&write_config(folder.path(), &platform.url(), &more), &[]);
    gateway.read_until_logged("cluster: connection to Redis failed, connecting again").await;
    gateway.assert_shown("ZvgateReplicaCutOff", "Connection refused", ("zvgate_cluster_up", -1.0)).await;
    let failed = "cluster: connection to Redis failed, connecting again";
    assert_explained(&gateway.lines(), &[("WARN", failed, json!({ "cause": "refused" }))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_only_the_page_the_alerts_or_the_log_finds_out_what_was_wrong() {
    let drills = [
        tokio::spawn(expired_certificate()),
        tokio::spawn(dns_gone()),
        tokio::spawn(key_rotated_at_the_platform()),
        tokio::spawn(clock_off()),
        tokio::spawn(platform_5xx()),
        tokio::spawn(retries_exhausted()),
        tokio::spawn(disk_full()),
        tokio::spawn(throttled_by_others()),
        tokio::spawn(redis_gone()),
    ];
    for drill in drills {
        drill.await.unwrap();
    }
}
