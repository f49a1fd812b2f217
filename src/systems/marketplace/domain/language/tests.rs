//! Every labelled sentence is understood, and no text makes the reader panic.

use jiff::civil::Time;
use proptest::prelude::*;

use super::*;

const SENTENCES: &str = include_str!("sentences.tsv");

fn berlin() -> TimeZone {
    TimeZone::get("Europe/Berlin").unwrap()
}

fn now() -> Timestamp {
    "2026-11-18T10:00:00+01:00".parse().unwrap()
}

fn hear(text: &str) -> Understanding {
    understand(text, now(), &Home::of(&berlin()))
}

fn after(draft: Understanding, text: &str) -> Understanding {
    answer(draft, text, now(), &Home::of(&berlin()))
}

fn told_time(heard: &Understanding) -> String {
    let Some(when) = heard.when else { return "-".into() };
    let zone = heard.place.as_ref().map_or("Europe/Berlin", |place| &place.time_zone);
    let tz = TimeZone::get(zone).unwrap();
    let from = when.earliest.to_zoned(tz.clone());
    let to = when.latest.to_zoned(tz);
    let start = from.strftime("%F %H:%M").to_string();
    if when.exact {
        assert_eq!(from, to);
        return start;
    }
    let format = if from.date() == to.date() { "%H:%M" } else { "%F %H:%M" };
    format!("{start}..{}", to.strftime(format))
}

fn told(heard: &Understanding) -> String {
    let place = heard.place.as_ref().map_or("-".into(), |place| {
        if place.name == place.city {
            place.name.clone()
        } else {
            format!("{}, {}", place.name, place.city)
        }
    });
    let budget =
        heard.budget.as_ref().map_or("-".into(), |money| money.to_string().replace(".00 ", " "));
    let service = heard.service.map_or("-", Service::title);
    let mut told = [service, &told_time(heard), &place, &budget].join("\t");
    for unread in &heard.unread {
        told.push_str(&format!("\t?{:?} {}", unread.about, unread.words));
    }
    told
}

#[test]
fn every_labelled_sentence_is_understood() {
    let labelled: Vec<(&str, &str)> = SENTENCES
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('\t'))
        .collect();
    let wrong: Vec<String> = labelled
        .iter()
        .filter(|(text, label)| told(&hear(text)) != *label)
        .map(|(text, label)| format!("{text}\n  want {label}\n  told {}", told(&hear(text))))
        .collect();
    let (count, failed) = (labelled.len(), wrong.len());
    assert!(wrong.is_empty(), "{failed} of {count} wrong:\n{}", wrong.join("\n"));
    assert!(count >= 200, "{count}");
}

/// What is not understood is asked about, and nothing else takes its place.
#[test]
fn what_cannot_be_read_is_never_replaced() {
    let friday: Timestamp = "2026-11-27T10:00:00+01:00".parse().unwrap();
    let mut wrong = Vec::new();
    let mut count = 0;
    for line in include_str!("asked.tsv").lines().filter(|line| !line.starts_with('#')) {
        let mut parts = line.splitn(3, '\t');
        let mut next = || parts.next().unwrap();
        let (zone, text, label) = (next(), next(), next());
        let tz = TimeZone::get(zone).unwrap();
        let heard = understand(text, friday, &Home::of(&tz));
        let said = told(&heard);
        if said != label {
            wrong.push(format!("{text}\n  want {label}\n  told {said}"));
        }
        let asks = question(&heard);
        for unread in &heard.unread {
            let quoted = asks.contains(&unread.words) || unread.about == About::SecondService;
            assert!(!missing(&heard).is_empty() && quoted, "{text}: {asks}");
        }
        count += 1;
    }
    assert!(wrong.is_empty(), "{} of {count} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count >= 70, "{count}");
}

#[test]
fn messages_without_a_request_are_told_apart() {
    for (text, intent) in [
        ("hello", Intent::Greeting),
        ("Good morning!", Intent::Greeting),
        ("hi there", Intent::Greeting),
        ("thanks a lot", Intent::Thanks),
        ("help", Intent::Help),
        ("What can you do?", Intent::Help),
        ("status", Intent::Status),
        ("any news?", Intent::Status),
        ("how many offers do I have", Intent::Status),
        ("what's the status of my haircut in Berlin tomorrow?", Intent::Status),
        ("hi, I need a haircut tomorrow", Intent::Request),
        ("thanks, tomorrow at 5 is fine", Intent::Request),
        ("my plumber cancelled, I need another one tomorrow at 10 in Berlin", Intent::Request),
        ("Don't book me a haircut tomorrow in Berlin at 5pm", Intent::Refusal),
        ("Hi, I'm a plumber in Berlin and I want to offer my services here", Intent::Offering),
        ("I charge 80 euros per hour, Monday to Friday 9 to 5", Intent::Offering),
        ("", Intent::Request),
    ] {
        assert_eq!(hear(text).intent, intent, "{text}");
    }
}

fn with_offers(text: &str) -> Intent {
    let offers = ["Mirela's Chair", "Anna Cuts", "Salon Berta"].map(String::from);
    let berlin = berlin();
    let home = Home { offers: &offers, ..Home::of(&berlin) };
    understand(text, now(), &home).intent
}

#[test]
fn what_binds_is_a_closed_form() {
    let cheapest = Intent::Accept(Which::Cheapest, None);
    let nth = |n| Intent::Accept(Which::Nth(n), None);
    let it = Intent::Accept(Which::It, None);
    let cancel = |thing| Intent::Cancel(thing, None);
    let haircut = Some(Service::Haircut);
    for (text, intent) in [
        ("the cheapest", cheapest),
        ("take the cheapest", cheapest),
        (
            "OK, great: book the cheapest",
            Intent::AcceptTalk { which: Some(Which::Cheapest), hesitates: true },
        ),
        ("accept the cheapest offer please", cheapest),
        ("Yes, the cheapest one, thank you!", cheapest),
        ("let's go with the cheapest", cheapest),
        ("the first one", nth(1)),
        ("I'll take the second", nth(2)),
        ("Book the second one", nth(2)),
        ("I accept offer number 3", nth(3)),
        ("the 2nd option please", nth(2)),
        ("accept Anna's offer", nth(2)),
        ("I\u{2019}ll take the offer from Mirela", nth(1)),
        ("the cheapest haircut", Intent::Accept(Which::Cheapest, haircut)),
        ("the best rated one", Intent::Accept(Which::Best, None)),
        ("I'll take it", it),
        ("accept it please", it),
        ("yes", Intent::Yes),
        ("Yes please!", Intent::Yes),
        ("ok", Intent::Nod),
        ("no thanks", Intent::No),
        ("cancel", cancel(Thing::Any)),
        ("please cancel my request", cancel(Thing::Request)),
        ("cancel my appointment please", cancel(Thing::Booking)),
        ("cancel the haircut", Intent::Cancel(Thing::Any, haircut)),
        ("cancel my haircut booking", Intent::Cancel(Thing::Booking, haircut)),
        ("cancel my appointment for the haircut", Intent::Cancel(Thing::Booking, haircut)),
        ("stop searching", cancel(Thing::Search)),
        ("never mind", Intent::Drop),
    ] {
        assert_eq!(with_offers(text), intent, "{text}");
    }
    for text in [
        "the cheapest?",
        "\u{201c}the first one\u{201d}",
        "'the first one'",
        "the first one if it is near",
        "the first one tomorrow",
        "take the first or the second",
        "accept Carla's offer",
        "accept nothing",
        "cancel my request tomorrow",
        "cancel the dentist",
        "cancel my haircut and my plumber",
        "first",
        "yes?",
        "yes but cheaper",
        "yes \u{1f644}",
    ] {
        let bound = with_offers(text);
        let binds = matches!(bound, Intent::Accept(..) | Intent::Cancel(..) | Intent::Yes);
        assert!(!binds, "{text}: {bound:?}");
    }
}

#[test]
fn answers_fill_what_was_missing() {
    let mut draft = hear("I need a haircut");
    assert_eq!(missing(&draft), ["when", "place"]);
    assert_eq!(question(&draft), "Where do you need the haircut, and when?");
    draft = after(draft, "in Kreuzberg");
    assert_eq!(question(&draft), "When do you need the haircut near Kreuzberg?");
    draft = after(draft, "tomorrow at 5, max 40");
    assert_eq!(told(&draft), "haircut\t2026-11-19 17:00\tKreuzberg, Berlin\t40 EUR");
    assert!(missing(&draft).is_empty());
    assert_eq!(draft.details, "I need a haircut\nin Kreuzberg\ntomorrow at 5, max 40");
    let moved = after(draft, "make it Friday at 6 pm");
    assert_eq!(told_time(&moved), "2026-11-20 18:00");
}

#[test]
fn answers_are_read_in_the_light_of_what_was_said() {
    for (messages, told_of_all) in [
        (&["haircut on Friday", "Mitte, at 5"][..], "haircut\t2026-11-20 17:00\tMitte, Berlin\t-"),
        (
            &["haircut on Friday at 5", "make it 6", "Mitte"],
            "haircut\t2026-11-20 18:00\tMitte, Berlin\t-",
        ),
        (&["haircut Friday at 5 pm", "Saturday instead"], "haircut\t2026-11-21 17:00\t-\t-"),
        (&["haircut on Friday afternoon", "at 4"], "haircut\t2026-11-20 16:00\t-\t-"),
        (&["haircut in Mitte", "5"], "haircut\t2026-11-18 17:00\tMitte, Berlin\t-"),
        (&["haircut in Mitte", "tomorrow", "5"], "haircut\t2026-11-19 17:00\tMitte, Berlin\t-"),
        // The hour is the place's, whichever is said first.
        (
            &["haircut tomorrow at 5 pm", "in New York"],
            "haircut\t2026-11-19 17:00\tNew York City\t-",
        ),
        (&["haircut in Tokyo", "tomorrow at 5 pm"], "haircut\t2026-11-19 17:00\tTokyo\t-"),
        (
            &["haircut in Tokyo", "tomorrow 5 pm", "up to 5000"],
            "haircut\t2026-11-19 17:00\tTokyo\t5000 JPY",
        ),
        // So is the currency, unless it was named.
        (&["haircut, up to 60", "in London"], "haircut\t-\tLondon\t60 GBP"),
        (&["haircut, up to 60 euros", "in London"], "haircut\t-\tLondon\t60 EUR"),
        // Corrections.
        (
            &[
                "haircut tomorrow at 5",
                "sorry, I meant a plumber",
                "not tomorrow, on Monday",
                "Mitte",
            ],
            "plumbing\t2026-11-23 17:00\tMitte, Berlin\t-",
        ),
        // What was not understood stays open until it is said, with the hour that was.
        (
            &["haircut on 31 November at 4", "Mitte"],
            "haircut\t-\tMitte, Berlin\t-\t?When on 31 November",
        ),
        (
            &["haircut on 31 November at 4", "Mitte", "at 5", "on 30 November"],
            "haircut\t2026-11-30 17:00\tMitte, Berlin\t-",
        ),
        (
            &["cleaner tomorrow at 5 in Mitte, 20 euros per hour", "no limit"],
            "cleaning\t2026-11-19 17:00\tMitte, Berlin\t-",
        ),
        (
            &["cleaner tomorrow at 5 in Mitte, 20 euros per hour", "20 in all"],
            "cleaning\t2026-11-19 17:00\tMitte, Berlin\t20 EUR",
        ),
        (
            &["haircut tomorrow at 5 in Frankfurt (Oder)", "in Berlin"],
            "haircut\t2026-11-19 17:00\tBerlin\t-",
        ),
    ] {
        let first = hear(messages[0]);
        let known = messages[1..].iter().fold(first, |known, text| after(known, text));
        assert_eq!(told(&known), told_of_all, "{messages:?}");
    }
}

#[test]
fn a_time_that_is_past_is_asked_for_again() {
    let late = hear("haircut in Mitte today at 9 am");
    assert_eq!((missing(&late), late.intent), (vec!["when"], Intent::Request));
    assert_eq!(told_time(&after(late, "then at 11")), "2026-11-18 11:00");
    let over_there = after(hear("haircut today at 5 pm"), "in Tokyo");
    assert_eq!(missing(&over_there), ["when"]);
}

#[test]
fn a_text_beyond_the_limit_is_never_read_in_part() {
    let long =
        format!("haircut tomorrow at 5pm in Mitte.{} Not over 40 euros", " Please.".repeat(300));
    let heard = hear(&long);
    assert_eq!(missing(&heard), ["confirmation"], "{:?}", heard.unread);
}

#[test]
fn yesterday_is_said_to_be_past() {
    let told = question(&hear("haircut yesterday at 5pm in Mitte"));
    assert_eq!(told, "\u{201c}yesterday\u{201d} is past. When do you need the haircut near Mitte?");
}

#[test]
fn a_time_that_the_clocks_skip_or_repeat_is_still_a_time() {
    let spring: Timestamp = "2026-03-28T10:00:00Z".parse().unwrap();
    let skipped = understand("tomorrow at 02:30", spring, &Home::of(&berlin())).when.unwrap();
    let local = skipped.earliest.to_zoned(berlin());
    assert_eq!(local.time(), Time::constant(3, 30, 0, 0));
    let day_later = understand("tomorrow at 5 pm", spring, &Home::of(&berlin())).when.unwrap();
    assert_eq!(day_later.earliest.to_string(), "2026-03-29T15:00:00Z");
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        let known = hear(&text);
        assert_eq!(known, hear(&text));
        after(known, &text);
    }

    #[test]
    fn no_mix_of_its_own_words_panics(
        words in proptest::collection::vec(0_usize..64, 0..24),
        far in any::<bool>(),
    ) {
        const WORDS: [&str; 64] = [
            "at", "in", "5", "pm", ":", "30", "31", "2026", "-", ".", "/", "next", "week", "friday", "tomorrow", "€", "60",
            "euros", "between", "and", "to", "half", "past", "noon", "midnight", "99999999999", "hundred", "thousand", "a",
            "two", "nov", "february", "29", "th", "the", "of", "days", "hours", "months", "berlin", "st", "00", "12", "24",
            "k", ",", "1,200", "max", "under", "around", "ish", "o'clock", "morning", "tonight", "from", "now", "ß", "İ",
            "near", "Köln", "é", "weekend", "10000", "quarter",
        ];
        let text: Vec<&str> = words.iter().map(|n| WORDS[*n]).collect();
        let now = if far { Timestamp::MAX } else { now() };
        understand(&text.join(" "), now, &Home::of(&berlin()));
        understand(&text.concat(), Timestamp::MIN, &Home::of(&berlin()));
    }
}

/// The words that acts are made of, and what must keep them from being one.
const OF_ACTS: &[&str] = &[
    "accept",
    "take",
    "book",
    "the",
    "first",
    "second",
    "cheapest",
    "best",
    "one",
    "offer",
    "it",
    "that",
    "number",
    "2",
    "yes",
    "ok",
    "please",
    "cancel",
    "my",
    "request",
    "booking",
    "appointment",
    "haircut",
    "plumber",
    "i",
    "ll",
    "stop",
    "never",
    "mind",
    "confirm",
    "go",
    "with",
    "Anna",
    "s",
    "for",
    "sure",
    ",",
    ".",
    "!",
    "thanks",
];
const STOPPERS: &[&str] = &[
    "?", "not", "don't", "never", "no", "can't", "won't", "if", "unless", "maybe", "\"", "would",
    "could", "but",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_salad_with_a_question_or_a_negation_binds(
        words in proptest::collection::vec(0..OF_ACTS.len(), 0..8),
        stopper in 0..STOPPERS.len(),
        at in 0_usize..9,
    ) {
        let mut text: Vec<&str> = words.iter().map(|n| OF_ACTS[*n]).collect();
        text.insert(at.min(text.len()), STOPPERS[stopper]);
        let text = text.join(" ");
        // "never mind" is the one act with a negation, and binds nothing.
        let intent = with_offers(&text);
        let binds = matches!(intent, Intent::Accept(..) | Intent::Cancel(..) | Intent::Yes);
        prop_assert!(!binds, "{}: {:?}", text, intent);
    }
}

#[test]
fn a_sentence_takes_little_time() {
    hear("warm");
    let sentences: Vec<&str> = SENTENCES.lines().collect();
    let started = std::time::Instant::now();
    for text in &sentences {
        hear(text);
    }
    println!("{:?} a sentence", started.elapsed() / u32::try_from(sentences.len()).unwrap());
}
