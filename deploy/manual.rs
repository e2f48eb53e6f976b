//! Writes the manual pages and the completions for shells, as the command line is, into a folder:
//! `cargo run --example manual -- target/manual`.

use std::error::Error;
use std::path::PathBuf;

use clap_complete::{Shell, generate_to};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1).map(PathBuf::from).ok_or("expected a folder")?;
    std::fs::create_dir_all(&folder)?;
    let mut command = zvgate::cli::command().disable_help_subcommand(true);
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut command, "zvgate", &folder)?;
    }
    clap_mangen::generate_to(command, &folder)?;
    Ok(())
}
