//! The platform's customers and their coupons: invented for any id, changed by writes, and ended by the clock.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Value, json};
use time::format_description::BorrowedFormatItem;
use time::{OffsetDateTime, UtcOffset, macros::format_description};

use crate::clock::Wall;

/// China Standard Time, which the platform writes dates in.
const CHINA_SECONDS: i64 = 8 * 3600;
const DAY: i64 = 24 * 3600;
const DATE: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");
/// Customers that are remembered; for further ones the answer is that the sandbox is full.
const MAX_CUSTOMERS: usize = 1_000_000;
const TITLES: [&str; 4] = ["满30减5元券", "8折券", "中杯兑换券", "免配送费券"];

/// What can be done to a coupon behind the gateway's back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Issue,
    Use,
    Freeze,
    Give,
    /// All coupons are removed.
    Clear,
}

#[derive(Clone, Debug)]
struct Coupon {
    card_id: u64,
    coupon_id: u64,
    title: &'static str,
    kind: u64,
    begin: i64,
    end: i64,
    status: u8,
}

#[derive(Debug)]
struct Customer {
    coupons: Vec<Coupon>,
    /// Counts the changes, and goes into every coupon's `extra`: a reader can see which version of the list it got.
    version: u64,
}

#[derive(Debug)]
struct Redemption {
    customer: String,
    cards: Vec<u64>,
}

/// All customers.
#[derive(Debug)]
pub(super) struct Coupons {
    customers: HashMap<String, Customer>,
    owners: HashMap<u64, String>,
    redemptions: HashMap<String, Redemption>,
    /// The beginning of the day, in China, on which the sandbox started.
    today: i64,
    issued: u64,
}

/// Why nothing was done: a business exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exception {
    pub(super) code: u32,
    pub(super) message: &'static str,
}

pub(super) const NOT_FOUND: Exception = Exception { code: 200_001, message: "查询的信息不存在 (not found)" };
const NOT_USABLE: Exception = Exception { code: 200_002, message: "券不可用 (coupon cannot be used)" };
const FULL: Exception = Exception { code: 200_003, message: "沙箱已满 (the sandbox is full)" };

impl Coupons {
    pub(super) fn new(now: Wall) -> Self {
        let today = (now.unix_seconds() + CHINA_SECONDS).div_euclid(DAY) * DAY - CHINA_SECONDS;
        Self { customers: HashMap::new(), owners: HashMap::new(), redemptions: HashMap::new(), today, issued: 0 }
    }

    /// A customer's coupons, by status and by card where they are asked for; there may be none.
    pub(super) fn list(
        &mut self,
        customer: &str,
        status: Option<&str>,
        card: Option<&str>,
        now: Wall,
    ) -> Result<Vec<Value>, Exception> {
        let known = self.customer(customer)?;
        let fits = |coupon: &&Coupon| {
            status.is_none_or(|status| coupon.status_at(now).to_string() == status)
                && card.is_none_or(|card| coupon.card_id.to_string() == card)
        };
        Ok(known.coupons.iter().filter(fits).map(|coupon| coupon.shown(customer, known.version, now)).collect())
    }

    /// Redeems cards, all or none.
    pub(super) fn redeem(
        &mut self,
        biz_id: &str,
        customer: Option<&str>,
        cards: &[String],
        now: Wall,
    ) -> Result<Value, Exception> {
        if let Some(customer) = customer {
            self.customer(customer)?;
        }
        let cards: Vec<u64> = cards.iter().map_while(|card| card.parse().ok()).collect();
        let owner = cards.first().and_then(|card| self.owners.get(card)).cloned().ok_or(NOT_FOUND)?;
        let known = self.customers.get_mut(&owner).ok_or(NOT_FOUND)?;
        let usable = |card: &u64| known.coupons.iter().any(|one| one.card_id == *card && one.status_at(now) == 0);
        if customer.is_some_and(|customer| customer != owner) || !cards.iter().all(usable) {
            return Err(NOT_USABLE);
        }
        known.set(&cards, 1);
        let redemption = Redemption { customer: owner, cards };
        let shown = redemption.shown(biz_id);
        self.redemptions.insert(biz_id.to_owned(), redemption);
        Ok(shown)
    }

    /// Undoes a redemption.
    pub(super) fn reverse(&mut self, biz_id: &str) -> Result<Value, Exception> {
        let redemption = self.redemptions.remove(biz_id).ok_or(NOT_FOUND)?;
        let known = self.customers.get_mut(&redemption.customer).ok_or(NOT_FOUND)?;
        known.set(&redemption.cards, 0);
        Ok(redemption.shown(biz_id))
    }

    /// Changes a customer's coupons as marketing, an order or the customer would: the first unused one, unless a card
    /// is named. A new one ends after `lasts`.
    pub(super) fn change(
        &mut self,
        customer: &str,
        change: Change,
        card: Option<&str>,
        lasts: Duration,
        now: Wall,
    ) -> Result<Value, Exception> {
        self.issued += 1;
        let serial = self.issued;
        self.customer(customer)?;
        let known = self.customers.get_mut(customer).ok_or(FULL)?;
        let status = match change {
            Change::Issue => {
                let end = now.unix_seconds() + i64::try_from(lasts.as_secs()).unwrap_or(i64::MAX / 2);
                let card_id = 800_000_000_000_000_000 + serial;
                known.coupons.push(Coupon::new(card_id, serial, now.unix_seconds(), end));
                known.version += 1;
                self.owners.insert(card_id, customer.to_owned());
                return known.coupons.last().map(|new| new.shown(customer, known.version, now)).ok_or(FULL);
            }
            Change::Clear => {
                known.coupons.clear();
                known.version += 1;
                return Ok(json!({}));
            }
            Change::Use => 1,
            Change::Freeze => 2,
            Change::Give => 4,
        };
        let fits = |one: &&Coupon| match card {
            Some(card) => one.card_id.to_string() == card,
            None => one.status_at(now) == 0,
        };
        let card_id = known.coupons.iter().find(fits).ok_or(NOT_FOUND)?.card_id;
        known.set(&[card_id], status);
        let changed = known.coupons.iter().find(|one| one.card_id == card_id).ok_or(NOT_FOUND)?;
        Ok(changed.shown(customer, known.version, now))
    }

    fn customer(&mut self, id: &str) -> Result<&Customer, Exception> {
        if !self.customers.contains_key(id) {
            if self.customers.len() >= MAX_CUSTOMERS {
                return Err(FULL);
            }
            let coupons = invent(id, self.today);
            self.owners.extend(coupons.iter().map(|coupon| (coupon.card_id, id.to_owned())));
            self.customers.insert(id.to_owned(), Customer { coupons, version: 0 });
        }
        self.customers.get(id).ok_or(FULL)
    }
}

/// The coupons of a customer that is new to the sandbox: the same ones for a whole day.
fn invent(id: &str, today: i64) -> Vec<Coupon> {
    // FNV-1a: small, well known, and the same in every build.
    let seed =
        id.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, b| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let mut random = fastrand::Rng::with_seed(seed);
    (0..random.u64(2..=5))
        .map(|place| {
            let end = today + random.i64(2..60) * DAY - 1;
            let card_id = 390_000_000_000_000_000 + random.u64(0..90_000_000_000_000_000) / 8 * 8 + place;
            Coupon::new(card_id, random.u64(..), today - random.i64(1..30) * DAY, end)
        })
        .collect()
}

impl Customer {
    fn set(&mut self, cards: &[u64], status: u8) {
        self.version += 1;
        for coupon in self.coupons.iter_mut().filter(|coupon| cards.contains(&coupon.card_id)) {
            coupon.status = status;
        }
    }
}

impl Redemption {
    fn shown(&self, biz_id: &str) -> Value {
        let cards: Vec<String> = self.cards.iter().map(u64::to_string).collect();
        json!({ "bizId": biz_id, "cardIdList": cards, "userInfo": { "customer_id": self.customer } })
    }
}

impl Coupon {
    fn new(card_id: u64, seed: u64, begin: i64, end: i64) -> Self {
        let title = usize::try_from(seed % 4).ok().and_then(|place| TITLES.get(place)).copied().unwrap_or_default();
        Self { card_id, coupon_id: card_id + 21_073_519, title, kind: seed % 9, begin, end, status: 0 }
    }

    fn status_at(&self, now: Wall) -> u8 {
        if self.status == 0 && self.end <= now.unix_seconds() { 6 } else { self.status }
    }

    fn shown(&self, customer: &str, version: u64, now: Wall) -> Value {
        json!({
            "beginAt": date(self.begin),
            "cardId": self.card_id.to_string(),
            "channel": "sandbox",
            "couponId": self.coupon_id.to_string(),
            "couponType": self.kind.to_string(),
            "createdAt": date(self.begin),
            "customerId": customer,
            "title": self.title,
            "updatedAt": date(self.begin),
            "useStatus": self.status_at(now).to_string(),
            "templateId": "895",
            "endAt": date(self.end),
            "extra": format!("version={version}"),
        })
    }
}

fn date(seconds: i64) -> String {
    let china = UtcOffset::from_whole_seconds(i32::try_from(CHINA_SECONDS).unwrap_or(0)).unwrap_or(UtcOffset::UTC);
    let moment = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH).to_offset(china);
    moment.format(DATE).unwrap_or_default()
}
