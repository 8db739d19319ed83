//! The closed sets of labels that speak of callers and their connections.

use crate::limiter::quota::Period;
use crate::policy::identity::IdentifierType;

use super::labels::{Values, label};

/// Kinds of identities.
#[derive(Clone, Copy, Debug)]
pub struct IdentifierTypes;

impl IdentifierTypes {
    /// Every value, and what it says.
    pub const VALUES: Values = &[
        (IdentifierType::Ip.as_str(), "An address, or the prefix that it belongs to."),
        (IdentifierType::User.as_str(), "A user of a verified token or certificate."),
        (IdentifierType::Key.as_str(), "The id of an API key."),
    ];
}

/// Windows of limits.
#[derive(Clone, Copy, Debug)]
pub struct Periods;

impl Periods {
    /// Every value, and what it says.
    pub const VALUES: Values = &[
        (Period::Second.as_str(), "A token bucket: `per_second`, with its `burst`."),
        (Period::Minute.as_str(), "A sliding window of 60 seconds."),
        (Period::Hour.as_str(), "A sliding window of 60 minutes."),
        (Period::Day.as_str(), "A day of UTC."),
        (Period::Month.as_str(), "A month of UTC."),
        (Period::Concurrency.as_str(), "Requests at the same time."),
    ];
}

label! {
    /// What happened to an upgraded connection.
    TunnelEvent {
        /// Both sides agreed to the upgrade.
        Open = "open",
        /// The client said goodbye first, or was gone.
        CloseClient = "close_client",
        /// The upstream said goodbye first, or was gone.
        CloseUpstream = "close_upstream",
        /// Nothing came through for `upstream.tunnel_idle_timeout`.
        IdleTimeout = "idle_timeout",
        /// tollgate was about to stop.
        Drain = "drain",
        /// A limit refused the request for the upgrade, with 429: nothing was opened.
        RefusedLimit = "refused_limit",
    }
}

label! {
    /// Why a request was refused for load.
    ShedReason {
        /// More were in flight than `shedding.max_in_flight`.
        MaxInFlight = "max_in_flight",
        /// More were in flight than the limit that tollgate has found.
        Adaptive = "adaptive",
    }
}

label! {
    /// What a connection of a pool does.
    PoolState {
        /// It carries a call.
        Active = "active",
        /// It waits for one.
        Idle = "idle",
    }
}

label! {
    /// Why a connection was closed unread.
    RefusalReason {
        /// All connections are in use.
        MaxConnections = "max_connections",
        /// The address has its share.
        MaxConnectionsPerIp = "max_connections_per_ip",
        /// The process has no file descriptor left.
        FileDescriptors = "file_descriptors",
        /// A trusted proxy did not say whom it is for.
        ProxyProtocol = "proxy_protocol",
    }
}

label! {
    /// Why a connection of HTTP/2 was cut.
    CutReason {
        /// Too many frames that bring nothing, streams that were reset, or fields of one head.
        Flood = "flood",
        /// A head took too long.
        HeadTimeout = "head_timeout",
        /// Its client read nothing for too long.
        ReaderStalled = "reader_stalled",
    }
}

label! {
    /// How a TLS handshake with a caller ended.
    HandshakeResult {
        /// It was made.
        Ok = "ok",
        /// The caller spoke something else, refused what it was shown, or left.
        Failed = "failed",
        /// It took too long.
        Timeout = "timeout",
        /// It was the oldest of too many that were under way.
        Evicted = "evicted",
    }
}

label! {
    /// Why a credential or a forwarding field was not believed.
    IdentityError {
        /// Past its time, or before it.
        Expired = "expired",
        /// The signature does not fit.
        BadSignature = "bad_signature",
        /// No key of that name.
        UnknownKid = "unknown_kid",
        /// An API key that no one has.
        UnknownKey = "unknown_key",
        /// A token without a claim that names its user.
        NoUser = "no_user",
        /// Not looked at: its address has sent too many that were wrong.
        Throttled = "throttled",
        /// A subscription of a credential or of the database that no tier is known for.
        UnknownSubscription = "unknown_subscription",
        /// Another issuer, audience or algorithm than configured.
        Unacceptable = "unacceptable",
        /// Not to be parsed.
        Malformed = "malformed",
        /// A forwarding field from a peer that is not trusted.
        XffUntrusted = "xff_untrusted",
        /// A trusted peer's forwarding field that names nobody: the peer's own address counted.
        XffMalformed = "xff_malformed",
        /// `X-Forwarded-For` was believed, and `Forwarded` names somebody else.
        XffConflict = "xff_conflict",
    }
}

label! {
    /// Whether something was remembered.
    CacheResult {
        /// It was.
        Hit = "hit",
        /// It was not.
        Miss = "miss",
    }
}

label! {
    /// Why a call of the admin API was turned away.
    AdminRefusal {
        /// The token is missing or wrong.
        Token = "token",
        /// Too many wrong ones came from its address, so that it was not looked at.
        Throttled = "throttled",
        /// There is no token, and the call was not from this machine.
        Forbidden = "forbidden",
    }
}

label! {
    /// What an operator changed by the admin API.
    AdminChange {
        /// An identity got another tier for a while.
        OverrideSet = "override_set",
        /// It lost that again.
        OverrideRemoved = "override_removed",
        /// An identity was put on the deny list.
        DenySet = "deny_set",
        /// It was taken off.
        DenyRemoved = "deny_removed",
        /// An identity's counters were reset.
        Reset = "reset",
        /// The files were read anew.
        Reload = "reload",
    }
}

label! {
    /// What became of a caller's question for their own limits.
    SelfServiceResult {
        /// It was answered.
        Ok = "ok",
        /// The caller asked too often.
        Throttled = "throttled",
        /// The caller is on the deny list.
        Refused = "refused",
    }
}

label! {
    /// What came of asking Redis for a lease.
    LeaseResult {
        /// There is one.
        Granted = "granted",
        /// There was too little left to lend, or nothing at all, or no answer.
        Refused = "refused",
    }
}

label! {
    /// Where the tokens of a lease went.
    LeaseTokens {
        /// Requests have spent them.
        Spent = "spent",
        /// They went back.
        Returned = "returned",
        /// Nobody had the use of them.
        Lost = "lost",
    }
}

label! {
    /// What holds for a single identity by an operator's word.
    OverrideKind {
        /// Another tier.
        Override = "override",
        /// It is refused.
        Deny = "deny",
    }
}

label! {
    /// Why a request was asked of another upstream.
    RetryReason {
        /// No connection came about, or not a byte went out on it.
        Connect = "connect",
        /// The connection broke before a byte of an answer.
        Broken = "broken",
        /// No answer came within `upstream.per_try_timeout`.
        Timeout = "timeout",
    }
}
