//! Translates the manifests of an ingress into a configuration file: `HTTPProxy`, Ingress and the Gateway API.
//!
//! Every field of every object is accounted for (`object.rs`). A field that restricts clients is translated or is an
//! error; the apiserver is always verified, whatever the manifests say.

mod annotations;
mod apiserver;
mod contour;
mod draft;
mod gateway;
mod ingress;
mod known;
mod limits;
mod node;
mod object;

use std::{path::PathBuf, rc::Rc};

use base64::{Engine as _, prelude::BASE64_STANDARD};

pub use self::{
    draft::{ConfigFileSource, FilePlacement},
    object::{FieldReport, FieldVerdict},
};
use self::{
    draft::{Draft, DraftCluster, PemSource},
    node::ManifestNode,
    object::{ManifestField, ManifestObject},
};
use crate::config::{ConfigError, FileKind, Position, SettingError, manifest_documents};

/// A file with manifests.
#[derive(Debug)]
pub struct ManifestFile {
    /// Its name in messages.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
}

/// The configuration, and what became of every field.
#[derive(Debug)]
pub struct Translation {
    /// The configuration file, in YAML.
    pub config: String,
    /// Every field of every object, in the order of the files.
    pub fields: Vec<FieldReport>,
    /// The files that the configuration names.
    pub files: Vec<ConfigFileSource>,
}

/// Translates the manifests in these files.
///
/// # Errors
///
/// Every object that cannot be translated, each with its first problem.
pub fn translate(
    files: &[ManifestFile],
    placement: FilePlacement,
) -> Result<Translation, Vec<ConfigError>> {
    let manifests = Manifests::read(files)?;
    let mut draft = Draft::default();
    let mut errors = Vec::new();
    for object in &manifests.objects {
        let done = match (object.group.as_str(), object.kind.as_str()) {
            ("projectcontour.io", "HTTPProxy") => {
                contour::translate(object, &manifests, &mut draft)
            }
            ("networking.k8s.io" | "extensions", "Ingress") => {
                ingress::translate(object, &manifests, &mut draft)
            }
            ("gateway.networking.k8s.io", "HTTPRoute") => {
                gateway::translate_http(object, &manifests, &mut draft)
            }
            ("gateway.networking.k8s.io", "TLSRoute") => {
                gateway::translate_tls(object, &manifests, &mut draft)
            }
            (group, kind) => match known::refusal(group, kind) {
                Some(reason) => Err(object.root().error(reason)),
                None => continue,
            },
        };
        errors.extend(done.err());
    }
    if errors.is_empty() && draft.clusters.is_empty() {
        errors.extend(files.first().map(nothing));
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let (config, named) = draft
        .render(placement, &manifests)
        .map_err(|error| vec![error])?;
    let fields = manifests.objects.iter().flat_map(ManifestObject::report);
    Ok(Translation {
        config,
        fields: fields.collect(),
        files: named,
    })
}

fn nothing(file: &ManifestFile) -> ConfigError {
    ConfigError::File {
        kind: FileKind::Manifest,
        file: file.path.clone(),
        at: Some(Position { line: 1, column: 1 }),
        excerpt: None,
        source: Box::new(SettingError::Manifest {
            field: "kind".into(),
            problem: "no object publishes a host; give an HTTPProxy with a virtual host, an Ingress, an HTTPRoute or a TLSRoute".into(),
        }),
    }
}

/// All objects of the files, in their order.
#[derive(Debug)]
struct Manifests {
    objects: Vec<ManifestObject>,
}

impl Manifests {
    fn read(files: &[ManifestFile]) -> Result<Self, Vec<ConfigError>> {
        let (mut objects, mut errors) = (Vec::new(), Vec::new());
        for file in files {
            let documents = match manifest_documents(&file.path, &file.text) {
                Ok(documents) => documents,
                Err(error) => {
                    errors.push(error);
                    continue;
                }
            };
            let text: Rc<str> = file.text.as_str().into();
            for document in documents {
                let node = ManifestNode::from(document);
                read_object(file, &text, node, None, &mut objects, &mut errors);
            }
        }
        for object in &objects {
            errors.extend(object.check_unique(&objects).err());
        }
        if errors.is_empty() {
            Ok(Self { objects })
        } else {
            Err(errors)
        }
    }

    fn find(
        &self,
        group: &str,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> Option<&ManifestObject> {
        let mut objects = self.all(group, kind);
        objects.find(|object| object.namespace == namespace && object.name == name)
    }

    /// Like [`Self::find`], for a Gateway or a `ListenerSet`, which had another API group at first.
    fn find_gateway(&self, kind: &str, namespace: &str, name: &str) -> Option<&ManifestObject> {
        let mut objects = self.objects.iter();
        objects.find(|object| {
            object.kind == kind
                && object.group.starts_with("gateway.networking.")
                && object.namespace == namespace
                && object.name == name
        })
    }

    fn all(&self, group: &str, kind: &str) -> impl Iterator<Item = &ManifestObject> {
        let objects = self.objects.iter();
        objects.filter(move |object| object.group == group && object.kind == kind)
    }

    /// The Secret or `ConfigMap`, if the files have it.
    fn find_source(&self, source: &PemSource) -> Option<&ManifestObject> {
        self.find("", source.kind, &source.namespace, &source.name)
    }

    /// Whether the files have the Secret or `ConfigMap`, with the key.
    fn has_key(&self, source: &PemSource) -> Result<bool, ConfigError> {
        let object = self.find_source(source);
        let value = object.map_or(Ok(None), |object| object.value_of(source.key))?;
        Ok(value.is_some())
    }

    /// The certificates in a key of a Secret or `ConfigMap`, if the files have the object. Marks the key as used.
    fn pem(&self, source: &PemSource) -> Result<Option<String>, ConfigError> {
        let Some(object) = self.find_source(source) else {
            return Ok(None);
        };
        let Some((field, is_encoded)) = object.value_of(source.key)? else {
            return Err(object.root().error(format!(
                "it has no key `{}`, which another object needs; add it",
                source.key
            )));
        };
        let text = field.text()?.to_owned();
        let text = if is_encoded {
            let bytes: String = text.split_ascii_whitespace().collect();
            let decoded = BASE64_STANDARD.decode(bytes).ok();
            decoded
                .and_then(|bytes| String::from_utf8(bytes).ok())
                .ok_or_else(|| {
                    field.error(
                        "the value is not base64 of text; encode the PEM with `base64 --wrap=0`",
                    )
                })?
        } else {
            text
        };
        // The file is written as it is, so nothing but certificates or lists may be in it.
        if text.contains("PRIVATE KEY") {
            return Err(field.error("a private key is beside the certificates of the CA; remove it there, and take care that it was not read"));
        }
        if !text.contains("-----BEGIN CERTIFICATE-----")
            && !text.contains("-----BEGIN X509 CRL-----")
        {
            return Err(field
                .error("it is not PEM with a certificate; put the certificate of the CA there"));
        }
        field.used("the content of a file that the configuration names");
        Ok(Some(text))
    }
}

impl ManifestObject {
    /// The value of a key of this Secret or `ConfigMap`, and whether it is in base64.
    fn value_of(&self, key: &str) -> Result<Option<(ManifestField<'_>, bool)>, ConfigError> {
        let mut found = None;
        // As in Kubernetes, `stringData` replaces what `data` says.
        for (section, is_encoded) in [("data", self.kind == "Secret"), ("stringData", false)] {
            if let Some(section) = self.root().get(section)?
                && let Some(field) = section.get(key)?
            {
                found = Some((field, is_encoded));
            }
        }
        Ok(found)
    }

    /// Refuses a second object of the same name: which of them counts would be chance.
    fn check_unique(&self, objects: &[Self]) -> Result<(), ConfigError> {
        let is_same = |other: &&Self| {
            other.group == self.group
                && other.kind == self.kind
                && other.namespace == self.namespace
                && other.name == self.name
        };
        let first = objects.iter().find(is_same);
        if first.is_none_or(|first| std::ptr::eq(first, self)) || self.name.is_empty() {
            return Ok(());
        }
        Err(self
            .root()
            .error("another object has the same kind, namespace and name; remove one of the two"))
    }
}

/// Adds the object in `node`, and if it is a list, the objects in it. `of_list` is what the items of a typed list are,
/// such as those of an `IngressList`, which need not say it.
fn read_object(
    file: &ManifestFile,
    text: &Rc<str>,
    node: ManifestNode,
    of_list: Option<(&str, &str)>,
    objects: &mut Vec<ManifestObject>,
    errors: &mut Vec<ConfigError>,
) {
    let mut object = match ManifestObject::new(file.path.clone(), Rc::clone(text), node, of_list) {
        Ok(object) => object,
        Err(error) => return errors.push(error),
    };
    let items = object.take_items();
    let (version, kind) = (object.version(), object.kind.clone());
    let of_items = kind
        .strip_suffix("List")
        .filter(|kind| !kind.is_empty())
        .map(|kind| (version.as_str(), kind));
    objects.push(object);
    for item in items {
        read_object(file, text, item, of_items, objects, errors);
    }
}

/// Body of the fuzz target `manifests`: whatever the text is, the reader ends, and a configuration that it makes names
/// at least one cluster.
pub(crate) fn fuzz(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else {
        return;
    };
    let file = ManifestFile {
        path: PathBuf::from("fuzz.yaml"),
        text: text.to_owned(),
    };
    match translate(&[file], FilePlacement::Mounted) {
        Ok(translation) => {
            assert!(
                translation.config.contains("clusters:"),
                "{}",
                translation.config
            );
            assert!(!translation.fields.is_empty(), "no field is accounted for");
        }
        Err(errors) => assert!(!errors.is_empty(), "a refusal says why"),
    }
}

/// The error for a path that does not lead all requests to the apiserver.
fn other_path(field: &ManifestField<'_>) -> ConfigError {
    field.error("only the path prefix `/` can lead to an apiserver, because clients ask for many paths; write `/`, and give what is not the apiserver a host of its own")
}

/// Takes the CA of client certificates, which `field` names, with its revocation list if the files have it.
fn client_ca<'a>(
    ca: PemSource,
    field: &ManifestField<'a>,
    manifests: &'a Manifests,
    cluster: &mut DraftCluster<'a>,
) -> Result<(), ConfigError> {
    if cluster.client_ca.as_ref().is_some_and(|old| *old != ca) {
        return Err(field.error(
            "this is another CA of clients than the one before it; put both into one object",
        ));
    }
    field.used(format!(
        "`clientCertificates.ca`, from {ca}: the name in a certificate becomes the user for the apiserver, so this CA must issue certificates only to users; also needed is a front-proxy certificate in /etc/kube-tls-proxy/front-proxy, or `impersonate` in place of `frontProxy`, see docs/client-certificates.md"
    ));
    // ingress-nginx checks this list if the Secret has it.
    let crl = ca.with_key("ca.crl");
    if manifests.has_key(&crl)? {
        cluster.client_crl = Some(crl);
    }
    cluster.client_ca = Some(ca);
    Ok(())
}
