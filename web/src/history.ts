// The last quarter of an hour, as this page has seen it. Kept over a reload of the page, by the tab.

import type { Frame } from "./model";
import type { Line } from "./charts";

/** Seconds that are kept. */
export const KEPT = 900;
const KEY = "tollgate.history";

interface Point {
  allowed: Record<string, number | null>;
  blocked: Record<string, number | null>;
  p50: number | null;
  p95: number | null;
  p99: number | null;
  lag: number;
  memory: number | null;
}

export class History {
  #instance = "";
  /** Unix seconds, one step of a second each; `null` where nothing was heard. */
  #times: number[] = [];
  #points: (Point | null)[] = [];

  get times(): number[] {
    return this.#times;
  }

  add(frame: Frame): void {
    if (frame.instance !== this.#instance) {
      this.#instance = frame.instance;
      [this.#times, this.#points] = [[], []];
    }
    const at = Math.round(frame.at_ms / 1000);
    const last = this.#times.at(-1);
    // A clock that steps back, or a page that was away for longer than is kept, begins anew.
    if (last !== undefined && (at < last - 5 || at > last + KEPT)) [this.#times, this.#points] = [[], []];
    if (last !== undefined && at <= last) return;
    // Seconds that nothing was heard of are a gap; a single one is a frame that came late.
    for (let missing = (last ?? at) + 1; missing < at; missing += 1) {
      this.#times.push(missing);
      this.#points.push(at - (last ?? at) <= 2 ? pointOf(frame) : null);
    }
    this.#times.push(at);
    this.#points.push(pointOf(frame));
    const surplus = this.#times.length - KEPT;
    if (surplus > 0) {
      this.#times.splice(0, surplus);
      this.#points.splice(0, surplus);
    }
  }

  /** A line for each tier. */
  tiers(which: "allowed" | "blocked", names: string[]): Line[] {
    return names.map((name) => ({
      name,
      values: this.#points.map((point) => point?.[which][name] ?? null),
    }));
  }

  line(name: string, which: "p50" | "p95" | "p99" | "lag" | "memory"): Line {
    return { name, values: this.#points.map((point) => point?.[which] ?? null) };
  }

  save(): void {
    try {
      const kept = { instance: this.#instance, times: this.#times, points: this.#points };
      sessionStorage.setItem(KEY, JSON.stringify(kept));
    } catch {
      // Full or switched off: the charts begin empty then.
    }
  }

  restore(): void {
    try {
      const kept = JSON.parse(sessionStorage.getItem(KEY) ?? "null");
      if (Array.isArray(kept?.times) && Array.isArray(kept.points) && kept.times.length === kept.points.length) {
        [this.#instance, this.#times, this.#points] = [String(kept.instance), kept.times, kept.points];
      }
      sessionStorage.removeItem(KEY);
    } catch {
      // As above.
    }
  }
}

function pointOf(frame: Frame): Point {
  const of = (get: (tier: Frame["tiers"][number]) => number | null): Record<string, number | null> =>
    Object.fromEntries(frame.tiers.map((tier) => [tier.name, get(tier)]));
  return {
    allowed: of((tier) => tier.allowed_per_second),
    blocked: of((tier) => tier.blocked_per_second),
    p50: frame.latency?.p50_ms ?? null,
    p95: frame.latency?.p95_ms ?? null,
    p99: frame.latency?.p99_ms ?? null,
    lag: frame.backpressure.event_loop_lag_ms,
    memory: frame.memory.rss_mb,
  };
}
