//! `zvgate demo`: everything on this machine, to see it work in a minute. Reads no file and no variable.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio_util::sync::CancellationToken;

use super::sandbox::{EXAMPLE_GRANT_CODE, EXAMPLE_OPEN_ID, EXAMPLE_OPEN_KEY, USUAL_ADDRESS, example};
use super::stop::Stops;
use super::{fail, logging, print, runtime};
use crate::app::{App, Inherited, StartError, Workers};
use crate::clock::Clock;
use crate::limit::Before;
use crate::sandbox::{Faults, Options, Sandbox};
use crate::settings::{Settings, Sources};

/// The customer of the lines to paste: the one of the platform's own document.
const CUSTOMER: &str = "383933091455959041";

pub(super) fn run() -> Result<(), u8> {
    runtime()?.block_on(demo())
}

async fn demo() -> Result<(), u8> {
    let mut stops = Stops::new().map_err(fail)?;
    let sandbox = bind_sandbox().await.map_err(fail)?;
    let platform = sandbox.address().map_err(fail)?;
    let settings = settings(platform)?;
    let _log = logging::begin(&settings.log);
    let app = bind_gateway(settings).await?;
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
        () = gateway => {}
        () = stopping => {}
    }
    stop_sandbox.cancel();
    platform.await.map_err(fail)?;
    print("stopped")
}

/// The usual port, or any free one.
async fn bind_sandbox() -> io::Result<Sandbox> {
    let options = Options { merchants: vec![example()], rate: 10, faults: Faults::default() };
    let usual = USUAL_ADDRESS.parse().map_err(io::Error::other)?;
    match Sandbox::bind(usual, options.clone(), Clock::system()).await {
        Ok(sandbox) => Ok(sandbox),
        Err(_) => Sandbox::bind(any_port(), options, Clock::system()).await,
    }
}

/// The usual ports, or for each one that is taken any free one.
async fn bind_gateway(mut settings: Settings) -> Result<App, u8> {
    for _ in 0..2 {
        match App::bind(&settings, Clock::system(), Before::Nothing, Inherited::default()).await {
            Err(StartError::Listen("server.listen", ..)) => settings.server.listen = any_port(),
            Err(StartError::Listen(..)) => settings.server.admin_listen = any_port(),
            bound => return bound.map_err(fail),
        }
    }
    App::bind(&settings, Clock::system(), Before::Nothing, Inherited::default()).await.map_err(fail)
}

fn any_port() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

fn settings(platform: SocketAddr) -> Result<Settings, u8> {
    let variables = [
        ("ZVGATE__UPSTREAM__BASE_URL", format!("http://{platform}")),
        ("ZVGATE__TENANTS__DEMO__OPEN_ID", EXAMPLE_OPEN_ID.to_owned()),
        ("ZVGATE__TENANTS__DEMO__GRANT_CODE", EXAMPLE_GRANT_CODE.to_owned()),
        ("ZVGATE__TENANTS__DEMO__OPEN_KEY", EXAMPLE_OPEN_KEY.to_owned()),
    ];
    let variables = BTreeMap::from(variables.map(|(name, value)| (name.to_owned(), value)));
    Sources { variables, ..Sources::default() }.load().map_err(fail)
}

fn banner(platform: SocketAddr, data: SocketAddr, admin: SocketAddr, card: &str) -> String {
    let read = format!(
        "curl -si http://{data}/v3/crm/coupon/getCustomerCoupons -H 'Content-Type: application/json' \\\n    -d '{{\"params\":{{\"customerId\":\"{CUSTOMER}\"}}}}'"
    );
    format!(
        "zvgate demo
  gateway   http://{data}
  admin     http://{admin}
  sandbox   http://{platform}  (stands in for the open platform)

Paste into another terminal:

# 1. a miss: signed, sent, kept (see Cache-Status)
{read}

# 2. the same again: a hit
{read}

# 3. a write: sent once, and the customer's answers are over; now 1. is a miss again
curl -si http://{data}/v3/crm/coupon/writeOffCoupon -H 'Content-Type: application/json' \\
    -d '{{\"params\":{{\"bizId\":\"order-1\",\"customerId\":\"{CUSTOMER}\",\"couponsCardList\":[\"{card}\"]}}}}'

# 4. what operators see
curl -s http://{admin}/metrics | grep zvgate_cache_lookups_total

Ctrl-C stops it."
    )
}
