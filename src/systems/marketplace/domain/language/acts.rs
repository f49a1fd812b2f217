//! The acts of a message on existing offers, requests and bookings.
//!
//! A binding act (accepting an offer, cancelling a request or a booking) has a closed form: the whole message, without
//! its politeness, is one of a few sentences. Any other message about it is [`Intent::AcceptTalk`] or
//! [`Intent::CancelTalk`], which never binds by itself.

use std::ops::Range;

use super::near;
use super::token::{Kind, Table, Token, Words, tokens, words_of};
use super::{Intent, Thing, Which};
use crate::systems::marketplace::domain::service::Service;

/// A message as words, with contractions split: "I'll" is "i", "ll".
pub(super) struct Utterance<'a> {
    pub words: Vec<&'a str>,
    /// Whether only commas, full stops and exclamation marks separate the words.
    pub plain: bool,
}

impl<'a> Utterance<'a> {
    pub fn of(tokens: &'a [Token]) -> Self {
        let mut plain = true;
        for (n, token) in tokens.iter().enumerate().filter(|(_, token)| token.kind == Kind::Sign) {
            let next = tokens.get(n + 1);
            let inside = n > 0
                && token.any(&["'", "’"])
                && token.glued
                && tokens[n - 1].kind == Kind::Word
                && next.is_some_and(|next| next.glued && next.kind == Kind::Word);
            plain &= inside || token.any(&[".", ",", "!"]);
        }
        let words = tokens.iter().filter(|token| token.kind != Kind::Sign);
        Self { words: words.map(|token| token.text.as_str()).collect(), plain }
    }

    pub fn has(&self, phrases: Words) -> bool {
        phrases.iter().any(|phrase| {
            let count = phrase.split(' ').count();
            self.words.windows(count).any(|words| phrase.split(' ').eq(words.iter().copied()))
        })
    }
}

/// Words that do not change the meaning.
pub(super) static POLITE: Table = Table::new(|| {
    words_of(
        "please, pls, plz, kindly, thanks, thx, ty, cheers, ok, okay, alright, great, perfect,
         cool, nice, super, lovely, hi, hello, hey, then, now, so, well, good, fine, wonderful,
         excellent, dear, just",
    )
});
const POLITE_PHRASES: Words = Words(
    "thank you very much, thank you so much, thank you, many thanks, thanks a lot, all right, for
     me, would you kindly",
);
const YES: Words = Words("yes, yeah, yep, yup, aye, ja, oui, si");
const NO: Words = Words(
    "no, nope, nah, no no, not now, not yet, better not, rather not, don t, do not, nein, non",
);
const ORDINALS: [&str; 8] =
    ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth"];
const ONES: Words = Words("one, offer, option");

/// The unread rest of a sentence in closed form.
struct Rest<'a> {
    words: &'a [&'a str],
}

impl<'a> Rest<'a> {
    fn eat(&mut self, any: Words) -> bool {
        let found = self.words.first().is_some_and(|word| any.has(word));
        if found {
            self.words = &self.words[1..];
        }
        found
    }

    fn eat_all(&mut self, phrases: Words) -> bool {
        let count = phrases.begin(self.words);
        self.words = &self.words[count..];
        count > 0
    }

    fn service(&mut self) -> Option<Service> {
        let (service, count) = super::lexicon::named_service(self.words)?;
        self.words = &self.words[count..];
        Some(service)
    }

    fn number(&mut self) -> Option<u8> {
        let n = self.words.first()?.parse().ok().filter(|n| (1..=99).contains(n))?;
        self.words = &self.words[1..];
        Some(n)
    }

    fn ordinal(&mut self) -> Option<u8> {
        let word = *self.words.first()?;
        if let Some((n, _)) = (1_u8..).zip(ORDINALS).find(|(_, name)| *name == word) {
            self.words = &self.words[1..];
            return Some(n);
        }
        if self.words.get(1).is_some_and(|next| ["st", "nd", "rd", "th"].contains(next)) {
            let n = self.number()?;
            self.words = &self.words[1..];
            return Some(n);
        }
        None
    }

    fn done(&self) -> bool {
        self.words.is_empty()
    }
}

/// The act that the whole message expresses, if any. `offers`: the providers' names of the shown offers, in that order.
fn act(said: &Utterance<'_>, offers: &[Vec<String>]) -> Option<Intent> {
    if !said.plain {
        return None;
    }
    let polite = without_politeness(&said.words);
    if NO.is(&polite) {
        return Some(Intent::No);
    }
    let yes = polite.iter().take_while(|word| YES.has(word)).count();
    let rest = &polite[yes..];
    if rest.is_empty() {
        let talk = |word: &&str| {
            ["hi", "hello", "hey", "thanks", "thank", "thx", "ty", "cheers"].contains(word)
        };
        return match said.words.iter().any(talk) {
            _ if yes > 0 => Some(Intent::Yes),
            true => None,
            false => (!said.words.is_empty()).then_some(Intent::Nod),
        };
    }
    let affirmed = Words("do it, do that, go ahead, correct, exactly");
    if yes > 0 && affirmed.is(rest) {
        return Some(Intent::Yes);
    }
    if let [first] = rest
        && ["sure", "correct", "exactly", "absolutely", "definitely"].contains(first)
    {
        return Some(Intent::Nod);
    }
    acceptance(Rest { words: rest }, offers).or_else(|| cancellation(Rest { words: rest }))
}

pub(super) fn only_asks(tokens: &[Token]) -> bool {
    let said = Utterance::of(tokens);
    let first = said.words.first().copied().unwrap_or_default();
    let asks = Words("when, where, what, why, how, which, whose, who, did, was, were").has(first);
    // "I am looking forward to my haircut"
    let own =
        Words("my haircut, my appointment, my booking, my cleaning, my barber, my hairdresser");
    (asks || said.has(own))
        && !said.has(NEEDS)
        && !said.has(Words("how about, what about, who can, who could, who does, which one of"))
}

pub(super) fn says_yes(tokens: &[Token]) -> bool {
    let said = Utterance::of(tokens);
    without_politeness(&said.words).first().is_some_and(|word| YES.has(word))
}

pub(super) fn without_politeness<'a>(words: &[&'a str]) -> Vec<&'a str> {
    let mut left = Vec::new();
    let mut at = 0;
    while at < words.len() {
        match POLITE_PHRASES.begin(&words[at..]) {
            0 => {
                if !POLITE.contains(words[at]) {
                    left.push(words[at]);
                }
                at += 1;
            }
            count => at += count,
        }
    }
    left
}

const LEADS: Words = Words("i ll, i will, ill, we ll, we will, let s, lets, let us, i, we");

fn acceptance(mut rest: Rest<'_>, offers: &[Vec<String>]) -> Option<Intent> {
    let led = rest.eat_all(LEADS);
    let verb = rest.eat(Words("accept, take, book, choose, pick, confirm, reserve"))
        || rest.eat_all(Words("go with, go for"));
    if led && !verb {
        return None;
    }
    if verb {
        if rest.done() || matches!(rest.words, ["it" | "that" | "this"]) {
            return Some(Intent::Accept(Which::It, None));
        }
        if matches!(rest.words, ["the" | "that" | "this" | "your", "offer" | "one" | "option"]) {
            return Some(Intent::Accept(Which::It, None));
        }
        if let Some(n) = by_name(rest.words, offers) {
            return Some(Intent::Accept(Which::Nth(n), None));
        }
    }
    let the = rest.eat(Words("the, your"));
    let which = if rest.eat(Words("cheapest")) {
        Which::Cheapest
    } else if rest.eat(Words("best")) {
        rest.eat(Words("rated"));
        Which::Best
    } else if let Some(n) = rest.ordinal() {
        // "first" alone is too vague.
        if !the && !verb && rest.done() {
            return None;
        }
        Which::Nth(n)
    } else if rest.eat(Words("number, option, offer")) {
        rest.eat(Words("number"));
        Which::Nth(rest.number()?)
    } else {
        return None;
    };
    let service = rest.service();
    rest.eat(ONES);
    let service = service.or_else(|| {
        let of = rest.eat(Words("for, of"));
        if of {
            rest.eat(Words("the, my"));
        }
        if of { rest.service() } else { None }
    });
    rest.done().then_some(Intent::Accept(which, service))
}

/// "Anna's offer", "the offer of Anna": the number of the only offer that it can mean.
fn by_name(words: &[&str], offers: &[Vec<String>]) -> Option<u8> {
    let words = words.strip_prefix(&["the"]).unwrap_or(words);
    if let [before @ .., last] = words
        && ONES.has(last)
    {
        return owner(before.strip_suffix(&["s"]).unwrap_or(before), offers);
    }
    match words {
        [one, of, name @ ..] if ONES.has(one) && ["of", "from", "by", "with"].contains(of) => {
            owner(name, offers)
        }
        _ => None,
    }
}

pub(super) fn name_words(name: &str) -> Vec<String> {
    let words = tokens(name).into_iter().filter(|token| token.kind != Kind::Sign);
    words.map(|token| token.text).collect()
}

/// The only offer whose provider's name contains these words in sequence.
fn owner(name: &[&str], offers: &[Vec<String>]) -> Option<u8> {
    if !name.iter().any(|word| word.chars().count() >= 3) {
        return None;
    }
    let mut found = (1_u8..)
        .zip(offers)
        .filter(|(_, offer)| offer.windows(name.len()).any(|words| words == name));
    let (n, _) = found.next()?;
    found.next().is_none().then_some(n)
}

/// The offer whose provider is named anywhere in the message, and the range of words that name them.
pub(super) fn name_at(words: &[&str], offers: &[Vec<String>]) -> Option<(u8, Range<usize>)> {
    (1..=4).rev().find_map(|count| {
        let mut names = words.windows(count).enumerate();
        names.find_map(|(at, name)| Some((owner(name, offers)?, at..at + count)))
    })
}

const REQUESTS: Words = Words("request, search, enquiry, inquiry");
const BOOKINGS: Words = Words("booking, appointment, reservation");

fn cancellation(mut rest: Rest<'_>) -> Option<Intent> {
    if Words("stop, stop it, abort").is(rest.words) {
        return Some(Intent::Cancel(Thing::Any, None));
    }
    let stops = Words(
        "stop searching, stop looking, stop the search, stop my search, call off the search, cancel the search",
    );
    if stops.is(rest.words) {
        return Some(Intent::Cancel(Thing::Search, None));
    }
    let dropped = Words(
        "never mind, nevermind, never mind that, nevermind that, forget it, forget that, forget about it, scrap that, drop it, call it off, leave it",
    );
    if dropped.is(rest.words) {
        return Some(Intent::Drop);
    }
    let led = rest.eat_all(LEADS);
    if !rest.eat(Words("cancel")) {
        return None;
    }
    if rest.done() {
        return (!led).then_some(Intent::Cancel(Thing::Any, None));
    }
    if matches!(rest.words, ["it" | "that" | "this"]) {
        return Some(Intent::Cancel(Thing::Any, None));
    }
    rest.eat(Words("the, my, our, this, that"));
    let mut service = rest.service();
    let thing = if rest.eat(REQUESTS) {
        Thing::Request
    } else if rest.eat(BOOKINGS) {
        Thing::Booking
    } else {
        Thing::Any
    };
    if service.is_none() && thing != Thing::Any && rest.eat(Words("for, of, with")) {
        rest.eat(Words("the, my, a"));
        service = Some(rest.service()?);
    }
    (rest.done() && (service.is_some() || thing != Thing::Any))
        .then_some(Intent::Cancel(thing, service))
}

/// Words of hesitation: nothing is to happen now.
static HESITATION: Table = Table::new(|| {
    words_of(
        "not, no, never, nothing, nobody, none, neither, nor, without, don, dont, can, cant,
         cannot, won, wont, wouldn, wouldnt, couldn, couldnt, shouldn, isn, isnt, doesn, doesnt,
         didn, aren, wasn, haven, hasn, ain, if, unless, when, whenever, until, till, before,
         after, once, provided, assuming, suppose, supposing, whether, but, although, though,
         however, except, maybe, perhaps, might, may, could, would, should, shall, must,
         probably, possibly, almost, think, thinking, consider, considering, wonder, wondering,
         guess, wait, later, yet, said, says, say, saying, told, tells, means, called, quote,
         asked, ask, who, what, which, why, how, where, is, are, was, were, am, does, do, did,
         has, have, had, instead, wish, hate, refuse, reject, decline, too, afraid, sorry,
         unsure, sure, rather, depends, else",
    )
});

/// Phrases that ask for a service.
const NEEDS: Words = Words(
    "need, needs, needed, looking for, look for, find me, find, get me, get a, want a, want an,
     want my, would like, d like, d love, book me, book a, book an, send, want to book a,
     another, also, searching for, search for, require",
);

/// The intent of a message.
pub(super) fn intent(
    tokens: &[Token],
    service: Option<Service>,
    known: bool,
    offers: &[Vec<String>],
) -> Intent {
    let said = Utterance::of(tokens);
    if let Some(act) = act(&said, offers) {
        return act;
    }
    if let Some(which) = near::selection(tokens, offers) {
        return Intent::AcceptTalk { which: Some(which), hesitates: false };
    }
    if let Some(act) = cancelling_politely(tokens, &said) {
        return act;
    }
    let has = |phrases: Words| said.has(phrases);
    if at_the_door(&said) {
        return Intent::Offering;
    }
    let asks = tokens.iter().any(|token| token.any(&["?", "¿", "？"]));
    let words = &said.words;
    let hesitates = asks || !said.plain || words.iter().any(|word| HESITATION.contains(*word));
    let needs = has(NEEDS);
    let cancels = has(CANCELS);
    let no_need = has(Words("no longer need, not need, don t need, dont need"));
    let conditions = has(Words("can cancel, cancel if, cancellation, free to cancel"));
    if cancels && !(service.is_some() && known && ((needs && !no_need) || conditions)) {
        let thing = if has(REQUESTS) {
            Thing::Request
        } else if has(BOOKINGS) {
            Thing::Booking
        } else {
            Thing::Any
        };
        let other = words.iter().any(|word| {
            HESITATION.contains(*word) && !matches!(*word, "no" | "not" | "don" | "do" | "have")
        });
        let hesitates = if no_need { asks || !said.plain || other } else { hesitates };
        return Intent::CancelTalk { thing, service, hesitates };
    }
    if refuses(words) {
        return Intent::Refusal;
    }
    let own = words.len() <= 9 && !known && !needs && has(OWN);
    if own
        || has(STATUS) && !known && service.is_none()
        || words.len() <= 8 && has(Words("status"))
        || has(Words("status of"))
    {
        return Intent::Status;
    }
    let accepts = has(OFFERED);
    if (accepts || name_at(words, offers).is_some()) && !(service.is_some() && (known || needs)) {
        let which = near::chosen(words, offers).first().copied();
        return Intent::AcceptTalk { which, hesitates };
    }
    if known || service.is_some() {
        return Intent::Request;
    }
    small_talk(&said)
}

/// "Could you cancel my booking?", "I can't make it": near to an act, despite their words.
fn cancelling_politely(tokens: &[Token], said: &Utterance<'_>) -> Option<Intent> {
    let signs = tokens.iter().filter(|token| token.kind == Kind::Sign);
    if !signs.clone().all(|sign| sign.any(&[".", ",", "!", "?", "'", "’"])) {
        return None;
    }
    let words = without_politeness(&said.words);
    let talk = |thing, service| Some(Intent::CancelTalk { thing, service, hesitates: false });
    let absent = Words(
        "i can t make it, i cant make it, i cannot make it, i can not make it, i can t come, i cannot come, i won t come, i won t make it,
         i will not make it, i won t be able to make it, i won t be able to come",
    );
    let until = words.iter().rposition(|word| {
        !matches!(*word, "any" | "more" | "anymore" | "sorry" | "today" | "tomorrow" | "tonight")
    });
    let from = words.iter().position(|word| *word != "sorry").unwrap_or(0);
    let asks = tokens.iter().any(|token| token.is("?"));
    if !asks && until.is_some_and(|until| from <= until && absent.is(&words[from..=until])) {
        return talk(Thing::Any, None);
    }
    match &words[..] {
        ["can" | "could" | "would" | "will", "you", rest @ ..] => {
            match cancellation(Rest { words: rest })? {
                Intent::Cancel(thing, service) => talk(thing, service),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Questions about the user's own bookings and requests.
const OWN: Words = Words(
    "when is my, what time is my, where is my, when s my, where s my, what time s my, where is it, when is it,
     what time is it at, who is my, how much is my, do i have a booking, my bookings, what did i book,
     what have i booked, what is the address, what s the address, where do i have to go, who cuts my,
     what is my booking, what s my booking, when do i have to be there, what is my appointment",
);

const STATUS: Words = Words(
    "status, any news, any offers, any update, any updates, how is it going, how s it going, how
     is my request, what s happening, what is happening, did anyone, did anybody, has anyone, has
     anybody, found anyone, found anybody, found somebody, found someone, where are we, how far,
     how many offers, any luck, still waiting, any answer, any answers, heard back, is it booked,
     progress",
);

/// "Don't book me a haircut", "do not look for a plumber".
fn refuses(words: &[&str]) -> bool {
    const VERBS: Words = Words(
        "book, get, find, look, search, order, send, want, schedule, make, arrange, accept, take,
         confirm, do, need, reserve, start, request, ask",
    );
    let denied = |at: usize| match words[at] {
        "don" if words.get(at + 1) == Some(&"t") => Some(at + 2),
        "do" | "please" | "better" | "rather" if words.get(at + 1) == Some(&"not") => Some(at + 2),
        "dont" | "never" => Some(at + 1),
        "not" if at == 0 => Some(1),
        _ => None,
    };
    (0..words.len()).filter_map(denied).any(|next| {
        let spend = matches!(words.get(next..next + 3), Some(["want", "to", "spend" | "pay"]));
        !spend && words[next..].iter().take(2).any(|word| VERBS.has(word))
    })
}

/// Whether the speaker offers a service instead of asking for one.
fn at_the_door(said: &Utterance<'_>) -> bool {
    let says = said.has(AT_THE_DOOR);
    let words = &said.words;
    let trade = words.windows(3).enumerate().any(|(n, three)| {
        let am =
            matches!(three, ["i", "m", _] | ["i", "am", _] | ["we", "are", _] | ["we", "re", _]);
        let article = usize::from(matches!(three[2], "a" | "an"));
        am && words[n + 2 + article..].iter().take(2).any(|word| {
            super::lexicon::PROFESSIONS.contains(*word) && (article > 0 || word.ends_with('s'))
        })
    });
    let seeks = said.has(Words("need, looking for a, looking for an, want a, book me, find me"));
    (says || trade) && !seeks
}

fn small_talk(said: &Utterance<'_>) -> Intent {
    let words = &said.words;
    let first = words.first().copied().unwrap_or_default();

    if first == "help" || said.has(HELP) {
        return Intent::Help;
    }

    if said.has(THANKS) && words.len() <= 12 {
        return Intent::Thanks;
    }

    let good = first == "good"
        && words
            .get(1)
            .is_some_and(|word| ["morning", "afternoon", "evening", "day"].contains(word));
    let greets = GREETINGS.has(first) || good || words.as_slice() == ["guten", "tag"];
    if greets && words.len() <= 8 { Intent::Greeting } else { Intent::Request }
}

/// Phrases that begin a correction.
pub(super) const CORRECTIONS: Words = Words(
    "no wait, wait no, sorry, i mean, i meant, meant, actually, make it, make that, rather,
     instead, correction, scratch that, change it, change that, move it, on second thought, hang
     on",
);

/// Words that speak of cancelling.
const CANCELS: Words = Words(
    "cancel, abort, cancelling, canceling, call off, call it off, stop searching, stop looking,
     stop the search, no longer need, not need, don t need, dont need, not needed any more, not
     needed anymore, changed my mind, forget it, forget about it, never mind, nevermind",
);

/// Words that speak of offers.
const OFFERED: Words = Words(
    "accept, take, book, confirm, reserve, choose, pick, deal, sounds good, go ahead, go for, go
     with, cheapest, cheaper, cheap, offer, offers, option, options, the price, that price, this
     price, best one, best rated, first one, second one, third one, that one, this one, which
     one, the first, the second, the third, the last one, reviews, rating, do it",
);

/// Phrases that offer a service.
const AT_THE_DOOR: Words = Words(
    "offer my service, offer my services, offering my services, offer services, offer a service,
     offer my work, my services, become a provider, as a provider, be a provider, provide
     services, i charge, we charge, my hourly rate, my rates are, my rate is, list my, enrol,
     enroll, sign up as, join as, work as a, find customers, get customers, new customers, more
     customers, looking for customers, find clients, new clients, looking for clients, looking
     for work, for hire, register my, i have a salon, i run a, i own a",
);

/// Questions about what the agent can do.
const HELP: Words = Words(
    "what can you do, how does this work, how does it work, what do you do, who are you, what is
     this, what can i ask, what services, how do i, how to use, can you help, need help, help me,
     need some help, which services, what are you",
);

/// Words of thanks.
const THANKS: Words =
    Words("thanks, thank you, thx, cheers, danke, merci, gracias, much appreciated, ty");

/// The first word of a greeting.
const GREETINGS: Words =
    Words("hello, hi, hey, hallo, hiya, yo, greetings, howdy, hola, bonjour, moin, servus, sup");
