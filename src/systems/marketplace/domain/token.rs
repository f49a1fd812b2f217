//! Tokens of a sentence: words, numbers and signs.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::LazyLock;

/// Longest message that is read. A longer one is not read at all: the part left out may be the important one.
pub const MAX_CHARS: usize = 2_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Word,
    Number,
    Sign,
}

/// A large table of words.
pub type Table = LazyLock<HashSet<&'static str>>;

/// The words of a comma-separated list, as a set.
pub fn words_of(list: &'static str) -> HashSet<&'static str> {
    Words(list).iter().collect()
}

/// A short comma-separated list of words and phrases.
#[derive(Clone, Copy)]
pub struct Words(pub &'static str);

impl Words {
    pub fn iter(self) -> impl Iterator<Item = &'static str> {
        self.0.split(',').map(str::trim)
    }

    pub fn has(self, word: &str) -> bool {
        self.iter().any(|known| known == word)
    }

    /// Whether these words are one of the phrases.
    pub fn is(self, words: &[&str]) -> bool {
        self.iter().any(|phrase| phrase.split(' ').eq(words.iter().copied()))
    }

    /// The number of words in the longest phrase that these words begin with.
    pub fn begin(self, words: &[&str]) -> usize {
        let counts = self.iter().map(|phrase| (phrase, phrase.split(' ').count()));
        let begins = counts.filter(|(phrase, count)| {
            words.get(..*count).is_some_and(|words| phrase.split(' ').eq(words.iter().copied()))
        });
        begins.map(|(_, count)| count).max().unwrap_or(0)
    }
}

#[derive(Clone, Debug)]
pub struct Token {
    pub kind: Kind,
    /// The text in lower case, without accents.
    pub text: String,
    /// The text as it was written.
    pub raw: String,
    pub capital: bool,
    /// Whether only spaces, hyphens, dots or apostrophes separate it from the word before, so both may be one name.
    pub joined: bool,
    /// Whether it follows the token before without any gap.
    pub glued: bool,
    /// Whether it was already read as part of something.
    pub taken: bool,
    /// The kind of phrase that it was read as part of.
    pub role: WordRole,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WordRole {
    #[default]
    None,
    Place,
    Money,
    When,
    Service,
}

/// Words behind an amount or a time with which the sentence goes on: they neither count nor qualify it.
pub const GO_ON: &[&str] = &[
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
    "this",
    "next",
    "but",
    "is",
    "thanks",
    "with",
    "-",
    "around",
    "budget",
    "because",
    "then",
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
    "–",
];

impl Token {
    pub fn is(&self, word: &str) -> bool {
        self.text == word
    }

    pub fn any(&self, words: &[&str]) -> bool {
        words.contains(&self.text.as_str())
    }

    pub fn number(&self) -> Option<u32> {
        if self.kind != Kind::Number || self.text.len() > 9 {
            return None;
        }
        self.text.parse().ok()
    }
}

/// The word in lower case, with the accents removed from Latin letters.
pub fn fold(word: &str) -> String {
    let mut folded = String::with_capacity(word.len());
    for c in word.chars().flat_map(char::to_lowercase) {
        match c {
            'à' | 'á' | 'â' | 'ã' | 'ä' | 'å' | 'ā' | 'ă' | 'ą' => folded.push('a'),
            'ç' | 'ć' | 'č' => folded.push('c'),
            'ď' | 'đ' => folded.push('d'),
            'è' | 'é' | 'ê' | 'ë' | 'ē' | 'ė' | 'ę' | 'ě' => folded.push('e'),
            'ğ' => folded.push('g'),
            'ì' | 'í' | 'î' | 'ï' | 'ī' | 'ı' => folded.push('i'),
            'ł' => folded.push('l'),
            'ñ' | 'ń' | 'ň' => folded.push('n'),
            'ò' | 'ó' | 'ô' | 'õ' | 'ö' | 'ø' | 'ō' | 'ő' => folded.push('o'),
            'ř' => folded.push('r'),
            'ś' | 'š' | 'ş' | 'ș' => folded.push('s'),
            'ß' => folded.push_str("ss"),
            'ť' | 'ţ' | 'ț' => folded.push('t'),
            'ù' | 'ú' | 'û' | 'ü' | 'ū' | 'ů' | 'ű' => folded.push('u'),
            'ý' => folded.push('y'),
            'ź' | 'ż' | 'ž' => folded.push('z'),
            '\u{300}'..='\u{36f}' => {}
            c => folded.push(c),
        }
    }
    folded
}

pub fn tokens(text: &str) -> Vec<Token> {
    let mut found: Vec<Token> = Vec::new();
    let mut word_before: Option<usize> = None;
    let mut end_before = 0;
    let mut chars = text.char_indices().take(MAX_CHARS).peekable();
    while let Some((start, c)) = chars.next() {
        if c.is_whitespace() || c.is_control() {
            continue;
        }
        let kind = match c {
            _ if c.is_ascii_digit() => Kind::Number,
            _ if c.is_alphabetic() => Kind::Word,
            _ => Kind::Sign,
        };
        let mut range: Range<usize> = start..start + c.len_utf8();
        while let Some(&(at, next)) = chars.peek() {
            let more = match kind {
                Kind::Number => next.is_ascii_digit(),
                Kind::Word => next.is_alphabetic() || ('\u{300}'..='\u{36f}').contains(&next),
                Kind::Sign => false,
            };
            if !more {
                break;
            }
            range.end = at + next.len_utf8();
            chars.next();
        }
        let word = &text[range.clone()];
        let between = word_before.map(|end| &text[end..range.start]);
        let joined = kind == Kind::Word
            && between.is_some_and(|gap| {
                gap.chars().all(|c| matches!(c, ' ' | '-' | '‐' | '.' | '\'' | '’'))
                    && !gap.contains(". ")
                        | (gap == ". " && short(&found[found.len().saturating_sub(2)..]))
            });
        if kind == Kind::Word {
            word_before = Some(range.end);
        } else if kind == Kind::Number {
            word_before = None;
        }
        found.push(Token {
            kind,
            text: fold(word),
            raw: word.into(),
            capital: c.is_uppercase() || (c.is_alphabetic() && !c.is_lowercase()),
            joined,
            glued: range.start == end_before && start > 0,
            taken: false,
            role: WordRole::None,
        });
        end_before = range.end;
    }
    found
}

/// Whether the last token is an abbreviation: "St. Petersburg" is one name, "in Berlin. Thanks" is not.
fn short(last: &[Token]) -> bool {
    last.first().is_some_and(|token| token.kind == Kind::Word && token.text.len() <= 2)
}
