use super::*;
use proptest::prelude::*;
use serde_json::Value;

/// The value as serde_json parses it; duplicate names and numbers beyond its precision do not occur.
fn as_value(node: &Node<'_>) -> Value {
    match node {
        Node::Object(members) => {
            members.iter().map(|member| (member.name.to_string(), as_value(&member.value))).collect()
        }
        Node::Array(items) => items.iter().map(as_value).collect(),
        Node::String(text) => Value::String(text.to_string()),
        Node::Number(text) => serde_json::from_str(text).unwrap(),
        Node::Bool(truth) => Value::Bool(*truth),
        Node::Null => Value::Null,
    }
}

#[test]
fn numbers_escapes_and_order_are_preserved() {
    let text = r#" { "b" : 3839330914559590410001 , "a\u0062" : [ 1.50e+2, "\u00e9\ud83d\ude00" ] } "#;
    let node = Node::parse(text, 8).unwrap();
    let members = node.members().unwrap();
    assert_eq!(members[0].value, Node::Number("3839330914559590410001"));
    assert_eq!((&*members[1].name, members[1].raw), ("ab", r#"[ 1.50e+2, "\u00e9\ud83d\ude00" ]"#));
    assert_eq!(node.pointer("/ab/1").and_then(Node::text), Some("é😀"));
}

#[test]
fn invalid_json_is_rejected_with_its_position() {
    for text in [
        "",
        " ",
        "{",
        "}",
        "[1,]",
        "{\"a\":1,}",
        "{a:1}",
        "{'a':1}",
        "[1 2]",
        "nul",
        "truefalse",
        "01",
        "-",
        "1.",
        ".5",
        "1e",
        "+1",
        "NaN",
        "\"",
        "\"\\",
        "\"\\x\"",
        "\"\u{1}\"",
        "\"\\ud800\"",
        "\"\\udc00\\ud800\"",
        "1 1",
        "{\"a\"}",
        "{\"a\":}",
        "\u{feff}1",
        "[\"\\u12\"]",
        "\"\\é\"",
    ] {
        let error = Node::parse(text, 8).unwrap_err();
        assert!(error.to_string().contains("at byte"), "{text}: {error}");
    }
}

#[test]
fn depth_is_counted_from_the_root() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    assert!(Node::parse(&nested(32), 32).is_ok());
    assert!(Node::parse(&nested(33), 32).is_err());
    assert!(Node::parse(&"[".repeat(1_000_000), 32).is_err());
}

#[test]
fn pointers_follow_rfc_6901() {
    let node = Node::parse(r#"{"a/b":1,"m~n":2,"c":[{"d":3}],"":4}"#, 8).unwrap();
    let text = |pointer: &str| node.pointer(pointer).and_then(Node::text).map(str::to_owned);
    assert_eq!(text("/a~1b").as_deref(), Some("1"));
    assert_eq!(text("/m~0n").as_deref(), Some("2"));
    assert_eq!(text("/c/0/d").as_deref(), Some("3"));
    assert_eq!(text("/").as_deref(), Some("4"));
    assert_eq!(text("/c/1/d"), None);
    assert_eq!(text("c"), None);
    assert_eq!(node.texts(&["/c".to_owned(), "/a~1b".to_owned()]), ["1"]);
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1e9f64..1e9).prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
        "[ -~é\"\\\\\u{0}-\u{1f}]{0,40}".prop_map(Value::from),
        Just(Value::from("\"\\\n\u{7}😀")),
    ];
    leaf.prop_recursive(4, 24, 5, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            proptest::collection::btree_map("\\PC{0,4}", inner, 0..5)
                .prop_map(|members| members.into_iter().collect::<Value>()),
        ]
    })
}

proptest! {
    #[test]
    fn the_wide_string_scan_agrees_with_a_bytewise_scan(bytes in proptest::collection::vec(any::<u8>(), 0..40), more in "[a-z]{0,20}") {
        let bytes: Vec<u8> = more.bytes().chain(bytes).collect();
        let reference = bytes.iter().position(|byte| *byte == b'"' || *byte == b'\\' || *byte < b' ').unwrap_or(bytes.len());
        prop_assert_eq!(scanner::plain(&bytes), reference);
    }

    #[test]
    fn what_serde_json_writes_is_parsed_to_the_same_value(value in any_json(), pretty in any::<bool>()) {
        let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
        let reference: Value = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(as_value(&Node::parse(&text, 16).unwrap()), reference);
    }

    #[test]
    fn corrupted_text_is_rejected_exactly_if_serde_json_rejects_it(value in any_json(), at in any::<prop::sample::Index>(), byte in any::<char>()) {
        let mut text: Vec<char> = serde_json::to_string(&value).unwrap().chars().collect();
        let place = at.index(text.len());
        text[place] = byte;
        let text: String = text.into_iter().collect();
        let reference = serde_json::from_str::<Value>(&text);
        // A number too large for a float is valid JSON, but serde_json stops there.
        let too_large = reference.as_ref().is_err_and(|error| error.to_string().contains("out of range"));
        prop_assume!(!too_large);
        prop_assert_eq!(Node::parse(&text, 16).is_ok(), reference.is_ok(), "{}", text);
    }

    #[test]
    fn any_text_is_parsed_without_a_panic(text in "[\\[\\]{}\",:\\\\u0-9a-fA-F.eE+ -]{0,60}") {
        let reference = serde_json::from_str::<Value>(&text).is_ok();
        prop_assert!(Node::parse(&text, 200).is_ok() || !reference);
    }
}
