//! Counts what happens: one set of counters for each worker, summed when somebody asks.
//!
//! No label is ever the text of a client: verbs, resources and codes come from closed sets, and what is
//! in none of them shares one label. Workers share no counter, so counting costs them no cache line.

mod connection_stats;
mod counts;
mod errors;
mod exposition;
mod families;
mod guards;
mod histogram;
mod labels;
mod open;
mod process;
mod requests;
mod resources;
mod total;

pub use connection_stats::ConnectionStats;
pub use counts::{Counters, RequestRecord};
pub use errors::{REASONS, RecentError};
pub use exposition::{CONTENT_TYPE, Exposition, Label};
pub use families::{FAMILIES, Family, MetricKind, reference, *};
pub use guards::Connected;
pub use histogram::Buckets;
pub use labels::{Dialled, Handshake, LeaseEnd, LeaseFrom, Limit, Protocol, Reloaded, Verb};
pub use open::{LongLived, OpenStream, StreamInfo};
pub use process::{Process, unix_seconds};
pub use resources::Resource;
pub use total::{Metrics, MetricsSnapshot};
