//! `zvgate demo`: the sandbox and a gateway on loopback. Reads no file and no variable.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio_util::sync::CancellationToken;

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

pub(super) fn run() -> Result<(), u8> {
    runtime()?.block_on(demo())
}

async fn demo() -> Result<(), u8> {
    let mut stops = Stops::new().map_err(fail)?;
    let sandbox = bind_sandbox().await.map_err(fail)?;
    let platform = sandbox.address().map_err(fail)?;
    let configuration = configuration(platform, DEFAULT_PORTS)?;
    let _log = logging::begin(&configuration.settings.fixed.log);
    let app = bind_gateway(configuration, platform).await?;
    let (data, admin) = (app.address().map_err(fail)?, app.admin_address().map_err(fail)?);
    let card = sandbox.first_card(CUSTOMER).unwrap_or_default();
    print(&banner(platform, data, admin, &card))?;
    let (stop_gateway, stop_sandbox) = (CancellationToken::new(), CancellationToken::new());
    let platform = tokio::spawn(sandbox.run(stop_sandbox.clone()));
    let gateway = app.run(Workers::new(Vec::new()), stop_gateway.clone());
    let stopping = async {
        stops.next().await;
        stop_gateway.cancel();
        stops.next().await;
    };
    tokio::select! {
        ran = gateway => ran.map_err(fail)?,
        () = stopping => {}
    }
    stop_sandbox.cancel();
    platform.await.map_err(fail)?;
    print("stopped")
}

/// The default port, or any free one.
async fn bind_sandbox() -> io::Result<Sandbox> {
    let options =
        Options { merchants: vec![example()], rate: 10, faults: Faults::default(), format: Format::default() };
    let default = DEFAULT_ADDRESS.parse().map_err(io::Error::other)?;
    match Sandbox::bind(default, options.clone(), Clock::system()).await {
        Ok(sandbox) => Ok(sandbox),
        Err(_) => Sandbox::bind(any_port(), options, Clock::system()).await,
    }
}

/// The default ports, or any free ones if one of them is taken.
async fn bind_gateway(configuration: Configuration, platform: SocketAddr) -> Result<App, u8> {
    let bind = |configuration| App::bind(configuration, Clock::system(), Surroundings::new(EarlierCalls::None));
    match bind(configuration).await {
        Err(StartError::Listen(..)) => bind(self::configuration(platform, ANY_PORTS)?).await.map_err(fail),
        bound => bound.map_err(fail),
    }
}

fn any_port() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

/// The ports of the data and the admin listener.
const DEFAULT_PORTS: [u16; 2] = [8080, 9464];
const ANY_PORTS: [u16; 2] = [0, 0];

fn configuration(platform: SocketAddr, [data, admin]: [u16; 2]) -> Result<Configuration, u8> {
    let variables = [
        ("ZVGATE__SERVER__LISTEN", format!("127.0.0.1:{data}")),
        ("ZVGATE__SERVER__ADMIN_LISTEN", format!("127.0.0.1:{admin}")),
        ("ZVGATE__UPSTREAM__BASE_URL", format!("http://{platform}")),
        ("ZVGATE__TENANTS__DEMO__OPEN_ID", EXAMPLE_OPEN_ID.to_owned()),
        ("ZVGATE__TENANTS__DEMO__GRANT_CODE", EXAMPLE_GRANT_CODE.to_owned()),
        ("ZVGATE__TENANTS__DEMO__OPEN_KEY", EXAMPLE_OPEN_KEY.to_owned()),
    ];
    let variables = BTreeMap::from(variables.map(|(name, value)| (name.to_owned(), value)));
    Configuration::load(&Sources { variables, ..Sources::default() }).map_err(fail)
}

fn banner(platform: SocketAddr, data: SocketAddr, admin: SocketAddr, card: &str) -> String {
    let read = format!(
        "curl -si http://{data}/v3/crm/coupon/getCustomerCoupons -H 'Content-Type: application/json' \\\n    -d '{{\"params\":{{\"customerId\":\"{CUSTOMER}\"}}}}'"
    );
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
curl -si http://{data}/v3/crm/coupon/writeOffCoupon -H 'Content-Type: application/json' \\
    -d '{{\"params\":{{\"bizId\":\"order-1\",\"customerId\":\"{CUSTOMER}\",\"couponsCardList\":[\"{card}\"]}}}}'

# 4. calls to the platform that the cache saved
curl -s http://{admin}/metrics | grep '^zvgate_upstream_calls_saved_total.*getCustomerCoupons'

Ctrl-C stops it."
    )
}
