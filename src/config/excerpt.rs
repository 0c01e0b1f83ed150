//! The line of the configuration file that an error is about, with a mark below its column.
//!
//! The line may hold more than the message repeats, so it is shown only if [`quote::may_hold_secret`] finds nothing
//! in it, and no pasted key in the whole file: the lines of a key in PEM say little when each is alone. A kubeconfig
//! is never shown, because it is made of secrets. Proof: tests/it `binary::secrets`.

use std::fmt::{self, Display, Formatter};

use super::Position;
use crate::{quote, text::escape};

/// One line of a file, and the column that an error is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excerpt {
    line: u64,
    /// The text before the column, and the rest. Both are escaped and cut short.
    before: String,
    after: String,
}

impl Excerpt {
    /// The line of `text` at this position. `None` if it must not be shown, or if there is no such place.
    pub(super) fn new(text: &str, at: Position) -> Option<Self> {
        // Finds a carriage return, too: YAML takes it alone for the end of a line, so the parser would count other
        // lines.
        if text.lines().any(quote::holds_pasted) {
            return None;
        }
        let index = |number: u64| usize::try_from(number.checked_sub(1)?).ok();
        let line = text.lines().nth(index(at.line)?)?;
        if quote::may_hold_secret(line) {
            return None;
        }
        // A tab takes as much room as the space in its place, so that the mark is below its column.
        let chars: Vec<char> = line.replace('\t', " ").chars().collect();
        let (before, after) = chars.split_at_checked(index(at.column)?)?;
        let skipped = before.len().saturating_sub(MAX_CHARS_BEFORE);
        let shown: String = before.iter().skip(skipped).collect();
        let cut = if skipped > 0 { "…" } else { "" };
        let before = format!("{cut}{}", escape(&shown, MAX_CHARS_BEFORE));
        let after: String = after.iter().collect();
        Some(Self {
            line: at.line,
            before,
            after: escape(&after, MAX_CHARS_AFTER).to_string(),
        })
    }
}

impl Display for Excerpt {
    /// Two lines, each with its line break.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let line = self.line.to_string();
        writeln!(f, "  {line} | {}{}", self.before, self.after)?;
        let (margin, column) = (line.len(), self.before.chars().count());
        writeln!(f, "  {:margin$} | {:column$}^", "", "")
    }
}

/// With [`MAX_CHARS_AFTER`], a line of a narrow terminal.
const MAX_CHARS_BEFORE: usize = 40;
const MAX_CHARS_AFTER: usize = 60;

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str, line: u64, column: u64) -> Option<String> {
        let excerpt = Excerpt::new(text, Position { line, column });
        excerpt.map(|excerpt| excerpt.to_string())
    }

    #[test]
    fn mark_is_below_the_column() {
        let text = "a: 1\r\n\tl\u{ed}sten:\t[\u{1b}x]\nc: 3\n";
        for (line, column, marked) in [
            (1, 1, 'a'),
            (1, 4, '1'),
            (2, 2, 'l'),
            (2, 10, '['),
            (2, 12, 'x'),
        ] {
            let excerpt = shown(text, line, column).unwrap();
            let (line, mark) = excerpt.split_once('\n').unwrap();
            assert_eq!(
                line.chars().nth(mark.find('^').unwrap()),
                Some(marked),
                "{excerpt}"
            );
        }
        assert_eq!(shown(text, 1, 4).unwrap(), "  1 | a: 1\n    |    ^\n");
        // At the end of a line, as for a value that is missing.
        assert_eq!(shown(text, 3, 5).unwrap(), "  3 | c: 3\n    |     ^\n");
        let twelve = "\n".repeat(11) + "x";
        assert_eq!(shown(&twelve, 12, 1).unwrap(), "  12 | x\n     | ^\n");
        for (line, column) in [(0, 1), (1, 0), (1, 6), (4, 1), (u64::MAX, u64::MAX)] {
            assert_eq!(shown(text, line, column), None, "{line} {column}");
        }
        assert_eq!(
            shown("a\rb: 1\n", 1, 1),
            None,
            "the parser counts two lines"
        );
    }

    #[test]
    fn long_line_is_cut_around_the_column() {
        let text = format!("{}X{}", "y".repeat(1000), "z".repeat(1000));
        let excerpt = shown(&text, 1, 1001).unwrap();
        let (line, mark) = excerpt.split_once('\n').unwrap();
        assert_eq!(
            line,
            format!("  1 | …{}X{}…", "y".repeat(40), "z".repeat(59))
        );
        assert_eq!(line.chars().position(|char| char == 'X'), mark.find('^'));
        let text = "\u{200b}".repeat(1000);
        assert!(shown(&text, 1, 500).unwrap().chars().count() < 200);
    }

    #[test]
    fn line_that_may_hold_a_secret_is_not_shown() {
        let key = standin::pki::Identity::self_signed(&["a"]);
        let pem = key.key_pem().replace('\n', "\n    ");
        let with_key =
            format!("certificates:\n- certificate: a\n  key: |\n    {pem}\nworkers: x\n");
        for line in 1..=with_key.lines().count() {
            assert_eq!(
                shown(&with_key, line.try_into().unwrap(), 1),
                None,
                "{line}"
            );
        }
        for line in [
            "password: hunter2",
            "{workers: x, Token: abc}",
            "url: https://user:pass@10.0.0.1",
            "x: abcdef.0123456789abcdef",
            "x: d41d8cd98f00b204e9800998ecf8427e",
        ] {
            assert_eq!(shown(line, 1, 1), None, "{line}");
            let other_line = format!("{line}\nworkers: x");
            let hides_all = line.starts_with("x: ");
            assert_eq!(shown(&other_line, 2, 1).is_none(), hides_all, "{line}");
        }
    }
}
