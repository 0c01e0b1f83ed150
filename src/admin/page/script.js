
"use strict";
// Data of the proxy is inserted as text, never as markup.
(() => {
  const INTERVAL_MS = 2000, MAX_POINTS = 150;
  const at = (id) => document.getElementById(id);
  const set = (id, text) => { const node = at(id); if (node.textContent !== text) node.textContent = text; };

  /** An element with a class and children. A child is a node or text. */
  function make(tag, kind, ...children) {
    const node = document.createElement(tag);
    if (kind) node.className = kind;
    node.append(...children.filter((child) => child !== null && child !== ""));
    return node;
  }

  /** Replaces a list only if it has changed, so that selected text stays selected. */
  const shown = new Map();
  function show(id, facts, nodes) {
    const key = JSON.stringify(facts);
    if (shown.get(id) === key) return;
    shown.set(id, key);
    at(id).replaceChildren(...nodes());
  }

  // Ages are relative to the clock of the proxy: the clock of the browser may differ.
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

  /** A quantile, such as 0.99 for p99, interpolated from the counts of the buckets. */
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

  // The points of the charts, from the moment when the page is opened.
  const points = [];
  let last = null;
  function measure(facts) {
    if (last && facts.started === last.started && facts.now > last.now) {
      const buckets = facts.time_to_headers_seconds.map(([bound, n], i) => [bound, n - last.time_to_headers_seconds[i][1]]);
      points.push({
        rate: (facts.requests - last.requests) / (facts.now - last.now),
        p50: quantile(buckets, 0.5),
        p99: quantile(buckets, 0.99),
      });
      if (points.length > MAX_POINTS) points.shift();
    }
    last = facts;
  }

  /** A path through the values, the newest at the right, with a gap where a value is missing. */
  function path(values, top) {
    let text = "", pen = "M";
    values.forEach((value, i) => {
      if (value === null) { pen = "M"; return; }
      const x = 300 - (values.length - 1 - i) * 300 / (MAX_POINTS - 1);
      text += `${pen}${x.toFixed(1)} ${(78 - 74 * Math.min(1, value / top)).toFixed(1)}`;
      pen = "L";
    });
    return text;
  }
  /** The next round number that is not less. */
  function round(value) {
    const power = 10 ** Math.floor(Math.log10(value));
    return [1, 2, 5, 10].map((factor) => factor * power).find((top) => top >= value * 0.999);
  }
  function draw() {
    const rates = points.map((point) => point.rate);
    const top = round(Math.max(1, ...rates));
    const line = path(rates, top);
    at("rate-line").setAttribute("d", line);
    const first = 300 - (rates.length - 1) * 300 / (MAX_POINTS - 1);
    at("rate-area").setAttribute("d", rates.length > 1 ? `${line}L300 80L${first.toFixed(1)} 80Z` : "");
    set("rate-top", count(top, 0));
    const p50s = points.map((point) => point.p50), p99s = points.map((point) => point.p99);
    const longest = round(Math.max(0.001, ...p99s.filter((value) => value !== null)));
    at("time-p50").setAttribute("d", path(p50s, longest));
    at("time-p99").setAttribute("d", path(p99s, longest));
    set("time-top", duration(longest));
    const newest = points.at(-1);
    const p50 = p50s.findLast((value) => value !== null) ?? null;
    const p99 = p99s.findLast((value) => value !== null) ?? null;
    if (newest) {
      const rate = count(newest.rate, newest.rate < 10 ? 1 : 0);
      set("rate", rate);
      set("rate-words", `${rate} requests per second now, ${count(Math.max(...rates), 1)} at most`);
    }
    set("p50", duration(p50));
    if (p50 !== null) set("time-words", `Time to headers: p50 ${duration(p50)}, p99 ${duration(p99)}`);
  }

  function state(facts) {
    const failed = facts.checks.filter((check) => check.failure !== null);
    const wrong = facts.checks.filter((check) => check.failure ?? check.warning);
    const node = at("state");
    const [kind, words] = facts.phase !== "serving"
      ? ["wait", facts.phase === "stopping" ? "Stopping: new clients are still accepted" : "Draining: open requests and tunnels finish"]
      : failed.length ? ["bad", "Not ready"]
      : wrong.length ? ["wait", "Ready, with problems"]
      : facts.memory_is_short ? ["wait", "Memory is short: new clients wait"] : ["good", "Ready"];
    node.className = `state ${kind}`;
    if (node.textContent !== words) node.textContent = words;
    document.title = `${words.split(":")[0]} · kube-tls-proxy`;
    at("checks-section").hidden = wrong.length === 0;
    show("checks", wrong, () => wrong.map(({ name, failure, warning }) => make("li", "", make("b", "", name), ": ", failure ?? warning)));
    set("about", `${facts.version} · up ${span(facts.now - facts.started)} · listening on ${facts.listening.join(", ")}`);
    set("connections", count(facts.connections, 0));
    set("watches", count(facts.watches, 0));
    set("tunnels", count(facts.tunnels, 0));
  }

  function names(facts) {
    show("names", facts.certificates, () => facts.certificates.map(({ names, issuer, not_after }) => make("li", "",
      make("b", "", names.join(", ")), make("div", "", daysLeft(not_after), make("span", "quiet", ` · issued by ${issuer}`)))));
  }

  const STATES = { healthy: ["good", "healthy since "], unhealthy: ["bad", "unhealthy since "], unknown: ["wait", "unknown since "] };
  function upstreams(facts) {
    show("upstreams", facts.clusters, () => facts.clusters.map((cluster) => make("div", "cluster",
      make("p", "", make("b", "", cluster.name), " ", make("span", "quiet", cluster.url)),
      make("ul", "rows", ...(cluster.endpoints.length ? cluster.endpoints.map(endpoint) : [
        make("li", "", make("span", "bad", "this host has no address; check the name and DNS"))])),
      make("p", "quiet", "trusts ", ...cluster.trusted.flatMap((ca, i) => [i ? ", " : "", `${ca.subject} (`, daysLeft(ca.not_after), ")"])),
    )));
  }
  function endpoint({ address, state, since: from, connections, why }) {
    const [kind, words] = STATES[state];
    const open = connections === 1 ? "1 connection" : `${connections} connections`;
    return make("li", "", make("code", "", address), " ", make("span", kind, since(from, words, "")),
      make("span", "quiet", ` · ${open}`), why ? make("div", "quiet", why) : null);
  }

  function clients(facts) {
    show("clients", facts.clients, () => facts.clients.length ? facts.clients.map(({ client, connections }) => make("li", "",
      make("code", "", client), make("span", "quiet", ` · ${connections === 1 ? "1 connection" : `${count(connections, 0)} connections`}`)))
      : [make("li", "quiet", "No clients are connected.")]);
  }

  const KINDS = { watch: "watch of", log: "log of", tunnel: "tunnel to" };
  function open(facts) {
    show("open", facts.open, () => facts.open.length ? facts.open.map((stream) => make("li", "",
      make("span", "", `${KINDS[stream.kind]} `, make("b", "", stream.resource),
        stream.namespace ? ` in ${stream.namespace}` : "", stream.name ? `: ${stream.name}` : ""),
      make("span", "quiet", make("code", "", stream.client), stream.user_agent ? ` · ${stream.user_agent}` : ""),
      since(stream.since, "for ", ""))) : [make("li", "none quiet", "No open watches, logs or tunnels.")]);
    const hidden = facts.watches + facts.tunnels - facts.open.length;
    set("open-more", hidden > 0 ? `and ${count(hidden, 0)} more` : "");
  }

  function reload({ reload: { at: when, failure, needs_restart: waiting } }) {
    const later = waiting.length ? make("p", "quiet", `Changes of ${waiting.join(", ")} take effect after the next restart.`) : "";
    show("reload", [when, failure, waiting], () => failure === null
      ? [make("p", "", make("span", "good", "Up to date"), make("span", "quiet", " · ", since(when, "last change ", " ago"))), later]
      : [make("p", "", make("span", "bad", since(when, "Reload failing since ", "")), "; the previous configuration stays in use."), make("p", "", failure), later]);
  }

  function errors({ recent_errors: recent }) {
    show("errors", recent, () => recent.length ? recent.map(({ at: when, reason, message, count: times }) => make("li", "",
      message, make("div", "quiet", make("code", "", reason), " · ", since(when, "", " ago"), times > 1 ? ` · ${count(times, 0)} times` : "")))
      : [make("li", "quiet", "No errors.")]);
  }

  let heard = Date.now();
  async function turn() {
    try {
      const response = await fetch("status.json", { cache: "no-store", signal: AbortSignal.timeout(INTERVAL_MS * 2) });
      if (!response.ok) throw new Error(`status ${response.status}`);
      const facts = await response.json();
      heard = Date.now();
      ahead = heard / 1000 - facts.now;
      measure(facts);
      for (const part of [state, names, upstreams, clients, open, reload, errors, draw]) part(facts);
      document.querySelectorAll("time").forEach(tell);
      at("silent").hidden = true;
      document.body.dataset.turns = Number(document.body.dataset.turns || 0) + 1;
    } catch (error) {
      set("silent", `The proxy does not respond (${error.message}). This data is ${span((Date.now() - heard) / 1000)} old.`);
      at("silent").hidden = false;
    }
    setTimeout(turn, INTERVAL_MS);
  }
  turn();
})();
