//! Hybrid logical time: wall-clock time where possible, and always later than any time seen before.
//!
//! Times are those of `uhlc`: [`NTP64`], seconds since 1970 in the upper 32 bits and their fraction below, whose last
//! four bits count events at the same instant. A device's clock is uhlc's `HLC`; this module decides how its times
//! count.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use ulid::Ulid;

pub use uhlc::NTP64;

use crate::kernel::clock::Timestamp;

/// A device's id: `dev_` and a ULID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct DeviceId(u128);

impl DeviceId {
    pub const fn new(id: u128) -> Self {
        Self(id)
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dev_{}", Ulid::from(self.0))
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be dev_ and a ULID")]
pub struct InvalidDeviceId;

impl FromStr for DeviceId {
    type Err = InvalidDeviceId;

    /// Accepts only the canonical form: an id has one spelling.
    fn from_str(text: &str) -> Result<Self, InvalidDeviceId> {
        let ulid = text.strip_prefix("dev_").and_then(|ulid| Ulid::from_string(ulid).ok());
        let id = Self(ulid.ok_or(InvalidDeviceId)?.0);
        if id.to_string() == text { Ok(id) } else { Err(InvalidDeviceId) }
    }
}

impl schemars::JsonSchema for DeviceId {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "DeviceId".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "pattern": "^dev_[0-7][0-9A-HJKMNP-TV-Z]{25}$"})
    }
}

impl Serialize for DeviceId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for DeviceId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
        } else {
            u128::deserialize(deserializer).map(Self)
        }
    }
}

/// Times in JSON, as text because JavaScript's numbers cannot hold them. RFC 3339 is also accepted.
pub mod ntp {
    use super::*;

    pub fn serialize<S: Serializer>(time: &NTP64, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(&time.0)
        } else {
            serializer.serialize_u64(time.0)
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<NTP64, D::Error> {
        if !deserializer.is_human_readable() {
            return u64::deserialize(deserializer).map(NTP64);
        }
        let text = String::deserialize(deserializer)?;
        let parsed = text.parse().map(NTP64).ok();
        let parsed = parsed.or_else(|| as_ntp(text.parse().ok()?));
        parsed.ok_or_else(|| {
            let expected = "timestamp must be a 64-bit number as text, or an RFC 3339 time between 1970 and 2106";
            serde::de::Error::custom(expected)
        })
    }
}

/// The time and the device of a write. No two operations have the same stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stamp {
    #[serde(with = "ntp")]
    pub time: NTP64,
    pub device: DeviceId,
}

/// A timestamp as NTP64; `None`: before 1970, or after 32 bits of seconds run out in 2106.
fn as_ntp(at: Timestamp) -> Option<NTP64> {
    let since = Duration::try_from(at.as_duration()).ok()?;
    (since.as_secs() <= u32::MAX.into()).then(|| NTP64::from(since))
}

/// The time of our own clock, clamped to the range of NTP64.
pub fn to_ntp(at: Timestamp) -> NTP64 {
    let edge = if at < Timestamp::UNIX_EPOCH { 0 } else { u64::MAX };
    as_ntp(at).unwrap_or(NTP64(edge))
}

/// The time in whole milliseconds: for people, not for comparison.
pub fn to_timestamp(time: NTP64) -> Timestamp {
    let ms = i64::try_from(time.to_duration().as_millis()).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(ms).unwrap_or(Timestamp::MAX)
}

/// The next time of a clock that has given `last`, as uhlc's `HLC` counts.
pub fn tick(last: NTP64, now: NTP64) -> NTP64 {
    let counter = (1 << uhlc::CSIZE) - 1;
    let now = now.0 & !counter;
    if now > last.0 & !counter { NTP64(now) } else { NTP64(last.0.saturating_add(1)) }
}

/// The time that an operation counts with. If it is further in the future than `skew`, or not later than the device's
/// last operation (`before`), the device's clock is wrong. The operation then counts as written on arrival: after all
/// existing ones, the newest of which is at `latest`.
pub fn admit(claimed: NTP64, before: NTP64, latest: NTP64, now: NTP64, skew: Duration) -> NTP64 {
    let skew = skew.min(Duration::from_secs(u32::MAX.into()));
    let bound = now.0.saturating_add(NTP64::from(skew).0);
    if claimed > before && claimed.0 <= bound { claimed } else { tick(latest.max(before), now) }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    thread_local!(static NOW: Cell<u64> = const { Cell::new(0) });

    fn read(text: &str) -> Result<NTP64, String> {
        #[derive(Deserialize)]
        struct Read(#[serde(with = "ntp")] NTP64);
        let read = serde_json::from_value(serde_json::Value::String(text.into()));
        read.map(|Read(time)| time).map_err(|error| error.to_string())
    }

    proptest! {
        #[test]
        fn whatever_time_is_given_is_read_or_refused(
            seconds in Timestamp::MIN.as_second()..=Timestamp::MAX.as_second(),
            nanos in 0..1_000_000_000,
        ) {
            let Ok(at) = Timestamp::new(seconds, nanos) else { return Ok(()) };
            let sayable = (0..=i64::from(u32::MAX)).contains(&seconds);
            let time = read(&at.to_string());
            prop_assert_eq!(time.is_ok(), sayable, "{} {:?}", at, time);
            // Our own clock ends where such times end.
            let ours = to_ntp(at);
            match time {
                Ok(time) => {
                    prop_assert_eq!(ours, time);
                    let shown = to_timestamp(time).as_millisecond();
                    prop_assert!((0..=1).contains(&(at.as_millisecond() - shown)), "{} {}", at, shown);
                }
                Err(error) => {
                    prop_assert!(error.contains("between 1970 and 2106"));
                    prop_assert_eq!(ours.0, if seconds < 0 { 0 } else { u64::MAX });
                }
            }
        }

        #[test]
        fn whatever_a_device_claims_is_admitted(
            claimed: u64, before: u64, latest: u64, now: u64, skew_ms: u64,
        ) {
            let skew = Duration::from_millis(skew_ms);
            let time = admit(NTP64(claimed), NTP64(before), NTP64(latest), NTP64(now), skew);
            prop_assert!(time >= NTP64(before));
        }

        /// uhlc's clock and ours are one.
        #[test]
        fn a_tick_is_that_of_uhlc(steps in proptest::collection::vec(0..1_u64 << 40, 1..50)) {
            let clock = uhlc::HLCBuilder::new().with_clock(|| NTP64(NOW.get())).build();
            let mut last = NTP64(0);
            for now in steps {
                NOW.set(now);
                last = tick(last, NTP64(now));
                prop_assert_eq!(*clock.new_timestamp().get_time(), last);
            }
        }

        #[test]
        fn what_is_admitted_grows_and_is_not_of_the_future(
            before in 0..1_u64 << 40, latest in 0..1_u64 << 40, claimed in 0..1_u64 << 41,
            now in 0..1_u64 << 40,
        ) {
            let skew = Duration::from_secs(5);
            let bound = now + NTP64::from(skew).0;
            let time = admit(NTP64(claimed), NTP64(before), NTP64(latest), NTP64(now), skew);
            prop_assert!(time > NTP64(before));
            if claimed > before && claimed <= bound {
                prop_assert_eq!(time, NTP64(claimed));
            } else {
                prop_assert!(time > NTP64(latest));
                prop_assert!(time.0 <= now.max(latest + 1).max(before + 1));
            }
        }
    }

    #[test]
    fn devices_have_one_spelling() {
        let id: DeviceId = "dev_01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap();
        assert_eq!(id.to_string(), "dev_01ARZ3NDEKTSV4RRFFQ69G5FAV");
        for wrong in
            ["", "dev_", "01ARZ3NDEKTSV4RRFFQ69G5FAV", "dev_01arz3ndektsv4rrffq69g5fav", "dev_x"]
        {
            assert_eq!(wrong.parse::<DeviceId>(), Err(InvalidDeviceId), "{wrong}");
        }
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(serde_json::from_str::<DeviceId>(&json).unwrap(), id);
    }

    #[test]
    fn devices_order_as_their_text_does() {
        let ids: Vec<DeviceId> = [1, 1 << 40, 1 << 100, u128::MAX].map(DeviceId::new).into();
        assert!(ids.is_sorted());
        assert!(ids.iter().map(ToString::to_string).is_sorted());
    }

    #[test]
    fn times_are_shown_to_people() {
        let at: Timestamp = "2026-01-12T08:00:00.250Z".parse().unwrap();
        assert_eq!(to_timestamp(to_ntp(at)), at);
        for (at, sayable) in [
            ("-009999-01-02T01:59:59Z", false),
            ("1969-12-31T23:59:59.999999999Z", false),
            ("1970-01-01T00:00:00Z", true),
            ("2106-02-07T06:28:15.999999999Z", true),
            ("2106-02-07T06:28:16Z", false),
            ("2200-01-01T00:00:00Z", false),
            ("2554-07-21T23:34:34Z", false),
            ("9999-12-30T22:00:00.999999999Z", false),
        ] {
            assert_eq!(read(at).is_ok(), sayable, "{at}");
        }
        assert_eq!(to_ntp(Timestamp::MIN), NTP64(0));
        assert_eq!(to_ntp(Timestamp::MAX), NTP64(u64::MAX));
        assert!(to_timestamp(NTP64(u64::MAX)) > at);
    }
}
