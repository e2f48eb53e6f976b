//! `zvgate sign`

use super::{ConfigArguments, UNUSABLE, eprint, fail, print};
use crate::clock::Clock;
use crate::configuration::Configuration;
use crate::envelope::{Envelope, MAX_DEPTH};
use crate::json::Node;
use crate::signer::{Call, Nonces, SignedRequest};
use crate::tenant::{Identities, Tenants};

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
}

pub(super) fn run(arguments: &Arguments) -> Result<(), u8> {
    let Configuration { settings, keys, .. } = arguments.configuration.load()?;
    let unusable = |text: String| {
        eprint(&format!("zvgate: {text}"));
        UNUSABLE
    };
    if settings.dynamic.tenants.is_empty() {
        return Err(unusable(format!("the configuration lacks {}", settings.missing_for_serving().join(", "))));
    }
    let tenants = Tenants::new(&settings.dynamic.tenants, &keys, &mut Identities::default());
    if !Node::parse(&arguments.params, MAX_DEPTH).is_ok_and(|params| params.members().is_some()) {
        return Err(unusable(format!("--params: found {:?}; expected a JSON object", arguments.params)));
    }
    let body = format!("{{\"params\":{}}}", arguments.params);
    let envelope = Envelope::parse(body.as_bytes()).map_err(|error| unusable(format!("--params: {error}")))?;
    let tenant = tenants
        .choose(arguments.tenant.as_deref().map(str::as_bytes), envelope.root(), None)
        .map_err(|_| unusable(format!("--tenant: expected one of {}", names(&tenants))))?;
    let call = Call { tenant: tenant.clone(), path: "".into(), members: envelope.forwarded().into() };
    let signed = SignedRequest::sign(&call, &Nonces::new().map_err(fail)?, Clock::system().wall());
    print(&String::from_utf8_lossy(signed.body()))
}

fn names(tenants: &Tenants) -> String {
    tenants.all().iter().map(|tenant| tenant.name.as_str()).collect::<Vec<_>>().join(", ")
}
