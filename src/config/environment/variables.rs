//! Finds misspelt variables: `KUBE_TLS_PROXY_LISTN` would otherwise be ignored, and the proxy would run with a default.

use std::ffi::OsString;

use crate::{config::ServeArgs, quote};

/// A warning for each name that begins like the variable of a flag and is none.
pub(super) fn unknown(names: impl Iterator<Item = OsString>) -> Vec<String> {
    let known = ServeArgs::variables();
    let mut unknown: Vec<_> = names
        .filter_map(|name| name.into_string().ok())
        .filter(|name| !known.contains(name))
        .filter_map(|name| Some((name.strip_prefix(PREFIX)?.to_owned(), name)))
        .filter(|(rest, _)| !is_service_link(rest))
        .map(|(_, name)| warning(&name, &known))
        .collect();
    unknown.sort();
    unknown
}

/// Whether Kubernetes sets the variable in each pod beside a Service called `kube-tls-proxy`, or one whose name begins
/// with that: `…_SERVICE_HOST`, `…_SERVICE_PORT_HTTPS`, `…_PORT`, `…_PORT_443_TCP_ADDR`.
fn is_service_link(rest: &str) -> bool {
    let mut words = rest.split('_').skip_while(|word| *word != "PORT").skip(1);
    let is_port = rest == "PORT" || words.next().is_some_and(|word| word.parse::<u16>().is_ok());
    is_port
        || rest.contains("SERVICE_HOST")
        || rest.contains("SERVICE_PORT")
        || rest.ends_with("_PORT")
}

fn warning(name: &str, known: &[String]) -> String {
    let likeness = |known: &String| strsim::jaro_winkler(name, known);
    // All of them begin alike, so that even strangers are 0.9 alike.
    let nearest = known
        .iter()
        .map(|known| {
            (
                strsim::damerau_levenshtein(name, known),
                likeness(known),
                known,
            )
        })
        .filter(|(edits, ..)| *edits <= MAX_EDITS)
        .min_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)))
        .map(|(.., known)| known);
    let name = quote::name(name);
    match nearest {
        Some(nearest) => {
            format!(
                "the environment variable {name} is unknown and has no effect; did you mean {nearest}?"
            )
        }
        None => format!(
            "the environment variable {name} is unknown and has no effect; remove it, or look up its flag in \
             `kube-tls-proxy serve --help`"
        ),
    }
}

const PREFIX: &str = "KUBE_TLS_PROXY_";
/// More is another word.
const MAX_EDITS: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn warnings(names: &[&str]) -> Vec<String> {
        unknown(names.iter().map(Into::into))
    }

    #[test]
    fn misspelt_variable_names_the_nearest_one() {
        for (name, nearest) in [
            ("KUBE_TLS_PROXY_LISTN", "LISTEN"),
            ("KUBE_TLS_PROXY_UPSTREAM_CS", "UPSTREAM_CA"),
            ("KUBE_TLS_PROXY_DRAIN_TIMOUT", "DRAIN_TIMEOUT"),
            ("KUBE_TLS_PROXY_NO_ACESS_LOG", "NO_ACCESS_LOG"),
        ] {
            let expected = format!(
                "the environment variable {name} is unknown and has no effect; did you mean KUBE_TLS_PROXY_{nearest}?"
            );
            assert_eq!(warnings(&[name]), [expected]);
        }
        let warning = warnings(&["KUBE_TLS_PROXY_TELEMETRY"]).remove(0);
        assert!(
            warning.contains("KUBE_TLS_PROXY_TELEMETRY is unknown"),
            "{warning}"
        );
        assert!(!warning.contains("did you mean"), "{warning}");
    }

    #[test]
    fn known_variables_and_service_links_are_not_reported() {
        let known = ServeArgs::variables();
        assert!(known.len() > 15, "{known:?}");
        let known: Vec<_> = known.iter().map(String::as_str).collect();
        assert_eq!(warnings(&known), Vec::<String>::new());
        let links = [
            "KUBE_TLS_PROXY_SERVICE_HOST",
            "KUBE_TLS_PROXY_SERVICE_PORT_HTTPS",
            "KUBE_TLS_PROXY_PORT",
            "KUBE_TLS_PROXY_PORT_443_TCP",
            "KUBE_TLS_PROXY_PORT_443_TCP_ADDR",
            "KUBE_TLS_PROXY_METRICS_SERVICE_HOST",
            "KUBE_TLS_PROXY_METRICS_PORT",
            "KUBE_TLS_PROXY_METRICS_PORT_9090_TCP_PROTO",
            "PATH",
            "kube_tls_proxy_listn",
        ];
        assert_eq!(warnings(&links), Vec::<String>::new());
    }
}
