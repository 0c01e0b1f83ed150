//! Label and field selectors. A selector that is not understood is an error: a list that ignores it would be wrong.

use super::{query::Query, store::Pod};

/// Which pods a list, a watch or a log may show.
#[derive(Debug, Clone, Default)]
pub(super) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<(Field, Operator)>,
}

/// What one label must be.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
}

impl Operator {
    /// As in Kubernetes, a label that is absent is not in any set.
    fn accepts(&self, value: Option<&str>) -> bool {
        let is_in =
            |set: &Vec<String>| value.is_some_and(|value| set.iter().any(|one| one == value));
        match self {
            Self::In(set) => is_in(set),
            Self::NotIn(set) => !is_in(set),
            Self::Exists => value.is_some(),
            Self::Absent => value.is_none(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Name,
    Namespace,
    Phase,
    Node,
}

const FIELDS: [(&str, Field); 4] = [
    ("metadata.name", Field::Name),
    ("metadata.namespace", Field::Namespace),
    ("status.phase", Field::Phase),
    ("spec.nodeName", Field::Node),
];

impl Selector {
    /// The selectors of a query, or a sentence that says what is wrong with them.
    pub(super) fn from_query(query: &Query) -> Result<Self, String> {
        let text = |key| query.first(key).unwrap_or_default();
        let labels = split_outside_brackets(text("labelSelector"))
            .map(requirement)
            .collect::<Result<_, _>>()?;
        let fields = text("fieldSelector")
            .split(',')
            .filter(|term| !term.is_empty())
            .map(field)
            .collect::<Result<_, _>>()?;
        Ok(Self { labels, fields })
    }

    pub(super) fn matches(&self, pod: &Pod) -> bool {
        self.labels.iter().all(|requirement| {
            let value = pod.labels.get(&requirement.key).map(String::as_str);
            requirement.operator.accepts(value)
        }) && self.fields.iter().all(|(field, operator)| {
            operator.accepts(Some(match field {
                Field::Name => &pod.name,
                Field::Namespace => &pod.namespace,
                Field::Phase => &pod.phase,
                Field::Node => pod.node(),
            }))
        })
    }
}

/// The terms of a label selector: commas separate them, except between brackets.
fn split_outside_brackets(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_i32;
    text.split(move |char| {
        depth += i32::from(char == '(') - i32::from(char == ')');
        char == ',' && depth == 0
    })
    .map(str::trim)
    .filter(|term| !term.is_empty())
}

fn requirement(term: &str) -> Result<Requirement, String> {
    let unknown = || format!("unable to parse requirement: {term:?} in the label selector");
    let (key, operator) = if let Some((key, value)) = term.split_once("!=") {
        (key, Operator::NotIn(vec![value.trim().to_owned()]))
    } else if let Some((key, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        (key, Operator::In(vec![value.trim().to_owned()]))
    } else if let Some(key) = term.strip_prefix('!') {
        (key, Operator::Absent)
    } else if let Some((left, set)) = term.split_once('(') {
        let set = set.strip_suffix(')').ok_or_else(unknown)?;
        let set = set
            .split(',')
            .map(|value| value.trim().to_owned())
            .collect();
        match left.trim().split_once(' ') {
            Some((key, word)) if word.trim() == "in" => (key, Operator::In(set)),
            Some((key, word)) if word.trim() == "notin" => (key, Operator::NotIn(set)),
            _ => return Err(unknown()),
        }
    } else {
        (term, Operator::Exists)
    };
    let key = key.trim();
    let valid = |char: char| char.is_ascii_alphanumeric() || "-_./".contains(char);
    if key.is_empty() || !key.chars().all(valid) {
        return Err(unknown());
    }
    Ok(Requirement {
        key: key.to_owned(),
        operator,
    })
}

fn field(term: &str) -> Result<(Field, Operator), String> {
    let (label, value, equal) = if let Some((label, value)) = term.split_once("!=") {
        (label, value, false)
    } else if let Some((label, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        (label, value, true)
    } else {
        return Err(format!(
            "invalid field selector: {term:?}; can't understand it"
        ));
    };
    let Some((_, field)) = FIELDS.into_iter().find(|(name, _)| *name == label) else {
        let known = FIELDS.map(|(name, _)| name).join(", ");
        return Err(format!(
            "field label not supported: {label}; the stand-in supports {known}"
        ));
    };
    let set = vec![value.to_owned()];
    Ok((
        field,
        if equal {
            Operator::In(set)
        } else {
            Operator::NotIn(set)
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(query: &str) -> Result<Selector, String> {
        let uri = format!("/pods?{}", query.replace(' ', "%20"));
        Selector::from_query(&Query::from_uri(&uri.parse().unwrap()))
    }

    #[test]
    fn selectors_choose_the_pods_that_kubernetes_would() {
        let mut pod = Pod::running("web-0");
        pod.labels = [("app", "web"), ("tier", "front")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        for (query, matches) in [
            ("", true),
            ("labelSelector=app=web", true),
            ("labelSelector=app==web,tier=front", true),
            ("labelSelector=app=web,tier=back", false),
            ("labelSelector=app!=web", false),
            ("labelSelector=absent!=web", true),
            ("labelSelector=app in (api, web),tier", true),
            ("labelSelector=app in (api)", false),
            ("labelSelector=app notin (api,db)", true),
            ("labelSelector=absent notin (api)", true),
            ("labelSelector=app", true),
            ("labelSelector=absent", false),
            ("labelSelector=!app", false),
            ("labelSelector=!absent", true),
            ("fieldSelector=metadata.name=web-0", true),
            ("fieldSelector=metadata.name=web-1", false),
            ("fieldSelector=status.phase!=Running", false),
            (
                "fieldSelector=status.phase==Running,spec.nodeName=node-1",
                true,
            ),
            (
                "labelSelector=app=web&fieldSelector=metadata.namespace=other",
                false,
            ),
        ] {
            assert_eq!(selector(query).unwrap().matches(&pod), matches, "{query}");
        }
    }

    #[test]
    fn unknown_selector_is_an_error_that_names_it() {
        for (query, named) in [
            ("labelSelector=app near (web)", "app near (web)"),
            ("labelSelector=app in (web", "app in (web"),
            ("labelSelector=a b", "a b"),
            ("labelSelector==web", "=web"),
            (
                "fieldSelector=spec.restartPolicy=Always",
                "spec.restartPolicy",
            ),
            ("fieldSelector=metadata.name", "metadata.name"),
        ] {
            let error = selector(query).unwrap_err();
            assert!(error.contains(named), "{query}: {error}");
        }
    }
}
