use super::*;

fn reader() -> Reader {
    Reader {
        expires: ["endAt", "endTime", "validEndDate"].map(str::to_owned).into(),
        retry_codes: ["110004", "110007"].map(str::to_owned).into(),
        utc_offset: UtcOffset::from_hms(8, 0, 0).unwrap(),
    }
}

fn answer(status: u16, body: &[u8]) -> Answer {
    Answer::new(status, body)
}

fn read_status(status: u16, body: &[u8]) -> Verdict {
    reader().read(&answer(status, body))
}

fn read(body: &str) -> Verdict {
    read_status(200, body.as_bytes())
}

fn contents(data: &str) -> Contents {
    match read(&format!(r#"{{"status":true,"code":0,"data":{data}}}"#)) {
        Verdict::Success(contents) => contents,
        other => panic!("{data}: {other:?}"),
    }
}

fn at(text: &str) -> Wall {
    match End::parse(text, UtcOffset::from_hms(8, 0, 0).unwrap()) {
        Some(End::At(at)) => at,
        other => panic!("{text}: {other:?}"),
    }
}

/// The answers in the platform's documentation.
#[test]
fn the_documented_answers_are_parsed() {
    let success = r#"{ "status": "true", "code": "0", "message": "说明", "data": { "beginAt": "2019-08-24 00:00:00", "cardId": "390913445498200065", "channel": "naixue", "couponId": "390913445519171584", "couponType": "0", "createdAt": "2019-10-15 17:10:28", "customerId": "383933091455959041", "title": "", "updatedAt": "2019-10-15 17:10:2", "useStatus": "0", "templateId": "951", "endAt": "2019-11-03 23:59:59", "extra": "" } }"#;
    let end = at("2019-11-03 23:59:59");
    let wanted = Contents { ends: vec![end], open: vec![Some(End::At(end))], empty: false };
    assert_eq!(read(success), Verdict::Success(wanted));
    let exception =
        r#"{ "status": true, "code": "异常编码,根据不同的业务返回编码", "message": "异常说明:查询的信息不存在" }"#;
    assert_eq!(read(exception), Verdict::Exception);
    let error = r#"{ "status": false, "code": "系统错误编码:详见全局返回编码", "message": "系统错误说明" }"#;
    assert_eq!(read(error), Verdict::Error);
}

#[test]
fn status_and_code_are_parsed_in_all_their_spellings() {
    for status in ["true", r#""true""#, r#""True""#] {
        for code in ["0", r#""0""#, r#"" 0 ""#] {
            let body = format!(r#"{{"status":{status},"code":{code}}}"#);
            assert!(matches!(read(&body), Verdict::Success(_)), "{body}");
        }
        assert_eq!(read(&format!(r#"{{"status":{status},"code":1}}"#)), Verdict::Exception);
        assert_eq!(read(&format!(r#"{{"status":{status},"code":"110004"}}"#)), Verdict::Throttled);
        assert_eq!(read(&format!(r#"{{"status":{status}}}"#)), Verdict::Error);
    }
    for status in ["false", r#""false""#, "null", "1", r#""""#, "{}"] {
        assert_eq!(read(&format!(r#"{{"status":{status},"code":0}}"#)), Verdict::Error, "{status}");
        assert_eq!(read(&format!(r#"{{"status":{status},"code":110007}}"#)), Verdict::Throttled, "{status}");
    }
    assert_eq!(read(r#"{"code":0}"#), Verdict::Error);
    for garbage in ["", "<html>", "[]", "\"ok\"", "{", "null"] {
        assert_eq!(read(garbage), Verdict::Garbage, "{garbage}");
    }
    assert_eq!(read_status(200, b"\xff"), Verdict::Garbage);
    assert_eq!(read_status(200, "[".repeat(1000).as_bytes()), Verdict::Garbage);
    assert_eq!(read_status(503, b"{\"status\":true,\"code\":0}"), Verdict::Http5xx);
    assert_eq!(read_status(404, b"{\"status\":true,\"code\":0}"), Verdict::HttpOther);
    assert_eq!(read_status(204, b""), Verdict::Garbage);
    assert_eq!(read_status(201, b"{\"status\":true,\"code\":1}"), Verdict::Exception);
    assert_eq!(read_status(304, b""), Verdict::HttpOther);
    assert_eq!(read_status(429, b""), Verdict::Throttled);
}

#[test]
fn a_single_coupon_a_list_and_a_page_are_parsed() {
    let coupon = r#"{"useStatus":0,"endAt":"2030-01-02 03:04:05"}"#;
    for data in [coupon.to_owned(), format!("[{coupon}]"), format!(r#"{{"list":[{coupon}],"total":1}}"#)] {
        let end = at("2030-01-02 03:04:05");
        let wanted = Contents { ends: vec![end], open: vec![Some(End::At(end))], empty: false };
        assert_eq!(contents(&data), wanted, "{data}");
    }
    for data in ["null", r#""""#, r#"" ""#, "[]", "{}", r#"{"list":[],"total":0}"#, r#"{"list":null}"#] {
        assert!(contents(data).empty, "{data}");
    }
    assert!(matches!(read(r#"{"status":true,"code":0}"#), Verdict::Success(Contents { empty: true, .. })));
}

#[test]
fn every_end_counts_whatever_its_name_or_depth() {
    let data = r#"[{"useStatus":1,"endTime":"2030-01-01 00:00:00"},
        {"useStatus":1,"deep":{"er":[{"validEndDate":"2029-01-01"}]}},
        {"useStatus":1,"endAt":"9999-12-31 23:59:59","endAt":"2031-01-01 00:00:00"}]"#;
    let ends = contents(data).ends;
    assert_eq!(ends, [at("2030-01-01"), at("2029-01-01"), at("2031-01-01")]);
}

#[test]
fn ends_beside_a_list_count_and_those_in_it_count_once() {
    let beside = contents(
        r#"{"total":1,"list":[{"useStatus":0,"endAt":"2030-01-01"}],"endAt":"2028-01-01","list":[{"endAt":"2027-01-01"}]}"#,
    );
    assert_eq!(beside.ends, ["2030-01-01", "2028-01-01", "2027-01-01"].map(at));
    assert_eq!(beside.open, [Some(End::At(at("2030-01-01")))]);
    for (coupon, open) in [(r#"{"useStatus":1,"useStatus":0}"#, 0), (r#"{"useStatus":{},"useStatus":1}"#, 1)] {
        assert_eq!(contents(&format!("[{coupon}]")).open.len(), open, "the first status counts: {coupon}");
    }
    let alone = contents(r#"{"list":null,"endAt":"2029-01-01"}"#);
    assert_eq!((alone.ends, alone.empty), (vec![at("2029-01-01")], true));
}

#[test]
fn each_open_coupon_has_its_own_first_end() {
    let data = r#"[{"endAt":"2027-01-01"},{"useStatus":1,"endAt":"2026-01-01"},{},
        {"endAt":"2031-01-01","more":[{"endAt":"2029-01-01"}]}]"#;
    let end = |text| Some(End::At(at(text)));
    assert_eq!(contents(data).open, [end("2027-01-01"), None, end("2029-01-01")]);
}

#[test]
fn a_coupon_is_open_unless_its_status_is_final() {
    for (coupon, open) in [
        (r#"{"useStatus":"0","endAt":""}"#, vec![None]),
        (r#"{"useStatus":2}"#, vec![None]),
        (r#"{"useStatus":4,"endAt":null}"#, vec![None]),
        (r#"{"endAt":"9000-01-01"}"#, vec![Some(End::Never)]),
        (r#"{"useStatus":9,"endAt":"soon"}"#, vec![None]),
        (r#"{"useStatus":1}"#, vec![]),
        (r#"{"useStatus":"5"}"#, vec![]),
        (r#"{"useStatus":6,"endAt":"2000-01-01"}"#, vec![]),
        (r#"{"useStatus":"7"}"#, vec![]),
        (r#""a coupon in words""#, vec![None]),
    ] {
        assert_eq!(contents(&format!("[{coupon}]")).open, open, "{coupon}");
    }
}

#[test]
fn without_expires_no_ends_are_collected() {
    let reader = Reader { expires: Vec::new(), ..reader() };
    let verdict = reader.read(&answer(200, br#"{"status":true,"code":0,"data":{"endAt":"2000-01-01"}}"#));
    assert_eq!(verdict, Verdict::Success(Contents::default()));
}

#[test]
fn a_writes_answer_names_its_customer() {
    let pointers = ["/data/userInfo/customer_id".to_owned()];
    let body = br#"{"status":true,"data":{"userInfo":{"customer_id":383933091455959041}}}"#;
    assert_eq!(customers(body, &pointers), ["383933091455959041"]);
    assert!(customers(b"{}", &pointers).is_empty());
    assert!(customers(b"no json", &pointers).is_empty());
}

#[test]
fn an_answer_that_repeats_what_counts_or_is_compressed_is_no_success() {
    for repeated in [r#""status":true"#, r#""code":0"#, r#""data":[]"#, r#""\u0064ata":null"#] {
        let body = format!(r#"{{"status":true,"code":0,"data":[],{repeated}}}"#);
        assert_eq!(read(&body), Verdict::Ambiguous, "{body}");
    }
    assert!(matches!(read(r#"{"status":true,"code":0,"message":"","message":""}"#), Verdict::Success(_)));
    for (encoding, is_success) in [("identity", true), ("Identity", true), ("gzip", false), ("br", false)] {
        let encoding = HeaderValue::from_static(encoding);
        let answer = Answer::received(200, [None, Some(&encoding), None], *br#"{"status":true,"code":0}"#);
        assert_eq!(matches!(reader().read(&answer), Verdict::Success(_)), is_success, "{encoding:?}");
    }
}

#[test]
fn retry_after_is_read_in_both_forms() {
    let now = Wall::from_unix_seconds(784_111_777);
    let pause = |value: &'static str| {
        Answer::received(503, [None, None, Some(&HeaderValue::from_static(value))], []).retry_delay(now)
    };
    assert_eq!(pause("7"), Some(Duration::from_secs(7)));
    assert_eq!(pause("Sun, 06 Nov 1994 08:49:47 GMT"), Some(Duration::from_secs(10)));
    for none in ["", "soon", "-1", "Sun, 06 Nov 1994 08:49:37 GMT"] {
        assert_eq!(pause(none), None, "{none}");
    }
}

/// The platform chooses it, and each line of the log is held in memory until it is written.
#[test]
fn a_code_is_logged_in_bounded_length() {
    let code = |body: String| Answer::new(200, body.into_bytes()).code();
    assert_eq!(code("{\"code\":110004}".to_owned()).as_deref(), Some("110004"));
    assert_eq!(code("\u{feff}{\"code\":\"0\"}".to_owned()).as_deref(), Some("0"));
    let long = code(format!("{{\"code\":\"{}\"}}", "C".repeat(1000))).unwrap();
    assert_eq!(long.len(), MAX_CODE);
    assert_eq!(code(format!("{{\"code\":\"0\",\"data\":\"{}\"}}", "x".repeat(MAX_LOGGED_BODY))), None);
}
