//! The program as it runs: a worker thread for each core, here two, in front of a platform with and without TLS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::Request;
use http_body_util::Full;
use rcgen::CertificateParams;
use serde_json::json;
use tokio_rustls::TlsAcceptor;

use crate::program::{serve, write_config};
use crate::support::{Caller, Platform, READ, Reply, Upstream, WRITE, metric, post};
use crate::tls::{Authority, TlsFront};

const CUSTOMERS: u64 = 20;
const CALLERS: u64 = 24;
const READS: u64 = 100;

/// The version of a list, which every change of the customer's coupons increments.
fn version(reply: &Reply) -> u64 {
    let text = reply.text();
    let (_, rest) = text.split_once("version=").unwrap_or_else(|| panic!("{text}"));
    rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
}

async fn read(caller: &mut Caller, customer: u64) -> Reply {
    let body = json!({ "params": { "customerId": customer.to_string() } }).to_string();
    let request = Request::post(READ).header("host", "localhost").header("content-type", "application/json");
    caller.send(request.body(Full::new(body.into())).unwrap()).await.unwrap()
}

/// Ticks of processor time that each worker thread used.
fn worker_ticks(process: u32) -> Vec<u64> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap().map(|task| task.unwrap().path());
    let stats = tasks.map(|task| std::fs::read_to_string(task.join("stat")).unwrap());
    let workers = stats.filter(|stat| stat.contains("(worker-"));
    let ticks = |stat: String| {
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    workers.map(ticks).collect()
}

/// Many callers read while others redeem coupons: each question is fetched once however many workers ask it, and whoever reads
/// after a write was answered, on whichever worker, sees it.
async fn answers_cross_workers(platform: &Platform, upstream: &str, more: &str) {
    let folder = tempfile::tempdir().unwrap();
    let config = write_config(folder.path(), upstream, "[limits.upstream]\nrate = 0\n");
    let text = std::fs::read_to_string(&config).unwrap();
    let text =
        text.replace("[server]\n", "[server]\nworkers = 2\n").replace("[upstream]\n", &format!("[upstream]\n{more}"));
    std::fs::write(&config, text).unwrap();
    let (gateway, _log, record) = serve(&config);
    let address = |key: &str| record[key].as_str().unwrap().parse::<SocketAddr>().unwrap();
    let (address, admin) = (address("listen"), address("admin_listen"));

    let before = platform.requests(READ).await;
    let reading: Vec<_> = (0..CALLERS)
        .map(|number| {
            tokio::spawn(async move {
                let mut caller = Caller::connect(address).await;
                for turn in 0..READS {
                    let reply = read(&mut caller, (number + turn) % CUSTOMERS).await;
                    assert_eq!(reply.status, 200, "{reply:?}");
                }
            })
        })
        .collect();
    for one in reading {
        one.await.unwrap();
    }
    assert_eq!(platform.requests(READ).await - before, CUSTOMERS, "each question is fetched once");
    let collapsed = format!("zvgate_cache_lookups_total{{result=\"collapsed\",route=\"{READ}\"}}");
    let hits = collapsed.replace("collapsed", "hit");
    let shared = metric(admin, &collapsed).await.unwrap() + metric(admin, &hits).await.unwrap();
    assert_eq!(shared, (CALLERS * READS - CUSTOMERS) as f64);

    let written: Arc<Vec<AtomicU64>> = Arc::new((0..CUSTOMERS).map(|_| AtomicU64::new(0)).collect());
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..CALLERS {
        let written = Arc::clone(&written);
        tasks.spawn(async move {
            let mut caller = Caller::connect(address).await;
            for turn in 0..READS {
                let customer = (number + turn) % CUSTOMERS;
                let answered = written[usize::try_from(customer).unwrap()].load(Ordering::SeqCst);
                let reply = read(&mut caller, customer).await;
                assert!(reply.status == 200 && version(&reply) >= answered, "write {answered}: {reply:?}");
            }
        });
    }
    for customer in 0..CUSTOMERS {
        let (written, list) = (Arc::clone(&written), read(&mut Caller::connect(address).await, customer).await);
        tasks.spawn(async move {
            let cards: Vec<_> = list.json()["data"]["list"].as_array().unwrap().iter().map(|one| one["cardId"].clone()).collect();
            for (number, card) in cards.iter().enumerate() {
                let params = json!({ "bizId": format!("{customer}-{number}"), "customerId": customer.to_string(), "couponsCardList": [card] });
                let reply = post(address, WRITE, &[], &json!({ "params": params }).to_string()).await;
                assert_eq!(reply.header("x-zvgate-outcome"), "executed", "{reply:?}");
                written[usize::try_from(customer).unwrap()].store(number as u64 + 1, Ordering::SeqCst);
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    let ticks = worker_ticks(gateway.0.id());
    assert!(ticks.len() == 2 && ticks.iter().all(|ticks| *ticks > 0), "both workers worked: {ticks:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_cross_workers_under_load() {
    let platform = Platform::unlimited().await;
    answers_cross_workers(&platform, &platform.url(), "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_cross_workers_under_load_over_tls() {
    let (platform, authority) = (Platform::unlimited().await, Authority::new());
    let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    let front = TlsFront::start(platform.address, TlsAcceptor::from(Arc::new(authority.server(&params)))).await;
    let ca = format!("ca = \"{}\"\n", authority.path("ca"));
    answers_cross_workers(&platform, &format!("https://localhost:{}", front.port), &ca).await;
}
