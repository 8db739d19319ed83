// What is read out to whoever does not look: only what has happened, never figures.

import { byId } from "./dom";

const CLEAR_MS = 8_000;
let timer: ReturnType<typeof setTimeout> | undefined;

export function announce(message: string): void {
  const region = byId("announcer");
  region.textContent = message;
  clearTimeout(timer);
  timer = setTimeout(() => {
    region.textContent = "";
  }, CLEAR_MS);
}
