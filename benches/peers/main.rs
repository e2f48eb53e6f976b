//! The gateway beside what users run instead, in one run on one machine.
//!
//! `cargo bench --bench peers` starts each server on a core of its own, loads it by wrk from the other cores, in turns, and
//! prints and keeps the ratios (`benches/results/`). It needs wrk, nginx with its Lua module, Varnish with its modules, and
//! taskset: `benches/peers/setup` installs them. `-- --test` only sees that our own servers answer.

#![expect(clippy::print_stdout, reason = "a bench tells its figures on standard output")]
#![allow(clippy::panic, clippy::indexing_slicing, reason = "a bench that cannot go on ends")]

mod chart;
mod load;
mod servers;
mod table;

use std::net::{Ipv4Addr, SocketAddr};

/// As the program's, so that what differs is the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["server", kind, port] => {
            let address = loopback(port.parse().expect("a port"));
            match *kind {
                "loop" => servers::bare_loop(address),
                "hyper" => servers::bare_hyper(address),
                "obvious" => servers::obvious(address),
                "platform" => servers::platform(address, 5),
                other => panic!("no server is called {other}"),
            }
        }
        _ if words.contains(&"--test") => load::try_own_servers(),
        _ => table::run(),
    }
}
