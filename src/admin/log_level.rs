//! `GET` and `PUT /log-level`: the level of the gateway's own log messages, at run time.

use std::net::SocketAddr;
use std::time::Duration;

use http::StatusCode;

use super::Page;
use crate::envelope::MAX_DEPTH;
use crate::gateway::{AUDIT, Gateway};
use crate::json::Node;
use crate::settings::LogLevel;

/// Another level than the configured one is in force for so long, unless the request says otherwise.
const USUAL: Duration = Duration::from_secs(600);
/// And at most for so long.
const LONGEST: Duration = Duration::from_secs(3600);
const EXPECTED: &str = "expected {\"level\":\"error\"|\"warn\"|\"info\"|\"debug\"|\"trace\",\"for\":\"10m\"}, for at most 1h; nothing was changed";

/// The level in force.
pub(super) fn shown(gateway: &Gateway) -> Page {
    let (level, configured, span) = gateway.log_level();
    let mut body = format!("{{\"level\":\"{}\",\"configured\":\"{}\"", level.name(), configured.name());
    if let Some(span) = span {
        body.push_str(&format!(",\"for\":\"{}s\"", span.as_secs()));
    }
    body.push_str("}\n");
    Page::json(body)
}

/// Changes it.
pub(super) fn changed(gateway: &Gateway, body: &[u8], peer: SocketAddr) -> Page {
    let Some((level, span)) = parsed(body) else { return Page::text(StatusCode::BAD_REQUEST, EXPECTED) };
    tracing::info!(target: AUDIT, %peer, level = level.name(), seconds = span.as_secs(), "log level changed");
    gateway.set_log_level(level, span);
    shown(gateway)
}

fn parsed(body: &[u8]) -> Option<(LogLevel, Duration)> {
    let root = Node::parse(std::str::from_utf8(body).ok()?, MAX_DEPTH).ok()?;
    let members = root.members()?;
    let is_known = |name: &str| ["level", "for"].contains(&name);
    if members.len() > 2 || !members.iter().all(|member| is_known(&member.name)) {
        return None;
    }
    let level = LogLevel::of_name(root.member("level")?.text()?)?;
    let span = match root.member("for") {
        Some(span) => humantime::parse_duration(span.text()?).ok()?,
        None => USUAL,
    };
    (!span.is_zero() && span <= LONGEST).then_some((level, span))
}
