//! Which interface of the platform a request is for.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;

use crate::settings::{KindSettings, PaceSettings, RouteSettings, is_own};

/// A route that is served.
#[derive(Debug)]
pub struct Route {
    /// Its place among all routes: the index into whatever is kept for each.
    pub index: usize,
    /// Its path, or the beginning of paths, as configured.
    pub pattern: Arc<str>,
    /// Its name in metrics: the path, or `other` under a wildcard.
    pub label: String,
    /// What is done with its requests.
    pub kind: KindSettings,
    /// Its own pace, where it has one.
    pub pace: Option<PaceSettings>,
    /// Whether one route stands for many paths.
    pub wildcard: bool,
}

/// All routes.
#[derive(Debug)]
pub struct Routes {
    all: Vec<Arc<Route>>,
    exact: HashMap<String, Arc<Route>, RandomState>,
    /// Beginnings of paths, the longest first.
    prefixes: Vec<(String, Arc<Route>)>,
}

impl Routes {
    /// The routes as configured.
    pub fn new(settings: &[RouteSettings]) -> Self {
        let mut routes = Self { all: Vec::new(), exact: HashMap::default(), prefixes: Vec::new() };
        for (index, one) in settings.iter().enumerate() {
            let prefix = one.path.strip_suffix("**");
            let label = if prefix.is_some() { "other".to_owned() } else { one.path.clone() };
            let route = Arc::new(Route {
                index,
                pattern: one.path.as_str().into(),
                label,
                kind: one.kind.clone(),
                pace: one.pace,
                wildcard: prefix.is_some(),
            });
            routes.all.push(Arc::clone(&route));
            match prefix {
                Some(prefix) => routes.prefixes.push((prefix.to_owned(), route)),
                None => {
                    routes.exact.insert(one.path.clone(), route);
                }
            }
        }
        routes.prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        routes
    }

    /// All of them, by index.
    pub fn all(&self) -> &[Arc<Route>] {
        &self.all
    }

    /// The route that serves a path: an exact one, else the longest wildcard; none where that one is off.
    pub fn find(&self, path: &str) -> Option<&Arc<Route>> {
        let fits = |prefix: &str| path.strip_prefix(prefix).is_some_and(is_plain) && !is_own(path);
        let wildcard = || self.prefixes.iter().find(|(prefix, _)| fits(prefix)).map(|(_, route)| route);
        self.exact.get(path).or_else(wildcard).filter(|route| route.kind != KindSettings::Off)
    }
}

/// Whether a path under a wildcard means to every server what it says: no escapes, no empty or dotted steps.
fn is_plain(rest: &str) -> bool {
    rest.split('/').all(|step| {
        !step.is_empty()
            && step != "."
            && step != ".."
            && step.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.~".contains(&b))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes() -> Routes {
        let pass = |path: &str| RouteSettings { path: path.to_owned(), kind: KindSettings::Pass, pace: None };
        let off = RouteSettings { kind: KindSettings::Off, ..pass("/v3/off") };
        Routes::new(&[pass("/v3/a"), pass("/v3/**"), pass("/v3/crm/**"), off])
    }

    #[test]
    fn an_exact_path_wins_over_the_longest_wildcard() {
        let routes = routes();
        let index = |path: &str| routes.find(path).map(|route| route.index);
        assert_eq!(index("/v3/a"), Some(0));
        assert_eq!(index("/v3/b"), Some(1));
        assert_eq!(index("/v3/crm/b/c"), Some(2));
        assert_eq!(index("/v2/a"), None);
        assert_eq!(index("/v3/off"), None, "a disabled route is not matched by a wildcard either");
    }

    #[test]
    fn a_wildcard_matches_no_path_of_the_gateways_own() {
        let all = RouteSettings { path: "/**".to_owned(), kind: KindSettings::Pass, pace: None };
        let routes = Routes::new(&[all]);
        for path in ["/v1/invalidate", "/v1/coupons", "/openapi.json"] {
            assert!(routes.find(path).is_none(), "{path}");
        }
        assert!(routes.find("/v1x/a").is_some());
    }

    #[test]
    fn a_wildcard_matches_no_ambiguous_path() {
        for path in ["/v3/", "/v3/../v1", "/v3/a//b", "/v3/%2e%2e/a", "/v3/a/.", "/v3/a;b", "/v3"] {
            assert!(routes().find(path).is_none(), "{path}");
        }
    }
}
