//! Sessions that a model thinks for, without any model: what goes where.

use super::*;
use crate::kernel::conversation::{RunNews, WaitingCall};
use crate::kernel::entity::Scopes;

fn said(content: &str) -> Command {
    Command::SendMessage { content: content.into(), media: vec![], thinks: true }
}

fn runs(decision: &Decision<Session>) -> Vec<String> {
    let runs = decision.effects.iter().filter_map(|effect| match effect.bare() {
        Effect::Run { tag, .. } => Some(tag.clone()),
        _ => None,
    });
    runs.collect()
}

/// The command that goes to an entity of this kind.
fn to(decision: &Decision<Session>, to: &str) -> Option<Value> {
    decision.effects.iter().find_map(|effect| match effect.bare() {
        Effect::Send { kind, command, .. } if *kind == to => Some(command.clone()),
        _ => None,
    })
}

/// A session whose run has begun, and the run's id.
fn thinking(events: impl IntoIterator<Item = Event>) -> (Given<Session>, String) {
    let mut it = session([opened()].into_iter().chain(events));
    let run_id = runs(&it.when(said("Hm, what about my hair?")).decision()).remove(0);
    itself(&mut it, Command::TakeEngaged { run_id: run_id.clone(), outcome: Ok(()) });
    (it, run_id)
}

fn itself(it: &mut Given<Session>, command: Command) -> Decision<Session> {
    let person = std::mem::replace(&mut it.caller, Caller::Runtime);
    let decision = it.when(command).decision();
    it.caller = person;
    decision
}

fn told(it: &mut Given<Session>, run_id: &str, heard: u32, news: RunNews) -> Decision<Session> {
    let model = Some("gpt".into());
    let told = RunTold { run_id: run_id.into(), turn: 1, heard, model, news };
    let person = std::mem::replace(&mut it.caller, Caller::entity(AGENT_RUN, run_id));
    let decision = it.when(Command::RunTold(told)).decision();
    it.caller = person;
    decision
}

fn waits(tool: &str, arguments: Value) -> RunNews {
    let call = WaitingCall {
        use_id: 1,
        tool: tool.into(),
        arguments,
        arguments_hash: "ab".into(),
        is_unknown: false,
    };
    RunNews::Waits { calls: vec![call] }
}

fn narrow(it: &mut Given<Session>) {
    let (id, role, scopes) = ("alice".into(), Role::Consumer, Scopes::parse("chat"));
    it.caller = Caller::User { id, role, scopes };
}

#[test]
fn what_is_said_before_the_run_is_there_follows_it() {
    let mut it = session([opened()]);
    let run_id = runs(&it.when(said("Hm, what about my hair?")).decision()).remove(0);
    let decision = it.when(said("It is long.")).decision();
    assert!(runs(&decision).is_empty() && to(&decision, AGENT_RUN).is_none());
    let begun = itself(&mut it, Command::TakeEngaged { run_id, outcome: Ok(()) });
    let words = to(&begun, AGENT_RUN).unwrap();
    assert!(words.to_string().contains("It is long."), "{words}");
}

#[test]
fn an_answer_answers_what_the_run_has_heard_and_the_rest_is_left_to_the_parser_if_it_stops() {
    let (mut it, run_id) = thinking([]);
    it.when(said("hello")).decision();
    let news = RunNews::Answered { text: "It is fine.".into() };
    let decision = told(&mut it, &run_id, 1, news);
    assert_eq!(answer(&decision).0, "It is fine.");
    let decision = told(&mut it, &run_id, 2, RunNews::Stopped { reason: "too_slow".into() });
    let (event, response) =
        *published(&decision.effects).iter().rfind(|(e, _)| *e == "chat:response").unwrap();
    assert_eq!((event, &response["model"]), ("chat:response", &json!("local")));
    assert_eq!(response["fell_back"], "too_slow");
    assert_eq!(it.state.thinking, None);
    // A run of before says nothing here any more.
    let late = RunNews::Answered { text: "late".into() };
    assert_eq!(told(&mut it, &run_id, 2, late).effects, []);
}

#[test]
fn a_yes_that_was_said_to_a_run_that_stops_binds_nothing() {
    let (mut it, run_id) = thinking([started(), shown()]);
    let asked = told(&mut it, &run_id, 1, waits("accept_offer", json!({"offer_id": "off_2"})));
    assert!(answer(&asked).0.contains("Anna Cuts"), "{}", answer(&asked).0);
    let allowed = it.when(said("yes")).decision();
    let word = to(&allowed, AGENT_RUN).unwrap();
    assert_eq!(word["Decide"], json!({"use_id": 1, "arguments": "ab", "allow": true}));
    let stopped = told(&mut it, &run_id, 1, RunNews::Stopped { reason: "busy".into() });
    assert!(to(&stopped, "request").is_none() && it.state.pending.is_none());
    assert!(answer(&stopped).0.starts_with("I cannot say how that went."));
}

#[test]
fn a_call_is_allowed_by_a_yes_under_the_same_token_only() {
    let (mut it, run_id) = thinking([started(), shown()]);
    told(&mut it, &run_id, 1, waits("accept_offer", json!({"offer_id": "off_2"})));
    let person = it.caller.clone();
    narrow(&mut it);
    it.now = at("2026-01-12T08:01:00Z");
    let decision = it.when(said("yes")).decision();
    // Another run thinks for that token; the one before is over, and with it what it asked for.
    assert_eq!(runs(&decision).len(), 1);
    let last = to(&decision, AGENT_RUN).unwrap();
    assert_eq!(last, json!({"Cancel": null}));
    it.caller = person;
    let decision = it.when(said("yes")).decision();
    assert!(to(&decision, "request").is_none());
}

#[test]
fn what_the_session_has_not_shown_is_declined() {
    let (mut it, run_id) = thinking([started(), shown()]);
    for (tool, arguments) in [
        ("accept_offer", json!({"offer_id": "off_9"})),
        ("cancel_booking", json!({"booking_id": "bkg_9"})),
        ("cancel_request", json!({"request_id": "req_9"})),
        ("decline_offer", json!({})),
    ] {
        let decision = told(&mut it, &run_id, 1, waits(tool, arguments));
        let word = to(&decision, AGENT_RUN).unwrap();
        assert_eq!(word["Decide"]["allow"], false, "{tool}");
        assert_eq!(it.state.pending, None);
    }
}

#[test]
fn closed_forms_and_what_the_parser_has_read_back_need_no_model() {
    let (mut it, _) = thinking([started(), shown()]);
    let decision = it.when(said("I accept the second offer")).decision();
    let accept = to(&decision, "request").unwrap();
    assert_eq!(accept["AcceptOffer"]["offer_id"], "off_2");
    assert!(runs(&decision).is_empty() && to(&decision, AGENT_RUN).is_none());
}

#[test]
fn what_waits_for_an_answer_is_bounded() {
    let (mut it, _) = thinking([]);
    for n in 0..20 {
        it.when(said(&format!("And {n}?"))).decision();
    }
    assert_eq!(it.state.thinking.as_ref().unwrap().unanswered.len(), 8);
}
