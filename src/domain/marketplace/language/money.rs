//! How much something may cost.

use super::numbers::in_words;
use super::token::{Kind, Token};
use crate::domain::marketplace::money::{Money, minor_digits};

const MOST_MINOR: i64 = 1_000_000_000;

#[derive(Clone, Copy)]
struct Amount {
    minor: i64,
    currency: Option<&'static str>,
    cued: bool,
}

/// The most that may be paid. `local`: the currency of the place.
pub(super) fn read(tokens: &mut [Token], local: Option<&str>) -> Option<Money> {
    let mut best: Option<Amount> = None;
    let mut at = 0;
    while at < tokens.len() {
        let Some((amount, end)) = amount_at(tokens, at, local) else {
            at += 1;
            continue;
        };
        for token in &mut tokens[at..end] {
            token.taken = true;
        }
        let better = best.is_none_or(|best| (amount.cued, amount.minor) > (best.cued, best.minor));
        if better {
            let currency = amount.currency.or(best.and_then(|best| best.currency));
            best = Some(Amount { currency, ..amount });
        }
        at = end;
    }
    let best = best?;
    let currency = best.currency.or(local)?;
    // `number` counts hundredths.
    let minor = match minor_digits(currency) {
        0 => (best.minor / 100).max(1),
        3 => best.minor * 10,
        _ => best.minor,
    };
    Some(Money::new(minor, currency))
}

/// An amount that starts here, and where it ends.
fn amount_at(tokens: &[Token], at: usize, local: Option<&str>) -> Option<(Amount, usize)> {
    let free = |n: usize| tokens.get(n).filter(|token| !token.taken);
    let cued = cue(tokens, at);
    // "€60", "EUR 60", "US$ 60"
    let before = free(at)
        .filter(|token| token.kind == Kind::Sign || token.text.len() == 3)
        .and_then(|token| currency(tokens, at, token, local));
    let from = at + before.map_or(0, |(_, used)| used);
    let (mut minor, used) = number(tokens, from)?;
    let mut end = from + used;
    let after = free(end).and_then(|token| currency(tokens, end, token, local));
    if before.is_none() {
        // A part of a longer number or word.
        let inside = at > 0
            && tokens[at].glued
            && tokens[at - 1].kind == Kind::Sign
            && tokens[at - 1].any(&[":", "/", "."]);
        if inside {
            return None;
        }
        // "40-60 euros": the other end says the currency.
        let ranged = free(end).is_some_and(|token| token.any(&["-", "–", "to", "and"]))
            && number(tokens, end + 1).is_some_and(|(_, more)| {
                free(end + 1 + more)
                    .is_some_and(|token| currency(tokens, end + 1 + more, token, local).is_some())
            });
        if after.is_none() && (ranged || !cued || !ends(tokens, end)) {
            return None;
        }
    }
    // "€40-60"
    let to = free(end).filter(|token| before.is_some() && token.any(&["-", "–", "to"]));
    if let Some((more, used)) = to.and_then(|_| number(tokens, end + 1))
        && more > minor
        && !free(end + 1 + used).is_some_and(|next| next.any(&["pm", "am", ":"]))
    {
        (minor, end) = (more, end + 1 + used);
    }
    end += after.map_or(0, |(_, used)| used);
    let currency = before.or(after).map(|(code, _)| code);
    (0 < minor && minor <= MOST_MINOR).then_some((Amount { minor, currency, cued }, end))
}

/// Whether what is before the amount says that it is a budget.
fn cue(tokens: &[Token], at: usize) -> bool {
    let word = |back: usize| at.checked_sub(back).map_or("", |n| tokens[n].text.as_str());
    let filler = |word: &str| {
        matches!(
            word,
            "is" | "of"
                | ":"
                | "about"
                | "around"
                | "to"
                | "at"
                | "="
                | "the"
                | "my"
                | "more"
                | "than"
                | "s"
                | "'"
                | "’"
                | "a"
                | "roughly"
                | "."
                | "only"
                | "for"
                | "most"
                | "i"
                | "can"
                | "are"
                | "–"
                | "-"
                | "up"
        )
    };
    for back in 1..=4 {
        match word(back) {
            "max" | "maximum" | "budget" | "under" | "below" | "spend" | "pay" | "limit"
            | "maximal" | "price" | "afford" | "cap" | "cheaper" | "less" | "exceed" | "costs"
            | "cost" => return true,
            "to" if word(back + 1) == "up" => return true,
            "than" if matches!(word(back + 1), "more" | "less") => return true,
            "most" if word(back + 1) == "at" => return true,
            "within" if back == 1 => return true,
            other if filler(other) => {}
            _ => return false,
        }
    }
    false
}

/// What follows a sum without a currency is not the thing that it counts.
fn ends(tokens: &[Token], at: usize) -> bool {
    const STOPS: &[&str] = &[
        ",",
        "!",
        "?",
        ";",
        ")",
        "on",
        "in",
        "at",
        "near",
        "today",
        "tomorrow",
        "tonight",
        "for",
        "please",
        "and",
        "or",
        "if",
        "max",
        "maximum",
        "this",
        "next",
        "but",
        "total",
        "is",
        "altogether",
        "thanks",
        "with",
        "per",
        "all",
        "-",
        "around",
        "budget",
        "tops",
        "because",
        "the",
        "by",
        "would",
        "monday",
        "tuesday",
        "wednesday",
        "thursday",
        "friday",
        "saturday",
        "sunday",
        "after",
        "before",
        "between",
        "–",
        "somewhere",
    ];
    let Some(token) = tokens.get(at) else { return true };
    let sentence = token.is(".") && tokens.get(at + 1).is_none_or(|next| !next.glued);
    (token.any(STOPS) && !(token.is(":"))) || sentence || (token.taken && !token.glued)
}

/// An amount in minor units, and how many tokens it takes.
fn number(tokens: &[Token], at: usize) -> Option<(i64, usize)> {
    let token = tokens.get(at).filter(|token| !token.taken)?;
    if token.kind == Kind::Word {
        let (amount, used) = in_words(&tokens[at..])?;
        return Some((i64::from(amount) * 100, used));
    }
    let mut whole = i64::from(token.number()?);
    let (mut cents, mut used) = (0, 1);
    while let (Some(sign), Some(digits)) = (tokens.get(at + used), tokens.get(at + used + 1)) {
        let separates =
            sign.any(&[",", ".", "'"]) && sign.glued && digits.glued && digits.kind == Kind::Number;
        if !separates {
            break;
        }
        let part = i64::from(digits.number()?);
        match digits.text.len() {
            3 if whole < 1_000_000 => whole = whole * 1_000 + part,
            2 => cents = part,
            1 => cents = part * 10,
            _ => return None,
        }
        used += 2;
        if digits.text.len() < 3 {
            break;
        }
    }
    // "60,- €"
    let dash = |n: usize, sign: &str| tokens.get(n).is_some_and(|t| t.glued && t.is(sign));
    if dash(at + used, ",") && dash(at + used + 1, "-") {
        used += 2;
    }
    let thousands = tokens.get(at + used).is_some_and(|token| token.is("k") && token.glued);
    let minor = whole * 100 + cents;
    if thousands { Some((minor * 1_000, used + 1)) } else { Some((minor, used)) }
}

/// The currency that is named here, and how many tokens name it.
fn currency(
    tokens: &[Token],
    at: usize,
    token: &Token,
    local: Option<&str>,
) -> Option<(&'static str, usize)> {
    const DOLLARS: [&str; 6] = ["USD", "CAD", "AUD", "NZD", "SGD", "HKD"];
    let of_place = |codes: &[&'static str]| {
        codes.iter().find(|code| local == Some(**code)).copied().unwrap_or(codes[0])
    };
    let next = tokens.get(at + 1).map_or("", |token| token.text.as_str());
    let code = match token.text.as_str() {
        "us" if next == "$" => return Some(("USD", 2)),
        "us" | "american" if matches!(next, "dollars" | "dollar") => return Some(("USD", 2)),
        "canadian" if next.starts_with("dollar") => return Some(("CAD", 2)),
        "australian" if next.starts_with("dollar") => return Some(("AUD", 2)),
        "swiss" if next.starts_with("franc") => return Some(("CHF", 2)),
        "€" | "euro" | "euros" | "eur" | "eurs" => "EUR",
        "$" | "dollar" | "dollars" | "buck" | "bucks" => of_place(&DOLLARS),
        "£" | "pound" | "pounds" | "quid" | "gbp" => "GBP",
        "usd" => "USD",
        "cad" => "CAD",
        "aud" => "AUD",
        "nzd" => "NZD",
        "sgd" => "SGD",
        "chf" | "franc" | "francs" | "franken" => "CHF",
        "¥" | "yen" | "jpy" => "JPY",
        "yuan" | "rmb" | "cny" => "CNY",
        "₹" | "rupee" | "rupees" | "inr" => "INR",
        "₺" | "lira" | "try" if token.text.len() != 3 || next.is_empty() => "TRY",
        "zl" | "zloty" | "zlotys" | "pln" => "PLN",
        "koruna" | "korunas" | "czk" => "CZK",
        "sek" => "SEK",
        "dkk" => "DKK",
        "nok" => "NOK",
        "kr" | "kroner" | "kronor" | "kronas" => of_place(&["SEK", "DKK", "NOK", "ISK"]),
        "peso" | "pesos" => of_place(&["MXN", "ARS", "CLP", "COP", "PHP"]),
        "forint" | "huf" => "HUF",
        "dirham" | "dirhams" | "aed" => "AED",
        "reais" | "brl" => "BRL",
        "rand" | "zar" => "ZAR",
        "won" | "krw" => "KRW",
        _ => return None,
    };
    Some((code, 1))
}
