//! Memoization of parsing: under one policy the same bytes ask the same question, so that a body that led to a hit is parsed once.
//!
//! It holds questions, not answers: each is looked up in the cache as any other, so that it knows nothing of freshness or
//! invalidation. It belongs to a policy and goes with it.

use std::hash::BuildHasher;
use std::sync::Arc;

use arc_swap::{ArcSwapOption, Guard};
use foldhash::fast::RandomState;

use crate::cache::Question;
use crate::tenant::Tenant;

/// The part of the cache's memory that is set aside for this.
const SHARE: u64 = 16;
/// Memory of one parsed request at most, in bytes.
const MAX_BYTES: usize = 512;
/// Of those, what is left for the texts.
const MAX_TEXT: usize = MAX_BYTES - size_of::<ArcSwapOption<Parsed>>() - size_of::<Parsed>() - ALLOCATIONS * ALLOCATION;
/// Allocations of one parsed request, and what each takes beside its text: reference counts, a `String`, the allocator's rounding.
const ALLOCATIONS: usize = 4;
const ALLOCATION: usize = 32;

/// The questions of the bodies that led to hits, as a direct-mapped table: each body hashes to one slot, and replaces its previous
/// occupant.
pub(super) struct ParseMemo {
    places: Box<[ArcSwapOption<Parsed>]>,
    /// Fast rather than strong: whoever finds bodies that share a place only causes them to be parsed.
    hasher: RandomState,
}

/// What a question is parsed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unparsed<'a> {
    /// The route's index.
    pub(super) route: usize,
    /// Whether the route is for several paths.
    pub(super) is_wildcard: bool,
    pub(super) path: &'a str,
    /// `X-Zvgate-Tenant`.
    pub(super) tenant: Option<&'a [u8]>,
    /// The number of the only tenant that the caller may use, if there is only one.
    pub(super) sole_tenant: Option<usize>,
    pub(super) body: &'a [u8],
}

/// What it came to.
pub(super) struct Parsed {
    route: usize,
    tenant_header: Option<Box<[u8]>>,
    sole_tenant: Option<usize>,
    body: Box<[u8]>,
    pub(super) tenant: Arc<Tenant>,
    /// Its number, at hand.
    pub(super) tenant_index: usize,
    pub(super) customers: Arc<[String]>,
    pub(super) question: Question,
}

impl Parsed {
    fn is_of(&self, unparsed: &Unparsed<'_>) -> bool {
        self.route == unparsed.route
            && *self.body == *unparsed.body
            && self.tenant_header.as_deref() == unparsed.tenant
            && self.sole_tenant == unparsed.sole_tenant
            && (!unparsed.is_wildcard || self.question.is_at(unparsed.path))
    }
}

impl ParseMemo {
    /// An empty one, beside a cache of so many bytes.
    pub(super) fn new(cache_bytes: u64) -> Self {
        let places = (cache_bytes / SHARE / MAX_BYTES as u64).clamp(1, 1 << 16);
        Self { places: (0..places).map(|_| ArcSwapOption::empty()).collect(), hasher: RandomState::default() }
    }

    /// Memory that it takes at most, in bytes.
    pub(super) fn max_bytes(&self) -> u64 {
        self.places.len() as u64 * MAX_BYTES as u64
    }

    fn place(&self, body: &[u8]) -> Option<&ArcSwapOption<Parsed>> {
        let index = self.hasher.hash_one(body) % self.places.len().max(1) as u64;
        self.places.get(usize::try_from(index).ok()?)
    }

    /// What a request came to before.
    pub(super) fn find(&self, unparsed: &Unparsed<'_>) -> Option<Guard<Option<Arc<Parsed>>>> {
        let parsed = self.place(unparsed.body)?.load();
        parsed.as_ref().is_some_and(|parsed| parsed.is_of(unparsed)).then_some(parsed)
    }

    /// Remembers what a request came to, unless that is unusually long.
    pub(super) fn remember(
        &self,
        unparsed: &Unparsed<'_>,
        tenant: &Arc<Tenant>,
        customers: &Arc<[String]>,
        question: Question,
    ) {
        let header = unparsed.tenant.unwrap_or_default();
        let customer_bytes: usize = customers.iter().map(String::len).sum();
        let text = unparsed.body.len() + header.len() + customer_bytes + question.heap_size();
        if text > MAX_TEXT {
            return;
        }
        if let Some(place) = self.place(unparsed.body) {
            place.store(Some(Arc::new(Parsed {
                route: unparsed.route,
                tenant_header: unparsed.tenant.map(Box::from),
                sole_tenant: unparsed.sole_tenant,
                body: unparsed.body.into(),
                tenant: Arc::clone(tenant),
                tenant_index: tenant.index,
                customers: Arc::clone(customers),
                question,
            })));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::cache::Subject;
    use crate::secret::Secret;
    use crate::settings::{KeySource, TenantSettings};
    use crate::tenant::{Identities, TenantKeys, Tenants};

    fn tenant() -> Arc<Tenant> {
        let key = || Secret::new("key".to_owned());
        let settings = TenantSettings {
            name: "shop".to_owned(),
            open_id: "id".to_owned(),
            grant_code: "grant".to_owned(),
            key: KeySource::Inline(key()),
            default: false,
            pace: None,
        };
        let keys = TenantKeys::new([("shop".to_owned(), key())].into());
        Arc::clone(&Tenants::new(&[settings], &keys, &mut Identities::default()).all()[0])
    }

    type Sent = (usize, &'static str, Option<&'static [u8]>, Option<usize>, &'static [u8]);

    fn sent() -> impl Strategy<Value = Sent> {
        let path = prop::sample::select(vec!["/a", "/a/b", "/ab"]);
        let tenant = prop::sample::select(vec![None, Some(&b""[..]), Some(b"shop"), Some(b"other")]);
        let sole_tenant = prop::option::of(0..2usize);
        (0..2usize, path, tenant, sole_tenant, prop::sample::select(vec![&b"{}"[..], b"{ }", b"[]"]))
    }

    const fn unparsed((route, path, tenant, sole_tenant, body): Sent) -> Unparsed<'static> {
        Unparsed { route, is_wildcard: true, path, tenant, sole_tenant, body }
    }

    proptest! {
        #[test]
        fn a_lookup_finds_only_the_result_of_the_same_request(
            steps in prop::collection::vec((sent(), any::<bool>()), 1..60),
        ) {
            let (memo, tenant) = (ParseMemo::new(1 << 20), tenant());
            let mut remembered: HashMap<Sent, usize> = HashMap::new();
            for (number, (sent, remembers)) in steps.into_iter().enumerate() {
                if remembers {
                    let key = format!("{} {number}", sent.1);
                    let question = Question { subject: Subject::customer(0, "c"), key: key.into() };
                    memo.remember(&unparsed(sent), &tenant, &Arc::from([number.to_string()]), question);
                    // It replaced the result of any other request with this body.
                    remembered.retain(|other, _| other.4 != sent.4);
                    remembered.insert(sent, number);
                }
                let found = memo.find(&unparsed(sent));
                let customer = found.as_deref().and_then(Option::as_ref).map(|parsed| parsed.customers[0].clone());
                if let Some(customer) = customer {
                    prop_assert_eq!(Some(customer), remembered.get(&sent).map(ToString::to_string));
                } else if remembers {
                    prop_assert!(false, "what was just remembered is found");
                }
            }
        }
    }

    #[test]
    fn an_unusually_long_request_is_not_remembered() {
        let (memo, tenant) = (ParseMemo::new(1 << 20), tenant());
        for (length, is_found) in [(8, true), (MAX_TEXT, false)] {
            let body = vec![b' '; length];
            let unparsed =
                Unparsed { route: 0, is_wildcard: true, path: "/a", tenant: None, sole_tenant: None, body: &body };
            let question = Question { subject: Subject::customer(0, "c"), key: "/a {}".into() };
            memo.remember(&unparsed, &tenant, &Arc::from([]), question);
            assert_eq!(memo.find(&unparsed).is_some(), is_found, "{length}");
        }
    }
}
