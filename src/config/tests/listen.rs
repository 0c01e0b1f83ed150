//! Entries of `listen`, and which peers may connect.

use super::*;
use crate::config::{Admission, ListenConfig, PeerPolicy, peers_of};

#[test]
fn entries_of_listen_have_lists() {
    let text = "
listen:
- '[::]:1'
- address: ':2'
  proxyProtocol: {from: [10.0.0.0/8, 'fd00::/8']}
  allow: [192.0.2.0/24, 10.0.0.9]
  deny: [192.0.2.7]
trustedProxies: [10.1.0.0/16]
";
    let config = with_config(enough(), text);
    let [plain, listed] = &config.listen[..] else {
        panic!("{:?}", config.listen);
    };
    assert_eq!(plain.peers, PeerPolicy::default());
    for (peer, admission) in [
        ("10.0.0.1", Admission::Balancer),
        ("::ffff:10.0.0.1", Admission::Balancer),
        ("fd00::1", Admission::Balancer),
        ("192.0.2.8", Admission::Client),
        ("192.0.2.7", Admission::Denied),
        ("::ffff:192.0.2.7", Admission::Denied),
        ("198.51.100.1", Admission::Denied),
        ("2001:db8::1", Admission::Denied),
    ] {
        let peer = peer.parse().unwrap();
        assert_eq!(listed.peers.judge(peer), admission, "{peer}");
        assert_eq!(plain.peers.judge(peer), Admission::Client, "{peer}");
    }
    for (client, is_served) in [
        ("192.0.2.8", true),
        ("10.0.0.9", true),
        ("10.0.0.1", false),
        ("192.0.2.7", false),
    ] {
        assert_eq!(listed.peers.serves(client.parse().unwrap()), is_served);
    }
    assert!(config.trusted_proxies.contains("10.1.2.3".parse().unwrap()));
    assert_eq!(config.warnings, [""; 0]);
}

#[test]
fn flags_name_balancers_of_all_listeners_and_drop_no_list() {
    let args = ServeArgs {
        proxy_protocol_from: vec!["10.0.0.0/8".to_owned(), "::/0".to_owned()],
        trusted_proxies: vec!["0.0.0.0/0".to_owned()],
        ..enough()
    };
    let text = "listen: [{address: ':1', deny: [192.0.2.7]}, ':2']\ntrustedProxies: [10.0.0.1]";
    let config = with_config(args.clone(), text);
    for entry in &config.listen {
        let balancer = "10.9.9.9".parse().unwrap();
        assert_eq!(entry.peers.judge(balancer), Admission::Balancer);
    }
    let denied = "192.0.2.7".parse().unwrap();
    assert_eq!(config.listen[0].peers.judge(denied), Admission::Denied);
    assert!(
        config
            .trusted_proxies
            .contains("198.51.100.1".parse().unwrap())
    );
    assert_eq!(config.warnings.len(), 2, "{:?}", config.warnings);

    let scratch = TempDir::new();
    let dropping = ServeArgs {
        listen: vec![":3".to_owned()],
        config: Some(scratch.write("proxy.yaml", text)),
        ..enough()
    };
    let error = load(&dropping, &outside_pod()).unwrap_err().to_string();
    assert!(
        error.starts_with("--listen would replace `listen` in"),
        "{error}"
    );
    let without_lists = with_config(
        ServeArgs {
            listen: vec![":3".to_owned()],
            ..args
        },
        "listen: [':1']",
    );
    let entry = &without_lists.listen[0];
    assert_eq!(entry.to_string(), "[::]:3");
    assert!(entry.peers.balancers.contains("10.0.0.1".parse().unwrap()));
}

/// systemd writes the address of a socket in its own way.
#[test]
fn inherited_socket_gets_the_lists_of_its_entry() {
    let entry = |address: &str, deny: &str| {
        let mut entry: ListenConfig = address.parse().unwrap();
        entry.peers.deny = deny.parse().into_iter().collect();
        entry
    };
    let listen = [entry("127.0.0.1:1", "10.0.0.1"), entry(":2", "10.0.0.2")];
    let find = |listen: &[ListenConfig], address: &str| {
        let peers = peers_of(listen, 0, address.parse().unwrap());
        peers.map(|peers| peers.deny.contains("10.0.0.2".parse().unwrap()))
    };
    assert_eq!(find(&listen, "127.0.0.1:1"), Some(false));
    assert_eq!(find(&listen, "[::]:2"), Some(true));
    assert_eq!(find(&listen, "192.0.2.1:2"), Some(true));
    assert_eq!(find(&listen, "[::]:443"), None, "not known");
    assert_eq!(find(&listen[1..], "[::]:443"), Some(true), "the only one");
}
