//! Metrics: each worker has its own counters, and a scrape sums them.
//!
//! Labels never contain client input: verbs, resources and codes come from closed sets, and unknown values
//! share one label, so cardinality is bounded.

mod counters;
mod exposition;
mod families;
mod labels;
mod requests;
mod values;

pub use counters::{Connected, ConnectionStats, Counters, Metrics, RequestRecord};
pub use exposition::{CONTENT_TYPE, Exposition, Label};
pub use families::{FAMILIES, Family, MetricKind, reference, *};
pub use labels::{
    Dialled, ErrorReason, Handshake, LabelSet, LeaseEnd, LeaseFrom, Limit, Protocol, Reloaded,
    TunnelEnd, Verb,
};
pub use requests::{Requests, Resource};
pub use values::{Counter, Gauge, Histogram, MetricValue, Per, PerCluster};
