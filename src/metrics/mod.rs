//! Metrics: each worker has its own counters, and a scrape sums them.
//!
//! Labels never contain client input: verbs, resources and codes come from closed sets, and unknown values
//! share one label, so cardinality is bounded. The names of clusters come from the configuration.

mod clusters;
mod counters;
mod denials;
mod exposition;
mod families;
mod labels;
mod requests;
mod values;

pub use clusters::{ClusterLabel, ClusterLabels, ClusterSlot, PerCluster};
pub use counters::{
    ClusterCounters, Connected, ConnectionStats, Counters, Metrics, OpenStream, RequestRecord,
};
pub use denials::Denials;
pub use exposition::{Exposition, ExpositionFormat, Label};
pub use families::{FAMILIES, Family, MetricKind, reference, *};
pub use labels::{
    CodeClass, Dialled, ErrorReason, Handshake, Issued, LabelSet, LeaseEnd, LeaseFrom, Limit,
    Protocol, Reloaded, TunnelEnd, Verb,
};
pub use requests::{CLASSES, Requests, Resource};
pub use values::{BUCKETS, Counter, Gauge, Histogram, MetricValue, Per, PerWorker, quantile};
