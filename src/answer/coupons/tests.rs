use proptest::prelude::*;
use serde_json::{Value, json};
use time::macros::offset;

use super::*;

fn rules(ends: &[String]) -> Rules<'_> {
    Rules { ends, utc_offset: offset!(+8), max_bytes: 1 << 20 }
}

fn ends() -> Vec<String> {
    ["endAt", "endTime", "validEndDate"].map(str::to_owned).into()
}

fn read(body: &str) -> CouponList {
    CouponList::read(body.as_bytes(), rules(&ends()), "383933091455959041", Wall::from_unix_seconds(1_572_796_799))
        .unwrap()
}

fn typed(body: &str) -> Value {
    serde_json::from_str(read(body).json()).unwrap()
}

/// The coupons of an answer with this `data`.
fn coupons(data: &str) -> Value {
    typed(&format!("{{\"status\":true,\"code\":0,\"data\":{data}}}"))["coupons"].take()
}

/// The platform's published example.
const EXAMPLE: &str = r#"{ "beginAt": "2019-08-24 00:00:00", "cardId": "390913445498200065", "channel": "naixue", "couponId": "390913445519171584", "couponType": "0", "createdAt": "2019-10-15 17:10:28", "customerId": "383933091455959041", "title": "", "updatedAt": "2019-10-15 17:10:2", "useStatus": "0", "templateId": "951", "endAt": "2019-11-03 23:59:59", "extra": "" }"#;

fn example() -> Value {
    json!({
        "cardId": "390913445498200065",
        "couponId": "390913445519171584",
        "templateId": "951",
        "customerId": "383933091455959041",
        "type": { "code": 0, "name": "cash_or_discount" },
        "status": { "code": 0, "name": "unused" },
        "beginAt": "2019-08-24T00:00:00+08:00",
        "endAt": "2019-11-03T23:59:59+08:00",
        "createdAt": "2019-10-15T17:10:28+08:00",
        "updatedAt": "2019-10-15T17:10:02+08:00",
        "title": "",
        "channel": "naixue",
        "extra": "",
        "more": {},
    })
}

#[test]
fn the_published_example_becomes_a_typed_coupon() {
    let body = format!("{{\"status\":\"true\",\"code\":\"0\",\"message\":\"说明\",\"data\":{EXAMPLE}}}");
    let expected = json!({
        "customerId": "383933091455959041",
        "coupons": [example()],
        "complete": true,
        "fetchedAt": "2019-11-03T15:59:59Z",
    });
    assert_eq!(typed(&body), expected);
}

#[test]
fn every_shape_gives_the_same_coupon() {
    let as_numbers = EXAMPLE
        .replace("\"390913445498200065\"", "390913445498200065")
        .replace("\"390913445519171584\"", "390913445519171584")
        .replace("\"951\"", "951")
        .replace("\"couponType\": \"0\"", "\"couponType\":0")
        .replace("\"useStatus\": \"0\"", "\"useStatus\": 0");
    let other_names = EXAMPLE.replace("couponId", "couponNo").replace("\"title\"", "\"templateName\"");
    let shapes = [
        EXAMPLE,
        &as_numbers,
        &other_names,
        &EXAMPLE.replace("endAt", "endTime"),
        &EXAMPLE.replace("endAt", "validEndDate"),
        &EXAMPLE.replace("beginAt", "beginTime"),
    ];
    for coupon in shapes {
        for data in [
            coupon.to_owned(),
            format!("[{coupon}]"),
            format!("{{\"list\":[{coupon}],\"total\":1}}"),
            format!("{{\"total\":\"1\",\"list\":[{coupon}]}}"),
            format!("{{\"list\":{coupon}}}"),
        ] {
            assert_eq!(coupons(&data), json!([example()]), "{data}");
        }
    }
}

#[test]
fn what_holds_no_coupon_is_an_empty_list() {
    for data in [
        "null",
        "\"\"",
        "\" \"",
        "[]",
        "{}",
        r#"{"list":[]}"#,
        r#"{"list":null,"total":0}"#,
        r#"{"list":""}"#,
        r#"{"list":{}}"#,
        r#"{"total":0}"#,
    ] {
        assert_eq!(coupons(data), json!([]), "{data}");
    }
    assert_eq!(typed(r#"{"status":true,"code":0}"#)["coupons"], json!([]));
}

#[test]
fn a_list_is_complete_unless_there_are_more() {
    for (data, complete) in [
        (r#"{"list":[{}],"total":1}"#, true),
        (r#"{"list":[{}],"total":2}"#, false),
        (r#"{"total":"2","list":[{}]}"#, false),
        (r#"{"list":[{}],"total":0}"#, true),
        (r#"{"list":[{}],"total":"many"}"#, true),
        (r#"{"total":3}"#, false),
        (r#"[{},{}]"#, true),
        (r#"{"cardId":"1","total":9}"#, true),
    ] {
        assert_eq!(typed(&format!("{{\"data\":{data}}}"))["complete"], json!(complete), "{data}");
    }
}

#[test]
fn what_is_not_known_or_cannot_be_read_is_passed_on_as_it_was_sent() {
    let coupon = r#"{"cardId":{"a":1},"couponNo":"2","couponId":1.0,"couponType":"ERP","useStatus":3,"endAt":"soon","endTime":"2030-01-01","beginAt":1572796799,"createdAt":"","title":{"zh":"券"},"b\u0061r":[1.50,"\u0041"],"total":9}"#;
    let coupon = coupons(coupon)[0].take();
    let text = coupon["more"].to_string();
    assert_eq!(coupon["couponId"], json!("1.0"), "an id is not rendered again");
    assert_eq!(coupon["cardId"], json!(null));
    assert_eq!(coupon["type"], json!({"code": null, "name": "unknown"}));
    assert_eq!(coupon["status"], json!({"code": 3, "name": "unknown"}));
    assert_eq!(coupon["endAt"], json!("2030-01-01T00:00:00+08:00"), "the first that can be read");
    assert_eq!([&coupon["beginAt"], &coupon["createdAt"]], [&json!(null), &json!(null)]);
    assert_eq!(coupon["title"], json!({"zh": "券"}));
    let more = json!({"cardId":{"a":1},"couponNo":"2","couponType":"ERP","endAt":"soon","beginAt":1_572_796_799,"bar":[1.50,"A"],"total":9});
    assert_eq!(coupon["more"], more, "{text}");
    let raw = read(r#"{"data":{"b\u0061r":[1.50,"\u0041"], "cardId":null}}"#);
    assert!(raw.json().contains(r#""more":{"bar":[1.50,"\u0041"]}"#), "{}", raw.json());
    assert_eq!(
        coupons(r#"{"title":null,"templateName":"券"}"#)[0]["title"],
        json!("券"),
        "a blank hides no other name"
    );
    assert_eq!(coupons(r#"["x",7,null,[]]"#)[3]["more"], json!({"value": []}));
}

#[test]
fn a_far_off_year_is_written_as_a_date() {
    for (end, shown) in [
        ("9999-12-31 23:59:59", "9999-12-31T23:59:59+08:00"),
        ("9999-99-99", "9999-12-31T23:59:59+08:00"),
        ("2019-11-03 24:00:00", "2019-11-04T00:00:00+08:00"),
    ] {
        assert_eq!(coupons(&format!("{{\"endAt\":\"{end}\"}}"))[0]["endAt"], json!(shown), "{end}");
    }
}

#[test]
fn only_unused_coupons_that_have_begun_and_not_ended_are_usable() {
    // 2019-11-03 23:59:59 in China.
    let end = Wall::from_unix_seconds(1_572_796_799);
    let usable = |members: &str, now: Wall| {
        let list = read(&format!("{{\"data\":[{{\"cardId\":\"1\",\"useStatus\":7}},{{\"cardId\":\"2\",{members}}}]}}"));
        let (json, etag) = list.usable(now);
        let json: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["complete"], json!(true));
        assert_eq!(etag == *list.etag(), json["coupons"].as_array().unwrap().len() == 2);
        json["coupons"].as_array().unwrap().len() == 1
    };
    let dates = r#""beginAt":"2019-11-01","endAt":"2019-11-03 23:59:59""#;
    assert!(usable(&format!("\"useStatus\":\"0\",{dates}"), end - std::time::Duration::from_millis(1)));
    assert!(!usable(&format!("\"useStatus\":0,{dates}"), end));
    assert!(!usable(&format!("\"useStatus\":0,{dates}"), Wall::from_unix_seconds(1_572_537_599)));
    assert!(usable(&format!("\"useStatus\":0,{dates}"), Wall::from_unix_seconds(1_572_537_600)));
    for status in [1, 2, 4, 5, 6, 7] {
        assert!(!usable(&format!("\"useStatus\":{status},{dates}"), end.plus(-1)), "{status}");
    }
    assert!(usable("\"useStatus\":0", end), "without dates");
    assert!(usable("\"useStatus\":0,\"endAt\":\"9999-12-31\"", end));
    assert!(!usable("\"x\":0", end), "without a status");
}

#[test]
fn the_entity_tag_follows_the_coupons_and_nothing_else() {
    let tag = |body: &str, at: i64| {
        let list = CouponList::read(body.as_bytes(), rules(&ends()), "1", Wall::from_unix_seconds(at)).unwrap();
        list.etag().to_str().unwrap().to_owned()
    };
    let plain = tag(r#"{"data":[{"cardId":"1"}]}"#, 1);
    assert_eq!(plain, tag(r#"{"traceId":"7", "data": [ {"cardId" : 1} ] }"#, 2));
    assert_ne!(plain, tag(r#"{"data":[{"cardId":"2"}]}"#, 1));
    assert_ne!(plain, tag(r#"{"data":{"list":[{"cardId":"1"}],"total":2}}"#, 1));
    assert!(plain.starts_with("W/\"") && plain.len() == 4 + 2 * TAG_BYTES);
}

#[test]
fn a_list_that_would_be_too_large_is_not_made() {
    let body = format!("{{\"data\":[{}]}}", vec!["{}"; 1000].join(","));
    let read = |max_bytes| {
        CouponList::read(body.as_bytes(), Rules { max_bytes, ..rules(&ends()) }, "1", Wall::from_unix_seconds(0))
    };
    let size = read(1 << 20).unwrap().json().len();
    assert!(
        size > 100 * body.len() / 3,
        "a coupon of which nothing is known takes much more memory than it took to send"
    );
    assert!(read(size).is_some());
    assert!(read(size / 2).is_none());
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        prop::sample::select(vec!["2019-11-03 23:59:59", "0", "2", "383933091455959041", ""]).prop_map(Value::from),
    ];
    let names = prop::sample::select(vec![
        "list",
        "total",
        "cardId",
        "couponNo",
        "useStatus",
        "endAt",
        "endTime",
        "title",
        "x",
        "data",
    ]);
    leaf.prop_recursive(4, 40, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map(names.clone().prop_map(str::to_owned), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Whatever the platform sends: the result has the one shape, and its parts are where they are said to be.
    #[test]
    fn any_data_gives_the_one_shape(data in values(), now in any::<i32>()) {
        let list = read(&json!({ "status": true, "code": 0, "data": data }).to_string());
        let whole: Value = serde_json::from_str(list.json()).unwrap();
        let coupons = whole["coupons"].as_array().unwrap();
        let expected = example();
        for coupon in coupons {
            let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
            prop_assert_eq!(names(coupon), names(&expected));
            for id in ["cardId", "couponId", "templateId", "customerId", "beginAt", "endAt", "createdAt", "updatedAt"] {
                prop_assert!(coupon[id].is_string() || coupon[id].is_null());
            }
            prop_assert!(coupon["more"].is_object());
        }
        let contents: Value = serde_json::from_str(&format!("{{{}}}", list.contents(None))).unwrap();
        prop_assert_eq!(&contents["coupons"], &whole["coupons"]);
        let (usable, _) = list.usable(Wall::from_unix_seconds(now.into()));
        let usable: Value = serde_json::from_str(&usable).unwrap();
        prop_assert!(usable["coupons"].as_array().unwrap().iter().all(|coupon| coupons.contains(coupon)));
        prop_assert_eq!(&usable["fetchedAt"], &whole["fetchedAt"]);
    }

    #[test]
    fn any_body_is_read_without_a_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = CouponList::read(&body, rules(&ends()), "1", Wall::from_unix_seconds(0));
    }
}
