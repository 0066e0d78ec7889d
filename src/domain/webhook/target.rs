//! Where a webhook may go: to public addresses, or to hosts that the operator allows by name.
//!
//! Ranges are those of the IANA registries of special-purpose addresses (RFC 6890 and what came after it).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hyper::Uri;

/// The hosts that may be reached wherever they are, also without TLS.
#[derive(Debug, Clone, Default)]
pub struct AllowedHosts(Vec<String>);

impl AllowedHosts {
    /// From names that commas separate.
    pub fn parse(list: &str) -> Self {
        Self(list.split(',').map(|name| normal(name.trim())).filter(|name| !name.is_empty()).collect())
    }

    fn has(&self, host: &str) -> bool {
        self.0.contains(&normal(host))
    }
}

/// Names are compared without case, and without the dot at the end.
fn normal(host: &str) -> String {
    host.trim_end_matches('.').trim_matches(['[', ']']).to_ascii_lowercase()
}

/// A URL taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub tls: bool,
    /// A name or an address, without brackets.
    pub host: String,
    pub port: u16,
    /// For the header `host`.
    pub authority: String,
    /// With the query.
    pub path: String,
    /// The operator allows the host by name: its addresses are not looked at.
    pub allowed: bool,
}

/// Why a URL is no target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("must be a URL such as https://crm.example.com/hook, without user information and fragment")]
    NoUrl,
    #[error("must begin with https://, unless the operator allows the host in webhooks.allowed_hosts")]
    Unencrypted,
    #[error(
        "must not be a private, local or reserved address, unless the operator allows it in webhooks.allowed_hosts"
    )]
    NotPublic,
}

impl Target {
    /// Checks a URL as far as that is possible without asking for the addresses of a name.
    pub fn parse(url: &str, allowed: &AllowedHosts) -> Result<Self, Refused> {
        if url.contains('#') || !url.is_ascii() {
            return Err(Refused::NoUrl);
        }
        let uri: Uri = url.parse().map_err(|_| Refused::NoUrl)?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(Refused::NoUrl);
        };
        let tls = match scheme {
            "https" => true,
            "http" => false,
            _ => return Err(Refused::NoUrl),
        };
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        if host.is_empty() || authority.as_str().contains('@') {
            return Err(Refused::NoUrl);
        }
        let is_allowed = allowed.has(&host);
        if !is_allowed {
            if host.parse().is_ok_and(|address| !is_public(address)) {
                return Err(Refused::NotPublic);
            }
            if !tls {
                return Err(Refused::Unencrypted);
            }
        }
        Ok(Self {
            tls,
            port: authority.port_u16().unwrap_or(if tls { 443 } else { 80 }),
            authority: authority.as_str().to_owned(),
            path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
            host,
            allowed: is_allowed,
        })
    }
}

/// Whether an address is one of the public internet.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => address.to_ipv4_mapped().map_or_else(|| is_public_v6(address), is_public_v4),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    const SPECIAL: [([u8; 4], u32); 15] = [
        ([0, 0, 0, 0], 8),       // this network
        ([10, 0, 0, 0], 8),      // private
        ([100, 64, 0, 0], 10),   // behind a carrier's translation
        ([127, 0, 0, 0], 8),     // loopback
        ([169, 254, 0, 0], 16),  // link-local, with the metadata of clouds
        ([172, 16, 0, 0], 12),   // private
        ([192, 0, 0, 0], 24),    // protocol assignments
        ([192, 0, 2, 0], 24),    // documentation
        ([192, 88, 99, 0], 24),  // relays of 6to4
        ([192, 168, 0, 0], 16),  // private
        ([198, 18, 0, 0], 15),   // benchmarks
        ([198, 51, 100, 0], 24), // documentation
        ([203, 0, 113, 0], 24),  // documentation
        ([224, 0, 0, 0], 4),     // multicast
        ([240, 0, 0, 0], 4),     // reserved, broadcast
    ];
    let bits = u32::from(address);
    !SPECIAL
        .iter()
        .any(|(network, length)| (bits ^ u32::from(Ipv4Addr::from(*network))) >> (32 - length) == 0)
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let [first, second, ..] = address.segments();
    let global = first & 0xe000 == 0x2000;
    let special = match first {
        0x2001 => second < 0x0200 || second == 0x0db8, // protocol assignments, Teredo, documentation
        0x2002 => true,                                // 6to4: an IPv4 address in disguise
        0x3fff => second < 0x1000,                     // documentation
        _ => false,
    };
    global && !special
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_internet_are_public() {
        for private in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::1",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!is_public(private.parse().expect(private)), "{private}");
        }
        for public in [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.17.0.1",
            "198.20.0.1",
            "223.255.255.255",
            "::ffff:8.8.8.8",
            "2001:4860:4860::8888",
            "2606:4700::1111",
            "2a00:1450::1",
        ] {
            assert!(is_public(public.parse().expect(public)), "{public}");
        }
    }

    #[test]
    fn a_url_is_taken_apart_or_refused_by_name() {
        let allowed = AllowedHosts::parse(" crm.internal , 127.0.0.1,[::1]");
        let target = Target::parse("https://CRM.example.com/hook?x=1", &allowed).expect("taken");
        assert_eq!(
            (target.tls, target.host.as_str(), target.port, target.path.as_str(), target.allowed),
            (true, "CRM.example.com", 443, "/hook?x=1", false)
        );
        assert_eq!(target.authority, "CRM.example.com");
        for (url, port) in [
            ("http://crm.internal", 80),
            ("http://CRM.Internal.:8080/x", 8080),
            ("http://127.0.0.1:9/", 9),
            ("http://[::1]:7", 7),
            ("https://[2606:4700::1111]/", 443),
        ] {
            assert_eq!(Target::parse(url, &allowed).map(|target| target.port), Ok(port), "{url}");
        }
        for (url, refused) in [
            ("", Refused::NoUrl),
            ("/hook", Refused::NoUrl),
            ("crm.example.com/hook", Refused::NoUrl),
            ("ftp://crm.example.com", Refused::NoUrl),
            ("https://user:password@crm.example.com", Refused::NoUrl),
            ("https://crm.example.com@127.0.0.1/", Refused::NoUrl),
            ("https://crm.example.com/#x", Refused::NoUrl),
            ("https://crm.exämple.com/", Refused::NoUrl),
            ("https://", Refused::NoUrl),
            ("http://crm.example.com", Refused::Unencrypted),
            ("http://crm.internal.example.com", Refused::Unencrypted),
            ("https://10.0.0.1/", Refused::NotPublic),
            ("https://169.254.169.254/latest/meta-data", Refused::NotPublic),
            ("https://[::ffff:127.0.0.1]/", Refused::NotPublic),
            ("https://127.0.0.2/", Refused::NotPublic),
        ] {
            assert_eq!(Target::parse(url, &allowed), Err(refused), "{url}");
        }
        assert!(!AllowedHosts::parse("").has(""));
    }
}
