//! The agent's handling of a message, and its answers.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::thinking::{self, Goes};
use super::{
    AskedOf, Author, ChatMessage, ChatResponse, ChatToken, Current, Event, Pending, Progress,
    Reply, Session, State, words,
};
use crate::kernel::entity::{DecideCx, Decision, Effect};
use crate::kernel::private::Private;
use crate::systems::marketplace::domain::language::{
    self, About, Home, Intent, Thing, Understanding,
};
use crate::systems::marketplace::domain::messages::{Asked, RequestCancellation};
use crate::systems::marketplace::domain::request::Status;
use crate::systems::marketplace::domain::service::Service;

/// A turn: one message, and the decision that it leads to.
pub(super) struct Turn<'a> {
    pub state: &'a State,
    pub cx: &'a DecideCx<'a>,
    decision: Decision<Session>,
    speaker: Speaker<'a>,
    /// When the message was said, which is what "tomorrow" counts from.
    pub said_at: Timestamp,
}

/// Who thought of an answer, and why nobody else did.
#[derive(Clone, Copy)]
pub(super) struct Speaker<'a> {
    pub model: &'a str,
    pub fell_back: Option<&'a str>,
}

/// The most pieces that an answer is streamed in.
const MAX_TOKENS: usize = 256;

/// The node's own parser.
pub(super) const LOCAL: Speaker<'static> = Speaker { model: "local", fell_back: None };

/// A message, with its understanding.
pub(super) struct Said<'a> {
    pub content: &'a str,
    pub heard: &'a Understanding,
    pub home: &'a Home<'a>,
}

/// Keeps and publishes the message, then answers it, or leaves that to a model.
pub(super) fn answer(
    state: &State,
    content: String,
    media: Vec<String>,
    thinks: bool,
    cx: &DecideCx<'_>,
) -> Decision<Session> {
    let message_id = cx.ids.mint("msg");
    let message = ChatMessage {
        session_id: cx.key.into(),
        message_id: message_id.clone(),
        role: Author::User,
        content: content.clone(),
        media: media.clone(),
        created_at: cx.now,
    };
    let private = |url| Private::new(&state.user_id, url);
    let received = Event::MessageReceived {
        message_id: message_id.clone(),
        content: Private::new(&state.user_id, content.clone()),
        media: media.into_iter().map(private).collect(),
        at: cx.now,
    };
    let decision = Decision::reply(Reply::Sent { message_id })
        .event(received)
        .effect(Effect::announce(&message).private_to(&state.user_id));
    let turn = Turn::new(state, cx, decision, LOCAL, cx.now);
    if !thinks && !matches!(state.pending, Some(Pending::Call(_))) {
        return turn.respond(&content);
    }
    let heard = (!language::is_too_long(&content))
        .then(|| turn.with_home(|home| turn.heard(&content, home)));
    match thinking::goes(&turn, &content, heard.as_ref(), thinks) {
        Goes::Local => turn.respond(&content),
        Goes::Model => turn.think(&content),
        Goes::Decides(asked, allow) => turn.decides(&asked, allow),
    }
}

impl<'a> Turn<'a> {
    pub fn new(
        state: &'a State,
        cx: &'a DecideCx<'a>,
        decision: Decision<Session>,
        speaker: Speaker<'a>,
        said_at: Timestamp,
    ) -> Self {
        Self { state, cx, decision, speaker, said_at }
    }
}

impl Turn<'_> {
    fn heard(&self, content: &str, home: &Home<'_>) -> Understanding {
        language::understand(content, self.said_at, home)
    }

    fn with_home<T>(&self, then: impl FnOnce(&Home<'_>) -> T) -> T {
        let open = self.state.requests.iter().rfind(|request| request.status == Status::Open);
        let names = open.map_or(Vec::new(), |request| {
            request.shown.iter().map(|offer| offer.provider_name.clone()).collect()
        });
        let tz = self.state.tz();
        then(&Home {
            tz: &tz,
            currency: self.state.currency.as_deref(),
            locale: &self.state.locale,
            offers: &names,
        })
    }

    /// The decision as it is, without an answer yet.
    pub fn silent(self) -> Decision<Session> {
        self.decision
    }

    /// Answers by the parser.
    pub fn respond(self, content: &str) -> Decision<Session> {
        let state = self.state;
        if language::is_too_long(content) {
            return self.say(words::too_long(), json!({}));
        }
        let open = state.requests.iter().rfind(|request| request.status == Status::Open);
        let names = open.map_or(Vec::new(), |request| {
            request.shown.iter().map(|offer| offer.provider_name.clone()).collect()
        });
        let tz = state.tz();
        let home = Home {
            tz: &tz,
            currency: state.currency.as_deref(),
            locale: &state.locale,
            offers: &names,
        };
        let heard = self.heard(content, &home);
        let current = state.current();
        let gives_up =
            matches!(heard.intent, Intent::No | Intent::Drop | Intent::Cancel(Thing::Any, None));
        if state.pending.is_some() && gives_up {
            return self.say(words::as_it_was(), json!({}));
        }
        // "2" answers the question that was asked last.
        let answers = state.draft.is_some() && content.trim().parse::<u8>().is_ok();
        match heard.intent {
            Intent::Greeting => self.say(words::greeting(), json!({})),
            Intent::Thanks => self.say(words::welcome(), json!({})),
            Intent::Help => self.say(words::help(), json!({})),
            Intent::Status => {
                let named = |request: &&Current| {
                    request.is_live() && heard.service.is_none_or(|named| named == request.service)
                };
                let meant = state.requests.iter().rfind(named).or(current);
                self.say(words::status(meant, state.draft.is_some()), about(meant))
            }
            Intent::Offering => self.say(words::enrol(), json!({})),
            Intent::Refusal => self.say(words::nothing_done(), json!({})),
            Intent::Yes if state.pending.is_none() && state.draft.is_some() => {
                self.request(content, heard, &home)
            }
            Intent::Yes => self.yes(),
            // "How much at most?" "No."
            Intent::No if self.asks_for_a_budget() => self.request(content, heard, &home),
            Intent::No if state.draft.is_some() => self.forget(),
            Intent::No => self.say(words::as_it_was(), json!({})),
            Intent::Nod => self.nod(),
            Intent::Drop => self.drop_it(),
            Intent::Cancel(thing, service) => self.cancel(thing, service),
            Intent::CancelTalk { thing, service, hesitates } => {
                let said = Said { content, heard: &heard, home: &home };
                self.talk_of_cancelling(thing, service, hesitates, &said)
            }
            Intent::Accept(which, service) => self.accept(which, service, content),
            Intent::AcceptTalk { which, hesitates } if self.has_offers() && !answers => {
                let said = Said { content, heard: &heard, home: &home };
                self.talk_of_offers(which, hesitates, &said)
            }
            Intent::AcceptTalk { .. } | Intent::Request => self.request(content, heard, &home),
        }
    }

    /// Whether the open question is about the maximum price.
    fn asks_for_a_budget(&self) -> bool {
        let asked = self.state.draft.as_ref().map(language::missing);
        asked.is_some_and(|missing| missing.first() == Some(&"budget"))
    }

    /// Handles a message about a new request, or about the current one.
    fn request(self, content: &str, heard: Understanding, home: &Home<'_>) -> Decision<Session> {
        let (state, now) = (self.state, self.said_at);
        let adds = language::adds(content);
        let corrects = language::corrects(content);
        if let Some(draft) = &state.draft {
            let other = heard.service.is_some()
                && draft.service.is_some()
                && heard.service != draft.service;
            // Fields of one request never fill another one.
            if heard.service.is_some() && (adds || (other && !corrects)) {
                return self.understand(heard);
            }
            let known = language::answer(draft.clone(), content, now, home);
            return self.understand(known);
        }
        let names_only = heard.when.is_none() && heard.place.is_none() && heard.budget.is_none();
        if !heard.says_something() || names_only && language::only_asks(content) {
            return self.unclear();
        }
        let Some(current) = state.current() else { return self.understand(heard) };
        let bare = heard.when.is_none()
            && heard.place.is_none()
            && heard.budget.is_none()
            && heard.unread.is_empty();
        let same = heard.service == Some(current.service) && bare;
        let other = heard.service.is_some_and(|service| service != current.service);
        let unserved =
            heard.is_unread(About::OtherService) || heard.is_unread(About::SecondService);
        let of_current =
            (heard.service.is_none() && !unserved) || same || (other && corrects && bare);
        if adds || !of_current {
            return self.understand(heard);
        }
        match (&current.asked, current.status) {
            (_, Status::Accepting | Status::Booked) if heard.service.is_none() => {
                self.say(words::cannot_change(current), about(Some(current)))
            }
            (Some(asked), Status::Matching | Status::Open) => {
                let changed = language::answer(asked.clone(), content, now, home);
                let calm = corrects && heard.bare;
                self.change(current, asked, changed, calm)
            }
            (Some(asked), Status::Unmatched | Status::Expired) => {
                let changed = language::answer(asked.clone(), content, now, home);
                self.understand(changed)
            }
            _ => self.understand(heard),
        }
    }

    /// Handles a correction of a request whose search is running.
    fn change(
        self,
        current: &Current,
        asked: &Understanding,
        changed: Understanding,
        calm: bool,
    ) -> Decision<Session> {
        let what = |u: &Understanding| (u.service, u.when, u.place.clone(), u.budget.clone());
        if what(asked) == what(&changed) && changed.unread.is_empty() {
            return self.say(words::status(Some(current), false), about(Some(current)));
        }
        if !language::missing(&changed).is_empty() {
            let content = words::say_change_again(&language::question(&changed));
            return self.say(content, about(Some(current)));
        }
        let request_id = current.request_id.clone();
        if calm {
            return self.replace(request_id, changed);
        }
        let Some(new) = self.asked(&changed) else { return self.unclear() };
        let content = words::shall_i_change(&new);
        self.read_back(content, Pending::Change { request_id, asked: changed.into() })
    }

    /// Replaces an open request by another one.
    pub fn replace(self, request_id: String, changed: Understanding) -> Decision<Session> {
        let cancel = RequestCancellation { reason: Some("changed".into()) };
        let effect = Effect::send(request_id.as_str(), &cancel);
        let Some(asked) = self.asked(&changed) else { return self.unclear() };
        self.effect(effect).start(asked, changed, Some(request_id))
    }

    fn asked(&self, known: &Understanding) -> Option<Asked> {
        let place = known.place.clone()?;
        Some(Asked {
            consumer_id: self.state.user_id.clone(),
            session_id: Some(self.cx.key.into()),
            service: known.service?,
            details: known.details.chars().take(2_000).collect(),
            time_zone: place.time_zone.clone(),
            place,
            when: known.when?,
            budget: known.budget.clone(),
        })
    }

    fn understand(self, known: Understanding) -> Decision<Session> {
        // Whatever the purpose of the last message, the draft is that of a request.
        let known = Understanding { intent: Intent::Request, bare: false, aside: None, ..known };
        let missing = language::missing(&known);
        match self.asked(&known).filter(|_| missing.is_empty()) {
            Some(asked) => self.start(asked, known, None),
            None => {
                let mut question = language::question(&known);
                if self.has_just_said(&question) {
                    question = words::or_drop_it(&question);
                }
                self.event(Event::DraftChanged { draft: Some(known) })
                    .say(question, json!({"missing": missing}))
            }
        }
    }

    fn start(
        self,
        asked: Asked,
        known: Understanding,
        replaces: Option<String>,
    ) -> Decision<Session> {
        let request_id = self.cx.ids.mint("req");
        let content = words::searching(&asked);
        let started = Event::RequestStarted {
            request_id: request_id.clone(),
            service: asked.service,
            asked: Some(known.into()),
            replaces,
        };
        self.event(started)
            .effect(Effect::send(request_id.as_str(), &asked))
            .say(content, json!({"request_id": request_id}))
    }

    fn has_just_said(&self, question: &str) -> bool {
        let last = self.state.recent.iter().rfind(|line| line.author == super::Author::Agent);
        last.and_then(|line| line.content.reveal()).is_some_and(|said| said.contains(question))
    }

    /// Answers a message in which nothing was understood.
    pub fn unclear(self) -> Decision<Session> {
        if let Some(draft) = &self.state.draft {
            let content = words::not_understood(&words::or_drop_it(&language::question(draft)));
            return self.say(content, json!({"missing": language::missing(draft)}));
        }
        let current = self.state.current();
        let content = match current.filter(|current| current.is_live()) {
            Some(current) => words::not_understood(&words::status(Some(current), false)),
            None => words::what_do_you_need(),
        };
        self.say(content, about(current))
    }

    pub fn effect(self, effect: Effect) -> Self {
        Self { decision: self.decision.effect(effect), ..self }
    }

    pub fn event(self, event: Event) -> Self {
        Self { decision: self.decision.event(event), ..self }
    }

    pub fn say(self, content: String, data: Value) -> Decision<Session> {
        say(self.decision, content, data, self.speaker, &self.state.user_id, self.cx)
    }
}

fn about(current: Option<&Current>) -> Value {
    current.map_or(json!({}), |current| json!({"request_id": current.request_id}))
}

pub(super) fn tell(
    state: &State,
    request_id: String,
    progress: Progress,
    service: Option<Service>,
    cx: &DecideCx<'_>,
) -> Decision<Session> {
    let known = state.requests.iter().find(|request| request.request_id == request_id);
    let offers_before = known.map_or(0, |request| request.offers);
    let mut data = json!({"request_id": request_id});
    let (mut shown, mut complete, mut booked) = (Vec::new(), false, None);
    let (status, offers) = match &progress {
        Progress::Matched { providers } => {
            complete = *providers == 1;
            (Status::Matching, 0)
        }
        Progress::FirstOffer { offer } => {
            data["offer_id"] = json!(offer.offer_id);
            shown.push(offer.clone());
            (Status::Open, 1)
        }
        Progress::AllAnswered { offers, cheapest, open } => {
            data["offer_id"] = json!(cheapest.offer_id);
            complete = true;
            shown.clone_from(open);
            (Status::Open, *offers)
        }
        Progress::OfferRefused { offers, reason } => {
            data["reason"] = json!(reason);
            (Status::Open, *offers)
        }
        Progress::Booked { booking_id, offer } => {
            data["booking_id"] = json!(booking_id);
            data["offer_id"] = json!(offer.offer_id);
            shown.push(offer.clone());
            booked = Some(booking_id.clone());
            (Status::Booked, offers_before)
        }
        Progress::Unmatched { reason, reasons, lowest_price } => {
            data["reason"] = json!(reason);
            data["reasons"] = json!(reasons);
            data["lowest_price"] = json!(lowest_price);
            (Status::Unmatched, 0)
        }
        Progress::Cancelled | Progress::BookingCancelled { .. } => (Status::Cancelled, 0),
        Progress::Expired => (Status::Expired, 0),
    };
    data["status"] = json!(status);
    let mut decision = Decision::reply(Reply::Done);
    // A request that the agent has made for this session by a tool.
    if let (None, Some(service)) = (known, service) {
        let request_id = request_id.clone();
        let (asked, replaces) = (None, None);
        decision = decision.event(Event::RequestStarted { request_id, service, asked, replaces });
    }
    let followed =
        Event::RequestFollowed { request_id, status, offers, shown, complete, booking_id: booked };
    let decision = decision.event(followed);
    let service = known.map(|request| request.service).filter(|_| state.requests.len() > 1);
    say(decision, words::progress(&progress, service), data, LOCAL, &state.user_id, cx)
}

pub(super) fn refused(
    state: &State,
    request_id: String,
    asked: AskedOf,
    reason: &str,
    cx: &DecideCx<'_>,
) -> Decision<Session> {
    let of = if asked == AskedOf::CancelBooking { "booking_id" } else { "request_id" };
    let data = json!({of: request_id, "reason": reason});
    let mut decision = Decision::reply(Reply::Done);
    let ours = state.requests.iter().any(|request| request.request_id == request_id);
    if asked == AskedOf::Create && ours {
        decision = decision.event(Event::RequestFollowed {
            request_id,
            status: Status::Unmatched,
            offers: 0,
            shown: Vec::new(),
            complete: false,
            booking_id: None,
        });
    }
    say(decision, words::refused(asked, reason), data, LOCAL, &state.user_id, cx)
}

/// Streams `content` in tokens that add up to it, then publishes it whole under the same message id.
pub(super) fn say(
    decision: Decision<Session>,
    content: String,
    data: Value,
    speaker: Speaker<'_>,
    user_id: &str,
    cx: &DecideCx<'_>,
) -> Decision<Session> {
    let message_id = cx.ids.mint("msg");
    let spaces: Vec<usize> = content.match_indices(' ').map(|(at, _)| at + 1).collect();
    let each = spaces.len().div_ceil(MAX_TOKENS).max(1);
    let ends = spaces.iter().copied().skip(each - 1).step_by(each);
    let ends = ends.filter(|end| *end < content.len()).chain([content.len()]);
    let tokens = ends.scan(0, |start, end| Some(&content[std::mem::replace(start, end)..end]));
    let tokens = tokens.enumerate().map(|(index, token)| {
        let (session_id, message_id) = (cx.key, &*message_id);
        Effect::announce(&ChatToken { session_id, message_id, index, token })
    });
    let response = ChatResponse {
        session_id: cx.key.into(),
        message_id: message_id.clone(),
        content: content.clone(),
        data: data.clone(),
        model: speaker.model.into(),
        fell_back: speaker.fell_back.map(str::to_owned),
    };
    decision
        .effects(tokens.collect::<Vec<_>>())
        .effect(Effect::announce(&response).private_to(user_id))
        .event(Event::Responded {
            message_id,
            content: Private::new(user_id, content),
            data: Private::new(user_id, data),
            at: cx.now,
        })
}
