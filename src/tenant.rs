//! The tenants: merchants, in whose name calls are signed.

mod key_file;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::RwLock;

pub use self::key_file::{KeyFile, KeyReload, read_key};

use crate::json::Node;
use crate::secret::Secret;
use crate::settings::{KeySource, PaceSettings, TenantSettings};

/// A merchant and its credentials.
#[derive(Debug)]
pub struct Tenant {
    /// The number of its identity: the index into whatever exists for each.
    pub index: usize,
    /// Its name in the configuration.
    pub name: String,
    /// Its identity on the platform.
    pub open_id: String,
    /// The grant that goes with it.
    pub grant_code: String,
    /// Its signing key, which may change.
    open_key: RwLock<Secret>,
    /// The file that its key comes from, if it comes from one.
    open_key_file: Option<PathBuf>,
    /// Its own rate limit, if it has one.
    pub pace: Option<PaceSettings>,
}

impl Tenant {
    /// Its signing key.
    pub fn open_key(&self) -> impl std::ops::Deref<Target = Secret> + '_ {
        self.open_key.read()
    }

    fn change_key(&self, key: Secret) {
        *self.open_key.write() = key;
    }
}

/// Why no tenant fits a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoTenant {
    /// The header names one that is not configured.
    #[error("X-Zvgate-Tenant names no tenant of this gateway")]
    UnknownName,
    /// The body's identity is that of no tenant.
    #[error("openId and grantCode in the body are those of no tenant of this gateway")]
    UnknownIdentity,
    /// The body's identity is another than that of the tenant that was chosen.
    #[error("openId or grantCode in the body is not that of the tenant that was chosen")]
    OtherIdentity,
    /// The request names none, and none is the default.
    #[error("no tenant is named and none is the default; name one in X-Zvgate-Tenant")]
    NoDefault,
}

/// The tenants' signing keys, by name.
#[derive(Clone, Debug, Default)]
pub struct TenantKeys(HashMap<String, Secret>);

impl TenantKeys {
    /// These keys.
    pub const fn new(keys: HashMap<String, Secret>) -> Self {
        Self(keys)
    }
}

/// Numbers for identities. An identity keeps its number for as long as the process runs, under whatever name, and no other
/// identity ever gets it: what exists for a merchant stays that merchant's when the configuration changes.
#[derive(Debug, Default)]
pub struct Identities(Vec<(String, String)>);

impl Identities {
    /// The number of an identity; a new number if it is new.
    fn number(&mut self, open_id: &str, grant_code: &str) -> usize {
        let known = self.0.iter().position(|(id, grant)| id == open_id && grant == grant_code);
        known.unwrap_or_else(|| {
            self.0.push((open_id.to_owned(), grant_code.to_owned()));
            self.0.len() - 1
        })
    }

    /// How many identities have a number.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

/// All tenants.
#[derive(Debug)]
pub struct Tenants {
    all: Vec<Arc<Tenant>>,
    default: Option<usize>,
}

impl Tenants {
    /// The tenants as configured, with their keys; a sole one is the default.
    pub fn new(settings: &[TenantSettings], keys: &TenantKeys, identities: &mut Identities) -> Self {
        let default = settings.iter().position(|tenant| tenant.default).or((settings.len() == 1).then_some(0));
        let all = settings
            .iter()
            .map(|one| {
                Arc::new(Tenant {
                    index: identities.number(&one.open_id, &one.grant_code),
                    name: one.name.clone(),
                    open_id: one.open_id.clone(),
                    grant_code: one.grant_code.clone(),
                    open_key: RwLock::new(keys.0.get(&one.name).cloned().expect("one is loaded for each tenant")),
                    open_key_file: match &one.key {
                        KeySource::Inline(_) => None,
                        KeySource::File(path) => Some(path.clone()),
                    },
                    pace: one.pace,
                })
            })
            .collect();
        Self { all, default }
    }

    /// All of them.
    pub fn all(&self) -> &[Arc<Tenant>] {
        &self.all
    }

    /// The one for requests that name none.
    pub fn default(&self) -> Option<&Arc<Tenant>> {
        self.all.get(self.default?)
    }

    /// The tenant of a request: the one that its header names, else the one whose identity its body has, else the `sole` one
    /// that its caller may use, else the default. An identity that is empty or null is none.
    ///
    /// # Errors
    /// If none fits, or the body has another identity.
    pub fn choose<'a>(
        &'a self,
        header: Option<&[u8]>,
        body: &Node<'_>,
        sole: Option<&'a Arc<Tenant>>,
    ) -> Result<&'a Arc<Tenant>, NoTenant> {
        let given = |name| body.member(name).filter(|node| !matches!(node, Node::Null) && node.text() != Some(""));
        let (open_id, grant_code) = (given("openId"), given("grantCode"));
        let is = |node: Option<&Node<'_>>, own: &str| node.and_then(Node::text) == Some(own);
        let chosen = match (header, open_id, grant_code) {
            (Some(name), _, _) => {
                self.all.iter().find(|one| one.name.as_bytes() == name).ok_or(NoTenant::UnknownName)?
            }
            (None, Some(_), Some(_)) => {
                let same = |one: &&Arc<Tenant>| is(open_id, &one.open_id) && is(grant_code, &one.grant_code);
                self.all.iter().find(same).ok_or(NoTenant::UnknownIdentity)?
            }
            (None, _, _) => sole.or_else(|| self.default()).ok_or(NoTenant::NoDefault)?,
        };
        let fits = |node: Option<&Node<'_>>, own: &str| node.is_none() || is(node, own);
        if fits(open_id, &chosen.open_id) && fits(grant_code, &chosen.grant_code) {
            Ok(chosen)
        } else {
            Err(NoTenant::OtherIdentity)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenants(defaults: &[bool]) -> Tenants {
        let one = |(index, default): (usize, &bool)| TenantSettings {
            name: format!("t{index}"),
            open_id: format!("id{index}"),
            grant_code: format!("grant{index}"),
            key: KeySource::Inline(Secret::new("key".to_owned())),
            default: *default,
            pace: None,
        };
        of(&defaults.iter().enumerate().map(one).collect::<Vec<_>>(), &mut Identities::default())
    }

    fn of(settings: &[TenantSettings], identities: &mut Identities) -> Tenants {
        let keys = settings.iter().map(|one| (one.name.clone(), Secret::new("key".to_owned())));
        Tenants::new(settings, &TenantKeys::new(keys.collect()), identities)
    }

    fn choose(tenants: &Tenants, header: Option<&str>, identity: &str) -> Result<String, NoTenant> {
        let body = format!("{{\"params\":{{}}{identity}}}");
        let body = Node::parse(&body, 8).unwrap();
        tenants.choose(header.map(str::as_bytes), &body, None).map(|tenant| tenant.name.clone())
    }

    #[test]
    fn a_tenant_is_chosen_by_header_then_identity_then_default() {
        let two = tenants(&[false, true]);
        assert_eq!(choose(&two, Some("t0"), ""), Ok("t0".to_owned()));
        assert_eq!(choose(&two, None, r#","openId":"id0","grantCode":"grant0""#), Ok("t0".to_owned()));
        assert_eq!(choose(&two, None, ""), Ok("t1".to_owned()));
        assert_eq!(choose(&tenants(&[false]), None, ""), Ok("t0".to_owned()));
        assert_eq!(choose(&tenants(&[false, false]), None, ""), Err(NoTenant::NoDefault));
        assert_eq!(choose(&two, Some("t2"), ""), Err(NoTenant::UnknownName));
    }

    #[test]
    fn an_empty_identity_is_none_and_a_callers_sole_tenant_comes_before_the_default() {
        let two = tenants(&[true, false]);
        for identity in [r#","openId":"","grantCode":"""#, r#","openId":null,"grantCode":null"#, r#","openId":"""#] {
            assert_eq!(choose(&two, None, identity), Ok("t0".to_owned()), "{identity}");
            assert_eq!(choose(&two, Some("t1"), identity), Ok("t1".to_owned()), "{identity}");
        }
        let body = Node::parse("{}", 8).unwrap();
        assert_eq!(two.choose(None, &body, Some(&two.all()[1])).map(|tenant| tenant.index), Ok(1));
        assert_eq!(two.choose(Some(b"t0"), &body, Some(&two.all()[1])).map(|tenant| tenant.index), Ok(0));
    }

    #[test]
    fn an_identity_keeps_its_index_and_a_name_does_not() {
        let mut identities = Identities::default();
        let one = |name: &str, id: &str| TenantSettings {
            name: name.to_owned(),
            open_id: id.to_owned(),
            grant_code: "g".to_owned(),
            key: KeySource::Inline(Secret::new("key".to_owned())),
            default: false,
            pace: None,
        };
        let mut numbers = |settings: &[TenantSettings]| {
            of(settings, &mut identities).all().iter().map(|tenant| tenant.index).collect::<Vec<_>>()
        };
        assert_eq!(numbers(&[one("a", "1"), one("b", "2")]), [0, 1]);
        assert_eq!(numbers(&[one("b", "2"), one("a", "3"), one("c", "1")]), [1, 2, 0]);
        assert_eq!(identities.count(), 3);
    }

    #[test]
    fn a_request_with_another_merchants_identity_is_rejected() {
        let sole = tenants(&[false]);
        for identity in [
            r#","openId":"id1","grantCode":"grant1""#,
            r#","openId":"id0","grantCode":"grant1""#,
            r#","openId":"id1""#,
            r#","grantCode":"x""#,
            r#","openId":0"#,
        ] {
            assert!(choose(&sole, None, identity).is_err(), "{identity}");
            assert!(choose(&sole, Some("t0"), identity).is_err(), "{identity} with header");
        }
        let two = tenants(&[true, false]);
        let other = choose(&two, Some("t0"), r#","openId":"id1","grantCode":"grant1""#);
        assert_eq!(other, Err(NoTenant::OtherIdentity));
    }
}
