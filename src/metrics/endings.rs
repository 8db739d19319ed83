//! The closed sets that say what a request was and how it ended.

use http::Method;

use super::labels::{Values, label};

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
            Ending::Upstream5xx | Ending::UpstreamConnect | Ending::UpstreamTimeout => {
                Outcome::UpstreamError
            }
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
            Ending::UpstreamConnect => Some(ErrorType::UpstreamConnect),
            Ending::UpstreamTimeout => Some(ErrorType::UpstreamTimeout),
            Ending::RateLimited => Some(ErrorType::RateLimited),
            Ending::Shed => Some(ErrorType::Shed),
            Ending::Unauthorized => Some(ErrorType::AuthInvalid),
            Ending::ProxyError => Some(ErrorType::ProxyError),
            Ending::ClientAbort => Some(ErrorType::ClientAbort),
        }
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
