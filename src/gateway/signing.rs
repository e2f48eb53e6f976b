//! What changes while the gateway runs: the platform's clock, the merchants' keys, the gateway's own certificates.

use std::sync::Arc;

use super::Gateway;
use crate::clock::{Boot, Now, Wall};
use crate::tenant::{KeyFile, KeyNews, Tenant};
use crate::tls::{Tls, TlsNews};

impl Gateway {
    /// Both clocks; the wall clock is the later of the system's and the platform's, by which coupons end.
    pub(super) fn now(&self) -> Now {
        self.skew.later(self.clock.now())
    }

    /// Learns the platform's time from an answer.
    pub(super) fn learn_time(&self, date: Wall, sent: Boot, answered: Now) {
        let learned = self.skew.learn(date, sent, answered);
        if let Some(millis) = learned.notable {
            tracing::warn!(
                ahead_s = millis / 1000,
                "the platform's clock and this machine's differ; the platform refuses signatures that are too far off"
            );
        }
        if learned.changed {
            tracing::info!("calls are signed by another time from now on, as the platform's clock tells");
            self.policy.load().tenants.all().iter().for_each(|tenant| self.paces.resigned(tenant));
        }
    }

    /// The files that tenants' keys come from.
    pub fn key_files(&self) -> Vec<KeyFile> {
        self.policy.load().tenants.all().iter().filter_map(KeyFile::of).collect()
    }

    /// Tells what was found in a tenant's key file.
    pub fn learn_key(&self, tenant: &Arc<Tenant>, news: &KeyNews) {
        match news {
            KeyNews::None => {}
            KeyNews::Changed => {
                tracing::info!(tenant = tenant.name, "calls are signed with the new key in open_key_file");
                self.paces.resigned(tenant);
            }
            KeyNews::Unusable(why) => {
                tracing::error!(tenant = tenant.name, "open_key_file {why}; calls are signed with the last good key");
            }
        }
    }

    /// What callers' connections are secured with.
    pub fn tls(&self) -> Option<Arc<Tls>> {
        self.policy.load().settings.server.tls.clone()
    }

    /// Tells what was found in the files of `server.tls`.
    pub fn learn_certificates(&self, news: &TlsNews) {
        match news {
            TlsNews::None => {}
            TlsNews::Changed => tracing::info!("new connections are served with the new certificates"),
            TlsNews::Unusable(unusable) => {
                tracing::error!(%unusable, "the new certificates cannot be used; the last good ones stay");
            }
        }
    }
}
