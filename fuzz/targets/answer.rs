//! Parses an answer: no panic, and no end is missed. The first byte selects the status.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oracle::Tree;
use time::UtcOffset;
use zvgate::answer::{Answer, End, Reader, Typed, Verdict, customers};
use zvgate::clock::Wall;

const EXPIRES: [&str; 3] = ["endAt", "endTime", "validEndDate"];

fn ends(tree: &Tree, found: &mut Vec<Wall>) {
    match tree {
        Tree::Members(members) => {
            for (name, value) in members {
                match value {
                    Tree::Text(text) if EXPIRES.contains(&name.as_str()) => {
                        if let Some(End::At(wall)) = End::parse(text, UtcOffset::UTC) {
                            found.push(wall);
                        }
                    }
                    value => ends(value, found),
                }
            }
        }
        Tree::List(items) => items.iter().for_each(|item| ends(item, found)),
        _ => {}
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((first, body)) = input.split_first() else { return };
    let status = [200, 204, 404, 429, 500][usize::from(*first) % 5];
    let reader = Reader {
        expires: EXPIRES.map(str::to_owned).into(),
        retry_codes: vec!["110004".to_owned()],
        utc_offset: UtcOffset::UTC,
    };
    let pointers = ["/data/userInfo/customer_id".to_owned()];
    customers(body, &pointers);
    let answer = Answer::new(status, body);
    let verdict = reader.read(&answer);
    if !(200..300).contains(&status) {
        assert!(matches!(verdict, Verdict::HttpOther | Verdict::Throttled | Verdict::Http5xx));
        return;
    }
    // A byte order mark is skipped.
    let text = std::str::from_utf8(body).ok().map(|text| text.strip_prefix('\u{feff}').unwrap_or(text));
    let tree = text.and_then(Tree::parse);
    let valid = tree.filter(|tree| tree.members().is_some() && tree.depth() <= 128);
    assert_eq!(verdict == Verdict::Garbage, valid.is_none(), "which bodies are JSON");
    let members = valid.as_ref().and_then(Tree::members).unwrap_or_default();
    let is_repeated = |name: &&str| members.iter().filter(|(other, _)| other == name).count() > 1;
    assert_eq!(verdict == Verdict::Ambiguous, ["status", "code", "data"].iter().any(is_repeated), "which repeat");
    let (typed, is_new) = reader.typed(&answer, "1", || Wall::from_unix_seconds(0), 1 << 20);
    assert!(is_new);
    match typed {
        // The parser that judges takes no more than 128 levels.
        Typed::Coupons(coupons) if valid.as_ref().is_some_and(|tree| tree.depth() < 120) => {
            assert!(matches!(verdict, Verdict::Success(_)));
            let tree = Tree::parse(coupons.json()).expect("the coupons are JSON");
            let names = ["customerId", "coupons", "complete", "fetchedAt"];
            assert!(names.iter().all(|name| tree.member(name).is_some()));
            let (usable, _) = coupons.usable(Wall::from_unix_seconds(1_800_000_000));
            assert!(Tree::parse(&usable).is_some());
        }
        Typed::Failure(failure) => assert_eq!(failure.is_exception, verdict == Verdict::Exception),
        Typed::Coupons(_) | Typed::TooLarge => {}
    }
    if let (Verdict::Success(contents), Some(tree)) = (verdict, valid) {
        let mut expected = Vec::new();
        tree.member("data").iter().for_each(|data| ends(data, &mut expected));
        assert_eq!(contents.ends, expected, "every end counts");
    }
});
