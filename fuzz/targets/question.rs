//! Body to question: what is refused, and which bodies ask the same, agrees with the slow way. Two bodies stand in the
//! input, with a byte between them that no body can have.
#![no_main]

use libfuzzer_sys::fuzz_target;
use zvgate::envelope::Envelope;

const OPTIONAL: [&str; 2] = ["useStatus", "cardId"];

fuzz_target!(|input: &[u8]| {
    let mut bodies = input.splitn(2, |byte| *byte == 0x1e);
    let (Some(one), other) = (bodies.next(), bodies.next().unwrap_or_default()) else { return };
    let optional = OPTIONAL.map(str::to_owned);
    let key = |body| Envelope::parse(body).ok().map(|envelope| envelope.canonical(&optional));
    let (key_of_one, key_of_other) = (key(one), key(other));
    let (asked, asked_too) = (oracle::question(one, &OPTIONAL), oracle::question(other, &OPTIONAL));
    assert_eq!(key_of_one.is_some(), asked.is_some(), "what is refused");
    assert_eq!(key_of_other.is_some(), asked_too.is_some(), "what is refused");
    if asked.is_some() && asked_too.is_some() {
        assert_eq!(key_of_one == key_of_other, asked == asked_too, "what is the same");
    }
    let Ok(envelope) = Envelope::parse(one) else { return };
    // What goes up asks what came.
    let forwarded = format!("{{{}}}", envelope.forwarded());
    assert_eq!(key(forwarded.as_bytes()), key_of_one);
    let pointers = ["/params/customerId", "/params/a/0/b", "", "/"].map(str::to_owned);
    envelope.customer(&pointers);
    envelope.customers(&pointers);
});
