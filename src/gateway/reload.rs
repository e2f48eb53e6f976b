//! Takes another configuration over while requests are served.

use std::sync::Arc;

use super::Gateway;
use super::policy::Policy;
use crate::settings::{Mistakes, Settings};

impl Gateway {
    /// Takes a configuration over, at once and whole, or where it cannot be used nothing of it. Answers whether it did.
    ///
    /// Requests under way end as they began. What is kept, paced and counted stays; kept answers go where they were read
    /// by other rules.
    pub fn reload(&self, loaded: Result<&Settings, &Mistakes>) -> bool {
        let loaded = loaded.map_err(|mistakes| mistakes.0.iter().map(ToString::to_string).collect::<Vec<_>>());
        let usable = loaded.and_then(|settings| self.usable(settings).map_err(|mistake| vec![mistake]));
        let success = usable.is_ok();
        match usable {
            Ok(settings) => self.take_over(settings),
            Err(mistakes) => {
                for mistake in &mistakes {
                    tracing::error!(mistake, "the configuration cannot be used; the one before stays in force");
                }
            }
        }
        self.metrics.reload_success.set(success.into());
        success
    }

    /// Whether it can be served by where the gateway listens, which stays as it is.
    fn usable<'a>(&self, settings: &'a Settings) -> Result<&'a Settings, String> {
        let missing = settings.missing_for_serving();
        if !missing.is_empty() {
            return Err(format!("the configuration lacks {}", missing.join(", ")));
        }
        if !self.private && settings.callers.is_empty() && !settings.server.allow_anonymous {
            return Err(
                "server.listen: without callers, the gateway must be started anew to listen on loopback".to_owned()
            );
        }
        Ok(settings)
    }

    fn take_over(&self, settings: &Settings) {
        // One at a time.
        let mut identities = self.identities.lock();
        let old = self.policy.load_full();
        let new =
            Arc::new(Policy::new(settings, Some(&old), self.private, &mut identities, &self.metrics, &self.clock));
        self.cache.adopt(&new.cache_options(&identities));
        self.policy.store(Arc::clone(&new));
        self.paces.adopt(new.pace_rules(), |path| new.pattern(path));
        if new.reads_otherwise(&old) {
            (0..identities.count()).for_each(|tenant| self.cache.invalidate_tenant(tenant, self.clock.boot()));
        }
        for tenant in new.tenants.all() {
            let same = old.tenants.all().iter().find(|other| other.index == tenant.index);
            if same.is_some_and(|other| *other.open_key() != *tenant.open_key()) {
                self.paces.resigned(tenant);
            }
        }
        let (changed, restart) = old.settings.differences(settings);
        tracing::info!(changed = changed.join(", "), "the configuration was loaded again");
        if !restart.is_empty() {
            tracing::warn!(keys = restart.join(", "), "these keys changed too, and take a restart");
        }
    }

    /// How often another configuration was taken over.
    pub fn reloads(&self) -> u64 {
        self.policy.load().number
    }
}
