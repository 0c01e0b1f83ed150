//! Writes data as YAML in blocks, for people to read and change.
//!
//! A text that YAML could take for anything else is quoted as JSON does, which YAML reads the same.

use serde_json::Value;

/// The document of `value`, which should be an object.
pub(super) fn write(value: &Value) -> String {
    let mut text = String::new();
    block(&mut text, value, 0);
    text
}

/// The lines of a value, each `depth` levels in.
fn block(text: &mut String, value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                text.push_str(&format!("{indent}{}:", scalar(key)));
                match value {
                    // A list is as far in as its key, as kubectl writes it.
                    Value::Array(items) if !items.is_empty() => {
                        text.push('\n');
                        block(text, value, depth);
                    }
                    Value::Object(fields) if !fields.is_empty() => {
                        text.push('\n');
                        block(text, value, depth.saturating_add(1));
                    }
                    Value::Null
                    | Value::Bool(_)
                    | Value::Number(_)
                    | Value::String(_)
                    | Value::Array(_)
                    | Value::Object(_) => text.push_str(&format!(" {}\n", plain(value))),
                }
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let mut inner = String::new();
                block(&mut inner, item, depth.saturating_add(1));
                // The dash takes the place of the indentation of the first line.
                let first = inner.get(indent.len().saturating_add(2)..);
                text.push_str(&format!("{indent}- {}", first.unwrap_or_default()));
            }
        }
        Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Array(_)
        | Value::Object(_) => text.push_str(&format!("{indent}{}\n", plain(value))),
    }
}

/// A value on one line.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => scalar(text),
        // Lists and objects come here only when they are empty.
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            value.to_string()
        }
    }
}

/// A text without quotes where that cannot be mistaken.
fn scalar(text: &str) -> String {
    let begins_well = text
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'/');
    let is_plain = text
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-._/@:+=".contains(&byte));
    // These words are values in YAML 1.1, which kubectl reads. A `:` ends a key before a space or at the
    // end, and only there.
    let is_word = ["null", "true", "false", "yes", "no", "on", "off", "y", "n"]
        .iter()
        .any(|word| text.eq_ignore_ascii_case(word));
    if begins_well && is_plain && !is_word && !text.ends_with(':') {
        text.to_owned()
    } else {
        Value::from(text).to_string()
    }
}
