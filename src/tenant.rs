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
    /// The number of its `open_id`, by which the platform counts calls and knows customers: the index into whatever exists
    /// for each, under whichever grant.
    pub merchant: usize,
    /// Its number among the identities of that `open_id`.
    pub grant: usize,
    /// Its name in the configuration.
    pub name: String,
    /// Its identity on the platform.
    pub open_id: String,
    /// The grant that belongs to it.
    pub grant_code: String,
    /// Its signing key, which may change.
    open_key: RwLock<Secret>,
    /// The file that its key comes from, if it comes from one.
    open_key_file: Option<PathBuf>,
    /// Its own rate limit, if it has one.
    pub pace: Option<PaceSettings>,
}

impl Tenant {
    /// Its `open_id` and `grant_code`.
    pub fn identity(&self) -> [&str; 2] {
        [&self.open_id, &self.grant_code]
    }

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
    #[error(
        "X-Zvgate-Tenant, or the parameter tenant, names no tenant of this gateway: expected the name of a configured one"
    )]
    UnknownName,
    /// The body's identity is that of no tenant.
    #[error(
        "openId and grantCode in the body are those of no tenant of this gateway: expected those of a configured one, or none"
    )]
    UnknownIdentity,
    /// The body's identity is another than that of the tenant that was chosen.
    #[error("openId or grantCode in the body is not that of the tenant that was chosen: expected its own, or none")]
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

/// Numbers for identities. An identity keeps its numbers for as long as the process runs, under whatever name, and no other
/// identity ever gets them: what exists for a merchant stays that merchant's when the configuration changes.
#[derive(Debug, Default)]
pub struct Identities {
    all: Vec<Identity>,
    merchants: usize,
}

#[derive(Debug)]
struct Identity {
    open_id: String,
    grant_code: String,
    merchant: usize,
    grant: usize,
}

impl Identities {
    /// The number of an identity, of its `open_id`, and of its grant under that; new numbers for what is new.
    fn numbers(&mut self, open_id: &str, grant_code: &str) -> (usize, usize, usize) {
        let is_same = |one: &&Identity| one.open_id == open_id;
        if let Some(index) = self.all.iter().position(|one| is_same(&one) && one.grant_code == grant_code) {
            let known = self.all.get(index);
            return known.map_or((index, 0, 0), |one| (index, one.merchant, one.grant));
        }
        let merchant = self.all.iter().find(is_same).map_or(self.merchants, |one| one.merchant);
        let grant = self.all.iter().filter(is_same).count();
        self.merchants = self.merchants.max(merchant + 1);
        self.all.push(Identity { open_id: open_id.to_owned(), grant_code: grant_code.to_owned(), merchant, grant });
        (self.all.len() - 1, merchant, grant)
    }

    /// How many merchants have a number.
    pub const fn merchants(&self) -> usize {
        self.merchants
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
                let (index, merchant, grant) = identities.numbers(&one.open_id, &one.grant_code);
                Arc::new(Tenant {
                    index,
                    merchant,
                    grant,
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
        let other_grant = TenantSettings { grant_code: "h".to_owned(), ..one("d", "3") };
        assert_eq!(numbers(std::slice::from_ref(&other_grant)), [3]);
        let tenants = of(&[other_grant, one("a", "3")], &mut identities);
        let numbers: Vec<_> = tenants.all().iter().map(|one| (one.index, one.merchant, one.grant)).collect();
        assert_eq!(numbers, [(3, 2, 1), (2, 2, 0)], "what belongs to a merchant is shared by its grants");
        assert_eq!(identities.merchants(), 3);
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
