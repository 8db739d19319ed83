// Numbers, times and limits as people read them.

import type { Limit } from "./model";

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat("en", {
  minimumFractionDigits: 1,
  maximumFractionDigits: 1,
});
const hundredths = new Intl.NumberFormat("en", {
  minimumFractionDigits: 2,
  maximumFractionDigits: 2,
});
const clockTime = new Intl.DateTimeFormat("en-GB", {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
});
const dayAndTime = new Intl.DateTimeFormat("en-GB", {
  day: "numeric",
  month: "short",
  year: "numeric",
  hour: "2-digit",
  minute: "2-digit",
});

export const NOTHING = "–";

export function count(value: number): string {
  return whole.format(value);
}

/** Events a second: with a tenth where that tells something. */
export function rate(value: number | null): string {
  if (value === null) return NOTHING;
  return value > 0 && value < 100 && !Number.isInteger(value)
    ? tenths.format(value)
    : whole.format(value);
}

export function millis(value: number | null | undefined): string {
  if (value == null) return NOTHING;
  if (value < 1) return `${hundredths.format(value)} ms`;
  if (value < 10) return `${tenths.format(value)} ms`;
  if (value < 1000) return `${whole.format(value)} ms`;
  return `${hundredths.format(value / 1000)} s`;
}

/** Without its unit, where that stands beside it. */
export function bare(value: number): string {
  return millis(value).replace(/ ms$/, "");
}

/** A round number. */
export function number(value: number): string {
  return new Intl.NumberFormat("en", { maximumFractionDigits: 2 }).format(value);
}

export function mebibytes(value: number | null): string {
  if (value === null) return NOTHING;
  return `${value < 100 ? tenths.format(value) : whole.format(value)} MiB`;
}

/** A span, with its two largest units at the most. */
export function span(seconds: number): string {
  const all = Math.max(0, Math.round(seconds));
  const [days, hours, minutes] = [
    Math.floor(all / 86400),
    Math.floor((all % 86400) / 3600),
    Math.floor((all % 3600) / 60),
  ];
  if (days > 0) return hours > 0 ? `${days} d ${hours} h` : `${days} d`;
  if (hours > 0) return minutes > 0 ? `${hours} h ${minutes} min` : `${hours} h`;
  if (minutes > 0) return minutes < 5 && all % 60 > 0 ? `${minutes} min ${all % 60} s` : `${minutes} min`;
  return `${all} s`;
}

export function time(at: Date): string {
  return clockTime.format(at);
}

/** The time of today, or the day with it. */
export function moment(at: Date, now: Date): string {
  return at.toDateString() === now.toDateString() ? time(at) : dayAndTime.format(at);
}

/** `a`, `a and b`, `a, b and c`. */
export function list(words: string[]): string {
  const last = words.at(-1) ?? "";
  return words.length < 2 ? last : `${words.slice(0, -1).join(", ")} and ${last}`;
}

const CALENDAR: Record<string, string> = { day: "day", month: "month" };

/** A limit as a sentence that needs no other explanation. */
export function explain(limit: Limit): string {
  const most = count(limit.limit);
  switch (limit.period) {
    case "second": {
      const burst = limit.burst ?? limit.limit;
      return (
        `${most} a second in the long run, at most ${count(burst)} at once; ` +
        `what was used comes back at ${most} a second.`
      );
    }
    case "minute":
      return `At most ${most} in any 60 seconds; what was used comes back within 61 seconds.`;
    case "hour":
      return `At most ${most} in any 60 minutes; what was used comes back within 61 minutes.`;
    case "concurrency":
      return `At most ${most} under way at the same time.`;
    default: {
      const unit = CALENDAR[limit.period] ?? limit.period;
      return `At most ${most} in a calendar ${unit} (UTC); all of it comes back when the next one begins.`;
    }
  }
}

/** `100 a minute`, for places with little room. */
export function short(limit: Limit): string {
  if (limit.period === "concurrency") return `${count(limit.limit)} at a time`;
  const burst = limit.burst != null && limit.burst !== limit.limit ? ` (burst ${count(limit.burst)})` : "";
  return `${count(limit.limit)} ${limit.period === "hour" ? "an" : "a"} ${limit.period}${burst}`;
}

/** `suspected_leak` as words. */
export function words(name: string): string {
  return name.replaceAll("_", " ");
}
