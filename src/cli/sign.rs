//! `zvgate sign`

mod verify;

use std::path::PathBuf;

use super::{ConfigArguments, UNUSABLE, eprint, fail, print};
use crate::clock::Clock;
use crate::configuration::Configuration;
use crate::envelope::{Envelope, MAX_DEPTH};
use crate::json::Node;
use crate::secret::hex;
use crate::signer::{Call, Nonces, Signed, SignedRequest, Steps};
use crate::tenant::{Identities, Tenant, Tenants};

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    configuration: ConfigArguments,
    /// The tenant that signs; else the default one
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// The business parameters, a JSON object
    #[arg(long, value_name = "JSON", default_value = "{}")]
    params: String,
    /// Print every step of the signature, with the key masked
    #[arg(long, conflicts_with = "verify")]
    explain: bool,
    /// Say what differs in an envelope that the platform refused; - for standard input
    #[arg(long, value_name = "FILE", conflicts_with = "params")]
    verify: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), u8> {
    let Configuration { settings, keys, .. } = arguments.configuration.load()?;
    if settings.dynamic.tenants.is_empty() {
        return Err(unusable(&format!("the configuration lacks {}", settings.missing_for_serving().join(", "))));
    }
    let tenants = Tenants::new(&settings.dynamic.tenants, &keys, &mut Identities::default());
    if let Some(file) = &arguments.verify {
        return verify::run(file, arguments.tenant.as_deref(), &tenants, Clock::system().wall());
    }
    if !Node::parse(&arguments.params, MAX_DEPTH).is_ok_and(|params| params.members().is_some()) {
        return Err(unusable(&format!("--params: found {:?}; expected a JSON object", arguments.params)));
    }
    let body = format!("{{\"params\":{}}}", arguments.params);
    let envelope = Envelope::parse(body.as_bytes()).map_err(|error| unusable(&format!("--params: {error}")))?;
    let tenant = tenants
        .choose(arguments.tenant.as_deref().map(str::as_bytes), envelope.root(), None)
        .map_err(|_| unusable(&format!("--tenant: expected one of {}", names(&tenants))))?;
    let call = Call { tenant: tenant.clone(), path: "".into(), members: envelope.forwarded().into() };
    let signed = SignedRequest::sign(&call, &Nonces::new().map_err(fail)?, Clock::system().wall());
    let signed = String::from_utf8_lossy(signed.body());
    if arguments.explain { print(&explanation(&signed, tenant)) } else { print(&signed) }
}

/// Every step of the signature of an envelope.
fn explanation(envelope: &str, tenant: &Tenant) -> String {
    let root = Node::parse(envelope, MAX_DEPTH).unwrap_or(Node::Null);
    let value = |name: &str| root.member(name).and_then(Node::text).unwrap_or_default().to_owned();
    let (timestamp, nonce) = (value("timestamp"), value("nonce"));
    let (open_id, grant_code) = (&*tenant.open_id, &*tenant.grant_code);
    let steps =
        Steps::new(tenant.open_key().expose(), Signed { open_id, grant_code, timestamp: &timestamp, nonce: &nonce });
    let is_plain = if steps.encoded == steps.joined { "   (nothing to encode)" } else { "" };
    format!(
        "tenant          {}
1. values       grantCode={grant_code}
                nonce={nonce}         a positive integer, used once
                openId={open_id}
                timestamp={timestamp}     seconds since 1970, by this machine's clock
2. sorted by name and joined
                {}
3. percent-encoded, but for = and &
                {}{is_plain}
4. HMAC-SHA1 of that with the key (********, {} characters), in hexadecimal
                {}
5. Base64       {}
6. percent-encoded: the token
                {}
   params are not signed.

{envelope}",
        tenant.name,
        steps.joined,
        steps.encoded,
        tenant.open_key().expose().chars().count(),
        hex(&steps.digest),
        steps.base64,
        steps.token,
    )
}

fn unusable(text: &str) -> u8 {
    eprint(&format!("zvgate: {text}"));
    UNUSABLE
}

fn names(tenants: &Tenants) -> String {
    tenants.all().iter().map(|tenant| tenant.name.as_str()).collect::<Vec<_>>().join(", ")
}
