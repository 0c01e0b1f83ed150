
"use strict";
// Data of the proxy is inserted as text, never as markup.
(() => {
  const INTERVAL_MS = 2000, MAX_POINTS = 150, ERRORS_SHOWN = 3, ROWS_SHOWN = 12;
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

  function daysLeft({ not_after: unix, expires_soon: soon }) {
    const hours = Math.floor((unix - now()) / 3600);
    if (unix < now()) return make("span", "bad", "expired");
    const words = hours < 48 ? many(hours, "hour left", "hours left") : `${Math.floor(hours / 24)} days left`;
    return make("span", soon ? "wait" : "good", words);
  }
  function duration(seconds) {
    if (seconds === null) return "–";
    if (seconds < 0.0995) return `${+(seconds * 1000).toPrecision(2)} ms`;
    return `${+seconds.toPrecision(2)} s`;
  }
  const count = (number, decimals) => number.toLocaleString("en", { maximumFractionDigits: decimals });

  /** The first rows, and a button that shows the others. */
  const opened = new Set();
  function fold(id, rows, first) {
    if (rows.length <= first + 1 || opened.has(id)) return rows;
    const button = make("button", "", `Show ${count(rows.length - first, 0)} more`);
    button.addEventListener("click", () => {
      opened.add(id);
      at(id).replaceChildren(...rows);
    });
    return [...rows.slice(0, first), make("li", "", button)];
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
  // The order of the numbers of a point: below 400, 401, other 4xx, 5xx, no response.
  const CODES = ["below 400", "401", "other 4xx", "5xx", "without response"];
  const sum = (numbers) => numbers.reduce((all, one) => all + one, 0);
  function draw({ charts: { requests, p50, p99 } }) {
    const all = requests.map(sum);
    const top = round(Math.max(1, ...all));
    const line = path(all, top);
    at("rate-line").setAttribute("d", line);
    const first = 300 - (all.length - 1) * 300 / (MAX_POINTS - 1);
    at("rate-area").setAttribute("d", all.length > 1 ? `${line}L300 80L${first.toFixed(1)} 80Z` : "");
    // A line of zeros would lie on the axis.
    const some = (values) => values.some((value) => value > 0) ? path(values, top) : "";
    at("refused-line").setAttribute("d", some(requests.map(([, unauthorized, others]) => unauthorized + others)));
    at("failed-line").setAttribute("d", some(requests.map(([, , , failed, none]) => failed + none)));
    set("rate-top", count(top, 0));
    const longest = round(Math.max(0.001, ...p99.filter((value) => value !== null)));
    at("time-p50").setAttribute("d", path(p50, longest));
    at("time-p99").setAttribute("d", path(p99, longest));
    set("time-top", duration(longest));
    const newest = (values) => values.findLast((value) => value !== null) ?? null;
    if (all.length) {
      const [now, most] = [all.at(-1), Math.max(...all)];
      set("rate", rate(now));
      set("rate-words", `${rate(now)} requests per second now, ${rate(most)} at most`);
      set("codes", `now ${CODES.map((code, i) => [code, requests.at(-1)[i]]).filter(([, n], i) => i === 0 || n > 0)
        .map(([code, n]) => `${rate(n)} ${code}`).join(" · ")}`);
    }
    set("p50", duration(newest(p50)));
    if (newest(p50) !== null) {
      const words = `p50 ${duration(newest(p50))} · p99 ${duration(newest(p99))}`;
      set("time-words", `Time to headers: ${words}`);
      set("times", `now ${words}`);
    }
  }
  const many = (number, one, more) => `${count(number, 0)} ${number === 1 ? one : more}`;
  const rate = (number) => count(number, number < 10 ? 1 : 0);

  const PHASES = { stopping: "Stopping: new clients are still accepted", draining: "Draining: open requests and tunnels finish" };
  const KINDS_OF_STATE = { ready: ["good", "Ready"], problems: ["wait", "Ready, with problems"],
    outage: ["bad", "Ready, but no apiserver can be reached"], not_ready: ["bad", "Not ready"] };
  function state(facts) {
    const failed = facts.checks.filter((check) => check.failure !== null);
    const [kind, words] = facts.phase === "serving" ? KINDS_OF_STATE[facts.state] : ["wait", PHASES[facts.phase]];
    const node = at("state");
    node.className = `state ${kind}`;
    if (node.textContent !== words) node.textContent = words;
    const title = `${words.split(":")[0]} · kube-tls-proxy`;
    if (document.title !== title) {
      document.title = title;
      icon(kind);
    }
    at("checks-section").hidden = failed.length === 0;
    show("checks", failed, () => failed.map(({ name, failure }) => make("li", "", make("b", "", name), ": ", failure)));
    at("problems-section").hidden = facts.problems.length === 0;
    show("problems", facts.problems, () => fold("problems", facts.problems.map((problem) => make("li", "", problem)), ROWS_SHOWN));
    set("about", `${facts.version} · up ${span(facts.now - facts.started)} · listening on ${facts.listening.join(", ")}`);
    set("in-flight", count(facts.requests_in_flight, 0));
    set("connections", count(facts.connections, 0));
    set("watches", count(facts.watches, 0));
    set("tunnels", count(facts.tunnels, 0));
    at("docs").hidden = !facts.homepage.startsWith("https:");
    at("docs").href = facts.homepage || "#";
  }
  /** The icon of the tab: another colour and another shape for each state. */
  function icon(kind) {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 32;
    const pen = canvas.getContext("2d");
    pen.fillStyle = pen.strokeStyle = { good: "#2e9e5b", wait: "#d08700", bad: "#d93025" }[kind];
    pen.lineWidth = 6;
    pen.beginPath();
    if (kind === "bad") {
      pen.moveTo(16, 2); pen.lineTo(31, 30); pen.lineTo(1, 30); pen.fill();
    } else {
      pen.arc(16, 16, kind === "good" ? 14 : 11, 0, 7);
      if (kind === "good") pen.fill(); else pen.stroke();
    }
    at("icon").href = canvas.toDataURL();
    at("icon").dataset.kind = kind;
  }

  function names(facts) {
    show("names", facts.certificates, () => facts.certificates.map((leaf) => make("li", "",
      make("b", "", leaf.names.join(", ")), make("div", "", daysLeft(leaf), make("span", "quiet", ` · issued by ${leaf.issuer}`)))));
  }

  /** What the certificates of users depend on, per cluster. */
  function client_certificates(facts) {
    const clusters = facts.clusters.filter((cluster) => cluster.client_certificates !== null);
    at("client-certificates-section").hidden = clusters.length === 0;
    const row = (cluster, what, ...state) => make("li", "",
      make("div", "", facts.clusters.length === 1 ? null : make("b", "", cluster.name), facts.clusters.length === 1 ? what : ` · ${what}`), make("div", "", ...state));
    const known = (cluster, what, certificate) => row(cluster, what, daysLeft(certificate), make("span", "quiet", ` · ${certificate.subject}`));
    show("client-certificates", clusters.map(({ name, client_certificates: all }) => [name, all]), () => clusters.flatMap((cluster) => {
      const { front_proxy, users, revocation_lists: lists } = cluster.client_certificates;
      const naming = front_proxy ? known(cluster, "front-proxy certificate", front_proxy)
        : row(cluster, "impersonation", make("span", "quiet", "with a token; no front-proxy certificate"));
      return [naming, ...users.map((ca) => known(cluster, "CA of users", ca)),
        ...(lists === null ? [row(cluster, "revocation list", make("span", "quiet", "none: revocation is not checked"))]
          : lists.map((list) => row(cluster, "revocation list", listState(list), make("span", "quiet",
            ` · ${list.issuer}${list.state === "missing" ? "" : ` · ${many(list.revoked, "certificate", "certificates")} revoked`}`))))];
    }));
  }
  function listState({ state, next_update: unix }) {
    if (state === "missing") return make("span", "bad", "missing: certificates of this CA are refused");
    return state === "current" ? make("span", "good", `current until ${new Date(unix * 1000).toLocaleString()}`)
      : make("span", "bad", "out of date ", since(unix, "since ", ""), ": certificates of this CA are refused");
  }

  const STATES = { healthy: ["good", "healthy since "], unhealthy: ["bad", "unhealthy since "], unknown: ["wait", "unknown since "] };
  function upstreams(facts) {
    show("upstreams", facts.clusters, () => facts.clusters.map((cluster) => make("div", "cluster",
      make("p", "", make("b", "", cluster.name), " ", make("span", "quiet", cluster.url, cluster.outbound_proxy ? ` through ${cluster.outbound_proxy}` : "")),
      make("p", "quiet", [`${rate(cluster.requests_per_second)} requests per second`, `${count(cluster.requests_in_flight, 0)} in flight`,
        many(cluster.watches, "watch", "watches"), many(cluster.tunnels, "tunnel", "tunnels")].join(" · "),
        ...rateOf(cluster.server_errors_per_second, "bad", "5xx"), ...rateOf(cluster.unauthorized_per_second, "wait", "401")),
      make("ul", "rows", ...(cluster.endpoints.length ? cluster.endpoints.map(endpoint) : [
        make("li", "", make("span", "bad", "this host has no address; check the name and DNS"))])),
      cluster.discovery ? discovery(cluster.discovery) : null,
      cluster.access_rules ? make("p", "quiet", `${many(cluster.access_rules, "access rule", "access rules")} · ${many(cluster.denied_requests, "request", "requests")} denied`) : null,
      cluster.passthrough ? make("p", "quiet", "passed through: clients verify the apiserver") : null,
      cluster.trusted.length ? make("p", "quiet", "trusts ", ...cluster.trusted.flatMap((ca, i) => [i ? ", " : "", `${ca.subject} (`, daysLeft(ca), ")"])) : null,
    )));
  }
  function discovery({ found, changed, failure }) {
    const known = found ? `${many(found, "apiserver", "apiservers")} found by the EndpointSlice` : "the address of the Service is used";
    return make("p", "quiet", known, changed === null ? "" : since(changed, " · last change ", " ago"),
      failure === null ? null : make("div", "bad", failure));
  }
  const rateOf = (number, kind, code) => number ? [" · ", make("span", kind, `${code}: ${rate(number)} per second`)] : [];
  function endpoint({ address, state, since: from, connections, p50, p99, tcp_p50: tcp, tls_p50: tls, why }) {
    const [kind, words] = STATES[state];
    const open = many(connections, "connection", "connections");
    const times = (p50 === null ? "" : ` · p50 ${duration(p50)}, p99 ${duration(p99)}`) + (tls === null ? "" : ` · connects in ${duration(tcp)}, TLS in ${duration(tls)}`);
    return make("li", "", make("code", "", address), " ", make("span", kind, since(from, words, "")),
      make("span", "quiet", ` · ${open}${times}`), why ? make("div", "quiet", why) : null);
  }

  function clients(facts) {
    const failed = facts.failed_handshakes_per_second;
    set("handshakes", `TLS handshakes: ${rate(facts.handshakes_per_second)} per second${failed ? `, of which ${rate(failed)} fail: see "downstream handshake failed" in the log for clients and reasons` : ""}`);
    show("clients", facts.clients, () => facts.clients.length ? facts.clients.map(({ client, requests_per_second: requests, connections, unauthorized }) => make("li", "",
      make("code", "", client), make("span", "quiet", ` · ${rate(requests)} requests per second · ${many(connections, "connection", "connections")}`),
      ...(unauthorized ? [" · ", make("span", "wait", `${many(unauthorized, "response", "responses")} with 401`)] : [])))
      : [make("li", "quiet", "No clients are connected.")]);
  }

  const KINDS = { watch: "", log: "log of ", tunnel: "" };
  function open(facts) {
    // One cluster needs no name on each row.
    const has_one = facts.clusters.length === 1;
    const row = (stream) => make("li", "",
      make("div", "", KINDS[stream.kind], make("b", "", stream.resource),
        stream.namespace === null ? " in several namespaces" : stream.namespace ? ` in ${stream.namespace}` : "",
        stream.name ? `: ${stream.name}` : "", stream.count > 1 ? make("b", "times", ` ×${count(stream.count, 0)}`) : null),
      make("div", "quiet", has_one ? "" : `${stream.cluster} · `, make("code", "", stream.client),
        stream.user ? " · " : "", stream.user ? make("b", "", stream.user) : null, stream.issuer ? ` from ${stream.issuer}` : "",
        stream.user_agent ? ` · ${stream.user_agent}` : "", " · ", since(stream.since, stream.count > 1 ? "the oldest for " : "for ", "")));
    for (const [id, streams, all, none] of [
      ["open-tunnels", facts.open_tunnels, facts.tunnels, "No open tunnels."],
      ["open-watches", facts.open_watches, facts.watches, "No open watches or logs."],
    ]) {
      const hidden = all - sum(streams.map((stream) => stream.count));
      const more = hidden > 0 ? [make("li", "quiet", `and ${count(hidden, 0)} more`)] : [];
      show(id, [streams, hidden], () => streams.length || hidden > 0 ? [...fold(id, streams.map(row), ROWS_SHOWN), ...more]
        : [make("li", "quiet", none)]);
    }
  }

  function reload({ reload: { at: when, failure, needs_restart: waiting } }) {
    const later = waiting.length ? make("p", "quiet", `Changes of ${waiting.join(", ")} take effect after the next restart.`) : "";
    show("reload", [when, failure, waiting], () => failure === null
      ? [make("p", "", make("span", "good", "Up to date"), make("span", "quiet", " · ", since(when, "last change ", " ago"))), later]
      : [make("p", "", make("span", "bad", since(when, "Reload failing since ", "")), "; the previous configuration stays in use."), make("p", "", failure), later]);
  }

  function errors({ recent_errors: recent }) {
    show("errors", recent, () => recent.length ? fold("errors", recent.map(({ at: when, reason, cluster, message, count: times }) => make("li", "",
      message, make("div", "quiet", cluster ? `${cluster} · ` : "", make("code", "", reason), " · ", since(when, "", " ago"),
        times > 1 ? ` · ${count(times, 0)} times` : ""))), ERRORS_SHOWN)
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
      for (const part of [state, names, client_certificates, upstreams, clients, open, reload, errors, draw]) part(facts);
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
