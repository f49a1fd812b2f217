//! The acts on existing offers, requests and bookings, on the user's word.
//!
//! Three functions bind: [`Turn::accept_offer`], [`Turn::cancel_request`] and [`Turn::cancel_booking`]. Only a sentence
//! of the closed form, or a "yes" to an act that was read back, reaches them.

use jiff::Timestamp;
use serde_json::json;

use super::talk::{Said, Turn};
use super::{Current, OfferSummary, Pending, Session, words};
use crate::kernel::entity::{Decision, Effect};
use crate::systems::marketplace::domain::language::{self, Thing, Understanding, Which};
use crate::systems::marketplace::domain::messages::{
    AcceptOffer, CancelForConsumer, RequestCancellation,
};
use crate::systems::marketplace::domain::money::Money;
use crate::systems::marketplace::domain::places::Place;
use crate::systems::marketplace::domain::request::Status;
use crate::systems::marketplace::domain::service::Service;

/// The result of a sentence about an existing thing.
enum Meant<'a, T> {
    This(&'a Current, T),
    /// The sentence is near enough to an act for the agent to read the act back.
    Perhaps(&'a Current, T),
    /// The agent's question, or the reason why the act is impossible.
    Unclear(String),
}

/// A request or booking that can be cancelled.
enum Live<'a> {
    Request,
    Booking(&'a str),
}

fn cheapest(shown: &[OfferSummary]) -> Option<&OfferSummary> {
    shown.iter().reduce(|a, b| if b.costs_less(a) { b } else { a })
}

fn best_of(shown: &[OfferSummary]) -> Option<&OfferSummary> {
    shown.iter().reduce(|a, b| if b.score > a.score { b } else { a })
}

impl Said<'_> {
    /// The contradictions between the message and `offer`, which was offered or booked.
    fn differs_from(
        &self,
        request: &Current,
        offer: Option<&OfferSummary>,
        now: Timestamp,
    ) -> Option<&'static str> {
        let none = Understanding::default();
        let asked = request.asked.as_ref().unwrap_or(&none);
        let said = language::in_the_light_of(asked, self.content, now, self.home);
        let timed = self.heard.when.is_some() || self.heard.hour.is_some() || said.hour.is_some();
        let is = offer.map(|offer| offer.starts_at).or(asked.when.map(|when| when.earliest));
        let same =
            |is: Timestamp| said.when.is_some_and(|when| when.earliest <= is && is <= when.latest);
        if timed && !is.is_some_and(same) {
            return Some("the time");
        }
        let dear = |money: &Money| {
            offer.is_none_or(|offer| {
                offer.price.currency != money.currency
                    || offer.price.amount_minor > money.amount_minor
            })
        };
        if self.heard.budget.as_ref().is_some_and(dear) {
            return Some("the price");
        }
        let elsewhere = |place: &Place| {
            asked.place.as_ref().is_none_or(|asked| {
                place.city != asked.city || place.name != asked.name && place.name != place.city
            })
        };
        self.heard.place.as_ref().is_some_and(elsewhere).then_some("the place")
    }
}

impl<'a> Turn<'a> {
    fn open(&self, service: Option<Service>) -> Vec<&'a Current> {
        let open = self.state.requests.iter().filter(|request| {
            request.status == Status::Open && service.is_none_or(|wanted| wanted == request.service)
        });
        open.collect()
    }

    pub fn has_offers(&self) -> bool {
        self.open(None).iter().any(|request| !request.shown.is_empty())
    }

    fn offer_meant(&self, which: Which, service: Option<Service>) -> Meant<'a, &'a OfferSummary> {
        let open = self.open(service);
        let request = match open[..] {
            [] => return Meant::Unclear(words::nothing_to_accept()),
            [request] => request,
            _ => return Meant::Unclear(words::which_request(&open)),
        };
        let shown = &request.shown;
        let (offer, sure) = match which {
            Which::It => (shown.first().filter(|_| shown.len() == 1), true),
            Which::Nth(n) => (usize::from(n).checked_sub(1).and_then(|n| shown.get(n)), true),
            Which::Cheapest => (cheapest(shown), request.complete),
            Which::Best => (best_of(shown), false),
        };
        match offer {
            None => Meant::Unclear(words::which_offer(shown)),
            Some(offer) if sure => Meant::This(request, offer),
            Some(offer) => Meant::Perhaps(request, offer),
        }
    }

    pub fn accept(
        self,
        which: Which,
        service: Option<Service>,
        content: &str,
    ) -> Decision<Session> {
        let meant = self.offer_meant(which, service);
        // "Yes, take it" accepts an offer that was read back. Without the "yes" it is read back again.
        if let (Which::It, Some(Pending::Accept { request_id, offer_id }), Meant::Unclear(_)) =
            (which, &self.state.pending, &meant)
        {
            if language::says_yes(content) {
                return self.accept_offer(request_id, offer_id);
            }
            return self.nod();
        }
        match meant {
            Meant::This(request, offer) => self.accept_offer(&request.request_id, &offer.offer_id),
            Meant::Perhaps(request, offer) => self.read_offer_back(request, offer),
            Meant::Unclear(words) => self.say(words, json!({})),
        }
    }

    fn accept_offer(self, request_id: &str, offer_id: &str) -> Decision<Session> {
        let accept = AcceptOffer { offer_id: offer_id.into() };
        let data = json!({"request_id": request_id, "offer_id": offer_id});
        self.effect(Effect::send(request_id, &accept)).say(words::accepting(), data)
    }

    fn read_offer_back(self, request: &Current, offer: &OfferSummary) -> Decision<Session> {
        let pending = Pending::Accept {
            request_id: request.request_id.clone(),
            offer_id: offer.offer_id.clone(),
        };
        self.read_back(words::shall_i_accept(request, offer), pending)
    }

    /// Answers a message that speaks of the offers and does not accept one.
    pub fn talk_of_offers(
        self,
        which: Option<Which>,
        hesitates: bool,
        said: &Said<'_>,
    ) -> Decision<Session> {
        let open = self.open(None);
        if hesitates {
            let request = open.iter().rfind(|request| !request.shown.is_empty());
            let best = request.zip(which).filter(|_| said.content.contains('?'));
            let best = best.and_then(|(request, which)| match which {
                Which::Cheapest => cheapest(&request.shown).map(words::cheapest),
                Which::Best => best_of(&request.shown).map(words::best),
                _ => None,
            });
            let nothing = words::nothing_accepted(&open);
            let content = best.map_or(nothing.clone(), |best| format!("{best} {nothing}"));
            return self.say(content, json!({}));
        }
        if let Some(words) = &said.heard.aside {
            let content = words::not_accepted(words, &words::nothing_accepted(&open));
            return self.say(content, json!({}));
        }
        match self.offer_meant(which.unwrap_or(Which::It), said.heard.service) {
            Meant::This(request, offer) | Meant::Perhaps(request, offer) => {
                match said.differs_from(request, Some(offer), self.said_at) {
                    Some(what) => self.say(words::other_offer(what, request, offer), json!({})),
                    None => self.read_offer_back(request, offer),
                }
            }
            Meant::Unclear(words) => self.say(words, json!({})),
        }
    }

    fn live(&self, request: &'a Current) -> Option<Live<'a>> {
        if request.status.is_searching() {
            return Some(Live::Request);
        }
        request.booking(self.cx.now).map(Live::Booking)
    }

    fn cancel_meant(&self, thing: Thing, service: Option<Service>) -> Meant<'a, Live<'a>> {
        let all = self.state.requests.iter();
        let named = all.filter(|request| service.is_none_or(|service| service == request.service));
        let live: Vec<(&Current, Live<'_>)> =
            named.filter_map(|request| Some((request, self.live(request)?))).collect();
        let fits = |(_, live): &(&Current, Live<'_>)| match (thing, live) {
            (Thing::Any, _) => true,
            (Thing::Request | Thing::Search, live) => matches!(live, Live::Request),
            (Thing::Booking, live) => matches!(live, Live::Booking(_)),
        };
        let meant = live.iter().filter(|live| fits(live)).count();
        let all = live.len();
        let requests: Vec<&Current> = live.iter().map(|(request, _)| *request).collect();
        let exact = match meant {
            0 => all == 1 && thing != Thing::Search,
            1 => true,
            _ => false,
        };
        if !exact {
            return Meant::Unclear(if all == 0 || meant == 0 && thing == Thing::Search {
                let accepting = self.state.requests.iter().any(|r| r.status == Status::Accepting);
                if accepting { words::being_confirmed() } else { words::nothing_to_cancel() }
            } else {
                words::which_to_cancel(&requests)
            });
        }
        let found = live.into_iter().find(|live| meant == 0 || fits(live));
        match found {
            None => Meant::Unclear(words::nothing_to_cancel()),
            Some((request, live)) => {
                let named = service.is_some() || thing != Thing::Any;
                let sure = meant == 1 && (named || matches!(live, Live::Request));
                if sure { Meant::This(request, live) } else { Meant::Perhaps(request, live) }
            }
        }
    }

    pub fn cancel(self, thing: Thing, service: Option<Service>) -> Decision<Session> {
        let meant = self.cancel_meant(thing, service);
        // The draft of a request that was not submitted yet.
        if let Some(draft) = &self.state.draft
            && thing != Thing::Booking
            && service.is_none_or(|service| draft.service == Some(service))
        {
            return match (&meant, thing) {
                (Meant::Unclear(_), _) if self.is_idle(service) => self.forget(),
                (_, Thing::Any) => self.say(words::draft_or_request(draft.service), json!({})),
                _ => self.cancel_as_meant(meant),
            };
        }
        self.cancel_as_meant(meant)
    }

    /// Whether there is something that could be cancelled.
    pub fn has_live(&self) -> bool {
        self.state.requests.iter().any(|request| self.live(request).is_some())
    }

    fn is_idle(&self, service: Option<Service>) -> bool {
        !self.state.requests.iter().any(|request| {
            service.is_none_or(|service| service == request.service) && self.live(request).is_some()
        })
    }

    fn cancel_as_meant(self, meant: Meant<'_, Live<'_>>) -> Decision<Session> {
        match meant {
            Meant::This(request, Live::Request) => self.cancel_request(&request.request_id),
            Meant::This(request, Live::Booking(id)) => self.cancel_booking(&request.request_id, id),
            Meant::Perhaps(request, live) => self.read_cancelling_back(request, &live),
            Meant::Unclear(words) => self.say(words, json!({})),
        }
    }

    fn cancel_request(self, request_id: &str) -> Decision<Session> {
        let cancel = RequestCancellation { reason: None };
        let data = json!({"request_id": request_id});
        self.effect(Effect::send(request_id, &cancel)).say(words::cancelling(), data)
    }

    fn cancel_booking(self, request_id: &str, booking_id: &str) -> Decision<Session> {
        let cancel = CancelForConsumer { reason: None };
        let data = json!({"request_id": request_id, "booking_id": booking_id});
        self.effect(Effect::send(booking_id, &cancel)).say(words::cancelling_booking(), data)
    }

    fn read_cancelling_back(self, request: &Current, live: &Live<'_>) -> Decision<Session> {
        let request_id = request.request_id.clone();
        match live {
            Live::Request => {
                let pending = Pending::CancelRequest { request_id };
                self.read_back(words::shall_i_cancel(request), pending)
            }
            Live::Booking(id) => {
                let pending = Pending::CancelBooking { request_id, booking_id: (*id).into() };
                self.read_back(words::shall_i_cancel_booking(request), pending)
            }
        }
    }

    /// Answers a message that speaks of cancelling and does not cancel.
    pub fn talk_of_cancelling(
        self,
        thing: Thing,
        service: Option<Service>,
        hesitates: bool,
        said: &Said<'_>,
    ) -> Decision<Session> {
        let live = self.state.requests.iter().filter(|request| self.live(request).is_some());
        let live: Vec<&Current> = live.collect();
        if hesitates {
            return self.say(words::nothing_cancelled(&live), json!({}));
        }
        if let Some(words) = said.heard.aside.as_ref().filter(|_| !live.is_empty()) {
            return self.say(words::not_that_to_cancel(words, &live), json!({}));
        }
        match self.cancel_meant(thing, service) {
            Meant::This(request, kind) | Meant::Perhaps(request, kind) => {
                let offer = match kind {
                    Live::Booking(_) => request.shown.first(),
                    Live::Request => None,
                };
                match said.differs_from(request, offer, self.said_at) {
                    Some(what) => self.say(words::other_to_cancel(what, &live), json!({})),
                    None => self.read_cancelling_back(request, &kind),
                }
            }
            Meant::Unclear(words) => self.say(words, json!({})),
        }
    }

    /// "never mind": drops the draft, or reads the cancellation of a running search back. A booking stays.
    pub fn drop_it(self) -> Decision<Session> {
        if self.state.draft.is_some() {
            return self.forget();
        }
        match self.cancel_meant(Thing::Search, None) {
            Meant::This(request, live) | Meant::Perhaps(request, live) => {
                self.read_cancelling_back(request, &live)
            }
            Meant::Unclear(_) => self.say(words::as_it_was(), json!({})),
        }
    }

    pub fn yes(self) -> Decision<Session> {
        match self.state.pending.clone() {
            Some(Pending::Accept { request_id, offer_id }) => {
                self.accept_offer(&request_id, &offer_id)
            }
            Some(Pending::CancelRequest { request_id }) => self.cancel_request(&request_id),
            Some(Pending::CancelBooking { request_id, booking_id }) => {
                self.cancel_booking(&request_id, &booking_id)
            }
            Some(Pending::Change { request_id, asked }) => self.replace(request_id, *asked),
            // A call of a run whose token is not this one.
            Some(Pending::Call(_)) => self.unclear(),
            None => match self.offer_meant(Which::It, None) {
                Meant::This(request, offer) | Meant::Perhaps(request, offer) => {
                    self.read_offer_back(request, offer)
                }
                Meant::Unclear(_) if !self.has_offers() => self.unclear(),
                Meant::Unclear(words) => self.say(words, json!({})),
            },
        }
    }

    /// "ok", "sure": these are no "yes", so an act that was read back is read back again.
    pub fn nod(self) -> Decision<Session> {
        let Some(pending) = self.state.pending.clone() else { return self.unclear() };
        self.read_back(words::say_yes(), pending)
    }

    pub fn read_back(self, content: String, pending: Pending) -> Decision<Session> {
        let kind = match &pending {
            Pending::Accept { .. } => "accept",
            Pending::CancelRequest { .. } => "cancel_request",
            Pending::CancelBooking { .. } => "cancel_booking",
            Pending::Change { .. } => "change",
            Pending::Call(_) => "call",
        };
        let data = json!({"confirm": kind});
        self.event(super::Event::ReadBack { pending }).say(content, data)
    }

    pub fn forget(self) -> Decision<Session> {
        self.event(super::Event::DraftChanged { draft: None }).say(words::forgotten(), json!({}))
    }
}
