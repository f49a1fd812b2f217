//! A device of a person: what it can do, whether it is there, and what it is told to do from afar.
//!
//! A connection that speaks for a device says so (`Connect`), and again before its lease ends. The lease is a timer: when
//! a node dies with its connections, the devices that do not come back elsewhere are offline when it fires.

use jiff::SignedDuration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::messages::{DEVICE, DeviceIs, DeviceState, PLAYBACK, Play, Stopped};
pub use super::profile::{Capabilities, DeviceProfile, DeviceType};
use crate::kernel::clock::{Timestamp, saturating_add};
use crate::kernel::entity::{Announcement, Caller, DecideCx, Decided, Decision, Effect, Entity};
use crate::kernel::error::ErrorCode;

/// A device whose connection has ended may come back through another one.
const GRACE_S: i64 = 5;
const LEASE: &str = "lease";
/// For so long a device may begin what it is told to play.
const START_S: i64 = 60;

#[derive(Debug)]
pub struct Device;

/// What a device is asked. Names of variants and fields stay: nodes of another release read them too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Anew, or with changes.
    Register(DeviceProfile),
    Remove,
    /// This connection speaks for it from now on.
    Connect {
        connection: String,
        lease_s: i64,
    },
    /// Within the lease, which is the gateway's word. It takes the device from nobody.
    Renew {
        connection: String,
        lease_s: i64,
    },
    Disconnect {
        connection: String,
    },
    /// The timer.
    LeaseEnded,
    /// From another device of the same person.
    Control {
        action: Action,
        from: Option<String>,
        /// Only if it plays this.
        session_id: Option<String>,
        /// Who hears it later must not carry it out.
        ttl_ms: u32,
    },
    /// From the person's playback.
    Play(Play),
    Stopped(Stopped),
    Get,
}

/// What a device can do at the word of another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    Play,
    Pause,
    Stop,
    Seek { position_ms: u64 },
    Next,
    Previous,
}

/// An action by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RemoteAction {
    Play,
    Pause,
    Stop,
    Seek,
    Next,
    Previous,
}

impl RemoteAction {
    /// `None`: a seek says where to.
    pub fn at(self, position_ms: Option<u64>) -> Option<Action> {
        Some(match self {
            Self::Play => Action::Play,
            Self::Pause => Action::Pause,
            Self::Stop => Action::Stop,
            Self::Seek => Action::Seek { position_ms: position_ms? },
            Self::Next => Action::Next,
            Self::Previous => Action::Previous,
        })
    }
}

impl Action {
    fn parts(&self) -> (RemoteAction, Option<u64>) {
        match self {
            Self::Play => (RemoteAction::Play, None),
            Self::Pause => (RemoteAction::Pause, None),
            Self::Stop => (RemoteAction::Stop, None),
            Self::Seek { position_ms } => (RemoteAction::Seek, Some(*position_ms)),
            Self::Next => (RemoteAction::Next, None),
            Self::Previous => (RemoteAction::Previous, None),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    Registered { owner_id: String, profile: DeviceProfile, at: Timestamp },
    Updated { profile: DeviceProfile, at: Timestamp },
    Connected { connection: String, at: Timestamp },
    WentOffline { at: Timestamp },
    Controlled { command_id: String, action: Action, from: Option<String>, expires_at: Timestamp },
    Playing { session_id: Option<String>, at: Timestamp },
    Removed { at: Timestamp },
}

/// Bounded by its profile.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub registered: Option<Registered>,
    /// The one that speaks for it.
    pub connection: Option<String>,
    pub playing: Option<String>,
    pub last_seen: Option<Timestamp>,
    pub removed: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Registered {
    pub owner_id: String,
    pub profile: DeviceProfile,
    pub at: Timestamp,
    pub version: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "DeviceStatus")]
pub enum Status {
    Online,
    Offline,
    Watching,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    Device(Box<DeviceView>),
    Controlled { command_id: String, expires_at: Timestamp },
    Done,
}

/// A device as its owner sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ChangedDevice")]
pub struct DeviceView {
    pub id: String,
    pub name: String,
    pub device_type: DeviceType,
    pub capabilities: Capabilities,
    pub has_push_token: bool,
    pub status: Status,
    pub playback_session_id: Option<String>,
    pub last_seen: Option<Timestamp>,
    pub registered_at: Timestamp,
    pub version: u64,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct DeviceChanged {
    device_id: String,
    /// registered, updated, removed, online, offline, watching or stopped
    change: String,
    device: Box<DeviceView>,
}

impl Announcement for DeviceChanged {
    const EVENT: &'static str = "device:changed";
    const SUMMARY: &'static str = "A device was registered, updated or removed, came online or went offline, or started or stopped playing";
    const TOPICS: &'static [&'static str] = &["user"];
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct RemoteCommand {
    action: RemoteAction,
    /// The target position of a seek.
    #[serde(skip_serializing_if = "Option::is_none")]
    position_ms: Option<u64>,
    command_id: String,
    from_device_id: Option<String>,
    playback_session_id: Option<String>,
    expires_at: Timestamp,
}

impl Announcement for RemoteCommand {
    const EVENT: &'static str = "device:command";
    const SUMMARY: &'static str =
        "A remote command from another device of the same person; void after expires_at";
    const TOPICS: &'static [&'static str] = &["device"];
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct StartPlayback {
    session_id: String,
    content_id: String,
    platform: String,
    deep_link: String,
    web_fallback: String,
    resume_position_ms: Option<u64>,
    expires_at: Timestamp,
}

impl Announcement for StartPlayback {
    const EVENT: &'static str = "playback:start";
    const SUMMARY: &'static str = "Tells a device to open a link before expires_at; repeated when the device reconnects before it has reported";
    const TOPICS: &'static [&'static str] = &["device"];
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Rejection {
    #[error("device not found")]
    NotFound,
    #[error("this device was removed: register with a new id")]
    Removed,
    #[error("this device is offline")]
    Offline,
    #[error("this device does not take commands from others")]
    NotControllable,
    #[error("this device does not play that")]
    NotPlaying,
    #[error("only the system may do this")]
    InternalOnly,
}

impl crate::kernel::entity::Rejection for Rejection {
    fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound => ErrorCode::NotFound,
            Self::InternalOnly => ErrorCode::Forbidden,
            Self::Removed | Self::Offline | Self::NotControllable | Self::NotPlaying => {
                ErrorCode::Rejected
            }
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Removed => "device_removed",
            Self::Offline => "device_offline",
            Self::NotControllable => "not_controllable",
            Self::NotPlaying => "not_playing",
            Self::InternalOnly => "internal_only",
        }
    }
}

impl State {
    pub fn status(&self) -> Status {
        match (&self.connection, &self.playing) {
            (None, _) => Status::Offline,
            (Some(_), None) => Status::Online,
            (Some(_), Some(_)) => Status::Watching,
        }
    }

    fn shown(&self, key: &str, registered: &Registered) -> Box<DeviceView> {
        let DeviceProfile { name, device_type, capabilities, push_token } = &registered.profile;
        Box::new(DeviceView {
            id: key.into(),
            name: name.clone(),
            device_type: *device_type,
            capabilities: capabilities.clone(),
            has_push_token: push_token.as_ref().is_some_and(|token| !token.is_erased()),
            status: self.status(),
            playback_session_id: self.playing.clone(),
            last_seen: self.last_seen,
            registered_at: registered.at,
            version: registered.version,
        })
    }

    /// The caller's own device, or it does not exist.
    fn owned(&self, caller: &Caller) -> Result<&Registered, Rejection> {
        let registered = self.registered.as_ref().ok_or(Rejection::NotFound)?;
        let owner_id = &registered.owner_id;
        if !(caller.may_act_for(owner_id, "device") || caller.is_the(PLAYBACK, owner_id)) {
            return Err(Rejection::NotFound);
        }
        if self.removed { Err(Rejection::Removed) } else { Ok(registered) }
    }

    /// The playback of the person whose device this is, even where that was removed.
    fn is_played_by(&self, caller: &Caller) -> bool {
        let owner_id = self.registered.as_ref().map(|registered| &registered.owner_id);
        owner_id.is_some_and(|owner_id| caller.is_the(PLAYBACK, owner_id))
    }

    /// What follows for the person's other devices. It is decided on the state after the events.
    fn told(&self, event: Event, key: &str, what: &str) -> (Event, Option<Effect>) {
        let mut after = self.clone();
        Device::evolve(&mut after, &event);
        let effect = after.registered.as_ref().map(|registered| {
            let changed = DeviceChanged {
                device_id: key.into(),
                change: what.into(),
                device: after.shown(key, registered),
            };
            Effect::announce_to("user", registered.owner_id.clone(), &changed)
        });
        (event, effect)
    }

    fn change(&self, reply: Reply, event: Event, key: &str, what: &str) -> Decision<Device> {
        let (event, effect) = self.told(event, key, what);
        Decision::reply(reply).event(event).effects(effect)
    }

    /// What it plays depends on whether it is there.
    fn tell_playback(&self, there: DeviceState) -> Option<Effect> {
        let (registered, session_id) = (self.registered.as_ref()?, self.playing.clone()?);
        let command = DeviceIs { session_id, there };
        Some(Effect::send(registered.owner_id.clone(), &command))
    }

    fn register(&self, profile: DeviceProfile, cx: &DecideCx<'_>) -> Decided<Device> {
        let at = cx.now;
        let owner = self.registered.as_ref().map(|known| &*known.owner_id);
        let profile = match owner.or(cx.caller.user_id()) {
            Some(owner) => profile.of(owner),
            None => profile,
        };
        let (event, what) = match (self.owned(cx.caller), cx.caller.user_id()) {
            (Err(Rejection::NotFound), Some(owner_id)) if self.registered.is_none() => {
                (Event::Registered { owner_id: owner_id.into(), profile, at }, "registered")
            }
            (Ok(known), _) if known.profile == profile => {
                return Ok(Decision::reply(Reply::Device(self.shown(cx.key, known))));
            }
            (Ok(_), _) => (Event::Updated { profile, at }, "updated"),
            (Err(rejection), _) => return Err(rejection),
        };
        let mut after = self.clone();
        Device::evolve(&mut after, &event);
        let registered = after.registered.as_ref().ok_or(Rejection::NotFound)?;
        Ok(self.change(Reply::Device(after.shown(cx.key, registered)), event, cx.key, what))
    }

    fn control(
        &self,
        action: Action,
        from: Option<String>,
        session_id: Option<&str>,
        ttl_ms: u32,
        cx: &DecideCx<'_>,
    ) -> Decided<Device> {
        let registered = self.owned(cx.caller)?;
        if session_id.is_some() && session_id != self.playing.as_deref() {
            return Err(Rejection::NotPlaying);
        }
        if !registered.profile.capabilities.remote_control {
            return Err(Rejection::NotControllable);
        }
        if self.connection.is_none() {
            return Err(Rejection::Offline);
        }
        let command_id = cx.ids.mint("cmd");
        let expires_at = saturating_add(cx.now, SignedDuration::from_millis(ttl_ms.into()));
        let (name, position_ms) = action.parts();
        let publish = Effect::announce(&RemoteCommand {
            action: name,
            position_ms,
            command_id: command_id.clone(),
            from_device_id: from.clone(),
            playback_session_id: self.playing.clone(),
            expires_at,
        });
        let event = Event::Controlled { command_id: command_id.clone(), action, from, expires_at };
        Ok(Decision::reply(Reply::Controlled { command_id, expires_at })
            .event(event)
            .effect(publish))
    }
}

fn lease(now: Timestamp, seconds: i64) -> Effect {
    let at = saturating_add(now, SignedDuration::from_secs(seconds));
    Effect::schedule::<Device>(LEASE, at, &Command::LeaseEnded)
}

impl Entity for Device {
    const KIND: &'static str = DEVICE;
    const GOLDEN: &'static str = include_str!("golden/device.jsonl");
    const HAS_TOPIC: bool = true;
    const PRIVATE: bool = true;

    crate::own_types!();

    fn is_query(command: &Command) -> bool {
        matches!(command, Command::Get)
    }

    fn decide(state: &State, command: Command, cx: &DecideCx<'_>) -> Decided<Self> {
        match command {
            Command::Register(profile) => state.register(profile, cx),
            Command::Get => {
                let registered = state.owned(cx.caller)?;
                Ok(Decision::reply(Reply::Device(state.shown(cx.key, registered))))
            }
            Command::Remove => match state.owned(cx.caller) {
                Ok(_) => {
                    let event = Event::Removed { at: cx.now };
                    let decision = state.change(Reply::Done, event, cx.key, "removed");
                    let told = state.tell_playback(DeviceState::Removed);
                    Ok(decision.effect(Effect::cancel(LEASE)).effects(told))
                }
                Err(Rejection::Removed) => Ok(Decision::reply(Reply::Done)),
                Err(rejection) => Err(rejection),
            },
            Command::Renew { connection, .. }
                if state.connection.as_ref().is_some_and(|speaks| *speaks != connection) =>
            {
                Ok(Decision::reply(Reply::Done))
            }
            Command::Connect { connection, lease_s } | Command::Renew { connection, lease_s } => {
                state.owned(cx.caller)?;
                let reply = Reply::Done;
                let came = state.connection.is_none();
                let decision = if state.connection.as_ref() == Some(&connection) {
                    Decision::reply(reply)
                } else {
                    let event = Event::Connected { connection, at: cx.now };
                    let (event, effect) = state.told(event, cx.key, "online");
                    let playback = state.tell_playback(DeviceState::Online);
                    let effects = effect.into_iter().chain(playback).filter(|_| came);
                    Decision::reply(reply).event(event).effects(effects)
                };
                Ok(decision.effect(lease(cx.now, lease_s)))
            }
            Command::Disconnect { connection } => {
                state.owned(cx.caller)?;
                // Another connection may speak for it by now.
                let decision = Decision::reply(Reply::Done);
                let ends = state.connection.as_ref() == Some(&connection);
                Ok(decision.effects(ends.then(|| lease(cx.now, GRACE_S))))
            }
            Command::LeaseEnded if !cx.caller.is_itself() => Err(Rejection::InternalOnly),
            Command::LeaseEnded if state.connection.is_none() || state.removed => {
                Ok(Decision::reply(Reply::Done))
            }
            Command::LeaseEnded => {
                let event = Event::WentOffline { at: cx.now };
                let decision = state.change(Reply::Done, event, cx.key, "offline");
                Ok(decision.effects(state.tell_playback(DeviceState::Offline)))
            }
            Command::Control { action, from, session_id, ttl_ms } => {
                state.control(action, from, session_id.as_deref(), ttl_ms, cx)
            }
            Command::Play(_) | Command::Stopped(_) if !cx.caller.is_a(PLAYBACK) => {
                Err(Rejection::InternalOnly)
            }
            Command::Play(Play { session_id, start }) => {
                state.owned(cx.caller)?;
                // It is sent again when the device comes back before it has said anything.
                let expires_at = saturating_add(cx.now, SignedDuration::from_secs(START_S));
                let play = StartPlayback {
                    session_id: session_id.clone(),
                    content_id: start.content_id,
                    platform: start.choice.platform,
                    deep_link: start.choice.deep_link,
                    web_fallback: start.choice.web_fallback,
                    resume_position_ms: start.resume_position_ms,
                    expires_at,
                };
                let event = Event::Playing { session_id: Some(session_id), at: cx.now };
                let decision = state.change(Reply::Done, event, cx.key, "watching");
                Ok(decision.effect(Effect::announce(&play)))
            }
            Command::Stopped(Stopped { session_id })
                if state.playing.as_ref() == Some(&session_id) && state.is_played_by(cx.caller) =>
            {
                let event = Event::Playing { session_id: None, at: cx.now };
                Ok(state.change(Reply::Done, event, cx.key, "stopped"))
            }
            Command::Stopped(_) => Ok(Decision::reply(Reply::Done)),
        }
    }

    fn evolve(state: &mut State, event: &Event) {
        match event {
            Event::Registered { owner_id, profile, at } => {
                state.registered = Some(Registered {
                    owner_id: owner_id.clone(),
                    profile: profile.clone().of(owner_id),
                    at: *at,
                    version: 1,
                });
            }
            Event::Updated { profile, .. } => {
                if let Some(registered) = &mut state.registered {
                    registered.profile = profile.clone().of(&registered.owner_id);
                    registered.version += 1;
                }
            }
            Event::Connected { connection, at } => {
                (state.connection, state.last_seen) = (Some(connection.clone()), Some(*at));
            }
            Event::WentOffline { at } => {
                (state.connection, state.last_seen) = (None, Some(*at));
            }
            Event::Controlled { .. } => {}
            Event::Playing { session_id, .. } => state.playing = session_id.clone(),
            Event::Removed { .. } => {
                state.removed = true;
                (state.connection, state.playing) = (None, None);
                if let Some(registered) = &mut state.registered {
                    registered.profile.push_token = None;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kernel::entity::replay_golden;
    use crate::kernel::entity::spec::{Given, given};
    use crate::kernel::entity::to_value;
    use crate::kernel::private::Private;
    use crate::systems::devices::domain::content::{Access, Quality};
    use crate::systems::devices::domain::messages::SessionStart;
    use crate::systems::devices::domain::platforms::Choice;

    fn now() -> Timestamp {
        "2026-01-12T08:00:00Z".parse().unwrap()
    }

    fn profile(name: &str) -> DeviceProfile {
        DeviceProfile {
            name: name.into(),
            device_type: DeviceType::AndroidTv,
            capabilities: Capabilities { remote_control: true, ..Capabilities::default() },
            push_token: Some(Private::new("alice", "secret".into())),
        }
    }

    fn connect(connection: &str) -> Command {
        Command::Connect { connection: connection.into(), lease_s: 90 }
    }

    fn tv() -> Given<Device> {
        let registered =
            Event::Registered { owner_id: "alice".into(), profile: profile("TV"), at: now() };
        given::<Device>([registered]).at(now()).by_user("alice").key("dev_1")
    }

    fn told(decision: &Decision<Device>) -> Vec<(String, String)> {
        let told = |effect: &Effect| match effect {
            Effect::Notify { key, publication, .. } => {
                Some((key.clone(), publication.data["change"].as_str().unwrap().to_owned()))
            }
            _ => None,
        };
        decision.effects.iter().filter_map(told).collect()
    }

    fn leases(decision: &Decision<Device>) -> Vec<i64> {
        let lease = |effect: &Effect| match effect {
            Effect::Schedule { at, .. } => Some(at.as_second() - now().as_second()),
            _ => None,
        };
        decision.effects.iter().filter_map(lease).collect()
    }

    fn is(given: &mut Given<Device>) -> Status {
        match given.when(Command::Get).decision().reply {
            Some(Reply::Device(device)) => device.status,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn it_is_registered_once_and_then_changed() {
        let mut new = given::<Device>([]).at(now()).by_user("alice").key("dev_1");
        new.when(Command::Get).then_rejected("not_found");
        let decision = new.when(Command::Register(profile("TV"))).decision();
        assert_eq!(told(&decision), [("alice".into(), "registered".into())]);
        let Some(Reply::Device(shown)) = decision.reply else { panic!() };
        assert_eq!((shown.name.as_str(), shown.status), ("TV", Status::Offline));
        assert!(!to_value(&shown).to_string().contains("secret"));
        new.when(Command::Register(profile("TV"))).then([]);
        let changed = Event::Updated { profile: profile("Telly"), at: now() };
        new.when(Command::Register(profile("Telly"))).then([changed]);
        // Nobody else learns that it exists, or takes it.
        let mut eve = new.by_user("eve");
        eve.when(Command::Get).then_rejected("not_found");
        eve.when(Command::Register(profile("Mine"))).then_rejected("not_found");
        eve.when(Command::Remove).then_rejected("not_found");
        eve.when(connect("con_9")).then_rejected("not_found");
    }

    #[test]
    fn it_is_online_as_long_as_a_connection_says_so() {
        let mut tv = tv();
        let decision = tv.when(connect("con_1")).decision();
        assert_eq!((told(&decision).len(), leases(&decision)), (1, vec![90]));
        assert_eq!(is(&mut tv), Status::Online);
        let decision = tv.when(connect("con_1")).then([]);
        assert_eq!(leases(&decision), [90]);
        // Another connection takes over, and the end of the first says nothing any more.
        let decision = tv.when(connect("con_2")).decision();
        assert!(told(&decision).is_empty());
        let ended = |connection: &str| Command::Disconnect { connection: connection.into() };
        assert!(leases(&tv.when(ended("con_1")).then([])).is_empty());
        // Nor does its renewal, which was on its way.
        let renew =
            |connection: &str| Command::Renew { connection: connection.into(), lease_s: 90 };
        assert!(leases(&tv.when(renew("con_1")).then([])).is_empty());
        assert_eq!(leases(&tv.when(renew("con_2")).then([])), [90]);
        assert_eq!(leases(&tv.when(ended("con_2")).then([])), [GRACE_S]);
        assert_eq!(is(&mut tv), Status::Online);
        tv.when(Command::LeaseEnded).then_rejected("internal_only");
        tv.caller = Caller::Runtime;
        let decision = tv.when(Command::LeaseEnded).then([Event::WentOffline { at: now() }]);
        assert_eq!(told(&decision), [("alice".into(), "offline".into())]);
        assert_eq!(is(&mut tv), Status::Offline);
        tv.when(Command::LeaseEnded).then([]);
    }

    #[test]
    fn it_takes_commands_while_it_is_there() {
        let control = || Command::Control {
            action: Action::Seek { position_ms: 5 },
            from: Some("dev_2".into()),
            session_id: None,
            ttl_ms: 10_000,
        };
        let mut tv = tv();
        tv.when(control()).then_rejected("device_offline");
        tv.when(connect("con_1")).decision();
        let decision = tv.when(control()).decision();
        let [Effect::Publish { publication, durable: true }] = &decision.effects[..] else {
            panic!()
        };
        assert_eq!(publication.event, "device:command");
        assert_eq!(
            (&publication.data["action"], &publication.data["position_ms"]),
            (&json!("seek"), &json!(5))
        );
        let mut deaf = profile("TV");
        deaf.capabilities.remote_control = false;
        tv.when(Command::Register(deaf)).decision();
        tv.when(control()).then_rejected("not_controllable");
    }

    fn play(session_id: &str) -> Command {
        let choice = Choice {
            platform: "netflix".into(),
            access: Access::Free,
            quality: Quality::Hd,
            deep_link: "nflx://1".into(),
            web_fallback: "https://1".into(),
        };
        let start = SessionStart {
            content_id: "tt1".into(),
            device_id: "dev_1".into(),
            choice,
            resume_position_ms: None,
            idle_s: 900,
        };
        Command::Play(Play { session_id: session_id.into(), start })
    }

    /// What the playback is told.
    fn playback(decision: &Decision<Device>) -> Vec<&str> {
        let there = |effect: &'_ Effect| match effect {
            Effect::Send { kind: "playback", key, command } if key == "alice" => {
                match command["DeviceIs"]["there"].as_str().unwrap() {
                    "Online" => Some("online"),
                    "Offline" => Some("offline"),
                    _ => Some("removed"),
                }
            }
            _ => None,
        };
        decision.effects.iter().filter_map(there).collect()
    }

    #[test]
    fn it_watches_what_the_playback_says() {
        let mut tv = tv();
        tv.when(connect("con_1")).decision();
        let stopped = |session: &str| Command::Stopped(Stopped { session_id: session.into() });
        tv.when(play("plb_1")).then_rejected("internal_only");
        tv.when(stopped("plb_1")).then_rejected("internal_only");
        tv.caller = Caller::entity("playback", "bob");
        tv.when(play("plb_1")).then_rejected("not_found");
        let playback_actor = Caller::entity("playback", "alice");
        tv.caller = playback_actor.clone();
        let decision = tv.when(play("plb_1")).decision();
        assert_eq!(told(&decision)[0].1, "watching");
        let Some(Effect::Publish { publication, durable: true }) = decision.effects.last() else {
            panic!("{:?}", decision.effects)
        };
        assert_eq!(publication.data["deep_link"], "nflx://1");
        assert_eq!(is(&mut tv), Status::Watching);
        // What is stopped has to be what it plays.
        tv.when(play("plb_2")).decision();
        tv.when(stopped("plb_1")).then([]);
        let control = |session: &str| Command::Control {
            action: Action::Pause,
            from: None,
            session_id: Some(session.into()),
            ttl_ms: 1,
        };
        tv.when(control("plb_1")).then_rejected("not_playing");
        tv.when(control("plb_2")).decision();
        // Its playback learns whether it is there.
        tv.caller = Caller::Runtime;
        assert_eq!(playback(&tv.when(Command::LeaseEnded).decision()), ["offline"]);
        assert_eq!(playback(&tv.when(connect("con_2")).decision()), ["online"]);
        assert_eq!(playback(&tv.when(connect("con_3")).decision()), [""; 0]);
        tv.caller = playback_actor;
        tv.when(stopped("plb_2")).decision();
        assert_eq!(is(&mut tv), Status::Online);
        tv.when(play("plb_3")).decision();
        assert_eq!(playback(&tv.when(Command::Remove).decision()), ["removed"]);
        tv.when(play("plb_4")).then_rejected("device_removed");
    }

    #[test]
    fn a_removed_device_stays_away() {
        let mut tv = tv();
        tv.when(Command::Remove).then([Event::Removed { at: now() }]);
        tv.when(Command::Remove).then([]);
        tv.when(Command::Register(profile("TV"))).then_rejected("device_removed");
        tv.when(connect("con_1")).then_rejected("device_removed");
        assert_eq!(tv.state.registered.unwrap().profile.push_token, None);
    }

    #[test]
    fn old_releases_are_read() {
        let state = replay_golden::<Device>().unwrap();
        assert!(state.removed);
        assert_eq!(state.registered.unwrap().version, 2);
    }
}
