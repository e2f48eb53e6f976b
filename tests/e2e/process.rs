//! The program itself: its commands, its exit statuses, its signals.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::program::{Running, run, serve, write_config, zvgate};
use crate::support::{Caller, MERCHANTS, Platform, READ, Upstream, post};

#[test]
fn without_a_command_help_is_printed() {
    let (code, out, _) = run(&mut zvgate());
    assert_eq!(code, 0);
    for command in ["serve", "demo", "sandbox", "check", "sign", "key", "health", "hash"] {
        assert!(out.contains(command), "{out}");
    }
    assert_eq!(run(zvgate().arg("nonsense")).0, 2);
    assert_eq!(run(zvgate().args(["serve", "--nonsense"])).0, 2);
}

#[test]
fn serve_without_a_tenant_exits_2_and_names_the_missing_keys() {
    let folder = tempfile::tempdir().unwrap();
    let (code, _, err) = run(zvgate().arg("serve").current_dir(folder.path()));
    assert_eq!(code, 2);
    for key in ["upstream.base_url", "tenants.NAME.open_id", "tenants.NAME.grant_code", "tenants.NAME.open_key"] {
        assert!(err.contains(key), "{err}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_stops_on_sigterm_and_sigint() {
    let platform = Platform::unlimited().await;
    let folder = tempfile::tempdir().unwrap();
    let config = write_config(folder.path(), &platform.url(), "");
    for signal in ["TERM", "INT"] {
        let (mut gateway, _log, record) = serve(&config);
        let address = record["listen"].as_str().unwrap().parse().unwrap();
        let reply = post(address, READ, &[], r#"{"params":{"customerId":"1"}}"#).await;
        assert_eq!(reply.status, 200);
        gateway.signal(signal);
        assert_eq!(gateway.code(), 0);
        assert!(std::net::TcpStream::connect(address).is_err());
    }
}

/// The voluntary context switches of each thread with this name, which are readable even if core dumps are disabled.
fn voluntary_switches(process: u32, name: &str) -> Vec<u64> {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let status = threads.map(|thread| std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap());
    let of = |status: &str, field: &str| {
        status.lines().find_map(|line| Some(line.strip_prefix(field)?.trim().to_owned())).unwrap()
    };
    status
        .filter(|status| of(status, "Name:").starts_with(name))
        .map(|status| of(&status, "voluntary_ctxt_switches:").parse().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_worker_serves_and_all_share_one_cache() {
    const WORKERS: usize = 3;
    let platform = Platform::unlimited().await;
    platform.faults(json!({ "latency_ms": 200 })).await;
    let folder = tempfile::tempdir().unwrap();
    let config = write_config(folder.path(), &platform.url(), "");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("[server]\n", &format!("[server]\nworkers = {WORKERS}\n"))).unwrap();
    let (mut gateway, _log, record) = serve(&config);
    let address = record["listen"].as_str().unwrap().parse().unwrap();
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..2 * WORKERS {
        let mut caller = Caller::connect(address).await;
        requests.spawn(async move {
            assert_eq!(caller.read("1").await.status, 200);
            caller
        });
    }
    let mut callers = requests.join_all().await;
    assert_eq!(platform.requests(READ).await, 1, "the callers of all workers share one call");

    let before = voluntary_switches(gateway.0.id(), "worker-");
    for _ in 0..50 {
        for caller in &mut callers {
            assert!(caller.read("1").await.is_hit());
        }
    }
    let after = voluntary_switches(gateway.0.id(), "worker-");
    assert_eq!((before.len(), after.len()), (WORKERS, WORKERS));
    for (before, after) in before.iter().zip(&after) {
        assert!(after - before >= 10, "one of the workers was idle: {before} to {after}");
    }
    gateway.signal("TERM");
    assert_eq!(gateway.code(), 0);
}

/// An earlier process may have used up the pace.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_process_waits_one_period_before_its_first_call() {
    let platform = Platform::unlimited().await;
    let folder = tempfile::tempdir().unwrap();
    let more = "[limits]\nmax_wait = \"0s\"\n[limits.upstream]\nper = \"1h\"\n";
    let (_gateway, _log, record) = serve(&write_config(folder.path(), &platform.url(), more));
    let address = record["listen"].as_str().unwrap().parse().unwrap();
    post(address, READ, &[], r#"{"params":{"customerId":"1"}}"#).await.assert_error(429, "upstream_limited");
}

/// Operators should learn of it before the platform rejects every signature.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_clock_skew_is_logged() {
    let platform = Platform::unlimited().await;
    platform.faults(json!({ "clock_skew_s": -45 })).await;
    let folder = tempfile::tempdir().unwrap();
    let (_gateway, mut log, record) = serve(&write_config(folder.path(), &platform.url(), ""));
    let address = record["listen"].as_str().unwrap().parse().unwrap();
    for customer in ["1", "2", "3"] {
        let body = format!(r#"{{"params":{{"customerId":"{customer}"}}}}"#);
        assert_eq!(post(address, READ, &[], &body).await.status, 200);
    }
    let mut line = String::new();
    log.read_line(&mut line).unwrap();
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["level"], "WARN", "{line}");
    assert!((-47..=-43).contains(&line["ahead_s"].as_i64().unwrap()), "{line}");
}

/// They are logged when they begin and end, with cause, tenant and route, and not for each attempt.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_reports_failures_the_breaker_and_throttling() {
    let platform = Platform::unlimited().await;
    let folder = tempfile::tempdir().unwrap();
    let config = write_config(folder.path(), &platform.url(), "[log]\naccess = \"none\"\n");
    let upstream = "[upstream]\nretries = 0\nbreaker = { open_min = \"100ms\", open_max = \"100ms\" }\n";
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("[upstream]\n", upstream)).unwrap();
    let (_gateway, mut log, serving) = serve(&config);
    let address = serving["listen"].as_str().unwrap().parse().unwrap();
    let read = async |customer: u32| {
        post(address, READ, &[], &json!({ "params": { "customerId": customer.to_string() } }).to_string()).await
    };
    platform.faults(json!({ "fault": "http500" })).await;
    for customer in 0..5 {
        assert_eq!(read(customer).await.status, 500);
    }
    let mut next = |message: &str| {
        let mut line = String::new();
        log.read_line(&mut line).unwrap();
        let line: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}"));
        assert_eq!(line["message"], message, "{line}");
        assert_eq!((&line["tenant"], &line["route"]), (&"a".into(), &READ.into()), "{line}");
        line
    };
    let failing = next("upstream attempts failing");
    assert_eq!((&failing["level"], &failing["outcome"]), (&"WARN".into(), &"http_5xx".into()));
    assert_eq!(failing["cause"], "HTTP status 500");
    let opened = next("breaker opened");
    assert_eq!((&opened["level"], &opened["cause"]), (&"WARN".into(), &"HTTP status 500".into()));
    platform.faults(json!({ "fault": "none" })).await;
    while read(9).await.status != 200 {}
    next("breaker half-open");
    next("breaker closed");
    let recovered = next("upstream attempts recovered");
    assert_eq!((&recovered["reason"], &recovered["count"]), (&"http_5xx".into(), &5.into()));
    platform.faults(json!({ "fault": "throttle" })).await;
    read(10).await;
    assert_eq!(next("upstream attempts failing")["outcome"], "throttled");
    let throttled = next("upstream throttled, route paused");
    assert_eq!((&throttled["pause_ms"], &throttled["allowed"]), (&1000.into(), &5.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_flight_at_a_stop_are_completed() {
    let platform = Platform::unlimited().await;
    platform.faults(json!({ "latency_ms": 700 })).await;
    let folder = tempfile::tempdir().unwrap();
    let (mut gateway, _log, record) = serve(&write_config(folder.path(), &platform.url(), ""));
    let address = record["listen"].as_str().unwrap().parse().unwrap();
    let in_flight = tokio::spawn(async move { post(address, READ, &[], r#"{"params":{"customerId":"1"}}"#).await });
    while platform.requests(READ).await < 1 {
        tokio::task::yield_now().await;
    }
    gateway.signal("TERM");
    assert_eq!(in_flight.await.unwrap().status, 200);
    assert_eq!(gateway.code(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_outlast_drain_timeout_are_dropped() {
    let platform = Platform::unlimited().await;
    platform.faults(json!({ "fault": "hang" })).await;
    let folder = tempfile::tempdir().unwrap();
    let config = write_config(folder.path(), &platform.url(), "");
    std::fs::write(
        &config,
        std::fs::read_to_string(&config).unwrap().replace("[server]\n", "[server]\ndrain_timeout = \"500ms\"\n"),
    )
    .unwrap();
    let (mut gateway, _log, record) = serve(&config);
    let address: std::net::SocketAddr = record["listen"].as_str().unwrap().parse().unwrap();
    let in_flight = tokio::task::spawn_blocking(move || {
        let body = r#"{"params":{"customerId":"1"}}"#;
        let head = format!(
            "POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            crate::support::WRITE,
            body.len()
        );
        crate::support::raw(address, format!("{head}{body}").as_bytes())
    });
    while platform.requests(crate::support::WRITE).await < 1 {
        tokio::task::yield_now().await;
    }
    gateway.signal("TERM");
    assert_eq!(gateway.code(), 0);
    assert_eq!(in_flight.await.unwrap(), "", "it would later have got a 504");
}

/// The wall clock of the process steps back, and forward over a coupon's end: no ended coupon is served.
#[tokio::test(flavor = "multi_thread")]
async fn a_step_of_the_system_clock_expires_entries_in_time() {
    let libraries = run(Command::new("sh").args(["-c", "ls /usr/lib/*/faketime/libfaketimeMT.so.1"])).1;
    let library = libraries.lines().next().expect("libfaketime, of Debian's package libfaketime").to_owned();
    let platform = Platform::unlimited().await;
    let folder = tempfile::tempdir().unwrap();
    let config = write_config(folder.path(), &platform.url(), "[cache]\nttl = \"1h\"\n");
    let offset = folder.path().join("offset");
    let step = |to: &str| std::fs::write(&offset, to).unwrap();
    step("+0");
    let mut command = zvgate();
    command.args(["serve", "--config"]).arg(&config).env("LD_PRELOAD", library).stderr(Stdio::piped());
    command
        .env("FAKETIME_TIMESTAMP_FILE", &offset)
        .env("FAKETIME_NO_CACHE", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
    let _gateway = Running(child);
    let address = serde_json::from_str::<Value>(&line).unwrap()["listen"].as_str().unwrap().parse().unwrap();
    let read = async |customer: &str| {
        post(address, READ, &[], &json!({ "params": { "customerId": customer } }).to_string()).await
    };
    for customer in ["1", "2"] {
        platform.change(customer, "issue", json!({ "seconds": 120 })).await;
        assert!(read(customer).await.is_stored_miss());
        assert!(read(customer).await.is_hit());
    }
    step("-100");
    assert_eq!(read("1").await.status, 200, "a step back may cause a refetch");
    step("+130");
    for customer in ["1", "2"] {
        assert!(!read(customer).await.is_hit(), "by the process's clock the coupon has ended");
    }
}

/// At the most verbose level, customers appear only as hashes, and upstream's messages and keys not at all.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_names_requests_and_writes_but_no_customer_and_no_secret() {
    let platform = Platform::unlimited().await;
    let folder = tempfile::tempdir().unwrap();
    let more = "[log]\nlevel = \"trace\"\naccess = \"all\"\n";
    let (mut gateway, mut log, record) = serve(&write_config(folder.path(), &platform.url(), more));
    let address = record["listen"].as_str().unwrap().parse().unwrap();
    let canary = "777000777000777000";
    let body = format!(r#"{{"params":{{"bizId":"b","customerId":"{canary}"}}}}"#);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let headers = [("x-request-id", "kept-1"), ("traceparent", &format!("00-{trace}-00f067aa0ba902b7-01"))];
    assert_eq!(post(address, READ, &headers, &body).await.status, 200);
    assert_eq!(post(address, crate::support::WRITE, &headers, &body).await.status, 200);
    drop(platform);
    assert_eq!(post(address, crate::support::WRITE, &headers, &body).await.status, 502);
    post(address, "/nowhere", &[], &body).await;
    let admin = record["admin_listen"].as_str().unwrap().parse().unwrap();
    for path in [format!("/cache/customers/{canary}"), "/cache?all=true".to_owned()] {
        let purge =
            http::Request::delete(path).header("host", "localhost").body(http_body_util::Full::default()).unwrap();
        assert_eq!(crate::support::send(admin, purge).await.status, 200);
    }
    gateway.signal("TERM");
    assert_eq!(gateway.code(), 0);
    let mut text = String::new();
    log.read_to_string(&mut text).unwrap();
    for secret in [canary, MERCHANTS[0].2, "成功", "couponsCardList"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |message: &str| lines.iter().filter(|line| line["message"] == message).collect::<Vec<_>>();
    let (requests, writes) = (of("request"), of("write"));
    assert_eq!((requests.len(), writes.len()), (4, 2), "{text}");
    assert_eq!(
        (&writes[0]["status"], &writes[1]["status"], &writes[1]["error"]),
        (&200.into(), &502.into(), &"upstream_failed".into())
    );
    assert_eq!((&writes[0]["request_id"], &writes[0]["trace_id"]), (&"kept-1".into(), &trace.into()));
    let purges = of("purge");
    assert_eq!((purges.len(), &purges[0]["dropped"], &purges[1]["tenant"]), (2, &0.into(), &"all".into()));
    assert!(purges.iter().all(|line| line["peer"].as_str().unwrap().starts_with("127.0.0.1:")));
    assert_eq!(requests[0]["customers"].as_str().unwrap().len(), 16);
    assert_eq!(requests[0]["customers"], writes[0]["customers"]);
    assert_eq!(
        (&requests[3]["route"], &requests[3]["status"], &requests[3]["error"]),
        (&"none".into(), &404.into(), &"unknown_route".into())
    );
}

/// A pipe without a writer simulates a file system that blocks, as one over a network may. A second signal is not blocked either.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_a_blocked_file_read() {
    let platform = Platform::unlimited().await;
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    let config = write_config(folder.path(), &platform.url(), "");
    let text = std::fs::read_to_string(&config).unwrap();
    let text = text.replace(&format!("open_key = {:?}", MERCHANTS[0].2), &format!("open_key_file = {key:?}"));
    let text = text.replace("[server]", "[server]\ndrain_delay = \"60s\"");
    let mkfifo = |path: &Path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    for (delay, signals) in [("0s", 1), ("60s", 2)] {
        std::fs::write(&config, text.replace("60s", delay)).unwrap();
        std::fs::write(&key, MERCHANTS[0].2).unwrap();
        let (mut gateway, _log, _) = serve(&config);
        std::fs::remove_file(&key).unwrap();
        mkfifo(&key);
        // Longer than the interval at which the file is read again.
        tokio::time::sleep(std::time::Duration::from_millis(1200)).await;
        for _ in 0..signals {
            gateway.signal("TERM");
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        let ended = tokio::task::spawn_blocking(move || gateway.code());
        assert_eq!(tokio::time::timeout(std::time::Duration::from_secs(15), ended).await.unwrap().unwrap(), 0);
        std::fs::remove_file(&key).unwrap();
    }
}

/// The same with the first read of the file.
#[test]
fn a_start_that_waits_for_a_file_can_be_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let config = write_config(folder.path(), "http://127.0.0.1:9", "");
    let text = std::fs::read_to_string(&config).unwrap();
    let key = text.replace(&format!("open_key = {:?}", MERCHANTS[0].2), &format!("open_key_file = {fifo:?}"));
    let hash_key = format!("{text}[log]\nhash_key_file = {fifo:?}\n");
    for text in [key, hash_key] {
        std::fs::write(&config, text).unwrap();
        let child = zvgate().args(["serve", "--config"]).arg(&config).stderr(Stdio::null()).spawn().unwrap();
        let mut gateway = Running(child);
        // The signal handler is installed, and a thread waits for the other end of the pipe.
        let catches = || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.0.id())).unwrap();
            let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim().to_owned();
            let threads = status.lines().find_map(|line| line.strip_prefix("Threads:")).unwrap().trim().to_owned();
            u64::from_str_radix(&caught, 16).unwrap() & (1 << 14) != 0 && threads.parse::<u32>().unwrap() > 1
        };
        while !catches() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        gateway.signal("TERM");
        assert_eq!(gateway.code(), 0);
    }
}

/// Log lines are dropped if the pipe is full.
#[tokio::test(flavor = "multi_thread")]
async fn an_unread_log_blocks_neither_requests_nor_the_stop() {
    let platform = Platform::unlimited().await;
    let folder = tempfile::tempdir().unwrap();
    let config = write_config(folder.path(), &platform.url(), "[log]\naccess = \"all\"\n");
    let (mut gateway, _log, record) = serve(&config);
    let address = record["listen"].as_str().unwrap().parse().unwrap();
    // More than a pipe holds.
    let mut caller = Caller::connect(address).await;
    for _ in 0..2000 {
        assert_eq!(caller.read("1").await.status, 200);
    }
    gateway.signal("TERM");
    let ended = tokio::task::spawn_blocking(move || gateway.code());
    assert_eq!(tokio::time::timeout(std::time::Duration::from_secs(20), ended).await.unwrap().unwrap(), 0);
}

/// A service manager may send the signal as soon as the process exists.
#[tokio::test(flavor = "multi_thread")]
async fn a_sighup_during_the_start_does_not_end_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let config = write_config(folder.path(), "http://127.0.0.1:1", "");
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut command = zvgate();
    let mut child = command.args(["serve", "--config"]).arg(&pipe).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let process = Running(child);
    // Opens once the process opens the pipe, which it reads to the end.
    let mut writer = tokio::task::block_in_place(|| std::fs::File::create(&pipe)).unwrap();
    process.signal("HUP");
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    std::io::Write::write_all(&mut writer, &std::fs::read(&config).unwrap()).unwrap();
    drop(writer);
    tokio::task::block_in_place(|| crate::program::log_record(&mut log, "serving"));
}

/// The soft limit is raised as far as needed, and a limit that is too low is logged.
#[tokio::test(flavor = "multi_thread")]
async fn serve_raises_its_file_descriptor_limit() {
    let folder = tempfile::tempdir().unwrap();
    let config = write_config(folder.path(), "http://127.0.0.1:1", "");
    let limits = |ulimits: &str, message: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{ulimits}; exec \"$0\" serve --config \"$1\""), env!("CARGO_BIN_EXE_zvgate")]);
        let mut child = command.arg(&config).env_clear().stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let process = Running(child);
        let line = crate::program::log_record(&mut log, message);
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.0.id())).unwrap();
        let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
        (files.split_whitespace().next().unwrap().to_owned(), line)
    };
    assert_eq!(limits("ulimit -Sn 64; ulimit -Hn 20000", "serving").0, "11024");
    let warning = "too few file descriptors for server.max_connections";
    let (limit, line) = limits("ulimit -n 100", warning);
    assert_eq!((&*limit, line["needed"].as_u64()), ("100", Some(11024)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_on_the_same_address_fails_to_start() {
    let platform = Platform::unlimited().await;
    let folder = tempfile::tempdir().unwrap();
    let (_gateway, _log, record) = serve(&write_config(folder.path(), &platform.url(), ""));
    let listen = record["listen"].as_str().unwrap();
    let config = write_config(folder.path(), &platform.url(), "");
    let (code, _, err) = run(zvgate().args(["serve", "--config"]).arg(&config).env("ZVGATE__SERVER__LISTEN", listen));
    assert_eq!(code, 1);
    assert!(err.contains("server.listen") && err.contains(listen), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_listener_serves_its_pages_and_promtool_accepts_the_metrics() {
    let platform = Platform::unlimited().await;
    let gateway = crate::support::TestGateway::start(&platform, &[]).await;
    gateway.read("1").await;
    gateway.read("1").await;
    gateway.post("/nowhere", &[], "{}").await;
    let page = gateway.page("/metrics").await;
    assert!(page.header("content-type").starts_with("text/plain; version=0.0.4"));
    let page = page.text();
    for name in [
        "zvgate_requests_total",
        "zvgate_request_duration_seconds",
        "zvgate_cache_lookups_total",
        "zvgate_cache_entries",
        "zvgate_cache_bytes",
        "zvgate_cache_evictions_total",
        "zvgate_cache_invalidations_total",
        "zvgate_cache_ttl_seconds",
        "zvgate_upstream_attempts_total",
        "zvgate_upstream_duration_seconds",
        "zvgate_upstream_inflight",
        "zvgate_upstream_rate",
        "zvgate_upstream_calls_saved_total",
        "zvgate_limited_total",
        "zvgate_limit_wait_seconds",
        "zvgate_connections",
        "zvgate_config_reload_success",
        "zvgate_breaker_open",
        "zvgate_clock_skew_seconds",
        "zvgate_build_info",
        "process_resident_memory_bytes",
        "process_open_fds",
    ] {
        assert!(page.contains(&format!("# TYPE {name} ")), "{name}");
    }
    let requests = |route: &str, status: u16| {
        format!("zvgate_requests_total{{caller=\"anonymous\",route=\"{route}\",status=\"{status}\"}}")
    };
    assert_eq!(gateway.metric(&requests(READ, 200)).await, 2.0);
    assert_eq!(gateway.metric(&requests("none", 404)).await, 1.0);
    assert_eq!(
        gateway.metric(&format!("zvgate_upstream_calls_saved_total{{route=\"{READ}\",tenant=\"one\"}}")).await,
        1.0
    );
    tokio::task::block_in_place(|| promtool(&page));
    assert_eq!((gateway.page("/healthz").await.status, gateway.page("/readyz").await.status), (200, 200));
    assert_eq!((gateway.page("/").await.status, gateway.page("/config").await.status), (200, 200));
    let post = http::Request::post("/metrics").header("host", "a").body(http_body_util::Full::default()).unwrap();
    assert_eq!(crate::support::send(gateway.admin, post).await.status, 405);
}

fn promtool(page: &str) {
    use std::io::Write;
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut checking = command.spawn().expect("promtool, of Debian's package prometheus");
    checking.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let output = checking.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn readyz_reports_draining() {
    let platform = Platform::unlimited().await;
    let gateway = crate::support::TestGateway::start(&platform, &[("server.drain_delay", "60s")]).await;
    gateway.stop.cancel();
    loop {
        let reply = gateway.page("/readyz").await;
        if reply.status == 503 {
            assert_eq!(reply.text(), "draining\n");
            break;
        }
    }
    assert_eq!(gateway.page("/healthz").await.status, 200);
    assert_eq!(gateway.read("1").await.status, 200, "it still accepts requests");
    assert!(!gateway.done.is_finished());
}

#[test]
fn the_sandbox_accepts_a_signed_body() {
    let mut child = zvgate().args(["sandbox", "--listen", "127.0.0.1:0"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let mut sandbox = Running(child);
    let url = line.trim().strip_prefix("sandbox on ").unwrap().to_owned();
    let folder = tempfile::tempdir().unwrap();
    let config = write_config(folder.path(), &url, "");
    let params = r#"{ "customerId": 383933091455959041 }"#;
    let (code, signed, _) = run(zvgate().args(["sign", "--params", params, "--config"]).arg(&config));
    assert_eq!(code, 0);
    assert!(signed.trim_end().ends_with(&format!("\"params\":{params}}}")), "{signed}");
    let ask = || run(Command::new("curl").args(["-sS", &format!("{url}{READ}"), "-d", signed.trim_end()])).1;
    assert!(ask().contains("\"code\":0"));
    assert!(ask().contains("110004"), "a signature is accepted once");
    for bad in [["--params", "[]"], ["--params", "{"], ["--params", "{},\"x\":{}"], ["--tenant", "b"]] {
        let (code, _, err) = run(zvgate().arg("sign").args(bad).arg("--config").arg(&config));
        assert_eq!((code, err.contains(bad[0])), (2, true), "{err}");
    }
    sandbox.signal("INT");
    assert_eq!(sandbox.code(), 0);
}

#[test]
fn key_prints_a_new_key_and_its_hash() {
    let (code, out, _) = run(zvgate().arg("key"));
    assert_eq!(code, 0);
    let value = |name: &str| {
        out.lines().find_map(|line| line.split_once('=').filter(|(n, _)| n.trim() == name)).unwrap().1.trim().to_owned()
    };
    let key = value("key");
    assert!(key.len() >= 43, "256 bits in Base64: {key}");
    let summed = run(Command::new("sh").args(["-c", &format!("printf %s '{key}' | sha256sum")])).1;
    assert_eq!(summed.split(' ').next(), Some(value("key_sha256").as_str()));
    assert_ne!(run(zvgate().arg("key")).1, out);
}

/// A demo that runs, its output, and its banner.
fn demo(folder: &Path, arguments: &[&str]) -> (Running, BufReader<std::process::ChildStdout>, String) {
    let mut command = zvgate();
    command.arg("demo").args(arguments).current_dir(folder).env("ZVGATE__NONSENSE", "1");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let demo = Running(child);
    let mut banner = String::new();
    while !banner.contains("Ctrl-C") {
        assert!(out.read_line(&mut banner).unwrap() > 0, "{banner}");
    }
    (demo, out, banner)
}

/// What the commands of a banner print.
fn pasted(banner: &str) -> Vec<String> {
    let commands = banner.split("\n\n").filter(|part| part.starts_with("# "));
    commands.map(|part| run(Command::new("sh").args(["-c", part])).1).collect()
}

/// It ends in order.
fn stopped(mut demo: Running, mut out: BufReader<std::process::ChildStdout>) {
    demo.signal("INT");
    assert_eq!(demo.code(), 0);
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(rest.trim(), "stopped");
}

/// The first command of the banner.
fn pasted_read(banner: &str) -> &str {
    banner.split("\n\n").find(|part| part.starts_with("# 1.")).unwrap()
}

/// Each command has the effect that its comment states.
#[test]
fn the_commands_that_demo_prints_can_be_pasted() {
    let folder = tempfile::tempdir().unwrap();
    let (running, out, banner) = demo(folder.path(), &[]);
    let pasted = pasted(&banner);
    assert_eq!(pasted.len(), 4, "{banner}");
    assert!(pasted[0].contains("cache-status: zvgate; fwd=miss; stored; ttl=30"), "{}", pasted[0]);
    assert!(pasted[1].contains("cache-status: zvgate; hit; ttl="), "{}", pasted[1]);
    assert!(pasted[2].contains("fwd=bypass") && pasted[2].contains("\"code\":0"), "{}", pasted[2]);
    assert!(pasted[3].ends_with(&format!("{{route=\"{READ}\",tenant=\"demo\"}} 1\n")), "{}", pasted[3]);
    let again = run(Command::new("sh").args(["-c", pasted_read(&banner)])).1;
    assert!(again.contains("fwd=miss; stored; ttl=3\r"), "as the comment says: {again}");
    let address = |line: &str| line.split_whitespace().nth(1).unwrap().to_owned();
    let (_other, _, other) = demo(folder.path(), &[]);
    for part in ["  gateway ", "  admin ", "  sandbox "] {
        let of = |banner: &str| banner.lines().find(|line| line.starts_with(part)).map(address).unwrap();
        assert_ne!(of(&banner), of(&other), "another demo uses other ports");
    }
    stopped(running, out);
}

#[test]
fn a_demo_of_several_replicas_shows_them_act_as_one() {
    let folder = tempfile::tempdir().unwrap();
    for replicas in ["3", "2"] {
        let (running, out, banner) = demo(folder.path(), &["--replicas", replicas]);
        let pasted = pasted(&banner);
        assert_eq!(pasted.len(), 6, "{banner}");
        assert!(pasted[0].contains("cache-status: zvgate; fwd=miss; stored; ttl=30"), "{}", pasted[0]);
        assert!(pasted[1].contains("; detail=shared\r"), "{}", pasted[1]);
        assert!(pasted[2].contains("fwd=bypass") && pasted[2].contains("\"code\":0"), "{}", pasted[2]);
        assert!(pasted[3].contains("fwd=miss; stored; ttl=3\r"), "{}", pasted[3]);
        let codes: Vec<&str> = pasted[4].split_whitespace().collect();
        assert_eq!(codes[1], "200", "{}", pasted[4]);
        assert!(pasted[4].contains("\"refused\":{}"), "{}", pasted[4]);
        let shared = |result: &str| {
            let name = format!("zvgate_cache_shared_total{{result=\"{result}\"}} ");
            let values = pasted[5].lines().filter_map(|line| line.strip_prefix(&name));
            values.map(|value| value.parse::<u32>().unwrap()).sum::<u32>()
        };
        assert!(shared("stored") >= 2 && shared("hit") == 1 && shared("refused") == 0, "{}", pasted[5]);
        let redis = banner.lines().find_map(|line| line.trim().strip_prefix("redis ")).unwrap().trim();
        let redis = redis.trim_start_matches("redis://").to_owned();
        assert!(std::net::TcpStream::connect(&redis).is_ok());
        stopped(running, out);
        assert!(std::net::TcpStream::connect(&redis).is_err(), "it ends with the demo");
    }
}

#[test]
fn a_demo_of_several_replicas_says_how_to_get_redis() {
    let folder = tempfile::tempdir().unwrap();
    let (code, out, err) = run(zvgate().args(["demo", "--replicas", "3"]).current_dir(folder.path()).env("PATH", ""));
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("redis-server") && err.contains("apt install"), "{err}");
    let (code, _, err) = run(zvgate().args(["demo", "--replicas", "11"]));
    assert!(code == 2 && err.contains("2..=10"), "{err}");
}

/// Health checks of containers have no other client.
#[tokio::test(flavor = "multi_thread")]
async fn health_says_whether_a_gateway_is_ready() {
    let platform = Platform::unlimited().await;
    let folder = tempfile::tempdir().unwrap();
    let file = write_config(folder.path(), &platform.url(), "");
    let config = std::fs::read_to_string(&file).unwrap().replace("[server]\n", "[server]\ndrain_delay = \"30s\"\n");
    std::fs::write(&file, config).unwrap();
    let (gateway, mut log, record) = serve(&file);
    let health = |admin: &str| {
        let admin = admin.to_owned();
        tokio::task::spawn_blocking(move || run(zvgate().args(["health", "--admin", &admin])))
    };
    let admin = record["admin_listen"].as_str().unwrap();
    assert_eq!(health(admin).await.unwrap(), (0, "ready\n".to_owned(), String::new()));
    gateway.signal("TERM");
    crate::program::log_record(&mut log, "draining");
    let (code, out, err) = health(admin).await.unwrap();
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(
        err.starts_with(&format!("zvgate: {admin}: 503 Service Unavailable: ")) && err.contains("draining"),
        "{err}"
    );
    drop(gateway);
    let (code, _, err) = health(admin).await.unwrap();
    assert!(code == 1 && err.contains("refused"), "{err}");
    // What listens there need not be a gateway, nor answer.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (code, _, err) = health(&silent.local_addr().unwrap().to_string()).await.unwrap();
    assert!(code == 1 && err.contains("no answer within 3 s"), "{err}");
    let (code, _, err) = health("nonsense").await.unwrap();
    assert!(code == 1 && err.contains("nonsense"), "{err}");
}

/// With it an operator finds a customer's lines.
#[tokio::test(flavor = "multi_thread")]
async fn hash_prints_the_name_of_a_customer_in_the_log() {
    let platform = Platform::unlimited().await;
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    std::fs::write(&key, "the key of the customer hash").unwrap();
    let config =
        write_config(folder.path(), &platform.url(), &format!("[log]\naccess = \"all\"\nhash_key_file = {key:?}\n"));
    let (_gateway, mut log, record) = serve(&config);
    let address = record["listen"].as_str().unwrap().parse().unwrap();
    post(address, READ, &[], r#"{"params":{"customerId":"383933091455959041"}}"#).await;
    let line = crate::program::log_record(&mut log, "request");
    let hashed = run(zvgate().arg("hash").arg("--config").arg(&config).arg("383933091455959041"));
    let customers = line["customers"].as_str().unwrap_or_else(|| panic!("{line}"));
    assert_eq!(hashed, (0, format!("{customers}\n"), String::new()));
    let config = write_config(folder.path(), &platform.url(), "");
    let (code, out, err) = run(zvgate().arg("hash").arg("--config").arg(&config).arg("1"));
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.contains("log.hash_key_file"), "{err}");
}

/// It returns by itself, and audit lines are always logged.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_level_is_changed_for_a_while() {
    let platform = Platform::unlimited().await;
    let folder = tempfile::tempdir().unwrap();
    let config = write_config(folder.path(), &platform.url(), "[log]\nlevel = \"error\"\naccess = \"all\"\n");
    // At this level nobody learns where it listens.
    let config_text = std::fs::read_to_string(&config).unwrap();
    let (data, admin) = (crate::redis::free_port(), crate::redis::free_port());
    let config_text = config_text
        .replace("listen = \"127.0.0.1:0\"\nadmin", &format!("listen = \"127.0.0.1:{data}\"\nadmin"))
        .replace("admin_listen = \"127.0.0.1:0\"", &format!("admin_listen = \"127.0.0.1:{admin}\""));
    std::fs::write(&config, config_text).unwrap();
    let mut child = zvgate().args(["serve", "--config"]).arg(&config).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let gateway = Running(child);
    let (data, admin) = (([127, 0, 0, 1], data).into(), std::net::SocketAddr::from(([127, 0, 0, 1], admin)));
    let call = async |method: &str, body: &str| {
        let request = http::Request::builder().method(method).uri("/log-level").header("host", "localhost");
        let request = request.body(http_body_util::Full::new(bytes::Bytes::from(body.to_owned()))).unwrap();
        crate::support::send(admin, request).await
    };
    crate::support::until("it listens", async || tokio::net::TcpStream::connect(admin).await.is_ok()).await;
    let configured = json!({ "level": "error", "configured": "error" });
    assert_eq!(call("GET", "").await.json(), configured);
    let body = r#"{"params":{"customerId":"1"}}"#;
    post(data, READ, &[], body).await;
    for wrong in [
        "",
        "{}",
        "[]",
        r#"{"level":"loud"}"#,
        r#"{"level":"debug","for":"2h"}"#,
        r#"{"level":"debug","for":"0s"}"#,
        r#"{"level":"debug","x":1}"#,
    ] {
        let reply = call("PUT", wrong).await;
        assert!(reply.status == 400 && reply.text().contains("nothing was changed"), "{wrong}: {reply:?}");
    }
    assert_eq!(call("PUT", &" ".repeat(70_000)).await.status, 413);
    assert_eq!((call("POST", "").await.status, call("POST", "").await.header("allow")), (405, "GET, HEAD, PUT"));
    assert_eq!(call("GET", "").await.json(), configured);
    let changed = call("PUT", r#"{"level":"info","for":"2s"}"#).await.json();
    assert_eq!((&changed["level"], &changed["configured"]), (&"info".into(), &"error".into()), "{changed}");
    post(data, READ, &[("x-request-id", "while-it-is-info")], body).await;
    crate::support::until("it has returned", async || call("GET", "").await.json() == configured).await;
    post(data, READ, &[("x-request-id", "too-late")], body).await;
    gateway.signal("TERM");
    let mut lines = String::new();
    log.read_to_string(&mut lines).unwrap();
    assert!(lines.contains("log level changed") && lines.contains("while-it-is-info"), "{lines}");
    assert_eq!(lines.matches("\"request\"").count(), 1, "{lines}");
}

#[test]
fn a_hash_key_that_can_be_guessed_seals_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    std::fs::write(&key, "15 bytes short.").unwrap();
    let more = format!("[log]\nhash_key_file = {key:?}\n[cluster]\nreplicas = 2\nurl = \"redis://127.0.0.1:1\"\n");
    let config = write_config(folder.path(), "http://127.0.0.1:1", &more);
    for command in ["serve", "check"] {
        let (code, _, err) = run(zvgate().arg(command).arg("--config").arg(&config));
        assert!(
            code == 2 && err.contains("log.hash_key_file") && err.contains("fewer than 16 bytes"),
            "{command}: {err}"
        );
    }
}

/// The steps end with the token of the envelope, and the key is in none of them.
#[test]
fn sign_explains_every_step_and_masks_the_key() {
    let folder = tempfile::tempdir().unwrap();
    let config = write_config(folder.path(), "http://127.0.0.1:1", "");
    let (code, out, err) =
        run(zvgate().args(["sign", "--explain", "--params", r#"{"customerId":"1"}"#, "--config"]).arg(&config));
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    let (open_id, grant_code, open_key) = MERCHANTS[0];
    let envelope: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    let value = |name: &str| envelope[name].as_str().unwrap();
    let joined =
        format!("grantCode={grant_code}&nonce={}&openId={open_id}&timestamp={}", value("nonce"), value("timestamp"));
    assert_eq!(out.matches(&joined).count(), 2, "joined, and encoded: {out}");
    let base64 = value("token").replace("%2B", "+").replace("%2F", "/").replace("%3D", "=");
    for step in [value("token"), &base64, "sorted by name", "HMAC-SHA1", "********, 50 characters"] {
        assert!(out.contains(step), "{step}: {out}");
    }
    assert!(!out.contains(open_key) && !out.contains(&open_key[..8]), "{out}");
}

/// The published example, and what people make of it.
#[test]
fn verify_says_what_differs_in_a_refused_envelope() {
    let folder = tempfile::tempdir().unwrap();
    let (other_id, other_grant, other_key) = MERCHANTS[1];
    let second =
        format!("[tenants.b]\nopen_id = \"{other_id}\"\ngrant_code = \"{other_grant}\"\nopen_key = \"{other_key}\"\n");
    let config = write_config(folder.path(), "http://127.0.0.1:1", &second);
    let (open_id, grant_code, open_key) = MERCHANTS[0];
    let envelope = json!({ "openId": open_id, "grantCode": grant_code, "timestamp": "1465185768", "nonce": "11886",
        "token": "cFw0t9IuvL9jVo9qAzk0qMcw5BM%3D", "params": { "customerId": "1" } });
    let verify = |envelope: &str, more: &[&str]| {
        let file = folder.path().join("envelope.json");
        std::fs::write(&file, envelope).unwrap();
        let (code, out, err) =
            run(zvgate().args(["sign", "--verify"]).arg(&file).args(more).arg("--config").arg(&config));
        assert!(!format!("{out}{err}").contains(open_key) && !format!("{out}{err}").contains(other_key), "{out}{err}");
        (code, out + &err)
    };
    let with = |name: &str, value: Value| {
        let mut changed = envelope.clone();
        changed[name] = value;
        verify(&changed.to_string(), &[])
    };
    let (code, out) = verify(&format!("\u{feff}{envelope}\n"), &[]);
    assert_eq!((code, out.contains("Nothing differs"), out.contains("DIFFERS")), (0, true, false), "{out}");
    let token = |text: &str| with("token", json!(text));
    let hmac = |program: &str, key: &str, text: &str| {
        let script = format!("printf %s '{text}' | openssl dgst -{program} -hmac '{key}' -binary | base64");
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().replace('+', "%2B").replace('/', "%2F").replace('=', "%3D")
    };
    let unsorted = format!("openId={open_id}&grantCode={grant_code}&timestamp=1465185768&nonce=11886");
    let sorted = format!("grantCode={grant_code}&nonce=11886&openId={open_id}&timestamp=1465185768");
    let script = format!("printf %s '{sorted}' | openssl dgst -sha1 -hmac '{open_key}'");
    let in_hex = run(Command::new("sh").args(["-c", &script])).1.split_whitespace().last().unwrap().to_owned();
    for ((code, out), says) in [
        (token("cFw0t9IuvL9jVo9qAzk0qMcw5BM="), "is not percent-encoded"),
        (token("cFw0t9IuvL9jVo9qAzk0qMcw5BM%253D"), "percent-encoded twice"),
        (token("cFw0t9IuvL9jVo9qAzk0qMcw5BM%3d"), "lower case"),
        (token("cFw0t9IuvL9jVo9qAzk0qMcw5BM"), "without padding"),
        (token(&in_hex), "hexadecimal"),
        (token(&hmac("sha1", open_key, &unsorted)), "not sorted by name"),
        (token(&hmac("sha256", open_key, &sorted)), "HMAC-SHA256"),
        (token(&hmac("sha1", other_key, &sorted)), "the key of tenants.b"),
        (token("nonsense"), "another key, or other values"),
        (with("token", Value::Null), "token      is missing"),
        (with("timestamp", json!("1465185768000")), "milliseconds"),
        (with("timestamp", json!("now")), "expected seconds since 1970"),
        (with("nonce", json!("a1")), "expected a positive integer"),
        (with("nonce", json!("0")), "expected a positive integer"),
        (with("params", json!("{}")), "not JSON in a string"),
        (with("params", json!([])), "is no object"),
        (with("grantCode", json!("BA67D4FA46")), "letter case"),
        (with("openId", json!(format!("{open_id} "))), "white space"),
        (with("openId", json!("x")), "expected d14c1559e87b747d577c834b275a4310, that of tenants.a"),
        (verify(&envelope.to_string(), &["--tenant", "b"]), "that of tenants.b"),
    ] {
        assert!(code == 1 && out.contains("DIFFERS") && out.contains(says), "{says}: {code} {out}");
    }
    // Numbers are as good as strings.
    let (code, out) = with("nonce", json!(11886));
    assert_eq!(code, 0, "{out}");
    for (text, says) in [("{", "expected the JSON body"), ("[]", "expected a JSON object")] {
        let (code, out) = verify(text, &[]);
        assert!(code == 2 && out.contains(says), "{code} {out}");
    }
    let (code, out) = verify(&envelope.to_string(), &["--tenant", "c"]);
    assert!(code == 2 && out.contains("expected one of a, b"), "{code} {out}");
    let (code, _, err) = run(zvgate().args(["sign", "--verify", "/nowhere", "--config"]).arg(&config));
    assert!(code == 2 && err.contains("--verify /nowhere"), "{code} {err}");
}
