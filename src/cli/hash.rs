//! `zvgate hash`

use super::{ConfigArguments, UNUSABLE, eprint, fail, print};
use crate::pseudonym::Pseudonyms;

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    configuration: ConfigArguments,
    /// The customer's id
    #[arg(value_name = "ID")]
    customer: String,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), u8> {
    let settings = arguments.configuration.settings()?;
    let Some(file) = &settings.fixed.log.hash_key_file else {
        eprint(
            "zvgate: the configuration lacks log.hash_key_file: without it each process hashes customers with a random key of its own",
        );
        return Err(UNUSABLE);
    };
    let pseudonyms = Pseudonyms::new(Some(file));
    let pseudonyms = pseudonyms.map_err(|error| fail(format!("log.hash_key_file: {}: {error}", file.display())))?;
    print(&pseudonyms.of(&arguments.customer))
}
