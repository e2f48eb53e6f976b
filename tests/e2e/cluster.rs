//! Several replicas that act as one, on a real Redis.

mod answers;
mod failures;
mod history;
mod processes;
mod rolling;
mod setup;
mod shared;
mod slots;
