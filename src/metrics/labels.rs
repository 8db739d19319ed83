//! The closed sets that label values come from.

use http::Method;

/// The values that a label may have, each with what it says; empty where they are not a closed set.
pub type Values = &'static [(&'static str, &'static str)];

macro_rules! label {
    (
        $(#[$doc:meta])* $name:ident {
            $($(#[doc = $text_of:literal])+ $variant:ident = $text:literal,)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[doc = $text_of])+ $variant,)*
        }

        impl $name {
            /// Every value, in the order of their indices.
            pub const ALL: &[$name] = &[$($name::$variant),*];
            /// How many there are.
            pub const COUNT: usize = $name::ALL.len();
            /// Every value, and what it says.
            pub const VALUES: Values = &[$(($text, concat!($($text_of),+))),*];

            /// As the label says it.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $($name::$variant => $text,)*
                }
            }

            /// Its place in `ALL`.
            pub const fn index(self) -> usize {
                self as usize
            }
        }
    };
}
pub(super) use label;

label! {
    /// A request's method; those that callers make up share one value.
    MethodLabel {
        /// `GET`.
        Get = "GET",
        /// `POST`.
        Post = "POST",
        /// `PUT`.
        Put = "PUT",
        /// `PATCH`.
        Patch = "PATCH",
        /// `DELETE`.
        Delete = "DELETE",
        /// `HEAD`.
        Head = "HEAD",
        /// `OPTIONS`.
        Options = "OPTIONS",
        /// Any other.
        Other = "OTHER",
    }
}

impl MethodLabel {
    /// The label of a method.
    pub fn of(method: &Method) -> Self {
        match *method {
            Method::GET => MethodLabel::Get,
            Method::POST => MethodLabel::Post,
            Method::PUT => MethodLabel::Put,
            Method::PATCH => MethodLabel::Patch,
            Method::DELETE => MethodLabel::Delete,
            Method::HEAD => MethodLabel::Head,
            Method::OPTIONS => MethodLabel::Options,
            _ => MethodLabel::Other,
        }
    }
}

label! {
    /// The hundred that a status code belongs to.
    CodeClass {
        /// No answer was begun.
        None = "none",
        /// Informational; 101 for upgrades.
        Informational = "1xx",
        /// Success.
        Success = "2xx",
        /// Redirection.
        Redirection = "3xx",
        /// The caller's fault.
        ClientError = "4xx",
        /// The server's fault, or ours.
        ServerError = "5xx",
    }
}

impl CodeClass {
    /// The class of a status code; 0 and other impossible ones have none.
    pub const fn of(status: u16) -> Self {
        match status {
            100..200 => CodeClass::Informational,
            200..300 => CodeClass::Success,
            300..400 => CodeClass::Redirection,
            400..500 => CodeClass::ClientError,
            500..600 => CodeClass::ServerError,
            _ => CodeClass::None,
        }
    }
}

label! {
    /// How a request ended, coarsely.
    Outcome {
        /// The upstream's answer was passed on.
        Allowed = "allowed",
        /// Refused for what the caller did: a limit, the deny list, a malformed request.
        Limited = "limited",
        /// Refused for load.
        Shed = "shed",
        /// The upstream failed: unreachable, late, broken off, or an answer of 5xx.
        UpstreamError = "upstream_error",
        /// tollgate failed, a limiter without its store under `closed` included.
        ProxyError = "proxy_error",
        /// The caller went away before the end.
        ClientAbort = "client_abort",
    }
}

label! {
    /// What the count of errors tells apart.
    ErrorType {
        /// The upstream answered 5xx.
        Upstream5xx = "upstream_5xx",
        /// The upstream could not be reached, or broke off.
        UpstreamConnect = "upstream_connect",
        /// The upstream took too long.
        UpstreamTimeout = "upstream_timeout",
        /// tollgate's own fault.
        ProxyError = "proxy_error",
        /// 429.
        RateLimited = "rate_limited",
        /// Refused for load.
        Shed = "shed",
        /// The caller went away.
        ClientAbort = "client_abort",
        /// A credential that was not accepted.
        AuthInvalid = "auth_invalid",
    }
}

/// How a request ended, exactly. What it counts as follows from here and nowhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// An answer below 500 was passed on to its end, or an upgrade was made.
    Answered,
    /// An answer of 5xx was passed on.
    Upstream5xx,
    /// 502: no connection, or broken off before its end.
    UpstreamConnect,
    /// 504, or an answer whose body stalled.
    UpstreamTimeout,
    /// 503: the upstream has failed so often that it is not asked.
    CircuitOpen,
    /// 429.
    RateLimited,
    /// 503 for load.
    Shed,
    /// 401.
    Unauthorized,
    /// Another 4xx of tollgate's own: malformed, denied, too large, too slow.
    Refused,
    /// 503 or 500 of tollgate's own: no store under `closed`, a fault inside.
    ProxyError,
    /// The caller went away before the end.
    ClientAbort,
}

impl Ending {
    /// The `outcome` label. What the caller brought on itself counts as limited, so that it
    /// neither burns nor heals an error budget.
    pub const fn outcome(self) -> Outcome {
        match self {
            Ending::Answered => Outcome::Allowed,
            Ending::Upstream5xx
            | Ending::UpstreamConnect
            | Ending::UpstreamTimeout
            | Ending::CircuitOpen => Outcome::UpstreamError,
            Ending::RateLimited | Ending::Unauthorized | Ending::Refused => Outcome::Limited,
            Ending::Shed => Outcome::Shed,
            Ending::ProxyError => Outcome::ProxyError,
            Ending::ClientAbort => Outcome::ClientAbort,
        }
    }

    /// The `error_type` label, where it is an error. A malformed request is none: whoever sends
    /// rubbish must not be able to raise the alarm.
    pub const fn error_type(self) -> Option<ErrorType> {
        match self {
            Ending::Answered | Ending::Refused => None,
            Ending::Upstream5xx => Some(ErrorType::Upstream5xx),
            Ending::UpstreamConnect | Ending::CircuitOpen => Some(ErrorType::UpstreamConnect),
            Ending::UpstreamTimeout => Some(ErrorType::UpstreamTimeout),
            Ending::RateLimited => Some(ErrorType::RateLimited),
            Ending::Shed => Some(ErrorType::Shed),
            Ending::Unauthorized => Some(ErrorType::AuthInvalid),
            Ending::ProxyError => Some(ErrorType::ProxyError),
            Ending::ClientAbort => Some(ErrorType::ClientAbort),
        }
    }
}

label! {
    /// Who checked the limits of a request.
    LimiterBackend {
        /// The store in memory, by configuration.
        Memory = "memory",
        /// Redis.
        Redis = "redis",
        /// This process's memory, because Redis did not answer.
        Local = "local",
        /// A denial remembered from before.
        Cache = "cache",
    }
}

label! {
    /// The verdict of one limit.
    LimitDecision {
        /// It had room.
        Allow = "allow",
        /// It refused.
        Block = "block",
        /// It would have refused, were it not in shadow mode.
        ShadowBlock = "shadow_block",
        /// It had room, and four fifths or more of it are used now. Counted beside `allow`.
        Near = "near",
    }
}

label! {
    /// What decided instead of the store.
    FallbackMode {
        /// This process's memory.
        Local = "local",
        /// Let pass.
        Open = "open",
        /// Refused.
        Closed = "closed",
    }
}

label! {
    /// Why the store did not decide.
    FallbackReason {
        /// The deadline of the check passed.
        Timeout = "timeout",
        /// The circuit breaker is open: it was not asked.
        CircuitOpen = "circuit_open",
        /// It answered with an error, or the connection broke.
        Error = "error",
        /// Too many calls were waiting already.
        Overload = "overload",
    }
}

label! {
    /// How a call to Redis failed.
    RedisErrorKind {
        /// No answer within the deadline.
        Timeout = "timeout",
        /// A replica, or a primary that was demoted.
        Readonly = "readonly",
        /// The script is not loaded; loading follows.
        Noscript = "noscript",
        /// The slot lives elsewhere.
        Moved = "moved",
        /// The connection failed.
        Io = "io",
        /// An answer that the script does not give.
        Protocol = "protocol",
        /// An error of the server: out of memory, loading, no permission.
        Server = "server",
        /// Too many checks were waiting; it was not asked.
        Overload = "overload",
    }
}

label! {
    /// How a request came to know, or not to know, what its user has bought.
    LookupResult {
        /// Remembered.
        Hit = "hit",
        /// Remembered from before its time was over; a new answer is asked for meanwhile.
        Stale = "stale",
        /// Asked: a subscription.
        Found = "found",
        /// Asked: none.
        None = "none",
        /// The answer did not come in time.
        Timeout = "timeout",
        /// The look-up failed, or did a moment ago.
        Error = "error",
        /// The circuit breaker is open: it was not asked.
        CircuitOpen = "circuit_open",
        /// Too many were waiting already.
        Overload = "overload",
    }
}

label! {
    /// What a timed call asks for.
    QueryType {
        /// The upstream's answer.
        Upstream = "upstream",
        /// Redis.
        Redis = "redis",
        /// The database of subscriptions.
        Database = "database",
        /// The keys that tokens are verified with.
        Jwks = "jwks",
    }
}

label! {
    /// What tollgate depends on.
    Dependency {
        /// The backend.
        Upstream = "upstream",
        /// The store.
        Redis = "redis",
        /// The database of subscriptions.
        Database = "database",
        /// The keys that tokens are verified with.
        Jwks = "jwks",
    }
}

label! {
    /// What a check of a dependency came to.
    CheckResult {
        /// It was answered as expected.
        Ok = "ok",
        /// It was not, or not answered at all.
        Error = "error",
        /// It was not answered in time.
        Timeout = "timeout",
    }
}

label! {
    /// State of a circuit breaker; the gauge's value is the index, so `max` finds the worst.
    BreakerState {
        /// Calls pass.
        Closed = "closed",
        /// A probe is let through.
        HalfOpen = "half_open",
        /// Calls are refused without asking.
        Open = "open",
    }
}

label! {
    /// How limits are decided; the gauge's value is the index.
    LimiterMode {
        /// By the configured store.
        Exact = "exact",
        /// By this process's memory, because the store does not answer.
        Local = "local",
        /// Not at all: let pass.
        Open = "open",
        /// Not at all: refused.
        Closed = "closed",
    }
}

label! {
    /// What became of an attempt.
    Attempt {
        /// It went well.
        Ok = "ok",
        /// It did not.
        Error = "error",
    }
}

label! {
    /// What a task is for.
    TaskType {
        /// A connection: a caller's, or one to the upstream.
        Connection = "connection",
        /// A stream of HTTP/2: a caller's, or the part of one to the upstream that sends a body or
        /// waits for an answer.
        Request = "request",
        /// An upgraded connection, a WebSocket or another.
        Websocket = "websocket",
        /// What keeps a connection to Redis, and calls for which no request waits any more.
        Redis = "redis",
        /// Looks at dependencies.
        Healthcheck = "healthcheck",
        /// Writes down what was used.
        UsageFlush = "usage_flush",
        /// Tells the status page how it goes, once a second; there is one while somebody looks.
        StatusPage = "status_page",
        /// Timers, the admin port, names, keys, and what else goes on beside requests.
        Background = "background",
    }
}

label! {
    /// Which way bytes went, seen from tollgate.
    Direction {
        /// From the caller.
        In = "in",
        /// To the caller.
        Out = "out",
    }
}

label! {
    /// What the allocator's bytes are.
    AllocatorKind {
        /// Asked for by the program and not given back.
        Allocated = "allocated",
        /// In pages that hold any of them.
        Active = "active",
        /// In pages that lie in memory, free ones and the allocator's own included.
        Resident = "resident",
        /// Address space that is kept for later.
        Retained = "retained",
        /// Address space in use.
        Mapped = "mapped",
        /// The allocator's own books.
        Metadata = "metadata",
    }
}

label! {
    /// What there may be many of.
    ObjectType {
        /// Open connections from callers.
        Connections = "connections",
        /// Requests whose answer is not finished.
        Requests = "requests",
        /// Buffers of 16 KiB that upgraded connections are relayed through, two for each.
        Buffers = "buffers",
        /// Entries of stores and caches in memory.
        LocalCacheEntries = "local_cache_entries",
        /// Parts of a quota that this process holds to spend by itself.
        Leases = "leases",
        /// Keys of key sets that were fetched.
        JwksKeys = "jwks_keys",
        /// Series of metrics.
        MetricSeries = "metric_series",
        /// Upgraded connections.
        WebsocketTunnels = "websocket_tunnels",
    }
}

label! {
    /// Who reclaims memory.
    Generation {
        /// The sweep of the store in memory: rounds over all of it, and expired entries.
        Sweep = "0",
        /// The allocator giving back dirty pages (written to, and free): purges, and pages.
        Dirty = "1",
        /// The same of muzzy pages (which the kernel has been told it may take).
        Muzzy = "2",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_that_callers_make_up_share_one_label() {
        assert_eq!(MethodLabel::of(&Method::GET), MethodLabel::Get);
        assert_eq!(MethodLabel::of(&Method::from_bytes(b"BREW").unwrap()), MethodLabel::Other);
        assert_eq!(MethodLabel::of(&Method::TRACE), MethodLabel::Other);
    }

    #[test]
    fn every_status_has_a_class() {
        let written: Vec<_> =
            [0, 101, 200, 304, 429, 503, 600, 999].map(|it| CodeClass::of(it).as_str()).into();
        assert_eq!(written, ["none", "1xx", "2xx", "3xx", "4xx", "5xx", "none", "none"]);
    }
}
