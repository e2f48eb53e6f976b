//! `tenants.*`: the merchants.

use std::collections::HashMap;
use std::path::Path;

use crate::secret::Secret;

use super::rate::PaceSettings;
use super::reader::Table;

/// One merchant.
#[derive(Clone, Debug)]
pub struct TenantSettings {
    /// Its name here.
    pub name: String,
    /// Its identity on the platform.
    pub open_id: String,
    /// The grant that goes with it.
    pub grant_code: String,
    /// Its signing key.
    pub open_key: Secret,
    /// Whether it serves callers who name no tenant.
    pub default: bool,
    /// Its own pace, where it has one.
    pub pace: Option<PaceSettings>,
}

/// Names of tenants, which also stand in metrics and headers.
pub(crate) fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

/// Reads all tenants; `None` where one of them cannot be used.
pub(crate) fn read(tables: Vec<(String, Table<'_>)>, pace: PaceSettings) -> Option<Vec<TenantSettings>> {
    let count = tables.len();
    let mut identities = HashMap::new();
    let mut default: Option<String> = None;
    let mut tenants = Vec::with_capacity(count);
    for (name, mut table) in tables {
        if !is_name(&name) {
            table.mistake("", "is not a name; wanted lower-case letters, digits and hyphens");
        }
        let tenant = read_one(&name, &mut table, pace);
        if let Some(tenant) = tenant {
            if let Some(other) = identities.insert((tenant.open_id.clone(), tenant.grant_code.clone()), name.clone()) {
                table.mistake(
                    "open_id",
                    format!("has the identity of tenants.{other}; wanted each pair of open_id and grant_code once"),
                );
            }
            if tenant.default {
                if let Some(other) = &default {
                    table.mistake("default", format!("tenants.{other} is the default already; wanted one at most"));
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
            table.mistake(key, "is missing; wanted the identity that the platform gave this merchant");
        }
    }
    let open_id = table.optional("open_id");
    let grant_code = table.optional("grant_code");
    let given = (table.has("open_key"), table.has("open_key_file"));
    let key = table.secret("open_key");
    let file: Option<std::path::PathBuf> = table.optional("open_key_file");
    let open_key = match (given, key, file) {
        ((true, true), _, _) => {
            table.mistake("open_key", "stands beside open_key_file; wanted one of the two");
            None
        }
        ((false, false), _, _) => {
            table.mistake("open_key", "is missing; wanted the signing key here, or open_key_file");
            None
        }
        (_, Some(key), _) => Some(Secret::new(key)),
        (_, None, Some(file)) => read_key(table, &file),
        (_, None, None) => None,
    };
    let default = table.with_default("default", false);
    let pace = table.has("pace").then(|| PaceSettings::read(table.table("pace"), pace));
    Some(TenantSettings {
        name: name.to_owned(),
        open_id: open_id?,
        grant_code: grant_code?,
        open_key: open_key?,
        default,
        pace,
    })
}

fn read_key(table: &Table<'_>, file: &Path) -> Option<Secret> {
    match std::fs::read_to_string(file) {
        Ok(text) if !text.trim().is_empty() => Some(Secret::new(text.trim().to_owned())),
        Ok(_) => {
            table.mistake("open_key_file", "names an empty file; wanted one that holds the signing key");
            None
        }
        Err(error) => {
            table.mistake(
                "open_key_file",
                format!("names a file that cannot be read ({}); wanted one that holds the signing key", error.kind()),
            );
            None
        }
    }
}
