//! Names and texts that people read from each other, and the characters they may hold.
//!
//! A name is one visible line: a reader must not be shown something other than what is stored.

/// Whether a character breaks a line or turns the direction of the text after it.
fn is_unruly(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{2028}' | '\u{2029}' // line and paragraph separators
            | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' // embeddings, overrides, isolates
            | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFB}' // byte order mark, annotations
        )
}

/// Whether a character is invisible. In longer texts some of these have their use, such as joining emoji.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{00AD}' | '\u{034F}' | '\u{061C}' | '\u{115F}' | '\u{1160}' | '\u{17B4}' | '\u{17B5}' | '\u{180E}'
        | '\u{200B}'..='\u{200F}' | '\u{2060}'..='\u{2065}' | '\u{206A}'..='\u{206F}'
        | '\u{2800}' | '\u{3164}' | '\u{FFA0}' | '\u{E0000}'..='\u{E007F}'
    )
}

/// The first character of a name that must not be in one.
pub fn wrong_in_name(name: &str) -> Option<char> {
    name.chars().find(|c| is_unruly(*c) || is_invisible(*c))
}

/// The first character of a text of several lines that must not be in one.
pub fn wrong_in_text(text: &str) -> Option<char> {
    text.chars().find(|c| *c != '\n' && is_unruly(*c))
}

/// The error message for such a character.
pub fn must_not_contain(c: char) -> String {
    let kind = if c.is_control() { "a control character" } else { "an invisible character" };
    format!("must not contain U+{:04X}, {kind}", u32::from(c))
}

/// A message of a conversation, cleaned so that others may read it: `\r\n` becomes one line break, and every other
/// character that must not be in a text becomes a space.
pub fn cleaned(text: &str) -> String {
    let lines = text.replace("\r\n", "\n").replace(['\u{2028}', '\u{2029}'], "\n");
    lines.chars().map(|c| if c != '\n' && is_unruly(c) { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_visible_line() {
        for name in ["Mirela's Chair", "Jürgen Groß", "山田 太郎", "محمد", "O’Brien & Søn", "👩🏽"]
        {
            assert_eq!(wrong_in_name(name), None, "{name}");
        }
        let wrong = (0x0..=0x1f).chain(0x7f..=0x9f).chain(0x200b..=0x200f).chain(0x2028..=0x202e);
        let wrong = wrong.chain(0x2060..=0x206f).chain([0xfeff, 0xad, 0x3164, 0xe0041]);
        for c in wrong.map(|c| char::from_u32(c).unwrap()) {
            assert_eq!(wrong_in_name(&format!("Mirela{c}Chair")), Some(c), "{c:?}");
        }
        assert_eq!(must_not_contain('\u{202E}'), "must not contain U+202E, an invisible character");
        assert_eq!(must_not_contain('\n'), "must not contain U+000A, a control character");
    }

    #[test]
    fn texts_have_lines_and_no_tricks() {
        for text in ["two\nlines", "👩\u{200D}👧", "می\u{200C}خواهم", "\u{200F}עברית"]
        {
            assert_eq!(wrong_in_text(text), None, "{text}");
        }
        for c in
            ['\0', '\r', '\t', '\u{1b}', '\u{85}', '\u{2028}', '\u{202E}', '\u{2067}', '\u{FEFF}']
        {
            assert_eq!(wrong_in_text(&format!("a{c}b")), Some(c), "{c:?}");
            assert_eq!(wrong_in_text(&cleaned(&format!("a{c}b"))), None, "{c:?}");
        }
        assert_eq!(cleaned("a\r\nb\tc\u{202E}d"), "a\nb c d");
    }
}
