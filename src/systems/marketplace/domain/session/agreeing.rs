//! What a model asks for must agree with what the person said, as far as the parser reads that for sure.

use jiff::Timestamp;

use super::{Author, State};
use crate::systems::marketplace::domain::language::{self, Home, Intent};
use crate::systems::marketplace::domain::messages::Asked;
use crate::systems::marketplace::domain::schedule::When;

/// What differs from the last message that names a service. `None`: nothing does, or the parser cannot read it.
pub(super) fn difference(state: &State, asked: &Asked, now: Timestamp) -> Option<&'static str> {
    let tz = state.tz();
    let currency = state.currency.as_deref();
    let home = Home { tz: &tz, currency, locale: &state.locale, offers: &[] };
    let users = state.recent.iter().filter(|line| line.author == Author::User);
    let said = users.rev().filter_map(|line| line.content.reveal());
    let heard = said.map(|content| language::understand(content, now, &home));
    let named = |(_, heard): &(usize, language::Understanding)| {
        heard.intent == Intent::Request && heard.service.is_some()
    };
    let (n, heard) = heard.enumerate().find(named)?;
    if heard.service != Some(asked.service) {
        return Some("the service");
    }
    // What was said afterwards may have changed the rest.
    if n > 0 || !language::missing(&heard).is_empty() {
        return None;
    }
    let is_within =
        |said: When| said.earliest <= asked.when.earliest && asked.when.latest <= said.latest;
    if !heard.when.is_none_or(is_within) {
        return Some("the time");
    }
    let elsewhere = heard.place.is_some_and(|place| place.city != asked.place.city);
    if elsewhere {
        return Some("the place");
    }
    let dearer = heard.budget.is_some_and(|budget| {
        asked.budget.as_ref().is_none_or(|asked| {
            asked.currency != budget.currency || asked.amount_minor > budget.amount_minor
        })
    });
    dearer.then_some("the budget")
}
