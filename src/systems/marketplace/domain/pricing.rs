//! Prices of services, and the discount that the agent may give. Integers only; a quote is never below the floor.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::systems::marketplace::domain::money::Money;
use crate::systems::marketplace::domain::service::Service;

/// The unit of a price.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Per {
    /// The price is for the whole service.
    Service,
    /// The price is for each hour of `duration_minutes`.
    Hour,
}

/// One service that a provider sells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Offering {
    pub service: Service,
    pub price: Money,
    pub per: Per,
    #[schemars(range(min = 15, max = 720))]
    pub duration_minutes: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoQuote {
    /// Too expensive for the budget, with the lowest price that the agent could offer.
    OverBudget(Money),
    /// The budget is in a currency that this provider does not take.
    OtherCurrency,
}

impl Offering {
    /// The price without any discount, rounded up to a whole minor unit.
    pub fn list_price(&self) -> Money {
        let amount = match self.per {
            Per::Service => self.price.amount_minor,
            Per::Hour => ceil_div(
                self.price.amount_minor.saturating_mul(i64::from(self.duration_minutes)),
                60,
            ),
        };
        Money { amount_minor: amount, currency: self.price.currency.clone() }
    }

    /// The list price with the largest discount, rounded up in the provider's favour.
    pub fn floor_price(&self, max_discount_percent: u8) -> Money {
        let list = self.list_price();
        let keep = 100 - i64::from(max_discount_percent.min(100));
        Money { amount_minor: ceil_div(list.amount_minor.saturating_mul(keep), 100), ..list }
    }

    /// The list price if the budget allows it, else the budget itself if it is not below the floor, else no quote.
    pub fn quote(
        &self,
        budget: Option<&Money>,
        max_discount_percent: u8,
    ) -> Result<Money, NoQuote> {
        let list = self.list_price();
        let Some(budget) = budget else { return Ok(list) };
        if budget.currency != list.currency {
            return Err(NoQuote::OtherCurrency);
        }
        let floor = self.floor_price(max_discount_percent);
        if budget.amount_minor >= list.amount_minor {
            Ok(list)
        } else if budget.amount_minor >= floor.amount_minor {
            Ok(budget.clone())
        } else {
            Err(NoQuote::OverBudget(floor))
        }
    }
}

fn ceil_div(a: i64, b: i64) -> i64 {
    a / b + i64::from(a % b > 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn eur(amount_minor: i64) -> Money {
        Money { amount_minor, currency: "EUR".into() }
    }

    fn offering(amount_minor: i64, per: Per, duration_minutes: u16) -> Offering {
        Offering { service: Service::Haircut, price: eur(amount_minor), per, duration_minutes }
    }

    #[test]
    fn hourly_prices_are_rounded_up() {
        assert_eq!(offering(1_000, Per::Hour, 50).list_price(), eur(834));
        assert_eq!(offering(1_000, Per::Service, 50).list_price(), eur(1_000));
    }

    #[test]
    fn the_budget_is_met_down_to_the_floor() {
        let cut = offering(6_000, Per::Service, 45);
        assert_eq!(cut.quote(None, 10), Ok(eur(6_000)));
        assert_eq!(cut.quote(Some(&eur(9_000)), 10), Ok(eur(6_000)));
        assert_eq!(cut.quote(Some(&eur(5_500)), 10), Ok(eur(5_500)));
        assert_eq!(cut.quote(Some(&eur(5_399)), 10), Err(NoQuote::OverBudget(eur(5_400))));
        let pounds = Money { amount_minor: 9_000, currency: "GBP".into() };
        assert_eq!(cut.quote(Some(&pounds), 10), Err(NoQuote::OtherCurrency));
    }

    proptest! {
        #[test]
        fn no_quote_is_below_the_floor_or_above_list_or_budget(
            amount in 1i64..1_000_000_000,
            hourly: bool,
            duration in 15u16..=720,
            discount in 0u8..=100,
            budget in proptest::option::of(1i64..1_000_000_000),
        ) {
            let per = if hourly { Per::Hour } else { Per::Service };
            let offering = offering(amount, per, duration);
            let floor = offering.floor_price(discount).amount_minor;
            let list = offering.list_price().amount_minor;
            match offering.quote(budget.map(eur).as_ref(), discount) {
                Ok(price) => {
                    prop_assert!(floor <= price.amount_minor && price.amount_minor <= list);
                    prop_assert!(budget.is_none_or(|budget| price.amount_minor <= budget));
                }
                Err(NoQuote::OverBudget(lowest)) => {
                    prop_assert_eq!(lowest.amount_minor, floor);
                    prop_assert!(budget.is_some_and(|budget| budget < floor));
                }
                Err(NoQuote::OtherCurrency) => prop_assert!(false),
            }
        }
    }
}
