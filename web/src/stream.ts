// The stream of frames: read with fetch, since EventSource cannot say who is asking.

import { ApiError, failure, headers } from "./api";

const PATH = "/api/v1/stream";
/** One frame a second is promised: after so long without one the connection is as good as gone. */
const SILENCE_MS = 5_000;
const RETRY_FIRST_MS = 500;
const RETRY_MAX_MS = 15_000;
/** Answers that another try would not change: no token, not from here, too many wrong tokens. */
const DENIALS = [401, 403, 429];
/** Longest event that is collected; a frame has some kilobytes. */
const EVENT_MAX = 1 << 20;

/** Takes a stream apart into the data of its events (HTML Living Standard, section 9.2). */
export class EventParser {
  #rest = "";
  #data: string[] = [];

  /** The events that are complete with this piece. */
  push(piece: string): string[] {
    const events: string[] = [];
    const lines = (this.#rest + piece).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop() ?? "";
    for (const line of lines) {
      if (line === "") {
        if (this.#data.length > 0) events.push(this.#data.join("\n"));
        this.#data = [];
      } else if (line.startsWith("data:")) {
        this.#data.push(line.slice(line.startsWith("data: ") ? 6 : 5));
      }
    }
    const kept = this.#rest.length + this.#data.reduce((sum, line) => sum + line.length, 0);
    if (kept > EVENT_MAX) throw new Error("an event without an end");
    return events;
  }
}

export type StreamState =
  | { kind: "connecting" }
  | { kind: "live" }
  /** `retryAt` in milliseconds of `Date.now()`. */
  | { kind: "lost"; why: string; retryAt: number }
  | { kind: "denied"; status: number; why: string }
  | { kind: "paused" };

export interface Listener {
  frame(data: unknown): void;
  state(state: StreamState): void;
}

/** A connection that is made again whenever it ends, until it is paused or refused. */
export class Stream {
  #abort: AbortController | null = null;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #pause = RETRY_FIRST_MS;

  constructor(private readonly listener: Listener) {}

  /** Connects now, whatever was waited for. */
  connect(): void {
    this.#end();
    this.listener.state({ kind: "connecting" });
    const abort = new AbortController();
    this.#abort = abort;
    this.#read(abort).then(
      () => this.#retry(abort, "tollgate has ended the connection."),
      (error: unknown) => {
        if (abort.signal.aborted && abort.signal.reason === "ended") return;
        if (error instanceof ApiError && DENIALS.includes(error.status)) {
          this.#end();
          this.listener.state({ kind: "denied", status: error.status, why: error.message });
        } else if (error instanceof ApiError) {
          this.#retry(abort, error.message);
        } else {
          const silent = abort.signal.reason === "silent";
          this.#retry(abort, silent ? "Nothing came for 5 seconds." : "tollgate does not answer.");
        }
      },
    );
  }

  /** Lets go of the connection: nobody looks. */
  pause(): void {
    this.#end();
    this.listener.state({ kind: "paused" });
  }

  /** The same without a word. */
  stop(): void {
    this.#end();
  }

  #end(): void {
    clearTimeout(this.#timer);
    this.#abort?.abort("ended");
    this.#abort = null;
  }

  #retry(abort: AbortController, why: string): void {
    if (this.#abort !== abort) return;
    this.#end();
    // So that the pages of many people do not all come back in the same moment.
    const pause = this.#pause * (0.75 + Math.random() / 2);
    this.#pause = Math.min(this.#pause * 2, RETRY_MAX_MS);
    this.listener.state({ kind: "lost", why, retryAt: Date.now() + pause });
    this.#timer = setTimeout(() => this.connect(), pause);
  }

  async #read(abort: AbortController): Promise<void> {
    let alarm = setTimeout(() => abort.abort("silent"), SILENCE_MS);
    try {
      const answer = await fetch(PATH, {
        headers: { ...headers(), Accept: "text/event-stream" },
        cache: "no-store",
        credentials: "omit",
        redirect: "error",
        signal: abort.signal,
      });
      if (!answer.ok) throw await failure(answer);
      if (!answer.body) throw new Error("no body");
      const parser = new EventParser();
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        for (const data of parser.push(value)) {
          clearTimeout(alarm);
          alarm = setTimeout(() => abort.abort("silent"), SILENCE_MS);
          this.#pause = RETRY_FIRST_MS;
          this.listener.state({ kind: "live" });
          const frame: unknown = JSON.parse(data);
          try {
            this.listener.frame(frame);
          } catch (error) {
            // A fault of the page's is none of the connection's.
            console.error(error);
          }
        }
      }
    } finally {
      clearTimeout(alarm);
    }
  }
}
