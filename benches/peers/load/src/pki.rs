//! The keys and certificates of one run: a chain like a public one for the proxy, a cluster CA with the
//! apiserver's certificate, and certificates of apiservers that a proxy has to refuse.

use std::{fs, path::Path};

use standin::pki::{Ca, Identity};

use crate::Error;

/// The name that clients use.
pub(crate) const FRONT_NAME: &str = "kube.example.com";
/// The name that the proxy has to verify in the apiserver's certificate.
pub(crate) const UPSTREAM_NAME: &str = "kubernetes.default.svc";

/// Writes all of them as PEM into an existing folder.
///
/// # Errors
///
/// When a file cannot be written.
pub(crate) fn write(folder: &Path) -> Result<(), Error> {
    let root = Ca::new("peers public root");
    let front = root.intermediate("peers public E1").server(&[FRONT_NAME]);
    put(folder, "front-ca.crt", &root.pem())?;
    put_identity(folder, "front", &front)?;
    // HAProxy reads chain and key from one file.
    put(
        folder,
        "front-bundle.pem",
        &(front.chain_pem() + front.key_pem()),
    )?;

    let cluster = Ca::new("kubernetes");
    let names = [
        "kubernetes",
        "kubernetes.default",
        UPSTREAM_NAME,
        "kubernetes.default.svc.cluster.local",
        "10.96.0.1",
    ];
    put(folder, "cluster-ca.crt", &cluster.pem())?;
    put_identity(folder, "good", &cluster.server(&names))?;
    // The same names from a CA with the same name: only the key of the CA differs.
    put_identity(folder, "wrong-ca", &Ca::new("kubernetes").server(&names))?;
    put_identity(
        folder,
        "wrong-name",
        &cluster.server(&["other.example.com"]),
    )?;
    let common_name = cluster
        .leaf(&["other.example.com"])
        .common_name(UPSTREAM_NAME);
    put_identity(folder, "name-in-cn", &common_name.build())
}

fn put_identity(folder: &Path, name: &str, identity: &Identity) -> Result<(), Error> {
    put(folder, &format!("{name}.crt"), &identity.chain_pem())?;
    put(folder, &format!("{name}.key"), identity.key_pem())
}

fn put(folder: &Path, name: &str, text: &str) -> Result<(), Error> {
    let path = folder.join(name);
    fs::write(&path, text).map_err(|err| format!("write {}: {err}", path.display()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_a_chain_for_the_front_and_one_leaf_for_every_upstream() {
        let dir = standin::TempDir::new();
        write(dir.path()).unwrap();
        let count = |name: &str| {
            let text = fs::read_to_string(dir.path().join(name)).unwrap();
            text.matches("BEGIN CERTIFICATE").count()
        };
        assert_eq!(count("front.crt"), 2, "leaf and intermediate");
        assert_eq!(count("front-bundle.pem"), 2);
        for name in ["good", "wrong-ca", "wrong-name", "name-in-cn"] {
            assert_eq!(count(&format!("{name}.crt")), 1, "{name}");
            assert!(dir.path().join(format!("{name}.key")).exists(), "{name}");
        }
    }

    #[test]
    fn says_which_file_it_could_not_write() {
        let err = write(Path::new("/nowhere/at/all")).unwrap_err().to_string();
        assert!(err.contains("/nowhere/at/all/front-ca.crt"), "{err}");
    }
}
