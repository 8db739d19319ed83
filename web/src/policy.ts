// The policy in force, with what each limit means, and its reloads.

import { announce } from "./announce";
import { ApiError, api, reason } from "./api";
import { attribute, byId, el, foreign, shown, text } from "./dom";
import { explain, list, moment, short, span } from "./format";
import type { Endpoint, Frame, Limit, Policy, Reload, Tier } from "./model";

const FAILURE: Record<string, string> = {
  local: "Without its store, each replica limits by what it has seen itself.",
  open: "Without its store, everything passes.",
  closed: "Without its store, its requests are refused with 503.",
};

export class PolicyView {
  #key = "";
  #isAsking = false;
  #failedAt = 0;
  #policy: Policy | null = null;

  constructor(private readonly loaded: (policy: Policy) => void) {
    byId("reload").addEventListener("click", () => void this.#reload());
  }

  show(frame: Frame): void {
    this.#lastReload(frame.reload);
    const key = `${frame.instance} ${frame.config_hash} ${frame.reload.at}`;
    if (key !== this.#key && !this.#isAsking && Date.now() - this.#failedAt > 5_000) void this.#ask(key);
    if (this.#policy) this.#line(this.#policy);
  }

  async #ask(key: string): Promise<void> {
    this.#isAsking = true;
    try {
      const policy = await api.policy();
      this.#key = key;
      this.#policy = policy;
      this.#line(policy);
      this.#draw(policy);
      this.loaded(policy);
    } catch (error) {
      this.#failedAt = Date.now();
      text(byId("policy-line"), `The policy could not be had: ${reason(error)}`);
    } finally {
      this.#isAsking = false;
    }
  }

  async #reload(): Promise<void> {
    const button = byId<HTMLButtonElement>("reload");
    button.disabled = true;
    try {
      const done = await api.reload();
      announce(`The files were read again; the policy in force is ${done.hash}.`);
      text(button, "Reloaded");
    } catch (error) {
      const details = error instanceof ApiError ? error.details : [];
      const what = [reason(error), ...details].join("\n\n");
      this.#lastReload({ ok: false, at: new Date().toISOString(), error: what });
      announce("The reload was refused; what was wrong stands above the policy.");
      byId("reload-error").scrollIntoView({ block: "nearest" });
    } finally {
      button.disabled = false;
      setTimeout(() => text(button, "Reload now"), 3_000);
    }
  }

  #lastReload(reload: Reload): void {
    shown(byId("reload-error"), !reload.ok);
    if (reload.ok) return;
    text(byId("reload-text"), reload.error ?? "The log says why.");
    const at = reload.at ? moment(new Date(reload.at), new Date()) : "";
    text(byId("reload-when"), at ? `At ${at}. What was wrong:` : "What was wrong:");
  }

  #line(policy: Policy): void {
    const loaded = new Date(policy.loaded_at);
    const age = span((Date.now() - loaded.getTime()) / 1000);
    const mode = policy.mode === "shadow" ? " Everything is in shadow: counted and reported, never refused." : "";
    const at = moment(loaded, new Date());
    const line = `Hash ${policy.hash}, in force since ${at} (${age}). Who is not known otherwise has the tier ${policy.default_tier}.${mode}`;
    text(byId("policy-line"), line);
  }

  #draw(policy: Policy): void {
    byId("policy-tiers").replaceChildren(...policy.tiers.map((tier) => tierCard(tier, policy.default_tier)));
    byId("endpoints").replaceChildren(...policy.endpoints.map((it) => endpointRow(it, policy.tiers.length)));
    shown(byId("endpoints-empty"), policy.endpoints.length === 0);
    text(byId("endpoints-empty"), "No rule names an endpoint: the limits of the tier hold for every path.");
    const pairs = [...Object.entries(policy.subscriptions), ...Object.entries(policy.networks)];
    shown(byId("sources"), pairs.length > 0);
    const line = ([name, tier]: [string, string]): Node[] => [el("dt", {}, foreign(name)), el("dd", {}, tier)];
    byId("sources-list").replaceChildren(...pairs.flatMap(line));
  }
}

function sentence(limit: Limit): HTMLElement {
  return el("li", {}, el("span", { class: "short" }, short(limit)), ": ", explain(limit));
}

function tierCard(tier: Tier, defaultTier: string): HTMLElement {
  const isDefault = tier.name === defaultTier ? el("span", { class: "tag" }, "default") : null;
  const card = el("div", { class: "card", "data-tier": tier.name }, el("h3", {}, foreign(tier.name), " ", isDefault));
  card.append(
    tier.limits.length > 0
      ? el("ul", {}, ...tier.limits.map(sentence))
      : el("p", { class: "hint" }, "No limit of its own: whatever comes passes, unless a rule below says otherwise."),
  );
  const failure = tier.on_failure ? FAILURE[tier.on_failure] : undefined;
  if (failure) card.append(el("p", { class: "hint" }, failure));
  return card;
}

/** Limits, and the tiers that have the same. */
function alike(limits: Record<string, Limit[]>): [Limit[], string[]][] {
  const groups = new Map<string, [Limit[], string[]]>();
  for (const [tier, its] of Object.entries(limits)) {
    const key = JSON.stringify(its);
    const group = groups.get(key) ?? [its, []];
    group[1].push(tier);
    groups.set(key, group);
  }
  return [...groups.values()];
}

function endpointRow(endpoint: Endpoint, all: number): HTMLElement {
  const methods = endpoint.methods.length > 0 ? `${list(endpoint.methods)} ` : "any method, ";
  const host = endpoint.host ? `, host ${endpoint.host}` : "";
  const strict = endpoint.match === "strict" ? ", to the letter" : "";
  const holds = el("ul");
  const say = (...words: (Node | string)[]): void => void holds.append(el("li", {}, ...words));
  if (endpoint.exempt) say("Exempt: no limit holds, nothing is counted.");
  for (const [limits, tiers] of alike(endpoint.limits)) {
    const whom = tiers.length > 1 && tiers.length === all ? "every tier" : list(tiers);
    for (const limit of limits) say(el("span", { class: "short" }, `${whom}, ${short(limit)}`), ": ", explain(limit));
  }
  if (endpoint.cost !== 1) say(`A request counts as ${endpoint.cost}.`);
  if (endpoint.mode === "shadow") say("In shadow: counted and reported, never refused.");
  if (!holds.hasChildNodes()) say("The limits of the tier, and no other.");
  const requests = el("td", { "data-label": "Requests" }, methods, foreign(endpoint.path, "foreign"), host, strict);
  const node = el("tr", {}, el("th", { scope: "row" }, foreign(endpoint.name)), requests, el("td", { "data-label": "What holds" }, holds));
  attribute(node, "data-endpoint", endpoint.name);
  return node;
}
