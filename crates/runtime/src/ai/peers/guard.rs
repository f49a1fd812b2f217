//! Addresses that strangers name, and that this node is to call: none of its own network, and none of a cloud's metadata.
//!
//! A name is looked up when the connection is made, by the resolver here, and the connection goes to what that has
//! found: a name that means another address by then is refused as it would have been before.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

const MAX_URL: usize = 2_048;

/// An address that may be called.
#[derive(Clone, Debug)]
pub struct PushAddress(Url);

impl PushAddress {
    pub fn url(&self) -> Url {
        self.0.clone()
    }
}

/// Reads an address, or says what is wrong with it. Names are looked up when they are called.
pub fn address_of(text: &str, loopback: bool) -> Result<PushAddress, String> {
    if text.len() > MAX_URL {
        return Err(format!("must have at most {MAX_URL} characters"));
    }
    let url: Url = text.parse().map_err(|error| format!("is no address: {error}"))?;
    if !(url.username().is_empty() && url.password().is_none()) {
        return Err("must not hold a name or a password".into());
    }
    let host = url.host_str().ok_or("names no host")?;
    let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
    let here = host == "localhost" || literal.is_some_and(|ip| ip.to_canonical().is_loopback());
    match url.scheme() {
        "https" => {}
        "http" if loopback && here => {}
        _ => return Err("must begin with https://".into()),
    }
    if let Some(ip) = literal
        && !may_be_called(ip, loopback)
    {
        return Err("is an address of a private network".into());
    }
    if here && !loopback {
        return Err("is this machine".into());
    }
    Ok(PushAddress(url))
}

/// Whether strangers may have this address called.
fn may_be_called(ip: IpAddr, loopback: bool) -> bool {
    match ip.to_canonical() {
        ip if ip.is_loopback() => loopback,
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    !(ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_broadcast()
        || ip.is_multicast()
        || ip.is_documentation()
        || a == 0
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (b == 18 || b == 19))
        || a >= 240)
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let parts = ip.segments();
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match parts {
        // Translated to IPv4 (RFC 6052), and 6to4.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x2002, high, low, ..] => embedded(high, low),
        // Teredo, documentation, benchmarks, ORCHID.
        [0x2001, second, ..] => second > 0x1ff && second != 0xdb8,
        [0x3fff, second, ..] => second > 0xfff,
        // Global unicast; all else is local, reserved or multicast.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

/// Looks names up, and refuses those that mean an address which may not be called.
#[derive(Debug)]
pub(super) struct GuardedResolver {
    pub loopback: bool,
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let loopback = self.loopback;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let found: Vec<SocketAddr> = found.collect();
            // One that may not be called spoils the others: nobody has a reason to mix them.
            if found.iter().any(|address| !may_be_called(address.ip(), loopback)) {
                return Err(format!("{} is an address of a private network", name.as_str()).into());
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_may_be_called() {
        for public in ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"] {
            assert!(may_be_called(public.parse().unwrap(), false), "{public}");
        }
        for private in [
            "127.0.0.1",
            "127.8.8.8",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "192.0.0.170",
            "198.18.0.1",
            "203.0.113.9",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "::10.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "2002:a00:1::",
            "2001::1",
            "2001:db8::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!may_be_called(private.parse().unwrap(), false), "{private}");
        }
        assert!(may_be_called("127.0.0.1".parse().unwrap(), true));
        assert!(!may_be_called("10.0.0.1".parse().unwrap(), true));
    }

    #[test]
    fn what_is_no_public_address_is_refused_before_it_is_kept() {
        let wrong = |text: &str, loopback| address_of(text, loopback).err();
        assert_eq!(wrong("https://example.org/hook?x=1", false), None);
        assert_eq!(wrong("http://127.0.0.1:8080/hook", true), None);
        assert_eq!(wrong("http://localhost:8080/hook", true), None);
        for bad in [
            "",
            "example.org",
            "http://example.org/",
            "ftp://example.org/",
            "file:///etc/passwd",
            "https://user:secret@example.org/",
            "https://localhost/",
            "https://127.0.0.1/",
            // The same, as a number, in octal and short.
            "https://2130706433/",
            "https://0177.0.0.1/",
            "https://127.1/",
            "https://[::1]/",
            "https://[::ffff:169.254.169.254]/latest/meta-data",
            "https://169.254.169.254/",
            "https://10.0.0.1/",
        ] {
            assert!(wrong(bad, false).is_some(), "{bad}");
        }
        assert!(wrong("http://10.0.0.1/", true).is_some());
        assert!(wrong(&format!("https://example.org/{}", "a".repeat(3_000)), false).is_some());
    }

    #[tokio::test]
    async fn a_name_of_this_machine_is_refused_where_it_is_called() {
        let found = |loopback| GuardedResolver { loopback }.resolve("localhost".parse().unwrap());
        assert!(found(false).await.is_err());
        assert!(found(true).await.is_ok());
    }
}
