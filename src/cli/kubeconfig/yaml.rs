//! YAML values that keep the order of their keys, and a writer in block style, which people can read and edit.
//!
//! Text that YAML could read as another type is quoted as in JSON, which is valid YAML.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::{Number, Value};

/// A YAML value. Keys keep the order in which they were written, which `serde_json` does not.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Yaml {
    Null,
    Bool(bool),
    Number(Number),
    Text(String),
    List(Vec<Self>),
    Keys(Vec<(String, Self)>),
}

impl Yaml {
    /// The value of `key`, if this has keys and that one among them.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Keys(fields) => fields
                .iter()
                .find_map(|(name, value)| (name == key).then_some(value)),
            Self::Null | Self::Bool(_) | Self::Number(_) | Self::Text(_) | Self::List(_) => None,
        }
    }

    /// The value of `key`, which is added as `null` if it is missing; `None` if this has no keys.
    pub(super) fn entry(&mut self, key: &str) -> Option<&mut Self> {
        let Self::Keys(fields) = self else {
            return None;
        };
        if !fields.iter().any(|(name, _)| name == key) {
            fields.push((key.to_owned(), Self::Null));
        }
        fields
            .iter_mut()
            .find_map(|(name, value)| (name == key).then_some(value))
    }

    /// Sets the keys of `new`, at every level, and keeps all others.
    pub(super) fn update(&mut self, new: Self) {
        match (self, new) {
            (Self::Keys(fields), Self::Keys(new)) => {
                for (key, value) in new {
                    match fields.iter_mut().find(|(name, _)| *name == key) {
                        Some((_, old)) => old.update(value),
                        None => fields.push((key, value)),
                    }
                }
            }
            (old, new) => *old = new,
        }
    }

    /// Removes these keys from the value of `outer`. A key that `new` has stays in its place, without its value.
    pub(super) fn remove_in(&mut self, outer: &str, keys: &[&str], new: &Self) {
        let Some(Self::Keys(fields)) = self.entry(outer) else {
            return;
        };
        fields.retain_mut(|(name, value)| {
            let is_listed = keys.contains(&name.as_str());
            if is_listed {
                *value = Self::Null;
            }
            !is_listed || new.get(name).is_some()
        });
    }

    /// The items of this list; `null` becomes an empty list. `None` for any other value.
    pub(super) fn list_or_empty(&mut self) -> Option<&mut Vec<Self>> {
        if *self == Self::Null {
            *self = Self::List(Vec::new());
        }
        match self {
            Self::List(items) => Some(items),
            Self::Null | Self::Bool(_) | Self::Number(_) | Self::Text(_) | Self::Keys(_) => None,
        }
    }

    /// The items of the list under `key`; empty if there is none.
    pub(super) fn items(&self, key: &str) -> &[Self] {
        match self.get(key) {
            Some(Self::List(items)) => items,
            _ => &[],
        }
    }

    /// The item called `name` of the list under `key`.
    pub(super) fn entry_of(&self, key: &str, name: &str) -> Option<&Self> {
        self.items(key)
            .iter()
            .find(|item| item.name() == Some(name))
    }

    /// The text under `name`.
    pub(super) fn name(&self) -> Option<&str> {
        self.get("name").and_then(Self::as_text)
    }

    /// The text under these two keys; empty if there is none.
    pub(super) fn text_at(&self, outer: &str, inner: &str) -> &str {
        self.get(outer).map_or("", |value| value.text_of(inner))
    }

    /// The text under `key`; empty if there is none.
    pub(super) fn text_of(&self, key: &str) -> &str {
        self.get(key).and_then(Self::as_text).unwrap_or_default()
    }

    /// Whether the value is written on lines of its own, below its key.
    const fn needs_lines(&self) -> bool {
        match self {
            Self::List(items) => !items.is_empty(),
            Self::Keys(fields) => !fields.is_empty(),
            Self::Null | Self::Bool(_) | Self::Number(_) | Self::Text(_) => false,
        }
    }

    /// The text, if it is one.
    pub(super) fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Null | Self::Bool(_) | Self::Number(_) | Self::List(_) | Self::Keys(_) => None,
        }
    }
}

impl From<Value> for Yaml {
    fn from(value: Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Bool(value),
            Value::Number(value) => Self::Number(value),
            Value::String(text) => Self::Text(text),
            Value::Array(items) => Self::List(items.into_iter().map(Self::from).collect()),
            Value::Object(fields) => {
                let fields = fields.into_iter();
                Self::Keys(
                    fields
                        .map(|(key, value)| (key, Self::from(value)))
                        .collect(),
                )
            }
        }
    }
}

impl<'de> Deserialize<'de> for Yaml {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(YamlVisitor)
    }
}

struct YamlVisitor;

impl<'de> Visitor<'de> for YamlVisitor {
    type Value = Yaml;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Yaml, E> {
        Ok(Yaml::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Yaml, E> {
        Ok(Yaml::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Yaml, E> {
        Ok(Yaml::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Yaml, E> {
        Ok(Yaml::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Yaml, E> {
        // JSON has no infinity and no NaN, and a kubeconfig has no use for them.
        Ok(Number::from_f64(value).map_or(Yaml::Null, Yaml::Number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Yaml, E> {
        Ok(Yaml::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Yaml, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Yaml::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Yaml, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = access.next_entry()? {
            fields.push(field);
        }
        Ok(Yaml::Keys(fields))
    }
}

/// Returns the text of a document.
pub(super) fn write(document: &Yaml) -> String {
    let mut text = String::new();
    block(&mut text, document, 0);
    text
}

/// Writes the lines of a value, indented by `depth` levels.
fn block(text: &mut String, value: &Yaml, depth: usize) {
    let indent = "  ".repeat(depth);
    match value {
        Yaml::Keys(fields) if value.needs_lines() => {
            for (key, value) in fields {
                text.push_str(&format!("{indent}{}:", scalar(key)));
                if value.needs_lines() {
                    text.push('\n');
                    // A list has the indentation of its key, as kubectl writes it.
                    let more = usize::from(matches!(value, Yaml::Keys(_)));
                    block(text, value, depth.saturating_add(more));
                } else {
                    text.push_str(&format!(" {}\n", plain(value)));
                }
            }
        }
        Yaml::List(items) if value.needs_lines() => {
            for item in items {
                let mut inner = String::new();
                block(&mut inner, item, depth.saturating_add(1));
                // The dash takes the place of the indentation of the first line.
                let first = inner.get(indent.len().saturating_add(2)..);
                text.push_str(&format!("{indent}- {}", first.unwrap_or_default()));
            }
        }
        Yaml::Null
        | Yaml::Bool(_)
        | Yaml::Number(_)
        | Yaml::Text(_)
        | Yaml::List(_)
        | Yaml::Keys(_) => text.push_str(&format!("{indent}{}\n", plain(value))),
    }
}

/// Returns a value on one line. Lists and keys come here only if they are empty.
fn plain(value: &Yaml) -> String {
    match value {
        Yaml::Null => "null".to_owned(),
        Yaml::Bool(value) => value.to_string(),
        Yaml::Number(number) => number.to_string(),
        Yaml::Text(text) => scalar(text),
        Yaml::List(_) => "[]".to_owned(),
        Yaml::Keys(_) => "{}".to_owned(),
    }
}

/// Returns a text without quotes if YAML reads it as text, and with quotes otherwise.
fn scalar(text: &str) -> String {
    let begins_well = text
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'/');
    let is_plain = text
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-._/@:+=".contains(&byte));
    // These words are values of other types in YAML 1.1, which kubectl reads. A `:` ends a key only before a space
    // and at the end.
    let is_word = ["null", "true", "false", "yes", "no", "on", "off", "y", "n"]
        .iter()
        .any(|word| text.eq_ignore_ascii_case(word));
    if begins_well && is_plain && !is_word && !text.ends_with(':') {
        text.to_owned()
    } else {
        Value::from(text).to_string()
    }
}
