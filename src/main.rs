//! The `zvgate` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    zvgate::cli::main()
}
