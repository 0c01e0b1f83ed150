//! A `ClientHello` that two readers could read differently: none reaches an apiserver.

use standin::within;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{PASSED, RawApiserver, connect, hello, setup};
use crate::proxy::{HOST, World};

/// The `ClientHello` with these bodies of `server_name` extensions in place of its own.
fn with_names(bodies: &[Vec<u8>]) -> Vec<u8> {
    let original = hello(PASSED);
    // Record and message header, version and random.
    let mut at = 5 + 4 + 2 + 32;
    at += 1 + usize::from(original[at]);
    at += 2 + usize::from(u16::from_be_bytes([original[at], original[at + 1]]));
    at += 1 + usize::from(original[at]);
    let (start, mut rest) = (&original[9..at], &original[at + 2..]);
    let mut extensions = Vec::new();
    for body in bodies {
        extensions.extend([0, 0]);
        extensions.extend(length(body));
        extensions.extend(body);
    }
    while let [high, low, more @ ..] = rest {
        let size = usize::from(u16::from_be_bytes([more[0], more[1]]));
        if (*high, *low) != (0, 0) {
            extensions.extend(&rest[..4 + size]);
        }
        rest = &more[2 + size..];
    }
    let message = [start, &length(&extensions), &extensions].concat();
    let [high, low] = length(&message);
    let message = [&[1, 0, high, low], message.as_slice()].concat();
    [&[22, 3, 1], length(&message).as_slice(), &message].concat()
}

fn length(bytes: &[u8]) -> [u8; 2] {
    u16::try_from(bytes.len()).unwrap().to_be_bytes()
}

/// The body of the extension, with these kinds of names and names.
fn names(entries: &[(u8, &[u8])]) -> Vec<u8> {
    let mut list = Vec::new();
    for (kind, name) in entries {
        list.push(*kind);
        list.extend(length(name));
        list.extend(*name);
    }
    [&length(&list), list.as_slice()].concat()
}

fn name(name: &[u8]) -> Vec<Vec<u8>> {
    vec![names(&[(0, name)])]
}

#[tokio::test]
async fn ambiguous_hello_reaches_no_apiserver() {
    let world = World::new();
    let terminated = world.apiserver().start().await;
    let direct = RawApiserver::start().await;
    let proxy = setup(&world, terminated.address(), direct.address()).start();
    let (ours, passed) = (HOST.as_bytes(), PASSED.as_bytes());
    let whole = hello(PASSED);
    let in_two = |between: &[u8]| {
        let (first, second) = whole[5..].split_at(50);
        let record = |part: &[u8]| [&[22, 3, 1], length(part).as_slice(), part].concat();
        [record(first), between.to_vec(), record(second)].concat()
    };
    let changed = |at: usize, value: u8| {
        let mut bytes = whole.clone();
        bytes[at] = value;
        bytes
    };
    let mut cut_list = names(&[(0, passed)]);
    cut_list[1] -= 1;
    let mut long_list = names(&[(0, passed)]);
    long_list[1] += 1;
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("two names", with_names(&[names(&[(0, passed), (0, ours)])])),
        (
            "two names, ours first",
            with_names(&[names(&[(0, ours), (0, passed)])]),
        ),
        (
            "the same name twice",
            with_names(&[names(&[(0, passed), (0, passed)])]),
        ),
        (
            "two extensions",
            with_names(&[names(&[(0, passed)]), names(&[(0, ours)])]),
        ),
        (
            "two extensions, ours first",
            with_names(&[names(&[(0, ours)]), names(&[(0, passed)])]),
        ),
        ("no name", with_names(&[])),
        ("empty list", with_names(&[names(&[])])),
        ("empty extension", with_names(&[Vec::new()])),
        ("empty name", with_names(&name(b""))),
        ("name of another kind", with_names(&[names(&[(1, passed)])])),
        ("list that ends in the name", with_names(&[cut_list])),
        (
            "list that is longer than the extension",
            with_names(&[long_list]),
        ),
        ("NUL in the name", with_names(&name(b"kubernetes\0"))),
        (
            "NUL before another name",
            with_names(&name(b"kubernetes\0.kube.test")),
        ),
        ("blank before the name", with_names(&name(b" kubernetes"))),
        ("blank after the name", with_names(&name(b"kubernetes "))),
        ("line break", with_names(&name(b"kubernetes\r\n"))),
        ("port", with_names(&name(b"kubernetes:6443"))),
        ("path", with_names(&name(b"kubernetes/"))),
        ("user", with_names(&name(b"a@kubernetes"))),
        ("escape", with_names(&name(b"%6bubernetes"))),
        ("two dots at the end", with_names(&name(b"kubernetes.."))),
        ("dot at the beginning", with_names(&name(b".kubernetes"))),
        ("wildcard", with_names(&name(b"*"))),
        (
            "not ASCII",
            with_names(&name("\u{212a}ubernetes".as_bytes())),
        ),
        ("not UTF-8", with_names(&name(b"kubernetes\xff"))),
        ("address", with_names(&name(b"127.0.0.1"))),
        ("300 bytes", with_names(&name(&[b'k'; 300]))),
        (
            "alert between the fragments",
            in_two(&[21, 3, 3, 0, 2, 1, 0]),
        ),
        ("data between the fragments", in_two(&[23, 3, 3, 0, 1, 0])),
        (
            "change of ciphers between the fragments",
            in_two(&[20, 3, 3, 0, 1, 1]),
        ),
        (
            "heartbeat between the fragments",
            in_two(&[24, 3, 3, 0, 3, 1, 0, 0]),
        ),
        ("message of another type", changed(5, 2)),
        ("message of 16 MiB", changed(6, 0xff)),
        ("record of 64 KiB", changed(3, 0xff)),
        ("record of another type", changed(0, 23)),
        ("record of another protocol", changed(1, 9)),
        (
            "hello of SSL 2",
            [
                &[0x80, 0x2e, 1, 0, 2, 0, 3, 0, 0, 0, 0x10],
                [0; 35].as_slice(),
            ]
            .concat(),
        ),
        ("half of it", whole[..whole.len() / 2].to_vec()),
        ("its name without TLS", passed.to_vec()),
    ];
    assert!(rows.len() >= 40, "{}", rows.len());
    for (row, bytes) in rows {
        let mut client = connect(&proxy).await;
        client.write_all(&bytes).await.unwrap();
        client.shutdown().await.ok();
        let mut received = Vec::new();
        let end = within(row, client.read_to_end(&mut received)).await;
        // Nothing, an alert, or a handshake with the proxy, which presents its own certificate.
        let first = received.first().copied();
        assert!(
            matches!(first, None | Some(21 | 22)),
            "{row}: {end:?} {received:?}"
        );
    }
    // None of them has opened a connection before this one.
    let mut client = connect(&proxy).await;
    client.write_all(&whole).await.unwrap();
    direct.greet(&whole).await;
    let accepted = terminated.accepted();
    assert_eq!((accepted, terminated.requests().len()), (0, 0));
}
