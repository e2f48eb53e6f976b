//! What differs in an envelope from what the platform accepts: for those who sign themselves, and were refused.

use std::io::Read;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::percent_decode_str;
use sha2::Sha256;

use super::{names, unusable};
use crate::answer::BYTE_ORDER_MARK;
use crate::cli::print;
use crate::clock::Wall;
use crate::envelope::MAX_DEPTH;
use crate::json::Node;
use crate::secret::hex;
use crate::signer::{Signed, Steps, percent_encoded};
use crate::tenant::{Tenant, Tenants};

/// The exit status if something differs.
const DIFFERS: u8 = 1;
/// Longest envelope that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;
/// How far a timestamp may be off before it is suspected, in seconds; the platform does not publish how far it may.
const SUSPECT: u64 = 60;
/// Timestamps from here on are milliseconds: in seconds, this is the year 5138.
const MILLISECONDS_FROM: i64 = 100_000_000_000;

/// Compares the envelope in a file with what the platform accepts; `now` is this machine's clock.
pub(super) fn run(file: &Path, tenant: Option<&str>, tenants: &Tenants, now: Wall) -> Result<(), u8> {
    let invalid = |problem: String| unusable(&format!("--verify {}: {problem}", file.display()));
    let text = read(file).map_err(|error| invalid(error.to_string()))?;
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&text).trim();
    let root = Node::parse(text, MAX_DEPTH)
        .map_err(|error| invalid(format!("{error}; expected the JSON body that was sent, and nothing else")))?;
    if root.members().is_none() {
        return Err(invalid("expected a JSON object: the body that was sent".to_owned()));
    }
    let names_it = |member: &str, own: &str| {
        root.member(member).and_then(Node::text).is_some_and(|value| value.trim().eq_ignore_ascii_case(own))
    };
    let find = |is_it: &dyn Fn(&Tenant) -> bool| tenants.all().iter().find(|tenant| is_it(tenant));
    let chosen = match tenant {
        Some(name) => find(&|tenant| tenant.name == name),
        None => find(&|tenant| names_it("openId", &tenant.open_id) && names_it("grantCode", &tenant.grant_code))
            .or_else(|| find(&|tenant| names_it("openId", &tenant.open_id)))
            .or_else(|| find(&|tenant| names_it("grantCode", &tenant.grant_code)))
            .or_else(|| tenants.default()),
    };
    let chosen = chosen.ok_or_else(|| unusable(&format!("--tenant: expected one of {}", names(tenants))))?;
    let mut report = Report { lines: Vec::new(), differs: false };
    report.compare(&root, chosen, tenants, now);
    print(&report.lines.join("\n"))?;
    if report.differs { Err(DIFFERS) } else { Ok(()) }
}

fn read(file: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    match file.to_str() {
        Some("-") => std::io::stdin().take(MAX_FILE).read_to_string(&mut text)?,
        _ => std::fs::File::open(file)?.take(MAX_FILE).read_to_string(&mut text)?,
    };
    Ok(text)
}

/// What was found, a line for each part of the envelope.
struct Report {
    lines: Vec<String>,
    differs: bool,
}

impl Report {
    fn ok(&mut self, part: &str, why: &str) {
        self.lines.push(format!("ok       {part:<10} {why}"));
    }

    fn differs(&mut self, part: &str, why: &str) {
        self.lines.push(format!("DIFFERS  {part:<10} {why}"));
        self.differs = true;
    }

    fn compare(&mut self, root: &Node<'_>, tenant: &Tenant, tenants: &Tenants, now: Wall) {
        let value = |name: &str| root.member(name).and_then(Node::text);
        for (name, own) in [("openId", &*tenant.open_id), ("grantCode", &*tenant.grant_code)] {
            let is_key = |value: &str| tenants.all().iter().any(|tenant| tenant.open_key().expose() == value.trim());
            match value(name) {
                Some(value) if is_key(value) => {
                    self.differs(name, "is a signing key, which must not be sent: replace it");
                }
                value => self.identity(name, value, own, tenant),
            }
        }
        self.timestamp(value("timestamp"), now);
        self.nonce(value("nonce"));
        self.params(root.member("params"));
        let [open_id, grant_code, timestamp, nonce] =
            ["openId", "grantCode", "timestamp", "nonce"].map(|name| value(name).unwrap_or_default());
        self.token(value("token"), Signed { open_id, grant_code, timestamp, nonce }, tenant, tenants);
        if !self.differs {
            self.lines.push(
                "Nothing differs. If it was refused all the same: each token is good once, its timestamp must be recent by the \
                 platform's clock, and the platform may have replaced the key."
                    .to_owned(),
            );
        }
    }

    fn identity(&mut self, name: &str, value: Option<&str>, own: &str, tenant: &Tenant) {
        let of = format!("that of tenants.{}", tenant.name);
        match value {
            Some(value) if value == own => self.ok(name, &of),
            Some(value) if value.trim() == own => self.differs(name, "has white space around it: expected none"),
            Some(value) if value.eq_ignore_ascii_case(own) => self.differs(name, "is in other letter case"),
            Some(value) => self.differs(name, &format!("is {value}: expected {own}, {of}")),
            None => self.differs(name, "is missing: expected a string"),
        }
    }

    fn timestamp(&mut self, value: Option<&str>, now: Wall) {
        let Some(value) = value else { return self.differs("timestamp", "is missing: expected seconds since 1970") };
        match value.parse::<i64>() {
            Err(_) => self.differs(
                "timestamp",
                &format!("is {value:?}: expected seconds since 1970, such as {}", now.unix_seconds()),
            ),
            Ok(millis) if millis >= MILLISECONDS_FROM => {
                self.differs("timestamp", "is in milliseconds: expected seconds since 1970");
            }
            Ok(seconds) => {
                let age = now.unix_seconds().saturating_sub(seconds);
                let side = if age < 0 { "ahead of" } else { "behind" };
                let text = format!("{} s {side} this machine's clock", age.unsigned_abs());
                let hint = if age.unsigned_abs() > SUSPECT {
                    "; fine if it was refused then, too late if it was sent now"
                } else {
                    ""
                };
                self.ok("timestamp", &format!("{text}{hint}"));
            }
        }
    }

    fn nonce(&mut self, value: Option<&str>) {
        let is_positive = |value: &str| value.parse::<u64>().is_ok_and(|nonce| nonce > 0) && !value.starts_with('0');
        match value {
            Some(value) if is_positive(value) => self.ok("nonce", "a positive integer"),
            Some(value) => self.differs("nonce", &format!("is {value:?}: expected a positive integer")),
            None => self.differs("nonce", "is missing: expected a positive integer, another one each time"),
        }
    }

    fn params(&mut self, value: Option<&Node<'_>>) {
        match value {
            Some(Node::Object(_)) => self.ok("params", "an object; it is not signed"),
            Some(Node::String(_)) => {
                self.differs("params", "is a string: expected the object itself, not JSON in a string");
            }
            Some(_) => self.differs("params", "is no object: expected one, such as {\"customerId\":\"…\"}"),
            None => self.differs("params", "is missing: expected an object"),
        }
    }

    fn token(&mut self, value: Option<&str>, signed: Signed<'_>, tenant: &Tenant, tenants: &Tenants) {
        let key = tenant.open_key();
        let key = key.expose();
        let steps = Steps::new(key, signed);
        match value {
            None => self.differs("token", "is missing: expected a string"),
            Some(token) if token == steps.token => self.ok("token", "matches the key and these values"),
            Some(token) => {
                let cause = known_mistakes(&steps, key, signed, tenants).into_iter().find(|(_, wrong)| wrong == token);
                let cause = cause.map_or_else(
                    || "matches neither the key nor a common mistake: another key, or other values than those in the envelope were signed".to_owned(),
                    |(cause, _)| cause,
                );
                self.differs(
                    "token",
                    &format!(
                        "{cause}\n{:20}expected {} for these values: HMAC-SHA1 of {}",
                        "", steps.token, steps.encoded
                    ),
                );
            }
        }
    }
}

/// The tokens of common mistakes.
fn known_mistakes(steps: &Steps, key: &str, signed: Signed<'_>, tenants: &Tenants) -> Vec<(String, String)> {
    let Signed { open_id, grant_code, timestamp, nonce } = signed;
    let of_key = |key: &str| Steps::new(key, signed).token;
    let of_text = |text: String| Steps::of_text(key, text).token;
    let lower_escapes = steps.token.replace("%2B", "%2b").replace("%2F", "%2f").replace("%3D", "%3d");
    let in_hex = hex(&steps.digest);
    let mut sha256 = Hmac::<Sha256>::new_from_slice(key.as_bytes()).expect("HMAC takes a key of any length");
    sha256.update(steps.encoded.as_bytes());
    let sha256 = STANDARD.encode(sha256.finalize().into_bytes());
    let seconds = timestamp.get(..timestamp.len().saturating_sub(3)).unwrap_or_default();
    let decoded_once = percent_decode_str(&steps.token).decode_utf8_lossy().into_owned();
    let mistakes = [
        ("is not percent-encoded", decoded_once),
        ("is percent-encoded twice", percent_encoded(&steps.token)),
        ("has its escapes in lower case", lower_escapes),
        ("is in hexadecimal: expected Base64", in_hex.clone()),
        ("is the Base64 of hexadecimal: expected that of the bytes", percent_encoded(&STANDARD.encode(&in_hex))),
        ("is the Base64 of hexadecimal, and not percent-encoded", STANDARD.encode(in_hex)),
        ("is in Base64 without padding", percent_encoded(&STANDARD_NO_PAD.encode(&steps.digest))),
        ("is in Base64 for URLs: expected the standard alphabet", percent_encoded(&URL_SAFE.encode(&steps.digest))),
        ("is in Base64 for URLs: expected the standard alphabet", URL_SAFE_NO_PAD.encode(&steps.digest)),
        ("was made with a line break behind the key", of_key(&format!("{key}\n"))),
        ("was made with a line break behind the key", of_key(&format!("{key}\r\n"))),
        ("was made with quotes around the key", of_key(&format!("\"{key}\""))),
        ("was made with HMAC-SHA256: expected HMAC-SHA1", percent_encoded(&sha256)),
        ("was made with HMAC-SHA256: expected HMAC-SHA1", sha256),
        (
            "was made of members that are not sorted by name",
            of_text(format!("openId={open_id}&grantCode={grant_code}&timestamp={timestamp}&nonce={nonce}")),
        ),
        (
            "was made of members that are not sorted by name",
            of_text(format!("openId={open_id}&grantCode={grant_code}&nonce={nonce}&timestamp={timestamp}")),
        ),
        (
            "was made of the values alone: expected name=value, joined with &",
            of_text(format!("{grant_code}{nonce}{open_id}{timestamp}")),
        ),
        (
            "was made with openId and grantCode exchanged",
            Steps::new(key, Signed { open_id: grant_code, grant_code: open_id, ..signed }).token,
        ),
        (
            "was made with the timestamp in seconds, and the envelope has milliseconds",
            Steps::new(key, Signed { timestamp: seconds, ..signed }).token,
        ),
        ("was made with the key and the text exchanged", Steps::of_text(&steps.encoded, key.to_owned()).token),
    ];
    let others = tenants
        .all()
        .iter()
        .map(|other| (format!("was made with the key of tenants.{}", other.name), of_key(other.open_key().expose())));
    mistakes.map(|(cause, token)| (cause.to_owned(), token)).into_iter().chain(others).collect()
}
