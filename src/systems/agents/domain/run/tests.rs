use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::kernel::agent::MessagePolicy;
use crate::kernel::entity::spec::{Given, given};
use crate::kernel::entity::{Caller, Effect};

fn terms(on_message: MessagePolicy) -> RunTerms {
    RunTerms { on_message, ..RunTerms::default() }
}

fn start(terms: RunTerms) -> Command {
    Command::Start(Box::new(RunOrder {
        agent: "assistant".into(),
        version: "ver_1".into(),
        terms,
        scopes: Scopes::parse("request offer"),
        words: PromptMessage::user("cut my hair"),
    }))
}

fn begun(terms: RunTerms) -> Given<AgentRun> {
    let mut run = given::<AgentRun>([]).key("run_1").by_user("alice");
    run.when(start(terms)).decision();
    run
}

/// What its runner says, which is the run itself.
fn itself(run: &mut Given<AgentRun>, command: Command) -> Decision<AgentRun> {
    let person = std::mem::replace(&mut run.caller, Caller::Runtime);
    let decision = run.when(command).decision();
    run.caller = person;
    decision
}

fn call(n: u32, tool: &str) -> ProposedCall {
    ProposedCall {
        call: ToolCall {
            id: format!("c{n}"),
            name: tool.into(),
            arguments: json!({"n": n}),
            signatures: Vec::new(),
        },
        guarantee: Guarantee::Transactional,
        asks_first: tool == "pay",
        refusal: (tool == "fly").then(|| "There is no tool \"fly\".".into()),
    }
}

fn answer(text: &str, calls: Vec<ProposedCall>) -> Thought {
    Thought::Answered(Box::new(TurnAnswer {
        text: text.into(),
        calls,
        model: "gpt".into(),
        usage: Usage { input: 10, output: 5, ..Usage::default() },
        cost: Cost(1_000),
        repeated: 0,
        hand_over: None,
    }))
}

fn thought(turn: u32, text: &str, calls: Vec<ProposedCall>) -> Command {
    Command::Thought { turn, thought: answer(text, calls) }
}

fn returned(use_id: u32, content: &str) -> Command {
    let acted = Acted::Returned { content: content.into(), is_error: false };
    Command::Acted { use_id, acted }
}

fn say(text: &str) -> Command {
    Command::Say { text: PromptMessage::user(text) }
}

/// The runs of runners that a decision asks for.
fn asked(decision: &Decision<AgentRun>) -> Vec<(&'static str, String)> {
    let runs = decision.effects.iter().filter_map(|effect| match effect.bare() {
        Effect::Run { runner, tag, .. } => Some((*runner, tag.clone())),
        _ => None,
    });
    runs.collect()
}

fn think(turn: u32) -> Vec<(&'static str, String)> {
    vec![(Think::NAME, turn.to_string())]
}

fn said(run: &Given<AgentRun>) -> Vec<String> {
    let shown = view::detail("run_1", &run.state).messages;
    shown.into_iter().map(|one| format!("{}: {}", one.role, one.text)).collect()
}

fn decide(run: &Given<AgentRun>, use_id: u32, allow: bool) -> Command {
    let arguments = view::arguments_of(run.state.use_of(use_id).unwrap());
    Command::Decide { use_id, arguments, allow }
}

#[test]
fn a_run_thinks_and_acts_until_it_has_an_answer() {
    let mut run = given::<AgentRun>([]).key("run_1").by_user("alice");
    let decision = run.when(start(RunTerms::default())).decision();
    assert_eq!(asked(&decision), think(1));
    let decision =
        itself(&mut run, thought(1, "", vec![call(1, "look"), call(2, "fly"), call(3, "look")]));
    assert_eq!(
        asked(&decision),
        [(RepeatableAct::NAME, "1".to_owned()), (RepeatableAct::NAME, "3".to_owned())]
    );
    // In whatever order they come, the model sees them in its own.
    assert_eq!(asked(&itself(&mut run, returned(3, "three"))), []);
    assert_eq!(asked(&itself(&mut run, returned(1, "one"))), think(2));
    // Told again, nothing happens.
    for again in [returned(1, "uno"), returned(3, "tre"), thought(1, "again", vec![])] {
        let decision = itself(&mut run, again);
        assert!(decision.events.is_empty() && decision.effects.is_empty());
    }
    itself(&mut run, thought(2, "done", vec![]));
    assert_eq!(run.state.status, RunStatus::Answered);
    assert_eq!(
        said(&run),
        [
            "user: cut my hair",
            "assistant: ",
            "tool: one",
            "tool: There is no tool \"fly\".",
            "tool: three",
            "assistant: done"
        ]
    );
    assert_eq!((run.state.cost, run.state.usage.input), (Cost(2_000), 20));
    // Whoever says more goes on.
    assert_eq!(asked(&run.when(say("and my beard")).decision()), think(3));
    assert_eq!(run.state.status, RunStatus::Running);
}

#[test]
fn what_binds_waits_for_its_person_and_for_these_arguments_only() {
    let mut run = begun(RunTerms::default());
    let decision = itself(&mut run, thought(1, "", vec![call(1, "pay"), call(2, "look")]));
    assert_eq!(asked(&decision), [(RepeatableAct::NAME, "2".to_owned())]);
    itself(&mut run, returned(2, "two"));
    assert_eq!(run.state.status, RunStatus::Waiting);
    // Its runner has nothing to do, whatever it was told.
    assert!(matches!(run.state.use_work(1), Reply::Over));
    let other = Command::Decide { use_id: 1, arguments: "other".into(), allow: true };
    run.when(other).then_rejected("other_arguments");
    run.caller = Caller::user("bob", Role::Operator);
    let right = decide(&run, 1, true);
    run.when(right.clone()).then_rejected("no_such_run");
    run.caller = Caller::user("alice", Role::Consumer);
    assert_eq!(asked(&run.when(right.clone()).decision()), [(RepeatableAct::NAME, "1".to_owned())]);
    assert_eq!(run.state.status, RunStatus::Running);
    run.when(right).then_rejected("not_waiting");
    assert_eq!(asked(&itself(&mut run, returned(1, "paid"))), think(2));
}

#[test]
fn what_nobody_allows_is_not_done() {
    for denied in [true, false] {
        let mut run = begun(RunTerms::default());
        itself(&mut run, thought(1, "", vec![call(1, "pay")]));
        let decision = if denied {
            let no = decide(&run, 1, false);
            run.when(no).decision()
        } else {
            run.now += jiff::SignedDuration::from_hours(72);
            itself(&mut run, Command::ApprovalsExpire)
        };
        assert_eq!(asked(&decision), think(2));
        assert!(said(&run).last().unwrap().starts_with("tool: "), "{:?}", said(&run));
        assert!(matches!(run.state.use_work(1), Reply::Over));
    }
}

#[test]
fn what_may_have_happened_is_not_done_again_without_a_word() {
    let mut run = begun(RunTerms::default());
    let unsafe_call = ProposedCall { guarantee: Guarantee::AtMostOnce, ..call(1, "look") };
    itself(&mut run, thought(1, "", vec![unsafe_call]));
    itself(&mut run, Command::Acted { use_id: 1, acted: Acted::Unknown });
    assert_eq!(run.state.status, RunStatus::Waiting);
    assert!(view::detail("run_1", &run.state).approvals[0].is_unknown);
    let leave = decide(&run, 1, false);
    assert_eq!(asked(&run.when(leave).decision()), think(2));
    assert!(said(&run)[2].contains("nobody knows whether it has happened"), "{:?}", said(&run));
}

#[test]
fn what_is_said_in_between_is_kept_as_the_policy_says() {
    use MessagePolicy::{Enqueue, Interrupt, Reject, Steer};
    // While the model thinks.
    for policy in [Enqueue, Reject, Interrupt, Steer] {
        let mut run = begun(terms(policy));
        match policy {
            Reject => {
                run.when(say("wait")).then_rejected("run_busy");
                continue;
            }
            Interrupt => {
                assert_eq!(asked(&run.when(say("wait")).decision()), think(2));
                // The first answer comes too late.
                assert!(itself(&mut run, thought(1, "late", vec![])).events.is_empty());
                itself(&mut run, thought(2, "ok", vec![]));
                assert_eq!(said(&run), ["user: cut my hair", "user: wait", "assistant: ok"]);
            }
            Enqueue | Steer => {
                assert_eq!(asked(&run.when(say("wait")).decision()), []);
                let asks = itself(&mut run, thought(1, "", vec![call(1, "look")]));
                assert_eq!(asked(&asks), [(RepeatableAct::NAME, "1".to_owned())]);
                itself(&mut run, returned(1, "one"));
                let sees = said(&run).contains(&"user: wait".to_owned());
                assert_eq!(sees, policy == Steer, "{policy:?}");
                let decision = itself(&mut run, thought(2, "ok", vec![]));
                let goes_on = if policy == Enqueue { think(3) } else { vec![] };
                assert_eq!(asked(&decision), goes_on, "{policy:?}");
            }
        }
    }
    // While it waits for a word, another word is none.
    let mut run = begun(terms(Steer));
    itself(&mut run, thought(1, "", vec![call(1, "pay")]));
    assert_eq!(asked(&run.when(say("yes, do it")).decision()), think(2));
    assert!(matches!(run.state.use_work(1), Reply::Over));
}

#[test]
fn a_run_keeps_to_its_terms() {
    let failed =
        |run: &Given<AgentRun>| (run.state.status, run.state.reason.clone().unwrap_or_default());
    let mut run = begun(RunTerms { max_turns: 2, ..RunTerms::default() });
    for n in 1..=2 {
        itself(&mut run, thought(n, "", vec![call(n, "look")]));
        itself(&mut run, returned(n, "x"));
    }
    assert_eq!(failed(&run), (RunStatus::Failed, "too_many_turns".into()));
    run.when(say("more")).then_rejected("run_ended");
    let mut run = begun(RunTerms { max_cost: Cost(1_500), ..RunTerms::default() });
    for n in 1..=2 {
        itself(&mut run, thought(n, "", vec![call(n, "look")]));
        itself(&mut run, returned(n, "x"));
    }
    assert_eq!(failed(&run), (RunStatus::Failed, "too_expensive".into()));
    let mut run = begun(RunTerms::default());
    for n in 1..=3 {
        let same = ProposedCall {
            call: ToolCall { id: n.to_string(), ..call(7, "look").call },
            ..call(7, "look")
        };
        let decision = itself(&mut run, thought(n, "", vec![same]));
        if n == 3 {
            assert_eq!(
                (failed(&run), asked(&decision)),
                ((RunStatus::Failed, "loop".into()), vec![])
            );
        } else {
            itself(&mut run, returned(n, "x"));
        }
    }
    let mut run = begun(RunTerms::default());
    itself(&mut run, Command::TimeOut);
    assert_eq!(failed(&run), (RunStatus::Failed, "too_slow".into()));
    let mut run = begun(RunTerms::default());
    run.when(Command::Cancel).decision();
    assert!(itself(&mut run, thought(1, "late", vec![call(1, "look")])).effects.is_empty());
    assert_eq!(run.state.status, RunStatus::Cancelled);
}

#[test]
fn a_long_conversation_is_summarised_and_no_call_loses_its_result() {
    let mut run = begun(RunTerms { context_tokens: 600, max_turns: 100, ..RunTerms::default() });
    let mut summaries = 0;
    for n in 1..30 {
        if matches!(run.state.phase, Phase::Thinking { summarises: Some(_) }) {
            let turn = run.state.turn;
            itself(&mut run, thought(turn, "short", vec![]));
            summaries += 1;
        }
        let turn = run.state.turn;
        itself(&mut run, thought(turn, "", vec![call(n, "look")]));
        itself(&mut run, returned(n, &"x".repeat(300)));
        is_well_formed(&run.state);
    }
    assert!(summaries > 3);
    let tokens: u64 = run
        .state
        .messages
        .iter()
        .filter_map(|m| m.reveal())
        .map(PromptMessage::estimated_tokens)
        .sum();
    assert!(tokens < 900, "{tokens}");
}

#[test]
fn an_agent_hands_over_to_another_version_and_its_terms() {
    let mut run = begun(RunTerms::default());
    let to = HandOver {
        agent: "stylist".into(),
        version: "ver_2".into(),
        terms: terms(MessagePolicy::Reject),
    };
    let Thought::Answered(mut given) = answer("", vec![call(1, "hand_over"), call(2, "look")])
    else {
        unreachable!()
    };
    given.hand_over = Some(to);
    let decision =
        itself(&mut run, Command::Thought { turn: 1, thought: Thought::Answered(given) });
    assert_eq!(asked(&decision), think(2));
    assert_eq!((run.state.agent.as_str(), run.state.version.as_str()), ("stylist", "ver_2"));
    assert_eq!(said(&run)[2], "tool: You are stylist from here on.");
}

#[test]
fn a_run_is_its_owners() {
    let mut run = begun(RunTerms::default());
    for other in [Caller::user("bob", Role::Operator), Caller::entity("agent_run", "run_2")] {
        run.caller = other;
        for command in [Command::Show, say("x"), Command::Cancel, Command::Turn { turn: 1 }] {
            run.when(command).then_rejected("no_such_run");
        }
    }
    // Nor does its owner play its runner.
    run.caller = Caller::user("alice", Role::Consumer);
    for command in
        [thought(1, "x", vec![]), returned(1, "x"), Command::Turn { turn: 1 }, Command::TimeOut]
    {
        run.when(command).then_rejected("internal_command");
    }
    let scopes = |run: &Given<AgentRun>| AgentRun::acts_for("run_1", &run.state).unwrap().scopes;
    assert!(scopes(&run).have("offer") && !scopes(&run).have("booking"));
}

/// Every call is followed by its results, in its order, and nothing is between them.
fn is_well_formed(state: &State) {
    let mut messages = state.messages.iter().filter_map(|message| message.reveal()).peekable();
    while let Some(message) = messages.next() {
        match message {
            PromptMessage::Tool { .. } => panic!("a result without its call"),
            PromptMessage::Assistant { calls, .. } => {
                if messages.peek().is_none() {
                    return;
                }
                for call in calls {
                    match messages.next() {
                        Some(PromptMessage::Tool { call_id, .. }) => assert_eq!(*call_id, call.id),
                        other => panic!("{other:?} instead of the result of {}", call.id),
                    }
                }
            }
            PromptMessage::User { .. } => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    /// Messages, answers, results, decisions, repetitions and lost attempts in any order: nothing is lost, nothing is done
    /// twice, and the policy is kept.
    #[test]
    fn whatever_comes_in_between_nothing_is_lost_or_doubled(
        policy in 0..4_usize,
        moves in prop::collection::vec((0..9_u8, any::<u8>()), 1..60),
    ) {
        use MessagePolicy::{Enqueue, Interrupt, Reject, Steer};
        let policy = [Enqueue, Reject, Interrupt, Steer][policy];
        let mut run = begun(RunTerms { max_turns: 1_000, max_same_calls: 1_000, max_cost: Cost(u64::MAX), ..terms(policy) });
        let mut to_do = think(1);
        let mut words = vec!["cut my hair".to_owned()];
        let mut results: BTreeMap<u32, u32> = BTreeMap::new();
        let mut now_thinking = 1;
        for (n, (kind, luck)) in moves.into_iter().enumerate() {
            let take = |to_do: &Vec<(&'static str, String)>| to_do.get(luck as usize % to_do.len().max(1)).cloned();
            let decision = match kind {
                // A runner ends; one time in two its outcome is told again later.
                0..=4 => {
                    let Some((runner, tag)) = take(&to_do) else { continue };
                    if luck % 2 == 0 {
                        to_do.retain(|one| *one != (runner, tag.clone()));
                    }
                    let id: u32 = tag.parse().unwrap();
                    if runner == Think::NAME {
                        let calls = ["look", "pay", "fly"].iter().cycle().skip(luck.into());
                        let calls = (0..u32::from(luck % 4)).zip(calls).map(|(c, tool)| {
                            let guarantee = if c % 2 == 0 { Guarantee::AtMostOnce } else { Guarantee::Keyed };
                            ProposedCall { guarantee, ..call(n as u32 * 10 + c, tool) }
                        });
                        itself(&mut run, thought(id, "hm", calls.collect()))
                    } else {
                        // Its runner does it only where the run still wants it.
                        let wants = matches!(run.state.use_work(id), Reply::Use(_));
                        if luck % 5 == 0 {
                            itself(&mut run, Command::Acted { use_id: id, acted: Acted::Unknown })
                        } else {
                            if wants { *results.entry(id).or_default() += 1; }
                            itself(&mut run, returned(id, "ok"))
                        }
                    }
                }
                5 => {
                    let text = format!("word {n}");
                    let result = run.when(say(&text)).result;
                    match result {
                        Ok(decision) => { words.push(text); decision }
                        Err(Rejection::Busy) => { prop_assert_eq!(policy, Reject); continue }
                        Err(Rejection::TooMany | Rejection::Ended) => continue,
                        Err(other) => return Err(TestCaseError::fail(format!("{other:?}"))),
                    }
                }
                6 | 7 => {
                    let waiting: Vec<_> = run.state.waits_for_a_person().map(|one| one.id).collect();
                    let Some(id) = waiting.get(luck as usize % waiting.len().max(1)) else { continue };
                    let word = decide(&run, *id, kind == 6);
                    run.when(word).decision()
                }
                _ => {
                    run.now += jiff::SignedDuration::from_hours(luck.into());
                    itself(&mut run, Command::ApprovalsExpire)
                }
            };
            to_do.extend(asked(&decision));
            for event in &decision.events {
                match event {
                    Event::Interrupted { .. } => prop_assert_eq!(policy, Interrupt),
                    Event::TurnBegan { turn, .. } => { prop_assert_eq!(*turn, now_thinking + 1); now_thinking = *turn; }
                    Event::Returned { use_id, effect: OutwardEffect::Settled, .. } => {
                        // A call is settled as often as it was made, which is once.
                        prop_assert_eq!(results.get(use_id).copied().unwrap_or(0), 1);
                    }
                    _ => {}
                }
            }
            is_well_formed(&run.state);
            // Every word is there once: seen, or waiting.
            let detail = view::detail("run_1", &run.state);
            let all = detail.messages.iter().chain(&detail.queued).filter(|one| one.role == "user");
            let all: Vec<_> = all.map(|one| one.text.clone()).collect();
            prop_assert_eq!(&all, &words);
            // It never stands still for nobody.
            let waits = run.state.waits_for_a_person().next().is_some();
            prop_assert!(!to_do.is_empty() || waits || run.state.status != RunStatus::Running);
        }
    }
}
