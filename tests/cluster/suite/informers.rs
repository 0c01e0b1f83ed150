//! Informers, as controllers run them, while proxies stop and an apiserver dies: each resumes its watch, logs nothing,
//! and misses no change.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::kubectl::Kubectl;
use crate::process::Running;
use crate::proxy::Proxy;
use crate::suite::{Route, Turn, alone};

/// Each new informer begins with a compressed watch of all objects, so each stop of a proxy ends watches of both kinds.
#[test]
fn informers_resume_when_the_proxy_stops_24_times() {
    let Some(suite) = alone() else { return };
    let flags = ["--reuse-port", "--drain-delay=0s"];
    let mut proxy = suite.another_proxy(&suite.upstream(), &flags);
    let mut crowds = ["-http1=false", "-http1=true"].map(|protocol| {
        let name = format!("restarts{protocol}").replace('=', "-");
        start(&suite, &proxy, &["-name", &name, protocol])
    });
    for stop in 0..STOPS {
        for crowd in &mut crowds {
            more(crowd, 1);
        }
        let successor = proxy.successor(&suite.fixture);
        // This fails if the drain takes 4 s. Its timeout is 20 s.
        let log = std::mem::replace(&mut proxy, successor).stop();
        let last = log.lines().last().unwrap_or_default();
        assert!(last.contains("connections_closed=0"), "stop {stop}: {last}");
    }
    for crowd in &mut crowds {
        let report = report(crowd);
        assert_eq!(report["informers"], STOPS, "{report}");
        assert_eq!(report["compressed"], STOPS, "{report}");
        assert_eq!(report["relists"], 0, "{report}");
    }
}

#[test]
fn watches_resume_when_one_of_two_apiservers_is_killed() {
    let Some(suite) = alone() else { return };
    let second = suite.fixture.start_another_apiserver();
    let first = suite.fixture.server().strip_prefix("https://").unwrap();
    let mut upstream = suite.upstream();
    upstream["addresses"] = json!([first, &second]);
    let proxy = suite.another_proxy(&upstream, &[]);
    let mut crowd = start(&suite, &proxy, &["-name", "outage", "-every", "250ms"]);
    more(&mut crowd, REFLECTORS);
    // The watch of kubectl has to be on the apiserver that is killed.
    let mut upstream = suite.upstream();
    upstream["url"] = json!(format!("https://{second}"));
    let to_second = suite.another_proxy(&upstream, &[]);
    let kubectl = watch(&suite, &to_second);

    suite.fixture.kill_other_apiserver(&second);

    let report = report(&mut crowd);
    assert_eq!(report["informers"], REFLECTORS, "{report}");
    let relists = report["relists"].as_u64().unwrap();
    assert!(relists <= 2, "{report}");
    let (rows, code) = kubectl.finish(STEP);
    let rows = rows.join("\n");
    assert!(!rows.contains("Failure"), "{rows}");
    assert_eq!(code, Some(0), "{rows}");
}

/// Everything is 20 times faster than in production: watches that last 5 to 10 minutes, probes every 5 s, and the
/// 12 minutes in which the share must be back.
#[test]
fn restarted_apiserver_gets_its_share_of_informers() {
    let Some(suite) = alone() else { return };
    let others = [(); 2].map(|()| suite.fixture.start_another_apiserver());
    let first = suite.fixture.server().strip_prefix("https://").unwrap();
    let addresses = [first, &others[0], &others[1]];
    let mut upstream = suite.upstream();
    upstream["addresses"] = json!(addresses);
    let before = addresses.map(connections);
    let mut config = suite.way.config(&suite.fixture, &upstream);
    config["timeouts"] = json!({ "probeInterval": "250ms" });
    let proxy = suite.proxy.another(&suite.fixture, &config, &[]);
    let flags = ["-name", "restarted", "-every", "250ms", "-watch", "15s"];
    let mut crowd = start(&suite, &proxy, &flags);
    more(&mut crowd, REFLECTORS);

    suite.fixture.restart_other_apiserver(&others[1]);
    // The kill itself may end a watch within an event. From here on nothing may go wrong.
    crowd.write("forget\n");
    eprintln!("{}", crowd.json(STEP));

    let share = || connections(&others[1]);
    assert!(share() < REFLECTORS / 10, "{}", share());
    let began = Instant::now();
    let wanted = REFLECTORS * 25 / 100..=REFLECTORS * 41 / 100;
    while !wanted.contains(&share()) {
        assert!(began.elapsed() < STEP * 12 / 20, "{} connections", share());
        sleep(Duration::from_millis(250));
    }
    eprintln!("{} connections after {:?}", share(), began.elapsed());
    // The streams that were open when their leases moved have ended.
    sleep(Duration::from_secs(30));
    let after = addresses.map(connections);
    eprintln!("{before:?} {after:?}");
    assert!(wanted.contains(&share()), "{after:?}");
    let report = report(&mut crowd);
    assert_eq!(report["informers"], REFLECTORS, "{report}");
    assert_eq!(report["relists"], 0, "{report}");
    for other in &others {
        suite.fixture.kill_other_apiserver(other);
    }
}

/// How many connections the apiserver at this address of 127.0.0.1 has.
fn connections(address: &str) -> usize {
    let (_, port) = address.rsplit_once(':').unwrap();
    let local = format!(":{:04X}", port.parse::<u16>().unwrap());
    let sockets = fs::read_to_string("/proc/net/tcp").unwrap();
    let established = sockets.lines().filter(|line| {
        let columns: Vec<_> = line.split_whitespace().collect();
        columns[1].ends_with(&local) && columns[3] == "01"
    });
    established.count()
}

/// Starts a program that runs informers through `proxy`, and changes their object directly.
fn start(suite: &Turn, proxy: &Proxy, flags: &[&str]) -> Running {
    let mut command = suite.fixture.client("informers");
    command
        .arg("-kubeconfig")
        .arg(kubeconfig(suite, proxy))
        .arg("-writer")
        .arg(Kubectl::new(suite, Route::Direct).kubeconfig())
        .args(flags);
    Running::start(command)
}

/// `kubectl get -w` through `proxy`, once it has shown the object.
fn watch(suite: &Turn, proxy: &Proxy) -> Running {
    let home = suite.fixture.scratch().join("watcher");
    fs::create_dir_all(&home).unwrap();
    let mut command = Command::new("kubectl");
    command
        .args(["get", "configmap", "outage", "-w"])
        .env("HOME", home)
        .env("KUBECONFIG", kubeconfig(suite, proxy));
    let kubectl = Running::start(command);
    kubectl.wait_for("outage", STEP);
    // The next row comes over the watch.
    kubectl.wait_for("outage", STEP);
    kubectl
}

fn kubeconfig(suite: &Turn, proxy: &Proxy) -> PathBuf {
    let kubectl = Kubectl::new(suite, Route::Proxied);
    kubectl.with_server(suite.server_of(proxy)).kubeconfig()
}

#[track_caller]
fn more(crowd: &mut Running, informers: usize) {
    crowd.write(&format!("more {informers}\n"));
    assert_eq!(crowd.json(STEP)["synced"], informers);
}

/// The report of a crowd, in which nothing is missed and nothing was logged.
#[track_caller]
fn report(crowd: &mut Running) -> Value {
    crowd.write("report\n");
    let report = crowd.json(2 * STEP);
    eprintln!("{report}");
    assert_eq!(report["pending"], 0, "{report}");
    assert_eq!(report["missed"], 0, "{report}");
    assert_eq!(report["complaints"], json!([]), "{report}");
    report
}

const STOPS: usize = 24;
const REFLECTORS: usize = 200;
const STEP: Duration = Duration::from_mins(1);
