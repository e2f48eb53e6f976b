//! `POST /explain`: what the gateway would do with a request, and why.

use http::{Request, StatusCode};

use super::Page;
use crate::envelope::MAX_DEPTH;
use crate::gateway::Gateway;
use crate::json::Node;

const EXPECTED: &str = "expected {\"path\":\"/v3/crm/coupon/getCustomerCoupons\",\"body\":{\"params\":{\u{2026}}}}, with \"caller\":\"NAME\" to be explained for a caller; header fields of the data listener may be sent along";

/// Explains the request in a body.
pub(super) async fn explained(gateway: &Gateway, request: &Request<()>, body: &[u8]) -> Page {
    let Some((path, asked, caller)) = parsed(body) else { return Page::text(StatusCode::BAD_REQUEST, EXPECTED) };
    let explanation = gateway.explain(&path, asked.as_bytes(), request.headers(), caller.as_deref()).await;
    Page::json(
        serde_json::to_string(&explanation).expect("structures with text for names can be written as JSON") + "\n",
    )
}

/// The path, the body as it would be sent, and the caller. A body that is no JSON is given as a string.
fn parsed(body: &[u8]) -> Option<(String, String, Option<String>)> {
    let root = Node::parse(std::str::from_utf8(body).ok()?, MAX_DEPTH + 1).ok()?;
    let is_known = |name: &str| ["path", "body", "caller"].contains(&name);
    let members = root.members().filter(|members| members.iter().all(|member| is_known(&member.name)))?;
    let sent = members.iter().find(|member| member.name == "body")?;
    let sent = match &sent.value {
        Node::String(text) => text.to_string(),
        _ => sent.raw.to_owned(),
    };
    let text = |node: &Node<'_>| match node {
        Node::String(text) => Some(text.to_string()),
        _ => None,
    };
    let caller = match root.member("caller") {
        Some(caller) => Some(text(caller)?),
        None => None,
    };
    Some((text(root.member("path")?)?, sent, caller))
}
