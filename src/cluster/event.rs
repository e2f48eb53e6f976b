//! Messages between replicas: a line of text, whose first word is the version of the protocol.

use std::time::Duration;

use crate::clock::millis;

/// The version of the protocol: of messages, keys and scripts. Replicas of different versions do not act as one.
pub(super) const VERSION: &str = "2";
/// In place of subjects: all of a merchant.
const EVERYBODY: &str = "*";

/// A message to all replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event<'a> {
    /// What is known of subjects from before this is not served any more.
    Ended {
        /// The number of this among its sender's; the sender waits for an acknowledgement.
        number: u64,
        /// The merchant, by the hash of its `open_id`.
        merchant: &'a str,
        /// The subjects, by their names; `None`: all.
        subjects: Option<Vec<&'a str>>,
        /// How long the platform may lag.
        settle: Duration,
        /// Whether the sender has an answer that is newer than this: it drops nothing itself.
        is_superseded: bool,
    },
    /// A fetch that others waited for ended, of the answer to this question.
    Completed(&'a str),
    /// The platform throttled a call of this pace.
    Throttled(&'a str),
    /// The platform asked for a pause of this pace.
    Pause(&'a str, Duration),
}

impl<'a> Event<'a> {
    /// As a message of a sender.
    pub(super) fn encode(&self, sender: &str) -> String {
        match self {
            Self::Ended { number, merchant, subjects, settle, is_superseded } => {
                let what = if *is_superseded { "superseded" } else { "ended" };
                let mut text = format!("{VERSION} {sender} {what} {number} {merchant} {}", millis(*settle));
                for subject in subjects.iter().flatten().copied().chain(subjects.is_none().then_some(EVERYBODY)) {
                    text.push(' ');
                    text.push_str(subject);
                }
                text
            }
            Self::Completed(question) => format!("{VERSION} {sender} completed {question}"),
            Self::Throttled(pace) => format!("{VERSION} {sender} throttled {pace}"),
            Self::Pause(pace, pause) => format!("{VERSION} {sender} pause {pace} {}", millis(*pause)),
        }
    }

    /// A message and its sender; `None` if it is none of this version.
    pub(super) fn decode(text: &'a str) -> Option<(&'a str, Self)> {
        let mut words = text.split(' ');
        if words.next()? != VERSION {
            return None;
        }
        let sender = words.next()?;
        let event = match words.next()? {
            what @ ("ended" | "superseded") => {
                let (number, merchant) = (words.next()?.parse().ok()?, words.next()?);
                let settle = Duration::from_millis(words.next()?.parse().ok()?);
                let subjects: Vec<&str> = words.by_ref().collect();
                let subjects = if subjects == [EVERYBODY] { None } else { Some(subjects) };
                Self::Ended { number, merchant, subjects, settle, is_superseded: what == "superseded" }
            }
            "completed" => Self::Completed(words.next()?),
            "throttled" => Self::Throttled(words.next()?),
            "pause" => {
                let pace = words.next()?;
                Self::Pause(pace, Duration::from_millis(words.next()?.parse().ok()?))
            }
            _ => return None,
        };
        words.next().is_none().then_some((sender, event))
    }
}

/// The acknowledgement of an end, as a message to its sender.
pub(super) fn encode_acknowledgement(number: u64, member: &str) -> String {
    format!("{number} {member}")
}

/// The number of the end that is acknowledged, and by whom.
pub(super) fn decode_acknowledgement(text: &str) -> Option<(u64, &str)> {
    let (number, member) = text.split_once(' ')?;
    Some((number.parse().ok()?, member))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn word() -> impl Strategy<Value = String> {
        "[A-Za-z0-9_-]{1,22}"
    }

    proptest! {
        #[test]
        fn an_event_is_decoded_as_it_was_encoded(
            sender in word(),
            (number, settle) in (any::<u64>(), 0u64..1 << 40),
            names in proptest::collection::vec(word(), 1..5),
            kind in 0..5,
        ) {
            let span = Duration::from_millis(settle);
            let subjects = (kind == 0).then(|| names.iter().map(String::as_str).collect());
            let event = match kind {
                0 | 1 => {
                    let is_superseded = names.len() % 2 == 1;
                    Event::Ended { number, merchant: &names[0], subjects, settle: span, is_superseded }
                }
                4 => Event::Completed(&names[0]),
                2 => Event::Throttled(&names[0]),
                _ => Event::Pause(&names[0], span),
            };
            let text = event.encode(&sender);
            prop_assert_eq!(Event::decode(&text), Some((sender.as_str(), event)));
        }

        #[test]
        fn no_text_breaks_the_decoder(text in "[ 2a-z0-9*]{0,40}") {
            let _ = (Event::decode(&text), decode_acknowledgement(&text));
        }
    }

    #[test]
    fn messages_of_other_versions_are_not_understood() {
        assert!(Event::decode("2 a throttled p").is_some());
        for other in ["1 a throttled p", "2 a throttled", "2 a throttled p q", "2 a pause p x", "2 a other p", ""] {
            assert_eq!(Event::decode(other), None, "{other}");
        }
        assert_eq!(decode_acknowledgement(&encode_acknowledgement(7, "m")), Some((7, "m")));
    }
}
