//! `zvgate check`

use std::sync::Arc;

use super::{ConfigArguments, FAILED, UNUSABLE, eprint, fail, print, runtime};
use crate::answer::{Reader, Verdict};
use crate::app;
use crate::clock::Clock;
use crate::cluster;
use crate::configuration::Configuration;
use crate::settings::AttemptSettings;
use crate::signer::{Call, Nonces, SignedRequest};
use crate::tenant::{Identities, Tenant, Tenants};
use crate::upstream::{AttemptError, Reuse, Upstream, with_sources};

/// The interface that the live call uses.
const LIVE_PATH: &str = "/v3/crm/coupon/getCustomerCoupons";
/// A customer that no merchant has: the answer requires valid credentials, and shows nobody's coupons.
const LIVE_MEMBERS: &str = "\"params\":{\"customerId\":\"1\"}";

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    configuration: ConfigArguments,
    /// Make one signed call per tenant, and try all that replicas ask Redis
    #[arg(long)]
    live: bool,
    /// Print only what is wrong
    #[arg(long, short)]
    quiet: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), u8> {
    let configuration = arguments.configuration.load()?;
    if !arguments.quiet {
        print(&configuration.settings.to_toml())?;
    }
    configuration.warnings.iter().for_each(|warning| eprint(&format!("warning: {warning}")));
    app::check(&configuration).map_err(|error| arguments.configuration.report(&error))?;
    if arguments.live { runtime()?.block_on(live(&configuration, arguments.quiet)) } else { Ok(()) }
}

async fn live(configuration: &Configuration, quiet: bool) -> Result<(), u8> {
    let clock = Clock::system();
    let Configuration { settings, keys, connect, .. } = configuration;
    let tenants = Tenants::new(&settings.dynamic.tenants, keys, &mut Identities::default());
    let client = &settings.fixed.client;
    let base_url = client.base_url.as_ref().ok_or(UNUSABLE)?;
    let upstream = Upstream::new(base_url, client, connect.clone(), &clock).map_err(fail)?;
    let nonces = Nonces::new().map_err(fail)?;
    let mut all_accepted = true;
    for tenant in tenants.all() {
        let result = call(&settings.dynamic.attempts, &upstream, &nonces, tenant, &clock).await;
        all_accepted &= result.is_ok();
        if result.is_err() || !quiet {
            print(&format!("live {}: {}", tenant.name, result.unwrap_or_else(|error| error)))?;
        }
    }
    if let Some(redis) = &settings.fixed.cluster.redis {
        let problems = cluster::check(redis, configuration.redis.clone()).await;
        all_accepted &= problems.is_empty();
        if problems.is_empty() && !quiet {
            print("live redis: all commands accepted")?;
        }
        for problem in problems {
            print(&format!("live redis: {problem}"))?;
        }
    }
    if all_accepted { Ok(()) } else { Err(FAILED) }
}

/// What failed, by the name that the log has for it, and why.
fn explained(error: &AttemptError) -> String {
    format!("{}: {}", error.failure().name(), with_sources(error))
}

async fn call(
    settings: &AttemptSettings,
    upstream: &Upstream,
    nonces: &Nonces,
    tenant: &Arc<Tenant>,
    clock: &Clock,
) -> Result<String, String> {
    let call = Call { tenant: Arc::clone(tenant), path: LIVE_PATH.into(), members: LIVE_MEMBERS.into() };
    let connection = upstream.connection(Reuse::Own).await.map_err(|failure| explained(&failure.error))?;
    let signed = SignedRequest::sign(&call, nonces, clock.wall());
    let within = settings.attempt_timeout;
    let exchanged = connection.exchange(&signed, within, || {}, || {}).await;
    let answer = exchanged.map_err(|failure| explained(&failure.error))?.answer;
    let reader =
        Reader { expires: Vec::new(), retry_codes: settings.retry_codes.clone(), utc_offset: settings.utc_offset };
    match reader.read(&answer) {
        Verdict::Success(_) | Verdict::Exception => Ok("signed call accepted".to_owned()),
        Verdict::Error | Verdict::Throttled => {
            let code = answer.code().unwrap_or_else(|| "none".to_owned());
            Err(format!(
                "rejected with code {code}: check the identity, the key, this machine's clock, and the rate limit"
            ))
        }
        Verdict::Garbage | Verdict::Ambiguous => {
            Err("the answer is not valid JSON: check upstream.base_url".to_owned())
        }
        Verdict::Http5xx | Verdict::HttpOther => Err(format!("HTTP status {}", answer.status)),
    }
}
