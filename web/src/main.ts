// The page: joins the stream to its parts, signs in and out, and says when it hears nothing.

import { announce } from "./announce";
import { whenDenied } from "./api";
import { Callers } from "./callers";
import { ask, field } from "./dialogs";
import { attribute, byId, el, shown, text } from "./dom";
import { Exceptions } from "./exceptions";
import { span, time } from "./format";
import type { Frame, Health } from "./model";
import { Overview } from "./overview";
import { PolicyView } from "./policy";
import { session } from "./session";
import { Slow } from "./slow";
import { Stream, type StreamState } from "./stream";

/** A tab that nobody sees lets go of the stream after so long. */
const HIDDEN_MS = 30_000;
/** How long a lost connection is left to come back before it is called lost. */
const PATIENCE_MS = 1_500;
/** How often /health is asked while nobody has signed in. */
const HEALTH_MS = 10_000;
const OPERATOR_MAX = 64;

const overview = new Overview();
const callers = new Callers();
const exceptions = new Exceptions((identity) => callers.inspect(identity));
const policy = new PolicyView((it) => {
  callers.policy(it);
  overview.policy(it);
});
const slow = new Slow();

let state: StreamState = { kind: "connecting" };
let lastFrame: number | null = null;
let lostSince: number | null = null;
let wasTold = false;
/** Whether the token that is in use was typed in a moment ago. */
let isTrying = false;

const stream = new Stream({
  frame(data) {
    const frame = data as Frame;
    lastFrame = Date.now();
    overview.show(frame);
    callers.show(frame);
    exceptions.show(frame);
    policy.show(frame);
    slow.show(frame);
  },
  state(next) {
    const before = state.kind;
    state = next;
    if (next.kind === "live") {
      if (wasTold) announce("The connection to tollgate is back.");
      [lostSince, wasTold, isTrying] = [null, false, false];
      signedIn(true);
    } else if (next.kind === "denied") {
      denied(next.status, next.why);
    } else if (next.kind === "lost") {
      lostSince ??= lastFrame ?? Date.now();
    }
    if (next.kind !== before || next.kind === "lost") tell();
  },
});

/** The connection, as it is now; called every second too. */
function tell(): void {
  const hasBeenLost = lostSince !== null && Date.now() - lostSince > PATIENCE_MS;
  const isLost = hasBeenLost && (state.kind === "lost" || state.kind === "connecting");
  const label: Record<StreamState["kind"], string> = {
    connecting: "Connecting",
    live: "Live",
    lost: "Connecting",
    denied: "Signed out",
    paused: "Paused",
  };
  attribute(byId("live"), "data-live", isLost ? "lost" : state.kind === "lost" ? "connecting" : state.kind);
  text(byId("live-text"), isLost ? "No connection" : label[state.kind]);
  document.body.classList.toggle("stale", isLost && lastFrame !== null);
  if (isLost) overview.stale();
  shown(byId("lost"), isLost);
  if (!isLost || lostSince === null) return;
  const since = lastFrame === null ? "" : ` The figures are of ${time(new Date(lastFrame))}, ${span((Date.now() - lastFrame) / 1000)} ago.`;
  const why = state.kind === "lost" ? state.why : "Trying to reach it.";
  const wait = state.kind === "lost" ? Math.max(0, Math.ceil((state.retryAt - Date.now()) / 1000)) : 0;
  text(byId("lost-title"), "The connection is lost.");
  text(byId("lost-text"), `${why}${since}${wait > 0 ? ` Next try in ${wait} s.` : ""}`);
  if (!wasTold) {
    wasTold = true;
    announce("The connection to tollgate is lost. The figures on this page are stale.");
  }
}

function signedIn(is: boolean): void {
  shown(byId("sign-in"), !is);
  for (const id of ["board", "sections", "session-button"]) shown(byId(id), is);
}

function denied(status: number, why: string): void {
  const wasSignedIn = !byId("board").hidden;
  signedIn(false);
  callers.forget();
  attribute(byId("badge"), "data-status", "unknown");
  text(byId("badge-text"), "Signed out");
  const isForbidden = status === 403;
  shown(byId("sign-in-form"), !isForbidden);
  text(byId("sign-in-heading"), isForbidden ? "Only on its own machine" : "Sign in");
  text(
    byId("sign-in-why"),
    isForbidden
      ? "No admin.token_file is set, so that this port shows its figures to callers of its own machine alone, under a loopback address or localhost. Set a token, or forward the port: ssh -L 9900:127.0.0.1:9900 and the machine's name; then open http://127.0.0.1:9900/."
      : "The figures, and what can be changed, are for whoever knows the admin token: the content of the file that admin.token_file names.",
  );
  const wrong = status === 429 ? why : "This is not the token. Look whether all of it was copied.";
  text(byId("sign-in-error"), isTrying ? wrong : "");
  byId<HTMLInputElement>("operator").value ||= session.operator;
  if (!isForbidden && (isTrying || wasSignedIn)) byId<HTMLInputElement>("token").focus();
  isTrying = false;
  // One that was not even looked at may be right.
  if (status !== 429) session.signOut();
  void openHealth();
}

/** What is told to everybody, while nobody has signed in. */
async function openHealth(): Promise<void> {
  const said = byId("open-health");
  try {
    const health = (await (await fetch("/health", { cache: "no-store", credentials: "omit" })).json()) as Health;
    attribute(byId("badge"), "data-status", health.status);
    text(byId("badge-text"), health.status.charAt(0).toUpperCase() + health.status.slice(1));
    text(byId("instance"), health.instance);
    text(byId("version"), health.version);
    const configured = Object.entries(health.dependencies).filter(([, it]) => it !== "not_configured");
    const parts = configured.map(([name, it]) => `${name} is ${it}`);
    text(said, `${health.instance} (tollgate ${health.version}) is ${health.status}${parts.length > 0 ? `: ${parts.join(", ")}` : ""}.`);
  } catch {
    text(said, "/health does not answer.");
  }
}

function openSession(): void {
  const name = el("input", { value: session.operator, maxlength: OPERATOR_MAX, autocomplete: "nickname" });
  const body: Node[] = [
    el("p", {}, session.token ? "Signed in with the admin token, until this tab is closed." : "This port asks for no token: admin.token_file is not set, so that it serves its own machine alone."),
    field("Your name", name, "Stands beside what you change, so that others know whom to ask."),
  ];
  if (session.token) {
    const out = el("button", { type: "button" }, "Sign out");
    out.addEventListener("click", () => {
      byId<HTMLDialogElement>("dialog").close();
      signOut();
    });
    body.push(el("p", { class: "actions" }, out));
  }
  ask({
    title: "Session",
    body,
    action: "Keep the name",
    isDestructive: false,
    async run() {
      session.setOperator(name.value.trim());
      nameSession();
    },
  });
}

function signOut(): void {
  stream.stop();
  session.signOut();
  state = { kind: "denied", status: 401, why: "" };
  lostSince = null;
  denied(401, "");
  tell();
  byId("token").focus();
}

function nameSession(): void {
  text(byId("session-button"), session.operator || "Session");
  attribute(byId("session-button"), "aria-label", session.operator ? `Session of ${session.operator}` : null);
}

byId("sign-in-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const token = byId<HTMLInputElement>("token");
  session.signIn(token.value.trim(), byId<HTMLInputElement>("operator").value.trim());
  token.value = "";
  isTrying = true;
  nameSession();
  stream.connect();
});
byId("session-button").addEventListener("click", openSession);
byId("lost-retry").addEventListener("click", () => stream.connect());

whenDenied((status) => {
  if (state.kind !== "live" || status !== 401) return;
  // The token was changed while the stream went on: whoever looks has to sign in again.
  stream.stop();
  state = { kind: "denied", status, why: "" };
  denied(status, "");
  tell();
});

let hidden: ReturnType<typeof setTimeout> | undefined;
document.addEventListener("visibilitychange", () => {
  clearTimeout(hidden);
  if (document.hidden) {
    hidden = setTimeout(() => {
      if (state.kind !== "denied") stream.pause();
    }, HIDDEN_MS);
  } else if (state.kind === "paused") {
    lostSince = null;
    stream.connect();
  }
});
addEventListener("pagehide", () => {
  overview.history.save();
  stream.stop();
});
addEventListener("pageshow", (event) => {
  if (event.persisted) stream.connect();
});
addEventListener("online", () => {
  if (state.kind === "lost") stream.connect();
});

nameSession();
setInterval(tell, 1_000);
setInterval(() => {
  if (state.kind === "denied" && !document.hidden) void openHealth();
}, HEALTH_MS);
stream.connect();
