//! Parses query strings.

/// The decoded pairs of a query, in order, with repeated keys.
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn from_uri(uri: &http::Uri) -> Self {
        let pairs = uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(key), decode(value))
                })
                .collect(),
        )
    }

    pub(super) fn first(&self, key: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }

    pub(super) fn all(&self, key: &str) -> Vec<String> {
        self.0
            .iter()
            .filter(|(name, _)| name == key)
            .map(|(_, value)| value.clone())
            .collect()
    }

    /// Whether the request must not change anything.
    pub(super) fn is_dry_run(&self) -> bool {
        self.first("dryRun").is_some()
    }

    pub(super) fn is_set(&self, key: &str) -> bool {
        matches!(self.first(key), Some("true" | "1" | ""))
    }
}

fn decode(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut decoded = Vec::new();
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => decoded.push(b' '),
            b'%' => {
                let digits: String = bytes.by_ref().take(2).map(char::from).collect();
                decoded.extend(u8::from_str_radix(&digits, 16));
            }
            other => decoded.push(other),
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_order_and_repeated_keys() {
        let query = Query::from_uri(
            &"/x?command=sh&command=-c&command=echo+a%20%2Fb%3D&stdin=true&tty=false"
                .parse()
                .unwrap(),
        );
        assert_eq!(query.all("command"), ["sh", "-c", "echo a /b="]);
        assert!(query.is_set("stdin") && !query.is_set("tty") && !query.is_set("absent"));
    }
}
