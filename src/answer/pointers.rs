//! Values in an answer that JSON pointers (RFC 6901) name, found without building a tree: answers may be large.

use crate::json::{JsonError, Next, Scanner};

/// What is left of a pointer: the names of the steps to come.
type Steps<'p> = &'p [String];

/// The texts of the strings and numbers that the pointers name, or of those in an array that one names; none if the text is not
/// JSON. Of a repeated member, every value counts.
pub(super) fn texts(text: &str, max_depth: usize, pointers: &[String]) -> Vec<String> {
    let pointers: Vec<Vec<String>> = pointers.iter().map(|pointer| steps(pointer)).collect();
    let pointers: Vec<Steps<'_>> = pointers.iter().map(Vec::as_slice).collect();
    let mut found = Vec::new();
    match Scanner::read(text, max_depth, |scanner, next| walk(scanner, &next, &pointers, &mut found)) {
        Ok(()) => found,
        Err(_) => Vec::new(),
    }
}

fn steps(pointer: &str) -> Vec<String> {
    pointer.split('/').skip(1).map(|step| step.replace("~1", "/").replace("~0", "~")).collect()
}

fn walk<'a, 'p>(
    scanner: &mut Scanner<'a>,
    next: &Next<'a>,
    pointers: &[Steps<'p>],
    found: &mut Vec<String>,
) -> Result<(), JsonError> {
    let is_named = pointers.iter().any(|steps| steps.is_empty());
    let below = |name: &str| -> Vec<Steps<'p>> {
        let steps = pointers.iter().filter_map(|steps| steps.split_first());
        steps.filter(|(first, _)| *first == name).map(|(_, rest)| rest).collect()
    };
    match next {
        Next::String(_) | Next::Number(_) | Next::Word(_) => {
            let text = next.text().filter(|text| is_named && !text.is_empty());
            found.extend(text.map(str::to_owned));
            Ok(())
        }
        Next::Object => scanner.object(|scanner, name, next| match below(&name) {
            below if below.is_empty() => scanner.pass(&next),
            below => walk(scanner, &next, &below, found),
        }),
        Next::Array => {
            let mut index = 0;
            scanner.array(|scanner, next| {
                let mut below = below(&index.to_string());
                index += 1;
                if is_named && !matches!(next, Next::Array) {
                    below.push(&[]);
                }
                if below.is_empty() { scanner.pass(&next) } else { walk(scanner, &next, &below, found) }
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::Node;

    #[test]
    fn the_same_is_found_as_in_a_tree() {
        let pointers = ["/data/userInfo/customer_id", "/data/ids", "/data/list/1/a~1b", "/x"].map(str::to_owned);
        for text in [
            r#"{"data":{"userInfo":{"customer_id":383933091455959041},"ids":["1","",2,null,{"a":1},["3"]]},"x":"y"}"#,
            r#"{"data":{"list":[{"a/b":"no"},{"a/b":"yes","c":[1]}]},"x":{"x":"z"}}"#,
            r#"{"data":[{"userInfo":1}],"x":""}"#,
            r#""x""#,
            "[1]",
        ] {
            let tree = Node::parse(text, 16).unwrap().texts(&pointers);
            let mut found = texts(text, 16, &pointers);
            let mut expected = tree.clone();
            found.sort();
            expected.sort();
            assert_eq!(found, expected, "{text}");
        }
        assert!(texts(r#"{"x":"y""#, 16, &pointers).is_empty());
        assert_eq!(texts(r#"{"x":"y","x":"z"}"#, 16, &pointers), ["y", "z"]);
    }
}
