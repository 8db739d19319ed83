// Who is refused most, and a close look at one of them.

import { announce } from "./announce";
import { api, reason } from "./api";
import { attribute, byId, el, foreign, rows, setForeign, shown, text, timeTag, type Row } from "./dom";
import { askDeny, askOverride, askRemove, askReset, summary, whoSet } from "./exceptions";
import { count, moment, short, span, words } from "./format";
import type { Entry, Frame, Identity, Limit, LimitState, Policy, TopItem } from "./model";

/** How often the identity that is looked at is asked for again. */
const REFRESH_MS = 2_000;
const TOP_REFRESH_MS = 5_000;
const SOURCE: Record<string, string> = {
  override: "an override set here",
  identities: "the policy's list of identities",
  token: "its token",
  key: "its API key",
  database: "the database of subscriptions",
  networks: "its network",
  default: "the default tier",
};

export class Callers {
  #identity: string | null = null;
  #asked = 0;
  #by: "blocked" | "requests" = "blocked";
  #topAsked = 0;
  #isAsking = false;
  #tiers: string[] = [];
  #outcome: { message: string; isBad: boolean } | null = null;

  constructor() {
    byId("top-by").addEventListener("change", (event) => {
      this.#by = (event.target as HTMLInputElement).value === "requests" ? "requests" : "blocked";
      this.#topAsked = 0;
    });
    byId("inspect-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.inspect(byId<HTMLInputElement>("identity").value.trim());
    });
  }

  policy(policy: Policy): void {
    this.#tiers = policy.tiers.map((tier) => tier.name);
  }

  show(frame: Frame): void {
    if (this.#by === "blocked") this.#top(frame.top);
    else if (Date.now() - this.#topAsked >= TOP_REFRESH_MS) void this.#asking();
    if (this.#identity !== null && Date.now() - this.#asked >= REFRESH_MS) void this.#ask(this.#identity, false);
  }

  /** Who asks most is no part of the stream: it is asked for while somebody wants to know. */
  async #asking(): Promise<void> {
    this.#topAsked = Date.now();
    try {
      const top = await api.asking();
      if (this.#by === "requests") this.#top(top);
    } catch (error) {
      shown(byId("top-empty"), true);
      text(byId("top-empty"), `The list could not be had: ${reason(error)}`);
    }
  }

  #top(top: { window: string; items: TopItem[] }): void {
    const items = top.items;
    const isBlocked = this.#by === "blocked";
    text(byId("top-title"), isBlocked ? "Refused most" : "Asking most");
    text(byId("top-column"), isBlocked ? "Refused" : "Requests");
    rows(byId("top"), items, (item) => item.identity, (item) => this.#topRow(item));
    const window = `${top.window.replace(/m$/, "")} minutes`;
    text(byId("top-window"), `in the last ${window}`);
    shown(byId("top-empty"), items.length === 0);
    text(byId("top-empty"), isBlocked ? `No request was refused by a limit in the last ${window}.` : `Nobody has asked for anything in the last ${window}.`);
    const known = byId("known-identities");
    rows(known, items, (item) => item.identity, (item) => ({
      node: el("option", { value: item.identity }),
      update: () => {},
    }));
  }

  /** Looks at an identity, and goes there. */
  inspect(identity: string): void {
    if (!identity) return;
    byId<HTMLInputElement>("identity").value = identity;
    this.#identity = identity;
    this.#outcome = null;
    byId("inspected").replaceChildren(el("p", { class: "empty" }, "Asking for it."));
    void this.#ask(identity, true);
  }

  /** Nothing is looked at any more. */
  forget(): void {
    this.#identity = null;
  }

  async #ask(identity: string, isFirst: boolean): Promise<void> {
    if (this.#isAsking && !isFirst) return;
    this.#isAsking = true;
    this.#asked = Date.now();
    try {
      const found = await api.identity(identity);
      if (this.#identity !== identity) return;
      this.#draw(found);
      if (isFirst) {
        const heading = byId("inspected").querySelector<HTMLElement>("h4");
        heading?.focus();
        byId("inspector").scrollIntoView({ block: "nearest" });
      }
    } catch (error) {
      if (this.#identity !== identity) return;
      if (isFirst) this.#identity = null;
      const message = `${reason(error)}`;
      if (isFirst) byId("inspected").replaceChildren(el("p", { class: "error", role: "alert" }, message));
      else this.#say(message, true);
    } finally {
      this.#isAsking = false;
    }
  }

  #say(message: string, isBad: boolean): void {
    this.#outcome = { message, isBad };
    if (!isBad) announce(message);
    const shownNow = byId("inspected").querySelector(".outcome");
    if (shownNow) {
      text(shownNow, message);
      attribute(shownNow, "class", isBad ? "outcome bad" : "outcome");
      shown(shownNow as HTMLElement, true);
    }
  }

  #done = (message: string): void => {
    this.#say(message, false);
    if (this.#identity !== null) void this.#ask(this.#identity, false);
  };

  #draw(found: Identity): void {
    const box = byId("inspected");
    const same = box.dataset["identity"] === found.identity && box.querySelector("table");
    if (!same) {
      box.dataset["identity"] = found.identity;
      box.replaceChildren(...this.#frameOf(found));
    }
    const part = (name: string): HTMLElement => box.querySelector(`[data-part="${name}"]`) as HTMLElement;
    text(part("tier"), found.tier);
    const source = SOURCE[found.tier_source] ?? words(found.tier_source);
    text(part("source"), `${words(found.identifier_type)}, by ${source}`);
    shown(part("refused"), found.refused);
    const facts = part("facts");
    const entries = [found.denied, found.override].filter((it): it is Entry => it !== null);
    rows(facts, entries.flatMap(factsOf), (it) => it.key, (it) => it.create());
    shown(facts, entries.length > 0);
    rows(part("limits"), found.limits, (it) => it.name, limitRow);
    shown(part("no-limits"), found.limits.length === 0);
    const [override, removeOverride] = [part("override"), part("remove-override")];
    text(override, found.override ? "Change the override…" : "Override the tier…");
    shown(removeOverride, found.override !== null);
    shown(part("deny"), found.denied === null);
    shown(part("allow"), found.denied !== null);
    this.#found = found;
    if (this.#outcome) this.#say(this.#outcome.message, this.#outcome.isBad);
  }

  #found: Identity | null = null;

  #frameOf(first: Identity): Node[] {
    const button = (part: string, label: string, act: (found: Identity) => void, kind = ""): HTMLElement => {
      const node = el("button", { type: "button", "data-part": part, class: kind }, label);
      node.addEventListener("click", () => this.#found && act(this.#found));
      return node;
    };
    const name = el("h4", { tabindex: "-1" });
    setForeign(name, first.identity);
    name.removeAttribute("title");
    const refused = el("span", { class: "of", "data-status": "unhealthy", "data-part": "refused" }, el("i", { class: "mark", "aria-hidden": "true" }), "its requests are refused");
    const head = el("tr", {}, el("th", { scope: "col" }, "Limit"), el("th", { scope: "col", class: "n" }, "Used"), el("th", { scope: "col", class: "n" }, "Left"), el("th", { scope: "col" }, "Whole again"));
    return [
      el("p", { class: "outcome", hidden: true }),
      el("div", { class: "who" }, name, el("span", {}, "tier ", el("strong", { "data-part": "tier" })), el("span", { class: "hint", "data-part": "source" }), refused),
      el("dl", { class: "facts", "data-part": "facts" }),
      el("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Its limits" }, el("table", {}, el("thead", {}, head), el("tbody", { "data-part": "limits" })), el("p", { class: "empty", "data-part": "no-limits" }, "No limit holds for it.")),
      el(
        "p",
        { class: "actions" },
        button("reset", "Reset its counters…", (it) => askReset(it.identity, this.#done)),
        button("override", "Override the tier…", (it) => askOverride(it.identity, this.#tiers, it.override?.tier ?? it.tier, this.#done)),
        button("remove-override", "Remove the override…", (it) => it.override && askRemove(it.override, this.#done)),
        button("deny", "Deny…", (it) => askDeny(it.identity, this.#done), "danger"),
        button("allow", "Take off the deny list…", (it) => it.denied && askRemove(it.denied, this.#done)),
      ),
    ];
  }

  #topRow(first: TopItem): Row<TopItem> {
    const total = el("td", { class: "n" });
    const name = foreign(first.identity);
    const look = el("button", { type: "button", class: "small", "aria-label": `Look at ${name.textContent}` }, "Look");
    look.addEventListener("click", () => this.inspect(first.identity));
    const node = el("tr", {}, el("td", {}, name), total, el("td", { class: "act" }, look));
    return {
      node,
      update(item) {
        text(total, item.error > 0 ? `${count(item.count)} (at most ${count(item.error)} too many)` : count(item.count));
      },
    };
  }
}

function factsOf(entry: Entry): { key: string; create(): Row<unknown> }[] {
  const of = (key: string, create: () => HTMLElement): { key: string; create(): Row<unknown> } => ({
    key: `${entry.kind} ${key} ${entry.set_at}`,
    create: () => ({ node: create(), update: () => {} }),
  });
  const at = (): HTMLElement => timeTag(entry.set_at, moment(new Date(entry.set_at), new Date()));
  const why = entry.reason ? ` Reason: ${entry.reason}` : "";
  return [
    of("name", () => el("dt", {}, entry.kind === "deny" ? "On the deny list" : "Override")),
    of("what", () => {
      const node = el("dd", {}, `${summary(entry)}. Set by ${whoSet(entry)}, `, at(), ".");
      const given = el("span");
      setForeign(given, why);
      given.removeAttribute("title");
      node.append(given);
      return node;
    }),
  ];
}

function limitRow(first: LimitState): Row<LimitState> {
  const [used, left, reset] = [el("td", { class: "n" }), el("td", { class: "n" }), el("td")];
  const fill = el("i");
  const meter = el("span", { class: "meter", "aria-hidden": "true" }, fill);
  const scope = first.scope === "tier" ? "" : ` of ${words(first.scope.replace(/^endpoint:/, "rule "))}`;
  const shadow = first.mode === "shadow" ? el("span", { class: "tag" }, "shadow") : null;
  const label = el("th", { scope: "row" });
  const node = el("tr", { "data-limit": first.name }, label, used, left, reset);
  return {
    node,
    update(it) {
      // A bucket's limit is what it holds.
      const what = it.period === "second" ? `${count(it.limit)} at once` : short({ period: it.period as Limit["period"], limit: it.limit });
      label.replaceChildren(`${what}${scope} `, shadow ?? "", meter);
      text(used, count(it.used));
      text(left, count(it.remaining));
      const share = it.limit > 0 ? Math.min(1, it.used / it.limit) : 1;
      fill.style.transform = `scaleX(${share})`;
      attribute(meter, "data-full", it.remaining === 0 ? "" : null);
      const wait = it.reset - Date.now() / 1000;
      text(reset, it.used === 0 ? "it is whole" : wait > 0 ? `in ${span(wait)}` : "now");
    },
  };
}
