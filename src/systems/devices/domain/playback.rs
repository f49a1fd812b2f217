//! A person's playback: sessions on devices, limited in number by the person's plan.
//!
//! A session begins with a link that opens the platform's app. What happens in the app we only know from the device's
//! reports. So a session ends when it is reported or asked to end, when its device starts something else or is removed,
//! and when there is no news: a while after its device went offline, or long after its last report.

use std::collections::BTreeMap;

use jiff::SignedDuration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::content::{Access, Quality};
use super::messages::{DEVICE, DeviceIs, PLAYBACK, Play, Stopped};
pub use super::messages::{DeviceState, SessionStart};
use super::platforms::Choice;
use crate::kernel::clock::{Timestamp, saturating_add};
use crate::kernel::entity::{
    Announcement, DecideCx, Decided, Decision, Effect, Entity, SendFailure,
};
use crate::kernel::error::ErrorCode;
use crate::kernel::view::{Listed, View, ViewRow};

/// How long a device may be offline before its sessions end: a film goes on during a short network outage.
const AWAY_S: u32 = 120;
/// Most concurrent sessions, whatever the plan allows.
const MAX_STREAMS: usize = 100;

#[derive(Debug)]
pub struct PlaybackSessions;

/// What a person's playback is asked. Names of variants and fields stay: nodes of another release read them too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Starts a session. The operation decides what is played on which device, and the limits.
    Start {
        session_id: String,
        start: SessionStart,
        /// A session to end in the same step.
        replaces: Option<String>,
        max_streams: usize,
    },
    /// A report from the device.
    Report {
        session_id: String,
        report: PlaybackReport,
    },
    Stop {
        session_id: String,
    },
    /// From the device.
    DeviceIs(DeviceIs),
    /// A timer fired.
    TimedOut {
        session_id: String,
        why: EndReason,
    },
}

/// What a device says of its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaybackReport {
    pub status: Status,
    pub position_ms: Option<u64>,
    pub duration_ms: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "PlaybackStatus")]
pub enum Status {
    /// The device has the link, and has not said anything yet.
    Starting,
    Playing,
    Paused,
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "PlaybackEnd")]
pub enum EndReason {
    /// It was stopped by a command.
    Stopped,
    /// It was watched to its end, or left.
    Finished,
    /// Its device plays something else, or another session was started instead.
    Replaced,
    DeviceOffline,
    DeviceRemoved,
    TimedOut,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    Started { session_id: String, start: SessionStart, at: Timestamp },
    Reported { session_id: String, report: PlaybackReport, at: Timestamp },
    Ended { session_id: String, session: PlaybackSession, reason: EndReason, at: Timestamp },
}

/// The live sessions, bounded by the plan and [`MAX_STREAMS`]. Ended ones are only in the view.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub live: BTreeMap<String, PlaybackSession>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlaybackSession {
    pub start: SessionStart,
    pub report: PlaybackReport,
    pub started_at: Timestamp,
    pub updated_at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    Session(Box<PlaybackSessionView>),
    Done,
}

/// A session as everybody sees it: the reply, the publication and the row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "PlaybackSession")]
pub struct PlaybackSessionView {
    pub id: String,
    pub user_id: String,
    pub content_id: String,
    pub device_id: String,
    pub platform: String,
    pub access: Access,
    pub quality: Quality,
    pub deep_link: String,
    pub web_fallback: String,
    pub resume_position_ms: Option<u64>,
    pub status: Status,
    pub position_ms: Option<u64>,
    pub duration_ms: Option<u64>,
    pub started_at: Timestamp,
    pub updated_at: Timestamp,
    pub ended_at: Option<Timestamp>,
    pub end_reason: Option<EndReason>,
}

impl View for PlaybackSessionView {
    const NAME: &'static str = "playback_sessions";
    const LISTED: Option<Listed> = Listed::by("user_id", "started_at");
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Rejection {
    #[error("this belongs to another person")]
    NotYours,
    #[error("this session has ended")]
    Ended,
    #[error("at most {max} sessions at the same time: stop one of {}", live.join(", "))]
    TooManyStreams { max: usize, live: Vec<String> },
    #[error("only the system may do this")]
    InternalOnly,
}

impl crate::kernel::entity::Rejection for Rejection {
    fn code(&self) -> ErrorCode {
        match self {
            Self::NotYours => ErrorCode::NotFound,
            Self::InternalOnly => ErrorCode::Forbidden,
            Self::Ended | Self::TooManyStreams { .. } => ErrorCode::Rejected,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::NotYours => "not_yours",
            Self::Ended => "session_ended",
            Self::TooManyStreams { .. } => "too_many_streams",
            Self::InternalOnly => "internal_only",
        }
    }
}

fn timer(session_id: &str) -> String {
    format!("over:{session_id}")
}

fn play(session_id: &str, start: &SessionStart) -> Effect {
    let command = Play { session_id: session_id.into(), start: start.clone() };
    Effect::send(start.device_id.clone(), &command)
}

fn over_at(session_id: &str, now: Timestamp, after_s: u32, why: EndReason) -> Effect {
    let at = saturating_add(now, SignedDuration::from_secs(after_s.into()));
    let command = Command::TimedOut { session_id: session_id.into(), why };
    Effect::schedule::<PlaybackSessions>(timer(session_id), at, &command)
}

impl PlaybackSession {
    fn new(start: &SessionStart, at: Timestamp) -> Self {
        let position_ms = start.resume_position_ms;
        let report = PlaybackReport { status: Status::Starting, position_ms, duration_ms: None };
        Self { start: start.clone(), report, started_at: at, updated_at: at }
    }

    fn reported(&mut self, report: &PlaybackReport, at: Timestamp) {
        self.report = PlaybackReport {
            status: report.status,
            position_ms: report.position_ms.or(self.report.position_ms),
            duration_ms: report.duration_ms.or(self.report.duration_ms),
        };
        self.updated_at = at;
    }

    fn shown(
        &self,
        id: &str,
        owner: &str,
        ended: Option<(EndReason, Timestamp)>,
    ) -> Box<PlaybackSessionView> {
        let SessionStart { content_id, device_id, choice, resume_position_ms, .. } =
            self.start.clone();
        let Choice { platform, access, quality, deep_link, web_fallback } = choice;
        Box::new(PlaybackSessionView {
            id: id.into(),
            user_id: owner.into(),
            content_id,
            device_id,
            platform,
            access,
            quality,
            deep_link,
            web_fallback,
            resume_position_ms,
            status: if ended.is_some() { Status::Ended } else { self.report.status },
            position_ms: self.report.position_ms,
            duration_ms: self.report.duration_ms,
            started_at: self.started_at,
            updated_at: ended.map_or(self.updated_at, |(_, at)| at),
            ended_at: ended.map(|(_, at)| at),
            end_reason: ended.map(|(reason, _)| reason),
        })
    }
}

impl Announcement for PlaybackSessionView {
    const EVENT: &'static str = "playback:changed";
    const SUMMARY: &'static str = "A playback session has started, plays, was paused or has ended";
    const TOPICS: &'static [&'static str] = &["user"];
}

impl State {
    fn start(
        &self,
        session_id: String,
        start: SessionStart,
        replaces: Option<&str>,
        max_streams: usize,
        cx: &DecideCx<'_>,
    ) -> Decided<PlaybackSessions> {
        if let Some(session) = self.live.get(&session_id) {
            return Ok(Decision::reply(Reply::Session(session.shown(&session_id, cx.key, None))));
        }
        let ends = |(id, session): &(&String, &PlaybackSession)| {
            session.start.device_id == start.device_id || Some(id.as_str()) == replaces
        };
        let (ended, goes_on): (Vec<_>, Vec<_>) = self.live.iter().partition(ends);
        let max = max_streams.min(MAX_STREAMS);
        if goes_on.len() >= max {
            let live = goes_on.into_iter().map(|(id, _)| id.clone()).collect();
            return Err(Rejection::TooManyStreams { max, live });
        }
        let session = PlaybackSession::new(&start, cx.now);
        let shown = session.shown(&session_id, cx.key, None);
        let mut decision = Decision::reply(Reply::Session(shown.clone()));
        for (id, session) in ended {
            let over = end(id, session, EndReason::Replaced, cx);
            decision.events.extend(over.events);
            decision.effects.extend(over.effects);
        }
        let play = play(&session_id, &start);
        let timer = over_at(&session_id, cx.now, start.idle_s, EndReason::TimedOut);
        Ok(decision
            .event(Event::Started { session_id, start, at: cx.now })
            .effect(play)
            .effect(Effect::announce_to("user", cx.key, &*shown))
            .effect(timer))
    }

    fn report(
        &self,
        session_id: &str,
        report: PlaybackReport,
        cx: &DecideCx<'_>,
    ) -> Decided<PlaybackSessions> {
        let session = self.live.get(session_id).ok_or(Rejection::Ended)?;
        let mut after = session.clone();
        after.reported(&report, cx.now);
        if report.status == Status::Ended {
            return Ok(end(session_id, &after, EndReason::Finished, cx));
        }
        let shown = after.shown(session_id, cx.key, None);
        let changed = session.report.status != report.status;
        let told = Effect::announce_to("user", cx.key, &*shown);
        Ok(Decision::reply(Reply::Session(shown))
            .event(Event::Reported { session_id: session_id.into(), report, at: cx.now })
            .effects(changed.then_some(told))
            .effect(over_at(session_id, cx.now, session.start.idle_s, EndReason::TimedOut)))
    }

    /// Ends the session, if it is still live.
    fn stop(
        &self,
        session_id: &str,
        reason: EndReason,
        cx: &DecideCx<'_>,
    ) -> Decided<PlaybackSessions> {
        Ok(match self.live.get(session_id) {
            Some(session) => end(session_id, session, reason, cx),
            None => Decision::reply(Reply::Done),
        })
    }
}

/// Ends the session, and replies with its final state.
fn end(
    session_id: &str,
    session: &PlaybackSession,
    reason: EndReason,
    cx: &DecideCx<'_>,
) -> Decision<PlaybackSessions> {
    let shown = session.shown(session_id, cx.key, Some((reason, cx.now)));
    let stopped = Stopped { session_id: session_id.into() };
    let (session_id, session, at) = (session_id.to_owned(), session.clone(), cx.now);
    let (cancel, device_id) = (Effect::cancel(timer(&session_id)), session.start.device_id.clone());
    Decision::reply(Reply::Session(shown.clone()))
        .event(Event::Ended { session_id, session, reason, at })
        .effect(Effect::send(device_id, &stopped))
        .effect(Effect::announce_to("user", cx.key, &*shown))
        .effect(cancel)
}

impl Entity for PlaybackSessions {
    const KIND: &'static str = PLAYBACK;
    const GOLDEN: &'static str = include_str!("golden/playback.jsonl");

    crate::own_types!();

    fn decide(state: &State, command: Command, cx: &DecideCx<'_>) -> Decided<PlaybackSessions> {
        let is_theirs = cx.caller.may_act_for(cx.key, "playback");
        match &command {
            Command::DeviceIs(DeviceIs { session_id, .. }) => {
                let may = match state.live.get(session_id) {
                    Some(session) => cx.caller.is_the(DEVICE, &session.start.device_id),
                    None => cx.caller.is_a(DEVICE),
                };
                if !may {
                    let is_theirs = is_theirs && cx.caller.user_id().is_some();
                    return Err(if is_theirs {
                        Rejection::InternalOnly
                    } else {
                        Rejection::NotYours
                    });
                }
            }
            Command::TimedOut { .. } if is_theirs && !cx.caller.is_itself() => {
                return Err(Rejection::InternalOnly);
            }
            _ if !is_theirs => return Err(Rejection::NotYours),
            _ => {}
        }
        match command {
            Command::Start { session_id, start, replaces, max_streams } => {
                state.start(session_id, start, replaces.as_deref(), max_streams, cx)
            }
            Command::Report { session_id, report } => state.report(&session_id, report, cx),
            Command::Stop { session_id } => state.stop(&session_id, EndReason::Stopped, cx),
            Command::TimedOut { session_id, why } => state.stop(&session_id, why, cx),
            Command::DeviceIs(DeviceIs { session_id, there: DeviceState::Removed }) => {
                state.stop(&session_id, EndReason::DeviceRemoved, cx)
            }
            Command::DeviceIs(DeviceIs { session_id, there }) => {
                let decision = Decision::reply(Reply::Done);
                let Some(session) = state.live.get(&session_id) else { return Ok(decision) };
                if there == DeviceState::Offline {
                    let why = EndReason::DeviceOffline;
                    return Ok(decision.effect(over_at(&session_id, cx.now, AWAY_S, why)));
                }
                let PlaybackSession { start, report, updated_at, .. } = session;
                let timer = over_at(&session_id, *updated_at, start.idle_s, EndReason::TimedOut);
                // The device may not have received the command to play.
                let waits = report.status == Status::Starting;
                let again = waits.then(|| play(&session_id, start));
                Ok(decision.effects(again).effect(timer))
            }
        }
    }

    fn evolve(state: &mut State, event: &Event) {
        match event {
            Event::Started { session_id, start, at } => {
                state.live.insert(session_id.clone(), PlaybackSession::new(start, *at));
            }
            Event::Reported { session_id, report, at } => {
                if let Some(session) = state.live.get_mut(session_id) {
                    session.reported(report, *at);
                }
            }
            Event::Ended { session_id, .. } => {
                state.live.remove(session_id);
            }
        }
    }

    fn project(key: &str, state: &State, events: &[Event]) -> Vec<ViewRow> {
        let shown = events.iter().filter_map(|event| match event {
            Event::Started { session_id, .. } | Event::Reported { session_id, .. } => {
                Some(state.live.get(session_id)?.shown(session_id, key, None))
            }
            Event::Ended { session_id, session, reason, at } => {
                Some(session.shown(session_id, key, Some((*reason, *at))))
            }
        });
        shown.map(|row| ViewRow::of(&*row)).collect()
    }

    /// Handles an undeliverable command: a device that cannot be told to play counts as removed.
    fn send_failed(failure: SendFailure) -> Option<Command> {
        let Play { session_id, .. } = failure.of()?;
        Some(Command::DeviceIs(DeviceIs { session_id, there: DeviceState::Removed }))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kernel::entity::Caller;
    use crate::kernel::entity::spec::{Given, given};
    use crate::systems::devices::domain::content::{Access, Quality};
    use crate::systems::devices::domain::device;

    fn now() -> Timestamp {
        "2026-01-12T08:00:00Z".parse().unwrap()
    }

    fn on(device: &str) -> SessionStart {
        let choice = Choice {
            platform: "netflix".into(),
            access: Access::Subscription,
            quality: Quality::Hd,
            deep_link: "nflx://1".into(),
            web_fallback: "https://1".into(),
        };
        SessionStart {
            content_id: "tt1".into(),
            device_id: device.into(),
            choice,
            resume_position_ms: Some(7),
            idle_s: 900,
        }
    }

    fn start(session: &str, device: &str, replaces: Option<&str>) -> Command {
        Command::Start {
            session_id: session.into(),
            start: on(device),
            replaces: replaces.map(Into::into),
            max_streams: 2,
        }
    }

    fn report(session: &str, status: Status, position_ms: Option<u64>) -> Command {
        let report = PlaybackReport { status, position_ms, duration_ms: None };
        Command::Report { session_id: session.into(), report }
    }

    fn alice() -> Given<PlaybackSessions> {
        let started = Event::Started { session_id: "plb_1".into(), start: on("dev_1"), at: now() };
        given::<PlaybackSessions>([started]).at(now()).by_user("alice").key("alice")
    }

    /// What follows, in short: `play dev_1`, `stopped dev_1`, `told ended`, `in 900 s`, `no timer`.
    fn follows(decision: &Decision<PlaybackSessions>) -> Vec<String> {
        let short = |effect: &Effect| match effect {
            Effect::Send { key, command, .. } => {
                let name = command.as_object().unwrap().keys().next().unwrap();
                format!("{} {key}", name.to_lowercase())
            }
            Effect::Notify { publication, .. } => {
                format!("told {}", publication.data["status"].as_str().unwrap())
            }
            Effect::Schedule { at, .. } => {
                format!("in {} s", at.as_second() - now().as_second())
            }
            Effect::Cancel { .. } => "no timer".into(),
            other => format!("{other:?}"),
        };
        decision.effects.iter().map(short).collect()
    }

    fn live(given: &Given<PlaybackSessions>) -> Vec<&str> {
        given.state.live.keys().map(String::as_str).collect()
    }

    #[test]
    fn a_session_starts_is_reported_and_ends() {
        let mut alice = given::<PlaybackSessions>([]).at(now()).by_user("alice").key("alice");
        let decision = alice.when(start("plb_1", "dev_1", None)).decision();
        assert_eq!(follows(&decision), ["play dev_1", "told starting", "in 900 s"]);
        let rows = PlaybackSessions::project("alice", &alice.state, &decision.events);
        assert_eq!(
            (&rows[0].row["status"], &rows[0].row["position_ms"]),
            (&json!("starting"), &json!(7))
        );
        // Again has no effect.
        assert!(follows(&alice.when(start("plb_1", "dev_1", None)).then([])).is_empty());
        let decision = alice.when(report("plb_1", Status::Playing, Some(60_000))).decision();
        assert_eq!(follows(&decision), ["told playing", "in 900 s"]);
        // Where it is does not have to be told again.
        let decision = alice.when(report("plb_1", Status::Playing, Some(70_000))).decision();
        assert_eq!(follows(&decision), ["in 900 s"]);
        let decision = alice.when(report("plb_1", Status::Ended, None)).decision();
        assert_eq!(follows(&decision), ["stopped dev_1", "told ended", "no timer"]);
        let rows = PlaybackSessions::project("alice", &alice.state, &decision.events);
        let row = &rows[0].row;
        assert_eq!(
            (&row["status"], &row["end_reason"], &row["position_ms"], &row["user_id"]),
            (&json!("ended"), &json!("finished"), &json!(70_000), &json!("alice"))
        );
        assert!(live(&alice).is_empty());
        alice.when(report("plb_1", Status::Playing, None)).then_rejected("session_ended");
        alice.when(Command::Stop { session_id: "plb_1".into() }).then([]);
    }

    #[test]
    fn no_more_than_the_plan_allows() {
        let mut alice = alice();
        alice.when(start("plb_2", "dev_2", None)).decision();
        alice.when(start("plb_3", "dev_3", None)).then_rejected("too_many_streams");
        // A device plays one thing.
        let decision = alice.when(start("plb_4", "dev_2", None)).decision();
        let expected =
            ["stopped dev_2", "told ended", "no timer", "play dev_2", "told starting", "in 900 s"];
        assert_eq!(follows(&decision), expected);
        assert_eq!(live(&alice), ["plb_1", "plb_4"]);
        // It moves to another one.
        let decision = alice.when(start("plb_5", "dev_3", Some("plb_1"))).decision();
        assert_eq!(follows(&decision)[..2], ["stopped dev_1", "told ended"]);
        assert_eq!(live(&alice), ["plb_4", "plb_5"]);
    }

    #[test]
    fn it_ends_when_nothing_is_heard_of_it() {
        let mut alice = alice();
        let is = |there| Command::DeviceIs(DeviceIs { session_id: "plb_1".into(), there });
        let timed_out = |why| Command::TimedOut { session_id: "plb_1".into(), why };
        alice.when(is(DeviceState::Removed)).then_rejected("internal_only");
        alice.when(timed_out(EndReason::TimedOut)).then_rejected("internal_only");
        alice.caller = Caller::Runtime;
        assert_eq!(follows(&alice.when(is(DeviceState::Offline)).then([])), ["in 120 s"]);
        // It has not said anything yet: it is told again. Being there does not make the session longer.
        alice.now = now().checked_add(SignedDuration::from_secs(60)).unwrap();
        assert_eq!(
            follows(&alice.when(is(DeviceState::Online)).then([])),
            ["play dev_1", "in 900 s"]
        );
        alice.when(report("plb_1", Status::Playing, None)).decision();
        assert_eq!(follows(&alice.when(is(DeviceState::Online)).then([])), ["in 960 s"]);
        let decision = alice.when(timed_out(EndReason::DeviceOffline)).decision();
        let [Event::Ended { reason: EndReason::DeviceOffline, .. }] = &decision.events[..] else {
            panic!("{:?}", decision.events)
        };
        assert!(follows(&alice.when(is(DeviceState::Offline)).then([])).is_empty());
        alice.when(timed_out(EndReason::TimedOut)).then([]);
    }

    #[test]
    fn a_device_that_is_gone_plays_nothing() {
        let play = device::Command::Play(Play { session_id: "plb_1".into(), start: on("dev_1") });
        let failed = PlaybackSessions::send_failed(SendFailure {
            kind: "device".into(),
            key: "dev_1".into(),
            command: crate::kernel::entity::to_value(&play),
            reason: "not_found".into(),
        });
        let mut alice = alice();
        alice.caller = Caller::Runtime;
        let decision = alice.when(failed.unwrap()).decision();
        assert_eq!(follows(&decision)[1], "told ended");
        assert!(live(&alice).is_empty());
    }

    #[test]
    fn nobody_else_may() {
        let mut eve = alice().by_user("eve");
        eve.when(start("plb_9", "dev_1", None)).then_rejected("not_yours");
        eve.when(Command::Stop { session_id: "plb_1".into() }).then_rejected("not_yours");
        eve.when(report("plb_1", Status::Paused, None)).then_rejected("not_yours");
    }
}
