//! A caller's body: what it asks, and what of it is forwarded.
//!
//! What is forwarded is cut from the bytes that were received. Only the cache key, by which questions are
//! compared, is rendered, in a canonical form.

use std::fmt;

use crate::json::{JsonError, Member, Node};

/// Deepest nesting of arrays and objects in a request; the root is 1.
pub const MAX_DEPTH: usize = 32;
/// Longest run of digits that is the same as a number and as a string: every common parser reads it exactly.
const MAX_COMMON_DIGITS: usize = 15;
/// Members of the envelope that the gateway writes itself.
const REPLACED: [&str; 5] = ["openId", "grantCode", "timestamp", "nonce", "token"];

/// Why a body is rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// It is not UTF-8 from this byte on.
    #[error("the body is not UTF-8 at byte {0}")]
    NotUtf8(usize),
    /// It is not JSON, or nests too deep.
    #[error("the body is invalid: {0} (at most {MAX_DEPTH} levels are allowed)")]
    NotJson(#[source] JsonError),
    /// It is not an object.
    #[error("the body must be a JSON object: {{\"params\": {{…}}}}")]
    NotAnObject,
    /// It has no member `params` that is an object.
    #[error("the body must have a member \"params\" that is an object")]
    NoParams,
    /// An object has a member name twice.
    #[error("an object has the member {0:?} twice: expected it once")]
    Duplicate(String),
    /// `params` has a member that the route does not allow.
    #[error("params has the member {0:?}: expected only those that this route allows, {1}")]
    Unexpected(String, String),
}

/// A body that can be forwarded: proof that it is UTF-8, JSON, not too deep, and without duplicate members.
#[derive(Debug)]
pub struct Envelope<'a> {
    root: Node<'a>,
}

impl<'a> Envelope<'a> {
    /// Parses a body.
    ///
    /// # Errors
    /// If it is invalid or ambiguous.
    pub fn parse(body: &'a [u8]) -> Result<Self, EnvelopeError> {
        let mut root = parse_body(body)?;
        let Node::Object(members) = &mut root else { return Err(EnvelopeError::NotAnObject) };
        let params = members.iter_mut().find(|member| member.name == "params").ok_or(EnvelopeError::NoParams)?;
        match &params.value {
            Node::Object(_) => {}
            // An empty object, as PHP writes it.
            Node::Array(items) if items.is_empty() => (params.value, params.raw) = (Node::Object(Vec::new()), "{}"),
            _ => return Err(EnvelopeError::NoParams),
        }
        Ok(Self { root })
    }

    fn members(&self) -> &[Member<'a>] {
        self.root.members().unwrap_or_default()
    }

    /// The whole body.
    pub const fn root(&self) -> &Node<'a> {
        &self.root
    }

    /// Checks that `params` has only members that a route allows.
    ///
    /// # Errors
    /// If it has another.
    pub fn check_params(&self, allowed: &[String]) -> Result<(), EnvelopeError> {
        let params = self.root.member("params").and_then(Node::members).unwrap_or_default();
        let other = params.iter().find(|param| !allowed.iter().any(|name| *name == param.name));
        other.map_or(Ok(()), |param| {
            Err(EnvelopeError::Unexpected(param.name.chars().take(64).collect(), allowed.join(", ")))
        })
    }

    /// The customer that the first matching pointer names: the text of a string or a number.
    pub fn customer(&self, pointers: &[String]) -> Option<&str> {
        pointers.iter().find_map(|pointer| self.root.pointer(pointer)?.text()).filter(|text| !text.is_empty())
    }

    /// Every customer that the pointers name.
    pub fn customers(&self, pointers: &[String]) -> Vec<String> {
        self.root.texts(pointers)
    }

    /// What is sent after the signature: `params` and members that are passed through, byte for byte, without the outer braces.
    pub fn forwarded(&self) -> String {
        let mut out = String::new();
        for member in self.members().iter().filter(|member| !is_replaced(member)) {
            if !out.is_empty() {
                out.push(',');
            }
            push_text(&mut out, &member.name);
            out.push(':');
            out.push_str(member.raw);
        }
        out
    }

    /// The canonical form of the question: equal for bodies that ask the same, whatever their order, white space and
    /// escapes. `optional` names the members of `params` for which `""` and `null` mean absent.
    pub fn canonical(&self, optional: &[String]) -> String {
        let mut out = String::new();
        self.push_canonical(&mut out, optional);
        out
    }

    /// The cache key: path and canonical form.
    pub fn question(&self, path: &str, optional: &[String]) -> String {
        let mut key = String::with_capacity(path.len() + 128);
        key.push_str(path);
        key.push(' ');
        self.push_canonical(&mut key, optional);
        key
    }

    fn push_canonical(&self, out: &mut String, optional: &[String]) {
        let members = self.members().iter().filter(|member| !is_replaced(member));
        push_members(out, members, |out, member| match &member.value {
            Node::Object(params) if member.name == "params" => {
                push_members(out, params.iter().filter(|param| !is_absent(param, optional)), push_value);
            }
            _ => push_value(out, member),
        });
    }
}

/// Parses a body: UTF-8, JSON, not too deep, and without duplicate members.
///
/// # Errors
/// If it is anything else.
pub fn parse_body(body: &[u8]) -> Result<Node<'_>, EnvelopeError> {
    let text = std::str::from_utf8(body).map_err(|error| EnvelopeError::NotUtf8(error.valid_up_to()))?;
    let root = Node::parse(text, MAX_DEPTH).map_err(EnvelopeError::NotJson)?;
    check_names(&root)?;
    Ok(root)
}

fn is_replaced(member: &Member<'_>) -> bool {
    REPLACED.contains(&&*member.name)
}

fn is_absent(param: &Member<'_>, optional: &[String]) -> bool {
    let empty = match &param.value {
        Node::Null => true,
        Node::String(text) => text.is_empty(),
        _ => false,
    };
    empty && optional.iter().any(|name| *name == param.name)
}

/// Checks that no object of a body has a member twice.
///
/// # Errors
/// The first duplicate name.
pub fn check_names(node: &Node<'_>) -> Result<(), EnvelopeError> {
    match node {
        Node::Object(members) => {
            let mut names: Vec<&str> = members.iter().map(|member| &*member.name).collect();
            names.sort_unstable();
            if let Some(pair) = names.windows(2).find(|pair| pair.first() == pair.last()) {
                let name = pair.first().copied().unwrap_or_default();
                return Err(EnvelopeError::Duplicate(name.chars().take(64).collect()));
            }
            members.iter().try_for_each(|member| check_names(&member.value))
        }
        Node::Array(items) => items.iter().try_for_each(check_names),
        _ => Ok(()),
    }
}

fn push_members<'m, 'a: 'm>(
    out: &mut String,
    members: impl Iterator<Item = &'m Member<'a>>,
    push: impl Fn(&mut String, &Member<'a>),
) {
    let mut members: Vec<_> = members.collect();
    members.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    out.push('{');
    for (index, member) in members.into_iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        push_text(out, &member.name);
        out.push(':');
        push(out, member);
    }
    out.push('}');
}

fn push_value(out: &mut String, member: &Member<'_>) {
    push_node(out, &member.value);
}

fn push_node(out: &mut String, node: &Node<'_>) {
    match node {
        Node::Object(members) => push_members(out, members.iter(), push_value),
        Node::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                push_node(out, item);
            }
            out.push(']');
        }
        Node::String(text) if is_common_number(text) => out.push_str(text),
        Node::String(text) => push_text(out, text),
        Node::Number(text) => out.push_str(text),
        Node::Bool(true) => out.push_str("true"),
        Node::Bool(false) => out.push_str("false"),
        Node::Null => out.push_str("null"),
    }
}

fn is_common_number(text: &str) -> bool {
    (1..=MAX_COMMON_DIGITS).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit())
}

/// Writes a string in the shortest form of JSON.
pub(crate) fn push_text(out: &mut String, text: &str) {
    out.push('"');
    if text.bytes().all(|byte| byte >= b' ' && !matches!(byte, b'"' | b'\\')) {
        out.push_str(text);
        out.push('"');
        return;
    }
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{0}'..='\u{1f}' => {
                // Writing to a string cannot fail.
                let _ = fmt::Write::write_fmt(out, format_args!("\\u{:04x}", u32::from(c)));
            }
            _ => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests;
