// The last calls that were slow or timed out.

import { api, reason } from "./api";
import { byId, el, foreign, rows, shown, text, timeTag, type Row } from "./dom";
import { NOTHING, millis, moment } from "./format";
import type { Frame, SlowCall } from "./model";

export class Slow {
  #all: SlowCall[] | null = null;

  constructor() {
    byId("slow-all").addEventListener("click", () => void this.#toggle());
  }

  show(frame: Frame): void {
    const items = frame.slow.items;
    shown(byId("slow-all"), frame.slow.total > items.length);
    if (!this.#all) this.#draw(items);
  }

  async #toggle(): Promise<void> {
    const button = byId<HTMLButtonElement>("slow-all");
    if (this.#all) {
      this.#all = null;
      text(button, "Show the last 100");
      return;
    }
    button.disabled = true;
    try {
      this.#all = (await api.slow()).items;
      this.#draw(this.#all);
      text(button, "Show the latest only");
    } catch (error) {
      shown(byId("slow-empty"), true);
      text(byId("slow-empty"), `The list could not be had: ${reason(error)}`);
    } finally {
      button.disabled = false;
    }
  }

  #draw(items: SlowCall[]): void {
    const keys = new Map<string, number>();
    const keyed = items.map((call) => {
      const key = `${call.time} ${call.total_ms} ${call.query_type} ${call.trace_id ?? ""}`;
      const seen = keys.get(key) ?? 0;
      keys.set(key, seen + 1);
      return { call, key: `${key} ${seen}` };
    });
    rows(byId("slow-calls"), keyed, (it) => it.key, (it) => slowRow(it.call));
    shown(byId("slow-empty"), items.length === 0);
    text(byId("slow-empty"), "No call was slow or timed out since this process started. What counts as slow: slow_thresholds of the configuration.");
  }
}

function slowRow(call: SlowCall): Row<unknown> {
  const timedOut = el("span", { class: "of", "data-status": "unhealthy" }, el("i", { class: "mark", "aria-hidden": "true" }), "timed out");
  const status = call.status === null ? null : `answered ${call.status}`;
  const outcome = call.timed_out ? timedOut : (status ?? "late");
  const request = call.endpoint || call.method ? `${call.method ?? ""} ${call.endpoint ?? ""}`.trim() : NOTHING;
  const node = el(
    "tr",
    {},
    el("td", { "data-label": "When" }, timeTag(call.time, moment(new Date(call.time), new Date()))),
    el("td", { "data-label": "Asked" }, el("strong", {}, call.query_type), call.upstream ? ` (${call.upstream})` : null),
    el("td", { "data-label": "Request" }, foreign(request)),
    el("td", { "data-label": "To the head", class: "n" }, millis(call.ttfb_ms)),
    el("td", { "data-label": "In all", class: "n" }, millis(call.total_ms)),
    el("td", { "data-label": "Outcome" }, outcome),
    el("td", { "data-label": "Tier" }, call.tier ?? NOTHING),
  );
  return { node, update: () => {} };
}
