use serde_json::{Value, json};

use super::*;
use crate::kernel::entity::spec::{Given, given};
use crate::kernel::entity::{Effect, Role, Scopes};
use crate::systems::marketplace::domain::fixtures::{NOW, asked, at, eur, offer};
use crate::systems::marketplace::domain::messages::Progress;
use crate::systems::marketplace::domain::offer::{
    DeclineReason, OfferStatus, OfferSummary, OfferView,
};

const AGENT: &str = "/a2a/providers/prv_1";

fn take(message_id: &str, act: TaskAct) -> Command {
    Command::Take {
        agent: AGENT.into(),
        provider_id: Some("prv_1".into()),
        context_id: "ctx_1".into(),
        begins: true,
        message_id: message_id.into(),
        parts: vec![TaskPart::Text("hello".into())],
        act,
        push: None,
    }
}

fn begun() -> Given<Task> {
    let mut task = given::<Task>([]).at(at(NOW)).by_user("alice").key("task_1");
    task.when(take("m1", TaskAct::Ask(asked().into()))).decision();
    task
}

fn request_of(task: &Given<Task>) -> String {
    task.state.request_id.clone().expect("a request")
}

fn told(task: &mut Given<Task>, progress: Progress, offers: Vec<OfferView>) -> Decision<Task> {
    let request_id = request_of(task);
    task.caller = Caller::entity(REQUEST, request_id.as_str());
    let told = RequestTold { request_id, progress, offers, pending: 0 };
    let decision = task.when(Command::RequestTold(told)).decision();
    task.caller = Caller::user("alice", Role::Consumer);
    decision
}

fn shown(status: OfferStatus) -> OfferView {
    let mut offer = offer("off_1", "prv_1", 5_000);
    offer.status = status;
    OfferView::new("req_1", &offer, None)
}

fn offered() -> Given<Task> {
    let mut task = begun();
    let offer = OfferSummary::of(&offer("off_1", "prv_1", 5_000), "Europe/Berlin");
    told(&mut task, Progress::FirstOffer { offer }, vec![shown(OfferStatus::Open)]);
    assert_eq!(task.state.state, TaskState::InputRequired);
    task
}

fn sends(decision: &Decision<Task>) -> Vec<(&'static str, Value)> {
    let sends = decision.effects.iter().filter_map(|effect| match effect.bare() {
        Effect::Send { kind, command, .. } => Some((*kind, command.clone())),
        _ => None,
    });
    sends.collect()
}

fn accepts(offer_id: &str) -> TaskAct {
    TaskAct::Accept { offer_id: offer_id.into() }
}

#[test]
fn a_task_asks_one_provider_for_its_owner_alone() {
    let mut task = given::<Task>([]).at(at(NOW)).by_user("alice").key("task_1");
    let mut another = asked();
    another.consumer_id = "mallory".into();
    let decision = task.when(take("m1", TaskAct::Ask(another.into()))).decision();
    let [(REQUEST, ask)] = &sends(&decision)[..] else { panic!("one send") };
    assert_eq!(ask["AskFor"]["provider_id"], "prv_1");
    assert_eq!(ask["AskFor"]["task_id"], "task_1");
    assert_eq!(ask["AskFor"]["asked"]["consumer_id"], "alice");
    assert_eq!(task.state.state, TaskState::Working);
    assert_eq!(Task::acts_for("task_1", &task.state).unwrap().user_id, "alice");
}

#[test]
fn only_an_open_offer_of_its_own_is_accepted() {
    let mut task = offered();
    task.when(take("m2", accepts("off_2"))).then_rejected("no_such_offer");
    let decision = task.when(take("m2", accepts("off_1"))).decision();
    assert_eq!(sends(&decision), [(REQUEST, json!({"AcceptOffer": {"offer_id": "off_1"}}))]);
    // Until that is decided there is nothing to say, and nothing to cancel.
    task.when(take("m3", accepts("off_1"))).then_rejected("task_busy");
    task.when(Command::Cancel).then_rejected("task_not_cancelable");
    let mut gone = begun();
    let declined = Progress::AllAnswered {
        offers: 0,
        cheapest: OfferSummary::of(&offer("off_1", "prv_1", 1), "UTC"),
        open: vec![],
    };
    told(&mut gone, declined, vec![shown(OfferStatus::Expired)]);
    gone.when(take("m2", accepts("off_1"))).then_rejected("no_such_offer");
}

#[test]
fn words_never_accept() {
    for words in ["yes", "I accept", "accept it", "take the first one", "Book it!"] {
        let mut task = offered();
        let decision = task.when(take("m2", TaskAct::Say(words.into()))).decision();
        assert_eq!(sends(&decision), [], "{words}");
        assert_eq!(task.state.state, TaskState::InputRequired, "{words}");
    }
}

#[test]
fn a_message_is_heard_once() {
    let mut task = begun();
    let again = task.when(take("m1", TaskAct::Ask(asked().into()))).decision();
    assert!(again.events.is_empty() && again.effects.is_empty());
    assert_eq!(task.state.turns, 1);
}

#[test]
fn a_new_wish_takes_the_place_of_the_one_before() {
    let mut task = offered();
    let before = request_of(&task);
    // Ids are of their time.
    task.now = at("2026-01-12T08:01:00Z");
    let decision = task.when(take("m2", TaskAct::Ask(asked().into()))).decision();
    let sent = sends(&decision);
    assert_eq!(sent[0], (REQUEST, json!({"Cancel": {"reason": "changed"}})));
    assert!(sent[1].1["AskFor"].is_object());
    assert!(task.state.artifacts.is_empty());
    // What is still said of the one before is not heard.
    task.caller = Caller::entity(REQUEST, before.as_str());
    let told = RequestTold {
        request_id: before,
        progress: Progress::Cancelled,
        offers: vec![],
        pending: 0,
    };
    assert!(task.when(Command::RequestTold(told)).decision().events.is_empty());
}

#[test]
fn a_task_ends_as_its_request_does() {
    let summary = || OfferSummary::of(&offer("off_1", "prv_1", 5_000), "Europe/Berlin");
    let unmatched = |reason: &str, why, lowest_price| Progress::Unmatched {
        reason: reason.into(),
        reasons: [(why, 1)].into(),
        lowest_price,
    };
    for (progress, state) in [
        (Progress::Booked { booking_id: "bkg_1".into(), offer: summary() }, TaskState::Completed),
        (Progress::Cancelled, TaskState::Canceled),
        (Progress::Expired, TaskState::Failed),
        (unmatched("all_declined", DeclineReason::NotAvailable, None), TaskState::Rejected),
        (unmatched("matching_unavailable", DeclineReason::Unreachable, None), TaskState::Failed),
        (
            unmatched("all_declined", DeclineReason::OverBudget, Some(eur(4_000))),
            TaskState::InputRequired,
        ),
    ] {
        let mut task = begun();
        told(&mut task, progress.clone(), vec![]);
        assert_eq!(task.state.state, state, "{progress:?}");
        if state.is_over() {
            task.when(take("m9", TaskAct::Say("more".into()))).then_rejected("task_over");
        }
    }
}

#[test]
fn cancelling_waits_for_the_request() {
    let mut task = offered();
    let decision = task.when(Command::Cancel).decision();
    assert_eq!(sends(&decision), [(REQUEST, json!({"Cancel": {"reason": null}}))]);
    assert_eq!(task.state.state, TaskState::InputRequired);
    task.when(take("m2", accepts("off_1"))).then_rejected("task_busy");
    // Somebody has accepted through another door.
    let request_id = request_of(&task);
    task.caller = Caller::Runtime;
    let asked = AskedOfRequest::Cancel;
    let reason = "already_booked".into();
    task.when(Command::RequestRefused { request_id, asked, reason }).decision();
    assert!(!task.state.canceling);
    told(&mut task, Progress::Cancelled, vec![]);
    assert_eq!(task.state.state, TaskState::Canceled);
    // With nothing asked for yet it ends at once.
    let mut draft = given::<Task>([]).at(at(NOW)).by_user("alice").key("task_1");
    draft.when(take("m1", TaskAct::Say("I need a haircut".into()))).decision();
    draft.when(Command::Cancel).decision();
    assert_eq!(draft.state.state, TaskState::Canceled);
}

#[test]
fn only_its_owner_and_its_request_speak_to_it() {
    let mut task = offered();
    let request_id = request_of(&task);
    let cancelled = Command::RequestTold(RequestTold {
        request_id: request_id.clone(),
        progress: Progress::Cancelled,
        offers: vec![],
        pending: 0,
    });
    task.when(cancelled.clone()).then_rejected("internal_only");
    task.caller = Caller::entity(REQUEST, "req_another");
    task.when(cancelled).then_rejected("not_found");
    task.caller = Caller::user("bob", Role::Consumer);
    task.when(Command::Cancel).then_rejected("not_found");
    task.when(Command::AwaitChange { after: 0 }).then_rejected("not_found");
    task.when(take("m2", accepts("off_1"))).then_rejected("not_found");
    task.caller = Caller::Entity {
        kind: "agent".into(),
        key: "1".into(),
        for_user: Some(Principal { user_id: "alice".into(), scopes: Scopes::parse("offer") }),
    };
    task.when(Command::Cancel).then_rejected("not_found");
}

#[test]
fn what_is_kept_is_bounded() {
    let mut task = given::<Task>([]).at(at(NOW)).by_user("alice").key("task_1");
    for n in 0..MAX_TURNS {
        task.when(take(&format!("m{n}"), TaskAct::Say("hm".into()))).decision();
        assert!(task.state.history.len() <= MAX_HISTORY);
    }
    task.when(take("one more", TaskAct::Say("hm".into()))).then_rejected("task_full");
    let push = |n: usize| TaskPush {
        id: format!("p{n}"),
        url: "https://example.org/".into(),
        token: None,
        scheme: None,
        credentials: None,
    };
    for n in 0..MAX_PUSHES {
        task.when(Command::PutPush { push: push(n) }).decision();
    }
    task.when(Command::PutPush { push: push(9) }).then_rejected("too_many_pushes");
    task.when(Command::PutPush { push: push(0) }).decision();
    task.when(Command::DropPush { id: "p0".into() }).decision();
    assert_eq!(task.state.pushes.len(), MAX_PUSHES - 1);
}

#[test]
fn each_change_is_sent_to_each_address() {
    let mut task = begun();
    for id in ["p1", "p2"] {
        let push = TaskPush {
            id: id.into(),
            url: format!("https://example.org/{id}"),
            token: Some("secret".into()),
            scheme: None,
            credentials: None,
        };
        let put = task.when(Command::PutPush { push }).decision();
        assert!(put.effects.is_empty(), "nothing has changed yet");
    }
    let decision = told(&mut task, Progress::Expired, vec![]);
    let runs: Vec<_> = decision
        .effects
        .iter()
        .filter_map(|effect| match effect {
            // Sealed for the owner, with its secrets.
            Effect::Private { of, effect } if of == "alice" => match &**effect {
                Effect::Run { runner, input, .. } => Some((*runner, input.clone())),
                _ => None,
            },
            _ => None,
        })
        .collect();
    assert_eq!(runs.len(), 2);
    assert_eq!(runs[0].0, "notify_agent");
    assert_eq!(runs[0].1["task"]["state"], "failed");
    let quiet = task.when(Command::DropPush { id: "p1".into() }).decision();
    assert!(quiet.effects.is_empty());
}

#[test]
fn a_waiting_query_is_answered_by_the_next_change() {
    let mut task = begun();
    let version = task.state.version;
    assert!(task.when(Command::AwaitChange { after: version }).decision().reply.is_none());
    told(&mut task, Progress::Expired, vec![]);
    let reply = task.when(Command::AwaitChange { after: version }).decision().reply;
    assert_eq!(reply, Some(Reply::At { version: task.state.version }));
}
