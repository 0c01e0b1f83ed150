//! One object of Kubernetes: its fields, and what became of each of them.
//!
//! The translation marks the fields that it reads. [`ManifestObject::report`] then walks over the whole object and
//! gives every field a verdict: that of its mark, else that of the tables in `known.rs`, else *not known*. So no field
//! is dropped without a word, and a field that the translation forgets is reported as one that it does not know.

use std::{cell::RefCell, collections::BTreeMap, fmt, path::PathBuf, rc::Rc};

use super::{
    known,
    node::{ManifestNode, NodeValue},
};
use crate::{
    config::{ConfigError, FileKind, Position, SettingError},
    quote,
    text::escape,
};

/// The outcome for a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FieldVerdict {
    /// The configuration has it.
    Used,
    /// The proxy behaves so without a setting, or the field is not about the proxy.
    NotNeeded,
    /// The proxy cannot do this.
    NotPossible,
    /// The translation does not know the field.
    NotKnown,
}

impl fmt::Display for FieldVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Used => "used",
            Self::NotNeeded => "not needed",
            Self::NotPossible => "not possible",
            Self::NotKnown => "not known",
        })
    }
}

/// One field of a manifest, and what became of it. Prints as one line, with the place first as compilers write it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldReport {
    /// The file of the field.
    pub file: PathBuf,
    /// Its place there.
    pub at: Position,
    /// The object, such as `Ingress default/kubernetes`.
    pub object: String,
    /// The path of the field in the object.
    pub field: String,
    /// Its outcome.
    pub verdict: FieldVerdict,
    /// Why, and what to do.
    pub reason: String,
}

impl fmt::Display for FieldReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}:{}: {}: {}: {}: {}",
            quote::path(&self.file),
            self.at.line,
            self.at.column,
            self.verdict,
            self.object,
            escape(&self.field, MAX_FIELD_CHARS),
            self.reason
        )
    }
}

/// One object of a manifest.
#[derive(Debug)]
pub(super) struct ManifestObject {
    file: PathBuf,
    /// The text of the whole file, for the excerpt of an error.
    text: Rc<str>,
    node: ManifestNode,
    /// Empty for the core group.
    pub(super) group: String,
    pub(super) kind: String,
    pub(super) namespace: String,
    pub(super) name: String,
    marks: RefCell<BTreeMap<String, (FieldVerdict, String)>>,
}

/// A place in an object, with the value there.
#[derive(Debug, Clone)]
pub(super) struct ManifestField<'a> {
    pub(super) object: &'a ManifestObject,
    node: &'a ManifestNode,
    path: String,
}

impl ManifestObject {
    /// Reads what the object is. `kind` is the one of the items of a list whose items do not say it.
    pub(super) fn new(
        file: PathBuf,
        text: Rc<str>,
        node: ManifestNode,
        kind: Option<(&str, &str)>,
    ) -> Result<Self, ConfigError> {
        let mut object = Self {
            file,
            text,
            node,
            group: String::new(),
            kind: String::new(),
            namespace: String::new(),
            name: String::new(),
            marks: RefCell::default(),
        };
        let root = object.root();
        let version = match (root.get("apiVersion")?, kind) {
            (None, Some((version, _))) => version.to_owned(),
            (Some(version), _) => version.text()?.to_owned(),
            (None, None) => return Err(root.error("`apiVersion` is missing; give a manifest of Kubernetes, as `kubectl get --output yaml` writes it")),
        };
        let kind = match (root.get("kind")?, kind) {
            (None, Some((_, kind))) => kind.to_owned(),
            (Some(kind), _) => kind.text()?.to_owned(),
            (None, None) => root.need("kind")?.text()?.to_owned(),
        };
        let (mut namespace, mut name) = ("default".to_owned(), String::new());
        if !kind.ends_with("List") {
            let metadata = root.need("metadata")?;
            name = metadata.need("name")?.object_name()?.to_owned();
            if let Some(given) = metadata.get("namespace")? {
                given.object_name()?.clone_into(&mut namespace);
            }
        }
        let group = version.split_once('/').map_or("", |(group, _)| group);
        let group = quote::name(group);
        let kind = quote::name(&kind);
        object.group = group;
        object.kind = kind;
        (object.namespace, object.name) = (namespace, name);
        Ok(object)
    }

    /// The object itself, as a field.
    pub(super) fn root(&self) -> ManifestField<'_> {
        ManifestField {
            object: self,
            node: &self.node,
            path: String::new(),
        }
    }

    /// Its `apiVersion`, for the items of a list.
    pub(super) fn version(&self) -> String {
        let version = self.root().get("apiVersion").ok().flatten();
        let version = version.and_then(|version| version.text().ok());
        version.unwrap_or_default().to_owned()
    }

    pub(super) fn spec(&self) -> Result<ManifestField<'_>, ConfigError> {
        self.root().need("spec")
    }

    /// The annotations, each with its name.
    pub(super) fn annotations(&self) -> Result<Vec<(&str, ManifestField<'_>)>, ConfigError> {
        let metadata = self.root().need("metadata")?;
        let annotations = metadata.get("annotations")?;
        annotations.map_or(Ok(Vec::new()), |annotations| annotations.entries())
    }

    /// Its kind, namespace and name.
    pub(super) fn title(&self) -> String {
        if self.name.is_empty() {
            return self.kind.clone();
        }
        format!("{} {}/{}", self.kind, self.namespace, self.name)
    }

    /// Items of a list of kind `List`, `IngressList` and the like, taken out of the object.
    pub(super) fn take_items(&mut self) -> Vec<ManifestNode> {
        let NodeValue::Map(entries) = &mut self.node.value else {
            return Vec::new();
        };
        if !self.kind.ends_with("List") {
            return Vec::new();
        }
        for (key, node) in entries {
            if key == "items"
                && let NodeValue::List(items) = &mut node.value
            {
                return std::mem::take(items);
            }
        }
        Vec::new()
    }

    /// Every field with its verdict, in the order of the file.
    pub(super) fn report(&self) -> Vec<FieldReport> {
        let mut found = Vec::new();
        let mut add = |at: Position, field: &str, verdict, reason: &str| {
            found.push(FieldReport {
                file: self.file.clone(),
                at,
                object: self.title(),
                field: if field.is_empty() { "all of it" } else { field }.to_owned(),
                verdict,
                reason: reason.to_owned(),
            });
        };
        let root = self.root();
        if let Some((verdict, reason)) = known::object(&self.group, &self.kind) {
            add(root.node.at, "", verdict, reason);
        } else {
            self.walk(&root, Covered::No, &mut add);
        }
        found
    }

    /// Gives verdicts to this field and to all below it. A row of the tables is one line of the report, unless a field
    /// below it has a mark of its own: then each of the others gets its line.
    fn walk(
        &self,
        field: &ManifestField<'_>,
        mut covered: Covered,
        add: &mut dyn FnMut(Position, &str, FieldVerdict, &str),
    ) {
        let marks = self.marks.borrow();
        let children = field.children();
        if let Some((verdict, reason)) = marks.get(&field.path) {
            add(field.node.at, &field.path, *verdict, reason);
            covered = Covered::Yes;
        } else if !matches!(covered, Covered::Yes) {
            let row = known::field(&self.kind, &pattern(&field.path));
            let row = row.or(match covered {
                Covered::EachBy(row) => Some(row),
                Covered::No | Covered::Yes => None,
            });
            let is_below = |path: &String| {
                let rest = path.strip_prefix(&field.path);
                rest.is_some_and(|rest| rest.starts_with(['.', '[']))
            };
            covered = match row {
                Some(row) if marks.keys().any(is_below) => Covered::EachBy(row),
                Some((verdict, reason)) => {
                    add(field.node.at, &field.path, verdict, reason);
                    Covered::Yes
                }
                None if children.is_empty() => {
                    let (verdict, reason) = field.unknown();
                    add(field.node.at, &field.path, verdict, reason);
                    Covered::Yes
                }
                None => Covered::No,
            };
        }
        for child in children {
            self.walk(&child, covered, add);
        }
    }
}

/// Whether the report has the fields below a field already.
#[derive(Debug, Clone, Copy)]
enum Covered {
    No,
    Yes,
    /// Not yet, but this row of the tables holds for each of them that has no mark.
    EachBy(known::KnownField),
}

impl<'a> ManifestField<'a> {
    /// The field below this one; `None` if it is missing or null.
    pub(super) fn get(&self, key: &str) -> Result<Option<Self>, ConfigError> {
        let found = self.entries()?.into_iter().find(|(name, _)| *name == key);
        Ok(found
            .map(|(_, field)| field)
            .filter(|field| !matches!(field.node.value, NodeValue::Null)))
    }

    /// The first of these fields that is there. Kubernetes and the controllers have renamed some.
    pub(super) fn get_any(&self, keys: [&str; 2]) -> Result<Option<Self>, ConfigError> {
        for key in keys {
            if let Some(field) = self.get(key)? {
                return Ok(Some(field));
            }
        }
        Ok(None)
    }

    /// The text of the field below this one; `default` if it is missing.
    pub(super) fn text_or(&self, key: &str, default: &'static str) -> Result<&'a str, ConfigError> {
        self.get(key)?.map_or(Ok(default), |field| field.text())
    }

    /// The namespace in this reference to another object; if it has none, that of its own object.
    pub(super) fn namespace(&self) -> Result<&'a str, ConfigError> {
        self.get("namespace")?
            .map_or(Ok(&self.object.namespace), |field| field.object_name())
    }

    /// As [`Self::get`], for a field that must be there.
    pub(super) fn need(&self, key: &str) -> Result<Self, ConfigError> {
        self.get(key)?
            .ok_or_else(|| self.error(format!("`{key}` is missing; add it")))
    }

    /// The fields below this one, each with its key.
    pub(super) fn entries(&self) -> Result<Vec<(&'a str, Self)>, ConfigError> {
        let NodeValue::Map(entries) = &self.node.value else {
            return Err(self.error("keys with values belong here; write each as `key: value`"));
        };
        let fields = entries.iter();
        let fields =
            fields.map(|(key, node)| (key.as_str(), self.child(join(&self.path, key), node)));
        Ok(fields.collect())
    }

    /// The items of this list.
    pub(super) fn items(&self) -> Result<Vec<Self>, ConfigError> {
        let NodeValue::List(nodes) = &self.node.value else {
            return Err(
                self.error("a list belongs here; write each item on its own line, after a dash")
            );
        };
        let items = nodes.iter().enumerate();
        let items = items.map(|(index, node)| self.child(format!("{}[{index}]", self.path), node));
        Ok(items.collect())
    }

    /// The items of the list below this field; none if it is missing.
    pub(super) fn items_of(&self, key: &str) -> Result<Vec<Self>, ConfigError> {
        self.get(key)?.map_or(Ok(Vec::new()), |list| list.items())
    }

    /// This value, which must be text and not empty.
    pub(super) fn text(&self) -> Result<&'a str, ConfigError> {
        match &self.node.value {
            NodeValue::Text(text) if text.trim().is_empty() => {
                Err(self.error("the value is empty; write one, or remove the field"))
            }
            NodeValue::Text(text) => Ok(text.trim()),
            NodeValue::Bool(_) | NodeValue::Number(_) => {
                Err(self.error("text belongs here; put the value in quotes"))
            }
            NodeValue::Null | NodeValue::List(_) | NodeValue::Map(_) => {
                Err(self.error("text belongs here; write one value"))
            }
        }
    }

    /// This value, which must be the name of an object: then it is also safe as part of a path.
    pub(super) fn object_name(&self) -> Result<&'a str, ConfigError> {
        let name = self.text()?;
        if is_object_name(name) {
            return Ok(name);
        }
        let name = quote::value(name);
        Err(self.error(format!(
            "`{name}` is not the name of an object; write one of small letters, digits, `-` and `.`"
        )))
    }

    /// This value, which must be a whole number.
    pub(super) fn number(&self) -> Result<u64, ConfigError> {
        let NodeValue::Number(Some(number)) = &self.node.value else {
            return Err(self.error("a whole number belongs here; write one without quotes"));
        };
        Ok(*number)
    }

    /// This value, which must be true or false.
    pub(super) fn boolean(&self) -> Result<bool, ConfigError> {
        let NodeValue::Bool(value) = &self.node.value else {
            return Err(self.error("a boolean belongs here; write true or false"));
        };
        Ok(*value)
    }

    /// Whether this value is text.
    pub(super) fn is_text(&self) -> bool {
        matches!(self.node.value, NodeValue::Text(_))
    }

    /// Records what became of this field and all below it that have no mark of their own.
    pub(super) fn mark(&self, verdict: FieldVerdict, reason: impl Into<String>) {
        let mut marks = self.object.marks.borrow_mut();
        let worse = marks.get(&self.path).is_some_and(|(old, _)| *old > verdict);
        if !worse {
            marks.insert(self.path.clone(), (verdict, reason.into()));
        }
    }

    pub(super) fn used(&self, reason: impl Into<String>) {
        self.mark(FieldVerdict::Used, reason);
    }

    /// Records that these keys below this field are used, if they are there.
    pub(super) fn used_keys(&self, keys: &[&str], reason: &str) -> Result<(), ConfigError> {
        for key in keys {
            if let Some(field) = self.get(key)? {
                field.used(reason);
            }
        }
        Ok(())
    }

    /// An error at this field. `problem` ends with the fix.
    pub(super) fn error(&self, problem: impl Into<String>) -> ConfigError {
        let field = match (self.object.title(), self.path.as_str()) {
            (title, "") if title.is_empty() => "the document".to_owned(),
            (title, "") => title,
            (title, path) if title.is_empty() => path.to_owned(),
            (title, path) => format!("{title}: {path}"),
        };
        ConfigError::File {
            kind: FileKind::Manifest,
            file: self.object.file.clone(),
            at: Some(self.node.at),
            excerpt: None,
            source: Box::new(SettingError::Manifest {
                field: escape(&field, MAX_FIELD_CHARS).to_string(),
                problem: problem.into(),
            }),
        }
        .with_excerpt(&self.object.text)
    }

    /// The verdict on a field that neither the translation nor a table knows.
    fn unknown(&self) -> known::KnownField {
        match &self.node.value {
            NodeValue::Null | NodeValue::List(_) | NodeValue::Map(_) => {
                (FieldVerdict::NotNeeded, "it is empty")
            }
            NodeValue::Bool(_) | NodeValue::Number(_) | NodeValue::Text(_) => {
                (FieldVerdict::NotKnown, UNKNOWN)
            }
        }
    }

    fn children(&self) -> Vec<Self> {
        let entries = self.entries().unwrap_or_default();
        let items = self.items().unwrap_or_default();
        entries
            .into_iter()
            .map(|(_, field)| field)
            .chain(items)
            .collect()
    }

    fn child(&self, path: String, node: &'a ManifestNode) -> Self {
        let object = self.object;
        Self { object, node, path }
    }
}

/// Whether `text` can be the name of an object or of a namespace.
pub(super) fn is_object_name(text: &str) -> bool {
    let is_part =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    text.len() <= MAX_NAME_BYTES
        && text.bytes().all(is_part)
        && !text.starts_with(['.', '-'])
        && !text.contains("..")
        && !text.is_empty()
}

fn join(path: &str, key: &str) -> String {
    if key.contains(['.', '/', '[', '"']) {
        format!("{path}[\"{key}\"]")
    } else if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// The path without the numbers of list items.
fn pattern(path: &str) -> String {
    let mut pattern = String::new();
    for part in path.split_inclusive('[') {
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        let is_index = part.as_bytes().get(digits) == Some(&b']') && pattern.ends_with('[');
        pattern.push_str(
            part.get(if is_index { digits } else { 0 }..)
                .unwrap_or(part),
        );
    }
    pattern
}

const UNKNOWN: &str = "the translation does not know this field; check by hand what it does, and see docs/configuration.md for what the proxy can do";
const MAX_FIELD_CHARS: usize = 200;
/// The longest name of an object in Kubernetes.
const MAX_NAME_BYTES: usize = 253;
