// The status page: shows the newest document of /v1/events. It sets text and attributes, never HTML.
// Two clocks: `heardAt` is when this browser last got a document; ages inside the document are counted on from there.
"use strict";

const OLD_AFTER_MS = 2000;     // the node speaks every 500 ms
const RETRY_MS = 3000;
const PHASES = ["detect", "elect", "catch_up", "arm", "settle", "first_order"];  // in the order in which they happen

const el = id => document.getElementById(id);
let doc = null;
let heardAt = 0, heardWall = 0;
let lease = { token: null, full: 0 };   // the longest lease seen of this token: what a full bar means
let said = "";

// -- words ------------------------------------------------------------------------------------------------------

const known = v => v !== null && v !== undefined && v !== "";
const text = v => known(v) ? String(v) : "–";
const count = v => known(v) ? Number(v).toLocaleString("en", { useGrouping: true }) : "–";

function span(s) {             // seconds, as people say them
  if (!known(s)) return "–";
  const a = Math.abs(s);
  if (a < 0.001) return s === 0 ? "0 s" : `${(s * 1e6).toFixed(0)} µs`;
  if (a < 1) return `${(s * 1e3).toFixed(a < 0.01 ? 1 : 0)} ms`;
  if (a < 120) return `${s.toFixed(a < 10 ? 2 : 0)} s`;
  if (a < 7200) return `${Math.floor(s / 60)} min`;
  if (a < 172800) return `${Math.floor(s / 3600)} h ${Math.floor(s % 3600 / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor(s % 86400 / 3600)} h`;
}
const ago = s => known(s) ? (s < 0.1 ? "now" : s < 60 ? `${s.toFixed(1)} s ago` : `${span(s)} ago`) : "–";
const utc = iso => known(iso) ? `${iso.slice(0, 10)} ${iso.slice(11, 19)} UTC` : "–";
// The greater of both: a laptop that slept stops the one clock, a corrected clock turns the other back.
const sinceHeard = () => Math.max(performance.now() - heardAt, Date.now() - heardWall) / 1000;

const LEVELS = {
  "allowed": ["good", "✓", "Trading allowed"],
  "close-only": ["warn", "◐", "Close only"],
  "blocked": ["bad", "✕", "Trading blocked"],
};
const ROLES = {
  leader: ["good", "★ leader"], standby: ["unknown", "○ standby"], promoting: ["warn", "↑ promoting"],
  draining: ["warn", "↓ draining"], starting: ["warn", "… starting"], fenced: ["bad", "✕ fenced"],
};
const FEEDS = { live: ["good", "✓ live"], connecting: ["warn", "… connecting"], stale: ["bad", "✕ stale"], down: ["bad", "✕ down"] };
const SYNC = new Map([[true, ["good", "✓ yes"]], [false, ["bad", "✕ no"]], [null, ["unknown", "? unknown"]]]);
const feedBadge = state => FEEDS[state] || ["unknown", known(state) ? `? ${state}` : "? unknown"];

// -- elements ---------------------------------------------------------------------------------------------------

function put(id, value) {      // only when it changed: live regions speak, and selections vanish, on every write
  const e = el(id), t = text(value);
  if (e.textContent !== t) e.textContent = t;
}
function tone(e, [kind, words]) {
  e.dataset.tone = kind;
  if (e.textContent !== words) e.textContent = words;
}
function make(tag, attributes = {}, content = "") {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  e.append(content);
  return e;
}
const badge = ([kind, words]) => make("span", { class: "badge", "data-tone": kind }, words);

// columns: [heading, cell(row), class]. The heading is repeated in each cell for the phone's card layout.
function fill(id, rows, columns) {
  el(id).replaceChildren(...rows.map(row => {
    const tr = make("tr");
    columns.forEach(([heading, cell, css], i) => {
      const made = cell(row);
      tr.append(make(i === 0 ? "th" : "td",
        { "data-label": heading, ...(i === 0 && { scope: "row" }), ...(css && { class: typeof css === "function" ? css(row) : css }) },
        made instanceof Node ? made : text(made)));
    });
    return tr;
  }));
}

// -- the document -----------------------------------------------------------------------------------------------

function render() {
  const leader = doc.leader, orders = doc.orders, feed = doc.feed || {}, gate = doc.gate || {}, venue = doc.venue || {};
  showPermission(leader);
  el("warnings").replaceChildren(...doc.warnings.map(w => make("li", {}, `⚠ ${w}`)));

  put("leader-token", leader && leader.token);

  put("orders-open", count(orders.open));
  tone(el("unresolved"), !known(orders.unresolved) ? ["unknown", "? unresolved: not known"]
    : orders.unresolved ? ["bad", `⚠ ${orders.unresolved} unresolved`] : ["good", "✓ none unresolved"]);
  const strategy = doc.strategy || {};
  put("strategy", known(strategy.failed) ? `failed: ${strategy.failed}` : [known(strategy.path) ? strategy.path.split(":").pop() : null, strategy.role].filter(known).join(", "));
  el("strategy").title = strategy.path || "";
  put("shadow", known(strategy.shadow_intents) ? `${count(strategy.shadow_matched)} of ${count(strategy.shadow_intents)}` : "–");

  tone(el("feed-state"), feedBadge(feed.state));
  el("feed-reason").textContent = feed.reason || "";
  put("feed-messages", count(feed.messages));
  put("feed-faults", known(feed.gaps) ? [feed.gaps, feed.duplicates, feed.reordered].map(count).join(", ") : "–");
  put("feed-reconnects", count(feed.reconnects));

  put("gate", gate.state);
  put("gate-token", gate.armed_token);
  put("venue", known(venue.connected) ? (venue.connected ? "connected" : "not connected") : "–");
  put("class", doc.double_order_class);
  for (const p of document.querySelectorAll("[data-class]")) p.hidden = p.dataset.class !== (doc.double_order_class || "");
  el("venue-why").textContent = venue.why || "";

  fill("nodes", doc.nodes, [
    ["Node", n => n.name, n => n.name === doc.node ? "me" : ""],
    ["Role", n => badge(ROLES[n.role] || ["unknown", `? ${n.role}`])],
    ["In sync", n => badge(SYNC.get(n.in_sync) || SYNC.get(null))],
    ["Lag, entries", n => isLeader(n) ? "" : count(n.lag_entries), "num"],
    ["Lag, time", n => isLeader(n) ? "" : span(n.lag_s), "num"],
    ["Log index", n => count(n.log_index), "num"],
    ["Feed", n => badge(feedBadge(n.feed_state).map((w, i) => i && known(n.feed_age_s) ? `${w}, ${span(n.feed_age_s)}` : w))],
    ["Version", n => n.version],
    ["Last seen", n => make("span", known(n.age_s) ? { "data-age": n.age_s } : {}, ago(n.age_s)), "num"],
  ]);
  fill("positions", doc.positions, [
    ["Symbol", p => p.symbol], ["Quantity", p => p.qty, "num"], ["Lots", p => count(p.lots), "num"],
    ["Last price", p => p.last_price, "num"],
  ]);
  el("no-positions").hidden = doc.positions.length > 0;
  showFailover(doc.last_failover);
  fill("history", doc.history, [
    ["Won at", h => utc(h.at)], ["Leader", h => h.node], ["From", h => h.came_from], ["Cause", h => h.cause],
    ["Asked by", h => h.actor], ["RTO", h => span(h.rto_s), "num"], ["Token", h => h.token, "num"],
  ]);
  tick();
}

const isLeader = n => doc.leader && n.name === doc.leader.node;

function showPermission(leader) {
  const unknown = doc.permission.reason === "unknown";
  const [kind, icon, words] = unknown ? ["bad", "?", "Trading not confirmed"] : LEVELS[doc.permission.level] || ["bad", "?", "Trading unknown"];
  el("banner").dataset.tone = kind;
  put("level-icon", icon);
  put("level", words);
  el("reason").textContent = doc.permission.reason;
  const who = !leader ? (unknown ? "Who leads is not known" : "Nobody leads")
    : leader.lease_left_s > 0 ? `${leader.node} leads` : `${leader.node} led when last heard of`;
  put("who", leader && known(leader.since) ? `${who}, since ${utc(leader.since)}` : who);
  put("leader-node", leader ? leader.node : unknown ? "not known" : "nobody");
  document.title = `${icon} ${unknown ? "unknown" : doc.permission.level} – ${doc.cluster}`;
  const now = `${words}${doc.permission.reason ? `: ${doc.permission.reason}` : ""}. ${who}.`;
  if (now !== said) { said = now; el("announce").textContent = now; }
}

function showFailover(f) {
  el("failover").hidden = !f;
  el("no-failover").hidden = Boolean(f);
  if (!f) return;
  put("failover-rto", known(f.rto_s) ? span(f.rto_s) : "not measured");
  put("failover-what", `${text(f.came_from)} → ${text(f.node)}, ${text(f.cause)}, ${utc(f.at)}, token ${text(f.token)}`);
  const rank = p => PHASES.includes(p) ? PHASES.indexOf(p) : PHASES.length;
  const phases = Object.entries(f.phases_s).sort(([a], [b]) => rank(a) - rank(b));
  el("phase-bar").replaceChildren(...phases.map(([, s], i) => {
    const part = make("span", { class: `c${i % 6}` });
    part.style.flexGrow = String(Math.max(0, s * 1e6));  // below a sum of 1 they would not fill the bar
    return part;
  }));
  el("phases").replaceChildren(...phases.map(([p, s], i) => make("li", { class: `c${i % 6}` }, `${p.replace("_", " ")} ${span(s)}`)));
}

// -- what moves between two documents ------------------------------------------------------------------------------

function tick() {
  put("clock", utc(new Date().toISOString()));
  if (!doc) return;
  const gone = sinceHeard(), leader = doc.leader;
  const left = leader && known(leader.lease_left_s) ? leader.lease_left_s - gone : null;
  put("lease-left", left === null ? "–" : left > 0 ? `${left.toFixed(2)} s` : "ended, as seen from here");
  el("lease-bar").style.width = `${left > 0 ? Math.min(100, 100 * left / lease.full) : 0}%`;
  put("leader-for", leader && known(leader.since) ? span((Date.parse(doc.at) - Date.parse(leader.since)) / 1000 + gone) : "–");
  put("feed-age", doc.feed && known(doc.feed.age_s) ? ago(doc.feed.age_s + gone) : "never");
  for (const e of document.querySelectorAll("[data-age]")) e.textContent = ago(Number(e.dataset.age) + gone);
  showLine(gone);
}

function showLine(gone) {
  const old = gone * 1000 > OLD_AFTER_MS;
  document.body.classList.toggle("old", old);
  tone(el("line"), old ? ["bad", `✕ data is ${gone < 120 ? `${Math.floor(gone)} s` : span(gone)} old`] : ["good", "✓ live"]);
  if (old) {                   // the next document puts it right again
    const level = LEVELS[doc.permission.level];
    put("level-icon", "?");
    put("level", `Not known now. Last heard: ${level ? level[2].toLowerCase() : "unknown"}`);
    document.title = `✕ connection lost – ${doc.cluster}`;
  }
  // The alert speaks once; the seconds count in the badge, where nobody has to listen to them.
  const lost = old ? `Connection to ${doc.node} lost. What stands here is old: do not act on it. Ask another node.` : "";
  if (el("lost").textContent !== lost) el("lost").textContent = lost;
}

// -- the line to the node --------------------------------------------------------------------------------------------

function show(received) {
  doc = received;
  heardAt = performance.now();
  heardWall = Date.now();
  const left = doc.leader && doc.leader.lease_left_s, token = doc.leader && doc.leader.token;
  lease = { token, full: Math.max(left || 0, token === lease.token ? lease.full : 0) };
  el("app").hidden = false;
  render();
}

function follow() {
  const events = new EventSource("/v1/events");
  events.addEventListener("status", e => show(JSON.parse(e.data)));
  events.onerror = () => {     // the browser retries a lost line by itself, but not one that was refused
    if (events.readyState === EventSource.CLOSED) setTimeout(follow, RETRY_MS);
  };
}

show(JSON.parse(document.body.dataset.status));
follow();
setInterval(tick, 100);
