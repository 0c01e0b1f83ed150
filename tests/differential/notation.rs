//! Reads `requests.txt`: requests as bytes in a readable notation, and what the proxy makes of them.

/// One line of `requests.txt`.
#[derive(Debug)]
pub(crate) struct Case {
    /// The line itself; it names the case in messages.
    pub(crate) line: &'static str,
    /// What the client sends.
    pub(crate) bytes: Vec<u8>,
}

/// All cases.
pub(crate) fn cases() -> Vec<Case> {
    let lines = include_str!("requests.txt").lines();
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let (_, bytes) = line
                .split_once(" | ")
                .unwrap_or_else(|| panic!("{line}: write `outcome | bytes`"));
            Case {
                line,
                bytes: decode(bytes),
            }
        })
        .collect()
}

/// The bytes that this text means.
pub(crate) fn decode(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if let Some((expansion, after)) = braces(rest) {
            bytes.extend(expansion);
            rest = after;
            continue;
        }
        if let Some(hex) = rest.strip_prefix("\\x") {
            let (digits, after) = hex.split_at(2);
            bytes.push(u8::from_str_radix(digits, 16).expect("two digits after \\x"));
            rest = after;
            continue;
        }
        match first {
            '¶' => bytes.extend(b"\r\n"),
            '␍' => bytes.push(b'\r'),
            '␊' => bytes.push(b'\n'),
            '␀' => bytes.push(0),
            '␉' => bytes.push(b'\t'),
            '␠' => bytes.push(b' '),
            other => bytes.extend(other.to_string().as_bytes()),
        }
        rest = &rest[first.len_utf8()..];
    }
    bytes
}

/// What `{H}`, `{S}` or `{70*x}` at the start of the text means, and the text after it. Other braces mean themselves.
fn braces(text: &str) -> Option<(Vec<u8>, &str)> {
    let (inside, after) = text.strip_prefix('{')?.split_once('}')?;
    let bytes = match inside {
        "H" => decode("Host: kube.test¶"),
        "S" => decode("GET /s HTTP/1.1¶{H}¶"),
        _ => {
            let (count, repeated) = inside.split_once('*')?;
            decode(repeated).repeat(count.parse().ok()?)
        }
    };
    Some((bytes, after))
}
