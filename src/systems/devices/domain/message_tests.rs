//! The commands that stand in rows of the outbox and of timers, and travel between nodes: their text stays as it was
//! first written, because other releases write it and read it.

use serde_json::from_str;

use super::content::{Access, Quality};
use super::device::{self, Action, Capabilities, Device, DeviceProfile, DeviceType};
use super::messages as m;
use super::platforms::Choice;
use super::playback::{self, DeviceState, EndReason, PlaybackSessions, SessionStart, Status};
use crate::kernel::entity::Entity;
use crate::kernel::private::{self, Private};

/// The command as it is written, which reads as the same command.
fn written<E: Entity>(command: E::Command) -> String {
    let (text, _) = private::plain(|| serde_json::to_string(&command).unwrap());
    let read: E::Command = from_str(&text).unwrap();
    let (again, _) = private::plain(|| serde_json::to_string(&read).unwrap());
    assert_eq!(again, text);
    format!("{} {text}", E::KIND)
}

fn start() -> SessionStart {
    SessionStart {
        content_id: "film".into(),
        device_id: "tv".into(),
        choice: Choice {
            platform: "netflix".into(),
            access: Access::Subscription,
            quality: Quality::Uhd,
            deep_link: "nflx://title/1".into(),
            web_fallback: "https://www.netflix.com/title/1".into(),
        },
        resume_position_ms: Some(60_000),
        idle_s: 3_600,
    }
}

fn to_devices() -> Vec<String> {
    use device::Command::*;
    let control = |action| Control { action, from: None, session_id: None, ttl_ms: 5_000 };
    let profile = DeviceProfile {
        name: "TV".into(),
        device_type: DeviceType::AppleTv,
        capabilities: Capabilities { remote_control: true, ..Capabilities::default() },
        push_token: Some(Private::new("alice", "token".to_owned())),
    };
    let commands = [
        Register(profile),
        Remove,
        Connect { connection: "con_1".into(), lease_s: 60 },
        Renew { connection: "con_1".into(), lease_s: 60 },
        Disconnect { connection: "con_1".into() },
        LeaseEnded,
        control(Action::Play),
        control(Action::Pause),
        control(Action::Stop),
        control(Action::Seek { position_ms: 7 }),
        control(Action::Next),
        control(Action::Previous),
        Play(m::Play { session_id: "pbk_1".into(), start: start() }),
        Stopped(m::Stopped { session_id: "pbk_1".into() }),
        Get,
    ];
    commands.into_iter().map(written::<Device>).collect()
}

fn to_playbacks() -> Vec<String> {
    use playback::Command::*;
    let session_id = || "pbk_1".to_owned();
    let report = |status| {
        let report = playback::PlaybackReport { status, position_ms: Some(1), duration_ms: None };
        Report { session_id: session_id(), report }
    };
    let is = |there| DeviceIs(m::DeviceIs { session_id: session_id(), there });
    let over = |why| TimedOut { session_id: session_id(), why };
    let commands = [
        Start { session_id: session_id(), start: start(), replaces: None, max_streams: 3 },
        report(Status::Starting),
        report(Status::Playing),
        report(Status::Paused),
        report(Status::Ended),
        Stop { session_id: session_id() },
        is(DeviceState::Online),
        is(DeviceState::Offline),
        is(DeviceState::Removed),
        over(EndReason::Stopped),
        over(EndReason::Finished),
        over(EndReason::Replaced),
        over(EndReason::DeviceOffline),
        over(EndReason::DeviceRemoved),
        over(EndReason::TimedOut),
    ];
    commands.into_iter().map(written::<PlaybackSessions>).collect()
}

#[test]
fn commands_are_written_as_they_always_were() {
    let all = [to_devices(), to_playbacks()].concat();
    let before: Vec<&str> = include_str!("golden/commands.txt").lines().collect();
    for (now, before) in all.iter().zip(&before) {
        assert_eq!(now, before);
    }
    assert_eq!(all.len(), before.len());
}
