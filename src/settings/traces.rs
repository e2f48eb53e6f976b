//! `traces.*`: where traces are sent, and of which requests.

use std::path::PathBuf;

use super::base_url::BaseUrl;
use super::breaker::Ratio;
use super::effective::Scope;
use super::load::Holds;
use super::reader::Table;

/// `traces.*`, which needs a restart.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceSettings {
    /// The collector's URL for traces by OTLP over HTTP; without it nothing is traced.
    pub endpoint: Option<BaseUrl>,
    /// The share of requests that are sampled beside those that their callers sample.
    pub sample: Ratio,
    /// The file of header fields that the collector wants.
    pub headers_file: Option<PathBuf>,
}

/// Reads the table.
pub(super) fn read(mut table: Table<'_>) -> TraceSettings {
    table.set_scope(Scope::Static);
    let has_path = |url: &BaseUrl| match url.path().is_empty() {
        false => Ok(()),
        true => Err("the URL of the collector with its path, such as \"http://127.0.0.1:4318/v1/traces\""),
    };
    let settings = TraceSettings {
        endpoint: table.optional_checked("endpoint", has_path),
        // Enough to see where time goes, for a hundredth of what all would cost.
        sample: table.with_default("sample", Ratio(0.01)),
        headers_file: table.file("headers_file", Holds::TraceHeaders),
    };
    if settings.headers_file.is_some() && !table.was_given("endpoint") {
        table.error("headers_file", "is given without traces.endpoint");
    }
    table.finish();
    settings
}
