//! The URL of a PostgreSQL, read as libpq reads it, with errors that repeat nothing of it but the
//! names of its options: a password may stand in more than one place.

use crate::subscriptions::settings::{PostgresTarget, TlsUse};
use crate::subscriptions::tls::ServerCheck;
use crate::tls::roots::Roots;

use super::report::{Problem, nearest, one_of, shortened};
use super::url::percent_decoded;

const FORM: &str = "postgres://USER:PASSWORD@HOST:PORT/DATABASE";
const SCHEMES: [&str; 2] = ["postgres", "postgresql"];
const SSL_MODES: [&str; 5] = ["disable", "prefer", "require", "verify-ca", "verify-full"];
/// What else may stand behind the `?`.
const OPTIONS: [&str; 20] = [
    "sslmode",
    "sslrootcert",
    "user",
    "password",
    "dbname",
    "host",
    "hostaddr",
    "port",
    "options",
    "application_name",
    "connect_timeout",
    "tcp_user_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "target_session_attrs",
    "channel_binding",
    "load_balance_hosts",
    "sslnegotiation",
];
/// The name under which libpq knows the machine's own authorities.
const SYSTEM: &str = "system";

/// Reads a file; the error says why it cannot be read.
pub type ReadFile<'a> = &'a dyn Fn(&str) -> Result<Vec<u8>, String>;

/// Reads a PostgreSQL's URL, and the certificates that it names.
///
/// # Errors
/// The part that is wrong; never the password.
pub fn postgres(text: &str, read_file: ReadFile<'_>) -> Result<PostgresTarget, Problem> {
    let (before_query, query) = parts(text)?;
    let mut mode = None;
    let mut root = None;
    let mut rest = Vec::new();
    for option in query.split('&').filter(|option| !option.is_empty()) {
        let Some((name, value)) = option.split_once('=') else {
            return Err(Problem::new("an option without a value").expected("NAME=VALUE"));
        };
        if !OPTIONS.contains(&name) {
            let problem = Problem::new(format!("option \"{}\"", shortened(name)));
            let problem = problem.expected(one_of(OPTIONS));
            return Err(match nearest(name, OPTIONS) {
                Some(near) => problem.hint(format!("did you mean \"{near}\"?")),
                None => problem,
            });
        }
        let decoded = || {
            percent_decoded(value).ok_or_else(|| {
                let found = format!("option \"{name}\" with a broken %-sequence");
                Problem::new(found).expected("%25 for %")
            })
        };
        match name {
            "sslmode" => mode = Some(decoded()?),
            "sslrootcert" => root = Some(decoded()?),
            _ => rest.push(option),
        }
    }
    let (tls, check) = tls(mode.as_deref(), root.as_deref(), read_file)?;
    let url = if rest.is_empty() {
        before_query.to_owned()
    } else {
        format!("{before_query}?{}", rest.join("&"))
    };
    PostgresTarget::parse(&url, tls, check).map_err(|found| Problem::new(found).expected(FORM))
}

/// The URL up to its `?`, and what follows.
fn parts(text: &str) -> Result<(&str, &str), Problem> {
    if text.is_empty() {
        return Err(Problem::new("nothing").expected(FORM));
    }
    if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        let problem = Problem::new("a URL with spaces or control characters");
        return Err(problem.expected("%20 for a space"));
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(Problem::new("a URL without a scheme").expected(FORM));
    };
    if !SCHEMES.contains(&scheme) {
        // What stands before `://` is no secret only if it looks like a scheme.
        let is_plain =
            scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
        let found = if is_plain { shortened(scheme) } else { "***".to_owned() };
        let problem = Problem::new(format!("scheme \"{found}\""));
        return Err(problem.expected_one_of(scheme, SCHEMES));
    }
    let ats = rest.matches('@').count();
    let end = rest.find('?');
    if ats > 1 || end.is_some_and(|end| rest.get(end..).is_some_and(|query| query.contains('@'))) {
        let problem = Problem::new("an @ or a ? within the user, the password or an option");
        return Err(problem.expected("%40 for @, %3F for ?"));
    }
    let before = text.len() - rest.len() + end.unwrap_or(rest.len());
    let (before, query) = text.split_at(before);
    Ok((before, query.strip_prefix('?').unwrap_or(query)))
}

/// What libpq does: without a file of authorities `require` asks for encryption alone, with one it
/// asks for their signature as well.
fn tls(
    mode: Option<&str>,
    root: Option<&str>,
    read_file: ReadFile<'_>,
) -> Result<(TlsUse, ServerCheck), Problem> {
    let roots = match root {
        None => None,
        Some(SYSTEM) => Some(Roots::System),
        Some(file) => {
            let roots = read_file(file).and_then(|pem| Roots::from_pem(&pem));
            let named = |reason| Problem::new(format!("sslrootcert {}: {reason}", shortened(file)));
            Some(roots.map_err(named)?)
        }
    };
    let or_system = |roots: Option<Roots>| roots.unwrap_or(Roots::System);
    let signed = |roots: Option<Roots>| roots.map_or(ServerCheck::None, ServerCheck::Authority);
    Ok(match mode {
        Some("disable") => (TlsUse::Never, ServerCheck::None),
        None | Some("prefer") => (TlsUse::Prefer, signed(roots)),
        Some("require") => (TlsUse::Require, signed(roots)),
        Some("verify-ca") => (TlsUse::Require, ServerCheck::Authority(or_system(roots))),
        Some("verify-full") => (TlsUse::Require, ServerCheck::Full(or_system(roots))),
        Some(other) => {
            let problem = Problem::new(format!("sslmode \"{}\"", shortened(other)));
            return Err(problem.expected_one_of(other, SSL_MODES));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<PostgresTarget, Problem> {
        postgres(text, &|file| match file {
            "/empty.pem" => Ok(Vec::new()),
            _ => Err("cannot be read: not there".to_owned()),
        })
    }

    #[test]
    fn urls_are_read_as_libpq_reads_them() {
        let shown = |text| read(text).unwrap().to_string();
        assert_eq!(shown("postgres://me:p%40ss@db:5433/plans"), "postgres://db:5433/plans");
        assert_eq!(shown("postgresql://db/plans?sslmode=verify-full"), "postgres://db:5432/plans");
        assert_eq!(
            shown("postgres:///plans?host=/run/postgresql&user=me"),
            "postgres:///run/postgresql/plans"
        );
        assert_eq!(shown("postgres://a:1,b:2/plans?sslmode=require"), "postgres://a:1,b:2/plans");
        assert_eq!(shown("postgres://a:b/c:d@db/plans"), "postgres://db:5432/plans");
    }

    #[test]
    fn wrong_urls_keep_the_password() {
        let wrong = |text: &str| {
            let problem = read(text).unwrap_err();
            assert!(!format!("{problem:?}").contains("hunter"), "{problem:?}");
            problem.message()
        };
        assert!(wrong("hunter2").starts_with("a URL without a scheme"));
        assert!(wrong("me:hunter2@db/plans").starts_with("a URL without a scheme"));
        assert_eq!(
            wrong("mysql://me:hunter2@db/plans"),
            "scheme \"mysql\", expected one of postgres, postgresql"
        );
        assert!(wrong("me:hunter2@://db").starts_with("scheme \"***\""));
        assert!(wrong("postgres://me:hunter2 x@db/plans").starts_with("a URL with spaces"));
        assert!(wrong("postgres://me:hunter@2@db/plans").starts_with("an @ or a ?"));
        assert!(wrong("postgres://me:hunter?2@db/plans").starts_with("an @ or a ?"));
        assert!(wrong("postgres://db/plans?password=hunter@2").starts_with("an @ or a ?"));
        assert!(wrong("postgres://db/plans?hunter2").starts_with("an option without a value"));
        assert!(wrong("postgres://me:hunter2@db:x/plans").starts_with("invalid value for option"));
        assert!(wrong("postgres://me:hunter2@/plans").starts_with("no host"));
        assert!(wrong("postgres://db?sslkey=hunter2").starts_with("option \"sslkey\", expected"));
        assert_eq!(
            wrong("postgres://me:hunter2@db?sslmode=verify-fully"),
            "sslmode \"verify-fully\", expected one of disable, prefer, require, verify-ca, verify-full"
        );
        assert_eq!(
            wrong("postgres://db?sslrootcert=/nowhere.pem"),
            "sslrootcert /nowhere.pem: cannot be read: not there"
        );
        assert_eq!(
            wrong("postgres://db?sslrootcert=%2Fempty.pem"),
            "sslrootcert /empty.pem: no certificate in it"
        );
    }
}
