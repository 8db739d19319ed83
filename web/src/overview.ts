// How it does: the verdict, the key figures, the charts, tiers and dependencies.

import { announce } from "./announce";
import { Chart } from "./charts";
import { attribute, byId, el, foreign, rows, shown, text, timeTag, type Row } from "./dom";
import { NOTHING, bare, count, list, mebibytes, millis, moment, number, rate, span, words } from "./format";
import { History } from "./history";
import type { Dependency, Frame, Policy, Status, TierFigures } from "./model";

const STATUS: Record<Status, string> = {
  healthy: "Healthy",
  degraded: "Degraded",
  unhealthy: "Unhealthy",
  not_configured: "Not configured",
};

const VERDICT: Record<Status, string> = {
  healthy: "All is well",
  degraded: "It serves, but not all is well",
  unhealthy: "It cannot serve",
  not_configured: "",
};

/** What is the matter, for whoever has not read the manual. */
const MEANING: [RegExp, string][] = [
  [/^not ready: starting/, "it has not begun to listen yet"],
  [/^not ready: draining/, "it is about to stop, and takes no new connections"],
  [/^not ready: limiter_closed/, "without a store all requests are refused with 503 (on_failure: closed)"],
  [/workers stuck$/, "requests on them wait; the log says what holds them up"],
  [/^backpressure/, "more comes in than it can keep up with"],
  [/^limits decided in mode local/, "each replica limits by what it has seen itself"],
  [/^limits decided in mode open/, "nobody is limited meanwhile"],
  [/^limits decided in mode closed/, "requests are refused with 503 meanwhile"],
  [/^upstream circuit open/, "requests are answered with 503 at once; one at a time finds out whether it is back"],
  [/circuit open$/, "it is not asked any more, until a probe finds it back"],
  [/circuit half_open$/, "a probe finds out whether it is back"],
  [/^redis unhealthy/, "the store that the replicas share does not answer"],
  [/^redis degraded/, "some checks of limits fail or come late"],
  [/^upstream unhealthy/, "the backend does not answer"],
  [/^upstream degraded/, "some requests to the backend fail"],
  [/^database /, "what users have bought is taken from what is remembered"],
  [/^jwks /, "the last good keys go on being used"],
];

const MODE: Record<Frame["rate_limiter"]["mode"], [string, string, Status]> = {
  exact: ["Exactly", "by the store", "healthy"],
  local: ["Locally", "by each replica", "degraded"],
  open: ["Not at all", "everything passes", "degraded"],
  closed: ["Refused", "503, no store", "unhealthy"],
};

const MEMORY: Record<string, string> = {
  insufficient_data: "no trend yet",
  stable: "stable",
  growing: "growing",
  suspected_leak: "suspected leak",
  fragmented: "fragmented",
};

function set(id: string, value: string): void {
  text(byId(id), value);
}

export class Overview {
  readonly history = new History();
  #span = 300;
  #last: Frame | null = null;
  #order: string[] = [];
  #charts = {
    allowed: new Chart({
      id: "chart-allowed",
      title: "requests allowed a second, by tier",
      show: rate,
      axis: number,
      empty: "No request was allowed in this time",
      top: 5,
    }),
    blocked: new Chart({
      id: "chart-blocked",
      title: "requests refused by limits a second, by tier",
      show: rate,
      axis: number,
      empty: "No request was refused in this time",
      top: 5,
    }),
    latency: new Chart({
      id: "chart-latency",
      title: "latency of requests",
      show: millis,
      axis: (value) => (value < 1000 ? `${number(value)} ms` : `${number(value / 1000)} s`),
      empty: "No request was answered in this time",
      top: 2,
    }),
    lag: new Chart({
      id: "chart-lag",
      title: "lag of the event loops",
      show: millis,
      axis: (value) => (value < 1000 ? `${number(value)} ms` : `${number(value / 1000)} s`),
      empty: "No lag was measured in this time",
      top: 5,
    }),
    memory: new Chart({
      id: "chart-memory",
      title: "resident memory",
      show: mebibytes,
      axis: (value) => `${number(value)} MiB`,
      empty: "It cannot be read here",
      top: 16,
    }),
  };

  constructor() {
    byId("range").addEventListener("change", (event) => {
      this.#span = Number((event.target as HTMLInputElement).value);
      this.#draw();
    });
    this.history.restore();
  }

  /** Tiers are shown in the order of the policy. */
  policy(policy: Policy): void {
    this.#order = policy.tiers.map((tier) => tier.name);
  }

  #place(tier: string): number {
    const place = this.#order.indexOf(tier);
    return place < 0 ? this.#order.length : place;
  }

  show(frame: Frame): void {
    const before = this.#last;
    this.#last = frame;
    frame.tiers.sort((a, b) => this.#place(a.name) - this.#place(b.name));
    this.history.add(frame);
    this.#head(frame);
    this.#figures(frame);
    this.#draw();
    rows(byId("tiers"), frame.tiers, (tier) => tier.name, tierRow);
    // As the lines of the charts, which are in the same order.
    [...byId("tiers").querySelectorAll(".swatch")].forEach((swatch, index) => {
      attribute(swatch, "data-colour", String(index % 8));
    });
    rows(byId("dependencies"), Object.entries(frame.dependencies), ([name]) => name, dependencyRow);
    if (before && before.status !== frame.status) {
      const why = frame.reasons.length > 0 ? `: ${list(frame.reasons)}` : "";
      announce(`tollgate is ${STATUS[frame.status].toLowerCase()} now${why}`);
    }
  }

  /** What was heard last may not hold any more. */
  stale(): void {
    const status = this.#last?.status;
    if (!status) return;
    for (const id of ["badge", "verdict"]) attribute(byId(id), "data-status", "unknown");
    set("badge-text", `Was ${STATUS[status].toLowerCase()}`);
    set("verdict-text", "How it is now is not known");
  }

  #head(frame: Frame): void {
    set("instance", frame.instance);
    attribute(byId("instance"), "title", frame.instance);
    set("version", frame.version);
    document.title = `${frame.status === "healthy" ? "" : `${STATUS[frame.status]}: `}${frame.instance} – tollgate`;
    attribute(byId("badge"), "data-status", frame.status);
    set("badge-text", STATUS[frame.status]);
    attribute(byId("verdict"), "data-status", frame.status);
    set("verdict-text", VERDICT[frame.status]);
    shown(byId("reasons"), frame.reasons.length > 0);
    rows(byId("reasons"), frame.reasons, (reason) => reason, reasonRow);
  }

  #figures(frame: Frame): void {
    const isFirst = frame.requests_per_second === null;
    const blocked = frame.tiers.reduce((sum, tier) => sum + (tier.blocked_per_second ?? 0), 0);
    const asked = frame.tiers.reduce((sum, tier) => sum + (tier.allowed_per_second ?? 0), blocked);
    set("f-requests", rate(frame.requests_per_second));
    set("f-blocked", rate(isFirst ? null : blocked));
    const share = asked > 0 ? `, ${Math.round((blocked * 100) / asked)} %` : "";
    set("f-blocked-note", `a second${share}`);
    const latency = frame.latency;
    set("f-p95", latency ? millis(latency.p95_ms) : NOTHING);
    set("f-p95-note", latency ? `P50 ${bare(latency.p50_ms)}, P99 ${bare(latency.p99_ms)}` : "no answer of late");
    set("f-in-flight", count(frame.backpressure.requests_in_flight));
    set("f-in-flight-note", `${count(frame.connections)} connection${frame.connections === 1 ? "" : "s"}`);
    set("f-lag", millis(frame.backpressure.event_loop_lag_ms));
    const pressed: Record<Frame["backpressure"]["severity"], [string, Status]> = {
      normal: ["keeps up", "healthy"],
      warning: ["some backpressure", "degraded"],
      critical: ["cannot keep up", "unhealthy"],
    };
    const [how, state] = pressed[frame.backpressure.severity];
    set("f-lag-note", frame.backpressure.workers_stuck > 0 ? `${count(frame.backpressure.workers_stuck)} of the workers hang` : how);
    attribute(byId("f-lag").parentElement as HTMLElement, "data-status", state);
    const memory = frame.memory;
    set("f-memory", mebibytes(memory.rss_mb));
    const trend = MEMORY[memory.verdict] ?? words(memory.verdict);
    set("f-memory-note", memory.percent === null ? trend : `${Math.round(memory.percent)} %, ${trend}`);
    attribute(
      byId("f-memory").parentElement as HTMLElement,
      "data-status",
      memory.verdict === "suspected_leak" ? "degraded" : "healthy",
    );
    const [mode, note, status] = MODE[frame.rate_limiter.mode];
    set("f-limiter", mode);
    set("f-limiter-note", note);
    attribute(byId("f-limiter").parentElement as HTMLElement, "data-status", status);
    set("f-uptime", span(frame.uptime_seconds));
    const exceptions = frame.overrides + frame.denied;
    set("f-uptime-note", exceptions === 0 ? "no exceptions set" : `${count(exceptions)} exception${exceptions === 1 ? "" : "s"} set`);
  }

  #draw(): void {
    const [history, over, frame] = [this.history, this.#span, this.#last];
    if (!frame) return;
    const names = frame.tiers.map((tier) => tier.name);
    const charts = this.#charts;
    charts.allowed.draw(history.times, history.tiers("allowed", names), over);
    charts.blocked.draw(history.times, history.tiers("blocked", names), over);
    const latencies = [history.line("P50", "p50"), history.line("P95", "p95"), history.line("P99", "p99")];
    charts.latency.draw(history.times, latencies, over);
    charts.lag.draw(history.times, [history.line("worst worker", "lag")], over);
    charts.memory.draw(history.times, [history.line("resident", "memory")], over);
  }
}

function reasonRow(reason: string): Row<string> {
  const meaning = MEANING.find(([pattern]) => pattern.test(reason))?.[1];
  const node = el("li", {}, el("strong", {}, words(reason)), meaning ? `: ${meaning}` : null);
  return { node, update: () => {} };
}

function tierRow(first: TierFigures): Row<TierFigures> {
  const swatch = el("span", { class: "swatch", "aria-hidden": "true" }, el("i"));
  const cells = [1, 2, 3, 4].map(() => el("td", { class: "n" }));
  const node = el("tr", { "data-tier": first.name }, el("th", { scope: "row" }, swatch, foreign(first.name)), ...cells);
  return {
    node,
    update(tier) {
      const values = [
        rate(tier.allowed_per_second),
        rate(tier.blocked_per_second),
        count(tier.allowed),
        count(tier.blocked),
      ];
      cells.forEach((cell, index) => text(cell, values[index] ?? ""));
    },
  };
}

const BREAKER = { closed: "closed, calls pass", half_open: "half open, probing", open: "open, not asked" };

function dependencyRow([name]: [string, Dependency]): Row<[string, Dependency]> {
  const label = el("span");
  const of = el("span", { class: "of" }, el("i", { class: "mark", "aria-hidden": "true" }), label);
  const [breaker, since, error] = [el("td"), el("td"), el("td")];
  const node = el(
    "tr",
    { "data-dependency": name },
    el("th", { scope: "row" }, name),
    el("td", {}, of),
    breaker,
    since,
    error,
  );
  return {
    node,
    update([, it]) {
      attribute(of, "data-status", it.status);
      text(label, STATUS[it.status]);
      text(breaker, it.circuit_breaker ? BREAKER[it.circuit_breaker] : NOTHING);
      const now = new Date();
      const when = it.since ? moment(new Date(it.since), now) : NOTHING;
      if (since.textContent !== when) since.replaceChildren(it.since ? timeTag(it.since, when) : NOTHING);
      const failed = it.last_error;
      const what = failed ? `${words(failed.result)}, ${moment(new Date(failed.at), now)}` : "none";
      text(error, it.status === "not_configured" ? NOTHING : what);
    },
  };
}
