
"use strict";
// Everything that comes from the proxy is put in as text, never as markup.
(() => {
  const EVERY = 2000, KEPT = 150;
  const at = (id) => document.getElementById(id);
  const set = (id, text) => { const node = at(id); if (node.textContent !== text) node.textContent = text; };

  /** An element with a class and children, which are nodes or text. */
  function make(tag, kind, ...children) {
    const node = document.createElement(tag);
    if (kind) node.className = kind;
    node.append(...children.filter((child) => child !== null && child !== ""));
    return node;
  }

  /** Replaces a list only when it has changed, so that a selection stays. */
  const shown = new Map();
  function show(id, facts, nodes) {
    const key = JSON.stringify(facts);
    if (shown.get(id) === key) return;
    shown.set(id, key);
    at(id).replaceChildren(...nodes());
  }

  // Times: the clock of the proxy counts, and this page's may be another.
  let ahead = 0;
  const now = () => Date.now() / 1000 - ahead;
  function span(seconds) {
    const s = Math.max(0, Math.floor(seconds));
    if (s < 60) return `${s} s`;
    if (s < 3600) return `${Math.floor(s / 60)} min`;
    if (s < 48 * 3600) return `${Math.floor(s / 3600)} h ${Math.floor(s % 3600 / 60)} min`;
    return `${Math.floor(s / 86400)} days`;
  }
  function since(unix, before, after) {
    const node = make("time", "");
    node.dateTime = new Date(unix * 1000).toISOString();
    node.title = new Date(unix * 1000).toLocaleString();
    Object.assign(node.dataset, { unix, before, after });
    tell(node);
    return node;
  }
  function tell(node) {
    const { unix, before, after } = node.dataset;
    node.textContent = before + span(now() - unix) + after;
  }

  function daysLeft(unix) {
    const days = Math.floor((unix - now()) / 86400);
    if (unix < now()) return make("span", "bad", "expired");
    const words = days === 1 ? "1 day left" : `${days} days left`;
    return make("span", days < 14 ? "wait" : "good", words);
  }
  function duration(seconds) {
    if (seconds === null) return "–";
    if (seconds < 0.0995) return `${+(seconds * 1000).toPrecision(2)} ms`;
    return `${+seconds.toPrecision(2)} s`;
  }
  const count = (number, decimals) => number.toLocaleString("en", { maximumFractionDigits: decimals });

  /** The time that this share of the answers took at most, from counts in buckets. */
  function quantile(buckets, share) {
    const all = buckets.reduce((sum, [, n]) => sum + n, 0);
    if (!all) return null;
    let below = 0, lower = 0;
    for (const [bound, n] of buckets) {
      if (bound === null) return lower;
      if (n && below + n >= share * all) return lower + (bound - lower) * (share * all - below) / n;
      below += n;
      lower = bound;
    }
    return lower;
  }

  // What the charts show; it begins when the page is opened.
  const points = [];
  let last = null;
  function measure(facts) {
    if (last && facts.started === last.started && facts.now > last.now) {
      const buckets = facts.time_to_headers_seconds.map(([bound, n], i) => [bound, n - last.time_to_headers_seconds[i][1]]);
      points.push({
        rate: (facts.requests - last.requests) / (facts.now - last.now),
        half: quantile(buckets, 0.5),
        most: quantile(buckets, 0.99),
      });
      if (points.length > KEPT) points.shift();
    }
    last = facts;
  }

  /** A path through the values, the newest at the right; nothing where there is no value. */
  function path(values, top) {
    let text = "", pen = "M";
    values.forEach((value, i) => {
      if (value === null) { pen = "M"; return; }
      const x = 300 - (values.length - 1 - i) * 300 / (KEPT - 1);
      text += `${pen}${x.toFixed(1)} ${(78 - 74 * Math.min(1, value / top)).toFixed(1)}`;
      pen = "L";
    });
    return text;
  }
  /** A round number that is not less. */
  function round(value) {
    const power = 10 ** Math.floor(Math.log10(value));
    return [1, 2, 5, 10].map((factor) => factor * power).find((top) => top >= value * 0.999);
  }
  function draw() {
    const rates = points.map((point) => point.rate);
    const top = round(Math.max(1, ...rates));
    const line = path(rates, top);
    at("rate-line").setAttribute("d", line);
    const first = 300 - (rates.length - 1) * 300 / (KEPT - 1);
    at("rate-area").setAttribute("d", rates.length > 1 ? `${line}L300 80L${first.toFixed(1)} 80Z` : "");
    set("rate-top", count(top, 0));
    const halves = points.map((point) => point.half), mosts = points.map((point) => point.most);
    const longest = round(Math.max(0.001, ...mosts.filter((value) => value !== null)));
    at("time-50").setAttribute("d", path(halves, longest));
    at("time-99").setAttribute("d", path(mosts, longest));
    set("time-top", duration(longest));
    const newest = points.at(-1);
    const half = halves.findLast((value) => value !== null) ?? null;
    const most = mosts.findLast((value) => value !== null) ?? null;
    if (newest) {
      const rate = count(newest.rate, newest.rate < 10 ? 1 : 0);
      set("rate", rate);
      set("rate-words", `${rate} requests a second now, at most ${count(Math.max(...rates), 1)}`);
    }
    set("median", duration(half));
    if (half !== null) set("time-words", `Half of the answers begin within ${duration(half)}, 99 of 100 within ${duration(most)}`);
  }

  function state(facts) {
    const failed = facts.checks.filter((check) => check.failure !== null);
    const node = at("state");
    const [kind, words] = facts.phase !== "serving"
      ? ["wait", facts.phase === "stopping" ? "Stopping: clients are being sent elsewhere" : "Draining: running requests finish"]
      : failed.length ? ["bad", "Not ready"] : ["good", "Ready"];
    node.className = `state ${kind}`;
    if (node.textContent !== words) node.textContent = words;
    document.title = `${words.split(":")[0]} · kube-tls-proxy`;
    at("checks-section").hidden = failed.length === 0;
    show("checks", failed, () => failed.map(({ name, failure }) => make("li", "", make("b", "", name), ": ", failure)));
    set("about", `${facts.version} · up ${span(facts.now - facts.started)} · listening on ${facts.listening.join(", ")}`);
    set("connections", count(facts.connections, 0));
    set("watches", count(facts.watches, 0));
    set("tunnels", count(facts.tunnels, 0));
  }

  function names(facts) {
    show("names", facts.certificates, () => facts.certificates.map(({ names, issuer, not_after }) => make("li", "",
      make("b", "", names.join(", ")), make("div", "", daysLeft(not_after), make("span", "quiet", ` · issued by ${issuer}`)))));
  }

  const STATES = { healthy: ["good", "works, since "], unhealthy: ["bad", "does not work, since "], unknown: ["wait", "not tried yet, since "] };
  function upstreams(facts) {
    show("upstreams", facts.clusters, () => facts.clusters.map((cluster) => make("div", "cluster",
      make("p", "", make("b", "", cluster.name), " ", make("span", "quiet", cluster.url)),
      make("ul", "rows", ...(cluster.endpoints.length ? cluster.endpoints.map(endpoint) : [
        make("li", "", make("span", "bad", "no address is known for it; look at its name and at DNS"))])),
      make("p", "quiet", "trusts ", ...cluster.trusted.flatMap((ca, i) => [i ? ", " : "", `${ca.subject} (`, daysLeft(ca.not_after), ")"])),
    )));
  }
  function endpoint({ address, state, since: from, connections, why }) {
    const [kind, words] = STATES[state];
    const held = connections === 1 ? "1 connection" : `${connections} connections`;
    return make("li", "", make("code", "", address), " ", make("span", kind, since(from, words, "")),
      make("span", "quiet", ` · ${held}`), why ? make("div", "quiet", why) : null);
  }

  const KINDS = { watch: "watches", log: "follows", tunnel: "tunnel to" };
  function open(facts) {
    show("open", facts.open, () => facts.open.length ? facts.open.map((held) => make("li", "",
      make("span", "", `${KINDS[held.kind]} `, make("b", "", held.resource),
        held.namespace ? ` in ${held.namespace}` : "", held.name ? `: ${held.name}` : ""),
      make("span", "quiet", make("code", "", held.client), held.user_agent ? ` · ${held.user_agent}` : ""),
      since(held.since, "for ", ""))) : [make("li", "none quiet", "Nobody watches, follows a log, or is in a container.")]);
    const hidden = facts.watches + facts.tunnels - facts.open.length;
    set("open-more", hidden > 0 ? `and ${count(hidden, 0)} more` : "");
  }

  function reload({ reload: { at: when, failure, needs_restart: waiting } }) {
    const later = waiting.length ? make("p", "quiet", `What has changed in ${waiting.join(", ")} takes effect at the next restart.`) : "";
    show("reload", [when, failure, waiting], () => failure === null
      ? [make("p", "", make("span", "good", "In use as they are on disk"), make("span", "quiet", " · ", since(when, "last change ", " ago"))), later]
      : [make("p", "", make("span", "bad", since(when, "Unusable since ", "")), "; the last good state stays in use."), make("p", "", failure), later]);
  }

  function errors({ recent_errors: recent }) {
    show("errors", recent, () => recent.length ? recent.map(({ at: when, reason, message, count: times }) => make("li", "",
      message, make("div", "quiet", make("code", "", reason), " · ", since(when, "", " ago"), times > 1 ? ` · ${count(times, 0)} times` : "")))
      : [make("li", "quiet", "The proxy has answered nothing by itself.")]);
  }

  let heard = Date.now();
  async function turn() {
    try {
      const response = await fetch("status.json", { cache: "no-store", signal: AbortSignal.timeout(EVERY * 2) });
      if (!response.ok) throw new Error(`it answers ${response.status}`);
      const facts = await response.json();
      heard = Date.now();
      ahead = heard / 1000 - facts.now;
      measure(facts);
      for (const part of [state, names, upstreams, open, reload, errors, draw]) part(facts);
      document.querySelectorAll("time").forEach(tell);
      at("silent").hidden = true;
      document.body.dataset.turns = Number(document.body.dataset.turns || 0) + 1;
    } catch (error) {
      set("silent", `The proxy does not answer here (${error.message}). What you see is ${span((Date.now() - heard) / 1000)} old.`);
      at("silent").hidden = false;
    }
    setTimeout(turn, EVERY);
  }
  turn();
})();
