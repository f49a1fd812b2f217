//! States that the golden journals do not pass through: whatever a state can hold survives a snapshot.

use std::fmt::Debug;

use super::fixtures::{NOW, agreed, asked, at, offer};
use super::{booking, request, session};
use crate::kernel::entity::Entity;
use crate::kernel::entity::spec::given;
use crate::kernel::private;

fn round_trip<E: Entity>(events: impl IntoIterator<Item = E::Event>)
where
    E::State: Debug + PartialEq,
{
    let state = given::<E>(events).state;
    let config = bincode::config::standard();
    let (bytes, _) = private::plain(|| bincode::serde::encode_to_vec(&state, config));
    let bytes = bytes.unwrap();
    let (read, _): (E::State, usize) = bincode::serde::decode_from_slice(&bytes, config).unwrap();
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
