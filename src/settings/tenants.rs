//! `tenants.*`: the merchants.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

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
    /// The file that the key was read from, where it was.
    pub open_key_file: Option<PathBuf>,
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
    let file: Option<PathBuf> = table.optional("open_key_file");
    let open_key = match (given, key, &file) {
        ((true, true), _, _) => {
            table.mistake("open_key", "stands beside open_key_file; wanted one of the two");
            None
        }
        ((false, false), _, _) => {
            table.mistake("open_key", "is missing; wanted the signing key here, or open_key_file");
            None
        }
        (_, Some(key), _) => {
            let checked = check_key(key);
            checked.map_err(|why| table.mistake("open_key", format!("{why}; wanted the signing key alone"))).ok()
        }
        (_, None, Some(file)) => {
            let key = read_key(file);
            key.map_err(|why| table.mistake("open_key_file", format!("{why}; wanted one that holds the signing key")))
                .ok()
        }
        (_, None, None) => None,
    };
    let default = table.with_default("default", false);
    let pace = table.has("pace").then(|| PaceSettings::read(table.table("pace"), pace));
    Some(TenantSettings {
        name: name.to_owned(),
        open_id: open_id?,
        grant_code: grant_code?,
        open_key: open_key?,
        open_key_file: file,
        default,
        pace,
    })
}

/// Longer than any signing key, so that another file named by mistake is not taken in whole.
const LONGEST_KEY: u64 = 4096;

/// Reads the signing key in a file.
///
/// # Errors
/// Why the file cannot be used, in words that follow its key in the configuration.
pub fn read_key(file: &Path) -> Result<Secret, String> {
    let unreadable = |error: std::io::Error| format!("names a file that cannot be read ({})", error.kind());
    let mut text = Zeroizing::new(String::new());
    let read = std::fs::File::open(file).and_then(|file| file.take(LONGEST_KEY + 1).read_to_string(&mut text));
    let length = read.map_err(unreadable)?;
    if length as u64 > LONGEST_KEY {
        return Err(format!("names a file of more than {LONGEST_KEY} bytes"));
    }
    check_key(text.trim().to_owned()).map_err(|why| format!("names a file that {why}"))
}

fn check_key(key: String) -> Result<Secret, &'static str> {
    let key = Secret::new(key);
    if key.expose().is_empty() {
        return Err("is empty");
    }
    if key.expose().contains(char::is_control) {
        return Err("has line breaks or other control characters in it");
    }
    Ok(key)
}
