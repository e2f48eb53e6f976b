//! `zvgate sandbox`

use std::net::SocketAddr;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::stop::Stops;
use super::{fail, print, runtime};
use crate::clock::Clock;
use crate::sandbox::{Fault, Faults, Format, Members, Merchant, Options, Sandbox, Shape};
use crate::secret::Secret;

/// The platform's own published example, which gives access to nothing.
pub(super) const EXAMPLE_OPEN_ID: &str = "d14c1559e87b747d577c834b275a4310";
pub(super) const EXAMPLE_GRANT_CODE: &str = "ba67d4fa46";
pub(super) const EXAMPLE_OPEN_KEY: &str = "LyvrkvkxRkG2R6aM55bXpPwjYAbkEXTbVnKwfDYvVHjNwNFAmx";
/// The default address of the sandbox.
pub(super) const DEFAULT_ADDRESS: &str = "127.0.0.1:8090";

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Where to listen
    #[arg(long, value_name = "ADDR", default_value = DEFAULT_ADDRESS)]
    listen: SocketAddr,
    /// The merchant's openId
    #[arg(long, default_value = EXAMPLE_OPEN_ID)]
    open_id: String,
    /// The merchant's grantCode
    #[arg(long, default_value = EXAMPLE_GRANT_CODE)]
    grant_code: String,
    /// The merchant's openKey
    #[arg(long, default_value = EXAMPLE_OPEN_KEY, hide_default_value = true)]
    open_key: String,
    /// Calls allowed in any second, for each route; 0: any number
    #[arg(long, default_value_t = 10)]
    rate: usize,
    /// The fault to inject
    #[arg(long, value_enum, default_value_t)]
    fault: Fault,
    /// Inject it into every n-th answer
    #[arg(long, default_value_t = 1)]
    every: u64,
    /// The latency of every answer
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "0s")]
    latency: Duration,
    /// The longest random delay before a request is counted
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "0s")]
    jitter: Duration,
    /// What `data` is in the answer to a list
    #[arg(long, value_enum, default_value_t)]
    shape: Shape,
    /// What status, code and the coupons' numbers are
    #[arg(long, value_enum, default_value_t)]
    members: Members,
    /// How many seconds the platform's clock is ahead
    #[arg(long, value_name = "SECONDS", default_value_t = 0, allow_negative_numbers = true)]
    clock_skew: i64,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), u8> {
    runtime()?.block_on(serve(arguments))
}

async fn serve(arguments: &Arguments) -> Result<(), u8> {
    let mut stops = Stops::new().map_err(fail)?;
    let merchant = Merchant {
        open_id: arguments.open_id.clone(),
        grant_code: arguments.grant_code.clone(),
        open_keys: vec![Secret::new(arguments.open_key.clone())],
    };
    let faults = Faults {
        fault: arguments.fault,
        every: arguments.every,
        latency: arguments.latency,
        jitter: arguments.jitter,
        clock_skew: arguments.clock_skew,
        ..Faults::default()
    };
    let format = Format { shape: arguments.shape, members: arguments.members };
    let options = Options { merchants: vec![merchant], rate: arguments.rate, faults, format };
    let bound = Sandbox::bind(arguments.listen, options, Clock::system()).await;
    let sandbox = bound.map_err(|error| fail(format!("--listen {}: {error}", arguments.listen)))?;
    let address = sandbox.address().map_err(fail)?;
    print(&format!("sandbox on http://{address}"))?;
    if arguments.open_key == EXAMPLE_OPEN_KEY {
        print(&format!(
            "\nIt accepts the platform's published example credentials. For a gateway in front of it:\n\n[upstream]\nbase_url = \"http://{address}\"\n\n[tenants.sandbox]\nopen_id = \"{}\"\ngrant_code = \"{}\"\nopen_key = \"{EXAMPLE_OPEN_KEY}\"",
            arguments.open_id, arguments.grant_code
        ))?;
    }
    let stop = CancellationToken::new();
    tokio::select! {
        () = sandbox.run(stop.clone()) => {}
        () = stops.next() => stop.cancel(),
    }
    Ok(())
}

/// The merchant of the published example.
pub(super) fn example() -> Merchant {
    Merchant {
        open_id: EXAMPLE_OPEN_ID.to_owned(),
        grant_code: EXAMPLE_GRANT_CODE.to_owned(),
        open_keys: vec![Secret::new(EXAMPLE_OPEN_KEY.to_owned())],
    }
}
