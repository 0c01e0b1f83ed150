//! Runs one case, prints its line, and compares it with its bounds.

use std::{
    fmt::Write as _,
    io::Write as _,
    sync::{Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use crate::{
    attacker::{Attack, Attacker, Outcome},
    stage::{Conditions, Meter, Size, Stage, runtime},
    victim::{Victim, Window},
};

/// One attack: how it is done and what it may cost. Pairs are for the quick run and the full run.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    /// The fault of the same number, or the kind of attack.
    pub(crate) id: &'static str,
    pub(crate) attack: Attack,
    pub(crate) quick: Conditions,
    pub(crate) full: Conditions,
    /// How long the attack lasts, for attacks that last as long as they are allowed to.
    pub(crate) seconds: (f64, f64),
    pub(crate) bounds: Bounds,
}

/// What an attack may cost.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    /// Requests of the attacker that reach the apiserver.
    pub(crate) upstream: (usize, usize),
    /// The time in which the proxy closes each connection of the attacker; `None` if it may keep them.
    pub(crate) closed: Option<(f64, f64)>,
    /// The victim's p99 during the attack as a multiple of its p99 before. The quick run is too short for a narrow
    /// bound.
    pub(crate) slower: (f64, f64),
    /// The p99 of its requests on new connections, in seconds, with the handshake.
    pub(crate) fresh: (f64, f64),
    /// MiB that the process grows during the attack, and MiB that it keeps after it.
    pub(crate) grows: (usize, usize),
    pub(crate) keeps: (usize, usize),
    /// Descriptors at most.
    pub(crate) descriptors: usize,
    /// Lines of the log: an attack must not fill a disk.
    pub(crate) log_lines: usize,
    /// The share of a CPU that the attack costs the proxy, in percent.
    pub(crate) cpu: (f64, f64),
}

impl Bounds {
    pub(crate) const DEFAULT: Self = Self {
        upstream: (usize::MAX, usize::MAX),
        closed: None,
        slower: (50.0, 2.0),
        fresh: (8.0, 1.0),
        grows: (32, 64),
        keeps: (24, 32),
        descriptors: usize::MAX,
        log_lines: 200,
        cpu: (f64::INFINITY, f64::INFINITY),
    };
}

impl Case {
    pub(crate) const fn new(id: &'static str, attack: Attack) -> Self {
        let conditions = Conditions {
            config: "",
            open_files: None,
            memory: None,
            balancers: 0,
        };
        Self {
            id,
            attack,
            quick: conditions,
            full: conditions,
            seconds: (0.7, 15.0),
            bounds: Bounds::DEFAULT,
        }
    }
}

/// The cases that may begin now. In the quick run most of them wait for timers, so two share the machine; the figures
/// of the full run need all of it.
static TURNS: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

/// The right to run. Dropping it lets the next case begin.
struct Turn;

impl Turn {
    fn wait(size: Size) -> Self {
        let (running, ended) = &TURNS;
        let most = size.pick(2, 1);
        let running = running.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = ended.wait_while(running, |running| *running >= most);
        *waited.unwrap_or_else(PoisonError::into_inner) += 1;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let (running, ended) = &TURNS;
        *running.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        ended.notify_one();
    }
}

/// The least bound in seconds of the quick run. A debug build on a busy machine may take seconds for what takes
/// milliseconds alone; the faults that the cases are about take longer than this, or do not end.
const BUSY: f64 = 10.0;
/// The victim's p99 on an idle proxy may be less than the noise of the machine, which other tests load in the quick
/// run.
const NOISE: (Duration, Duration) = (Duration::from_millis(60), Duration::from_millis(2));

pub(crate) fn run(name: &str, case: &Case) {
    let size = Size::from_environment();
    let _turn = Turn::wait(size);
    let Some(mut stage) = Stage::start(size.pick(case.quick, case.full), size) else {
        return;
    };
    if size.is_full() {
        use_one_cpu();
    }
    let victim = Victim::start(&stage, size);
    // The first requests open connections.
    thread::sleep(size.pick(Duration::from_millis(150), Duration::from_secs(2)));
    victim.take();
    let (idle, calm) = (stage.meter(), Instant::now());
    thread::sleep(size.pick(Duration::from_millis(350), Duration::from_secs(10)));
    let quiet = victim.take();

    let before = stage.meter();
    let usual_cpu = before.share_since(idle, calm.elapsed());
    let attackers = runtime("attacker");
    let attacker = Attacker::new(&stage, size, size.pick(case.seconds.0, case.seconds.1));
    attackers.block_on(async { tokio::spawn(async { yield_cpu() }).await.unwrap() });
    let (begun, lines) = (Instant::now(), stage.log_lines());
    // An attack that hangs would show nothing.
    let usual = Duration::from_secs_f64(size.pick(case.seconds.0, case.seconds.1));
    let limit = usual + Duration::from_secs(size.pick(60, 300));
    let end = begun + usual;
    let attack = attackers.spawn((case.attack)(attacker));
    let (mut peak, mut during) = (before, Window::default());
    // Also after an attack that ends at once, so that there is something to compare.
    while !attack.is_finished() || Instant::now() < end {
        assert!(
            begun.elapsed() < limit,
            "{name}: the attack did not end within {limit:?}"
        );
        thread::sleep(Duration::from_millis(20));
        let now = stage.meter();
        peak.rss_kib = peak.rss_kib.max(now.rss_kib);
        peak.descriptors = peak.descriptors.max(now.descriptors);
        peak.upstream = peak.upstream.max(now.upstream);
    }
    during.add(victim.take());
    let lasted = begun.elapsed();
    let busy = stage.meter().share_since(before, lasted);
    let outcome = attackers.block_on(attack).unwrap();
    // Closes what the attacker still has open.
    drop(attackers);

    let after = settle(&stage, before, case, size);
    let last = stage.last_event();
    let is_caught_up = wait(Duration::from_secs(5), || victim.late_watches(last) == 0);
    let rest = victim.take();
    let report = Report {
        name,
        case,
        size,
        quiet,
        during,
        rest,
        before,
        peak,
        after,
        busy,
        cost: busy - usual_cpu,
        outcome,
        upstream: stage.counts().attacker(),
        limits: stage.limits_hit(),
        log_lines: stage.log_lines() - lines,
        late_watches: if is_caught_up {
            0
        } else {
            victim.late_watches(last)
        },
        is_alive: stage.is_alive(),
    };
    report.print();
    report.compare();
}

/// Waits until the process has given back what the attack took, or for 20 s.
fn settle(stage: &Stage, before: Meter, case: &Case, size: Size) -> Meter {
    let keeps = size.pick(case.bounds.keeps.0, case.bounds.keeps.1);
    let limit = size.pick(Duration::from_secs(3), Duration::from_secs(20));
    let mut now = stage.meter();
    wait(limit, || {
        now = stage.meter();
        now.rss_mib() <= before.rss_mib() + keeps && now.descriptors <= before.descriptors + SPARE
    });
    now
}

/// Descriptors that may stay after an attack: connections of the idle pool.
const SPARE: usize = 70;

/// Polls until `is_done`. Returns whether it was done in time.
fn wait(limit: Duration, mut is_done: impl FnMut() -> bool) -> bool {
    let begun = Instant::now();
    loop {
        if is_done() {
            return true;
        }
        if begun.elapsed() >= limit {
            return false;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// The attacker gets the CPU time that victim and apiserver leave, so that their times are those of the proxy. Lowers
/// the priority of the thread that calls it.
fn yield_cpu() {
    let thread = std::fs::read_link("/proc/thread-self").unwrap();
    let thread = thread.file_name().unwrap().to_str().unwrap();
    let renice = std::process::Command::new("renice")
        .args(["-n", "10", "-p", thread])
        .output();
    // Without the program the figures are only less steady.
    drop(renice);
}

/// Leaves the other CPU to the proxy.
fn use_one_cpu() {
    let pid = std::process::id().to_string();
    drop(
        std::process::Command::new("taskset")
            .args(["-a", "-c", "-p", "1", &pid])
            .output(),
    );
}

struct Report<'a> {
    name: &'a str,
    case: &'a Case,
    size: Size,
    quiet: Window,
    during: Window,
    rest: Window,
    before: Meter,
    peak: Meter,
    after: Meter,
    /// The share of a CPU that the proxy used during the attack, and how much that is above its share before.
    busy: f64,
    cost: f64,
    outcome: Outcome,
    upstream: usize,
    limits: std::collections::BTreeMap<String, u64>,
    /// Lines that the proxy logged since the attack began.
    log_lines: usize,
    late_watches: usize,
    is_alive: bool,
}

impl Report<'_> {
    fn ratio(&self, share: f64) -> f64 {
        let quiet = self.quiet.percentile(share).as_secs_f64().max(1e-6);
        self.during.percentile(share).as_secs_f64() / quiet
    }

    fn failures(&self) -> Vec<&String> {
        let windows = [&self.quiet, &self.during, &self.rest];
        windows
            .into_iter()
            .flat_map(|window| window.failures())
            .collect()
    }

    fn print(&self) {
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        let mut line = format!("{} {}: ", self.case.id, self.name);
        let Outcome {
            connections,
            closed,
            slowest,
            notes,
            ..
        } = &self.outcome;
        write!(
            line,
            "upstream {} requests; closed {closed} of {connections} in {:.2} s; ",
            self.upstream,
            slowest.as_secs_f64(),
        )
        .unwrap();
        for (what, share) in [("p50", 0.5), ("p99", 0.99)] {
            let (quiet, during) = (self.quiet.percentile(share), self.during.percentile(share));
            write!(
                line,
                "{what} {:.1} → {:.1} ms (×{:.1}); ",
                ms(quiet),
                ms(during),
                self.ratio(share)
            )
            .unwrap();
        }
        let fresh = (
            self.quiet.fresh_percentile(0.99),
            self.during.fresh_percentile(0.99),
        );
        write!(
            line,
            "new connections p99 {:.0} → {:.0} ms; ",
            ms(fresh.0),
            ms(fresh.1)
        )
        .unwrap();
        write!(
            line,
            "{} requests, {} failures, {} late watches; ",
            self.during.requests(),
            self.failures().len(),
            self.late_watches
        )
        .unwrap();
        let of = |of: fn(Meter) -> usize| {
            format!(
                "{} → {} → {}",
                of(self.before),
                of(self.peak),
                of(self.after)
            )
        };
        write!(
            line,
            "RSS {} MiB; descriptors {}; apiserver connections {}; CPU {:.0} %, of that {:.0} % for the attack; {} log lines",
            of(Meter::rss_mib),
            of(|meter| meter.descriptors),
            of(|meter| meter.upstream),
            self.busy * 100.0,
            self.cost * 100.0,
            self.log_lines,
        )
        .unwrap();
        for (limit, count) in &self.limits {
            write!(line, "; limit {limit} {count}").unwrap();
        }
        for note in notes {
            write!(line, "; {note}").unwrap();
        }
        println!("{line}");
        if let Some(path) = std::env::var_os("ATTACKS_REPORT") {
            let file = std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(path);
            writeln!(file.unwrap(), "{line}").unwrap();
        }
    }

    fn compare(&self) {
        let (bounds, size) = (&self.case.bounds, self.size);
        let pick = |(quick, full): (usize, usize)| size.pick(quick, full);
        let mut wrong = self.outcome.faults.clone();
        let mut at_most = |what: &str, found: f64, bound: f64| {
            if found > bound {
                wrong.push(format!("{what}: {found:.1}, at most {bound:.1} allowed"));
            }
        };
        at_most(
            "requests at the apiserver",
            self.upstream as f64,
            pick(bounds.upstream) as f64,
        );
        if let Some(closed) = bounds.closed {
            let open = self.outcome.connections - self.outcome.closed;
            at_most("connections that stay open", open as f64, 0.0);
            let bound = size.pick(closed.0.max(BUSY), closed.1);
            at_most(
                "seconds until they are closed",
                self.outcome.slowest.as_secs_f64(),
                bound,
            );
        }
        let noise = size.pick(NOISE.0, NOISE.1);
        let p99 = |window: &Window| window.percentile(0.99).max(noise).as_secs_f64();
        let slower = size.pick(bounds.slower.0, bounds.slower.1);
        at_most(
            "the victim's p99 in seconds",
            p99(&self.during),
            p99(&self.quiet) * slower,
        );
        let fresh = size.pick(bounds.fresh.0.max(BUSY), bounds.fresh.1);
        at_most(
            "the p99 of new connections in seconds",
            self.during.fresh_percentile(0.99).as_secs_f64(),
            fresh,
        );
        let grown = |now: Meter| now.rss_mib().saturating_sub(self.before.rss_mib()) as f64;
        at_most(
            "MiB that the process grew",
            grown(self.peak),
            pick(bounds.grows) as f64,
        );
        at_most(
            "MiB that it kept",
            grown(self.after),
            pick(bounds.keeps) as f64,
        );
        at_most(
            "descriptors",
            self.peak.descriptors as f64,
            bounds.descriptors as f64,
        );
        at_most("log lines", self.log_lines as f64, bounds.log_lines as f64);
        let cpu = size.pick(bounds.cpu.0, bounds.cpu.1);
        at_most("percent of a CPU for the attack", self.cost * 100.0, cpu);
        let kept = self
            .after
            .descriptors
            .saturating_sub(self.before.descriptors);
        at_most("descriptors that it kept", kept as f64, SPARE as f64);
        at_most("watches that lost events", self.late_watches as f64, 0.0);
        let failures = self.failures();
        at_most("failures of the victim", failures.len() as f64, 0.0);
        wrong.extend(
            failures
                .iter()
                .take(5)
                .map(|failure| format!("  {failure}")),
        );
        if self.quiet.requests() == 0 || self.during.requests() == 0 {
            wrong.push("the victim had no response".to_owned());
        }
        if !self.is_alive {
            wrong.push("the proxy has ended".to_owned());
        }
        assert!(
            wrong.is_empty(),
            "{} {}:\n{}",
            self.case.id,
            self.name,
            wrong.join("\n")
        );
    }
}
