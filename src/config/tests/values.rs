//! Durations, sizes, hosts and URLs.

use super::*;

#[test]
fn reads_durations() {
    let seconds = Duration::from_secs;
    for (text, expected) in [
        ("500ms", Duration::from_millis(500)),
        ("5s", seconds(5)),
        ("10m", seconds(600)),
        ("1h30m", seconds(5400)),
        ("1m1s1ms", Duration::from_millis(61_001)),
        ("0s", Duration::ZERO),
        ("8760h", seconds(365 * 86_400)),
    ] {
        assert_eq!(units::duration(text).unwrap(), expected, "{text}");
    }
    for text in [
        "",
        "5",
        "s",
        "5S",
        "5 s",
        " 5s",
        "-5s",
        "+5s",
        "5s5",
        "1.5s",
        "5sec",
        "5µs",
        "8761h",
        "18446744073709551615h",
        "99999999999999999999s",
        "٥s",
    ] {
        assert!(units::duration(text).is_err(), "{text}");
    }
}

#[test]
fn reads_sizes() {
    let replay = |size: &str| {
        let text = format!("limits: {{replayBytes: {size}}}");
        with_config(enough(), &text).limits.replay_bytes
    };
    assert_eq!(replay("0"), 0);
    assert_eq!(replay("4096"), 4096);
    assert_eq!(replay("'4096'"), 4096);
    assert_eq!(replay("7B"), 7);
    assert_eq!(replay("64KiB"), 65_536);
    assert_eq!(replay("2 MiB"), 2_097_152);
}

#[test]
fn reads_upstream_urls() {
    for (text, host, port, prefix) in [
        ("https://api", "api", 443, ""),
        ("HTTPS://Api.Example./", "api.example", 443, ""),
        ("https://192.0.2.1:6443", "192.0.2.1", 6443, ""),
        ("https://[2001:db8::1]", "2001:db8::1", 443, ""),
        ("https://[2001:db8::1]:6443/a", "2001:db8::1", 6443, "/a"),
        ("https://a/b/c-1%20x//", "a", 443, "/b/c-1%20x"),
    ] {
        let url: UpstreamUrl = text.parse().unwrap();
        assert_eq!(
            (url.host.as_str(), url.port, url.prefix.as_str()),
            (host, port, prefix)
        );
        assert_eq!(url.name, ServerName::try_from(host.to_owned()).unwrap());
    }
    for text in [
        "",
        "https",
        "https:",
        "https:/a",
        "https:///a",
        "https://:443",
        "https://a:",
        "https://a b",
        "https://[::1",
        "https://::1]",
        "https://[::1]a",
        "https://[192.0.2.1]",
        "https://a:443:443",
        "https://a/ä",
        "https://a/b c",
        "https://a/./b",
        "https://*.a",
        "ftp://a",
        "https://a\\b",
    ] {
        assert!(text.parse::<UpstreamUrl>().is_err(), "{text}");
    }
}

#[test]
fn password_in_url_is_not_repeated() {
    for text in [
        "https://u:canary@a",
        "http://canary@a/?x",
        "u:canary@a",
        "canary://u:canary@a",
    ] {
        let error = text.parse::<UpstreamUrl>().unwrap_err();
        assert!(!format!("{error} {error:?}").contains("canary"), "{text}");
    }
}
