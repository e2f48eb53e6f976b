//! The shipped rules and dashboard, in a real Prometheus that scrapes real gateways.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use parking_lot::Mutex;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rcgen::{CertificateParams, date_time_ymd};
use serde_json::{Value, json};
use zvgate::settings::{ConfigError, ConfigErrors};

use crate::addresses::nss_wrapper;
use crate::program::{Running, run, serve, serve_with, write_config, zvgate};
use crate::redis::Redis;
use crate::support::{Caller, Platform, READ, TestGateway, Upstream, WRITE, post, send};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/monitoring")
}

#[test]
fn the_rules_are_valid_and_pass_their_own_tests() {
    let rules = ["alerts.yml", "recording.yml"].map(|file| folder().join(file));
    let (code, out, err) = run(Command::new("promtool").args(["check", "rules", "--lint-fatal"]).args(&rules));
    assert_eq!(code, 0, "{out}{err}");
    let (code, out, err) = run(Command::new("promtool").args(["test", "rules"]).args(rule_tests()));
    assert_eq!(code, 0, "{out}{err}");
}

/// The files with tests of the rules.
fn rule_tests() -> Vec<PathBuf> {
    std::fs::read_dir(folder().join("tests")).unwrap().map(|file| file.unwrap().path()).collect()
}

/// The names of the alerts.
fn alerts() -> BTreeSet<String> {
    let text = std::fs::read_to_string(folder().join("alerts.yml")).unwrap();
    text.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).map(str::to_owned).collect()
}

#[test]
fn each_alert_has_its_tests_and_its_section_in_the_runbook() {
    let read = |path: &str| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let (runbook, guide) = (read("docs/runbook.md"), read("docs/monitoring.md"));
    let tests: String = rule_tests().into_iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    for alert in alerts() {
        assert!(runbook.contains(&format!("\n## {alert}\n")), "{alert}");
        assert!(guide.contains(&format!("\n| {alert} | ")), "{alert}");
        let name = format!("alertname: {alert}\n");
        let expected = || tests.split("- eval_time:").filter(|check| check.contains(&name));
        let is_quiet = |check: &str| check.contains("exp_alerts: []");
        assert!(expected().any(|check| check.contains("exp_annotations:")), "{alert} fires in no test");
        let never = format!("ALERTS{{alertname=\"{alert}\"}}[");
        let spared = |line: &str| line.contains("- name: ") && line.contains(&alert) && line.contains("does not fire");
        assert!(
            expected().any(is_quiet) || tests.contains(&never) || tests.lines().any(spared),
            "{alert} is not quiet in any test"
        );
    }
    let conditions: BTreeSet<String> =
        zvgate::gateway::CONDITIONS.iter().map(|(alert, _)| (*alert).to_owned()).collect();
    assert_eq!(alerts().difference(&conditions).collect::<Vec<_>>(), ["ZvgateDown"], "the page judges all others");
}

/// The rules with shorter times, so that a test need not wait for hours.
fn hastened(file: &str) -> String {
    let mut rules = std::fs::read_to_string(folder().join(file)).unwrap();
    for (from, to) in [
        ("[5m]", "[10s]"),
        ("[10m]", "[20s]"),
        ("[15m]", "[10s]"),
        ("[1h]", "[30s]"),
        ("[1d] offset 15m", "[60s] offset 10s"),
        ("* 900", "* 10"),
        (">= 100", ">= 5"),
        ("< 900", "< 10"),
        (">= 0.25 *", ">= 0.01 *"),
    ] {
        rules = rules.replace(from, to);
    }
    let lines = rules.lines().map(|line| match line.trim().starts_with("for: ") {
        true => "        for: 1s".to_owned(),
        false => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// A Prometheus, running as a process.
struct Prometheus {
    address: SocketAddr,
    _process: Running,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    fn start(targets: &[SocketAddr]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for file in ["alerts.yml", "recording.yml"] {
            std::fs::write(folder.path().join(file), hastened(file)).unwrap();
        }
        let targets = targets.iter().map(|target| format!("{target:?}")).collect::<Vec<_>>().join(", ");
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [alerts.yml, recording.yml]\nscrape_configs:\n  - job_name: zvgate\n    static_configs:\n      - targets: [{}]\n",
            targets
        );
        std::fs::write(folder.path().join("prometheus.yml"), config).unwrap();
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", folder.path().join("prometheus.yml").display()));
        command.arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
        command.arg(format!("--web.listen-address={address}"));
        let process =
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("prometheus, of Debian's package");
        Self { address, _process: Running(process), _folder: folder }
    }

    async fn api(&self, path: &str) -> Option<Value> {
        let stream = tokio::net::TcpStream::connect(self.address).await.ok()?;
        drop(stream);
        let request = Request::get(format!("/api/v1/{path}")).header("host", "prometheus");
        let reply = send(self.address, request.body(Full::<Bytes>::default()).unwrap()).await;
        serde_json::from_slice::<Value>(&reply.body).ok().map(|answer| answer["data"].clone())
    }

    /// The alerts that fire, with their labels.
    async fn firing(&self) -> Vec<Value> {
        let answer = self.api("alerts").await.unwrap_or_default();
        let all = answer["alerts"].as_array().cloned().unwrap_or_default();
        all.into_iter().filter(|alert| alert["state"] == "firing").map(|alert| alert["labels"].clone()).collect()
    }

    async fn query(&self, expression: &str) -> usize {
        let encoded = utf8_percent_encode(expression, NON_ALPHANUMERIC);
        let answer = self.api(&format!("query?query={encoded}")).await.unwrap_or_default();
        answer["result"].as_array().map_or(0, Vec::len)
    }
}

/// A gateway with a certificate that has expired.
async fn with_expired_certificate(platform: &Platform, folder: &Path) -> TestGateway {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    (params.not_before, params.not_after) = (date_time_ymd(2019, 1, 1), date_time_ymd(2020, 1, 1));
    let (cert_file, key_file) = (folder.join("cert.pem"), folder.join("key.pem"));
    std::fs::write(&cert_file, params.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(&key_file, key.serialize_pem()).unwrap();
    let paths = [cert_file, key_file].map(|path| path.display().to_string());
    TestGateway::start(platform, &[("server.tls.cert", &paths[0]), ("server.tls.key", &paths[1])]).await
}

/// The demo, and the address of its admin listener.
fn start_demo() -> (Running, SocketAddr) {
    let mut command = zvgate();
    let mut process = command.arg("demo").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut banner = BufReader::new(process.stdout.take().unwrap()).lines().map_while(Result::ok);
    let admin = banner.find_map(|line| line.trim().strip_prefix("admin")?.trim().strip_prefix("http://")?.parse().ok());
    (Running(process), admin.unwrap())
}

fn read_of(customer: &str) -> String {
    json!({ "params": { "customerId": customer } }).to_string()
}

async fn refused_write(gateway: &TestGateway, customer: &str) {
    let body = json!({ "params": { "bizId": "1", "customerId": customer, "couponsCardList": ["no such card"] } });
    gateway.post(WRITE, &[], &body.to_string()).await;
}

/// Each alert fires in a real Prometheus because of a real failure, and names its cause; and every query of the dashboard returns data.
#[tokio::test(flavor = "multi_thread")]
async fn every_alert_fires_because_of_a_real_failure_and_every_query_of_the_dashboard_returns_data() {
    let files = tempfile::tempdir().unwrap();
    let hash_key = files.path().join("hash").display().to_string();
    std::fs::write(&hash_key, "a key of more than sixteen bytes").unwrap();
    let [failing, throttling, shared, resetting, slow, skewed, late, healthy] = [
        Platform::unlimited().await,
        Platform::unlimited().await,
        Platform::unlimited().await,
        Platform::unlimited().await,
        Platform::unlimited().await,
        Platform::unlimited().await,
        Platform::unlimited().await,
        Platform::unlimited().await,
    ];
    failing.faults(json!({ "fault": "http500" })).await;
    throttling.faults(json!({ "fault": "throttle" })).await;
    shared.faults(json!({ "fault": "throttle", "every": 3 })).await;
    resetting.faults(json!({ "fault": "reset", "route": WRITE })).await;
    skewed.faults(json!({ "clock_skew_s": 400 })).await;
    late.faults(json!({ "latency_ms": 200 })).await;
    let no_retries = [("upstream.retries", "0"), ("upstream.breaker.open_min", "20s")];
    let fails = TestGateway::start(&failing, &no_retries).await;
    let without_breaker =
        [("upstream.breaker.consecutive", "0"), ("upstream.breaker.ratio", "0"), ("upstream.retries", "0")];
    let keeps_failing = TestGateway::start(&failing, &without_breaker).await;
    let throttled = TestGateway::start(&throttling, &no_retries).await;
    let with_others = TestGateway::start(&shared, &no_retries).await;
    let unknown = TestGateway::start(&resetting, &[]).await;
    let full = TestGateway::start(&slow, &[("limits.upstream.rate", "1"), ("limits.max_wait", "0s")]).await;
    let skew = TestGateway::start(&skewed, &[]).await;
    let reload = TestGateway::start(&healthy, &[("budget.warn_calls", "1")]).await;
    let unstored = TestGateway::start(&healthy, &[("budget.store", "/nowhere/usage.json")]).await;
    let cut_off = TestGateway::start(
        &healthy,
        &[("cluster.url", "redis://127.0.0.1:1"), ("cluster.replicas", "2"), ("log.hash_key_file", &hash_key)],
    )
    .await;
    let crowded = TestGateway::start(&late, &[("limits.max_waiters", "1"), ("limits.upstream.rate", "0")]).await;
    let connected = TestGateway::start(&healthy, &[("server.max_connections", "1")]).await;
    let mut only = Caller::connect(connected.address).await;
    let redis = Redis::start();
    let lonely = redis.replica(&healthy, &[("cluster.replicas", "2")]).await;
    let expired = with_expired_certificate(&healthy, files.path()).await;
    let stale = TestGateway::start(&healthy, &[("limits.upstream.rate", "0"), ("cache.settle", "0s")]).await;
    // Nobody reads its log.
    let config = write_config(files.path(), &healthy.url(), "[log]\naccess = \"all\"\n");
    let (_unread, _log, record) = serve(&config);
    let unread = ["listen", "admin_listen"].map(|key| record[key].as_str().unwrap().parse::<SocketAddr>().unwrap());
    let (_demo, demo) = start_demo();
    let hosts = files.path().join("hosts");
    std::fs::write(&hosts, "127.0.0.1 platform.test\n").unwrap();
    let upstream = format!("http://platform.test:{}\"\nallow_plaintext = true #\"", healthy.address.port());
    let config = write_config(files.path(), upstream.trim_end_matches('"'), "");
    let wrapper = [("LD_PRELOAD", nss_wrapper()), ("NSS_WRAPPER_HOSTS", hosts.clone())];
    let (_nameless, _nameless_log, record) = serve_with(&config, &wrapper);
    let [nameless, nameless_admin] =
        ["listen", "admin_listen"].map(|key| record[key].as_str().unwrap().parse::<SocketAddr>().unwrap());
    post(nameless, READ, &[], r#"{"params":{"customerId":"1"}}"#).await;
    std::fs::write(&hosts, "").unwrap();
    let down = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gateways = [
        &fails,
        &keeps_failing,
        &throttled,
        &with_others,
        &unknown,
        &full,
        &skew,
        &reload,
        &unstored,
        &cut_off,
        &expired,
        &stale,
        &crowded,
        &connected,
        &lonely,
    ];
    let mut targets: Vec<SocketAddr> = gateways.iter().map(|gateway| gateway.admin).collect();
    targets.extend([unread[1], nameless_admin, demo, down]);
    let prometheus = Prometheus::start(&targets);
    reload.inner.reload(Err(ConfigErrors(vec![ConfigError {
        origin: None,
        key: "a".to_owned(),
        text: "b".to_owned(),
    }])));
    let drive = async {
        for round in 0u64.. {
            let customer = round.to_string();
            fails.read(&customer).await;
            keeps_failing.read(&customer).await;
            throttled.read(&customer).await;
            throttled.clock.advance(Duration::from_secs(31));
            // Of a tenant whose key is not suspect anywhere.
            with_others.post(READ, &[("x-zvgate-tenant", "two")], &read_of(&customer)).await;
            with_others.clock.advance(Duration::from_secs(31));
            refused_write(&unknown, &customer).await;
            full.read(&customer).await;
            full.read(&format!("{customer}-more")).await;
            skew.read(&customer).await;
            tokio::join!(crowded.read(&customer), crowded.read(&customer), crowded.read(&customer));
            only.read("1").await;
            connected.read("1").await;
            reload.read(&customer).await;
            for _ in 0..20 {
                // Hits at first; then every read is another question.
                let asked = if round < 60 { "same".to_owned() } else { format!("{round}-{}", fastrand::u32(..)) };
                stale.read(&asked).await;
            }
            stale.read("1").await;
            stale.read("1").await;
            refused_write(&stale, "1").await;
            for _ in 0..100 {
                post(unread[0], "/nowhere", &[], "{}").await;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    // Some of the failures hide others later: each alert counts once it has fired.
    let seen: Mutex<Vec<Value>> = Mutex::default();
    let missing = || {
        let seen = seen.lock();
        let name = |labels: &Value| labels["alertname"].as_str().unwrap().to_owned();
        let names: BTreeSet<String> = seen.iter().map(name).collect();
        alerts().difference(&names).cloned().collect::<Vec<_>>()
    };
    let wait = async {
        while !missing().is_empty() {
            let firing = prometheus.firing().await;
            seen.lock().extend(firing);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let all_fired = tokio::select! {
        fired = tokio::time::timeout(Duration::from_secs(150), wait) => fired.is_ok(),
        () = drive => false,
    };
    assert!(all_fired, "not fired: {:?}", missing());
    let firing = seen.lock().clone();
    let has = |name: &str, label: &str, value: &str| {
        firing.iter().any(|labels| labels["alertname"] == name && labels[label] == value)
    };
    assert!(
        has("ZvgateRequestsFailing", "route", READ)
            && has("ZvgateUpstreamFailing", "outcome", "http_5xx")
            && has("ZvgateUpstreamFailing", "route", READ),
        "{firing:?}"
    );
    assert!(
        has("ZvgateWriteOutcomeUnknown", "route", WRITE) && has("ZvgateDown", "instance", &down.to_string()),
        "{firing:?}"
    );
    let empty = empty_queries(&prometheus).await;
    assert_eq!(empty, Vec::<String>::new());
}

/// The queries of the dashboard that return nothing.
async fn empty_queries(prometheus: &Prometheus) -> Vec<String> {
    let dashboard: Value =
        serde_json::from_str(&std::fs::read_to_string(folder().join("dashboard.json")).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "ids are unique");
    let (mut empty, mut asked) = (Vec::new(), 0);
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        assert!(panel["description"].is_string() && panel["fieldConfig"]["defaults"]["unit"].is_string(), "{panel}");
        for target in panel["targets"].as_array().unwrap() {
            let mut query = target["expr"].as_str().unwrap().to_owned();
            for (variable, value) in [
                ("$__rate_interval", "20s"),
                ("$__range", "60s"),
                ("$job", "zvgate"),
                ("$instance", ".*"),
                ("$tenant", ".*"),
                ("$route", ".*"),
            ] {
                query = query.replace(variable, value);
            }
            asked += 1;
            if prometheus.query(&query).await == 0 {
                empty.push(query);
            }
        }
    }
    assert!(asked > 30, "{asked}");
    empty
}
