//! `kubectl get -w`.

use std::time::{Duration, Instant};

use crate::kubectl::Kubectl;
use crate::suite::{on_both, shared};

#[test]
fn watch_shows_an_event_within_two_seconds() {
    let Some(suite) = shared() else { return };
    on_both(|route| {
        let kubectl = Kubectl::new(&suite, route);
        let label = format!("watched-by={}", route.name());
        let create = |name: &str| {
            let name = format!("{name}-{}", route.name());
            kubectl.run(&["create", "configmap", &name]).ok();
            kubectl.run(&["label", "configmap", &name, &label]).ok();
            format!("configmap/{name}")
        };
        let watch = kubectl.start(&["get", "configmaps", "-l", &label, "-w", "-o", "name"]);
        // The first object proves that the watch, or the list before it, has started.
        let first = create("event-1");
        assert_eq!(watch.line(Duration::from_secs(30)).text, first);
        for name in ["event-2", "event-3"] {
            let expected = create(name);
            let created = Instant::now();
            assert_eq!(watch.line(Duration::from_secs(5)).text, expected);
            assert!(
                created.elapsed() < Duration::from_secs(2),
                "{:?}",
                created.elapsed()
            );
        }
    });
}
