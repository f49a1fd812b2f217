//! Places and distances: the world's larger cities, and the neighbourhoods and landmarks of some of them.
//!
//! The data in `places.tsv` is cut from GeoNames (<https://www.geonames.org>), licensed under CC BY 4.0.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::LazyLock;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::token::{Kind, Token, fold, tokens};

mod qualifier;

use qualifier::{apart, is_denied, is_that, listed, qualifier};

/// A place with a name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Place {
    pub name: String,
    pub city: String,
    pub country: String,
    pub latitude: f64,
    pub longitude: f64,
    pub time_zone: String,
}

/// Great-circle distance by the haversine formula, in kilometres.
pub fn distance_km(a: (f64, f64), b: (f64, f64)) -> f64 {
    let (la, lb) = (a.0.to_radians(), b.0.to_radians());
    let (dlat, dlon) = ((b.0 - a.0).to_radians(), (b.1 - a.1).to_radians());
    let h = (dlat / 2.0).sin().powi(2) + la.cos() * lb.cos() * (dlon / 2.0).sin().powi(2);
    2.0 * 6_371.0 * h.sqrt().min(1.0).asin()
}

/// The currency (ISO 4217) of a country, given its English name or ISO 3166 code.
pub fn currency_of(country: &str) -> Option<&'static str> {
    let code = INDEX.countries.get(fold(country).as_str())?;
    INDEX.currencies.get(code).copied()
}

/// The code, if it is an ISO 4217 currency that some country uses.
pub(super) fn known_currency(code: &str) -> Option<&'static str> {
    INDEX.currencies.values().find(|known| **known == code).copied()
}

/// The ISO 3166 code of the country of a zone's largest city.
pub fn country_of(zone: &str) -> Option<&'static str> {
    INDEX.zones.get(zone).copied()
}

/// The coordinates and zones of all known places.
pub(super) fn spots() -> impl Iterator<Item = ((f64, f64), &'static str)> {
    INDEX.spots.iter().map(|spot| (spot.at, spot.zone))
}

struct Spot {
    name: &'static str,
    /// The city of a neighbourhood, or a city's own name.
    city: &'static str,
    code: &'static str,
    at: (f64, f64),
    zone: &'static str,
    population: u32,
    is_city: bool,
}

#[derive(Default)]
struct Index {
    spots: Vec<Spot>,
    /// Indexes of spots by folded name, words separated by one space.
    by_name: HashMap<String, Vec<usize>>,
    /// The number of words in the longest name that starts with this word.
    first_words: HashMap<String, usize>,
    /// Codes by folded name and by folded code.
    countries: HashMap<String, &'static str>,
    country_names: HashMap<&'static str, &'static str>,
    currencies: HashMap<&'static str, &'static str>,
    /// The country of each zone's largest city.
    zones: HashMap<&'static str, &'static str>,
}

static INDEX: LazyLock<Index> = LazyLock::new(|| Index::read(include_str!("places.tsv")));

impl Index {
    fn read(table: &'static str) -> Self {
        let mut index = Self::default();
        let mut cities: HashMap<(&str, &str), usize> = HashMap::new();
        for line in table.lines() {
            let fields: Vec<&'static str> = line.split('\t').collect();
            match fields[..] {
                ["C", code, name, currency] => {
                    index.countries.insert(fold(code), code);
                    index.countries.insert(fold(name), code);
                    index.country_names.insert(code, name);
                    index.currencies.insert(code, currency);
                }
                ["P", name, others, code, lat, lon, zone, population] => {
                    let at = (lat.parse().unwrap_or_default(), lon.parse().unwrap_or_default());
                    let population = population.parse().unwrap_or_default();
                    cities.entry((name, code)).or_insert(index.spots.len());
                    index.zones.entry(zone).or_insert(code);
                    let spot = Spot { name, city: name, code, at, zone, population, is_city: true };
                    index.add(spot, others);
                }
                ["N", name, others, city, code, lat, lon] => {
                    let Some(of) = cities.get(&(city, code)).map(|n| &index.spots[*n]) else {
                        continue;
                    };
                    let at = (lat.parse().unwrap_or_default(), lon.parse().unwrap_or_default());
                    let (zone, population) = (of.zone, of.population);
                    let spot = Spot { name, city, code, at, zone, population, is_city: false };
                    index.add(spot, others);
                }
                _ => {}
            }
        }
        for (alias, code) in COUNTRY_ALIASES {
            index.countries.insert((*alias).into(), code);
        }
        index
    }

    fn add(&mut self, spot: Spot, others: &'static str) {
        let n = self.spots.len();
        for name in std::iter::once(spot.name).chain(others.split('|')) {
            let words: Vec<String> = tokens(name)
                .into_iter()
                .filter(|token| token.kind == Kind::Word)
                .map(|token| token.text)
                .collect();
            let Some(first) = words.first() else { continue };
            let longest = self.first_words.entry(first.clone()).or_default();
            *longest = (*longest).max(words.len());
            let spots = self.by_name.entry(words.join(" ")).or_default();
            if !spots.contains(&n) {
                spots.push(n);
            }
        }
        self.spots.push(spot);
    }
}

const COUNTRY_ALIASES: &[(&str, &str)] = &[
    ("uk", "GB"),
    ("england", "GB"),
    ("scotland", "GB"),
    ("wales", "GB"),
    ("great britain", "GB"),
    ("usa", "US"),
    ("america", "US"),
    ("deutschland", "DE"),
    ("holland", "NL"),
    ("ontario", "CA"),
    ("california", "US"),
    ("texas", "US"),
    ("oregon", "US"),
    ("massachusetts", "US"),
    ("alabama", "US"),
    ("florida", "US"),
    ("maine", "US"),
    ("ohio", "US"),
    ("virginia", "US"),
];

/// Names that are also common words. They count only with a capital, after in, near, at, to or around.
const WORDS: &[&str] = &[
    "nice",
    "reading",
    "bath",
    "mobile",
    "of",
    "most",
    "orange",
    "bar",
    "split",
    "man",
    "same",
    "best",
    "mango",
    "date",
    "salt",
    "sale",
    "mesa",
    "plano",
    "paradise",
    "independence",
    "enterprise",
    "surprise",
    "normal",
    "hull",
    "stoke",
    "lincoln",
    "derby",
    "preston",
    "victoria",
    "jackson",
    "madison",
    "charlotte",
    "florence",
    "aurora",
    "orlando",
    "phoenix",
    "richmond",
    "worth",
    "cork",
    "pest",
    "buffalo",
    "surrey",
    "march",
    "sandy",
    "gay",
    "yao",
    "essen",
    "van",
    "fes",
    "fuji",
    "kita",
    "kobe",
    "tours",
    "bo",
    "ban",
    "as",
    "is",
    "an",
    "la",
    "sf",
    "kl",
    "alex",
    "queens",
    "astoria",
    "chelsea",
    "castro",
    "bastille",
    "mission",
    "deutz",
    "bellevue",
    "brest",
    "natal",
    "lima",
    "marina",
    "santa",
    "guide",
    "male",
    "bergen",
    "ulm",
    "hamm",
    "wedding",
    "kitchener",
    "regina",
    "gent",
    "goes",
    "york",
    "lagos",
    "samba",
    "savannah",
    "anna",
    "bello",
    "serra",
    "merlo",
    "mito",
    "sari",
    "tema",
    "tula",
    "homs",
    "minna",
    "gaya",
    "anand",
    "puri",
    "miri",
    "the loop",
    "the annex",
    "manly",
    "midtown",
    "glebe",
    "prater",
    "monti",
    "prati",
    "isola",
    "retiro",
    "novena",
    "soma",
    "dumbo",
    "stratford",
    "pilsen",
    "colosseum",
    "the mission",
    "bari",
    "oral",
    "perm",
];

/// How strongly the word before a name suggests a place; 0 suggests that it is none.
fn weight(before: Option<&Token>) -> u32 {
    match before.map_or("", |token| token.text.as_str()) {
        "in" | "near" | "at" | "nearby" | "around" | "within" | "inside" => 4,
        "to" | "by" | "close" | "of" | "on" | "for" | "next" => 3,
        "from" | "than" | "like" | "left" => 1,
        _ => 2,
    }
}

const BETWEEN: &[&str] = &["the", "central", "downtown", "north", "south", "east", "west", "inner"];

/// The places in a sentence.
#[derive(Default)]
pub(super) struct Found {
    pub place: Option<Place>,
    /// The tokens that name the place, or places that are not meant.
    pub named: Vec<Range<usize>>,
    /// Tokens that do not amount to one known place.
    pub unread: Vec<Range<usize>>,
}

/// The place that the sentence names. `cut`: the start of the last correction. `is_known`: whether a word, even with a
/// capital, is something else than a name.
pub(super) fn find_in(
    tokens: &[Token],
    home: &str,
    cut: Option<usize>,
    is_known: fn(&Token) -> bool,
) -> Found {
    let words: Vec<usize> =
        (0..tokens.len()).filter(|n| tokens[*n].kind == Kind::Word && !tokens[*n].taken).collect();
    let home = country_of(home);
    let mut found = Found::default();
    let mut named: Vec<Named> = Vec::new();
    let mut hint = None;
    let mut at = 0;
    while at < words.len() {
        let step = match longest(tokens, &words[at..]) {
            Some((spots, count)) => {
                if let Some(weight) = accept(tokens, &words, at, count, named.last()) {
                    let range = words[at]..words[at + count - 1] + 1;
                    named.push(Named { spots, weight, range });
                }
                count
            }
            None => 1,
        };
        hint = hint.or_else(|| country(tokens, &words[at..]));
        at += step;
    }
    let (excluded, mut named): (Vec<Named>, Vec<Named>) =
        named.into_iter().partition(|name| is_denied(tokens, name.range.start));
    found.named.extend(excluded.iter().map(|name| name.range.clone()));
    // "at 3 pm London time"
    named.retain(|name| !tokens.get(name.range.end).is_some_and(|next| next.is("time")));
    if let Some(cut) = cut
        && named.iter().any(|name| name.range.start > cut)
    {
        named.retain(|name| name.range.start > cut);
    }
    let mut best: Option<(Rank, &Spot, &Named)> = None;
    for name in &named {
        for spot in name.spots.iter().map(|n| &INDEX.spots[*n]) {
            if hint.is_some_and(|hint| hint != spot.code) {
                continue;
            }
            let in_named_city = !spot.is_city
                && named.iter().any(|other| {
                    other.range != name.range
                        && other.spots.iter().map(|n| &INDEX.spots[*n]).any(|city| {
                            city.is_city && (city.name, city.code) == (spot.city, spot.code)
                        })
                });
            let first = u32::MAX - u32::try_from(name.range.start).unwrap_or(u32::MAX);
            let weight = if in_named_city { 5 } else { name.weight };
            let at_home = home == Some(spot.code);
            let rank: Rank = (weight, first, at_home, spot.is_city, spot.population);
            if best.as_ref().is_none_or(|(other, ..)| rank > *other) {
                best = Some((rank, spot, name));
            }
        }
    }
    let Some((_, spot, name)) = best else { return found };
    // "in Berlin, but not in Mitte": a place cannot hold an exclusion.
    let inside = |name: &&Named| name.spots.iter().any(|n| INDEX.spots[*n].city == spot.city);
    let excluded = excluded.iter().filter(|_| spot.is_city).filter(inside);
    found.unread.extend(excluded.map(|name| name.range.clone()));
    let mut range = name.range.clone();
    for other in &named {
        let near = other.range.start >= range.end && other.range.start <= range.end + 3;
        if other.range != name.range && listed(tokens, other, name) {
            found.unread.push(other.range.clone());
        } else if near && other.spots.iter().any(|n| INDEX.spots[*n].city == spot.city) {
            range.end = other.range.end;
        } else if other.range != name.range && apart(other, name, spot) {
            found.unread.push(other.range.clone());
        }
    }
    if let Some(more) = qualifier(tokens, range.end, is_known) {
        if !is_that(tokens, &name.range, &more, spot) {
            found.unread.push(range.start..more.end);
        }
        range.end = more.end;
    }
    found.named.push(range);
    found.place = Some(Place {
        name: spot.name.into(),
        city: spot.city.into(),
        country: INDEX.country_names.get(spot.code).copied().unwrap_or_default().into(),
        latitude: spot.at.0,
        longitude: spot.at.1,
        time_zone: spot.zone.into(),
    });
    found
}

/// The rank of a candidate: weight of its wording, earliness, whether in the home country, whether a city, population.
type Rank = (u32, u32, bool, bool, u32);

struct Named {
    spots: &'static [usize],
    weight: u32,
    range: Range<usize>,
}

fn longest(tokens: &[Token], words: &[usize]) -> Option<(&'static [usize], usize)> {
    let first = &tokens[*words.first()?];
    let longest = *INDEX.first_words.get(first.text.as_str())?;
    let mut name = first.text.clone();
    let mut found = INDEX.by_name.get(&name).map(|spots| (spots.as_slice(), 1));
    for (count, word) in words.iter().enumerate().take(longest).skip(1) {
        let word = &tokens[*word];
        if !word.joined {
            break;
        }
        name.push(' ');
        name.push_str(&word.text);
        found = INDEX.by_name.get(&name).map(|spots| (spots.as_slice(), count + 1)).or(found);
    }
    found
}

fn accept(
    tokens: &[Token],
    words: &[usize],
    at: usize,
    count: usize,
    last: Option<&Named>,
) -> Option<u32> {
    let here = words[at];
    let name: Vec<&str> = words[at..at + count].iter().map(|n| tokens[*n].text.as_str()).collect();
    let name = name.join(" ");
    let mut before = at.checked_sub(1);
    while let Some(n) = before.filter(|n| tokens[words[*n]].any(BETWEEN)) {
        before = n.checked_sub(1);
    }
    let before = before.map(|n| &tokens[words[n]]);
    let capital = tokens[here].capital;
    if name.chars().count() < 2 {
        return None;
    }
    let continues = last.is_some_and(|last| last.range.end + 1 == here && tokens[here - 1].is(","));
    let mut weight = weight(before);
    if continues {
        weight = weight.max(last.map_or(0, |last| last.weight));
    }
    // "Wedding, Berlin"
    let end = words[at + count - 1] + 1;
    let in_its_city = tokens.get(end).is_some_and(|sign| sign.is(","))
        && tokens.get(end + 1).is_some_and(|next| {
            longest(tokens, &words[at..]).is_some_and(|(spots, _)| {
                spots
                    .iter()
                    .any(|n| fold(INDEX.spots[*n].city) == next.text && !INDEX.spots[*n].is_city)
            })
        });
    if WORDS.contains(&name.as_str()) {
        let said = before.is_some_and(|token| token.any(&["in", "near", "at", "to", "around"]));
        return (capital && (said || continues || in_its_city)).then_some(weight);
    }
    // In lower case, many names of small towns are ordinary words or people's names.
    let spots = longest(tokens, &words[at..])?.0;
    let known = spots.iter().any(|n| {
        let spot = &INDEX.spots[*n];
        !spot.is_city || (spot.population >= 500_000 && name.len() >= 4)
    });
    let placed =
        weight >= 3 && !before.is_some_and(|token| token.any(&["for", "on", "next", "of"]));
    (capital || known || (placed && name.len() >= 4) || continues).then_some(weight)
}

/// A country that is named on its own: "Birmingham, UK".
fn country(tokens: &[Token], words: &[usize]) -> Option<&'static str> {
    let first = tokens.get(*words.first()?)?;
    let code = |name: &str| INDEX.countries.get(name).copied();
    let two = words.get(1).filter(|n| tokens[**n].joined);
    two.and_then(|second| code(&format!("{} {}", first.text, tokens[*second].text)))
        .or_else(|| if first.text.len() > 2 || first.is("uk") { code(&first.text) } else { None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(text: &str, home: &str) -> Option<String> {
        find_in(&tokens(text), home, None, |_| false)
            .place
            .map(|place| format!("{}, {}, {}", place.name, place.city, place.country))
    }

    #[test]
    fn the_longest_name_in_the_named_city_wins() {
        for (text, home, place) in [
            ("near Alexanderplatz in Berlin", "UTC", "Alexanderplatz, Berlin, Germany"),
            ("Kreuzberg, Berlin", "UTC", "Kreuzberg, Berlin, Germany"),
            ("in New York", "UTC", "New York City, New York City, United States"),
            ("in Birmingham", "Europe/London", "Birmingham, Birmingham, United Kingdom"),
            ("in Cambridge, Massachusetts", "Europe/London", "Cambridge, Cambridge, United States"),
            ("in Chelsea", "America/New_York", "Chelsea, New York City, United States"),
            ("in Chelsea", "Europe/London", "Chelsea, London, United Kingdom"),
            ("near Soho in New York", "Europe/London", "SoHo, New York City, United States"),
            ("münchen", "UTC", "Munich, Munich, Germany"),
            ("in St. Pauli", "UTC", "St. Pauli, Hamburg, Germany"),
            ("I left Munich and live in Köln", "UTC", "Köln, Köln, Germany"),
        ] {
            assert_eq!(named(text, home).as_deref(), Some(place), "{text}");
        }
    }

    #[test]
    fn words_are_not_cities() {
        for text in [
            "a nice man is reading",
            "in the bath",
            "Nice, thanks",
            "take the cheapest of all",
            "me at home",
        ] {
            assert_eq!(named(text, "Europe/Berlin"), None, "{text}");
        }
        assert_eq!(named("a cleaner in Nice", "UTC").as_deref(), Some("Nice, Nice, France"));
    }

    #[test]
    fn the_data_is_whole() {
        assert!(INDEX.spots.len() > 3_000);
        for spot in &INDEX.spots {
            assert!(jiff::tz::TimeZone::get(spot.zone).is_ok(), "{} {}", spot.name, spot.zone);
            assert!(currency_of(spot.code).is_some(), "{}", spot.name);
        }
        assert_eq!(currency_of("Germany"), Some("EUR"));
        assert_eq!(currency_of("United States"), Some("USD"));
    }

    #[test]
    fn distances_follow_the_great_circle() {
        let km = distance_km((52.520, 13.405), (48.137, 11.575));
        assert!((500.0..510.0).contains(&km), "{km}");
    }
}
