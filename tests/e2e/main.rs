//! The gateway as its callers, its operators and the platform see it: over sockets.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a failed step is a failed test")]

mod program;
mod redis;
mod scripted;
mod support;

mod addresses;
mod auth;
mod breaker;
mod budget;
mod caching;
mod clients;
mod cluster;
mod consistency;
mod drill;
mod errors;
mod examples;
mod failures;
mod fidelity;
mod framing;
mod http2;
mod idle;
mod log;
mod monitoring;
mod openapi;
mod operators;
mod pacing;
mod process;
mod reload;
mod reports;
mod restart;
mod retries;
mod sandbox;
mod secrecy;
mod service_manager;
mod signing;
mod slow;
mod stale;
mod tls;
mod traces;
mod typed;
mod upstream;
mod workers;
mod writes;
