//! Given/when/then for entity tests: `given(events).when(command).then(..)`. Systems are another crate, whose tests could
//! not reach what is compiled for the tests of this one.

use super::*;

/// The rejection of an entity that refuses nothing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Never {}

impl Display for Never {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {}
    }
}

impl super::Rejection for Never {
    fn reason(&self) -> &'static str {
        match *self {}
    }
}

pub struct Given<E: Entity> {
    pub state: E::State,
    pub now: Timestamp,
    pub caller: Caller,
    pub key: String,
}

pub fn given<E: Entity>(events: impl IntoIterator<Item = E::Event>) -> Given<E> {
    let mut state = E::State::default();
    for event in events {
        E::evolve(&mut state, &event);
    }
    Given { state, now: Timestamp::UNIX_EPOCH, caller: Caller::Runtime, key: "key".into() }
}

impl<E: Entity> Given<E> {
    pub fn at(mut self, now: Timestamp) -> Self {
        self.now = now;
        self
    }

    pub fn by_user(mut self, id: &str) -> Self {
        self.caller = Caller::user(id, Role::Consumer);
        self
    }

    pub fn key(mut self, key: &str) -> Self {
        self.key = key.into();
        self
    }

    /// Decides, and applies the events so that a chain of `when`s reads as a story.
    pub fn when(&mut self, command: E::Command) -> Outcome<E> {
        let ids = IdSource::new(self.now, 1);
        let cx = DecideCx { key: &self.key, now: self.now, caller: &self.caller, ids: &ids };
        let result = E::decide(&self.state, command, &cx);
        if let Ok(decision) = &result {
            for event in &decision.events {
                E::evolve(&mut self.state, event);
            }
        }
        Outcome { result }
    }
}

/// The text of a command as rows hold it, which is read as the same command.
pub fn stored<E: Entity>(command: &E::Command) -> String {
    let text = |command| private::plain(|| serde_json::to_string(command).unwrap()).0;
    let read = serde_json::from_str(&text(command)).unwrap();
    assert_eq!(text(&read), text(command), "it is read as another one");
    format!("{} {}", E::KIND, text(command))
}

/// The text of a message as its receiver reads and writes it.
pub fn sent<E: Entity>(message: &impl Message) -> String {
    let Effect::Send { kind, command, .. } = Effect::send("key", message).bare().clone() else {
        unreachable!("a send")
    };
    assert_eq!(kind, E::KIND);
    let read: E::Command = serde_json::from_value(command.clone())
        .unwrap_or_else(|error| panic!("{kind} does not read {command}: {error}"));
    assert_eq!(private::plain(|| to_value(&read).to_string()).0, command.to_string());
    stored::<E>(&read)
}

/// Holds what stands in rows against the golden text, in which each message has a line.
#[track_caller]
pub fn is_golden(now: &[String], golden: &str, messages: &[(&str, &str)]) {
    const FILES: &str = "domain/message_tests.rs and domain/golden/commands.txt";
    for (kind, name) in messages {
        let begin = format!("{kind} {{\"{name}\":");
        let has_one = golden.lines().any(|line| line.starts_with(&begin));
        assert!(has_one, "{FILES} have no example of the message {name} to a {kind}");
    }
    for line in now {
        let known = golden.lines().any(|golden| golden == line);
        assert!(known, "other releases read what is written: is this line new? {FILES}: {line}");
    }
    for line in golden.lines() {
        let written = now.iter().any(|now| now == line);
        assert!(written, "{FILES}: a line that nothing is written as: {line}");
    }
}

pub struct Outcome<E: Entity> {
    pub result: Decided<E>,
}

impl<E: Entity> Outcome<E> {
    #[track_caller]
    pub fn decision(self) -> Decision<E> {
        match self.result {
            Ok(decision) => decision,
            Err(rejection) => panic!("rejected: {rejection:?}"),
        }
    }

    #[track_caller]
    pub fn then(self, events: impl IntoIterator<Item = E::Event>) -> Decision<E>
    where
        E::Event: PartialEq,
    {
        let decision = self.decision();
        let expected: Vec<_> = events.into_iter().collect();
        assert_eq!(decision.events, expected);
        decision
    }

    #[track_caller]
    pub fn then_rejected(self, reason: &str) {
        match self.result {
            Err(rejection) => assert_eq!(rejection.reason(), reason, "{rejection:?}"),
            Ok(decision) => panic!("accepted: {:?}", decision.events),
        }
    }
}
