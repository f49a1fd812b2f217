//! Prompts: the beginnings of conversations that a system offers to agents.

/// A text with fields that a person fills in, as agents' hosts show it in their menus.
#[derive(Clone, Copy, Debug)]
pub struct AgentPrompt {
    /// `discovery_assistant`: unique among all systems.
    pub name: &'static str,
    /// One line for menus.
    pub summary: &'static str,
    pub fields: &'static [PromptField],
    /// The text. `{name}` is the field of that name, and a word in backquotes is a tool.
    pub text: &'static str,
}

#[derive(Clone, Copy, Debug)]
pub struct PromptField {
    pub name: &'static str,
    pub summary: &'static str,
    /// The words where nothing is given. `None`: the field is required.
    pub default: Option<&'static str>,
}

impl AgentPrompt {
    /// The text with its fields, or the first field that is required and not given.
    pub fn filled<'a>(
        &self,
        given: impl Fn(&str) -> Option<&'a str>,
    ) -> Result<String, &'static str> {
        // In one pass, since what is given may have braces too.
        let mut text = String::with_capacity(self.text.len());
        let mut rest = self.text;
        while let Some((before, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}').expect("a field of a prompt is closed");
            let field = self.fields.iter().find(|field| field.name == name);
            let field = field.expect("a prompt names its own fields only");
            let value = given(name).map(str::trim).filter(|value| !value.is_empty());
            text.push_str(before);
            text.push_str(value.or(field.default).ok_or(field.name)?);
            rest = after;
        }
        text.push_str(rest);
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_filled_once() {
        let prompt = AgentPrompt {
            name: "greet",
            summary: "",
            fields: &[
                PromptField { name: "who", summary: "", default: None },
                PromptField { name: "how", summary: "", default: Some("warmly") },
            ],
            text: "Greet {who} {how}.",
        };
        let filled = |who: Option<&'static str>| {
            prompt.filled(move |name| if name == "who" { who } else { None })
        };
        assert_eq!(filled(Some("{how}")).unwrap(), "Greet {how} warmly.");
        assert_eq!(filled(Some(" ")), Err("who"));
        assert_eq!(filled(None), Err("who"));
    }
}
