//! Text that the proxy did not write: made safe to print, and read as a comma-separated list.
//!
//! Text of a peer or a file goes through [`escape`] before it reaches a log, a terminal or a page. Otherwise
//! a request could forge a log line, and a bidi mark could hide part of a name.

use std::{
    borrow::Cow,
    error::Error,
    fmt::{self, Display, Formatter, Write as _},
    io,
};

use crate::tls_error;

/// What an item of `Sec-WebSocket-Protocol` that is a token begins with.
pub(crate) const WEBSOCKET_TOKEN: &str = "base64url.bearer.authorization.k8s.io.";

/// `text` on one line, with everything escaped that a terminal or a log reader would act on: control
/// characters, line breaks, bidi marks, invisible characters. At most `max` characters are written, and an
/// ellipsis if something is left out.
///
/// Quotes and backslashes stay as they are: they do no harm, and a Windows path stays readable.
pub(crate) fn escape(text: &str, max: usize) -> Escaped<'_> {
    Escaped { text, max }
}

/// See [`escape`]. Formatting it allocates nothing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Escaped<'a> {
    text: &'a str,
    max: usize,
}

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        // Nearly every text is short and plain, and each line of the access log has several.
        if self.text.len() <= self.max && self.text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
        {
            return f.write_str(self.text);
        }
        let mut left = self.max;
        for char in self.text.chars() {
            let is_plain = matches!(char, '"' | '\'' | '\\');
            let width = if is_plain {
                1
            } else {
                char.escape_debug().len()
            };
            let Some(rest) = left.checked_sub(width) else {
                return f.write_char('…');
            };
            left = rest;
            if is_plain {
                f.write_char(char)?;
            } else {
                write!(f, "{}", char.escape_debug())?;
            }
        }
        Ok(())
    }
}

/// The items of a comma-separated field value, without the spaces around them.
pub(crate) fn list_items(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// Whether a comma-separated field value holds this token, in any case.
pub(crate) fn list_contains(value: &[u8], token: &str) -> bool {
    list_items(value).any(|item| item.eq_ignore_ascii_case(token.as_bytes()))
}

/// An error and its causes, joined by `: `. Use it for log lines: JSON would write the error alone.
pub(crate) fn error_chain<'a>(error: &'a (dyn Error + 'static)) -> impl Display + 'a {
    ErrorChain(error)
}

struct ErrorChain<'a>(&'a (dyn Error + 'static));

impl Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&message(self.0))?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {}", message(error))?;
            cause = error.source();
        }
        Ok(())
    }
}

/// The text of one error. Those of rustls are names of types.
fn message(error: &(dyn Error + 'static)) -> Cow<'static, str> {
    // An `io::Error` prints the error that it wraps, and hides it from `source`.
    let wrapped = error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::get_ref);
    wrapped
        .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        .or_else(|| error.downcast_ref())
        .map_or_else(
            || tls_error::plain(error.to_string()).into(),
            tls_error::describe,
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_keeps_printable_text() {
        for text in ["", "/api/v1/pods", "münchen", "C:\\tls \"key\" 'x'", "日本"] {
            assert_eq!(escape(text, 100).to_string(), text);
        }
    }

    #[test]
    fn escape_escapes_control_and_bidi_characters() {
        for (text, escaped) in [
            ("a\nb\r\tc\0", "a\\nb\\r\\tc\\0"),
            ("\u{1b}[2J", "\\u{1b}[2J"),
            ("\u{7f}\u{85}", "\\u{7f}\\u{85}"),
            ("\u{2028}\u{2029}", "\\u{2028}\\u{2029}"),
            ("\u{61c}\u{200e}\u{200f}", "\\u{61c}\\u{200e}\\u{200f}"),
            ("\u{202a}\u{202e}", "\\u{202a}\\u{202e}"),
            ("\u{2066}\u{2069}", "\\u{2066}\\u{2069}"),
            ("\u{200b}\u{feff}", "\\u{200b}\\u{feff}"),
        ] {
            assert_eq!(escape(text, 100).to_string(), escaped);
        }
    }

    #[test]
    fn escape_bounds_what_is_written() {
        for (text, escaped) in [
            ("12345", "12345"),
            ("123456", "12345…"),
            ("ééééé", "ééééé"),
            ("éééééé", "ééééé…"),
            // An escape is written whole or not at all.
            ("1234\n", "1234…"),
            ("123\n", "123\\n"),
        ] {
            assert_eq!(escape(text, 5).to_string(), escaped);
        }
        let long = "\u{1b}".repeat(10_000);
        assert!(escape(&long, 100).to_string().chars().count() <= 101);
    }

    #[test]
    fn list_contains_compares_whole_tokens_in_any_case() {
        for (value, contains) in [
            ("close", true),
            ("keep-alive, Close", true),
            ("a,\tclose ,b", true),
            ("closed", false),
            ("close;q=1", false),
            ("", false),
        ] {
            assert_eq!(
                list_contains(value.as_bytes(), "close"),
                contains,
                "{value}"
            );
        }
    }

    #[test]
    fn error_chain_joins_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] io::Error);

        let error = Outer(io::Error::other("inner"));
        assert_eq!(error_chain(&error).to_string(), "outer: inner");
    }
}
