//! Certificates, keys and CAs that are refused.

use super::*;

#[test]
fn bad_certificates() {
    let fixture = Fixture::new();
    let mut differences = Differences::default();
    let ca = &fixture.ca;
    let leaf = ca.leaf(&["kube.example.com"]);
    let key = || leaf.key.clone();
    let middle = ca.intermediate("middle");
    let below = middle.leaf(&["kube.example.com"]);
    let (below_pem, below_key) = (below.pem.clone(), below.key.clone());
    let issue = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = params_of_leaf(&["kube.example.com"]);
        change(&mut params);
        ca.issue(&params)
    };
    let expired = issue(&|params| params.not_after = date_time_ymd(2026, 11, 1));
    let early = issue(&|params| params.not_before = date_time_ymd(2026, 12, 1));
    let unnamed = issue(&|params| params.subject_alt_names.clear());
    let client = issue(&|params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    let policy = issue(&|params| {
        // One policy, with the OID 1.2.3.4.
        let content = vec![0x30, 0x07, 0x30, 0x05, 0x06, 0x03, 0x2a, 0x03, 0x04];
        let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 32], content);
        extension.set_criticality(true);
        params.custom_extensions.push(extension);
    });
    let address = issue(&|params| {
        let name = "192.0.2.1".try_into().unwrap();
        params.subject_alt_names = vec![SanType::DnsName(name)];
    });
    let request = params_of_leaf(&["kube.example.com"])
        .serialize_request(&KeyPair::generate().unwrap())
        .unwrap();
    for (case, crt, key, expected) in [
        (
            "leaf last",
            format!("{}{}", middle.pem(), below.pem),
            below.key.clone(),
            "certificate DIR/bad.crt: its key matches certificate 2 of the file, so the certificate of the server is not first; put it first, and each issuer after the certificate that it issued",
        ),
        (
            "order",
            format!("{}{}{}", below.pem, ca.pem(), middle.pem()),
            below.key,
            "certificate DIR/bad.crt: certificate 2 (CN=root) is not the issuer of certificate 1 (CN=middle); put the certificate of the server first, each issuer after the certificate that it issued, and nothing else",
        ),
        (
            "expired",
            expired.pem,
            expired.key,
            "certificate DIR/bad.crt: expired on 2026-11-01T00:00:00Z; renew it, and if the date looks wrong, check the clock of this machine",
        ),
        (
            "early",
            early.pem,
            early.key,
            "certificate DIR/bad.crt: is not valid before 2026-12-01T00:00:00Z; check the clock of this machine, or wait until then",
        ),
        (
            "unnamed",
            unnamed.pem,
            unnamed.key,
            "certificate DIR/bad.crt: names no host: it has no DNS name or IP address as subjectAltName, and clients ignore the common name; issue a new one with the public host name as subjectAltName",
        ),
        (
            "client",
            client.pem,
            client.key,
            "certificate DIR/bad.crt: is not for TLS servers (its extended key usage lacks serverAuth); issue a new one with that usage",
        ),
        (
            "swapped",
            key(),
            leaf.pem.clone(),
            "certificate DIR/bad.crt: line 1: a PEM block `PRIVATE KEY` does not belong here; keep the key in a file of its own, and check that certificate and key are not swapped",
        ),
        (
            "combined",
            format!("{}{}", leaf.pem, leaf.key),
            key(),
            "certificate DIR/bad.crt: line 11: a PEM block `PRIVATE KEY` does not belong here; keep the key in a file of its own, and check that certificate and key are not swapped",
        ),
        (
            "csr",
            request.pem().unwrap(),
            key(),
            "certificate DIR/bad.crt: line 1: a PEM block `CERTIFICATE REQUEST` does not belong here; give the certificate that the issuer returned for this request",
        ),
        (
            "joined",
            format!("{}{}", below_pem.trim_end(), middle.pem()),
            below_key,
            "certificate DIR/bad.crt: line 10 ends one PEM block and begins another; put a line break between the two",
        ),
        (
            "garbage",
            GARBAGE.to_owned(),
            key(),
            "certificate DIR/bad.crt: certificate 1 of the file is not an X.509 certificate (unknown/unsupported ASN.1 DER tag: 0x00 at DER byte 1); replace it",
        ),
        (
            "cut",
            leaf.pem[..100].to_owned(),
            key(),
            "certificate DIR/bad.crt: the PEM block that begins on line 1 is damaged; copy the whole file again",
        ),
        (
            "not base64",
            leaf.pem.replace("MII", "!!!"),
            key(),
            "certificate DIR/bad.crt: the PEM block that begins on line 1 is damaged; copy the whole file again",
        ),
        (
            "empty",
            String::new(),
            key(),
            "certificate DIR/bad.crt: is empty; put the certificate of the server and its issuers there as PEM",
        ),
        (
            "der",
            "0\u{82}".to_owned(),
            key(),
            "certificate DIR/bad.crt: is in DER form; convert it with `openssl x509 -inform der -in DIR/bad.crt -out NEW_FILE`",
        ),
        (
            "pfx",
            "0\u{82}\u{1}\u{0}\u{2}\u{1}\u{3}".to_owned(),
            key(),
            "certificate DIR/bad.crt: is a PKCS#12 file; extract what belongs here with `openssl pkcs12 -in DIR/bad.crt -nokeys -out NEW_FILE`",
        ),
        (
            "parameters",
            pem("DH PARAMETERS", "AAAA"),
            key(),
            "certificate DIR/bad.crt: contains no certificate; put the certificate of the server and its issuers there as PEM",
        ),
        (
            "version 1",
            include_str!("../../pki/tests/testdata/v1-root.crt").to_owned(),
            key(),
            "certificate DIR/bad.crt: certificate 1 of the file (CN=old root) is not of version 3; issue it again as version 3",
        ),
        (
            "critical policy",
            policy.pem,
            policy.key,
            "certificate DIR/bad.crt: certificate 1 of the file (CN=server) has a critical extension that is not supported: certificatePolicies; issue it again with that extension not critical",
        ),
        (
            "address as a DNS name",
            address.pem,
            address.key,
            "certificate DIR/bad.crt: names no host: it has no DNS name or IP address as subjectAltName, and clients ignore the common name; issue a new one with the public host name as subjectAltName",
        ),
        (
            "UTF-16",
            "\u{ff}\u{fe}-\u{0}".to_owned(),
            key(),
            "certificate DIR/bad.crt: is in UTF-16, as `>` of PowerShell writes it; save it as ASCII (`Out-File -Encoding ascii`)",
        ),
    ] {
        fixture.scratch.write("bad.crt", latin1(&crt));
        fixture.scratch.write("bad.key", key);
        let line = format!("{UPSTREAM} --cert DIR/bad.crt --key DIR/bad.key");
        differences.compare(case, fixture.sentence(&line, &outside_of_a_pod()), expected);
    }
    differences.assert_none();
}

#[test]
fn bad_keys() {
    let fixture = Fixture::new();
    let mut differences = Differences::default();
    let leaf = fixture.ca.leaf(&["kube.example.com"]);
    let other = fixture.ca.leaf(&["kube.example.com"]);
    let public = KeyPair::generate().unwrap().public_key_pem();
    for (case, key, expected) in [
        (
            "of another",
            other.key.clone(),
            "key DIR/bad.key: does not match the certificate DIR/bad.crt; give the key that this certificate was issued for",
        ),
        (
            "certificate",
            leaf.pem.clone(),
            "key DIR/bad.key: line 1: a PEM block `CERTIFICATE` does not belong here; keep only the private key, and check that certificate and key are not swapped",
        ),
        (
            "empty",
            "\n".to_owned(),
            "key DIR/bad.key: is empty; put the private key of the certificate there as PEM",
        ),
        (
            "text",
            "secret".to_owned(),
            "key DIR/bad.key: contains no PEM block (`-----BEGIN …`); put the private key of the certificate there as PEM",
        ),
        (
            "encrypted",
            pem("ENCRYPTED PRIVATE KEY", "AAAA"),
            "key DIR/bad.key: the private key on line 1 is encrypted, and the proxy cannot ask for its passphrase; decrypt it with `openssl pkey -in DIR/bad.key -out NEW_FILE` and restrict who can read the new file",
        ),
        (
            "encrypted, old form",
            pem("RSA PRIVATE KEY", "Proc-Type: 4,ENCRYPTED\n\nAAAA"),
            "key DIR/bad.key: the private key on line 1 is encrypted, and the proxy cannot ask for its passphrase; decrypt it with `openssl pkey -in DIR/bad.key -out NEW_FILE` and restrict who can read the new file",
        ),
        (
            "two",
            format!("{}{}", leaf.key, other.key),
            "key DIR/bad.key: contains 2 private keys; keep only the key of the certificate",
        ),
        (
            "damaged",
            pem("PRIVATE KEY", "AAAA"),
            "key DIR/bad.key: the private key is damaged or of an unsupported kind; use ECDSA P-256 (or P-384, Ed25519, RSA from 2048 bits)",
        ),
        (
            "cut",
            leaf.key[..80].to_owned(),
            "key DIR/bad.key: the PEM block that begins on line 1 is damaged; copy the whole file again",
        ),
        (
            "public",
            public,
            "key DIR/bad.key: line 1: a PEM block `PUBLIC KEY` does not belong here; keep only the private key",
        ),
        (
            "line breaks became spaces",
            leaf.key.replace('\n', " "),
            "key DIR/bad.key: line 1 continues after `-----BEGIN PRIVATE KEY-----`, so the line breaks of the file are lost; copy it again, with its line breaks",
        ),
        (
            "line breaks became CR",
            leaf.key.replace('\n', "\r"),
            "key DIR/bad.key: line 1 continues after `-----BEGIN PRIVATE KEY-----`, so the line breaks of the file are lost; copy it again, with its line breaks",
        ),
        (
            "line breaks became letters",
            leaf.key
                .replace('\n', "\\n")
                .replace("PRIVATE KEY", "EC PRIVATE KEY"),
            "key DIR/bad.key: line 1 continues after `-----BEGIN EC PRIVATE KEY-----`, so the line breaks of the file are lost; copy it again, with its line breaks",
        ),
        (
            "label without an end",
            leaf.key.replace("KEY-----\n", "KEY"),
            "key DIR/bad.key: the PEM block that begins on line 1 is damaged; copy the whole file again",
        ),
        (
            "unknown kind",
            pem("MHcCAQEEIBs", "AAAA"),
            "key DIR/bad.key: line 1: a PEM block of an unknown kind does not belong here; keep only the private key",
        ),
        (
            "only parameters",
            pem("EC PARAMETERS", "AAAA"),
            "key DIR/bad.key: contains no private key; put the private key of the certificate there as PEM",
        ),
        (
            "der",
            "0\u{82}".to_owned(),
            "key DIR/bad.key: is in DER form; convert it with `openssl pkey -inform der -in DIR/bad.key -out NEW_FILE`",
        ),
        (
            "short der, PKCS#8",
            "0\u{81}\u{87}\u{2}\u{1}\u{0}".to_owned(),
            "key DIR/bad.key: is in DER form; convert it with `openssl pkey -inform der -in DIR/bad.key -out NEW_FILE`",
        ),
        (
            "short der, SEC1",
            "0w\u{2}\u{1}\u{1}".to_owned(),
            "key DIR/bad.key: is in DER form; convert it with `openssl pkey -inform der -in DIR/bad.key -out NEW_FILE`",
        ),
        (
            "text that begins with a zero",
            "0w".to_owned(),
            "key DIR/bad.key: contains no PEM block (`-----BEGIN …`); put the private key of the certificate there as PEM",
        ),
        (
            "pfx",
            "0\u{82}\u{1}\u{0}\u{2}\u{1}\u{3}".to_owned(),
            "key DIR/bad.key: is a PKCS#12 file; extract what belongs here with `openssl pkcs12 -in DIR/bad.key -nocerts -nodes -out NEW_FILE`",
        ),
    ] {
        fixture.scratch.write("bad.crt", &leaf.pem);
        fixture.scratch.write("bad.key", latin1(&key));
        let line = format!("{UPSTREAM} --cert DIR/bad.crt --key DIR/bad.key");
        differences.compare(case, fixture.sentence(&line, &outside_of_a_pod()), expected);
    }
    differences.assert_none();
}

#[test]
fn bad_cluster_cas() {
    let fixture = Fixture::new();
    let mut differences = Differences::default();
    let ca = &fixture.ca;
    let other = Ca::new("other");
    let expired = format!("{}{}", Ca::expired("old").pem(), Ca::expired("older").pem());
    for (case, text, expected) in [
        (
            "empty",
            String::new(),
            "CA DIR/bad-ca.crt: is empty; put the CA certificate of the cluster there as PEM",
        ),
        (
            "text",
            "hello".to_owned(),
            "CA DIR/bad-ca.crt: contains no PEM block (`-----BEGIN …`); put the CA certificate of the cluster there as PEM",
        ),
        (
            "key",
            ca.key(),
            "CA DIR/bad-ca.crt: line 1: a PEM block `PRIVATE KEY` does not belong here; keep only CA certificates, and treat that key as leaked if others can read this file",
        ),
        (
            "ca and key",
            format!("{}{}", ca.pem(), ca.key()),
            "CA DIR/bad-ca.crt: line 11: a PEM block `PRIVATE KEY` does not belong here; keep only CA certificates, and treat that key as leaked if others can read this file",
        ),
        (
            "expired",
            expired,
            "CA DIR/bad-ca.crt: every CA in it has expired, the last one on 2025-01-01T00:00:00Z; get the current CA of the cluster",
        ),
        (
            "joined",
            format!("{}{}", ca.pem().trim_end(), other.pem()),
            "CA DIR/bad-ca.crt: line 10 ends one PEM block and begins another; put a line break between the two",
        ),
        (
            "end without its begin",
            format!(
                "{}{}",
                ca.pem(),
                other.pem().replace("-----BEGIN", "----BEGIN")
            ),
            "CA DIR/bad-ca.crt: line 11 has hyphens around BEGIN or END, but not exactly five on each side; write it as `-----BEGIN …-----` or `-----END …-----`",
        ),
        (
            "end without any begin",
            format!(
                "{}{}",
                ca.pem(),
                other.pem().replace("-----BEGIN CERTIFICATE-----\n", "")
            ),
            "CA DIR/bad-ca.crt: the PEM block that ends on line 19 has no `-----BEGIN`; copy the whole file again",
        ),
        (
            "block within hyphens of other numbers",
            format!("{}{}", ca.pem(), other.pem().replace("-----", "------")),
            "CA DIR/bad-ca.crt: line 11 has hyphens around BEGIN or END, but not exactly five on each side; write it as `-----BEGIN …-----` or `-----END …-----`",
        ),
        (
            "leaf",
            ca.leaf(&["kubernetes"]).pem,
            "CA DIR/bad-ca.crt: certificate 1 of the file (CN=server) is no CA certificate (CA:FALSE), so it can verify no other; give the CA that issued it",
        ),
        (
            "short key",
            include_str!("../../pki/tests/testdata/rsa-1024-ca.crt").to_owned(),
            "CA DIR/bad-ca.crt: certificate 1 of the file (CN=short) has an RSA key of 1024 bits, so it can verify no other certificate; give the cluster a CA with an ECDSA P-256 key or an RSA key of 2048 bits or more",
        ),
        (
            "begin within a block",
            format!(
                "{}{}",
                ca.pem().replace("-----END CERTIFICATE-----\n", ""),
                other.pem()
            ),
            "CA DIR/bad-ca.crt: the PEM block that begins on line 1 is damaged; copy the whole file again",
        ),
        (
            "text after end",
            ca.pem().replace(
                "-----END CERTIFICATE-----",
                "-----END CERTIFICATE----- # our CA",
            ),
            "CA DIR/bad-ca.crt: line 10 has text after `-----END`; remove it",
        ),
        (
            "begin after other text",
            format!("our CA: {}{}", ca.pem(), other.pem()),
            "CA DIR/bad-ca.crt: line 1 has other text before its `-----BEGIN`; start a new line before `-----BEGIN`",
        ),
        (
            "garbage",
            GARBAGE.to_owned(),
            "CA DIR/bad-ca.crt: certificate 1 of the file is not an X.509 certificate (unknown/unsupported ASN.1 DER tag: 0x00 at DER byte 1); replace it",
        ),
        (
            "der",
            "0\u{82}".to_owned(),
            "CA DIR/bad-ca.crt: is in DER form; convert it with `openssl x509 -inform der -in DIR/bad-ca.crt -out NEW_FILE`",
        ),
        (
            "pfx",
            "0\u{82}\u{1}\u{0}\u{2}\u{1}\u{3}".to_owned(),
            "CA DIR/bad-ca.crt: is a PKCS#12 file; extract what belongs here with `openssl pkcs12 -in DIR/bad-ca.crt -nokeys -cacerts -out NEW_FILE`",
        ),
    ] {
        fixture.scratch.write("bad-ca.crt", latin1(&text));
        let line = format!("{CERT} --upstream https://10.0.0.1 --upstream-ca DIR/bad-ca.crt");
        differences.compare(case, fixture.sentence(&line, &outside_of_a_pod()), expected);
    }
    differences.assert_none();
}
