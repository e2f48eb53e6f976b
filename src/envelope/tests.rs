use super::*;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

fn optional() -> Vec<String> {
    vec!["useStatus".to_owned(), "cardId".to_owned()]
}

fn key(body: &str) -> String {
    Envelope::parse(body.as_bytes()).unwrap().canonical(&optional())
}

fn rejected(body: &str) -> EnvelopeError {
    Envelope::parse(body.as_bytes()).unwrap_err()
}

#[test]
fn equivalent_bodies_have_one_key() {
    let plain = key(r#"{"params":{"customerId":"383933091455959041","useStatus":"","cardId":null}}"#);
    for same in [
        r#"{"params":{"customerId":"383933091455959041"}}"#,
        r#"{ "params" : { "cardId" : "" , "customerId" : "\u00338393309145595904\u0031" } }"#,
        r#"{"openId":"a","params":{"customerId":"383933091455959041"},"token":"t","timestamp":1,"nonce":"n","grantCode":"g"}"#,
    ] {
        assert_eq!(key(same), plain, "{same}");
    }
    assert_eq!(key(r#"{"params":{"a":7}}"#), key(r#"{"params":{"a":"7"}}"#));
    assert_eq!(key(r#"{"params":{"a":123456789012345}}"#), key(r#"{"params":{"a":"123456789012345"}}"#));
}

#[test]
fn different_bodies_have_different_keys() {
    let bodies = [
        r#"{"params":{}}"#,
        r#"{"params":{"a":""}}"#,
        r#"{"params":{"a":null}}"#,
        r#"{"params":{"a":"null"}}"#,
        r#"{"params":{"a":1}}"#,
        r#"{"params":{"a":1.0}}"#,
        r#"{"params":{"a":"1.0"}}"#,
        r#"{"params":{"a":[1]}}"#,
        r#"{"params":{"a":"[1]"}}"#,
        r#"{"params":{"a":{"useStatus":""}}}"#,
        r#"{"params":{"a":{}}}"#,
        r#"{"params":{"a":1234567890123456}}"#,
        r#"{"params":{"a":"1234567890123456"}}"#,
        r#"{"params":{"a":true}}"#,
        r#"{"params":{"a":"true"}}"#,
        r#"{"params":{},"extra":1}"#,
        r#"{"params":{"a\",\"b":1}}"#,
        r#"{"params":{"a":0,"b":1}}"#,
        r#"{"params":{"a":"01"}}"#,
    ];
    let keys: std::collections::BTreeSet<String> = bodies.iter().map(|body| key(body)).collect();
    assert_eq!(keys.len(), bodies.len());
}

#[test]
fn ambiguous_bodies_are_rejected() {
    for body in [
        r#"{"params":{"a":1,"a":2}}"#,
        r#"{"params":{"a":1,"\u0061":2}}"#,
        r#"{"params":{},"params":{}}"#,
        r#"{"params":{"x":[{"b":1,"b":1}]}}"#,
        r#"{"params":{},"token":{"b":1,"b":1}}"#,
    ] {
        assert!(matches!(rejected(body), EnvelopeError::Duplicate(_)), "{body}");
    }
    assert!(matches!(rejected(r#"{"params":{"a":"\ud800"}}"#), EnvelopeError::NotJson(_)));
    assert!(matches!(Envelope::parse(b"{\"params\":{\"a\":\"\xff\"}}"), Err(EnvelopeError::NotUtf8(16))));
    for body in [r#"{"params":"{}"}"#, r#"{"params":[1]}"#, "{}", r#"{"params":null}"#] {
        assert_eq!(rejected(body), EnvelopeError::NoParams, "{body}");
    }
    assert_eq!(rejected("[]"), EnvelopeError::NotAnObject);
    let deep = |depth: usize| format!(r#"{{"params":{{"a":{}{}}}}}"#, "[".repeat(depth), "]".repeat(depth));
    assert!(Envelope::parse(deep(MAX_DEPTH - 2).as_bytes()).is_ok());
    assert!(matches!(rejected(&deep(MAX_DEPTH - 1)), EnvelopeError::NotJson(_)));
}

#[test]
fn the_forwarded_members_are_copied_verbatim() {
    let body =
        r#"{"token":"old", "params" : { "id" : 3839330914559590410 , "t":"\u00e9" } ,"nonce":1,"more": [ 1,  2 ]}"#;
    let envelope = Envelope::parse(body.as_bytes()).unwrap();
    assert_eq!(envelope.forwarded(), r#""params":{ "id" : 3839330914559590410 , "t":"\u00e9" },"more":[ 1,  2 ]"#);
}

#[test]
fn a_customer_is_a_string_or_a_number() {
    let customer = |body: &str| {
        let pointers = ["/params/customerId".to_owned(), "/params/id".to_owned()];
        Envelope::parse(body.as_bytes()).unwrap().customer(&pointers).map(str::to_owned)
    };
    assert_eq!(customer(r#"{"params":{"customerId":383933091455959041}}"#).as_deref(), Some("383933091455959041"));
    assert_eq!(customer(r#"{"params":{"customerId":"\u0037"}}"#).as_deref(), Some("7"));
    assert_eq!(customer(r#"{"params":{"id":"b"}}"#).as_deref(), Some("b"));
    for none in [r#"{}"#, r#"{"customerId":""}"#, r#"{"customerId":null}"#, r#"{"customerId":["1"]}"#] {
        assert_eq!(customer(&format!("{{\"params\":{none}}}")), None, "{none}");
    }
}

/// A simple reference: a tree with sorted members.
fn oracle(body: &Value) -> Value {
    let replaced = |name: &str| REPLACED.contains(&name);
    let members = body.as_object().unwrap().iter().filter(|(name, _)| !replaced(name));
    members
        .map(|(name, value)| match value {
            Value::Object(params) if name == "params" => {
                let absent = |(name, value): &(&String, &Value)| {
                    optional().contains(name) && (value.is_null() || **value == json!(""))
                };
                let left: Map<_, _> =
                    params.iter().filter(|m| !absent(m)).map(|(n, v)| (n.clone(), plain(v))).collect();
                (name.clone(), Value::Object(left))
            }
            other => (name.clone(), plain(other)),
        })
        .collect()
}

fn plain(value: &Value) -> Value {
    match value {
        Value::String(text) if text.len() <= 15 && text.parse::<u64>().is_ok_and(|n| n.to_string() == *text) => {
            json!(text.parse::<u64>().unwrap())
        }
        Value::Array(items) => items.iter().map(plain).collect(),
        Value::Object(members) => members.iter().map(|(name, value)| (name.clone(), plain(value))).collect(),
        other => other.clone(),
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!("")),
        Just(Value::Null),
        (0u64..12).prop_map(Value::from),
        (0u64..12).prop_map(|n| Value::from(n.to_string())),
        Just(json!(1_234_567_890_123_456u64)),
        Just(json!("1234567890123456")),
        "[a\"\\\\é\u{1}]{0,2}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 6, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            proptest::collection::btree_map("[ab]", inner, 0..3).prop_map(|m| m.into_iter().collect::<Value>()),
        ]
    })
}

fn any_body() -> impl Strategy<Value = Value> {
    let name = prop_oneof![Just("useStatus"), Just("cardId"), Just("customerId"), Just("a")].prop_map(str::to_owned);
    let params = proptest::collection::btree_map(name, any_value(), 0..4);
    let more = proptest::collection::btree_map(
        prop_oneof![Just("token"), Just("x")].prop_map(str::to_owned),
        any_value(),
        0..2,
    );
    (params, more).prop_map(|(params, more)| {
        let mut body: Map<String, Value> = more.into_iter().collect();
        body.insert("params".to_owned(), params.into_iter().collect());
        Value::Object(body)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]
    #[test]
    fn keys_are_equal_exactly_if_those_of_the_oracle_are(a in any_body(), b in any_body(), pretty in any::<bool>()) {
        let text = serde_json::to_string(&a).unwrap();
        let other = if pretty { serde_json::to_string_pretty(&b) } else { serde_json::to_string(&b) }.unwrap();
        prop_assert_eq!(key(&text) == key(&other), oracle(&a) == oracle(&b), "{} {}", text, other);
        prop_assert_eq!(key(&text), key(&serde_json::to_string_pretty(&a).unwrap()));
    }
}

#[test]
fn an_empty_list_of_params_is_an_empty_object() {
    let envelope = Envelope::parse(br#"{"params":[ ],"a":1}"#).unwrap();
    assert_eq!(envelope.forwarded(), r#""params":{},"a":1"#);
    assert_eq!(key(r#"{"params":[]}"#), key(r#"{"params":{}}"#));
}
