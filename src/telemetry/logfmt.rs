//! Text lines in logfmt: `time=… level=INFO target=… msg="…" key=value`, so that the usual tools can read them.
//!
//! A value is quoted if it has a space, a quote, an equals sign or a character that is not printable ASCII. An empty
//! value is left out with its key. Numbers are decimals.

use std::fmt::{self, Debug, Write as _};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::Writer,
        time::{FormatTime as _, SystemTime},
    },
    registry::LookupSpan,
};

/// Formats each event as one line.
pub(super) struct Logfmt;

impl<S, N> FormatEvent<S, N> for Logfmt
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let colour = writer.has_ansi_escapes().then(|| colour(*metadata.level()));
        let (before, after) = colour.map_or(("", ""), |colour| (colour, "\u{1b}[0m"));
        writer.write_str("time=")?;
        SystemTime.format_time(&mut writer)?;
        let (level, target) = (metadata.level(), metadata.target());
        write!(writer, " level={before}{level}{after} target={target}")?;
        let mut line = Line {
            writer,
            value: String::new(),
            result: Ok(()),
        };
        // First, because people look for it; in the event it can be the last field.
        event.record(&mut OnlyMessage(&mut line));
        event.record(&mut line);
        line.result?;
        line.writer.write_char('\n')
    }
}

fn colour(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\u{1b}[31m",
        Level::WARN => "\u{1b}[33m",
        Level::INFO => "\u{1b}[32m",
        Level::DEBUG => "\u{1b}[34m",
        Level::TRACE => "\u{1b}[35m",
    }
}

/// Writes the fields of one event.
struct Line<'a> {
    writer: Writer<'a>,
    /// The text of the last value that is not a string.
    value: String,
    result: fmt::Result,
}

impl Line<'_> {
    fn put(&mut self, key: &str, value: &str) {
        if self.result.is_ok() && !value.is_empty() {
            self.result = pair(&mut self.writer, key, value);
        }
    }

    fn format(&mut self, key: &str, value: fmt::Arguments<'_>) {
        self.value.clear();
        if self.result.is_ok() {
            self.result = self.value.write_fmt(value);
        }
        if self.result.is_ok() && !self.value.is_empty() {
            self.result = pair(&mut self.writer, key, &self.value);
        }
    }
}

impl Visit for Line<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        // `Debug` would write 0.000092 as 9.2e-5.
        self.format(field.name(), format_args!("{value}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() != MESSAGE {
            self.put(field.name(), value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() != MESSAGE {
            self.format(field.name(), format_args!("{value:?}"));
        }
    }
}

/// Writes the message and nothing else.
struct OnlyMessage<'a, 'b>(&'a mut Line<'b>);

impl Visit for OnlyMessage<'_, '_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == MESSAGE {
            self.0.put("msg", value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == MESSAGE {
            self.0.format("msg", format_args!("{value:?}"));
        }
    }
}

fn pair(to: &mut dyn fmt::Write, key: &str, value: &str) -> fmt::Result {
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'=' | b'\\');
    let is_plain = key != "msg" && value.bytes().all(is_plain);
    for part in [" ", key, if is_plain { "=" } else { "=\"" }] {
        to.write_str(part)?;
    }
    if is_plain {
        return to.write_str(value);
    }
    for char in value.chars() {
        match char {
            '"' | '\\' => {
                to.write_char('\\')?;
                to.write_char(char)?;
            }
            // Text of a peer is escaped already; this is for text of a library.
            _ if char.is_control() => write!(to, "{}", char.escape_default())?,
            _ => to.write_char(char)?,
        }
    }
    to.write_char('"')
}

const MESSAGE: &str = "message";

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use tracing::{info, subscriber::with_default};
    use tracing_subscriber::{fmt as subscriber_fmt, layer::SubscriberExt as _};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The line that `log` writes, without the time.
    fn line(log: impl FnOnce()) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let layer = subscriber_fmt::layer()
            .event_format(Logfmt)
            .with_ansi(false)
            .with_writer(move || writer.clone());
        with_default(tracing_subscriber::registry().with(layer), log);
        let line = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        let (time, rest) = line.split_once(' ').unwrap();
        assert!(time.starts_with("time=2") && time.ends_with('Z'), "{time}");
        rest.to_owned()
    }

    #[test]
    fn values_are_quoted_if_needed_and_empty_ones_left_out() {
        let none: Option<&str> = None;
        let found = line(|| {
            info!(
                target: "t",
                empty = "",
                none,
                path = "/api/v1/pods",
                error = %"connect to 127.0.0.1:1: Connection refused (os error 111)",
                quote = "a\"b\\c",
                equals = "a=b",
                control = "a\nb",
                name = "münchen",
                shown = display("x"),
                seconds = 0.000_092,
                whole = 3.0,
                number = 7_u64,
                yes = true,
                "one event"
            );
        });
        let expected = concat!(
            r#"level=INFO target=t msg="one event" path=/api/v1/pods "#,
            r#"error="connect to 127.0.0.1:1: Connection refused (os error 111)" quote="a\"b\\c" "#,
            r#"equals="a=b" control="a\nb" name="münchen" shown=x seconds=0.000092 whole=3 number=7 yes=true"#,
            "\n"
        );
        assert_eq!(found, expected);
    }
}
