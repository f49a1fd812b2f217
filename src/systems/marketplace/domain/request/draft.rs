//! A request's decision under construction, and its announcements.

use super::*;
use crate::kernel::clock::saturating_add;
use crate::kernel::entity::Announcement;
use crate::systems::marketplace::domain::messages::RequestTold;

/// A decision under construction, together with the state after it: announcements show the new state.
pub(super) struct Draft<'a> {
    pub(super) cx: &'a DecideCx<'a>,
    pub(super) next: State,
    pub(super) decision: Decision<Request>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(state: &State, cx: &'a DecideCx<'a>) -> Self {
        Self { cx, next: state.clone(), decision: Decision::reply(Reply::Done) }
    }

    pub(super) fn event(&mut self, event: Event) {
        Request::evolve(&mut self.next, &event);
        self.decision.events.push(event);
    }

    pub(super) fn effect(&mut self, effect: Effect) {
        self.decision.effects.push(effect);
    }

    pub(super) fn reply(mut self, reply: Reply) -> Decision<Request> {
        self.decision.reply = Some(reply);
        self.decision
    }

    pub(super) fn reply_request(self) -> Decision<Request> {
        let reply = Reply::Request(self.shown().into());
        self.reply(reply)
    }

    fn shown(&self) -> RequestView {
        RequestView::of(self.cx.key, &self.next)
            .expect("only `create` decides without a request, and its event sets it and its times")
    }

    pub(super) fn asked(&self) -> &Asked {
        self.next
            .asked
            .as_ref()
            .expect("only `create` decides without a request, and it sets it first")
    }

    pub(super) fn announce_request(&mut self) {
        let request = self.shown();
        self.announce(&request);
    }

    pub(super) fn announce_new_offer(&mut self, offer_id: &str) {
        if let Some(offer) = self.offer_shown(offer_id) {
            self.announce(&OfferMade { request_id: self.cx.key.into(), offer });
        }
    }

    pub(super) fn announce_offer(&mut self, offer_id: &str) {
        if let Some(offer) = self.offer_shown(offer_id) {
            self.announce(&OfferChanged { request_id: self.cx.key.into(), offer });
        }
    }

    fn offer_shown(&self, offer_id: &str) -> Option<OfferView> {
        let offer = self.next.offer(offer_id)?;
        Some(OfferView::new(self.cx.key, offer, self.next.booking_of(offer_id)))
    }

    fn announce(&mut self, announcement: &impl Announcement) {
        let consumer = self.asked().consumer_id.clone();
        self.effect(Effect::announce_to(User::KIND, consumer, announcement));
    }

    /// Tells the session's agent, which puts it into its own words, or the task.
    pub(super) fn tell(&mut self, progress: Progress) {
        if let Some(task) = self.next.task_id.clone() {
            let offers = self.next.offers.iter();
            let shown = offers
                .map(|offer| OfferView::new(self.cx.key, offer, self.next.booking_of(&offer.id)));
            let told = RequestTold {
                request_id: self.cx.key.into(),
                progress,
                offers: shown.collect(),
                pending: self.next.pending_leads() as u32,
            };
            return self.effect(Effect::send(task, &told));
        }
        let Some(session) = self.asked().session_id.clone() else { return };
        let request_id = self.cx.key.to_owned();
        let service = Some(self.asked().service);
        self.effect(Effect::send(session, &RequestProgress { request_id, progress, service }));
    }

    pub(super) fn schedule(&mut self, name: impl Into<String>, at: Timestamp, command: &Command) {
        self.effect(Effect::schedule::<Request>(name, at, command));
    }

    pub(super) fn run_match(&mut self) {
        let Asked { consumer_id, service, place, when, budget, .. } = self.asked().clone();
        let criteria = Criteria { consumer_id: Some(consumer_id), service, place, when, budget };
        self.effect(Effect::run::<MatchProviders>("match", &criteria));
    }

    /// Ends the request with `event`: withdraws its open offers and cancels its timers.
    pub(super) fn close(&mut self, event: Event) {
        let open: Vec<(String, String)> = self
            .next
            .open_offers()
            .map(|offer| (offer.id.clone(), offer.provider.id.clone()))
            .collect();
        self.event(event);
        self.effect(Effect::cancel("expiry"));
        self.announce_request();
        for (offer_id, provider_id) in open {
            self.effect(Effect::cancel(offer_timer(&offer_id)));
            self.announce_offer(&offer_id);
            if self.next.booking_of(&offer_id).is_none() {
                self.effect(Effect::send(provider_id, &DropOffer { offer_id }));
            }
        }
    }

    /// Ends a search with no pending lead and no open offer.
    pub(super) fn settle(&mut self) {
        let next = &self.next;
        let waiting = next.pending_leads() > 0 || next.open_offers().next().is_some();
        if waiting || !next.status.is_searching() {
            return;
        }
        let at = self.cx.now;
        let has = |status| next.offers.iter().any(|offer| offer.status == status);
        if has(OfferStatus::Expired) {
            self.close(Event::Expired { at });
            self.tell(Progress::Expired);
        } else {
            let taken = |offer: &Offer| {
                offer.status == OfferStatus::Unavailable
                    && next.unavailable(&offer.id) == Rejection::SlotTaken
            };
            let taken = next.offers.iter().any(taken);
            self.unmatched(if taken { "slot_taken" } else { "all_declined" });
        }
    }

    pub(super) fn unmatched(&mut self, reason: &str) {
        self.close(Event::Unmatched { reason: reason.into(), at: self.cx.now });
        let declines = self.next.leads.iter().filter_map(|lead| match &lead.answer {
            Answer::Declined(decline) => Some(decline),
            _ => None,
        });
        let mut reasons = BTreeMap::<DeclineReason, u32>::new();
        let mut lowest_price: Option<Money> = None;
        for decline in declines {
            *reasons.entry(decline.reason).or_default() += 1;
            let price = decline.lowest_price.as_ref();
            if let Some(price) = price
                && lowest_price.as_ref().is_none_or(|low| price.amount_minor < low.amount_minor)
            {
                lowest_price = Some(price.clone());
            }
        }
        // Offers whose providers withdrew them later.
        let withdrawn = |offer: &&Offer| {
            offer.status == OfferStatus::Unavailable
                && self.next.unavailable(&offer.id) == Rejection::OfferWithdrawn
        };
        let withdrawn = self.next.offers.iter().filter(withdrawn).count() as u32;
        if withdrawn > 0 {
            *reasons.entry(DeclineReason::NotAvailable).or_default() += withdrawn;
        }
        self.tell(Progress::Unmatched { reason: reason.into(), reasons, lowest_price });
    }
}

pub(super) fn offer_timer(offer_id: &str) -> String {
    format!("offer:{offer_id}")
}

pub(super) fn in_seconds(now: Timestamp, seconds: i64) -> Timestamp {
    saturating_add(now, SignedDuration::from_secs(seconds))
}
