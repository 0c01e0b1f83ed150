//! The key `inCluster` of a cluster: `true`, or keys that say how the apiservers of the pod's cluster are found.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, value::MapAccessDeserializer},
};

use super::{config_file::Parsed, error::SettingError};

/// Whether an entry is the cluster of the pod, and how its apiservers are found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum InCluster {
    /// It is another cluster.
    #[default]
    No,
    /// At the address of the Service `kubernetes`.
    Service,
    /// At the addresses that the cluster names, one for each apiserver.
    Endpoints,
}

/// How the apiservers of the pod's cluster are found.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(inline)]
struct InClusterSection {
    /// `endpoints`: read the addresses of all apiservers from the `EndpointSlice` of the Service `kubernetes`, with the
    /// token of the pod. By default the proxy uses the address of the Service, and no token.
    #[schemars(with = "Option<DiscoverName>")]
    discover: Option<Parsed<Discover>>,
}

/// The value of `discover`.
#[derive(Debug)]
struct Discover;

impl FromStr for Discover {
    type Err = SettingError;

    fn from_str(text: &str) -> Result<Self, SettingError> {
        match text {
            "endpoints" => Ok(Self),
            _ => Err(SettingError::invalid(
                text,
                "is not a way to find apiservers; write `endpoints`, or remove `discover`",
            )),
        }
    }
}

/// The spelling of [`Discover`] for the schema.
#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase", inline)]
#[expect(dead_code, reason = "only its schema is used")]
enum DiscoverName {
    Endpoints,
}

impl<'de> Deserialize<'de> for InCluster {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(BooleanOrKeys)
    }
}

struct BooleanOrKeys;

impl<'de> de::Visitor<'de> for BooleanOrKeys {
    type Value = InCluster;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a boolean, or keys such as `discover: endpoints`")
    }

    fn visit_bool<E: de::Error>(self, is_in_cluster: bool) -> Result<InCluster, E> {
        Ok(match is_in_cluster {
            true => InCluster::Service,
            false => InCluster::No,
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, keys: A) -> Result<InCluster, A::Error> {
        let section = InClusterSection::deserialize(MapAccessDeserializer::new(keys))?;
        Ok(match section.discover {
            Some(Parsed(Discover)) => InCluster::Endpoints,
            None => InCluster::Service,
        })
    }
}

impl JsonSchema for InCluster {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "InCluster".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let keys = InClusterSection::json_schema(generator);
        json_schema!({ "anyOf": [{ "type": "boolean" }, keys] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boolean_and_keys_say_how_apiservers_are_found() {
        for (text, expected) in [
            ("true", Some(InCluster::Service)),
            ("false", Some(InCluster::No)),
            ("{}", Some(InCluster::Service)),
            ("{\"discover\": null}", Some(InCluster::Service)),
            ("{\"discover\": \"endpoints\"}", Some(InCluster::Endpoints)),
            ("{\"discover\": true}", None),
            ("\"endpoints\"", None),
            ("[]", None),
        ] {
            let parsed: Result<InCluster, _> = serde_json::from_str(text);
            assert_eq!(parsed.ok(), expected, "{text}");
        }
    }
}
