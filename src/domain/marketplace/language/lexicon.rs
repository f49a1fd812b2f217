//! Which service the words mean, and what the message is for.

use super::numbers::one_edit;
use super::token::{Kind, Token};
use super::{Intent, Which};
use crate::domain::marketplace::service::Service;

/// Words and phrases, the more telling first. A phrase is matched as its words one after the other.
const SERVICES: &[(Service, &[&str])] = &[
    (
        Service::Haircut,
        &[
            "haircut",
            "haircuts",
            "hair cut",
            "hairdresser",
            "hairdressers",
            "hair dresser",
            "hairdressing",
            "barber",
            "barbers",
            "barbershop",
            "barber shop",
            "hairstylist",
            "hair stylist",
            "stylist",
            "hair salon",
            "hairstyle",
            "hair done",
            "hair trimmed",
            "cut and color",
            "cut and colour",
            "highlights",
            "back and sides",
            "hair",
            "beard",
            "beard trim",
            "shave",
            "fade",
            "buzz cut",
            "bangs",
            "balayage",
            "perm",
            "blow dry",
            "blowout",
            "trim",
            "friseur",
            "frisor",
            "friseurin",
            "coiffeur",
        ],
    ),
    (
        Service::Plumbing,
        &[
            "plumbing",
            "plumber",
            "plumbers",
            "plummer",
            "plumer",
            "leak",
            "leaks",
            "leaking",
            "leaky",
            "leaked",
            "faucet",
            "tap",
            "taps",
            "dripping",
            "sink",
            "drain",
            "drains",
            "clogged",
            "blocked",
            "unclog",
            "toilet",
            "pipe",
            "pipes",
            "burst",
            "boiler",
            "water heater",
            "radiator",
            "sewer",
            "flooded",
            "flooding",
            "water pressure",
            "shower head",
            "shower",
            "bathtub",
            "dishwasher",
            "washing machine",
            "klempner",
            "installateur",
            "no hot water",
            "heating",
            "cistern",
            "septic",
            "sanitary",
        ],
    ),
    (
        Service::Photography,
        &[
            "photography",
            "photographer",
            "photographers",
            "photograph",
            "photographs",
            "photos",
            "photo",
            "photoshoot",
            "photo shoot",
            "shoot",
            "headshot",
            "headshots",
            "portrait",
            "portraits",
            "pictures",
            "picture",
            "fotograf",
            "fotografin",
            "foto",
            "fotos",
            "pics",
            "cameraman",
        ],
    ),
    (
        Service::Cleaning,
        &[
            "cleaning",
            "cleaner",
            "cleaners",
            "clean",
            "cleaned",
            "cleaning lady",
            "housekeeper",
            "housekeeping",
            "housecleaning",
            "maid",
            "maids",
            "deep clean",
            "tidy",
            "tidied",
            "tidying",
            "dusting",
            "vacuuming",
            "vacuumed",
            "mop",
            "mopping",
            "mopped",
            "window cleaning",
            "windows washed",
            "window washing",
            "wash my windows",
            "ironing",
            "spotless",
            "scrub",
            "scrubbed",
            "putzfrau",
            "putzkraft",
            "reinigung",
            "char",
            "janitor",
        ],
    ),
];

/// A word for a job says more than one for a thing: "clean my sink", "photos of my hair".
const JOBS: &[&str] = &[
    "haircut",
    "haircuts",
    "hairdresser",
    "barber",
    "plumber",
    "plumbing",
    "photographer",
    "photography",
    "photoshoot",
    "cleaner",
    "cleaners",
    "cleaning",
    "clean",
    "cleaned",
    "photos",
    "headshot",
    "headshots",
    "headshots",
    "hairstylist",
    "leak",
    "leaking",
    "clogged",
    "blocked",
    "burst",
    "photographers",
    "plumbers",
    "barbers",
    "pictures",
    "dripping",
    "maid",
];

pub(super) fn service(tokens: &[Token]) -> Option<Service> {
    let words: Vec<&str> = tokens
        .iter()
        .filter(|token| token.kind == Kind::Word && !token.taken)
        .map(|token| token.text.as_str())
        .collect();
    let mut best: Option<(u32, Service)> = None;
    for at in 0..words.len() {
        for (service, names) in SERVICES {
            let score = names.iter().map(|name| score(&words, at, name)).max().unwrap_or(0);
            let negated = at > 0 && matches!(words[at - 1], "not" | "no") && words[at] != "hot";
            if score > 0 && !negated && best.is_none_or(|(other, _)| score > other) {
                best = Some((score, *service));
            }
        }
    }
    best.map(|(_, service)| service)
}

fn score(words: &[&str], at: usize, name: &str) -> u32 {
    let mut length = 0;
    let mut exact = true;
    for (n, part) in name.split(' ').enumerate() {
        let Some(word) = words.get(at + n) else { return 0 };
        if *word != part {
            // Words that are right as they are.
            let typo =
                part.len() >= 6 && word.len() >= 5 && near(word, part) && !RIGHT.contains(word);
            if !typo {
                return 0;
            }
            exact = false;
        }
        length += 1;
    }
    let job = JOBS.contains(&name) || length > 1;
    if job { 4 + u32::from(exact) } else { 2 + u32::from(exact) }
}

/// One edit apart, as it is written or as it sounds: "photografer".
fn near(word: &str, part: &str) -> bool {
    if word.len().abs_diff(part.len()) > 2 {
        return false;
    }
    one_edit(word, part)
        || (part.contains("ph") && one_edit(&word.replace("ph", "f"), &part.replace("ph", "f")))
}

/// One letter away from a word for a service, and another word.
const RIGHT: &[&str] = &[
    "cleaver", "clearing", "cleaned", "gleaning", "leaning", "learner", "clearer", "leaner",
    "caner", "drawing", "faded", "broiler", "boiled", "stylish", "leaving", "portray", "bunker",
    "bargers", "number", "barbed", "barter", "learning", "leaned",
];

/// The offer that is meant, where the words choose one.
fn chosen(words: &[&str]) -> Option<Which> {
    const ORDINALS: [&str; 5] = ["first", "second", "third", "fourth", "fifth"];
    if words.contains(&"cheapest") {
        return Some(Which::Cheapest);
    }
    if words.iter().any(|word| matches!(*word, "best" | "top")) {
        return Some(Which::Best);
    }
    let named = (1_u8..).zip(ORDINALS).find(|(_, name)| words.contains(name));
    let numbered = words.windows(2).find_map(|pair| {
        let n: u8 = match pair {
            ["number" | "option" | "offer", n] => n.parse().ok()?,
            [n, "st" | "nd" | "rd" | "th"] => n.parse().ok()?,
            _ => return None,
        };
        (1..=99).contains(&n).then_some(n)
    });
    named.map(|(n, _)| n).or(numbered).map(Which::Nth)
}

fn which(words: &[&str]) -> Which {
    chosen(words).unwrap_or(Which::Cheapest)
}

/// What the message is for, when it says nothing of a new request.
pub(super) fn intent(tokens: &[Token], has_service: bool, known: bool) -> Intent {
    let words: Vec<&str> = tokens
        .iter()
        .filter(|token| token.kind != Kind::Sign)
        .map(|token| token.text.as_str())
        .collect();
    let has = |phrases: &[&str]| {
        phrases.iter().any(|phrase| {
            let count = phrase.split(' ').count();
            words.windows(count).any(|words| phrase.split(' ').eq(words.iter().copied()))
        })
    };
    let first = words.first().copied().unwrap_or_default();
    let short = words.len() <= 8;
    let forget = [
        "never mind",
        "nevermind",
        "forget it",
        "forget about it",
        "call it off",
        "scrap that",
        "drop it",
    ];
    let cancels = has(&["cancel", "abort", "cancelled", "canceled"]) || has(&forget);
    let policy = has(&[
        "cancel if",
        "can cancel",
        "cancellation",
        "was cancelled",
        "got cancelled",
        "had to cancel",
        "cancelled on",
    ]);
    let stop =
        words.as_slice() == ["stop"] || has(&["stop searching", "stop looking", "stop the search"]);
    let no_need = has(&[
        "no longer need",
        "do not need",
        "don t need",
        "not needed any more",
        "not needed anymore",
    ]);
    if (cancels && !(policy && (has_service || known))) || stop || (no_need && short) {
        return Intent::Cancel;
    }
    let accept = [
        "accept",
        "take the cheapest",
        "take it",
        "book it",
        "i ll take",
        "book the cheapest",
        "cheapest one",
        "cheapest offer",
        "take that",
        "take this",
        "book that",
        "take the first",
        "take the offer",
        "go with the cheapest",
        "go ahead",
        "sounds good",
        "confirm it",
        "confirm",
        "choose the cheapest",
        "go for it",
        "pick the cheapest",
        "the cheapest please",
        "go with it",
        "deal",
        "book this",
        "i take the",
    ];
    if !has_service
        && (has(&accept)
            || (short && !known && has(&["one", "offer", "option"]) && chosen(&words).is_some())
            || words.as_slice() == ["the", "cheapest"]
            || words.as_slice() == ["cheapest"])
    {
        return Intent::Accept(which(&words));
    }
    let status = [
        "status",
        "any news",
        "any offers",
        "any update",
        "any updates",
        "how is it going",
        "how s it going",
        "how is my request",
        "what s happening",
        "what is happening",
        "did anyone",
        "did anybody",
        "has anyone",
        "has anybody",
        "found anyone",
        "found anybody",
        "found somebody",
        "found someone",
        "where are we",
        "how far",
        "how many offers",
        "any luck",
        "still waiting",
        "any answer",
        "any answers",
        "heard back",
        "is it booked",
        "progress",
    ];
    if !known && has(&status) || short && has(&["status"]) || has(&["status of"]) {
        return Intent::Status;
    }
    if known {
        return Intent::Request;
    }
    let help = [
        "what can you do",
        "how does this work",
        "how does it work",
        "what do you do",
        "who are you",
        "what is this",
        "what can i ask",
        "what services",
        "how do i",
        "how to use",
        "can you help",
        "need help",
        "help me",
        "need some help",
        "which services",
        "what are you",
    ];
    if first == "help" || has(&help) {
        return Intent::Help;
    }
    let thanks = [
        "thanks",
        "thank you",
        "thx",
        "cheers",
        "danke",
        "merci",
        "gracias",
        "much appreciated",
        "ty",
    ];
    if has(&thanks) && words.len() <= 12 {
        return Intent::Thanks;
    }
    let greets = matches!(
        first,
        "hello"
            | "hi"
            | "hey"
            | "hallo"
            | "hiya"
            | "yo"
            | "greetings"
            | "howdy"
            | "hola"
            | "bonjour"
            | "moin"
            | "servus"
            | "sup"
    );
    let good = first == "good"
        && words
            .get(1)
            .is_some_and(|word| ["morning", "afternoon", "evening", "day"].contains(word));
    if (greets || good || words.as_slice() == ["guten", "tag"]) && short {
        return Intent::Greeting;
    }
    Intent::Request
}
