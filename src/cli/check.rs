//! `zvgate check`

use std::sync::Arc;

use super::{Configuration, FAILED, UNUSABLE, complain, fail, print, runtime};
use crate::answer::{Reader, Verdict};
use crate::app;
use crate::clock::Clock;
use crate::envelope::MAX_DEPTH;
use crate::json::Node;
use crate::settings::Settings;
use crate::signer::{Call, Nonces, SignedRequest};
use crate::tenant::{Identities, Tenant, Tenants};
use crate::upstream::{Reuse, Upstream};

/// Where the live call goes: the interface that the gateway is for.
const LIVE_PATH: &str = "/v3/crm/coupon/getCustomerCoupons";
/// A customer that no merchant has: to be told so takes valid credentials, and shows nobody's coupons.
const LIVE_MEMBERS: &str = "\"params\":{\"customerId\":\"1\"}";

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    configuration: Configuration,
    /// Make one signed call for each tenant
    #[arg(long)]
    live: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), u8> {
    let settings = arguments.configuration.load()?;
    print(&settings.effective())?;
    app::check(&settings).map_err(|error| {
        complain(&format!("zvgate: {error}"));
        UNUSABLE
    })?;
    if arguments.live { runtime()?.block_on(live(&settings)) } else { Ok(()) }
}

async fn live(settings: &Settings) -> Result<(), u8> {
    let clock = Clock::system();
    let tenants = Tenants::new(&settings.tenants, &mut Identities::default());
    let base_url = settings.upstream.base_url.clone().ok_or(UNUSABLE)?;
    let upstream = Upstream::new(&base_url, &settings.upstream, &clock).map_err(fail)?;
    let nonces = Nonces::new().map_err(fail)?;
    let mut all_well = true;
    for tenant in tenants.all() {
        let told = call(settings, &upstream, &nonces, tenant, &clock).await;
        all_well &= told.is_ok();
        print(&format!("live {}: {}", tenant.name, told.unwrap_or_else(|error| error)))?;
    }
    if all_well { Ok(()) } else { Err(FAILED) }
}

/// The platform's code for what went wrong.
fn code_of(body: &[u8]) -> Option<String> {
    let root = Node::parse(std::str::from_utf8(body).ok()?, MAX_DEPTH).ok()?;
    root.member("code")?.text().map(str::to_owned)
}

async fn call(
    settings: &Settings,
    upstream: &Upstream,
    nonces: &Nonces,
    tenant: &Arc<Tenant>,
    clock: &Clock,
) -> Result<String, String> {
    let call = Call { tenant: Arc::clone(tenant), path: LIVE_PATH.into(), members: LIVE_MEMBERS.into() };
    let connection = upstream.connection(Reuse::Own).await.map_err(|failure| failure.kind.to_string())?;
    let signed = SignedRequest::sign(&call, nonces, clock.wall());
    let within = settings.upstream.attempt_timeout;
    let exchanged = connection.exchange(&signed, within, || {}, || {}).await;
    let answer = exchanged.map_err(|failure| failure.kind.to_string())?.answer;
    let reader = Reader {
        expires: Vec::new(),
        retry_codes: settings.upstream.retry_codes.clone(),
        utc_offset: settings.upstream.utc_offset,
    };
    match reader.read(answer.status, &answer.body) {
        Verdict::Success(_) | Verdict::Exception => Ok("signed call accepted".to_owned()),
        Verdict::Error | Verdict::Throttled => {
            let code = code_of(&answer.body).unwrap_or_else(|| "none".to_owned());
            Err(format!("refused with code {code}: it is the identity, the key, this machine's clock, or the pace"))
        }
        Verdict::Garbage => Err("answered with what is not JSON: is upstream.base_url the platform?".to_owned()),
        Verdict::Http5xx | Verdict::HttpOther => Err(format!("answered with HTTP status {}", answer.status)),
    }
}
