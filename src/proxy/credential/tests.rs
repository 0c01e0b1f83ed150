//! Spellings of credentials, and what kube-apiserver makes of them: `bearertoken.go`, `websocket/protocol.go`, and the
//! two readers of unverified claims, `serviceaccount/jwt.go` and `oidc.go`.

use super::*;

const CLAIMS: &str = r#"{"iss":"https://login.test","sub":"jane"}"#;

fn jwt(claims: impl AsRef<[u8]>) -> String {
    format!("e30.{}.c2ln", BASE64URL.encode(claims))
}

fn headers(fields: &[(&'static str, &[u8])]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(*name, HeaderValue::from_bytes(value).unwrap());
    }
    headers
}

fn read(
    fields: &[(&'static str, &[u8])],
    is_websocket: bool,
) -> Result<Credentials, CredentialError> {
    let upgrade = is_websocket.then_some(UpgradeToken::WebSocket);
    Credentials::read(&headers(fields), upgrade, &CredentialCache::default())
}

fn kinds(credentials: &Credentials) -> Vec<&'static str> {
    let presented = credentials.presented();
    presented.map(|(kind, _issuer)| kind.name()).collect()
}

/// The kinds of a request with this `Authorization`.
fn kinds_of(authorization: impl AsRef<[u8]>) -> Vec<&'static str> {
    kinds(&read(&[("authorization", authorization.as_ref())], false).unwrap())
}

/// The kinds of a WebSocket upgrade with these subprotocols.
fn kinds_of_protocols(protocols: &str) -> Vec<&'static str> {
    kinds(&read(&[("sec-websocket-protocol", protocols.as_bytes())], true).unwrap())
}

/// Kind, issuer and subject of a JWT with these claims.
fn token(claims: impl AsRef<[u8]>) -> (&'static str, Option<String>, Option<String>) {
    let token = BearerToken::parse(&jwt(claims)).unwrap();
    let text = |text: Option<Box<str>>| text.map(String::from);
    (token.kind.name(), text(token.issuer), text(token.subject))
}

#[test]
fn authorization_is_read_as_the_apiserver_reads_it() {
    let jwt = jwt(CLAIMS);
    let spelled = |text: &str| text.replace("JWT", &jwt);
    for (text, kinds) in [
        ("Bearer JWT", &["jwt"][..]),
        ("bearer JWT", &["jwt"]),
        ("bEARER JWT", &["jwt"]),
        ("  Bearer JWT\t", &["jwt"]),
        ("\u{a0}Bearer JWT\u{2003}", &["jwt"]),
        // All words after the second one are ignored.
        ("Bearer JWT more", &["jwt"]),
        ("Bearer opaque JWT", &["opaque"]),
        ("Bearer opaque", &["opaque"]),
        // An empty second word.
        ("Bearer  JWT", &["none"]),
        ("Bearer ", &["none"]),
        ("Bearer", &["none"]),
        ("Bearer\tJWT", &["none"]),
        ("Bearer\u{a0}JWT", &["none"]),
        ("JWT", &["none"]),
        ("Token JWT", &["none"]),
        ("Bearer, JWT", &["none"]),
        ("", &["none"]),
        // The tab belongs to the token, but the apiserver's reader of JWTs removes white space.
        ("Bearer \tJWT", &["jwt"]),
        ("Basic eDp5", &["basic"]),
        ("BASIC eDp5", &["basic"]),
    ] {
        assert_eq!(kinds_of(spelled(text)), kinds, "{text:?}");
    }
    assert_eq!(kinds_of(b"Bearer a\xff"), ["opaque"]);
    assert_eq!(kinds_of(b"\xffBearer a"), ["none"]);
}

#[test]
fn second_authorization_field_is_an_error() {
    let same: &[u8] = b"Bearer a";
    for second in [same, b"Basic eDp5", b""] {
        let fields = [("authorization", same), ("authorization", second)];
        assert_eq!(
            read(&fields, false),
            Err(CredentialError::RepeatedAuthorization)
        );
    }
    assert_eq!(kinds(&read(&[], false).unwrap()), ["none"]);
}

#[test]
fn subprotocol_is_read_as_the_apiserver_reads_it() {
    let encoded = |text: &str| format!("{WEBSOCKET_TOKEN}{}", BASE64URL.encode(text));
    let jwt = encoded(&jwt(CLAIMS));
    let folded = encoded(
        &self::jwt(CLAIMS)
            .replace("c2ln", "c2\nln")
            .replacen('.', ".\r\n", 1),
    );
    for (protocols, kinds) in [
        (format!("v4.channel.k8s.io, {jwt}"), &["jwt"][..]),
        (format!("{jwt},v4.channel.k8s.io"), &["jwt"]),
        (format!("v4.channel.k8s.io,\t{jwt}\t"), &["jwt"]),
        (format!("v4.channel.k8s.io,\u{a0}{jwt}"), &["jwt"]),
        // Go's decoder of base64 skips line breaks.
        (folded, &["jwt"]),
        (encoded("opaque"), &["opaque"]),
        (format!("{WEBSOCKET_TOKEN}no base64"), &["opaque"]),
        (format!("{WEBSOCKET_TOKEN}_w"), &["opaque"]),
        // The apiserver ignores an empty token, and any other subprotocol.
        (WEBSOCKET_TOKEN.to_owned(), &["none"]),
        (jwt.replace("base64url", "Base64url"), &["none"]),
        (format!("x{jwt}"), &["none"]),
    ] {
        assert_eq!(kinds_of_protocols(&protocols), kinds, "{protocols}");
    }
    for protocols in [
        format!("{jwt}, {jwt}"),
        format!("{WEBSOCKET_TOKEN}, {jwt}"),
        format!("{jwt}, {WEBSOCKET_TOKEN}"),
    ] {
        let fields = [("sec-websocket-protocol", protocols.as_bytes())];
        let read = read(&fields, true);
        assert_eq!(
            read,
            Err(CredentialError::RepeatedSubprotocol),
            "{protocols}"
        );
    }
    let lines = [("sec-websocket-protocol", jwt.as_bytes()); 2];
    assert_eq!(
        read(&lines, true),
        Err(CredentialError::RepeatedSubprotocol)
    );
}

/// Without this, a token that the apiserver ignores would pass for a credential.
#[test]
fn subprotocol_counts_only_in_an_upgrade() {
    let protocol = format!("{WEBSOCKET_TOKEN}{}", BASE64URL.encode(jwt(CLAIMS)));
    let protocol = ("sec-websocket-protocol", protocol.as_bytes());
    let of = |fields: &[_], is_websocket| kinds(&read(fields, is_websocket).unwrap());
    assert_eq!(of(&[protocol], true), ["jwt"]);
    assert_eq!(of(&[protocol], false), ["none"]);
}

#[test]
fn two_tokens_name_no_user() {
    let bearer = format!("Bearer {}", jwt(CLAIMS));
    let protocol = format!("{WEBSOCKET_TOKEN}{}", BASE64URL.encode("opaque"));
    let both = [
        ("authorization", bearer.as_bytes()),
        ("sec-websocket-protocol", protocol.as_bytes()),
    ];
    let credentials = read(&both, true).unwrap();
    assert_eq!(kinds(&credentials), ["jwt", "opaque"]);
    assert_eq!(credentials.into_only_token(), None);
    for one in [&both[..1], &both[1..]] {
        assert!(read(one, true).unwrap().into_only_token().is_some());
    }
    assert_eq!(read(&[], true).unwrap().into_only_token(), None);
}

#[test]
fn kind_issuer_and_subject_are_read_of_claims() {
    let account = r#""sub":"system:serviceaccount:ns:sa","iss":"https://kubernetes.default.svc""#;
    let bound = r#""kubernetes.io":{"namespace":"ns","serviceaccount":{"name":"sa","uid":"1"}}"#;
    let name = Some("system:serviceaccount:ns:sa");
    let issuer = Some("https://kubernetes.default.svc");
    for (claims, expected) in [
        (
            CLAIMS.to_owned(),
            ("jwt", Some("https://login.test"), Some("jane")),
        ),
        ("{}".to_owned(), ("jwt", None, None)),
        (" \r\n\t{ } ".to_owned(), ("jwt", None, None)),
        (r#"{"iss":1,"sub":["x"]}"#.to_owned(), ("jwt", None, None)),
        (r#"{"iss":null,"sub":{}}"#.to_owned(), ("jwt", None, None)),
        // A number that no float holds, in a claim that decides nothing.
        (
            r#"{"exp":1e999,"sub":"a"}"#.to_owned(),
            ("jwt", None, Some("a")),
        ),
        (
            format!("{{{account},{bound}}}"),
            ("serviceAccount", issuer, name),
        ),
        (
            format!("{{{bound},{account}}}"),
            ("serviceAccount", issuer, name),
        ),
        // The apiserver takes the name from the claim of service accounts, so another subject is no name.
        (
            format!(r#"{{"sub":"admin",{bound}}}"#),
            ("serviceAccount", None, None),
        ),
        (
            r#"{"kubernetes.io":1,"sub":"a"}"#.to_owned(),
            ("serviceAccount", None, None),
        ),
        (
            r#"{"iss":"kubernetes/serviceaccount","sub":"system:serviceaccount:ns:sa",
                "kubernetes.io/serviceaccount/namespace":"ns",
                "kubernetes.io/serviceaccount/service-account.name":"sa"}"#
                .to_owned(),
            ("serviceAccount", Some("kubernetes/serviceaccount"), name),
        ),
        (
            r#"{"iss":"kubernetes/serviceaccount"}"#.to_owned(),
            ("serviceAccount", Some("kubernetes/serviceaccount"), None),
        ),
        (
            r#"{"kubernetes.io/serviceaccount/secret.name":"x","sub":"a"}"#.to_owned(),
            ("serviceAccount", None, None),
        ),
        // Go's decoder compares names in any case, with the two letters beyond ASCII that fold to ASCII.
        (
            r#"{"ISS":"https://login.test","sub":"jane"}"#.to_owned(),
            ("jwt", Some("https://login.test"), Some("jane")),
        ),
        ("{\"i\u{17f}s\":\"x\"}".to_owned(), ("jwt", Some("x"), None)),
        (
            "{\"\u{212a}ubernetes.io\":{}}".to_owned(),
            ("serviceAccount", None, None),
        ),
        // No authenticator takes the name from another spelling.
        (r#"{"SUB":"jane"}"#.to_owned(), ("jwt", None, None)),
        (
            r#"{"\u0073ub":"jane"}"#.to_owned(),
            ("jwt", None, Some("jane")),
        ),
    ] {
        let (kind, issuer, subject) = token(&claims);
        let found = (kind, issuer.as_deref(), subject.as_deref());
        assert_eq!(found, expected, "{claims}");
    }
    let broken = token(b"{\"sub\":\"a\xffb\"}");
    assert_eq!(broken.2.as_deref(), Some("a\u{fffd}b"));
}

/// Decoders read such claims in two ways, so no decision may depend on them.
#[test]
fn ambiguous_claims_are_an_error() {
    let long = format!(r#"{{"sub":"{}"}}"#, "x".repeat(MAX_PAYLOAD));
    for claims in [
        r#"{"iss":"a","iss":"b"}"#,
        r#"{"iss":"a","ISS":"a"}"#,
        "{\"sub\":\"a\",\"\u{17f}ub\":\"b\"}",
        r#"{"kubernetes.io":{},"Kubernetes.io":{}}"#,
        r#"{"sub":"a""#,
        r#"{"sub":"a"} x"#,
        r#"{"sub":"\ud800"}"#,
        r#"{"\ud800":1}"#,
        r#"{"iss":1e999}"#,
        "{no json",
        long.as_str(),
    ] {
        let parsed = BearerToken::parse(&jwt(claims));
        assert_eq!(parsed, Err(CredentialError::Claims), "{:.40}", claims);
    }
}

#[test]
fn token_that_is_no_jwt_is_opaque() {
    for token in [
        "abc".to_owned(),
        "e30.e30".to_owned(),
        "e30.e30.c.d".to_owned(),
        "e30.e!0.c".to_owned(),
        jwt("[]"),
        jwt("null"),
        jwt("\"text\""),
        jwt("\u{feff}{}"),
        "..".to_owned(),
        String::new(),
    ] {
        assert_eq!(
            BearerToken::parse(&token),
            Ok(BearerToken::OPAQUE),
            "{token}"
        );
    }
    // Only the payload decides, as for the apiserver.
    let odd = [
        jwt(CLAIMS).replace("e30.", "!."),
        jwt(CLAIMS).replace(".c2ln", "."),
        // The last bits belong to no byte.
        "e30.e31.c2ln".to_owned(),
        "e30.e30=.c2ln".to_owned(),
    ];
    for token in odd {
        let kind = BearerToken::parse(&token).unwrap().kind;
        assert_eq!(kind, CredentialKind::Jwt, "{token}");
    }
}

/// A parser that recursed would overflow the stack.
#[test]
fn deep_claims_are_skipped() {
    let nested = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    let claims = format!(r#"{{"a":{nested},"sub":"jane"}}"#);
    assert_eq!(token(&claims).2.as_deref(), Some("jane"));
    let claims = format!(r#"{{"iss":{nested}}}"#);
    assert_eq!(
        BearerToken::parse(&jwt(claims)),
        Err(CredentialError::Claims)
    );
}

#[test]
fn connection_remembers_few_and_short_tokens() {
    let cache = CredentialCache::default();
    let cached = || cache.0.lock().unwrap().len();
    let named = |name: &str| jwt(format!(r#"{{"sub":"{name}"}}"#));
    let first = cache.read(&named("0")).unwrap();
    assert!(Arc::ptr_eq(&first, &cache.read(&named("0")).unwrap()));
    // The same claims, but not the same bytes.
    let other = cache.read(&named("0").replace("c2ln", "c2lo")).unwrap();
    assert!(first == other && !Arc::ptr_eq(&first, &other));
    for name in 1..100 {
        let name = name.to_string();
        assert_eq!(
            cache.read(&named(&name)).unwrap().subject.as_deref(),
            Some(&*name)
        );
    }
    assert_eq!(cached(), MAX_CACHED);
    assert!(!Arc::ptr_eq(&first, &cache.read(&named("0")).unwrap()));
    let before: Vec<Box<str>> = cache
        .0
        .lock()
        .unwrap()
        .iter()
        .map(|known| known.text.clone())
        .collect();
    cache.read("opaque").unwrap();
    cache.read(&named(&"x".repeat(MAX_CACHED_TOKEN))).unwrap();
    let after: Vec<Box<str>> = cache
        .0
        .lock()
        .unwrap()
        .iter()
        .map(|known| known.text.clone())
        .collect();
    assert_eq!(before, after);
    assert_eq!(format!("{cache:?}"), "CredentialCache");
}
