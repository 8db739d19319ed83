// Who has another tier than the policy says, or is refused; who set that, when; and what changed last.

import { ask, field } from "./dialogs";
import { announce } from "./announce";
import { api, reason, type Setting } from "./api";
import { byId, el, foreign, rows, setForeign, shown, text, timeTag, type Row } from "./dom";
import { NOTHING, moment, span } from "./format";
import type { Change, Entry, Frame } from "./model";

const ACTIONS: Record<string, string> = {
  "override.set": "Tier overridden",
  "override.remove": "Override removed",
  "deny.set": "Denied",
  "deny.remove": "Denial removed",
  reset: "Counters reset",
  reload: "Policy reloaded",
};

const REASON_MAX = 200;

function inMinutes(minutes: number): string {
  return new Date(Date.now() + minutes * 60_000).toISOString();
}

const UNTIL: [string, string, () => string | null][] = [
  ["15", "15 minutes", () => inMinutes(15)],
  ["60", "1 hour", () => inMinutes(60)],
  ["1440", "1 day", () => inMinutes(1440)],
  ["10080", "7 days", () => inMinutes(10080)],
  ["", "until it is removed", () => null],
];

/** The fields of a dialog that say how long and why. */
function termFields(): { fields: Node[]; term(): { until: string | null; reason: string | null } } {
  const until = el("select", {}, ...UNTIL.map(([value, label]) => el("option", { value }, label)));
  until.value = "60";
  const why = el("input", { maxlength: REASON_MAX, autocomplete: "off" });
  const fields = [
    field("For how long", until),
    field("Reason", why, "Shown to whoever looks at this list. May be left empty."),
  ];
  const term = (): { until: string | null; reason: string | null } => ({
    until: (UNTIL.find(([value]) => value === until.value)?.[2] ?? (() => null))(),
    reason: why.value.trim() || null,
  });
  return { fields, term };
}

export type Done = (message: string) => void;

export function askReset(identity: string, done: Done): void {
  ask({
    title: "Reset the counters?",
    body: [
      el("p", {}, foreign(identity, "foreign wrap"), " has all of its limits again, on every replica: it may send a full burst and a full window at once."),
      el("p", {}, "What was counted cannot be brought back."),
    ],
    action: "Reset the counters",
    isDestructive: true,
    async run() {
      await api.reset(identity);
      done("The counters were reset.");
    },
  });
}

export function askOverride(identity: string, tiers: string[], current: string, done: Done): void {
  const tier = el("select", {}, ...tiers.map((name) => el("option", { value: name }, name)));
  tier.value = tiers.includes(current) ? current : (tiers[0] ?? "");
  const { fields, term } = termFields();
  ask({
    title: "Give it another tier",
    body: [
      el("p", {}, foreign(identity, "foreign wrap"), " meets the limits of this tier, whatever its token or the policy says. All replicas follow."),
      field("Tier", tier),
      ...fields,
    ],
    action: "Override the tier",
    isDestructive: false,
    async run() {
      const setting: Setting = { tier: tier.value, ...term() };
      await api.override(identity, setting);
      done(`The tier is overridden: ${tier.value}.`);
    },
  });
}

export function askDeny(identity: string, done: Done): void {
  const { fields, term } = termFields();
  ask({
    title: "Deny all of its requests?",
    body: [
      el("p", {}, "Every request of ", foreign(identity, "foreign wrap"), " is answered with 403, on every replica, from now on."),
      ...fields,
    ],
    action: "Deny it",
    isDestructive: true,
    async run() {
      await api.deny(identity, term());
      done("It is denied from now on.");
    },
  });
}

export function askRemove(entry: Entry, done: Done): void {
  const isDenial = entry.kind === "deny";
  ask({
    title: isDenial ? "Take it off the deny list?" : "Remove the override?",
    body: [
      el("p", {}, foreign(entry.identity, "foreign wrap"), isDenial ? " is served again, within its limits." : " meets the limits of its own tier again."),
    ],
    action: isDenial ? "Take it off" : "Remove the override",
    isDestructive: false,
    async run() {
      await (isDenial ? api.removeDenial(entry.identity) : api.removeOverride(entry.identity));
      done(isDenial ? "It is denied no longer." : "The override was removed.");
    },
  });
}

/** `premium` or `denied`, and until when. */
export function summary(entry: Entry): string {
  const what = entry.kind === "deny" ? "denied with 403" : `tier ${entry.tier ?? NOTHING}`;
  return `${what}, ${untilText(entry)}`;
}

function untilText(entry: Entry): string {
  if (!entry.until) return "until removed";
  const until = new Date(entry.until);
  const left = (until.getTime() - Date.now()) / 1000;
  return left > 0 ? `${moment(until, new Date())}, in ${span(left)}` : "over";
}

export function whoSet(it: { set_by: string | null; set_from: string; set_on: string }): string {
  return `${it.set_by ?? "unnamed"}, from ${it.set_from}`;
}

/** How often lists are asked for although nothing seems to have changed: entries run out. */
const REFRESH_MS = 30_000;

export class Exceptions {
  #cursor: string | null = null;
  #asked = 0;
  #isAsking = false;

  constructor(private readonly inspect: (identity: string) => void) {}

  /** Asks for the lists once something has changed. */
  show(frame: Frame): void {
    const cursor = [frame.instance, frame.changes, frame.overrides, frame.denied].join("\n");
    const isOld = Date.now() - this.#asked > REFRESH_MS;
    if (this.#isAsking || (cursor === this.#cursor && !isOld)) return;
    void this.#refresh(cursor);
  }

  async #refresh(cursor: string): Promise<void> {
    this.#isAsking = true;
    this.#asked = Date.now();
    // Whatever comes of it: what fails is not asked again every second.
    this.#cursor = cursor;
    try {
      const [overrides, denials, changes] = await Promise.all([api.overrides(), api.denials(), api.changes()]);
      this.#entries([...denials.items, ...overrides.items]);
      this.#changes(changes.items);
    } catch (error) {
      for (const id of ["entries-empty", "changes-empty"]) {
        shown(byId(id), true);
        text(byId(id), `The list could not be had: ${reason(error)}`);
      }
    } finally {
      this.#isAsking = false;
    }
  }

  #entries(entries: Entry[]): void {
    entries.sort((a, b) => b.set_at.localeCompare(a.set_at));
    rows(byId("entries"), entries, (it) => `${it.kind}\n${it.identity}`, (it) => this.#entryRow(it));
    shown(byId("entries-empty"), entries.length === 0);
    text(byId("entries-empty"), "Nobody has another tier than the policy says, and nobody is denied but by the policy. Look at an identity above to change that.");
  }

  #entryRow(first: Entry): Row<Entry> {
    let entry = first;
    const look = el("button", { type: "button", class: "small" }, "Look");
    const remove = el("button", { type: "button", class: "small" }, "Remove");
    const name = foreign(first.identity);
    look.setAttribute("aria-label", `Look at ${name.textContent}`);
    remove.setAttribute("aria-label", `Remove the exception of ${name.textContent}`);
    look.addEventListener("click", () => this.inspect(entry.identity));
    remove.addEventListener("click", () => askRemove(entry, announce));
    const cell = (label: string): HTMLElement => el("td", { "data-label": label });
    const [what, until, why, by, at] = [cell("Exception"), cell("Until"), cell("Reason"), cell("Set by"), cell("Set at")];
    const node = el("tr", { "data-kind": first.kind }, el("th", { scope: "row" }, name), what, until, why, by, at, el("td", { class: "act" }, look, " ", remove));
    return {
      node,
      update(it) {
        entry = it;
        const isDenial = it.kind === "deny";
        what.replaceChildren(isDenial ? el("span", { class: "of", "data-status": "unhealthy" }, el("i", { class: "mark", "aria-hidden": "true" }), "denied, 403") : el("span", {}, "tier ", el("strong", {}, it.tier ?? NOTHING)));
        until.replaceChildren(it.until ? timeTag(it.until, untilText(it)) : "until removed");
        why.replaceChildren(it.reason ? wrapped(it.reason) : NOTHING);
        by.replaceChildren(wrapped(whoSet(it)));
        at.replaceChildren(timeTag(it.set_at, moment(new Date(it.set_at), new Date())));
      },
    };
  }

  #changes(changes: Change[]): void {
    rows(byId("changes"), changes.slice(0, 50), (it) => [it.at, it.action, it.identity, it.on].join("\n"), changeRow);
    shown(byId("changes-empty"), changes.length === 0);
    text(byId("changes-empty"), "Nothing was changed since this tollgate started.");
  }
}

function wrapped(value: string): HTMLElement {
  const node = el("span", { class: "wrap" });
  setForeign(node, value);
  node.removeAttribute("title");
  return node;
}

function changeRow(first: Change): Row<Change> {
  const empty = (value: string | null): true | null => (value ? null : true);
  const by = first.by ?? "unnamed";
  const node = el(
    "tr",
    {},
    el("td", { "data-label": "When" }, timeTag(first.at, moment(new Date(first.at), new Date()))),
    el("td", { "data-label": "What" }, el("strong", {}, ACTIONS[first.action] ?? first.action)),
    el("td", { "data-label": "Identity", "data-empty": empty(first.identity) }, first.identity ? foreign(first.identity) : NOTHING),
    el("td", { "data-label": "Details", "data-empty": empty(first.detail) }, first.detail ? wrapped(first.detail) : NOTHING),
    el("td", { "data-label": "By" }, wrapped(`${by}, from ${first.from}${first.on ? `, on ${first.on}` : ""}`)),
  );
  return { node, update: () => {} };
}
