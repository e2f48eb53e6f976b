//! The example clients, each in its language: they list, redeem, and handle what goes wrong.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Output, Stdio};

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::program::{Running, zvgate};
use crate::scripted::{Action, Scripted, http_text};
use crate::support::{Platform, REVERSE, TestGateway, Upstream, WRITE, loopback, until};

const CUSTOMER: &str = "383933091455959041";

/// Each client, and the program that runs it.
const CLIENTS: [(&str, &str); 3] = [("python3", "coupons.py"), ("node", "coupons.mjs"), ("bash", "coupons.sh")];

#[test]
fn every_client_has_a_test() {
    let folder = format!("{}/examples/clients", env!("CARGO_MANIFEST_DIR"));
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let tested: std::collections::BTreeSet<_> = CLIENTS.iter().map(|(_, file)| (*file).to_owned()).collect();
    assert_eq!(names.collect::<std::collections::BTreeSet<_>>(), tested);
}

/// The clients whose language is on this machine.
fn clients() -> Vec<(&'static str, &'static str)> {
    let is_there = |(program, _): &(&str, &str)| Command::new(program).arg("--version").output().is_ok();
    let (there, missing): (Vec<_>, Vec<_>) = CLIENTS.into_iter().partition(is_there);
    let report = missing.iter().map(|(program, file)| {
        format!(
            "LEFT OUT: {file}, because {program} is missing
"
        )
    });
    std::io::stderr().write_all(report.collect::<String>().as_bytes()).unwrap();
    assert!(!there.is_empty(), "none of the languages is there");
    there
}

/// What a client said: its exit status and its output.
#[derive(Debug)]
struct Said {
    code: i32,
    out: String,
    err: String,
}

async fn run((program, file): (&str, &str), url: &str, key: Option<&str>, arguments: &[&str]) -> Said {
    let mut command = Command::new(program);
    command.arg(format!("{}/examples/clients/{file}", env!("CARGO_MANIFEST_DIR"))).arg(url).args(arguments);
    command.env_remove("ZVGATE_TENANT").env_remove("ZVGATE_KEY");
    if let Some(key) = key {
        command.env("ZVGATE_KEY", key);
    }
    let Output { status, stdout, stderr } =
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Said { code: status.code().unwrap(), out: text(stdout), err: text(stderr) }
}

/// The coupons that a client lists, by card.
async fn listed(client: (&str, &str), url: &str) -> BTreeMap<String, String> {
    let said = run(client, url, None, &["list", CUSTOMER]).await;
    assert_eq!((said.code, said.err.as_str()), (0, ""), "{client:?}: {said:?}");
    let line = |line: &str| line.split_once(' ').map(|(card, rest)| (card.to_owned(), rest.to_owned())).unwrap();
    said.out.lines().map(line).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_client_redeems_and_handles_what_goes_wrong() {
    futures_util::future::join_all(clients().into_iter().map(exercise)).await;
}

async fn exercise(client: (&'static str, &'static str)) {
    let platform = Platform::unlimited().await;
    // A breaker would open after the faults.
    let overrides = [
        ("limits.upstream.rate", "0"),
        ("upstream.breaker.consecutive", "0"),
        ("upstream.breaker.ratio", "0"),
        ("upstream.retries", "0"),
    ];
    let gateway = TestGateway::start(&platform, &overrides).await;
    let url = format!("http://{}", gateway.address);
    let closed = std::net::TcpListener::bind(loopback()).unwrap().local_addr().unwrap();
    let nowhere = format!("http://{closed}");
    let ids = ["once", "lost", "broken", "exception"];
    let [once, lost, broken, exception] = ids;
    for _ in 0..3 {
        platform.change(CUSTOMER, "issue", json!({ "seconds": 3600 })).await;
    }
    gateway.post("/v1/invalidate", &[], &json!({ "customerIds": [CUSTOMER] }).to_string()).await;
    let before = listed(client, &url).await;
    let cards: Vec<&str> = before.keys().rev().take(3).map(String::as_str).collect();
    assert!(before[cards[0]].starts_with("unused 20"), "{before:?}");
    let redeem = async |card: &str, id: &str| run(client, &url, None, &["redeem", CUSTOMER, card, id]).await;
    // Redeemed, gone from the list, and not again.
    let said = redeem(cards[0], once).await;
    assert_eq!((said.code, said.out.as_str()), (0, "redeemed\n"), "{client:?}: {said:?}");
    assert!(!listed(client, &url).await.contains_key(cards[0]));
    let said = redeem(cards[0], once).await;
    assert_eq!(said.code, 3, "{client:?}: {said:?}");
    assert!(said.err.contains("redeemed"), "{said:?}");
    // The answer is lost, and it was redeemed: the client finds out.
    platform.faults(json!({ "fault": "reset", "times": 1, "route": WRITE })).await;
    let writes = platform.requests(WRITE).await;
    let said = redeem(cards[1], lost).await;
    assert_eq!((said.code, said.out.as_str()), (0, "redeemed\n"), "{client:?}: {said:?}");
    assert_eq!(platform.requests(WRITE).await, writes + 1, "an unknown write is not repeated");
    platform.without_faults().await;
    let said = run(client, &url, None, &["reverse", lost, CUSTOMER]).await;
    assert_eq!((said.code, said.out.as_str()), (0, "reversed\n"), "{client:?}: {said:?}");
    // The platform broke down before it redeemed: the client looks, and undoes whatever may still come of it.
    platform.faults(json!({ "fault": "http503", "times": 1, "route": WRITE })).await;
    let (writes, reversals) = (platform.requests(WRITE).await, platform.requests(REVERSE).await);
    let said = redeem(cards[1], broken).await;
    assert_eq!(said.code, 3, "{client:?}: {said:?}");
    assert!(said.err.contains("not redeemed"), "{said:?}");
    assert_eq!([platform.requests(WRITE).await, platform.requests(REVERSE).await], [writes + 1, reversals + 1]);
    platform.without_faults().await;
    assert!(listed(client, &url).await.contains_key(cards[1]));
    // The answer is lost, and then the platform answers nothing any more: nobody knows.
    platform.faults(json!({ "fault": "reset" })).await;
    let said = redeem(cards[1], "never").await;
    assert_eq!(said.code, 1, "{client:?}: nothing was sent, because the look before it failed: {said:?}");
    platform.faults(json!({ "fault": "reset", "route": WRITE })).await;
    let failing = async {
        until("it was sent", async || platform.requests(WRITE).await > writes + 1).await;
        platform.faults(json!({ "fault": "http500", "route": null })).await;
    };
    let (said, ()) = tokio::join!(redeem(cards[1], "unseen"), failing);
    assert!(said.code == 4 || said.out == "redeemed\n", "{client:?}: {said:?}");
    platform.without_faults().await;
    // Throttled: nothing was executed, and it is no exception.
    platform.faults(json!({ "fault": "throttle", "route": WRITE })).await;
    let said = redeem(cards[2], "throttled").await;
    assert_eq!(said.code, 1, "{client:?}: {said:?}");
    assert!(said.err.contains("110004"), "{said:?}");
    platform.without_faults().await;
    let status = run(client, &url, None, &["status", CUSTOMER, cards[2]]).await;
    assert_eq!((status.code, status.out.as_str()), (0, "unused\n"), "{client:?}: {status:?}");
    // An exception of the platform, in both shapes.
    platform.faults(json!({ "fault": "exception" })).await;
    for arguments in [&["list", "exception"][..], &["reverse", exception, CUSTOMER]] {
        let said = run(client, &url, None, arguments).await;
        assert_eq!(said.code, 3, "{client:?}: {said:?}");
        assert!(said.err.contains("200001"), "{said:?}");
    }
    platform.without_faults().await;
    // Wrong usage.
    assert_eq!(run(client, &url, None, &["list"]).await.code, 2);
    for arguments in [&["list", "1"][..], &["reverse", "1", "2"]] {
        assert_eq!(run(client, &nowhere, None, arguments).await.code, 1, "{client:?}: nothing was sent");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_client_sends_its_key_and_waits_for_as_long_as_it_is_asked_to() {
    let platform = Platform::unlimited().await;
    let key = zvgate::secret::hex(&Sha256::digest("key"));
    let overrides = [
        ("callers.shop.key_sha256", key.as_str()),
        ("callers.shop.tenants", "one"),
        ("callers.shop.routes", "*"),
        ("callers.shop.limit.rate", "1"),
        ("callers.shop.limit.per", "2s"),
        ("callers.shop.limit.burst", "1"),
    ];
    let gateway = TestGateway::start(&platform, &overrides).await;
    let url = format!("http://{}", gateway.address);
    for client in clients() {
        let said = run(client, &url, Some("other"), &["list", CUSTOMER]).await;
        assert_eq!(said.code, 1, "{client:?}: {said:?}");
        assert!(said.err.contains("unauthenticated") && said.err.contains("401"), "{client:?}: {said:?}");
        for _ in 0..2 {
            let said = run(client, &url, Some("key"), &["list", CUSTOMER]).await;
            assert_eq!(said.code, 0, "{client:?}: {said:?}");
        }
    }
    let limited = "zvgate_limited_total{caller=\"shop\",limit=\"caller\"}";
    assert!(gateway.metric(limited).await >= clients().len() as f64, "each was asked to wait once");
}

/// As in the README: against the demo.
#[tokio::test(flavor = "multi_thread")]
async fn every_client_works_with_the_demo() {
    let mut child = zvgate().arg("demo").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let _demo = Running(child);
    let url = lines.find_map(|line| Some(line.unwrap().strip_prefix("  gateway   ")?.to_owned())).unwrap();
    for (number, client) in clients().into_iter().enumerate() {
        let card = listed(client, &url).await.into_keys().next().unwrap();
        let id = format!("order-{number}");
        let said = run(client, &url, None, &["redeem", CUSTOMER, &card, &id]).await;
        assert_eq!((said.code, said.out.as_str()), (0, "redeemed\n"), "{client:?}: {said:?}");
        assert!(!listed(client, &url).await.contains_key(&card), "{client:?}");
        let said = run(client, &url, None, &["reverse", &id, CUSTOMER]).await;
        assert_eq!((said.code, said.out.as_str()), (0, "reversed\n"), "{client:?}: {said:?}");
    }
}

/// What something on the way to the gateway answers in its place says nothing about a write.
#[tokio::test(flavor = "multi_thread")]
async fn every_client_takes_a_strangers_answer_to_a_write_for_what_it_is() {
    let stranger = Scripted::start(|_, request| {
        let later = "Retry-After: 0\r\n";
        match () {
            () if !request.contains("/v3/") => Action::json(
                r#"{"customerId":"1","coupons":[{"cardId":"1","status":{"code":0,"name":"unused"}}],"complete":true}"#,
            ),
            () if request.contains("unavailable") => Action::Respond(http_text("503 Service Unavailable", later, "")),
            () if request.contains("html") => Action::Respond(http_text("200 OK", "", "<html>")),
            () if request.contains("list") => Action::Respond(http_text("502 Bad Gateway", "", "[1]")),
            () if request.contains("elsewhere") => {
                Action::Respond(http_text("307 Temporary Redirect", "Location: /v3/other\r\n", ""))
            }
            () if request.contains("cut") => Action::RespondAndClose(
                b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nX-Zvgate-Outcome: unknown\r\n\r\n{".to_vec(),
            ),
            () => Action::Respond(http_text(
                "400 Bad Request",
                "Proxy-Status: zvgate; error=http_request_error\r\nX-Zvgate-Outcome: not-sent\r\n",
                r#"{"error":"bad_request","message":"no"}"#,
            )),
        }
    })
    .await;
    for client in clients() {
        for (id, code) in [("unavailable", 4), ("html", 4), ("list", 4), ("elsewhere", 4), ("cut", 4), ("mistake", 1)] {
            let before = stranger.seen().len();
            let said = run(client, &stranger.url(), None, &["reverse", id, "1"]).await;
            assert_eq!(said.code, code, "{client:?} {id}: {said:?}");
            assert_eq!(stranger.seen().len(), before + 1, "{client:?} {id}: a write is not repeated");
        }
        for answer in ["[]", "null", "1", "<html>"] {
            let answer = answer.to_owned();
            let stranger = Scripted::start(move |_, _| Action::json(&answer)).await;
            let said = run(client, &stranger.url(), None, &["list", "1"]).await;
            assert_eq!(said.code, 1, "{client:?}: {said:?}");
        }
    }
}
