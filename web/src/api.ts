// Calls of the admin API, and what went wrong with one in words that say what to do.

import type { Change, Entry, Identity, Policy, SlowCall, TopItem } from "./model";
import { session } from "./session";

const TIMEOUT_MS = 15_000;

/** An answer that is not the one that was asked for; `status` is 0 where none came at all. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly details: string[] = [],
  ) {
    super(message);
  }
}

type OnDenied = (status: number) => void;
let onDenied: OnDenied = () => {};

/** Whoever wants to know of a 401 or 403. */
export function whenDenied(callback: OnDenied): void {
  onDenied = callback;
}

export function headers(): Record<string, string> {
  const fields: Record<string, string> = {};
  if (session.token) fields["Authorization"] = `Bearer ${session.token}`;
  if (session.operator) fields["X-Tollgate-Operator"] = bytes(session.operator);
  return fields;
}

/** As UTF-8; fetch takes a field as one character for each byte. */
function bytes(value: string): string {
  return String.fromCharCode(...new TextEncoder().encode(value));
}

async function call(method: string, path: string, body?: unknown): Promise<unknown> {
  const fields = headers();
  if (body !== undefined) fields["Content-Type"] = "application/json";
  let answer: Response;
  try {
    answer = await fetch(path, {
      method,
      headers: fields,
      body: body === undefined ? null : JSON.stringify(body),
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
  } catch {
    throw new ApiError(0, "tollgate did not answer. Is it still running? Try again in a moment.");
  }
  if (answer.ok) return answer.status === 204 ? null : await answer.json().catch(() => null);
  throw await failure(answer);
}

/** What a refusal says. */
export async function failure(answer: Response): Promise<ApiError> {
  if (answer.status === 401) {
    onDenied(401);
    return new ApiError(401, "The token was not accepted. Sign in with the one of admin.token_file.");
  }
  if (answer.status === 403) {
    onDenied(403);
    return new ApiError(
      403,
      "Without admin.token_file this port answers its own machine alone. Set one, or open the page there.",
    );
  }
  const wait = Number(answer.headers.get("Retry-After"));
  const said = (await answer.json().catch(() => null)) as { error?: unknown; errors?: unknown } | null;
  const error = typeof said?.error === "string" ? said.error : `tollgate answered ${answer.status}`;
  const details = Array.isArray(said?.errors) ? said.errors.map(String) : [];
  if (answer.status === 429) {
    const when = wait > 0 ? ` Try again in ${wait} s.` : "";
    return new ApiError(429, `Too many wrong tokens came from this address.${when}`, details);
  }
  return new ApiError(answer.status, error, details);
}

/** What to show of anything that was thrown. */
export function reason(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

const of = (kind: "identities" | "deny", identity: string): string =>
  `/api/v1/${kind}/${encodeURIComponent(identity)}`;

export interface Setting {
  tier?: string;
  until: string | null;
  reason: string | null;
}

export const api = {
  policy: () => call("GET", "/api/v1/policy") as Promise<Policy>,
  reload: () => call("POST", "/api/v1/reload", {}) as Promise<{ reloaded: boolean; hash: string }>,
  identity: (id: string) => call("GET", of("identities", id)) as Promise<Identity>,
  reset: (id: string) => call("DELETE", of("identities", id)),
  override: (id: string, setting: Setting) =>
    call("PUT", `${of("identities", id)}/override`, setting) as Promise<Entry>,
  removeOverride: (id: string) => call("DELETE", `${of("identities", id)}/override`),
  deny: (id: string, setting: Setting) => call("PUT", of("deny", id), setting) as Promise<Entry>,
  removeDenial: (id: string) => call("DELETE", of("deny", id)),
  overrides: () => call("GET", "/api/v1/overrides") as Promise<{ items: Entry[] }>,
  denials: () => call("GET", "/api/v1/deny") as Promise<{ items: Entry[] }>,
  changes: () => call("GET", "/api/v1/changes") as Promise<{ items: Change[] }>,
  asking: () =>
    call("GET", "/api/v1/top?by=requests&window=5m&limit=10") as Promise<{ window: string; items: TopItem[] }>,
  slow: () => call("GET", "/api/v1/slow") as Promise<{ items: SlowCall[] }>,
};
