//! `zvgate demo`: the sandbox and a gateway on loopback, or several that share a Redis. Reads no file and no variable.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio_util::sync::CancellationToken;

use super::redis_server::RedisServer;
use super::sandbox::{DEFAULT_ADDRESS, EXAMPLE_GRANT_CODE, EXAMPLE_OPEN_ID, EXAMPLE_OPEN_KEY, example};
use super::stop::Stops;
use super::{fail, logging, print, runtime};
use crate::app::{App, StartError, Surroundings, Workers};
use crate::clock::Clock;
use crate::configuration::Configuration;
use crate::limit::EarlierCalls;
use crate::sandbox::{Faults, Format, Options, Sandbox};
use crate::settings::Sources;

/// The customer of the example commands: the one of the platform's own document.
const CUSTOMER: &str = "383933091455959041";

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// How many gateways share a Redis and act as one; starts redis-server, which must be installed
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(2..=10))]
    replicas: Option<u16>,
    /// Calls that the sandbox allows in any second, for each route, and that the gateway keeps to; 0: any number
    #[arg(long, value_name = "N", default_value_t = 10)]
    rate: u16,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), u8> {
    runtime()?.block_on(demo(arguments))
}

async fn demo(arguments: &Arguments) -> Result<(), u8> {
    let mut stops = Stops::new().map_err(fail)?;
    let sandbox = bind_sandbox(arguments.rate).await.map_err(fail)?;
    let platform = sandbox.address().map_err(fail)?;
    let redis = match arguments.replicas {
        Some(replicas) => Some((RedisServer::start().await.map_err(fail)?, replicas)),
        None => None,
    };
    let upstream = (platform, arguments.rate);
    let _log = logging::begin(&configuration(upstream, ANY_PORTS, redis.as_ref())?.settings.fixed.log);
    let (mut apps, mut addresses) = (Vec::new(), Vec::new());
    for number in 0..arguments.replicas.unwrap_or(1) {
        let app = bind_gateway(upstream, number, redis.as_ref()).await?;
        addresses.push((app.address().map_err(fail)?, app.admin_address().map_err(fail)?));
        apps.push(app);
    }
    let card = sandbox.first_card(CUSTOMER).unwrap_or_default();
    print(&match &redis {
        None => banner(platform, &addresses, &card),
        Some((redis, _)) => replicas_banner(platform, redis.port, &addresses, &card),
    })?;
    let (stop_gateways, stop_sandbox) = (CancellationToken::new(), CancellationToken::new());
    let platform = tokio::spawn(sandbox.run(stop_sandbox.clone()));
    let gateways = apps.into_iter().map(|app| app.run(Workers::new(Vec::new()), stop_gateways.clone()));
    let gateways = futures_util::future::try_join_all(gateways);
    let stopping = async {
        stops.next().await;
        stop_gateways.cancel();
        stops.next().await;
    };
    tokio::select! {
        ran = gateways => drop(ran.map_err(fail)?),
        () = stopping => {}
    }
    stop_sandbox.cancel();
    platform.await.map_err(fail)?;
    print("stopped")
}

/// The default port, or any free one.
async fn bind_sandbox(rate: u16) -> io::Result<Sandbox> {
    let (faults, format) = (Faults::default(), Format::default());
    let options = Options { merchants: vec![example()], rate: rate.into(), faults, format };
    let default = DEFAULT_ADDRESS.parse().map_err(io::Error::other)?;
    match Sandbox::bind(default, options.clone(), Clock::system()).await {
        Ok(sandbox) => Ok(sandbox),
        Err(_) => Sandbox::bind(any_port(), options, Clock::system()).await,
    }
}

/// A gateway on the default ports, each after the first on the next ones, or on any free ones if one of them is taken.
async fn bind_gateway(upstream: (SocketAddr, u16), number: u16, redis: Option<&(RedisServer, u16)>) -> Result<App, u8> {
    let bind = |configuration| App::bind(configuration, Clock::system(), Surroundings::new(EarlierCalls::None));
    match bind(configuration(upstream, DEFAULT_PORTS.map(|port| port + number), redis)?).await {
        Err(StartError::Listen(..)) => bind(configuration(upstream, ANY_PORTS, redis)?).await.map_err(fail),
        bound => bound.map_err(fail),
    }
}

fn any_port() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

/// The ports of the data and the admin listener.
const DEFAULT_PORTS: [u16; 2] = [8080, 9464];
const ANY_PORTS: [u16; 2] = [0, 0];

fn configuration(
    (platform, rate): (SocketAddr, u16),
    [data, admin]: [u16; 2],
    redis: Option<&(RedisServer, u16)>,
) -> Result<Configuration, u8> {
    let mut variables = vec![
        ("ZVGATE__SERVER__LISTEN", format!("127.0.0.1:{data}")),
        ("ZVGATE__SERVER__ADMIN_LISTEN", format!("127.0.0.1:{admin}")),
        ("ZVGATE__UPSTREAM__BASE_URL", format!("http://{platform}")),
        ("ZVGATE__LIMITS__UPSTREAM__RATE", rate.to_string()),
        ("ZVGATE__TENANTS__DEMO__OPEN_ID", EXAMPLE_OPEN_ID.to_owned()),
        ("ZVGATE__TENANTS__DEMO__GRANT_CODE", EXAMPLE_GRANT_CODE.to_owned()),
        ("ZVGATE__TENANTS__DEMO__OPEN_KEY", EXAMPLE_OPEN_KEY.to_owned()),
    ];
    if let Some((redis, replicas)) = redis {
        variables.extend([
            ("ZVGATE__CLUSTER__URL", format!("redis://127.0.0.1:{}", redis.port)),
            ("ZVGATE__CLUSTER__REPLICAS", replicas.to_string()),
            ("ZVGATE__LOG__HASH_KEY_FILE", redis.hash_key.display().to_string()),
        ]);
    }
    let variables: BTreeMap<_, _> = variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Configuration::load(&Sources { variables, ..Sources::default() }).map_err(fail)
}

/// The command that reads the coupons of a customer.
fn read(gateway: SocketAddr) -> String {
    format!(
        "curl -si http://{gateway}/v3/crm/coupon/getCustomerCoupons -H 'Content-Type: application/json' \\\n    -d '{{\"params\":{{\"customerId\":\"{CUSTOMER}\"}}}}'"
    )
}

/// The command that redeems a coupon of that customer.
fn write(gateway: SocketAddr, card: &str) -> String {
    format!(
        "curl -si http://{gateway}/v3/crm/coupon/writeOffCoupon -H 'Content-Type: application/json' \\\n    -d '{{\"params\":{{\"bizId\":\"order-1\",\"customerId\":\"{CUSTOMER}\",\"couponsCardList\":[\"{card}\"]}}}}'"
    )
}

fn banner(platform: SocketAddr, gateways: &[(SocketAddr, SocketAddr)], card: &str) -> String {
    let [(data, admin), ..] = gateways else { return String::new() };
    let (read, write) = (read(*data), write(*data, card));
    format!(
        "zvgate demo
  gateway   http://{data}
  admin     http://{admin}
  sandbox   http://{platform}  (a stand-in for the open platform)

Paste into another terminal:

# 1. a miss: signed, sent, stored (see Cache-Status)
{read}

# 2. the same again: a hit
{read}

# 3. a write: sent once, and the customer's answers are invalidated. Now 1. is a miss again, with ttl=3:
#    for 3 s after a write (cache.settle) the platform itself may lag, so what is fetched then lives shortly
{write}

# 4. calls to the platform that the cache saved
curl -s http://{admin}/metrics | grep '^zvgate_upstream_calls_saved_total.*getCustomerCoupons'

Ctrl-C stops it."
    )
}

/// About so many calls through all gateways, all at once.
const CALLS: usize = 20;

fn replicas_banner(platform: SocketAddr, redis: u16, gateways: &[(SocketAddr, SocketAddr)], card: &str) -> String {
    let gateway = |place: usize| gateways.get(place).or(gateways.last()).map_or_else(any_port, |(data, _)| *data);
    let (first, second, last) = (gateway(0), gateway(1), gateway(usize::MAX));
    let admins = gateways.iter().map(|(_, admin)| format!("http://{admin}/metrics")).collect::<Vec<_>>().join(" ");
    let shown: String = (1..)
        .zip(gateways)
        .map(|(number, (data, admin))| format!("  gateway {number:<2} http://{data}  (admin http://{admin})\n"))
        .collect();
    let addresses = gateways.iter().map(|(data, _)| data.to_string()).collect::<Vec<_>>().join(" ");
    let each = CALLS.div_ceil(gateways.len().max(1));
    let calls = each * gateways.len();
    let (miss, shared, write, again) = (read(first), read(second), write(last, card), read(first));
    format!(
        "zvgate demo: {number} gateways that act as one
{shown}  redis      redis://127.0.0.1:{redis}
  sandbox    http://{platform}  (a stand-in for the open platform)

Paste into another terminal:

# 1. a miss of the first gateway: signed, sent, stored; with a new Redis it waits up to 3 s, because earlier calls may still count
{miss}

# 2. the same through the second: a hit, since replicas share their answers (see detail=shared in Cache-Status)
{shared}

# 3. a write through the last gateway: every later read, through any gateway, sees it
{write}

# 4. 1. again: a miss, and the coupon has another useStatus
{again}

# 5. one rate: {calls} misses at once through all gateways take about 2 s, since the platform allows 10 calls a second, and it refused none
for gateway in {addresses}; do for number in $(seq {each}); do curl -s -o /dev/null -w '%{{http_code}}\\n' \\
    http://$gateway/v3/crm/coupon/getCustomerCoupons -H 'Content-Type: application/json' \\
    -d '{{\"params\":{{\"customerId\":\"'$gateway-$number'\"}}}}' & done; done | sort | uniq -c
curl -s http://{platform}/_sandbox/stats

# 6. what was shared
curl -s {admins} | grep '^zvgate_cache_shared_total'

Ctrl-C stops all.",
        number = gateways.len()
    )
}
