//! What stands in rows of the outbox and of timers: its text stays as it was first written, because other releases
//! write it and read it.

use super::content::{Access, Quality};
use super::device::{self, Device};
use super::messages::{self, DeviceIs, DeviceState, Play, SessionStart, Stopped};
use super::platforms::Choice;
use super::playback::{self, EndReason, PlaybackSessions};
use crate::kernel::entity::spec::{is_golden, sent, stored};

#[test]
fn what_stands_in_rows_is_written_as_it_always_was() {
    let session_id = || "pbk_1".to_owned();
    let choice = Choice {
        platform: "netflix".into(),
        access: Access::Subscription,
        quality: Quality::Uhd,
        deep_link: "nflx://title/1".into(),
        web_fallback: "https://www.netflix.com/title/1".into(),
    };
    let start = SessionStart {
        content_id: "film".into(),
        device_id: "tv".into(),
        choice,
        resume_position_ms: Some(60_000),
        idle_s: 3_600,
    };
    let is = |there| sent::<PlaybackSessions>(&DeviceIs { session_id: session_id(), there });
    let timed_out = |why| {
        stored::<PlaybackSessions>(&playback::Command::TimedOut { session_id: session_id(), why })
    };
    let now = [
        stored::<Device>(&device::Command::LeaseEnded),
        sent::<Device>(&Play { session_id: session_id(), start }),
        sent::<Device>(&Stopped { session_id: session_id() }),
        is(DeviceState::Online),
        is(DeviceState::Offline),
        is(DeviceState::Removed),
        timed_out(EndReason::DeviceOffline),
        timed_out(EndReason::TimedOut),
    ];
    is_golden(&now, include_str!("golden/commands.txt"), messages::ALL);
}
