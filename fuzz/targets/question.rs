//! Parses bodies into questions: which bodies are rejected, and which are equivalent, agrees with the reference. The input is two
//! bodies with a separator that no body can contain.
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
    let (question, other_question) = (oracle::question(one, &OPTIONAL), oracle::question(other, &OPTIONAL));
    assert_eq!(key_of_one.is_some(), question.is_some(), "which bodies are rejected");
    assert_eq!(key_of_other.is_some(), other_question.is_some(), "which bodies are rejected");
    if question.is_some() && other_question.is_some() {
        assert_eq!(key_of_one == key_of_other, question == other_question, "which bodies are equivalent");
    }
    let Ok(envelope) = Envelope::parse(one) else { return };
    // The forwarded body is equivalent to the received one.
    let forwarded = format!("{{{}}}", envelope.forwarded());
    assert_eq!(key(forwarded.as_bytes()), key_of_one);
    let pointers = ["/params/customerId", "/params/a/0/b", "", "/"].map(str::to_owned);
    envelope.customer(&pointers);
    envelope.customers(&pointers);
});
