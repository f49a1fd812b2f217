//! The budget in a sentence.

use super::numbers::in_words;
use super::token::{GO_ON, Kind, Token};
use crate::systems::marketplace::domain::money::{Money, minor_digits};

const MOST_MINOR: i64 = 1_000_000_000;

#[derive(Clone, Copy)]
struct Amount {
    minor: i64,
    currency: Option<&'static str>,
    cued: bool,
}

/// The maximum price, and the phrases about money that are not such a limit.
///
/// `locals`: candidates for the currency of an amount without one; the first that fits counts. `cut`: the start of the
/// last correction. `asked`: the agent asked for the price, so a bare number is an amount.
pub(super) fn read(
    tokens: &mut [Token],
    locals: &[&'static str],
    cut: Option<usize>,
    asked: bool,
) -> (Option<Money>, Vec<String>) {
    let mut best: Option<(bool, Amount)> = None;
    let mut unread = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let Some((amount, end)) = amount_at(tokens, at, locals, asked) else {
            at += 1;
            continue;
        };
        let (from, to) = (least_from(tokens, at), rate_until(tokens, end));
        if from < at || to > end {
            unread.push(super::quote(tokens, from, to));
        }
        // "40-60 euros": take the other end too.
        let lower = at >= 2
            && tokens[at - 1].any(&["-", "–", "to", "and"])
            && tokens[at - 2].number().is_some();
        let from = if lower { from.min(at - 2) } else { from };
        for token in &mut tokens[from..to] {
            token.taken = true;
        }
        at = to;
        if unread.is_empty() {
            let rank = (cut.is_some_and(|cut| at > cut), amount.cued, amount.minor);
            if best.is_none_or(|(late, best)| rank > (late, best.cued, best.minor)) {
                let currency = amount.currency.or(best.and_then(|(_, best)| best.currency));
                best = Some((rank.0, Amount { currency, ..amount }));
            }
        }
    }
    let money = best.filter(|_| unread.is_empty()).and_then(|(_, best)| {
        let currency = best.currency.or(locals.first().copied())?;
        // `number` counts hundredths.
        let minor = match minor_digits(currency) {
            0 => (best.minor / 100).max(1),
            3 => best.minor * 10,
            _ => best.minor,
        };
        Some(Money::new(minor, currency))
    });
    (money, unread)
}

/// The start of an "at least", "over" or "more than" before the amount; `at` if there is none.
fn least_from(tokens: &[Token], at: usize) -> usize {
    let word = |back: usize| {
        at.checked_sub(back).and_then(|n| tokens.get(n)).map_or("", |token| token.text.as_str())
    };
    let denied = |back: usize| {
        (back..back + 6)
            .any(|back| matches!(word(back), "not" | "no" | "never" | "t" | "cannot" | "nothing"))
    };
    match (word(2), word(1)) {
        ("at", "least") | ("starting", "at" | "from") | ("a", "minimum") => at - 2,
        ("minimum", "of") | ("upwards" | "north", "of") => at - 2,
        ("more" | "higher" | "not" | "no" | "nothing", "than" | "under" | "below")
            if !denied(3) =>
        {
            match (word(2), word(1)) {
                ("more" | "higher", "than") | ("not" | "no" | "nothing", "under" | "below") => {
                    at - 2
                }
                _ => at,
            }
        }
        ("less", "than") if denied(3) => at - 3,
        ("couple" | "few" | "several", _) if !matches!(word(1), "of") => at,
        (_, "over" | "above" | "exceeding") if !denied(2) => at - 1,
        (_, "few" | "several" | "minimum" | "min") => at - 1,
        _ => at,
    }
}

/// The end of an "an hour", "per person" or "each" after the amount; `end` if there is none.
fn rate_until(tokens: &[Token], end: usize) -> usize {
    const UNITS: &[&str] = &[
        "hour", "hr", "h", "hours", "person", "people", "head", "day", "room", "piece", "visit",
        "month", "week", "cut", "photo", "picture", "stunde", "heure", "hora", "minute", "min",
        "sqm", "window", "kid", "child",
    ];
    let word = |n: usize| tokens.get(n).map_or("", |token| token.text.as_str());
    let unit = |n: usize| UNITS.contains(&word(n));
    match word(end) {
        "/" | "per" | "a" | "an" | "pro" | "every" | "for each" if unit(end + 1) => end + 2,
        "/" | "per" => (end + 2).min(tokens.len()),
        "p" if word(end + 1) == "/" || word(end + 1) == "." => (end + 3).min(tokens.len()),
        "each" | "hourly" | "ph" | "pp" | "apiece" | "daily" | "+" | "plus" => end + 1,
        "or" if matches!(word(end + 1), "more" | "above" | "higher") => end + 2,
        "and" if matches!(word(end + 1), "up" | "above" | "more") => end + 2,
        "minimum" | "min" if word(end + 1) != "." => end + 1,
        "at" if word(end + 1) == "least" => end + 2,
        _ => end,
    }
}

/// An amount that starts here, and its end.
fn amount_at(
    tokens: &[Token],
    at: usize,
    local: &[&'static str],
    asked: bool,
) -> Option<(Amount, usize)> {
    let free = |n: usize| tokens.get(n).filter(|token| !token.taken);
    let mut cued = asked || cue(tokens, at);
    // "€60", "EUR 60", "US$ 60"
    let before = free(at)
        .filter(|token| token.kind == Kind::Sign || token.text.len() == 3)
        .and_then(|token| currency(tokens, at, token, local));
    let from = at + before.map_or(0, |(_, used)| used);
    let (mut minor, used) = number(tokens, from)?;
    let mut end = from + used;
    // "1 200 €"
    let thousands = free(from).is_some_and(|token| token.text.len() <= 3 && used == 1)
        && free(end).is_some_and(|token| {
            token.kind == Kind::Number && token.text.len() == 3 && !token.glued
        });
    let sum = free(end + 1).is_some_and(|token| currency(tokens, end + 1, token, local).is_some());
    if let Some(more) = free(end).and_then(Token::number).filter(|_| {
        thousands
            && free(from).is_some_and(|token| token.kind == Kind::Number)
            && (sum || before.is_some())
    }) {
        (minor, end) = (minor * 1_000 + i64::from(more) * 100, end + 1);
    }
    let after = free(end).and_then(|token| currency(tokens, end, token, local));
    if before.is_none() {
        // Part of a longer number or word.
        let inside = at > 0
            && tokens[at].glued
            && (tokens[at - 1].any(&[":", "/", "."]) || tokens[at - 1].kind == Kind::Word);
        if inside {
            return None;
        }
        // "40-60 euros": the other end has the currency.
        let ranged = free(end).is_some_and(|token| token.any(&["-", "–", "to", "and"]))
            && number(tokens, end + 1).is_some_and(|(_, more)| {
                free(end + 1 + more)
                    .is_some_and(|token| currency(tokens, end + 1 + more, token, local).is_some())
            });
        let most = free(end).is_some_and(|token| token.any(&["max", "maximum", "tops"]))
            || (free(end).is_some_and(|token| token.is("at"))
                && free(end + 1).is_some_and(|token| token.is("most")));
        // "2k" means money without any other hint.
        let thousands = tokens[end - 1].is("k");
        let named = (most || thousands) && !cued;
        if after.is_none() && (ranged || !(cued || named) || !ends(tokens, end)) {
            return None;
        }
        if named {
            cued = true;
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

/// Whether the words before the amount mark it as a budget.
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

/// Whether a sum without a currency ends here: the next word is not a thing that it counts.
fn ends(tokens: &[Token], at: usize) -> bool {
    const STOPS: &[&str] = &[
        "maximum",
        "total",
        "altogether",
        "per",
        "all",
        "tops",
        "after",
        "before",
        "between",
        "somewhere",
    ];
    let Some(token) = tokens.get(at) else { return true };
    let sentence = token.is(".") && tokens.get(at + 1).is_none_or(|next| !next.glued);
    token.any(GO_ON) || token.any(STOPS) || sentence || (token.taken && !token.glued)
}

/// An amount in minor units, and the number of its tokens.
fn number(tokens: &[Token], at: usize) -> Option<(i64, usize)> {
    let token = tokens.get(at).filter(|token| !token.taken)?;
    if token.kind == Kind::Word {
        let (amount, used) = in_words(&tokens[at..])?;
        // "a couple of hundred"
        let couple = at >= 2 && tokens[at - 1].is("of") && tokens[at - 2].is("couple");
        let amount = if couple && matches!(amount, 100 | 1_000) { amount * 2 } else { amount };
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

/// The currency named here, and the number of its tokens.
fn currency(
    tokens: &[Token],
    at: usize,
    token: &Token,
    local: &[&'static str],
) -> Option<(&'static str, usize)> {
    const DOLLARS: [&str; 6] = ["USD", "CAD", "AUD", "NZD", "SGD", "HKD"];
    let of_place = |codes: &[&'static str]| {
        local.iter().find(|code| codes.contains(code)).copied().unwrap_or(codes[0])
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
