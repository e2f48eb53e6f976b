//! How an attempt ended, for metrics and the log.

use crate::answer::Verdict;
use crate::metrics::AttemptResult;
use crate::upstream::{AttemptError, Failure, Outcome};

/// How an attempt ended, for metrics and the log.
pub(super) fn result_of(outcome: &Outcome) -> AttemptResult {
    match outcome {
        Outcome::Answered(answered) => match answered.verdict {
            Verdict::Success(_) => AttemptResult::Ok,
            Verdict::Exception => AttemptResult::Exception,
            Verdict::Error => AttemptResult::Error,
            Verdict::Throttled => AttemptResult::Throttled,
            Verdict::Garbage | Verdict::Ambiguous => AttemptResult::Garbage,
            Verdict::Http5xx => AttemptResult::Http5xx,
            Verdict::HttpOther => AttemptResult::HttpOther,
        },
        Outcome::NotSent(_) | Outcome::Unknown(_) => match outcome.error().map(AttemptError::failure) {
            Some(Failure::Dns | Failure::DnsTimeout) => AttemptResult::Dns,
            Some(Failure::Refused | Failure::Unroutable | Failure::ConnectTimeout | Failure::Connect) => {
                AttemptResult::Connect
            }
            Some(
                Failure::ProxyUnreachable
                | Failure::ProxyUnauthenticated
                | Failure::ProxyRejected
                | Failure::ProxyTimeout,
            ) => AttemptResult::Proxy,
            Some(
                Failure::CertificateExpired
                | Failure::CertificateNotYetValid
                | Failure::CertificateUnknownCa
                | Failure::CertificateWrongName
                | Failure::Certificate
                | Failure::TlsAlert
                | Failure::Tls
                | Failure::TlsTimeout,
            ) => AttemptResult::Tls,
            Some(Failure::Timeout) => AttemptResult::Timeout,
            Some(Failure::Redirect) => AttemptResult::HttpOther,
            Some(
                Failure::Oversized
                | Failure::NotHttp
                | Failure::TransferCoding
                | Failure::NotJson
                | Failure::Compressed,
            ) => AttemptResult::Garbage,
            Some(Failure::Reset | Failure::Incomplete) | None => AttemptResult::Reset,
        },
    }
}
