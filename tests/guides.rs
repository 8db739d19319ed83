//! The guides in `docs/`, run as their readers would: every file saved, every command typed, every
//! answer compared, letter by letter.
//!
//! A block of `yaml` (or `nginx`) is saved under the name that the paragraph before it ends on. One of `sh` is
//! typed; `sh server` is started and left running in place of the one before. Of `console`, each
//! line behind a `$` is typed, and the lines below it are its answer; in `console about`, numbers are
//! those of whoever wrote it down, and any will do; the machine is called `tollgate-1`. `text`, `shell` and
//! the like are for eyes.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

#[path = "support/postgres.rs"]
mod postgres;
mod support;

use std::fmt::Write as _;
use std::process::{Command, Stdio};

use postgres::PostgresServer;
use support::{Backend, nobody};

/// What the script begins with. `answers` runs a command and compares what it prints.
const PRELUDE: &str = r#"
set -u
server=
stop() { [ -z "$server" ] || { kill "$server"; wait "$server" || true; }; server=; }
trap stop EXIT
serve() {
    stop
    "$@" > server.log 2>&1 &
    server=$!
    for _ in $(seq 400); do
        grep -q 'listening on' server.log && return
        kill -0 "$server" 2>/dev/null || break
        sleep 0.05
    done
    echo "it does not serve: $*"; cat server.log; exit 1
}
about() { printf %s "$1" | sed -E 's/ *[0-9]+(\.[0-9]+)?/N/g'; }
answers() {
    expected=$(cat)
    found=$(eval "$1" | tr -d '\r' | sed "s/\"$(uname -n)\"/\"tollgate-1\"/g")
    [ "$found" = "$expected" ] && return
    [ -n "$2" ] && [ "$(about "$found")" = "$(about "$expected")" ] && return
    printf 'typed:    %s\nexpected: %s\nfound:    %s\n' "$1" "$expected" "$found"
    cat server.log
    exit 1
}
"#;

struct Block<'a> {
    kind: &'a str,
    text: String,
    /// The last file that was named before it.
    file: Option<&'a str>,
}

fn blocks(guide: &str) -> Vec<Block<'_>> {
    let (mut blocks, mut open) = (Vec::<Block<'_>>::new(), None);
    let mut file = None;
    for line in guide.lines() {
        // A block in a list is indented, its content as far as its fence.
        let indent = line.len() - line.trim_start().len();
        match (line.trim_start().strip_prefix("```"), open) {
            (Some(kind), None) => {
                blocks.push(Block { kind, text: String::new(), file });
                open = Some(indent);
            }
            (Some(_), Some(_)) => open = None,
            (None, Some(indent)) => {
                let block = blocks.last_mut().unwrap();
                writeln!(block.text, "{}", line.get(indent..).unwrap_or_default()).unwrap();
            }
            (None, None) => {
                let named = line.split('`').skip(1).step_by(2).filter(|it| is_file(it));
                file = named.last().or(file);
            }
        }
    }
    assert!(open.is_none(), "a block is not closed");
    blocks
}

/// What is saved: a file of tollgate's, or of another program's in the guide to moving.
fn is_file(name: &str) -> bool {
    !name.contains(' ') && [".yaml", ".conf"].iter().any(|end| name.ends_with(end))
}

fn script(guide: &str) -> String {
    let mut script = PRELUDE.to_owned();
    for Block { kind, text, file } in blocks(guide) {
        match kind {
            "yaml" | "nginx" => {
                let file = file.expect("a file that is named before its content");
                writeln!(script, "cat > {file} <<'END_OF_FILE'\n{text}END_OF_FILE").unwrap();
            }
            "sh" => script.push_str(&text),
            "sh server" => writeln!(script, "serve {}", text.trim()).unwrap(),
            "console" | "console about" => {
                let about = if kind == "console" { "''" } else { "about" };
                let mut typed = text.split("$ ").skip(1);
                assert!(text.starts_with("$ "), "an answer to nothing: {text}");
                typed.by_ref().for_each(|dialogue| {
                    let (command, answer) = dialogue.split_once('\n').unwrap();
                    let quoted = command.replace('\'', r"'\''");
                    let end = "END_OF_ANSWER";
                    writeln!(script, "answers '{quoted}' {about} <<'{end}'\n{answer}{end}")
                        .unwrap();
                });
            }
            "text" | "json" | "promql" | "shell" => {}
            other => panic!("a block of {other:?}"),
        }
    }
    script.push_str("echo the end\n");
    script
}

/// Runs a guide's script in a directory of its own, with these variables.
fn follow(script: &str, variables: &[(&str, &str)]) {
    let directory = tempfile::tempdir().unwrap();
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_tollgate")).parent().unwrap();
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap());
    let output = Command::new("bash")
        .args(["-c", script])
        .current_dir(&directory)
        .env("PATH", path)
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.ends_with("the end\n"), "{said}\n{errors}");
}

/// Runs a guide that has one tollgate on 8080 and 9900, and a backend on 8081.
fn follow_in_front_of_a_backend(guide: &str) {
    let backend = Backend::ok();
    let [data, admin, nginx] = [nobody(), nobody(), nobody()].map(|it| it.to_string());
    let script = script(guide)
        .replace("127.0.0.1:8090", &nginx)
        .replace("127.0.0.1:8081", &backend.address.to_string())
        .replace("127.0.0.1:8080", &data)
        .replace("127.0.0.1:9900", &admin);
    let url = format!("http://{admin}");
    // `tollgate health` and `tollgate run` read the same variable in two forms.
    let script = script.replace("tollgate health", &format!("tollgate health --admin {url}"));
    let script =
        script.replace("serve tollgate", &format!("TOLLGATE_ADMIN={admin} serve tollgate"));
    follow(&script, &[("TOLLGATE_LISTEN", &data)]);
}

#[test]
fn the_guide_to_identities_does_what_it_says() {
    let Some(database) = PostgresServer::spawn() else { return };
    let backend = Backend::ok();
    let guide = std::fs::read_to_string("docs/identity.md").unwrap();
    let [data, admin] = [nobody(), nobody()].map(|it| it.to_string());
    let script = script(&guide)
        .replace("127.0.0.1:8081", &backend.address.to_string())
        .replace("127.0.0.1:8080", &data);
    let url = database.url();
    let listen = [("TOLLGATE_LISTEN", data.as_str()), ("TOLLGATE_ADMIN", &admin)];
    follow(&script, &[listen[0], listen[1], ("DATABASE_URL", &url)]);
}

#[test]
fn the_guide_to_setting_up_does_what_it_says() {
    follow_in_front_of_a_backend(&std::fs::read_to_string("docs/setup.md").unwrap());
}

#[test]
fn the_guide_to_moving_does_what_it_says() {
    let mut guide = std::fs::read_to_string("docs/migration.md").unwrap();
    let has_nginx = Command::new("nginx").arg("-v").output().is_ok();
    if !has_nginx {
        let is_required = std::env::var_os("TOLLGATE_REQUIRE_NGINX").is_some_and(|it| it == "1");
        assert!(!is_required, "TOLLGATE_REQUIRE_NGINX=1, but there is no nginx");
        eprintln!("skipped: nginx beside tollgate (no nginx)");
        let start = guide.find("### The same traffic").unwrap();
        let end = start + guide[start..].find("\n## ").unwrap();
        guide.replace_range(start..end, "");
    }
    follow_in_front_of_a_backend(&guide);
}

#[test]
fn the_guide_to_monitoring_does_what_it_says() {
    let guide = std::fs::read_to_string("docs/monitoring-and-mitigation.md").unwrap();
    // Its commands are for a tollgate that runs, and each has to succeed.
    let before = "```sh server\ntollgate run --upstream http://127.0.0.1:8081\n```\n\
                  ```sh\nset -e\ncurl -s -o answer http://127.0.0.1:8080/\n```\n";
    follow_in_front_of_a_backend(&format!("{before}{guide}"));
}

#[test]
fn the_guide_to_the_admin_api_does_what_it_says() {
    follow_in_front_of_a_backend(&std::fs::read_to_string("docs/admin.md").unwrap());
}

#[test]
fn the_guide_to_operations_does_what_it_says() {
    let guide = std::fs::read_to_string("docs/operations.md").unwrap();
    follow_in_front_of_a_backend(&guide);
}

#[test]
fn the_guide_to_the_status_page_does_what_it_says() {
    follow_in_front_of_a_backend(&std::fs::read_to_string("docs/status-page.md").unwrap());
}

#[test]
fn the_guide_to_a_callers_own_limits_does_what_it_says() {
    let guide = std::fs::read_to_string("docs/self-service.md").unwrap();
    follow_in_front_of_a_backend(&guide);
}

#[test]
fn the_guide_to_endpoints_does_what_it_says() {
    follow(&script(&std::fs::read_to_string("docs/endpoints.md").unwrap()), &[]);
}

#[test]
fn the_guide_to_tls_does_what_it_says() {
    let backend = Backend::ok();
    let guide = std::fs::read_to_string("docs/tls.md").unwrap();
    let [data, admin] = [nobody(), nobody()];
    let script = script(&guide)
        .replace("127.0.0.1:8081", &backend.address.to_string())
        .replace("localhost:8443", &format!("localhost:{}", data.port()))
        .replace("127.0.0.1:8443", &data.to_string())
        .replace("127.0.0.1:9900", &admin.to_string());
    follow(&script, &[]);
}

#[test]
fn the_guide_to_upstreams_does_what_it_says() {
    let guide = std::fs::read_to_string("docs/upstreams.md").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_tollgate")).parent().unwrap();
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap());
    let output = Command::new("bash")
        .args(["-c", &script(&guide)])
        .current_dir(&directory)
        .env("PATH", path)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.ends_with("the end\n"), "{said}\n{errors}");
}
