//! Requests that access rules have denied, by rule.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Exposition, Family, Label, values::MetricValue};

/// The number of denied requests per rule. The configuration bounds the rules of a cluster, and a client cannot
/// choose the number of a rule.
#[derive(Debug, Default)]
pub struct Denials(Mutex<Vec<u64>>);

impl Denials {
    /// Begins the series of this number of rules at 0, so that their first denial is an increase.
    pub(super) fn begin(&self, rules: usize) {
        drop(self.counts_of(rules));
    }

    /// Counts a request that this rule has denied, or that none has allowed. The first rule is 1.
    pub fn count(&self, rule: Option<u16>) {
        let place = usize::from(rule.unwrap_or(NO_RULE));
        if let Some(count) = self.counts_of(place.max(1)).get_mut(place) {
            *count += 1;
        }
    }

    /// All denied requests.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.counts().iter().sum()
    }

    /// The counts, among them those of this number of rules.
    fn counts_of(&self, rules: usize) -> MutexGuard<'_, Vec<u64>> {
        let mut counts = self.counts();
        if rules > 0 && counts.len() <= rules {
            counts.resize(rules + 1, 0);
        }
        counts
    }

    fn counts(&self) -> MutexGuard<'_, Vec<u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MetricValue for Denials {
    fn merge(&self, other: &Self) {
        let more = other.counts();
        let mut counts = self.counts_of(more.len().saturating_sub(1));
        for (count, more) in counts.iter_mut().zip(&*more) {
            *count += more;
        }
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "the values of an exposition are floats"
    )]
    fn expose(&self, family: &'static Family, labels: Vec<Label>, to: &mut Exposition) {
        for (number, count) in self.counts().iter().enumerate() {
            let rule = match number {
                0 => "none".into(),
                rule => rule.to_string().into(),
            };
            let mut labels = labels.clone();
            labels.push(("rule", rule));
            to.number(family, labels, *count as f64);
        }
    }
}

/// The place of the requests that no rule has allowed.
const NO_RULE: u16 = 0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{ACCESS_DENIED, ExpositionFormat};

    #[test]
    fn every_rule_of_a_cluster_has_a_series() {
        let (one, other, sum) = (Denials::default(), Denials::default(), Denials::default());
        let lines = |denials: &Denials| {
            let mut exposition = Exposition::new();
            denials.expose(
                &ACCESS_DENIED,
                vec![("cluster", "a".into())],
                &mut exposition,
            );
            let text = exposition.into_text(ExpositionFormat::Prometheus);
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        sum.begin(0);
        assert_eq!(lines(&sum), [""; 0], "a cluster without rules");
        one.count(Some(3));
        one.count(None);
        other.count(Some(3));
        for each in [&one, &other] {
            sum.merge(each);
        }
        sum.begin(4);
        let expected = [("none", 1), ("1", 0), ("2", 0), ("3", 2), ("4", 0)];
        let expected = expected.map(|(rule, count)| {
            format!("kube_tls_proxy_access_denied_total{{cluster=\"a\",rule=\"{rule}\"}} {count}")
        });
        assert_eq!(lines(&sum), expected);
        assert_eq!(sum.sum(), 3);
    }
}
