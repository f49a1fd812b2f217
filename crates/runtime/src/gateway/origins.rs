//! The origins whose pages may talk to this node: its own, and the configured ones.
//!
//! Origins are compared as browsers write them (RFC 6454): in lower case, and without the scheme's default port.

use std::collections::HashSet;
use std::str::FromStr;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName, header};
use parking_lot::Mutex;

/// The origin of a page: `https://app.example.org:8443`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    scheme: String,
    host: String,
    port: Option<u16>,
}

/// The origins that one entry of `gateway.allowed_origins` allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// `*`.
    All,
    /// `null`: pages loaded from files, and sandboxed pages.
    Null,
    One(ListedOrigin),
    /// `https://*.example.org`: every name below this one, but not the name itself.
    Below(ListedOrigin),
}

/// A listed origin, or the part of it that follows the `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedOrigin(Origin);

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" | "ws" => Some(80),
        "https" | "wss" => Some(443),
        _ => None,
    }
}

/// A host and its port, as in `Host`, in canonical form; the default port of `scheme` becomes `None`.
pub(super) fn authority(text: &str, scheme: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = match text.rsplit_once(':') {
        // Colons within brackets belong to an IPv6 address.
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let port = match port {
        None | Some("") => None,
        Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => Some(port.parse().ok()?),
        Some(_) => return None,
    };
    let is_name = |host: &str| {
        !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
    };
    let is_address = |host: &str| {
        let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        address.is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok())
    };
    let valid = is_name(host) || is_address(host);
    valid.then(|| (host.to_ascii_lowercase(), port.filter(|_| port != default_port(scheme))))
}

impl Origin {
    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let starts = scheme.bytes().next().is_some_and(|b| b.is_ascii_alphabetic());
        let valid = scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
        let scheme = (starts && valid).then(|| scheme.to_ascii_lowercase())?;
        let (host, port) = authority(rest, &scheme)?;
        Some(Self { scheme, host, port })
    }
}

impl FromStr for Allowed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| Err(format!("{text:?} {why}"));
        match text {
            "*" => return Ok(Self::All),
            "null" => return Ok(Self::Null),
            _ => {}
        }
        if !text.is_ascii() {
            return wrong("has letters that browsers encode: use its xn--… form");
        }
        let origin = text.strip_suffix('/').unwrap_or(text);
        let Some((scheme, rest)) = origin.split_once("://") else {
            return wrong(
                "is not an origin: it must begin with a scheme, as in https://app.example.org",
            );
        };
        if rest.contains('/') {
            return wrong("is not an origin: nothing may follow the host and port");
        }
        let (below, rest) = match rest.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        if rest.contains('*') {
            return wrong(
                "has a * in the wrong place: it may only stand for the first labels of a host, as in https://*.example.org",
            );
        }
        match Origin::parse(&format!("{scheme}://{rest}")) {
            Some(origin) if below => Ok(Self::Below(ListedOrigin(origin))),
            Some(origin) => Ok(Self::One(ListedOrigin(origin))),
            None => wrong("is not an origin such as https://app.example.org"),
        }
    }
}

impl Allowed {
    fn allows(&self, origin: Option<&Origin>) -> bool {
        match (self, origin) {
            (Self::All, _) => true,
            (Self::One(ListedOrigin(one)), Some(origin)) => one == origin,
            (Self::Below(ListedOrigin(name)), Some(origin)) => {
                let labels = origin.host.strip_suffix(&name.host);
                (&origin.scheme, origin.port) == (&name.scheme, name.port)
                    && labels.is_some_and(|labels| labels.len() > 1 && labels.ends_with('.'))
            }
            (Self::Null | Self::One(_) | Self::Below(_), _) => false,
        }
    }
}

/// The configured origins, and the record of refused ones.
#[derive(Default)]
pub struct Origins {
    allowed: Vec<Allowed>,
    refused: Mutex<Refused>,
}

/// The refused origins that the log already names.
#[derive(Default)]
struct Refused {
    named: HashSet<String>,
    since: Option<Instant>,
}

/// Most refused origins that the log names within an hour, each once.
const MAX_NAMED: usize = 100;
const NAMED_FOR: Duration = Duration::from_secs(3_600);

impl Refused {
    /// Whether the log should name this origin now.
    fn is_news(&mut self, origin: &str, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= NAMED_FOR) {
            (self.named, self.since) = (HashSet::new(), Some(now));
        }
        self.named.len() < MAX_NAMED && self.named.insert(origin.to_owned())
    }
}

/// The headers in which a proxy passes on the host that its client asked for. They are removed from requests that do
/// not come from a trusted proxy.
pub static FORWARDED: [HeaderName; 2] =
    [HeaderName::from_static("x-forwarded-host"), header::FORWARDED];

impl Origins {
    pub fn new(allowed: Vec<Allowed>) -> Self {
        Self { allowed, refused: Mutex::default() }
    }

    /// Whether every origin is allowed.
    pub fn all(&self) -> bool {
        self.allowed.contains(&Allowed::All)
    }

    /// The request's origin, if its pages are not allowed.
    pub fn refused(&self, headers: &HeaderMap) -> Option<String> {
        let value = headers.get(header::ORIGIN)?;
        let text = value.to_str().ok();
        let origin = text.and_then(Origin::parse);
        let allowed = self.allowed.iter().any(|allowed| match allowed {
            Allowed::Null => text == Some("null"),
            allowed => allowed.allows(origin.as_ref()),
        });
        if allowed || origin.is_some_and(|origin| is_own(&origin, headers)) {
            return None;
        }
        let shown: String = String::from_utf8_lossy(value.as_bytes()).chars().take(200).collect();
        let mut refused = self.refused.lock();
        if refused.is_news(&shown, Instant::now()) {
            let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
            tracing::warn!(
                origin = %shown,
                host = host.unwrap_or_default(),
                "pages of this origin were refused: add it to gateway.allowed_origins, or have the proxy pass on its host"
            );
        }
        Some(shown)
    }
}

/// Whether the page comes from the host that the request is addressed to.
fn is_own(origin: &Origin, headers: &HeaderMap) -> bool {
    let own = |host: &str| {
        authority(host.trim(), &origin.scheme)
            .is_some_and(|(host, port)| (&host, port) == (&origin.host, origin.port))
    };
    values(headers, &header::HOST).any(own) || forwarded(headers).any(own)
}

fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok())
}

/// The hosts that proxies pass on.
pub(super) fn forwarded(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let [host, list] = &FORWARDED;
    let hosts = values(headers, host).flat_map(|hosts| hosts.split(','));
    hosts.chain(values(headers, list).flat_map(forwarded_hosts))
}

/// The `host` parameters of a `Forwarded` header (RFC 7239).
fn forwarded_hosts(value: &str) -> impl Iterator<Item = &str> {
    value.split([',', ';']).filter_map(|parameter| {
        let (name, host) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("host").then(|| host.trim().trim_matches('"'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(allowed: &[&str], headers: &[(&'static str, &str)]) -> bool {
        let origins = Origins::new(allowed.iter().map(|text| text.parse().unwrap()).collect());
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        origins.refused(&map).is_some()
    }

    #[test]
    fn origins_are_compared_in_their_canonical_form() {
        for (allowed, origin, good) in [
            ("https://app.example", "https://app.example", true),
            ("https://App.Example:443/", "https://app.example", true),
            ("HTTPS://app.example", "https://app.example:443", true),
            ("http://app.example:80", "http://app.example", true),
            ("http://app.example:8080", "http://app.example:8080", true),
            ("http://app.example:8080", "http://app.example", false),
            ("http://app.example", "https://app.example", false),
            ("http://app.example:443", "https://app.example", false),
            ("https://[2001:DB8::1]:443", "https://[2001:db8::1]", true),
            ("capacitor://localhost", "capacitor://localhost", true),
            ("https://*.example.org", "https://a.example.org", true),
            ("https://*.example.org", "https://a.b.example.org", true),
            ("https://*.example.org/", "https://A.Example.Org:443", true),
            ("https://*.example.org", "https://example.org", false),
            ("https://*.example.org", "https://.example.org", false),
            ("https://*.example.org", "https://evilexample.org", false),
            ("https://*.example.org", "https://example.org.evil.example", false),
            ("https://*.example.org", "http://a.example.org", false),
            ("https://*.example.org:8443", "https://a.example.org:8443", true),
            ("https://*.example.org:8443", "https://a.example.org", false),
            ("*", "https://anything.example", true),
            ("*", "null", true),
            ("null", "null", true),
            ("https://app.example", "null", false),
            ("https://app.example", "https://app.example/path", false),
            ("https://app.example", "nonsense", false),
        ] {
            assert_eq!(!refused(&[allowed], &[("origin", origin)]), good, "{allowed}: {origin}");
        }
        assert!(!refused(&[], &[]), "no browser");
    }

    #[test]
    fn what_is_no_origin_is_refused_in_the_configuration() {
        for bad in [
            "",
            "app.example",
            "https://",
            "https://app.example/path",
            "https://app.example:port",
            "https://app.example:99999",
            "https://user@app.example",
            "https://*",
            "https://*.",
            "https://a.*.example",
            "https://app*.example",
            "*://app.example",
            "https://app.example:*",
            "https://münchen.example",
            "https://app.example https://other.example",
        ] {
            let error = bad.parse::<Allowed>().expect_err(bad);
            assert!(error.starts_with(&format!("{bad:?} ")), "{error}");
        }
    }

    #[test]
    fn a_page_of_the_host_that_was_asked_is_ours() {
        for (origin, headers, good) in [
            ("https://a.example", &[("host", "a.example")][..], true),
            ("https://a.example", &[("host", "A.Example:443")], true),
            ("https://a.example:443", &[("host", "a.example")], true),
            ("http://a.example", &[("host", "a.example:80")], true),
            ("http://a.example", &[("host", "a.example:443")], false),
            ("http://a.example:8080", &[("host", "a.example")], false),
            ("http://[::1]:8080", &[("host", "[::1]:8080")], true),
            ("https://a.example", &[("host", "b")], false),
            ("https://a.example", &[("host", "b"), ("x-forwarded-host", "a.example")], true),
            ("https://a.example", &[("host", "b"), ("x-forwarded-host", "c, A.example:443")], true),
            ("https://a.example", &[("host", "b"), ("x-forwarded-host", "c")], false),
            (
                "https://a.example",
                &[
                    ("host", "b"),
                    ("forwarded", "for=1.2.3.4;Host=\"a.example\";proto=https, for=x"),
                ],
                true,
            ),
            ("https://a.example", &[("host", "b"), ("forwarded", "for=\"a.example\"")], false),
        ] {
            let headers = [&[("origin", origin)], headers].concat();
            assert_eq!(!refused(&[], &headers), good, "{headers:?}");
        }
    }

    #[test]
    fn each_refused_origin_is_named_once_and_not_without_end() {
        let (mut refused, now) = (Refused::default(), Instant::now());
        assert!(refused.is_news("https://a.example", now));
        assert!(!refused.is_news("https://a.example", now));
        let named = (0..1_000).filter(|n| refused.is_news(&n.to_string(), now)).count();
        assert_eq!(named, MAX_NAMED - 1);
        assert!(refused.is_news("https://a.example", now + NAMED_FOR), "much later, again");
    }
}
