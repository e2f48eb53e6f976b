//! The faults that the sandbox can inject.

use std::time::Duration;

use serde_json::{Value, json};

use super::shape::{name, parse};

/// A fault in an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Fault {
    /// None.
    #[default]
    None,
    /// Code 110004, as for too many calls.
    Throttle,
    /// HTTP 500.
    Http500,
    /// HTTP 503 with `Retry-After`.
    Http503,
    /// A redirection.
    Redirect,
    /// `status` false.
    Error,
    /// A business exception: `status` true, and a code.
    Exception,
    /// No answer, ever.
    Hang,
    /// The connection is reset once the request was carried out.
    Reset,
    /// The connection ends in the middle of the answer.
    Truncate,
    /// HTTP 200 with what is not JSON.
    Garbage,
}

impl Fault {
    /// Whether what was asked is done all the same, and only its answer is missing or wrong.
    pub(super) const fn carries_out(self) -> bool {
        match self {
            Self::None | Self::Http500 | Self::Hang | Self::Reset | Self::Truncate | Self::Garbage => true,
            Self::Throttle | Self::Http503 | Self::Redirect | Self::Error | Self::Exception => false,
        }
    }
}

/// How the sandbox misbehaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults {
    /// What is done to answers.
    pub fault: Fault,
    /// To every so many-th of them.
    pub every: u64,
    /// How many more times; `None`: until it is changed.
    pub times: Option<u64>,
    /// On this path only.
    pub route: Option<String>,
    /// How long every answer takes.
    pub latency: Duration,
    /// How long at most a request is on its way before it is counted, at random.
    pub jitter: Duration,
    /// How far the platform's clock is ahead, in seconds: in `Date`, and in judging timestamps.
    pub clock_skew: i64,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            fault: Fault::None,
            every: 1,
            times: None,
            route: None,
            latency: Duration::ZERO,
            jitter: Duration::ZERO,
            clock_skew: 0,
        }
    }
}

impl Faults {
    /// The fault for the `number`-th answer on a path.
    pub(super) fn strike(&mut self, path: &str, number: u64) -> Fault {
        let meant = self.route.as_deref().is_none_or(|route| route == path) && number.is_multiple_of(self.every.max(1));
        match &mut self.times {
            _ if !meant || self.fault == Fault::None => Fault::None,
            None => self.fault,
            Some(0) => Fault::None,
            Some(left) => {
                *left -= 1;
                self.fault
            }
        }
    }

    /// Changes what the members of an object name.
    pub(super) fn update(&mut self, wanted: &Value) -> Result<(), String> {
        let wanted = wanted.as_object().ok_or("expected a JSON object")?;
        for (name, value) in wanted {
            let number = || value.as_u64().ok_or(format!("{name}: expected a whole number"));
            match name.as_str() {
                "fault" => self.fault = parse(name, value)?,
                "every" => self.every = number()?,
                "times" if value.is_null() => self.times = None,
                "times" => self.times = Some(number()?),
                "route" if value.is_null() => self.route = None,
                "route" => self.route = Some(value.as_str().ok_or("route: expected a path")?.to_owned()),
                "latency_ms" => self.latency = Duration::from_millis(number()?),
                "jitter_ms" => self.jitter = Duration::from_millis(number()?),
                "clock_skew_s" => self.clock_skew = value.as_i64().ok_or("clock_skew_s: expected a whole number")?,
                _ => {
                    return Err(format!(
                        "unknown member {name:?}; expected fault, every, times, route, latency_ms, jitter_ms or clock_skew_s"
                    ));
                }
            }
        }
        Ok(())
    }

    pub(super) fn shown(&self) -> Value {
        json!({
            "fault": name(&self.fault),
            "every": self.every,
            "times": self.times,
            "route": self.route,
            "latency_ms": u64::try_from(self.latency.as_millis()).unwrap_or(u64::MAX),
            "jitter_ms": u64::try_from(self.jitter.as_millis()).unwrap_or(u64::MAX),
            "clock_skew_s": self.clock_skew,
        })
    }
}
