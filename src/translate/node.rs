//! A YAML document as a tree in which each value knows its place.
//!
//! Numbers keep no text, so a value that must be text and looks like a number is an error and never a guess.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{Location, Spanned};

use crate::config::{Position, position};

/// One value of a document and its place.
#[derive(Debug)]
pub(super) struct ManifestNode {
    pub(super) at: Position,
    pub(super) value: NodeValue,
}

/// The content of a document at one position.
#[derive(Debug)]
pub(super) enum NodeValue {
    Null,
    Bool(bool),
    /// `None` for a number that is negative or has a fraction: no field that is read here can have one.
    Number(Option<u64>),
    Text(String),
    List(Vec<ManifestNode>),
    Map(Vec<(String, ManifestNode)>),
}

impl From<Spanned<NodeValue>> for ManifestNode {
    fn from(spanned: Spanned<NodeValue>) -> Self {
        Self {
            at: place(spanned.referenced),
            value: spanned.value,
        }
    }
}

/// The place of a parsed value; the first character of the file if the parser knows none.
fn place(location: Location) -> Position {
    position(location).unwrap_or(Position { line: 1, column: 1 })
}

impl<'de> Deserialize<'de> for NodeValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = NodeValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of a Kubernetes object")
    }

    fn visit_unit<E>(self) -> Result<NodeValue, E> {
        Ok(NodeValue::Null)
    }

    fn visit_none<E>(self) -> Result<NodeValue, E> {
        Ok(NodeValue::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<NodeValue, E> {
        Ok(NodeValue::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<NodeValue, E> {
        Ok(NodeValue::Number(Some(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<NodeValue, E> {
        Ok(NodeValue::Number(u64::try_from(value).ok()))
    }

    fn visit_f64<E>(self, _value: f64) -> Result<NodeValue, E> {
        Ok(NodeValue::Number(None))
    }

    fn visit_str<E>(self, value: &str) -> Result<NodeValue, E> {
        Ok(NodeValue::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<NodeValue, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = list.next_element::<Spanned<NodeValue>>()? {
            nodes.push(node.into());
        }
        Ok(NodeValue::List(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<NodeValue, A::Error> {
        let mut nodes = Vec::new();
        while let Some((key, node)) = map.next_entry::<String, Spanned<NodeValue>>()? {
            nodes.push((key, node.into()));
        }
        Ok(NodeValue::Map(nodes))
    }
}
