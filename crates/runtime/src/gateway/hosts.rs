//! The hosts that this node answers to, where a forged one would do harm: at `/mcp`, and in the addresses that its
//! documents name.
//!
//! A page whose name suddenly resolves to this machine (DNS rebinding) sends its own name as `Host`.

use axum::http::{HeaderMap, HeaderName, header};

use super::origins::{authority, forwarded};
use crate::contract::problem::{Outcome, Problem};

/// The scheme that a trusted proxy was spoken to with.
pub const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Names that always mean this machine.
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

/// A host name or address, and a port where only that one is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedHost {
    host: String,
    port: Option<u16>,
}

impl std::str::FromStr for AllowedHost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // No scheme: with it the port 80 or 443 would be lost.
        let parsed = authority(text, "");
        let (host, port) = parsed.ok_or_else(|| {
            format!("{text:?} is not a host such as api.example.org or api.example.org:8443")
        })?;
        Ok(Self { host, port })
    }
}

impl AllowedHost {
    fn allows(&self, host: &str, port: Option<u16>) -> bool {
        self.host == host && self.port.is_none_or(|only| port == Some(only))
    }
}

impl std::fmt::Display for AllowedHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.host),
            None => f.write_str(&self.host),
        }
    }
}

/// This machine's own names and the configured hosts; never empty.
#[derive(Clone, Debug)]
pub struct Hosts(Vec<AllowedHost>);

impl Default for Hosts {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl Hosts {
    pub fn new(mut hosts: Vec<AllowedHost>) -> Self {
        let own = LOOPBACK.map(|name| AllowedHost { host: name.into(), port: None });
        hosts.extend(own);
        Self(hosts)
    }

    pub fn names(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(AllowedHost::to_string)
    }

    /// The address by which the client reaches this node, `https://api.example.org`. Every host that the request names
    /// must be allowed: its own, and those that a trusted proxy passes on.
    pub fn address(&self, headers: &HeaderMap) -> Outcome<String> {
        let own = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let own = own.ok_or_else(|| Problem::bad_request("the header Host is needed"))?;
        let mut reached = own;
        for host in std::iter::once(own).chain(forwarded(headers)) {
            let host = host.trim();
            let known = authority(host, "");
            if !known.is_some_and(|(name, port)| self.0.iter().any(|one| one.allows(&name, port))) {
                let shown: String = host.chars().take(200).collect();
                let detail =
                    format!("{shown:?} is no host of this node: see gateway.allowed_hosts");
                return Err(Problem::forbidden(detail).reason("host_not_allowed"));
            }
            reached = host;
        }
        let scheme = headers.get(FORWARDED_PROTO).and_then(|scheme| scheme.to_str().ok());
        let scheme = scheme.or_else(|| forwarded_proto(headers)).map_or("", str::trim);
        let scheme = if scheme.eq_ignore_ascii_case("https") { "https" } else { "http" };
        Ok(format!("{scheme}://{reached}"))
    }
}

/// The first `proto` of `Forwarded` (RFC 7239).
fn forwarded_proto(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::FORWARDED)?.to_str().ok()?;
    value.split([',', ';']).find_map(|parameter| {
        let (name, scheme) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("proto").then(|| scheme.trim().trim_matches('"'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(hosts: &[&str], headers: &[(&'static str, &str)]) -> Option<String> {
        let hosts = Hosts::new(hosts.iter().map(|host| host.parse().unwrap()).collect());
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        hosts.address(&map).ok()
    }

    #[test]
    fn only_hosts_of_this_node_are_answered() {
        for (hosts, host, good) in [
            (&[][..], "localhost:8080", true),
            (&[], "127.0.0.1:1", true),
            (&[], "[::1]:8080", true),
            (&[], "LOCALHOST", true),
            (&[], "api.example.org", false),
            (&["api.example.org"], "api.example.org", true),
            (&["API.example.org"], "api.Example.org:8443", true),
            (&["api.example.org:8443"], "api.example.org:8443", true),
            (&["api.example.org:8443"], "api.example.org", false),
            (&["api.example.org:443"], "api.example.org:443", true),
            (&["example.org"], "api.example.org", false),
            (&["example.org"], "example.org.evil.example", false),
            (&["example.org"], "example.org@evil.example", false),
            (&[], "", false),
            (&[], "localhost:x", false),
        ] {
            assert_eq!(address(hosts, &[("host", host)]).is_some(), good, "{hosts:?}: {host}");
        }
        assert_eq!(address(&[], &[]), None, "no host at all");
    }

    #[test]
    fn the_address_is_the_one_that_the_proxy_was_asked_by() {
        let hosts = &["api.example.org"];
        let at = |headers: &[(&'static str, &str)]| address(hosts, headers);
        assert_eq!(at(&[("host", "localhost:80")]).unwrap(), "http://localhost:80");
        let proxied = [
            ("host", "127.0.0.1"),
            ("x-forwarded-host", "api.example.org"),
            ("x-forwarded-proto", "https"),
        ];
        assert_eq!(at(&proxied).unwrap(), "https://api.example.org");
        let rfc = [
            ("host", "127.0.0.1"),
            ("forwarded", "for=1.2.3.4;host=\"api.example.org\";proto=https"),
        ];
        assert_eq!(at(&rfc).unwrap(), "https://api.example.org");
        assert_eq!(at(&[("host", "evil.example"), ("x-forwarded-host", "api.example.org")]), None);
        assert_eq!(at(&[("host", "localhost"), ("x-forwarded-host", "evil.example")]), None);
    }

    #[test]
    fn what_is_no_host_is_refused_in_the_configuration() {
        for bad in [
            "",
            "*",
            "*.example.org",
            "https://api.example.org",
            "api.example.org/mcp",
            "a b",
            "a:99999",
        ] {
            assert!(bad.parse::<AllowedHost>().is_err(), "{bad}");
        }
    }
}
