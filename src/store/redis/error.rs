//! Why a check in Redis gave no decision.

use fred::error::{Error as FredError, ErrorKind as FredKind};

/// What went wrong, as the `kind` label says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ErrorKind {
    /// No answer within the budget of a check.
    Timeout = 0,
    /// The server is a replica, or a primary that was demoted.
    ReadOnly = 1,
    /// The server does not know the script, even after it was loaded again.
    NoScript = 2,
    /// The connection is gone, or never was.
    Io = 3,
    /// The answer is not one that the script gives, or not the one to this call.
    Protocol = 4,
    /// The server answered with an error: out of memory, loading, no permission.
    Server = 5,
    /// Too many checks are waiting already.
    Overload = 6,
}

impl ErrorKind {
    /// Every kind, in the order of their discriminants.
    pub const ALL: [ErrorKind; 7] = [
        ErrorKind::Timeout,
        ErrorKind::ReadOnly,
        ErrorKind::NoScript,
        ErrorKind::Io,
        ErrorKind::Protocol,
        ErrorKind::Server,
        ErrorKind::Overload,
    ];

    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            ErrorKind::Timeout => "timeout",
            ErrorKind::ReadOnly => "readonly",
            ErrorKind::NoScript => "noscript",
            ErrorKind::Io => "io",
            ErrorKind::Protocol => "protocol",
            ErrorKind::Server => "server",
            ErrorKind::Overload => "overload",
        }
    }
}

/// A check without a decision.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}: {detail}", kind.as_str())]
pub struct CheckError {
    /// What went wrong.
    pub kind: ErrorKind,
    /// What the server or the client says of it. Never holds a password.
    pub detail: Box<str>,
}

impl CheckError {
    /// An error of this kind.
    pub fn new(kind: ErrorKind, detail: &str) -> Self {
        CheckError { kind, detail: detail.into() }
    }
}

impl From<FredError> for CheckError {
    fn from(error: FredError) -> Self {
        let detail = error.details();
        let code = detail.split_ascii_whitespace().next().unwrap_or_default();
        let is_code = code.len() > 2 && code.bytes().all(|byte| byte.is_ascii_uppercase());
        let kind = match (error.kind(), code) {
            (_, "NOSCRIPT") => ErrorKind::NoScript,
            (_, "READONLY") => ErrorKind::ReadOnly,
            // Before Redis 7 an error inside of a script comes wrapped in the script's own.
            (_, "ERR") if detail.contains("-READONLY ") => ErrorKind::ReadOnly,
            (FredKind::Timeout, _) => ErrorKind::Timeout,
            (FredKind::Protocol | FredKind::Parse, _) => ErrorKind::Protocol,
            (FredKind::Backpressure, _) => ErrorKind::Overload,
            // The client has no kind of its own for most of what a server refuses.
            _ if is_code => ErrorKind::Server,
            _ => ErrorKind::Io,
        };
        CheckError::new(kind, detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kind: FredKind, detail: &'static str, expected: ErrorKind) {
        assert_eq!(CheckError::from(FredError::new(kind, detail)).kind, expected, "{detail}");
    }

    #[test]
    fn errors_are_told_apart() {
        check(FredKind::Unknown, "NOSCRIPT No matching script.", ErrorKind::NoScript);
        check(
            FredKind::Unknown,
            "READONLY You can't write against a replica.",
            ErrorKind::ReadOnly,
        );
        let wrapped = "ERR Error running script: @user_script:9: -READONLY You can't write";
        check(FredKind::Unknown, wrapped, ErrorKind::ReadOnly);
        check(FredKind::Unknown, "OOM command not allowed", ErrorKind::Server);
        check(FredKind::Auth, "NOAUTH Authentication required.", ErrorKind::Server);
        check(FredKind::Unknown, "Failed to send command to router.", ErrorKind::Io);
        check(FredKind::IO, "Connection refused (os error 111)", ErrorKind::Io);
        check(FredKind::Timeout, "Request timed out.", ErrorKind::Timeout);
        check(FredKind::Parse, "Invalid frame type prefix.", ErrorKind::Protocol);
        check(FredKind::Backpressure, "Max command queue length exceeded.", ErrorKind::Overload);
    }
}
