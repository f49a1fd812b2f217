//! The words for services.

use super::numbers::one_edit;
use super::token::{Kind, Table, Token, Words, words_of};
use crate::systems::marketplace::domain::service::Service;

/// Words and phrases for each service, the more specific first. A phrase matches its words in sequence.
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

/// Words for jobs, which count more than words for things: "clean my sink", "photos of my hair".
static JOBS: Table = Table::new(|| {
    words_of(
        "haircut, haircuts, hairdresser, barber, plumber, plumbing, photographer, photography,
         photoshoot, cleaner, cleaners, cleaning, clean, cleaned, photos, headshot, headshots,
         headshots, hairstylist, leak, leaking, clogged, blocked, burst, photographers, plumbers,
         barbers, pictures, dripping, maid",
    )
});

/// The [`JOBS`] that name the wanted service itself, not its object.
pub(super) static PROFESSIONS: Table = Table::new(|| {
    words_of(
        "haircut, haircuts, hairdresser, hairdressers, hairstylist, barber, barbers, plumber,
         plumbers, plummer, plumbing, photographer, photographers, photography, photoshoot,
         cleaner, cleaners, cleaning, maid, housekeeper, handyman",
    )
});

/// Trades that nobody here offers.
pub(super) static OTHER_TRADES: Table = Table::new(|| {
    words_of(
        "locksmith, electrician, electricians, dentist, doctor, gardener, gardening, landscaper,
         carpenter, roofer, painter, decorator, mechanic, massage, masseur, masseuse, manicure,
         pedicure, tattoo, babysitter, babysitting, nanny, tutor, lawyer, vet, veterinarian,
         groomer, grooming, tailor, exterminator, handyman, mover, movers, removal, taxi,
         chauffeur, caterer, catering, optician, physiotherapist, therapist, beautician, chef,
         florist, chimney, builder, bricklayer, plasterer, tiler, welder, upholsterer,
         seamstress, cobbler, accountant, translator",
    )
});

/// Things that other trades cut or clean.
static OTHER_THINGS: Table = Table::new(|| {
    words_of(
        "hedge, hedges, lawn, grass, garden, tree, trees, bush, bushes, teeth, tooth, dog, dogs,
         cat, cats, poodle, puppy, horse, sheep, pet, pets, car, cars, boat, pool, nails,
         toenails, fingernails, ears, skin, face, chimney, gutter, gutters, roof, suit, dress,
         clothes, laundry, shoes, jewellery, jewelry, laptop, computer, phone, wound, fish",
    )
});

/// The services that a sentence names.
#[derive(Default)]
pub(super) struct Services {
    pub first: Option<Service>,
    /// A second service, named as clearly as the first, and the words that name it.
    pub second: Option<(Service, String)>,
    /// A service that nobody here offers.
    pub other: Option<String>,
    /// The tokens that name a service.
    pub named: Vec<usize>,
}

pub(super) fn services(tokens: &[Token]) -> Services {
    let at: Vec<usize> =
        (0..tokens.len()).filter(|n| tokens[*n].kind == Kind::Word && !tokens[*n].taken).collect();
    let words: Vec<&str> = at.iter().map(|n| tokens[*n].text.as_str()).collect();
    let corrected = super::corrections::corrected_at(tokens);
    let mut found = Services::default();
    let mut best: Option<(bool, u32)> = None;
    let mut wanted: Vec<(usize, Service)> = Vec::new();
    for n in 0..words.len() {
        for (service, names) in SERVICES {
            let name = names.iter().map(|name| (score(&words, n, name), name));
            let Some((score, name)) = name.max_by_key(|(score, _)| *score) else { continue };
            let negated = n > 0 && matches!(words[n - 1], "not" | "no") && words[n] != "hot";
            if score == 0 {
                continue;
            }
            found.named.extend(&at[n..n + name.split(' ').count()]);
            if negated {
                continue;
            }
            if PROFESSIONS.contains(*name) {
                wanted.push((at[n], *service));
            }
            // After a correction the new words win.
            let rank = (corrected.is_some_and(|cut| at[n] > cut), score);
            if best.is_none_or(|other| rank > other) {
                best = Some(rank);
                found.first = Some(*service);
            }
        }
    }
    let joined = words.iter().any(|word| matches!(*word, "and" | "or" | "plus" | "also"))
        || tokens.iter().any(|token| token.any(&["&", "+", "/"]));
    let other = |(n, service): &&(usize, Service)| {
        found.first != Some(*service) && corrected.is_none_or(|cut| *n > cut)
    };
    if joined && let Some((n, service)) = wanted.iter().find(other) {
        found.second = Some((*service, tokens[*n].text.clone()));
    }
    let from = corrected.filter(|cut| wanted.iter().any(|(n, _)| n > cut));
    let from = from.map_or(0, |cut| at.partition_point(|n| *n <= cut));
    found.other = other_trade(&words[from..], !wanted.is_empty() && !joined)
        .or_else(|| no_hair_of_ours(&words[from..], found.first));
    found
}

/// A requested service that nobody here offers: another trade, or a known verb with another object.
///
/// `wanted`: exactly one of our services is asked for.
fn other_trade(words: &[&str], wanted: bool) -> Option<String> {
    let about = |n: usize| n >= 2 && matches!(words[n - 2], "m" | "am" | "are" | "is" | "our");
    let other = |n: &usize| !wanted && OTHER_TRADES.contains(words[*n]) && !about(*n);
    let trade = (0..words.len()).find(other);
    if let Some(n) = trade {
        return Some(words[n].into());
    }
    (0..words.len())
        .find_map(|n| {
            let verb = matches!(
                words[n],
                "trim"
                    | "clean"
                    | "cut"
                    | "shave"
                    | "wash"
                    | "mow"
                    | "whiten"
                    | "shear"
                    | "polish"
                    | "style"
                    | "fade"
            );
            let object = words[n + 1..]
                .iter()
                .take(3)
                .take_while(|word| !matches!(**word, "and" | "in" | "at"));
            let object = verb.then_some(object)?.find(|word| OTHER_THINGS.contains(**word))?;
            Some((*object).into())
        })
        .or_else(|| {
            words.windows(2).find_map(|pair| {
                let done = matches!(
                    pair[1],
                    "trimmed"
                        | "cleaned"
                        | "cut"
                        | "trim"
                        | "trimming"
                        | "cleaning"
                        | "washed"
                        | "shaved"
                        | "whitening"
                );
                (done && OTHER_THINGS.contains(pair[0])).then(|| pair[0].to_owned())
            })
        })
}

/// "dog haircut", "a haircut for my poodle", "hair transplant".
fn no_hair_of_ours(words: &[&str], first: Option<Service>) -> Option<String> {
    const ANIMALS: Words = Words(
        "dog, dogs, cat, cats, poodle, poodles, puppy, horse, sheep, pet, pets, pony, hamster, rabbit",
    );
    if first != Some(Service::Haircut) {
        return None;
    }
    (0..words.len()).find_map(|n| {
        let next = words.get(n + 1).copied().unwrap_or_default();
        let hair = words[n] == "hair"
            && Words("transplant, transplants, transplantation, removal, loss, implants").has(next);
        let theirs = ANIMALS.has(words[n]) && names_service(next);
        let for_them = words[n] == "for"
            && (ANIMALS.has(next) || words.get(n + 2).is_some_and(|word| ANIMALS.has(word)));
        match (hair || theirs, for_them) {
            (true, _) => Some(words[n..n + 2].join(" ")),
            (_, true) => Some(words[n..words.len().min(n + 3)].join(" ")),
            _ => None,
        }
    })
}

/// Whether this word alone names a service.
pub(super) fn names_service(word: &str) -> bool {
    static NAMES: Table =
        Table::new(|| SERVICES.iter().flat_map(|(_, names)| names.iter().copied()).collect());
    NAMES.contains(word)
}

/// The service whose exact name these words begin with, and the number of its words.
pub(super) fn named_service(words: &[&str]) -> Option<(Service, usize)> {
    let names =
        SERVICES.iter().flat_map(|(service, names)| names.iter().map(|name| (*service, *name)));
    names
        .filter(|(_, name)| {
            let count = name.split(' ').count();
            words.len() >= count && name.split(' ').eq(words[..count].iter().copied())
        })
        .map(|(service, name)| (service, name.split(' ').count()))
        .max_by_key(|(_, count)| *count)
}

fn score(words: &[&str], at: usize, name: &str) -> u32 {
    let mut length = 0;
    let mut exact = true;
    for (n, part) in name.split(' ').enumerate() {
        let Some(word) = words.get(at + n) else { return 0 };
        if *word != part {
            // Correct English words are not typos of a service.
            let typo =
                part.len() >= 6 && word.len() >= 5 && near(word, part) && !RIGHT.contains(*word);
            if !typo {
                return 0;
            }
            exact = false;
        }
        length += 1;
    }
    let job = JOBS.contains(name) || length > 1;
    if job { 4 + u32::from(exact) } else { 2 + u32::from(exact) }
}

/// Whether two words are one edit apart, in spelling or in sound: "photografer".
fn near(word: &str, part: &str) -> bool {
    if word.len().abs_diff(part.len()) > 2 {
        return false;
    }
    one_edit(word, part)
        || (part.contains("ph") && one_edit(&word.replace("ph", "f"), &part.replace("ph", "f")))
}

/// Correct words that are one letter away from a word for a service.
static RIGHT: Table = Table::new(|| {
    words_of(
        "cleaver, clearing, cleaned, gleaning, leaning, learner, clearer, leaner, caner, drawing,
         faded, broiler, boiled, stylish, leaving, portray, bunker, bargers, number, barbed,
         barter, learning, leaned, locked, flocked, booked, barger",
    )
});
