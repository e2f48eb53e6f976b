//! The shapes of the platform's answers: its document shows one, and its clients decode others.

use serde_json::{Value, json};

/// Coupons on a page at most.
const MAX_PAGE: usize = 50;

/// What `data` is in the answer to a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Shape {
    /// `{"list":[…],"total":n}`, as public clients decode it, with their names of members beside the document's.
    #[default]
    Paged,
    /// A list of coupons.
    List,
    /// One coupon, as in the platform's document.
    Object,
}

/// What status, code and the coupons' numbers are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Members {
    /// JSON booleans and numbers, as public clients decode them. Ids are strings all the same.
    #[default]
    Numbers,
    /// Strings, as in the platform's document.
    Strings,
}

/// How answers are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Format {
    /// What `data` is.
    pub shape: Shape,
    /// What the members are.
    pub members: Members,
}

impl Format {
    /// The text of an answer.
    pub(super) fn answer(self, status: bool, code: u32, message: &str, data: Option<&Value>) -> String {
        let mut answer = match self.members {
            Members::Numbers => json!({ "status": status, "code": code, "message": message }),
            Members::Strings => json!({ "status": status.to_string(), "code": code.to_string(), "message": message }),
        };
        if let Some(data) = data {
            add(&mut answer, "data", data.clone());
        }
        answer.to_string()
    }

    /// A coupon, whose members are all strings.
    pub(super) fn coupon(self, mut coupon: Value) -> Value {
        if self.shape == Shape::Paged {
            for (name, other) in [("couponId", "couponNo"), ("title", "templateName"), ("endAt", "endTime")] {
                let value = coupon.get(name).cloned().unwrap_or_default();
                add(&mut coupon, other, value);
            }
        }
        if self.members == Members::Numbers {
            for name in ["couponType", "useStatus"] {
                let number: Option<u64> = coupon.get(name).and_then(|text| text.as_str()?.parse().ok());
                add(&mut coupon, name, number.into());
            }
        }
        coupon
    }

    /// The `data` of a page of coupons.
    pub(super) fn page(self, coupons: Vec<Value>, page: Page) -> Value {
        let total = coupons.len();
        let mut list =
            coupons.into_iter().skip(page.number.saturating_sub(1).saturating_mul(page.size)).take(page.size);
        match self.shape {
            Shape::Paged => {
                json!({ "list": list.map(|coupon| self.coupon(coupon)).collect::<Vec<_>>(), "total": total })
            }
            Shape::List => list.map(|coupon| self.coupon(coupon)).collect(),
            Shape::Object => list.next().map_or(Value::Null, |coupon| self.coupon(coupon)),
        }
    }

    /// Changes what the members of an object name.
    pub(super) fn update(&mut self, wanted: &Value) -> Result<(), String> {
        let wanted = wanted.as_object().ok_or("expected a JSON object")?;
        for (name, value) in wanted {
            match name.as_str() {
                "shape" => self.shape = parse(name, value)?,
                "members" => self.members = parse(name, value)?,
                _ => return Err(format!("unknown member {name:?}; expected shape or members")),
            }
        }
        Ok(())
    }

    pub(super) fn shown(self) -> Value {
        json!({ "shape": name(&self.shape), "members": name(&self.members) })
    }
}

fn add(object: &mut Value, name: &str, value: Value) {
    if let Value::Object(members) = object {
        members.insert(name.to_owned(), value);
    }
}

/// Which of a customer's coupons are asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Page {
    number: usize,
    size: usize,
}

impl Page {
    /// The page of this number, from 1 on, of so many coupons; without them, the first one.
    pub(super) fn new(number: Option<usize>, size: Option<usize>) -> Self {
        Self { number: number.unwrap_or(1).max(1), size: size.unwrap_or(MAX_PAGE).clamp(1, MAX_PAGE) }
    }
}

/// A value by its name.
pub(super) fn parse<E: clap::ValueEnum>(member: &str, value: &Value) -> Result<E, String> {
    E::from_str(value.as_str().unwrap_or_default(), false).map_err(|_| {
        let names: Vec<_> = E::value_variants().iter().map(name).collect();
        format!("{member}: unknown: {value}; expected one of {}", names.join(", "))
    })
}

/// The name of a value.
pub(super) fn name(value: &impl clap::ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}
