//! The golden journals: what old releases wrote, every release reads.

use std::collections::BTreeSet;
use std::fmt::Debug;

use serde_json::Value;

use crate::kernel::entity::{Entity, replay_golden};
use crate::kernel::private;
use crate::persistence::codec::SnapshotCodec;
use crate::systems::app_topics::domain::app_topic;
use crate::systems::devices::domain::{content, device, playback, shared};
use crate::systems::marketplace::domain::{booking, provider, request, session, user};

/// The names of an event's variants; a variant that is missing here does not compile.
macro_rules! variants {
    ($event:ty: $($name:ident)*) => {{
        fn _exhaustive(event: &$event) {
            type Event = $event;
            match event { $(Event::$name { .. } => (),)* }
        }
        &[$(stringify!($name)),*]
    }};
}

#[track_caller]
fn check<E: Entity>(variants: &[&str])
where
    E::State: Debug + PartialEq,
{
    let state = replay_golden::<E>().expect("every line is read");
    assert_ne!(state, E::State::default());

    let written: BTreeSet<String> = E::GOLDEN
        .lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            line["event"].as_object().unwrap().keys().next().unwrap().clone()
        })
        .collect();
    let expected: BTreeSet<String> = variants.iter().map(|name| (*name).into()).collect();
    assert_eq!(written, expected, "{}: every event occurs in the golden journal", E::KIND);

    SnapshotCodec::of::<E>().expect("a state has a shape");
    let config = bincode::config::standard();
    let (snapshot, _) = private::plain(|| bincode::serde::encode_to_vec(&state, config));
    let snapshot = snapshot.expect("states can be snapshotted");
    let (read, length): (E::State, usize) =
        bincode::serde::decode_from_slice(&snapshot, config).expect("snapshots can be read");
    assert_eq!((read, length), (state, snapshot.len()));
}

#[test]
fn user() {
    check::<user::User>(variants!(user::Event: Notified));
}

#[test]
fn session() {
    check::<session::Session>(variants!(session::Event:
        Opened MessageReceived DraftChanged RequestStarted RequestFollowed ReadBack Responded Published Ended));
}

#[test]
fn request() {
    check::<request::Request>(variants!(request::Event:
        Created MatchingFailed ProvidersMatched OfferReceived LeadDeclined OfferExpired OfferDeclined
        OfferWithdrawn AcceptanceStarted AcceptanceRetried AcceptanceRefused Booked Cancelled BookingCancelled
        Expired Unmatched));
}

#[test]
fn provider() {
    check::<provider::Provider>(variants!(provider::Event:
        Enrolled Updated LeadReceived OfferMade LeadDeclined OfferWithdrawn SlotHeld SlotReleased ReviewRecorded));
}

#[test]
fn booking() {
    check::<booking::Booking>(variants!(booking::Event:
        BookingRequested BookingConfirmed BookingStarted BookingCompleted BookingReviewed BookingCancelled
        ConsumerMissed));
}

#[test]
fn app() {
    check::<app_topic::AppTopic>(variants!(app_topic::Event: Published));
}

#[test]
fn sync() {
    check::<shared::Shared>(variants!(shared::Event: Joined Left Merged Saw LeftBehind));
}

#[test]
fn device() {
    check::<device::Device>(variants!(device::Event:
        Registered Updated Connected WentOffline Controlled Playing Removed));
}

#[test]
fn playback() {
    check::<playback::Playback>(variants!(playback::Event: Started Reported Ended));
}

#[test]
fn content() {
    check::<content::Content>(variants!(content::Event: AvailabilitySet));
}

/// States that the golden journals do not pass through: whatever a state can hold survives a snapshot.
mod snapshots {
    use super::*;
    use crate::kernel::entity::spec::given;
    use crate::systems::marketplace::domain::fixtures::{NOW, agreed, asked, at, offer};

    fn round_trip<E: Entity>(events: impl IntoIterator<Item = E::Event>)
    where
        E::State: Debug + PartialEq,
    {
        let state = given::<E>(events).state;
        let config = bincode::config::standard();
        let (bytes, _) = private::plain(|| bincode::serde::encode_to_vec(&state, config));
        let bytes = bytes.unwrap();
        let (read, _): (E::State, usize) =
            bincode::serde::decode_from_slice(&bytes, config).unwrap();
        assert_eq!(read, state);
    }

    #[test]
    fn of_living_requests_and_bookings() {
        round_trip::<request::Request>([
            request::Event::Created { asked: asked(), at: at(NOW) },
            request::Event::ProvidersMatched { provider_ids: vec!["prv_1".into()], at: at(NOW) },
            request::Event::OfferReceived { offer: offer("off_1", "prv_1", 1), at: at(NOW) },
            request::Event::AcceptanceStarted {
                offer_id: "off_1".into(),
                booking_id: "bkg_1".into(),
                at: at(NOW),
            },
        ]);
        round_trip::<booking::Booking>([booking::Event::BookingRequested {
            agreed: agreed().into(),
            at: at(NOW),
        }]);
        round_trip::<session::Session>([]);
    }
}
