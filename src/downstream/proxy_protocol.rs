//! Reads the PROXY header with which a load balancer begins a connection: version 1 (text) and version 2 (binary).
//!
//! The header is never guessed: a peer in `proxyProtocol.from` must send one, and no other peer may. The parser is a
//! pure function that refuses at the first wrong byte. It reads at most [`MAX_BYTES`], and what follows the header
//! stays unread.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use crate::{hosts::PeerAddr, transport::ReadAhead};

/// A complete header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProxyHeader {
    /// Its bytes.
    length: usize,
    /// The client. `None` if the balancer speaks for itself (`LOCAL`), or does not know (`UNKNOWN`).
    client: Option<PeerAddr>,
}

/// Why a connection has no valid PROXY header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum ProxyHeaderError {
    #[error(
        "the connection begins without a PROXY header; turn it on in the load balancer, or take this address out of proxyProtocol.from"
    )]
    Missing,
    #[error(
        "an unexpected PROXY header; add the address of the load balancer to proxyProtocol.from, or turn the header off there"
    )]
    Unexpected,
    #[error("no complete PROXY header within {0:?}")]
    Timeout(Duration),
    #[error("no PROXY header yet, and newer connections of load balancers need the room")]
    Displaced,
    #[error("the connection ended within the PROXY header")]
    Cut,
    #[error("malformed PROXY header: {0}")]
    Malformed(&'static str),
}

/// Reads the header at the start of `stream`. Returns the client, or `peer` if the header names none. `None` if the
/// connection ended before its first byte, as the health checks of load balancers do.
pub(super) async fn read(
    stream: &mut ReadAhead,
    peer: PeerAddr,
) -> Result<Option<PeerAddr>, ProxyHeaderError> {
    let mut had = 0;
    loop {
        let bytes = stream.read_more().await.map_or(&[][..], |bytes| bytes);
        if bytes.len() <= had {
            return if had == 0 {
                Ok(None)
            } else {
                Err(ProxyHeaderError::Cut)
            };
        }
        if let Some(header) = parse(bytes)? {
            stream.consume(header.length);
            return Ok(Some(header.client.unwrap_or(peer)));
        }
        had = bytes.len();
    }
}

/// Whether a connection begins with a PROXY header.
pub(super) fn is_header(first: &[u8]) -> bool {
    first.starts_with(V1_PREFIX) || first.starts_with(V2_SIGNATURE)
}

/// The header at the start of `bytes`; `None` if more bytes are needed.
fn parse(bytes: &[u8]) -> Result<Option<ProxyHeader>, ProxyHeaderError> {
    let begins_with = |start: &[u8]| bytes.iter().zip(start).all(|(byte, wanted)| byte == wanted);
    if begins_with(V1_PREFIX) {
        parse_v1(bytes)
    } else if begins_with(V2_SIGNATURE) {
        parse_v2(bytes)
    } else {
        Err(ProxyHeaderError::Missing)
    }
}

/// A line such as `PROXY TCP4 192.0.2.7 198.51.100.1 56324 443`, with CRLF.
fn parse_v1(bytes: &[u8]) -> Result<Option<ProxyHeader>, ProxyHeaderError> {
    let is_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
    let Some(end) = bytes.iter().take(MAX_V1_BYTES - 1).position(is_end) else {
        return match bytes.len() < MAX_V1_BYTES {
            true => Ok(None),
            false => Err(ProxyHeaderError::Malformed("a line of more than 107 bytes")),
        };
    };
    match bytes.get(end..end + 2) {
        Some(b"\r\n") => {}
        None if bytes.get(end) == Some(&b'\r') => return Ok(None),
        Some(_) | None => return Err(ProxyHeaderError::Malformed("the line does not end in CRLF")),
    }
    let line = bytes.get(V1_PREFIX.len()..end).unwrap_or_default();
    let line = std::str::from_utf8(line)
        .ok()
        .filter(|line| line.is_ascii());
    let line = line.ok_or(ProxyHeaderError::Malformed("a line that is not ASCII"))?;
    let mut words = line.split(' ');
    let client = match words.next() {
        // "The receiver must ignore anything presented before the CRLF."
        Some("UNKNOWN") => None,
        Some("TCP4") => Some(v1_client::<Ipv4Addr>(words)?),
        Some("TCP6") => Some(v1_client::<Ipv6Addr>(words)?),
        Some(_) | None => return Err(ProxyHeaderError::Malformed("an unknown protocol")),
    };
    let length = end + 2;
    Ok(Some(ProxyHeader { length, client }))
}

/// The source of two addresses and two ports, which all have to be valid.
fn v1_client<'a, A: FromStr + Into<IpAddr>>(
    mut words: impl Iterator<Item = &'a str>,
) -> Result<PeerAddr, ProxyHeaderError> {
    let mut next = || words.next().unwrap_or_default();
    let (source, destination) = (next().parse::<A>(), next().parse::<A>());
    let (Ok(source), Ok(_)) = (source, destination) else {
        return Err(ProxyHeaderError::Malformed("an invalid address"));
    };
    let (Some(port), Some(_), None) = (v1_port(next()), v1_port(next()), words.next()) else {
        return Err(ProxyHeaderError::Malformed("an invalid port"));
    };
    Ok(PeerAddr::new((source.into(), port).into()))
}

/// Digits without a sign and without leading zeros.
fn v1_port(text: &str) -> Option<u16> {
    let port = text.parse::<u16>().ok();
    port.filter(|port| port.to_string() == text)
}

/// Signature, version and command, family, length, addresses, and then fields that are skipped (TLVs).
fn parse_v2(bytes: &[u8]) -> Result<Option<ProxyHeader>, ProxyHeaderError> {
    let byte = |at: usize| bytes.get(at).copied();
    let is_local = match byte(12) {
        None => return Ok(None),
        Some(0x20) => true,
        Some(0x21) => false,
        Some(_) => return Err(ProxyHeaderError::Malformed("an unknown version or command")),
    };
    let address_bytes = match byte(13) {
        None => return Ok(None),
        // "The receiver must … discard the protocol block including the family."
        Some(_) if is_local => 0,
        Some(UNSPECIFIED) => 0,
        Some(TCP_OVER_IPV4) => 12,
        Some(TCP_OVER_IPV6) => 36,
        Some(_) => {
            return Err(ProxyHeaderError::Malformed(
                "a family other than TCP over IP",
            ));
        }
    };
    let (Some(high), Some(low)) = (byte(14), byte(15)) else {
        return Ok(None);
    };
    let block_bytes = usize::from(u16::from_be_bytes([high, low]));
    if block_bytes > MAX_V2_BLOCK {
        return Err(ProxyHeaderError::Malformed("more than 4 KiB"));
    }
    if block_bytes < address_bytes {
        return Err(ProxyHeaderError::Malformed("its addresses are cut short"));
    }
    let length = V2_FIXED + block_bytes;
    let Some(header) = bytes.get(..length) else {
        return Ok(None);
    };
    if is_local {
        return Ok(Some(ProxyHeader {
            length,
            client: None,
        }));
    }
    check_fields(header, V2_FIXED + address_bytes)?;
    let (block, _) = header.split_at(V2_FIXED + address_bytes);
    let block = block.get(V2_FIXED..).unwrap_or_default();
    let client = match (block.first_chunk::<12>(), block.first_chunk::<36>()) {
        (_, Some([source @ .., p, q, _, _])) => {
            let source: Option<&[u8; 16]> = source.first_chunk();
            source.map(|source| (IpAddr::from(*source), u16::from_be_bytes([*p, *q])))
        }
        (Some([a, b, c, d, _, _, _, _, p, q, _, _]), None) => {
            Some(([*a, *b, *c, *d].into(), u16::from_be_bytes([*p, *q])))
        }
        (None, None) => None,
    };
    let client = client.map(|client| PeerAddr::new(SocketAddr::from(client)));
    Ok(Some(ProxyHeader { length, client }))
}

/// Checks that the fields after the addresses fill the header, and that the checksum is right if there is one.
fn check_fields(header: &[u8], mut at: usize) -> Result<(), ProxyHeaderError> {
    let mut has_checksum = false;
    while at < header.len() {
        let fields = header.get(at..).unwrap_or_default();
        let Some([kind, high, low]) = fields.first_chunk() else {
            return Err(ProxyHeaderError::Malformed("a field is cut short"));
        };
        let value_at = at + 3;
        at = value_at + usize::from(u16::from_be_bytes([*high, *low]));
        let Some(value) = header.get(value_at..at) else {
            return Err(ProxyHeaderError::Malformed("a field is cut short"));
        };
        if *kind == CHECKSUM {
            let without = header.iter().enumerate();
            let without = without.map(|(place, byte)| match value_at <= place && place < at {
                true => 0,
                false => *byte,
            });
            if has_checksum || value != crc32c(without).to_be_bytes() {
                return Err(ProxyHeaderError::Malformed("a wrong checksum"));
            }
            has_checksum = true;
        }
    }
    Ok(())
}

/// CRC-32C (RFC 9260, appendix A).
fn crc32c(bytes: impl Iterator<Item = u8>) -> u32 {
    !bytes.fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 }
        })
    })
}

/// Fuzz target: whatever the bytes are, the result does not depend on how they arrive.
pub(super) fn fuzz(bytes: &[u8]) {
    let parsed = parse(bytes);
    let Ok(Some(header)) = parsed else {
        for end in 0..bytes.len() {
            let begun = parse(bytes.get(..end).unwrap_or_default());
            assert!(
                begun == Ok(None) || begun == parsed,
                "no part of an invalid header is valid"
            );
        }
        return;
    };
    assert!(header.length <= bytes.len().min(MAX_BYTES));
    let complete = bytes.get(..header.length).unwrap_or_default();
    assert_eq!(parse(complete), parsed, "what follows does not matter");
    for end in 0..header.length {
        let begun = parse(bytes.get(..end).unwrap_or_default());
        assert_eq!(begun, Ok(None), "a part of a valid header is no error");
    }
    assert!(is_header(bytes));
}

const V1_PREFIX: &[u8] = b"PROXY ";
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The longest line, with CRLF.
const MAX_V1_BYTES: usize = 107;
/// Signature, version and command, family and length.
const V2_FIXED: usize = 16;
/// Addresses and fields.
const MAX_V2_BLOCK: usize = 4096;
/// The longest header.
const MAX_BYTES: usize = V2_FIXED + MAX_V2_BLOCK;
const UNSPECIFIED: u8 = 0x00;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
/// The type of the field with a checksum.
const CHECKSUM: u8 = 0x03;

#[cfg(test)]
mod tests {
    use super::*;

    const TLS: &[u8] = &[22, 3, 1, 2, 0, 1];

    fn v2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).unwrap().to_be_bytes();
        [V2_SIGNATURE, &[command, family], &length, block].concat()
    }

    fn ipv4() -> Vec<u8> {
        vec![192, 0, 2, 7, 198, 51, 100, 1, 0xdc, 4, 1, 0xbb]
    }

    fn ipv6(source: &str) -> Vec<u8> {
        let address = |text: &str| text.parse::<Ipv6Addr>().unwrap().octets();
        let addresses = [address(source), address("2001:db8::1")].concat();
        [addresses, vec![0xdc, 4, 1, 0xbb]].concat()
    }

    fn field(kind: u8, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len()).unwrap().to_be_bytes();
        [&[kind], &length[..], value].concat()
    }

    /// A header with a checksum after other fields, and before others.
    fn with_checksum() -> Vec<u8> {
        let fields = [
            field(4, b"pad"),
            field(3, &[0; 4]),
            field(0xea, b"\x01vpce"),
        ];
        let mut header = v2(0x21, 0x11, &[ipv4(), fields.concat()].concat());
        let sum = crc32c(header.iter().copied()).to_be_bytes();
        let at = V2_FIXED + 12 + 6 + 3;
        header[at..at + 4].copy_from_slice(&sum);
        header
    }

    /// Each valid header, and the client that it names.
    fn valid() -> Vec<(Vec<u8>, Option<&'static str>)> {
        let longest = format!("PROXY UNKNOWN {}\r\n", "x".repeat(107 - 16));
        vec![
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n".into(), Some("192.0.2.7:56324")),
            (b"PROXY TCP4 255.255.255.255 0.0.0.0 65535 0\r\n".into(), Some("255.255.255.255:65535")),
            (b"PROXY TCP6 2001:db8::7 2001:db8::1 1 2\r\n".into(), Some("[2001:db8::7]:1")),
            (b"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:1.2.3.4 1 2\r\n".into(), Some("192.0.2.7:1")),
            (
                b"PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n".into(),
                Some("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"),
            ),
            (b"PROXY UNKNOWN\r\n".into(), None),
            (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n".into(), None),
            (longest.into_bytes(), None),
            (v2(0x21, 0x11, &ipv4()), Some("192.0.2.7:56324")),
            (v2(0x21, 0x21, &ipv6("2001:db8::7")), Some("[2001:db8::7]:56324")),
            (v2(0x21, 0x21, &ipv6("::ffff:192.0.2.7")), Some("192.0.2.7:56324")),
            (v2(0x21, 0x11, &[ipv4(), field(1, b"h2"), field(4, &[0; 500])].concat()), Some("192.0.2.7:56324")),
            (with_checksum(), Some("192.0.2.7:56324")),
            (v2(0x21, 0x00, &[]), None),
            (v2(0x21, 0x00, &field(2, b"kube.test")), None),
            (v2(0x20, 0x00, &[]), None),
            (v2(0x20, 0x11, &ipv4()), None),
            (v2(0x20, 0x31, &[0; 216]), None),
            (v2(0x21, 0x11, &[ipv4(), field(4, &[0; 4096 - 15])].concat()), Some("192.0.2.7:56324")),
        ]
    }

    #[test]
    fn valid_header_names_the_client_and_leaves_the_rest() {
        for (header, client) in valid() {
            let client = client.map(|client| PeerAddr(client.parse().unwrap()));
            let length = header.len();
            let expected = Ok(Some(ProxyHeader { length, client }));
            assert_eq!(parse(&header), expected, "{}", header.escape_ascii());
            assert_eq!(parse(&[&header, TLS].concat()), expected);
            fuzz(&[&header, TLS].concat());
            assert!(is_header(&header));
        }
        assert!(!is_header(TLS));
    }

    /// Headers that some parser might accept.
    fn hostile() -> Vec<Vec<u8>> {
        let lines = [
            "proxy TCP4 192.0.2.7 198.51.100.1 1 2",
            "PROXY\tTCP4 192.0.2.7 198.51.100.1 1 2",
            "PROXYTCP4 192.0.2.7 198.51.100.1 1 2",
            " PROXY TCP4 192.0.2.7 198.51.100.1 1 2",
            "PROXY  TCP4 192.0.2.7 198.51.100.1 1 2",
            "PROXY tcp4 192.0.2.7 198.51.100.1 1 2",
            "PROXY TCP 192.0.2.7 198.51.100.1 1 2",
            "PROXY TCP5 192.0.2.7 198.51.100.1 1 2",
            "PROXY UDP4 192.0.2.7 198.51.100.1 1 2",
            "PROXY TCP4  192.0.2.7 198.51.100.1 1 2",
            "PROXY TCP4 192.0.2.7  198.51.100.1 1 2",
            "PROXY TCP4 192.0.2.7 198.51.100.1  1 2",
            "PROXY TCP4 192.0.2.7 198.51.100.1 1  2",
            "PROXY TCP4 192.0.2.7 198.51.100.1 1 2 ",
            "PROXY TCP4 192.0.2.7 198.51.100.1 1 2 3",
            "PROXY TCP4 192.0.2.7 198.51.100.1 1",
            "PROXY TCP4 192.0.2.7 198.51.100.1",
            "PROXY TCP4 192.0.2.7",
            "PROXY TCP4 ",
            "PROXY TCP4",
            "PROXY ",
            "PROXY TCP4 192.0.2.256 198.51.100.1 1 2",
            "PROXY TCP4 192.0.2 198.51.100.1 1 2",
            "PROXY TCP4 192.0.2.7.8 198.51.100.1 1 2",
            "PROXY TCP4 192.0.02.7 198.51.100.1 1 2",
            "PROXY TCP4 0300.0.2.7 198.51.100.1 1 2",
            "PROXY TCP4 0xc0.0.2.7 198.51.100.1 1 2",
            "PROXY TCP4 3221225991 198.51.100.1 1 2",
            "PROXY TCP4 192.0.2.7 198.51.100.999 1 2",
            "PROXY TCP4 192.0.2.7 x 1 2",
            "PROXY TCP4 192.0.2.7 198.51.100.1/32 1 2",
            "PROXY TCP4 192.0.2.7:1 198.51.100.1:2 1 2",
            "PROXY TCP4 192.0.2.7, 198.51.100.1 1 2",
            "PROXY TCP4 2001:db8::7 2001:db8::1 1 2",
            "PROXY TCP4 ::ffff:192.0.2.7 ::ffff:198.51.100.1 1 2",
            "PROXY TCP4 192.0.2.7 2001:db8::1 1 2",
            "PROXY TCP4 localhost 198.51.100.1 1 2",
            "PROXY TCP6 192.0.2.7 198.51.100.1 1 2",
            "PROXY TCP6 2001:db8::7 198.51.100.1 1 2",
            "PROXY TCP6 [2001:db8::7] [2001:db8::1] 1 2",
            "PROXY TCP6 2001:db8::7%eth0 2001:db8::1 1 2",
            "PROXY TCP6 2001:db8:::7 2001:db8::1 1 2",
            "PROXY TCP6 2001:db8::7::1 2001:db8::1 1 2",
            "PROXY TCP6 2001:db8::12345 2001:db8::1 1 2",
            "PROXY TCP6 1:2:3:4:5:6:7:8:9 2001:db8::1 1 2",
            "PROXY TCP6 ::ffff:192.0.2.256 ::1 1 2",
            "PROXY TCP4 192.0.2.7 198.51.100.1 65536 2",
            "PROXY TCP4 192.0.2.7 198.51.100.1 1 65536",
            "PROXY TCP4 192.0.2.7 198.51.100.1 -1 2",
            "PROXY TCP4 192.0.2.7 198.51.100.1 +1 2",
            "PROXY TCP4 192.0.2.7 198.51.100.1 1 +2",
            "PROXY TCP4 192.0.2.7 198.51.100.1 01 2",
            "PROXY TCP4 192.0.2.7 198.51.100.1 1 02",
            "PROXY TCP4 192.0.2.7 198.51.100.1 0x1 2",
            "PROXY TCP4 192.0.2.7 198.51.100.1 1.0 2",
            "PROXY TCP4 192.0.2.7 198.51.100.1 99999999999999999999 2",
            "PROXY TCP4 192.0.2.7 198.51.100.1 x 2",
            "PROXY TCP4 192.0.2.7\t198.51.100.1 1 2",
            "PROXY TCP4 192.0.2.7\0 198.51.100.1 1 2",
            "PROXY TCP4 192.0.2.7\u{a0}198.51.100.1 1 2",
            "PROXY TCP4 192.0.2.\u{ff17} 198.51.100.1 1 2",
            "PROXY UNKNOWNX",
            "PROXY UNKNOWN\t",
            "PROXY unknown",
            "PROXY LOCAL",
            "PROXY UNKNOWN \u{e4}",
            "GET / HTTP/1.1",
            "PRI * HTTP/2.0",
        ];
        let mut all: Vec<_> = lines.map(|line| format!("{line}\r\n").into_bytes()).into();
        let good = "PROXY TCP4 192.0.2.7 198.51.100.1 1 2";
        for end in ["\n", "\n\n", "\r\r\n", "\r", "\rX", "\0\r\n\n", "\n\r"] {
            // The bytes that follow would complete a header that waits for more.
            all.push(format!("{good}{end}{}", "x".repeat(120)).into_bytes());
            all.push(format!("PROXY UNKNOWN{end}{}", "x".repeat(120)).into_bytes());
        }
        all.push(format!("PROXY UNKNOWN {}\r\n", "x".repeat(107 - 15)).into_bytes());
        all.push(format!("{good}{}\r\n", " ".repeat(100)).into_bytes());
        all.push(vec![b'x'; 5000]);
        all.push([b"PROXY UNKNOWN ".as_slice(), &[b'x'; 70_000]].concat());
        all.push([b"PROXY UNKNOWN \xff\xfe\r\n".as_slice()].concat());
        // Each wrong version and command, each wrong family, and each wrong byte of the signature.
        let commands = [
            0x00, 0x01, 0x10, 0x11, 0x1f, 0x22, 0x23, 0x2f, 0x30, 0x31, 0xa1, 0xff,
        ];
        all.extend(commands.map(|command| v2(command, 0x11, &ipv4())));
        let families = [
            0x01, 0x02, 0x10, 0x12, 0x13, 0x1f, 0x20, 0x22, 0x23, 0x30, 0x31, 0x32, 0x41, 0xff,
        ];
        all.extend(families.map(|family| v2(0x21, family, &[0; 216])));
        for at in 0..V2_SIGNATURE.len() {
            for change in [0x01, 0x20, 0x80] {
                let mut header = v2(0x21, 0x11, &ipv4());
                header[at] ^= change;
                all.push(header);
            }
        }
        // Lengths that do not fit.
        for bytes in 0..12 {
            all.push(v2(0x21, 0x11, &ipv4()[..bytes]));
        }
        for bytes in [0, 11, 12, 16, 32, 35] {
            all.push(v2(0x21, 0x21, &ipv6("::1")[..bytes]));
        }
        for length in [4097_u16, 5000, 0x7fff, 0x8000, 0xffff] {
            for command in [0x20, 0x21] {
                let mut header = v2(command, 0x11, &vec![0; usize::from(length)]);
                header[14..16].copy_from_slice(&length.to_be_bytes());
                all.push(header);
            }
        }
        // Fields that do not fit.
        for fields in [
            vec![4],
            vec![4, 0],
            vec![4, 0, 1],
            vec![4, 0xff, 0xff],
            vec![4, 0, 2, 1],
            [field(4, b"x"), vec![1]].concat(),
            [field(4, b"x"), vec![1, 0, 9, 1]].concat(),
            field(3, &[]),
            field(3, &[0; 3]),
            field(3, &[0; 4]),
            field(3, &[0; 5]),
            field(3, &[0xff; 4]),
        ] {
            all.push(v2(0x21, 0x11, &[ipv4(), fields.clone()].concat()));
            all.push(v2(0x21, 0x21, &[ipv6("::1"), fields].concat()));
        }
        // A changed byte that only the checksum finds, and a second checksum.
        for at in [16, 19, 24, 25, 31, 32, 40] {
            let mut header = with_checksum();
            header[at] ^= 1;
            all.push(header);
        }
        let sum = &with_checksum()[V2_FIXED + 12 + 6..][..7];
        let twice = [&ipv4(), sum, sum].concat();
        all.push(v2(0x21, 0x11, &twice));
        all.push([TLS, &v2(0x21, 0x11, &ipv4())].concat());
        all.push(TLS.to_vec());
        all.push(b"SSH-2.0-x\r\n".to_vec());
        all
    }

    #[test]
    fn hostile_header_is_refused() {
        let hostile = hostile();
        assert!(hostile.len() >= 200, "{}", hostile.len());
        for header in hostile {
            let parsed = parse(&header);
            assert!(parsed.is_err(), "{parsed:?}: {}", header.escape_ascii());
            fuzz(&header);
        }
    }

    /// The check value of the algorithm.
    #[test]
    fn checksum_is_crc32c() {
        assert_eq!(crc32c(b"123456789".iter().copied()), 0xe306_9283);
    }
}
