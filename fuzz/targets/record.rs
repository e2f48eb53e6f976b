//! Decodes a record of Redis: no panic, and what is decoded is encoded as it was.
#![no_main]

use libfuzzer_sys::fuzz_target;
use zvgate::cluster::Record;

fuzz_target!(|input: &[u8]| {
    if let Some(record) = Record::decode(input) {
        assert_eq!(record.encode(), input, "one encoding for each record");
    }
});
