//! The command line.

mod check;
mod demo;
mod hash;
mod health;
mod key;
mod logging;
mod redis_server;
mod sandbox;
mod serve;
mod sign;
mod stop;
mod usage;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

use crate::app::StartError;
use crate::configuration::Configuration;
use crate::settings::{ConfigErrors, Settings, Sources};

/// Exit status: failure.
const FAILED: u8 = 1;
/// Exit status: unusable arguments or configuration.
const UNUSABLE: u8 = 2;

const EXIT_STATUS: &str = "Exit status: 0 success, 1 failure, 2 unusable arguments or configuration.";

/// A caching reverse proxy that signs, rate-limits and caches calls to the zvcms open platform.
#[derive(Parser)]
#[command(name = "zvgate", version, about, after_help = EXIT_STATUS)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway
    Serve(ConfigArguments),
    /// Run the sandbox and a gateway in front of it on loopback, with the published example credentials
    Demo(demo::Arguments),
    /// Run only the sandbox: a stand-in for the open platform
    Sandbox(Box<sandbox::Arguments>),
    /// Validate a configuration and print the effective one, secrets masked
    Check(check::Arguments),
    /// Print a signed request body for debugging
    Sign(sign::Arguments),
    /// Print the calls made, failed and saved in a month, and what they cost
    Usage(usage::Arguments),
    /// Print a new caller key and the hash to configure
    Key,
    /// Ask a gateway whether it is ready; exit status 0 or 1
    Health(health::Arguments),
    /// Print the keyed hash under which a customer appears in logs
    Hash(hash::Arguments),
}

#[derive(Args, Clone)]
struct ConfigArguments {
    /// The configuration file; else $ZVGATE_CONFIG, else ./zvgate.toml, config/zvgate.toml or /etc/zvgate/zvgate.toml
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigArguments {
    /// Where the configuration comes from.
    fn sources(&self) -> Sources {
        Sources::of_process(self.config.as_deref())
    }

    /// Reports why a gateway cannot be started.
    fn report(&self, error: &StartError) -> u8 {
        eprint(&format!("zvgate: {error}"));
        if let (StartError::Missing(_), Some(missing)) = (error, self.sources().missing_file()) {
            eprint(&missing);
        }
        if error.is_configuration() { UNUSABLE } else { FAILED }
    }

    /// Loads the configuration with its keys; all errors go to standard error.
    fn load(&self) -> Result<Configuration, u8> {
        self.reported(Configuration::load)
    }

    /// Loads the settings alone, without reading the files of keys; all errors go to standard error.
    fn settings(&self) -> Result<Settings, u8> {
        self.reported(Sources::settings)
    }

    fn reported<T>(&self, load: fn(&Sources) -> Result<T, ConfigErrors>) -> Result<T, u8> {
        let sources = self.sources();
        load(&sources).map_err(|errors| {
            sources.warnings.iter().for_each(|warning| eprint(warning));
            eprint(&errors.to_string());
            UNUSABLE
        })
    }
}

/// The command line as data: manual pages and completions are made from it.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Runs the command. Exit status: 0 success, 1 failure, 2 unusable arguments or configuration.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let written = error.print();
            return match written {
                _ if error.use_stderr() => UNUSABLE.into(),
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => unwritten(&error).into(),
            };
        }
    };
    disable_core_dumps();
    let done = match &arguments.command {
        None => print(&command().render_help().to_string()),
        Some(Command::Serve(configuration)) => serve::run(configuration),
        Some(Command::Demo(arguments)) => demo::run(arguments),
        Some(Command::Sandbox(arguments)) => sandbox::run(arguments),
        Some(Command::Check(arguments)) => check::run(arguments),
        Some(Command::Sign(arguments)) => sign::run(arguments),
        Some(Command::Usage(arguments)) => usage::run(arguments),
        Some(Command::Key) => key::run(),
        Some(Command::Health(arguments)) => health::run(arguments),
        Some(Command::Hash(arguments)) => hash::run(arguments),
    };
    done.map_or_else(ExitCode::from, |()| ExitCode::SUCCESS)
}

/// A core dump would contain keys and customers' data. An error means that the system has no core dumps.
fn disable_core_dumps() {
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// Writes to standard output.
fn print(text: &str) -> Result<(), u8> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush());
    written.map_err(|error| unwritten(&error))
}

fn unwritten(error: &std::io::Error) -> u8 {
    fail(format!("standard output cannot be written: {error}"))
}

/// Writes to standard error.
fn eprint(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr().lock(), "{}", text.trim_end());
}

/// Reports an error on standard error.
fn fail<E: std::fmt::Display>(error: E) -> u8 {
    eprint(&format!("zvgate: {error}"));
    FAILED
}

/// A runtime on the current thread.
fn runtime() -> Result<tokio::runtime::Runtime, u8> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(fail)
}
