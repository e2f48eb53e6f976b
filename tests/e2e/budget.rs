//! The budget: calls are counted by day, tenant and route, and the counts outlive the process.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use zvgate::clock::Clock;

use crate::program::{Running, log_record, run, serve, write_config, zvgate};
use crate::support::{Platform, READ, TestGateway, WRITE, captured_log, post, until};

const DAMAGED: &str =
    "budget.store: file is damaged and was renamed; counts continue from the earlier one if there is one";
const DAY: i64 = 86_400;

/// What `zvgate usage` prints of a month, as JSON.
fn usage(config: &Path, more: &[&str]) -> Value {
    let (code, out, err) = run(zvgate().args(["usage", "--format", "json", "--config"]).arg(config).args(more));
    assert_eq!(code, 0, "{err}");
    serde_json::from_str(&out).unwrap()
}

fn config_with_store(folder: &Path, upstream: &str, more: &str) -> std::path::PathBuf {
    let store = folder.join("usage.json");
    write_config(folder, upstream, &format!("[budget]\nstore = {:?}\n{more}", store.display().to_string()))
}

async fn read_from(address: std::net::SocketAddr, customer: usize) {
    let body = json!({ "params": { "customerId": customer.to_string() } }).to_string();
    post(address, READ, &[], &body).await;
}

/// All requests that the sandbox received.
async fn received(platform: &Platform) -> u64 {
    let stats = platform.stats().await;
    stats["requests"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_agrees_with_the_platforms_own_count_over_a_month_of_restarts() {
    let (clock, hands) = Clock::shifted();
    let (platform, folder) = (Platform::start(0, clock).await, tempfile::tempdir().unwrap());
    let config = config_with_store(folder.path(), "https://unused", "");
    let store = folder.path().join("usage.json").display().to_string();
    let overrides = [
        ("budget.store", store.as_str()),
        ("limits.upstream.rate", "0"),
        ("upstream.breaker.consecutive", "0"),
        ("upstream.breaker.ratio", "0"),
    ];
    let mut shown = 0;
    // The first day is the last one of a month, so that the month changes under way.
    let first = 1_801_353_600; // 2027-01-31 00:00 UTC
    #[expect(clippy::cast_possible_truncation, reason = "a date in seconds")]
    let to_first = first - crate::support::unix_now() as i64;
    hands.step_wall(to_first * 1000);
    for day in 0..12 {
        let gateway = TestGateway::start(&platform, &overrides).await;
        gateway.clock.step_wall((to_first + day * DAY) * 1000);
        platform.faults(json!({ "fault": if day % 3 == 0 { "http500" } else { "none" } })).await;
        for call in 0..5 {
            gateway.read(&format!("{day}-{call}")).await;
            gateway.read(&format!("{day}-{call}")).await;
        }
        gateway.post(WRITE, &[], r#"{"params":{"bizId":"1","customerId":"1","couponsCardList":[]}}"#).await;
        let page = gateway.page("/status.json").await.json();
        shown = page["money"]["made"].as_u64().unwrap();
        gateway.stop.cancel();
        gateway.done.await.unwrap().unwrap();
        hands.step_wall(DAY * 1000);
    }
    let months = [usage(&config, &["--month", "2027-01"]), usage(&config, &["--month", "2027-02"])];
    let sum = |name: &str| months.iter().map(|month| month["total"][name].as_u64().unwrap()).sum::<u64>();
    assert_eq!(sum("made"), received(&platform).await, "{months:?}");
    assert_eq!(months[1]["total"]["made"], shown, "the page shows the same");
    assert_eq!(
        months[0]["rows"].as_array().unwrap().iter().map(|row| &row["day"]).collect::<Vec<_>>()[0],
        "2027-01-31"
    );
    assert_eq!(sum("billed"), sum("made"));
    assert!(sum("failed") > 0 && sum("saved") >= 8 * 5, "{months:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_loses_at_most_what_it_counted_in_the_last_minute() {
    let (platform, folder) = (Platform::unlimited().await, tempfile::tempdir().unwrap());
    let config = config_with_store(folder.path(), &crate::support::Upstream::url(&platform), "");
    {
        let (mut process, _log, record) = serve(&config);
        let address = record["listen"].as_str().unwrap().parse().unwrap();
        for customer in 0..3 {
            read_from(address, customer).await;
        }
        process.signal("TERM");
        assert_eq!(process.code(), 0);
    }
    assert_eq!(usage(&config, &[])["total"]["made"], 3);
    let (process, _log, record) = serve(&config);
    let address = record["listen"].as_str().unwrap().parse().unwrap();
    read_from(address, 9).await;
    drop(process);
    let total = usage(&config, &[])["total"]["made"].as_u64().unwrap();
    assert!((3..=4).contains(&total), "{total}");
    let mode = std::fs::metadata(folder.path().join("usage.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_used_stops_nothing_and_is_reported() {
    let (platform, folder) = (Platform::unlimited().await, tempfile::tempdir().unwrap());
    let config = config_with_store(folder.path(), &crate::support::Upstream::url(&platform), "");
    let store = folder.path().join("usage.json");
    std::fs::write(&store, b"\xff\xfe no text").unwrap();
    let (code, _, err) = run(zvgate().args(["usage", "--config"]).arg(&config));
    assert!(code == 1 && err.contains("usage.json"), "{err}");
    let (mut process, mut log, record) = serve(&config);
    let renamed = log_record(&mut log, DAMAGED);
    assert!(renamed["renamed"].as_str().unwrap().ends_with("usage.json.unreadable"), "{renamed}");
    assert_eq!(renamed["earlier"], false, "{renamed}");
    read_from(record["listen"].as_str().unwrap().parse().unwrap(), 1).await;
    process.signal("TERM");
    assert_eq!(process.code(), 0);
    assert_eq!(usage(&config, &[])["total"]["made"], 1, "counting began anew");
    assert!(folder.path().join("usage.json.unreadable").exists());

    // Once there is an earlier file, counting continues from there, and no file that was damaged before is replaced.
    let (mut process, _log, record) = serve(&config);
    read_from(record["listen"].as_str().unwrap().parse().unwrap(), 1).await;
    process.signal("TERM");
    assert_eq!(process.code(), 0);
    std::fs::write(&store, "{\"version\":1,\"da").unwrap();
    let (mut process, mut log, _) = serve(&config);
    let renamed = log_record(&mut log, DAMAGED);
    assert!(renamed["renamed"].as_str().unwrap().ends_with("usage.json.unreadable.1"), "{renamed}");
    assert_eq!(renamed["earlier"], true, "{renamed}");
    process.signal("TERM");
    assert_eq!(process.code(), 0);
    let total = usage(&config, &[])["total"]["made"].as_u64().unwrap();
    assert!((1..=2).contains(&total), "{total}");

    // As if the disk had been full, and the process killed, just after that.
    std::fs::remove_file(&store).unwrap();
    let (mut process, _log, _) = serve(&config);
    process.signal("TERM");
    assert_eq!(process.code(), 0);
    assert_eq!(usage(&config, &[])["total"]["made"], total);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_another_version_is_left_alone_and_reported() {
    let (platform, folder) = (Platform::unlimited().await, tempfile::tempdir().unwrap());
    let config = config_with_store(folder.path(), &crate::support::Upstream::url(&platform), "");
    let (store, newer) = (folder.path().join("usage.json"), "{\"version\":2,\"months\":{}}");
    std::fs::write(&store, newer).unwrap();
    let (mut process, mut log, record) = serve(&config);
    let failed = log_record(&mut log, "budget.store: counts cannot be stored");
    assert!(failed["error"].as_str().unwrap().contains("version 2"), "{failed}");
    let admin = record["admin_listen"].as_str().unwrap().parse().unwrap();
    assert_eq!(crate::support::metric(admin, "zvgate_budget_store_success").await, Some(0.0));
    let page = crate::support::admin_page(admin, "/status.json").await.json();
    assert!(page["verdict"]["summary"].as_str().unwrap().contains("budget.store"), "{page}");
    process.signal("TERM");
    assert_eq!(process.code(), 0);
    assert_eq!(std::fs::read_to_string(&store).unwrap(), newer);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_processes_with_one_file_the_second_waits_and_loses_nothing() {
    let (platform, folder) = (Platform::unlimited().await, tempfile::tempdir().unwrap());
    let config = config_with_store(folder.path(), &crate::support::Upstream::url(&platform), "");
    let (mut first, _first_log, one) = serve(&config);
    let (mut second, mut log, two) = serve(&config);
    let failed = log_record(&mut log, "budget.store: counts cannot be stored");
    assert!(failed["error"].as_str().unwrap().contains("another process"), "{failed}");
    for record in [&one, &two] {
        read_from(record["listen"].as_str().unwrap().parse().unwrap(), 1).await;
    }
    first.signal("TERM");
    assert_eq!(first.code(), 0);
    second.signal("TERM");
    assert_eq!(second.code(), 0);
    assert_eq!(usage(&config, &[])["total"]["made"], 2);
}

/// The size of files is limited, as on a full disk: the counts of before are still there, and it goes on once there is space.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_loses_no_count_that_was_stored() {
    let (platform, folder) = (Platform::unlimited().await, tempfile::tempdir().unwrap());
    let config = config_with_store(folder.path(), &crate::support::Upstream::url(&platform), "");
    let log = folder.path().join("log");
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; exec \"$0\" serve --config \"$1\" 2>\"$2\""]);
    command.args([zvgate().get_program(), config.as_os_str(), log.as_os_str()]);
    let mut process = Running(command.env_clear().env("PATH", "/usr/bin:/bin").spawn().unwrap());
    let text = || std::fs::read_to_string(&log).unwrap_or_default();
    until("serving", async || text().contains("\"serving\"")).await;
    let record: Value =
        serde_json::from_str(text().lines().find(|line| line.contains("\"serving\"")).unwrap()).unwrap();
    read_from(record["listen"].as_str().unwrap().parse().unwrap(), 1).await;
    let limit = |size: &str| {
        let id = process.0.id().to_string();
        assert_eq!(run(Command::new("prlimit").args([&format!("--fsize={size}:unlimited"), "--pid", &id])).0, 0);
    };
    let before = std::fs::read_to_string(folder.path().join("usage.json")).unwrap();
    limit("8");
    process.signal("TERM");
    assert_eq!(process.code(), 0, "the end is not delayed");
    assert_eq!(std::fs::read_to_string(folder.path().join("usage.json")).unwrap(), before, "neither torn nor lost");
    assert!(!folder.path().join("usage.json.new").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_threshold_is_warned_of_once() {
    let log = captured_log();
    let platform = Platform::unlimited().await;
    let gateway = TestGateway::start(&platform, &[("budget.warn_calls", "2,3"), ("limits.upstream.rate", "0")]).await;
    for customer in 0..4 {
        gateway.read(&customer.to_string()).await;
        gateway.page("/metrics").await;
    }
    let warned = log.lines().into_iter().filter(|line| line["message"] == "budget threshold reached");
    let thresholds: Vec<Value> = warned.map(|line| line["threshold"].clone()).collect();
    assert_eq!(thresholds, [2, 3]);
    assert_eq!(gateway.metric("zvgate_budget_warn_calls").await, 2.0);
    assert_eq!(gateway.metric("zvgate_billed_calls_month{tenant=\"one\"}").await, 4.0);
    let page = gateway.page("/status.json").await.json();
    assert_eq!(page["verdict"]["findings"][0]["runbook"], "ZvgateBudget", "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_calls_that_were_sent_count_and_only_configured_outcomes_are_billed() {
    let platform = Platform::unlimited().await;
    let overrides = [("budget.billed", "ok"), ("limits.upstream.rate", "0"), ("upstream.retries", "0")];
    let gateway = TestGateway::start(&platform, &overrides).await;
    gateway.read("1").await;
    platform.faults(json!({ "fault": "http500" })).await;
    gateway.read("2").await;
    let money = gateway.page("/status.json").await.json()["money"].clone();
    assert_eq!((&money["made"], &money["failed"], &money["billed"]), (&json!(2), &json!(1), &json!(1)), "{money}");
    // Nobody listens there.
    let gateway = TestGateway::start(&platform, &[("upstream.base_url", "http://127.0.0.1:1")]).await;
    gateway.read("1").await;
    assert_eq!(gateway.page("/status.json").await.json()["money"]["made"], 0);
}

#[test]
fn usage_prints_a_table_and_comma_separated_values() {
    let folder = tempfile::tempdir().unwrap();
    let config = config_with_store(folder.path(), "http://127.0.0.1:1", "free_calls = 10\nprice = 0.5\n");
    let stored = json!({ "version": 1, "days": { "2026-11-03": { "a": {
        "/v3/x": { "made": 12, "failed": 1, "billed": 12, "saved": 3 },
        "/v3/y,\"z\"": { "made": 1, "failed": 0, "billed": 1, "saved": 0 },
    } } } });
    std::fs::write(folder.path().join("usage.json"), stored.to_string()).unwrap();
    let print = |format: &str| {
        let (code, out, err) =
            run(zvgate().args(["usage", "--month", "2026-11", "--format", format, "--config"]).arg(&config));
        assert_eq!(code, 0, "{err}");
        out
    };
    let table = print("table");
    assert!(
        table.contains("1.50 CNY; 3.00 CNY without the cache (0.5 CNY a call after 10 free ones a month)"),
        "{table}"
    );
    let line = table.lines().find(|line| line.contains("/v3/x")).unwrap();
    assert_eq!(line.split_whitespace().collect::<Vec<_>>(), ["2026-11-03", "a", "/v3/x", "12", "1", "12", "3"]);
    assert_eq!(
        print("csv"),
        "day,tenant,route,made,failed,billed,saved\r\n2026-11-03,a,/v3/x,12,1,12,3\r\n2026-11-03,a,\"/v3/y,\"\"z\"\"\",1,0,1,0\n"
    );
    let (code, _, err) = run(zvgate().args(["usage", "--month", "2026-13", "--config"]).arg(&config));
    assert!(code == 2 && err.contains("a month such as 2026-11"), "{err}");
    let without = write_config(folder.path(), "http://127.0.0.1:1", "");
    let (code, _, err) = run(zvgate().args(["usage", "--config"]).arg(without));
    assert!(code == 2 && err.contains("budget.store"), "{err}");
}
