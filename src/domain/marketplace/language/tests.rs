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
    understand(text, now(), &berlin())
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
    let budget = heard.budget.as_ref().map_or("-".into(), |money| {
        let cents = money.amount_minor % 100;
        let cents = if cents == 0 { String::new() } else { format!(".{cents:02}") };
        format!("{}{cents} {}", money.amount_minor / 100, money.currency)
    });
    let service = heard.service.map_or("-", Service::title);
    [service, &told_time(heard), &place, &budget].join("\t")
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
    assert!(count >= 120, "{count}");
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
        ("cancel", Intent::Cancel),
        ("please cancel my request", Intent::Cancel),
        ("never mind", Intent::Cancel),
        ("status", Intent::Status),
        ("any news?", Intent::Status),
        ("how many offers do I have", Intent::Status),
        ("take the cheapest", Intent::Accept),
        ("I'll take it", Intent::Accept),
        ("accept the cheapest offer please", Intent::Accept),
        ("hi, I need a haircut tomorrow", Intent::Request),
        ("thanks, tomorrow at 5 is fine", Intent::Request),
        ("", Intent::Request),
    ] {
        assert_eq!(hear(text).intent, intent, "{text}");
    }
}

#[test]
fn answers_fill_what_was_missing() {
    let mut draft = hear("I need a haircut");
    assert_eq!(missing(&draft), ["when", "place"]);
    assert_eq!(question(&draft), "Where do you need the haircut, and when?");
    draft = merge(draft, hear("in Kreuzberg"));
    assert_eq!(question(&draft), "When do you need the haircut near Kreuzberg?");
    draft = merge(draft, hear("tomorrow at 5, max 40"));
    assert_eq!(told(&draft), "haircut\t2026-11-19 17:00\tKreuzberg, Berlin\t40 EUR");
    assert!(missing(&draft).is_empty());
    assert_eq!(draft.details, "I need a haircut\nin Kreuzberg\ntomorrow at 5, max 40");
    let moved = merge(draft, hear("make it Friday at 6 pm"));
    assert_eq!(told_time(&moved), "2026-11-20 18:00");
}

#[test]
fn a_time_that_the_clocks_skip_or_repeat_is_still_a_time() {
    let spring: Timestamp = "2026-03-28T10:00:00Z".parse().unwrap();
    let skipped = understand("tomorrow at 02:30", spring, &berlin()).when.unwrap();
    let local = skipped.earliest.to_zoned(berlin());
    assert_eq!(local.time(), Time::constant(3, 30, 0, 0));
    let day_later = understand("tomorrow at 5 pm", spring, &berlin()).when.unwrap();
    assert_eq!(day_later.earliest.to_string(), "2026-03-29T15:00:00Z");
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        hear(&text);
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
        understand(&text.join(" "), now, &berlin());
        understand(&text.concat(), Timestamp::MIN, &berlin());
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
