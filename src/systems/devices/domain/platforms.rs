//! The streaming platforms, and the links that open them on each type of device. The table is `platforms.json`.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::content::{Access, Availability, Quality};
use super::profile::{Capabilities, DeviceType};
use crate::kernel::clock::Timestamp;

/// The placeholder in a link for the platform's own id of the content.
const PLACE: &str = "{id}";

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Platforms(BTreeMap<String, Platform>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Platform {
    pub name: String,
    /// Links by type of device. Types without a link use that of `web`, which every platform has.
    pub links: BTreeMap<DeviceType, String>,
}

/// A way to watch a content on a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    pub platform: String,
    pub access: Access,
    /// The best quality that both the platform and the device support.
    pub quality: Quality,
    pub deep_link: String,
    pub web_fallback: String,
}

/// The person's preferences.
#[derive(Clone, Debug, Default)]
pub struct Wish<'a> {
    pub platform: Option<&'a str>,
    pub quality: Option<Quality>,
    pub region: Option<&'a str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unplayable {
    #[error("it is not known where this can be watched")]
    Unknown,
    #[error("it cannot be watched in this region now")]
    NotHere,
    #[error("no platform that has it is on this device")]
    NotOnDevice,
}

impl Unplayable {
    pub fn reason(self) -> &'static str {
        match self {
            Self::Unknown => "availability_unknown",
            Self::NotHere => "not_available",
            Self::NotOnDevice => "not_on_device",
        }
    }
}

impl Default for Platforms {
    fn default() -> Self {
        Self::parse(include_str!("platforms.json")).expect("the table is read in a test")
    }
}

impl Platforms {
    pub fn parse(json: &str) -> Result<Self, String> {
        let platforms: Self = serde_json::from_str(json).map_err(|error| error.to_string())?;
        for (id, platform) in &platforms.0 {
            let web = platform.links.get(&DeviceType::Web);
            if !web.is_some_and(|link| link.starts_with("https://")) {
                return Err(format!("{id}: links.web is required and must start with https://"));
            }
            for (device, link) in &platform.links {
                if !link.contains(PLACE) {
                    return Err(format!("{id}: the link for {device:?} does not contain {PLACE}"));
                }
            }
        }
        Ok(platforms)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&String, &Platform)> {
        self.0.iter()
    }

    /// The link for this type of device, and the link for a browser.
    fn links(&self, availability: &Availability, device: DeviceType) -> Option<(String, String)> {
        let filled = self.0.get(&availability.platform).and_then(|platform| {
            let id = encoded(availability.platform_content_id.as_deref()?);
            let web = platform.links.get(&DeviceType::Web)?;
            let own = platform.links.get(&device).unwrap_or(web);
            Some((own.replace(PLACE, &id), web.replace(PLACE, &id), own == web))
        });
        match (filled, &availability.web_url) {
            (Some((_, _, true)) | None, Some(url)) => Some((url.clone(), url.clone())),
            (Some((own, _, false)), Some(url)) => Some((own, url.clone())),
            (Some((own, web, _)), None) => Some((own, web)),
            (None, None) => None,
        }
    }

    /// Whether there is a link to it at all.
    pub fn has_link(&self, availability: &Availability) -> bool {
        self.links(availability, DeviceType::Web).is_some()
    }

    /// The ways to watch it on a device, best first: by the preferred platform, then without extra cost, then in the
    /// wanted quality.
    pub fn choose(
        &self,
        availability: &[Availability],
        wish: &Wish<'_>,
        (device, capabilities): (DeviceType, &Capabilities),
        now: Timestamp,
    ) -> Result<Vec<Choice>, Unplayable> {
        if availability.is_empty() {
            return Err(Unplayable::Unknown);
        }
        let here: Vec<_> =
            availability.iter().filter(|a| a.is_at(now) && a.is_in(wish.region)).collect();
        if here.is_empty() {
            return Err(Unplayable::NotHere);
        }
        let supported = &capabilities.supported_platforms;
        let best = if capabilities.supports_4k { Quality::Uhd } else { Quality::Hd };
        let wanted = wish.quality.unwrap_or(best).min(best);
        let mut choices: Vec<Choice> = here
            .into_iter()
            // A device that lists no platforms supports them all.
            .filter(|a| supported.is_empty() || supported.contains(&a.platform))
            .filter_map(|a| {
                let (deep_link, web_fallback) = self.links(a, device)?;
                let (platform, quality) = (a.platform.clone(), a.quality.min(best));
                Some(Choice { platform, access: a.access, quality, deep_link, web_fallback })
            })
            .collect();
        choices.sort_by_cached_key(|choice| {
            (
                wish.platform != Some(&choice.platform),
                choice.access >= Access::Rent,
                choice.quality < wanted,
                choice.access,
                Reverse(choice.quality),
                choice.platform.clone(),
                choice.deep_link.clone(),
            )
        });
        if choices.is_empty() { Err(Unplayable::NotOnDevice) } else { Ok(choices) }
    }
}

/// Escapes every character that RFC 3986 does not call unreserved, so an id cannot change another part of the link.
fn encoded(id: &str) -> String {
    let mut encoded = String::with_capacity(id.len());
    for byte in id.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn available(changes: &[Value]) -> Vec<Availability> {
        let each = changes.iter().map(|change| {
            let mut fields = json!({"platform_content_id": "70/1#x", "access": "subscription"});
            fields.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            serde_json::from_value(fields).unwrap()
        });
        each.collect()
    }

    fn choose(
        changes: &[Value],
        wish: &Wish<'_>,
        device: DeviceType,
        supported: &[&str],
    ) -> Result<Vec<Choice>, Unplayable> {
        let capabilities = Capabilities {
            supports_4k: true,
            supported_platforms: supported.iter().map(|name| (*name).to_owned()).collect(),
            ..Capabilities::default()
        };
        let now = "2026-01-12T08:00:00Z".parse().unwrap();
        Platforms::default().choose(&available(changes), wish, (device, &capabilities), now)
    }

    fn names(choices: Result<Vec<Choice>, Unplayable>) -> Vec<String> {
        choices.unwrap().into_iter().map(|choice| choice.platform).collect()
    }

    #[test]
    fn the_table_has_ten_platforms_and_more() {
        assert!(Platforms::default().iter().count() >= 10);
        for (table, wrong) in [
            ("[]", "map"),
            (r#"{"x": {"name": "X", "links": {}}}"#, "links.web"),
            (r#"{"x": {"name": "X", "links": {"web": "http://x.example/{id}"}}}"#, "https"),
            (r#"{"x": {"name": "X", "links": {"web": "https://x.example/"}}}"#, "{id}"),
            (r#"{"x": {"name": "X", "links": {"toaster": "x"}}}"#, "toaster"),
        ] {
            let error = Platforms::parse(table).unwrap_err();
            assert!(error.contains(wrong), "{error}");
        }
    }

    #[test]
    fn each_kind_of_device_has_its_link() {
        let links = |device| {
            let choices = choose(&[json!({"platform": "netflix"})], &Wish::default(), device, &[]);
            let choice = choices.unwrap().remove(0);
            assert_eq!(choice.web_fallback, "https://www.netflix.com/title/70%2F1%23x");
            choice.deep_link
        };
        assert_eq!(links(DeviceType::Ios), "nflx://www.netflix.com/title/70%2F1%23x");
        let android = links(DeviceType::Android);
        assert!(android.starts_with("intent://www.netflix.com/title/70%2F1%23x#Intent;"));
        assert!(links(DeviceType::AndroidTv).contains("package=com.netflix.ninja;"));
        for device in [DeviceType::Web, DeviceType::Desktop, DeviceType::Roku] {
            assert_eq!(links(device), "https://www.netflix.com/title/70%2F1%23x");
        }
    }

    #[test]
    fn a_link_of_its_own_is_taken_instead_of_the_usual_one() {
        let own = json!({"platform": "netflix", "web_url": "https://n.example/1"});
        let links = |own: &Value, device| {
            let choices = choose(std::slice::from_ref(own), &Wish::default(), device, &[]);
            let choice = choices.unwrap().remove(0);
            (choice.deep_link, choice.web_fallback)
        };
        let url = || "https://n.example/1".to_owned();
        assert_eq!(links(&own, DeviceType::Web), (url(), url()));
        assert_eq!(links(&own, DeviceType::Ios).1, url());
        assert!(links(&own, DeviceType::Ios).0.starts_with("nflx://"));
        let unknown = json!({"platform": "cinema", "web_url": "https://n.example/1"});
        assert_eq!(links(&unknown, DeviceType::Ios), (url(), url()));
    }

    #[test]
    fn a_way_without_a_link_is_known_as_such() {
        let has_link = |way: Value| Platforms::default().has_link(&available(&[way])[0]);
        assert!(has_link(json!({"platform": "netflix"})));
        assert!(!has_link(json!({"platform": "cinema"})));
        assert!(has_link(json!({"platform": "cinema", "web_url": "https://n.example/1"})));
        let no_id = json!({"platform": "netflix", "platform_content_id": null});
        assert!(!has_link(no_id));
    }

    #[test]
    fn the_best_comes_first() {
        let ways = [
            json!({"platform": "youtube", "access": "rent", "quality": "uhd"}),
            json!({"platform": "netflix", "quality": "hd"}),
            json!({"platform": "max", "quality": "uhd"}),
            json!({"platform": "tubi", "access": "ads", "quality": "sd"}),
        ];
        let by_wish = |wish| names(choose(&ways, &wish, DeviceType::AndroidTv, &[]));
        assert_eq!(by_wish(Wish::default()), ["max", "netflix", "tubi", "youtube"]);
        let preferred = Wish { platform: Some("youtube"), ..Wish::default() };
        assert_eq!(by_wish(preferred)[0], "youtube");
        // What is not there cannot be preferred.
        let preferred = Wish { platform: Some("hulu"), ..Wish::default() };
        assert_eq!(by_wish(preferred)[0], "max");
        let small = Wish { quality: Some(Quality::Sd), ..Wish::default() };
        assert_eq!(by_wish(small), ["max", "netflix", "tubi", "youtube"]);
        let supported = ["netflix", "youtube"];
        let on_device = choose(&ways, &Wish::default(), DeviceType::AndroidTv, &supported);
        assert_eq!(names(on_device), ["netflix", "youtube"]);
    }

    #[test]
    fn why_it_cannot_be_played_is_said() {
        let unplayable = |ways: &[Value], region, supported: &[&str]| {
            let wish = Wish { region, ..Wish::default() };
            choose(ways, &wish, DeviceType::Web, supported).unwrap_err()
        };
        assert_eq!(unplayable(&[], None, &[]), Unplayable::Unknown);
        let in_germany = json!({"platform": "netflix", "region": "DE"});
        assert_eq!(unplayable(&[in_germany], Some("US"), &[]), Unplayable::NotHere);
        let over = json!({"platform": "netflix", "expires_at": "2026-01-12T08:00:00Z"});
        assert_eq!(unplayable(&[over], None, &[]), Unplayable::NotHere);
        let soon = json!({"platform": "netflix", "available_from": "2026-01-13T08:00:00Z"});
        assert_eq!(unplayable(&[soon], None, &[]), Unplayable::NotHere);
        let elsewhere = json!({"platform": "netflix"});
        assert_eq!(unplayable(&[elsewhere], None, &["hulu"]), Unplayable::NotOnDevice);
    }
}
