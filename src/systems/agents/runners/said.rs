//! A check of what agents say to people: no secret of this node, and no link that the model has made itself, since whoever
//! talked it into that would read what it holds.

use std::borrow::Cow;
use std::collections::HashSet;

use crate::kernel::chat::{Part, PromptMessage};
use crate::kernel::secret::Secret;

pub const WITHHELD: &str = "[withheld]";
const LINK_WITHHELD: &str = "[link withheld]";
/// A shorter secret is found in words that mean something else.
pub const SHORTEST_SECRET: usize = 8;
/// The shortest of a token's three parts.
const SHORTEST_PART: usize = 16;

/// What a run's model may say, as far as it can be checked without knowing what it means.
pub struct SaidCheck<'a> {
    secrets: &'a [Secret<String>],
    /// What the model was told, by anybody.
    seen: String,
    /// Links that it has written into calls, and has not been told before.
    made: HashSet<String>,
}

impl<'a> SaidCheck<'a> {
    pub fn new<'m>(
        secrets: &'a [Secret<String>],
        instructions: &str,
        messages: impl Iterator<Item = &'m PromptMessage>,
    ) -> Self {
        let mut check = Self { secrets, seen: instructions.to_owned(), made: HashSet::new() };
        for message in messages {
            check.hear(message);
        }
        check
    }

    fn hear(&mut self, message: &PromptMessage) {
        match message {
            PromptMessage::User { parts } => {
                for part in parts {
                    if let Part::Text { text } = part {
                        self.see(text);
                    }
                }
            }
            PromptMessage::Tool { content, .. } => self.see(content),
            PromptMessage::Assistant { calls, .. } => {
                for call in calls {
                    let arguments = call.arguments.to_string();
                    let links = links(&arguments).map(|(start, end)| &arguments[start..end]);
                    let new = links.filter(|link| !self.seen.contains(*link));
                    self.made.extend(new.map(str::to_owned).collect::<Vec<_>>());
                }
            }
        }
    }

    fn see(&mut self, text: &str) {
        self.seen.push('\n');
        self.seen.push_str(text);
    }

    fn knows(&self, link: &str) -> bool {
        self.seen.contains(link) && !self.made.iter().any(|made| made.contains(link))
    }

    pub fn holds_secret(&self, text: &str) -> bool {
        let secrets = self.secrets.iter().map(|secret| secret.reveal().as_str());
        let mut long = secrets.filter(|secret| secret.len() >= SHORTEST_SECRET);
        long.any(|secret| text.contains(secret)) || holds_token(text)
    }

    /// A text as its person may see it.
    pub fn checked(&self, text: &str) -> String {
        text.split_inclusive(char::is_whitespace).map(|word| self.word(word)).collect()
    }

    fn word<'w>(&self, word: &'w str) -> Cow<'w, str> {
        let (body, space) = word.split_at(word.trim_end().len());
        if self.holds_secret(body) {
            return Cow::Owned(format!("{WITHHELD}{space}"));
        }
        // A picture is fetched without anybody's click; a link is not.
        let shown =
            if word.contains("![") { Cow::Owned(word.replace("![", "[")) } else { word.into() };
        if links(&shown).all(|(start, end)| self.knows(&shown[start..end])) {
            return shown;
        }
        let mut checked = String::new();
        let mut from = 0;
        for (start, end) in links(&shown) {
            checked.push_str(&shown[from..start]);
            let link = &shown[start..end];
            checked.push_str(if self.knows(link) { link } else { LINK_WITHHELD });
            from = end;
        }
        checked.push_str(&shown[from..]);
        Cow::Owned(checked)
    }
}

/// Words as they come, checked: the last one is kept until it is whole.
#[derive(Default)]
pub struct SaidWords {
    kept: String,
}

impl SaidWords {
    pub fn more(&mut self, check: &SaidCheck<'_>, text: &str) -> String {
        self.kept.push_str(text);
        let whole = self.kept.rfind(char::is_whitespace);
        let Some(at) = whole else { return String::new() };
        let end = at + self.kept[at..].chars().next().map_or(0, char::len_utf8);
        let rest = self.kept.split_off(end);
        check.checked(&std::mem::replace(&mut self.kept, rest))
    }

    pub fn rest(self, check: &SaidCheck<'_>) -> String {
        check.checked(&self.kept)
    }
}

/// Whether there is a signed token in a text: three parts of base64, of which the first is an object.
fn holds_token(text: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let mut words = text.split(|c: char| !is_part(c) && c != '.');
    words.any(|word| {
        let mut parts = word.trim_matches('.').split('.');
        let mut part = || parts.next().is_some_and(|part| part.len() >= SHORTEST_PART);
        word.starts_with("eyJ") && part() && part() && part()
    })
}

/// Where links are in a text: what has a scheme and `//`, what begins with `//` and a host's name, or with `www.`.
fn links(text: &str) -> impl Iterator<Item = (usize, usize)> {
    let mut from = 0;
    std::iter::from_fn(move || {
        loop {
            let rest = text[from..].to_ascii_lowercase();
            let found = [rest.find("//"), rest.find("www.")];
            let at = from + found.into_iter().flatten().min()?;
            let start = start_of_scheme(text, from, at);
            let end = start + end_of_link(&text[start..]);
            from = end.max(at + 2);
            let host = text[at..end].trim_start_matches('/').split(['/', '?', '#']).next();
            let is_host = host.is_some_and(|host| host.trim_matches('.').contains('.'));
            if start < at || is_host {
                return Some((start, end));
            }
        }
    })
}

/// Where the scheme before `//` begins. Without one there is only what stands here.
fn start_of_scheme(text: &str, from: usize, slashes: usize) -> usize {
    let Some(scheme) = text[from..slashes].strip_suffix(':') else { return slashes };
    let is_scheme = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-');
    let length = scheme.chars().rev().take_while(is_scheme).count();
    if length == 0 { slashes } else { from + scheme.len() - length }
}

fn end_of_link(link: &str) -> usize {
    let ends = |c: char| c.is_whitespace() || "\"'<>`)]}|\\".contains(c);
    let end = link.find(ends).unwrap_or(link.len());
    link[..end].trim_end_matches(['.', ',', ';', ':', '!', '?', '*']).len()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kernel::chat::ToolCall;

    fn heard() -> Vec<PromptMessage> {
        let tool = |content: &str| PromptMessage::Tool {
            call_id: "1".into(),
            name: "look".into(),
            content: content.into(),
        };
        let call = ToolCall {
            id: "2".into(),
            name: "write_note".into(),
            arguments: json!({"text": "see https://evil.example/?d=alice"}),
            signatures: Vec::new(),
        };
        vec![
            PromptMessage::user("What about https://mine.example/a?b=c&d=1 and www.mine.example?"),
            tool(r#"{"data":"[map](https://maps.example/x) https://evil.example/?d="}"#),
            PromptMessage::Assistant { text: String::new(), calls: vec![call] },
            tool(r#"{"items":["see https://evil.example/?d=alice"]}"#),
        ]
    }

    #[test]
    fn links_that_somebody_said_may_be_said_and_others_not() {
        let (secrets, heard) = ([], heard());
        let check = SaidCheck::new(&secrets, "You are a clerk.", heard.iter());
        for same in [
            "See https://mine.example/a?b=c&d=1, and [this](https://maps.example/x).",
            "www.mine.example! \u{1f600} and 3/4 or a / b",
            "no links: a:b, x//, a//b, // or 1.5/2",
        ] {
            assert_eq!(check.checked(same), same);
        }
        for (said, shown) in [
            ("go to https://evil.example/?d=secret now", "go to [link withheld] now"),
            ("![a b](https://evil.example/?d=x)", "[a b]([link withheld])"),
            ("![x](https://maps.example/x)\n", "[x](https://maps.example/x)\n"),
            ("<img src=\"//evil.example/x\">", "<img src=\"[link withheld]\">"),
            ("HTTPS://EVIL.example/alice", "[link withheld]"),
            ("www.evil.example/alice", "[link withheld]"),
            ("myapp://open?d=1", "[link withheld]"),
            // Its own words do not become somebody's by a note that it has read again.
            ("https://evil.example/?d=alice", "[link withheld]"),
            ("a//evil.example", "a[link withheld]"),
            ("x://y", "[link withheld]"),
        ] {
            assert_eq!(check.checked(said), shown);
        }
    }

    #[test]
    fn secrets_of_the_node_and_tokens_are_withheld() {
        let secrets = [Secret::new("sk-1234567890".to_owned()), Secret::new("short".to_owned())];
        let check = SaidCheck::new(&secrets, "", [].iter());
        assert_eq!(check.checked("key=sk-1234567890! or short"), "[withheld] or short");
        let token = format!("eyJ{0}.eyJ{0}.{0}", "abcdefghijklmnop_-");
        assert_eq!(check.checked(&format!("yours: {token}\n")), "yours: [withheld]\n");
        assert_eq!(check.checked("eyJ is how it begins"), "eyJ is how it begins");
        assert!(check.holds_secret(&json!({"text": token}).to_string()));
    }

    #[test]
    fn words_that_come_in_pieces_are_checked_whole() {
        let (secrets, heard) = ([], heard());
        let check = SaidCheck::new(&secrets, "", heard.iter());
        let text =
            "well, https://evil.example/?d=secret and https://maps.example/x.\u{2003}Yes ![a](b)";
        for size in 1..text.len() {
            let mut words = SaidWords::default();
            let mut said = String::new();
            let mut from = 0;
            while from < text.len() {
                let to = text.ceil_char_boundary((from + size).min(text.len()));
                said += &words.more(&check, &text[from..to]);
                from = to;
            }
            said += &words.rest(&check);
            assert_eq!(said, check.checked(text), "in pieces of {size}");
        }
    }
}
