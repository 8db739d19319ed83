//! `/api/v1/…` of a running tollgate: who may call it, what its calls answer.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a test stops at the first surprise, and ends"
)]

mod support;

use std::process::Command;

use support::{Answer, Backend, Client, Start, Tollgate};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// One request of the admin port, whose head ends with these lines.
fn ask(tollgate: &Tollgate, line: &str, fields: &str) -> Answer {
    let method = line.split(' ').next().unwrap();
    let mut client = Client::connect(tollgate.admin);
    client.send(format!("{line} HTTP/1.1\r\n{fields}\r\n")).answer_to(method)
}

/// A GET as `curl` sends it on this machine.
fn get(tollgate: &Tollgate, path: &str) -> Answer {
    ask(tollgate, &format!("GET {path}"), &format!("Host: {}\r\n", tollgate.admin))
}

fn error(answer: &Answer) -> (u16, String) {
    assert_eq!(answer.field("content-type"), Some("application/json"), "{}", answer.head);
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    let (error, keys) = (body["error"].as_str().unwrap(), body.as_object().unwrap().len());
    assert_eq!(keys, 1, "{body}");
    (answer.status, error.to_owned())
}

/// With this token, its file as an editor leaves it.
fn with_token(backend: &Backend, token: &str) -> (Tollgate, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("admin.token");
    std::fs::write(&file, format!("\n  {token}\r\n\n")).unwrap();
    let config = format!("admin: {{ token_file: {} }}", file.display());
    (Start::default().upstream(backend.address).config(&config).run(), directory)
}

#[test]
fn without_a_token_only_this_machine_is_answered() {
    let backend = Backend::ok();
    let tollgate = Tollgate::in_front_of(backend.address);
    assert_eq!(error(&get(&tollgate, "/api/v1/nothing")), (404, "Not found".to_owned()));
    for host in ["localhost:9900", "127.0.0.1", "[::1]:1"] {
        let fields = format!("Host: {host}\r\n");
        assert_eq!(ask(&tollgate, "GET /api/v1/nothing", &fields).status, 404, "{host}");
    }
    for fields in [
        "Host: evil.test\r\n",
        "Host: 127.0.0.1.evil.test\r\n",
        "Host: localhost\r\nHost: evil.test\r\n",
        "Host: localhost\r\nOrigin: https://evil.test\r\n",
        "Host: localhost\r\nSec-Fetch-Site: cross-site\r\n",
    ] {
        let (status, why) = error(&ask(&tollgate, "GET /api/v1/nothing", fields));
        assert!(status == 403 && why.contains("admin.token_file"), "{fields}: {status} {why}");
    }
    assert_eq!(ask(&tollgate, "GET http://evil.test/api/v1/a", "Host: localhost\r\n").status, 403);
    assert_eq!(ask(&tollgate, "POST /api", "Host: evil.test\r\n").status, 403);
    // What is open stays open, and what begins alike is not the API.
    for path in ["/health", "/livez", "/readyz", "/metrics"] {
        assert_eq!(ask(&tollgate, &format!("GET {path}"), "Host: evil.test\r\n").status, 200);
    }
    assert_eq!(ask(&tollgate, "GET /apis", "Host: evil.test\r\n").status, 404);
}

#[test]
fn a_token_is_asked_for_where_there_is_one() {
    let backend = Backend::ok();
    let (tollgate, _directory) = with_token(&backend, TOKEN);
    let with = |field: &str| {
        let fields = format!("Host: tollgate.test\r\nAuthorization: {field}\r\n");
        ask(&tollgate, "GET /api/v1/nothing", &fields)
    };
    assert_eq!(with(&format!("Bearer {TOKEN}")).status, 404);
    assert_eq!(with(&format!("bearer {TOKEN}")).status, 404);
    let wrong = [format!("Bearer {}", &TOKEN[1..]), format!("Basic {TOKEN}"), "Bearer".to_owned()];
    for wrong in &wrong {
        let answer = with(wrong);
        assert_eq!(error(&answer), (401, "Unauthorized".to_owned()), "{wrong}");
        assert_eq!(answer.field("www-authenticate"), Some("Bearer realm=\"tollgate\""));
    }
    // This machine has no privilege either.
    assert_eq!(get(&tollgate, "/api/v1/nothing").status, 401);
    assert_eq!(get(&tollgate, "/health").status, 200);
    assert!(!tollgate.log().contains(TOKEN), "{}", tollgate.log());
}

#[test]
fn a_token_that_cannot_be_used_keeps_it_from_starting() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("admin.token");
    let config = directory.path().join("tollgate.yaml");
    std::fs::write(&config, format!("admin: {{ token_file: {} }}", file.display())).unwrap();
    let refused = |content: Option<&str>, expected: &str| {
        if let Some(content) = content {
            std::fs::write(&file, content).unwrap();
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
        command.args(["run", "--upstream", "http://127.0.0.1:1", "--listen", "127.0.0.1:0"]);
        let output = command.arg("--config").arg(&config).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{errors}");
        let expected = format!("admin.token_file: {}: {expected}", file.display());
        assert!(errors.contains(&expected), "{errors}");
        assert!(!errors.contains("s3cret"), "{errors}");
    };
    refused(None, "cannot be read: No such file");
    refused(Some(" \r\n\t"), "empty, expected a token");
    refused(Some("s3cret\nand another"), "not one word of visible ASCII, expected a token");
    refused(Some("s3cret\u{e9}"), "not one word of visible ASCII, expected a token");
}
