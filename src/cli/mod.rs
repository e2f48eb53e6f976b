//! The command line: arguments become commands.

mod check;
mod demo;
mod key;
mod logging;
mod sandbox;
mod serve;
mod sign;
mod stop;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

use crate::settings::{Settings, Sources};

/// Something failed.
const FAILED: u8 = 1;
/// The arguments or the configuration cannot be used.
const UNUSABLE: u8 = 2;

/// A caching reverse proxy that signs, paces and keeps calls to the zvcms open platform.
#[derive(Parser)]
#[command(name = "zvgate", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway
    Serve(Configuration),
    /// Run the sandbox and a gateway in front of it, on this machine, with published example credentials
    Demo,
    /// Run the sandbox alone: a stand-in for the open platform
    Sandbox(Box<sandbox::Arguments>),
    /// Check a configuration and print the effective one, secrets masked
    Check(check::Arguments),
    /// Print a signed request body, to try with curl
    Sign(sign::Arguments),
    /// Print a new caller key and the hash to configure
    Key,
}

#[derive(Args, Clone)]
struct Configuration {
    /// The configuration file; else $ZVGATE_CONFIG, else config/zvgate.toml where it is safe to read
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Configuration {
    /// What it is made from.
    fn sources(&self) -> Sources {
        Sources::of_process(self.config.as_deref())
    }

    /// Loads the configuration; every mistake goes to standard error.
    fn load(&self) -> Result<Settings, u8> {
        let sources = self.sources();
        if let Some(why) = &sources.passed_over {
            complain(why);
        }
        sources.load().map_err(|mistakes| {
            complain(&mistakes.to_string());
            UNUSABLE
        })
    }
}

/// Runs the process's command. Exit status: 0 done, 1 failed, 2 unusable arguments or configuration.
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
    leave_no_dump();
    let done = match &arguments.command {
        None => print(&Arguments::command().render_help().to_string()),
        Some(Command::Serve(configuration)) => serve::run(configuration),
        Some(Command::Demo) => demo::run(),
        Some(Command::Sandbox(arguments)) => sandbox::run(arguments),
        Some(Command::Check(arguments)) => check::run(arguments),
        Some(Command::Sign(arguments)) => sign::run(arguments),
        Some(Command::Key) => key::run(),
    };
    done.map_or_else(ExitCode::from, |()| ExitCode::SUCCESS)
}

/// A dump of the process's memory would hold keys and customers' answers. Where the system refuses, it has no dumps.
fn leave_no_dump() {
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
fn complain(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr().lock(), "{}", text.trim_end());
}

/// Fails with a text on standard error.
fn fail<E: std::fmt::Display>(error: E) -> u8 {
    complain(&format!("zvgate: {error}"));
    FAILED
}

/// A runtime on this thread.
fn runtime() -> Result<tokio::runtime::Runtime, u8> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(fail)
}
