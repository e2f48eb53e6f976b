//! Benches of the hit path's parts and of signing.

use criterion::{Criterion, criterion_group, criterion_main};

fn signing(_: &mut Criterion) {}

criterion_group!(benches, signing);
criterion_main!(benches);
