// What the admin port says, as its JSON has it. Times are RFC 3339 unless their name says otherwise.

export type Status = "healthy" | "degraded" | "unhealthy" | "not_configured";

export interface Noticed {
  at: string;
  result: string;
}

export interface Dependency {
  status: Status;
  circuit_breaker: "closed" | "half_open" | "open" | null;
  since: string | null;
  last_error: Noticed | null;
  last_check: Noticed | null;
}

/** What a tier's callers were answered; the totals count from the start of the process. */
export interface TierFigures {
  name: string;
  allowed: number;
  blocked: number;
  /** Rates are `null` in the first frame of a stream. */
  allowed_per_second: number | null;
  blocked_per_second: number | null;
}

export interface TopItem {
  identity: string;
  count: number;
  error: number;
}

export interface SlowCall {
  time: string;
  query_type: string;
  endpoint: string | null;
  method: string | null;
  upstream: string | null;
  ttfb_ms: number | null;
  total_ms: number;
  status: number | null;
  tier: string | null;
  trace_id: string | null;
  timed_out: boolean;
}

export interface Reload {
  ok: boolean;
  at: string | null;
  error: string | null;
}

/** One second of tollgate, as the stream tells it. */
export interface Frame {
  /** Unix time in milliseconds, by tollgate's clock. */
  at_ms: number;
  instance: string;
  version: string;
  uptime_seconds: number;
  config_hash: string;
  status: Status;
  reasons: string[];
  rate_limiter: { mode: "exact" | "local" | "open" | "closed"; since: string };
  dependencies: Record<string, Dependency>;
  requests_total: number;
  requests_per_second: number | null;
  tiers: TierFigures[];
  /** `null` where nothing was answered in the last seconds. */
  latency: { p50_ms: number; p95_ms: number; p99_ms: number } | null;
  backpressure: {
    severity: "normal" | "warning" | "critical";
    event_loop_lag_ms: number;
    requests_in_flight: number;
    async_tasks_pending: number;
    workers_stuck: number;
  };
  memory: {
    rss_mb: number | null;
    percent: number | null;
    growth_rate_mb_per_sec: number;
    verdict: string;
  };
  connections: number;
  top: { window: string; items: TopItem[] };
  slow: { total: number; items: SlowCall[] };
  reload: Reload;
  /** Identities that have another tier for now, and those that are denied. */
  overrides: number;
  denied: number;
  /** Another number once something was set, removed, reset or reloaded. */
  changes: number;
}

export interface Limit {
  period: "second" | "minute" | "hour" | "day" | "month" | "concurrency";
  limit: number;
  burst?: number | null;
}

export interface Tier {
  name: string;
  limits: Limit[];
  on_failure: string | null;
}

export interface Endpoint {
  name: string;
  path: string;
  match: string | null;
  methods: string[];
  host: string | null;
  cost: number;
  exempt: boolean;
  mode: string;
  limits: Record<string, Limit[]>;
}

export interface Policy {
  hash: string;
  loaded_at: string;
  mode: string;
  default_tier: string;
  tiers: Tier[];
  endpoints: Endpoint[];
  subscriptions: Record<string, string>;
  networks: Record<string, string>;
  last_reload: Reload;
}

/** An override or a denial, and who set it. */
export interface Entry {
  identity: string;
  kind: "override" | "deny";
  tier: string | null;
  until: string | null;
  reason: string | null;
  set_at: string;
  set_by: string | null;
  set_from: string;
  set_on: string;
}

export interface LimitState {
  name: string;
  scope: string;
  period: string;
  limit: number;
  used: number;
  remaining: number;
  /** Unix seconds. */
  reset: number;
  mode: string;
}

export interface Identity {
  identity: string;
  identifier_type: string;
  tier: string;
  tier_source: string;
  refused: boolean;
  override: Entry | null;
  denied: Entry | null;
  limits: LimitState[];
}

export interface Change {
  at: string;
  action: string;
  identity: string | null;
  detail: string | null;
  by: string | null;
  from: string;
  on: string;
}

export interface Health {
  status: Status;
  version: string;
  instance: string;
  dependencies: Record<string, Status>;
}
