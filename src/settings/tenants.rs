//! `tenants.*`: the merchants.

use std::collections::HashMap;
use std::path::PathBuf;

use super::load::Holds;
use super::rate::PaceSettings;
use super::reader::Table;
use crate::secret::{Secret, check_plain};

/// One merchant.
#[derive(Clone, Debug)]
pub struct TenantSettings {
    /// Its name in this configuration.
    pub name: String,
    /// Its identity on the platform.
    pub open_id: String,
    /// The grant that belongs to it.
    pub grant_code: String,
    /// Where its signing key is.
    pub key: KeySource,
    /// Whether it is used for callers that name no tenant.
    pub default: bool,
    /// Its own rate limit, if it has one.
    pub pace: Option<PaceSettings>,
}

/// Where a signing key is.
#[derive(Clone, Debug)]
pub enum KeySource {
    /// In the configuration.
    Inline(Secret),
    /// In a file.
    File(PathBuf),
}

/// Whether this is a valid name of a tenant or caller, which also appears in metrics and headers.
pub(crate) fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

/// Reads all tenants; `None` if one of them is invalid.
pub(super) fn read(tables: Vec<(String, Table<'_>)>, pace: PaceSettings) -> Option<Vec<TenantSettings>> {
    let count = tables.len();
    let mut identities = HashMap::new();
    let mut default: Option<String> = None;
    let mut tenants = Vec::with_capacity(count);
    for (name, mut table) in tables {
        if !is_name(&name) {
            table.error("", "is not a valid name; expected lower-case letters, digits and hyphens");
        }
        let tenant = read_one(&name, &mut table, pace);
        if let Some(tenant) = tenant {
            if let Some(other) = identities.insert((tenant.open_id.clone(), tenant.grant_code.clone()), name.clone()) {
                table.error(
                    "open_id",
                    format!("has the identity of tenants.{other}; expected each pair of open_id and grant_code once"),
                );
            }
            let effective = |one: &TenantSettings| one.pace.unwrap_or(pace);
            let differs =
                |other: &&TenantSettings| other.open_id == tenant.open_id && effective(other) != effective(&tenant);
            if let Some(other) = tenants.iter().find(differs) {
                table.error(
                    "pace",
                    format!(
                        "differs from that of tenants.{}, which has the same open_id, so that the platform counts their calls together; expected the same pace",
                        other.name
                    ),
                );
            }
            if tenant.default {
                if let Some(other) = &default {
                    table.error("default", format!("tenants.{other} is already the default; expected at most one"));
                }
                default = Some(name);
            }
            tenants.push(tenant);
        }
        table.finish();
    }
    (tenants.len() == count).then_some(tenants)
}

fn read_one(name: &str, table: &mut Table<'_>, pace: PaceSettings) -> Option<TenantSettings> {
    for key in ["open_id", "grant_code"] {
        if !table.has(key) {
            table.error(key, "is missing; expected the identity that the platform gave this merchant");
        }
    }
    let is_plain = |text: &String| {
        check_plain(text)
            .map_err(|_| "an identity without control characters, invisible characters or quotes around it")
    };
    let open_id = table.optional_checked("open_id", is_plain);
    let grant_code = table.optional_checked("grant_code", is_plain);
    let given = (table.has("open_key"), table.has("open_key_file"));
    let key = table.secret("open_key").map(Secret::new);
    let file = table.file("open_key_file", Holds::SigningKey(name.to_owned()));
    let key = match (given, key, file) {
        ((true, true), _, _) => {
            table.error("open_key", "is given together with open_key_file; expected one of the two");
            None
        }
        ((false, false), _, _) => {
            table.error("open_key", "is missing; expected the signing key here, or open_key_file");
            None
        }
        (_, Some(key), _) => {
            let valid = key.check().map(|()| KeySource::Inline(key.clone()));
            valid.map_err(|problem| table.error("open_key", format!("{problem}; expected the signing key alone"))).ok()
        }
        (_, None, Some(file)) => Some(KeySource::File(file)),
        (_, None, None) => None,
    };
    let default = table.with_default("default", false);
    let pace = table.has("pace").then(|| PaceSettings::read(table.table("pace"), pace));
    Some(TenantSettings { name: name.to_owned(), open_id: open_id?, grant_code: grant_code?, key: key?, default, pace })
}
