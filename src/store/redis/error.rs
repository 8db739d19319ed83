//! Why a check in Redis gave no decision.

use fred::error::{Error as FredError, ErrorKind as FredKind};

use crate::metrics::labels::RedisErrorKind;

/// A check without a decision.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}: {detail}", kind.as_str())]
pub struct CheckError {
    /// What went wrong.
    pub kind: RedisErrorKind,
    /// What the server or the client says of it. Never holds a password.
    pub detail: Box<str>,
    /// Whether it is one of several servers that this says something of.
    pub of_part: bool,
}

impl CheckError {
    /// An error of this kind.
    pub fn new(kind: RedisErrorKind, detail: &str) -> Self {
        CheckError { kind, detail: detail.into(), of_part: false }
    }
}

impl From<FredError> for CheckError {
    fn from(error: FredError) -> Self {
        let detail = error.details();
        let code = detail.split_ascii_whitespace().next().unwrap_or_default();
        let is_code = code.len() > 2 && code.bytes().all(|byte| byte.is_ascii_uppercase());
        let kind = match (error.kind(), code) {
            (_, "NOSCRIPT") => RedisErrorKind::Noscript,
            (_, "READONLY") => RedisErrorKind::Readonly,
            // Before Redis 7 an error inside of a script comes wrapped in the script's own.
            (_, "ERR") if detail.contains("-READONLY ") => RedisErrorKind::Readonly,
            (FredKind::Timeout, _) => RedisErrorKind::Timeout,
            (FredKind::Protocol | FredKind::Parse, _) => RedisErrorKind::Protocol,
            (FredKind::Backpressure, _) => RedisErrorKind::Overload,
            // The client has no kind of its own for most of what a server refuses.
            _ if is_code => RedisErrorKind::Server,
            _ => RedisErrorKind::Io,
        };
        CheckError::new(kind, detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kind: FredKind, detail: &'static str, expected: RedisErrorKind) {
        assert_eq!(CheckError::from(FredError::new(kind, detail)).kind, expected, "{detail}");
    }

    #[test]
    fn errors_are_told_apart() {
        check(FredKind::Unknown, "NOSCRIPT No matching script.", RedisErrorKind::Noscript);
        check(
            FredKind::Unknown,
            "READONLY You can't write against a replica.",
            RedisErrorKind::Readonly,
        );
        let wrapped = "ERR Error running script: @user_script:9: -READONLY You can't write";
        check(FredKind::Unknown, wrapped, RedisErrorKind::Readonly);
        check(FredKind::Unknown, "OOM command not allowed", RedisErrorKind::Server);
        check(FredKind::Auth, "NOAUTH Authentication required.", RedisErrorKind::Server);
        check(FredKind::Unknown, "Failed to send command to router.", RedisErrorKind::Io);
        check(FredKind::IO, "Connection refused (os error 111)", RedisErrorKind::Io);
        check(FredKind::Timeout, "Request timed out.", RedisErrorKind::Timeout);
        check(FredKind::Parse, "Invalid frame type prefix.", RedisErrorKind::Protocol);
        check(
            FredKind::Backpressure,
            "Max command queue length exceeded.",
            RedisErrorKind::Overload,
        );
    }
}
