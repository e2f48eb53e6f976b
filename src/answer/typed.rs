//! What the typed API makes of an answer.

use once_cell::race::OnceBox;

use super::coupons::{CouponList, Rules};
use super::{Answer, MAX_DEPTH, MAX_LOGGED_BODY, Reader, Verdict, pointers, text};
use crate::clock::Wall;

/// Most characters of the platform's message that are passed on.
const MAX_MESSAGE: usize = 500;

/// The typed form of an answer.
#[derive(Debug)]
pub enum Typed {
    /// A success.
    Coupons(CouponList),
    /// A business exception, or an error of the platform.
    Failure(PlatformFailure),
    /// The list would take more memory than an answer of the platform may.
    TooLarge,
}

/// What the platform says in place of coupons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatformFailure {
    /// Whether it is a business exception: the same question will get the same answer.
    pub is_exception: bool,
    /// The platform's `code`.
    pub code: Option<String>,
    /// The platform's `message`.
    pub message: Option<String>,
}

/// The typed form of an answer, once it was asked for: a pointer, since few are. It follows from the answer, so that it plays no part
/// in comparisons.
#[derive(Debug, Default)]
pub struct TypedForm(OnceBox<Typed>);

impl Clone for TypedForm {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for TypedForm {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for TypedForm {}

impl TypedForm {
    /// The coupons, if it was made and has some.
    pub fn coupons(&self) -> Option<&CouponList> {
        match self.0.get()? {
            Typed::Coupons(coupons) => Some(coupons),
            Typed::Failure(_) | Typed::TooLarge => None,
        }
    }

    /// Bytes on the heap.
    pub(super) fn size(&self) -> usize {
        self.0.get().map_or(0, |typed| {
            size_of::<Typed>()
                + match typed {
                    Typed::Coupons(coupons) => coupons.size(),
                    Typed::Failure(failure) => {
                        [&failure.code, &failure.message].into_iter().flatten().map(String::len).sum()
                    }
                    Typed::TooLarge => 0,
                }
        })
    }
}

impl Reader {
    /// The typed form of an answer about a customer that was fetched at `fetched_at`, which may take `max_bytes`; and whether it was
    /// created by this call, so that the answer takes more memory than before. If several calls create it at the same moment, one of
    /// theirs is kept. An answer is about one customer.
    pub fn typed<'a>(
        &self,
        answer: &'a Answer,
        customer: &str,
        fetched_at: impl FnOnce() -> Wall,
        max_bytes: usize,
    ) -> (&'a Typed, bool) {
        let mut is_new = false;
        let typed = answer.typed.0.get_or_init(|| {
            is_new = true;
            Box::new(self.make_typed(answer, customer, fetched_at(), max_bytes))
        });
        (typed, is_new)
    }

    fn make_typed(&self, answer: &Answer, customer: &str, fetched_at: Wall, max_bytes: usize) -> Typed {
        match self.read(answer) {
            Verdict::Success(_) => {
                let rules = Rules { ends: &self.expires, utc_offset: self.utc_offset, max_bytes };
                let coupons = CouponList::read(&answer.body, rules, customer, fetched_at);
                coupons.map_or(Typed::TooLarge, Typed::Coupons)
            }
            verdict => Typed::Failure(PlatformFailure {
                is_exception: verdict == Verdict::Exception,
                code: answer.code(),
                message: message(answer),
            }),
        }
    }
}

fn message(answer: &Answer) -> Option<String> {
    let text = text(&answer.body).filter(|text| text.len() <= MAX_LOGGED_BODY)?;
    let message = pointers::texts(text, MAX_DEPTH, &["/message".to_owned()]).into_iter().next()?;
    Some(message.chars().take(MAX_MESSAGE).collect())
}
