//! What is deployed with, held to what it promises: the compose files against the schemas of both
//! generations of compose, ports, pins and limits, the Dockerfile, completions, the manual.
//!
//! It reads; what has to be built and started is in `tests/long.sh compose`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const STACK: &str = "docker-compose.yml";
const SIDECAR: &str = "deploy/compose/sidecar.yml";
const MONITORING: &str = "deploy/compose/monitoring.yml";
const FILES: [&str; 3] = [STACK, SIDECAR, MONITORING];
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Host ports that the documents name; `None` for loopback means every address.
const PORTS: &[(&str, &str)] = &[
    ("tollgate", "8081:8080"),
    ("tollgate", "127.0.0.1:9900:9900"),
    ("prometheus", "127.0.0.1:9090:9090"),
    ("grafana", "127.0.0.1:3000:3000"),
    ("alertmanager", "127.0.0.1:9093:9093"),
    ("node-exporter", "127.0.0.1:9100:9100"),
    ("cadvisor", "127.0.0.1:8088:8080"),
];

fn text(name: &str) -> String {
    std::fs::read_to_string(name).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A file of compose with its anchors and merges resolved.
fn compose(name: &str) -> Value {
    let mut value: serde_yaml::Value = serde_yaml::from_str(&text(name)).unwrap();
    value.apply_merge().unwrap();
    serde_json::to_value(value).unwrap()
}

fn services(file: &Value) -> BTreeMap<&str, &Value> {
    file["services"].as_object().unwrap().iter().map(|(name, it)| (name.as_str(), it)).collect()
}

fn strings(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().map(|it| it.as_str().unwrap()).collect()
}

/// What Docker reads as a size or a time: a number and a unit.
fn amount(value: &Value, units: &[(&str, u64)]) -> u64 {
    let value = value.as_str().unwrap();
    let at = value.find(|c: char| !c.is_ascii_digit()).unwrap();
    let (number, unit) = value.split_at(at);
    let unit = units.iter().find(|it| it.0 == unit).unwrap_or_else(|| panic!("{value}"));
    number.parse::<u64>().unwrap() * unit.1
}

fn megabytes(value: &Value) -> u64 {
    amount(value, &[("m", 1), ("g", 1024)])
}

#[test]
fn both_generations_of_compose_know_every_key() {
    for schema in ["compose-1.29.json", "compose-2.40.json"] {
        let schema_text = text(&format!("tests/vectors/compose/{schema}"));
        let validator = jsonschema::validator_for(&serde_json::from_str(&schema_text).unwrap());
        let validator = validator.unwrap();
        for name in FILES {
            let file = compose(name);
            let errors: Vec<String> = validator
                .iter_errors(&file)
                .map(|error| format!("{name}: {}: {error}", error.instance_path()))
                .collect();
            assert!(errors.is_empty(), "{schema}: {}", errors.join("\n"));
            // The first generation takes it for the old format, the second warns of it.
            assert!(file.get("version").is_none(), "{name}");
        }
        // That it can say no: a key that nobody knows, and a value of the wrong kind.
        for wrong in ["  a: { image: b, imagge: c }", "  a: { image: b, cap_drop: ALL }"] {
            let wrong = format!("services:\n{wrong}\n");
            let wrong: Value = serde_yaml::from_str(&wrong).unwrap();
            assert!(!validator.is_valid(&wrong), "{schema}: {wrong}");
        }
    }
}

#[test]
fn ports_are_those_of_the_documents_and_on_loopback() {
    let file = compose(STACK);
    let found: BTreeSet<(&str, &str)> = services(&file)
        .into_iter()
        .flat_map(|(name, service)| {
            strings(&service["ports"]).into_iter().map(move |it| (name, it))
        })
        .collect();
    assert_eq!(found, PORTS.iter().copied().collect::<BTreeSet<_>>());
    let guide = text("docs/container.md");
    for (name, port) in PORTS {
        let host = port.rsplit(':').nth(1).unwrap();
        assert!(
            guide.contains(&format!("localhost:{host}")),
            "docs/container.md: {name} on {host}"
        );
    }
    // Of the others, only what takes tollgate's place in front of somebody's service.
    for name in [SIDECAR, MONITORING] {
        let file = compose(name);
        for (service, it) in services(&file) {
            let open = strings(&it["ports"]).into_iter().filter(|it| !it.starts_with("127.0.0.1:"));
            let open: Vec<&str> = open.collect();
            let expected: &[&str] = if service == "tollgate" { &["8080:8080"] } else { &[] };
            assert_eq!(open, expected, "{name}: {service}");
        }
    }
}

#[test]
fn images_are_pinned_services_bounded_and_confined() {
    for name in FILES {
        let file = compose(name);
        for (service, it) in services(&file) {
            let place = format!("{name}: {service}");
            let image = it["image"].as_str().unwrap_or_else(|| panic!("{place}: image"));
            let tag = image.rsplit('/').next().unwrap().split_once(':').map(|it| it.1);
            let tag = tag.unwrap_or_else(|| panic!("{place}: {image} has no tag"));
            let version = tag.trim_start_matches('v').split('-').next().unwrap();
            let is_whole = version.split('.').count() == 3
                && version.split('.').all(|it| it.parse::<u32>().is_ok());
            assert!(is_whole, "{place}: {image} is no whole version");
            if image.starts_with("tollgate") {
                assert_eq!(tag, VERSION, "{place}");
            }
            assert!(megabytes(&it["mem_limit"]) >= 64, "{place}: {}", it["mem_limit"]);
            assert_eq!(it["read_only"], true, "{place}");
            assert_eq!(it["restart"], "unless-stopped", "{place}");
            assert_eq!(strings(&it["security_opt"]), ["no-new-privileges:true"], "{place}");
            assert!(it.get("privileged").is_none(), "{place}");
            assert!(it.get("cap_add").is_none(), "{place}");
            // What reads every container's account is root, with root's rights to read.
            if service != "cadvisor" {
                assert_eq!(strings(&it["cap_drop"]), ["ALL"], "{place}");
            }
            if name == SIDECAR {
                continue;
            }
            assert!(it["logging"]["options"]["max-size"].is_string(), "{place}: logs without end");
            assert!(it["pids_limit"].is_u64(), "{place}");
            if service != "cadvisor" {
                let user = it["user"].as_str().unwrap_or_else(|| panic!("{place}: user"));
                assert!(user.parse::<u32>().is_err() && !user.starts_with("0:"), "{place}: {user}");
            }
            // An image that brings its health check says so here.
            let brings_its_own = matches!(service, "tollgate" | "backend" | "cadvisor");
            assert_eq!(it.get("healthcheck").is_none(), brings_its_own, "{place}");
        }
    }
}

#[test]
fn whoever_stops_tollgate_waits_for_its_drain() {
    let seconds = |value: &Value| amount(value, &[("s", 1), ("m", 60)]);
    let defaults: Value = serde_yaml::from_str(&text("config/tollgate.yaml")).unwrap();
    let drain = seconds(&defaults["server"]["drain_timeout"]);
    let here: Value = serde_yaml::from_str(&text("config/compose.yaml")).unwrap();
    assert!(here["server"].get("drain_timeout").is_none(), "then the check below is another");
    for name in [STACK, SIDECAR] {
        let grace = seconds(&compose(name)["services"]["tollgate"]["stop_grace_period"]);
        assert!(grace > drain, "{name}: {grace} s for a drain of {drain} s");
    }
}

#[test]
fn mounted_files_and_volumes_are_there() {
    for name in [STACK, MONITORING] {
        let file = compose(name);
        let beside = Path::new(name).parent().unwrap();
        let mut used = BTreeSet::new();
        for (service, it) in services(&file) {
            for volume in strings(&it["volumes"]) {
                let from = volume.split(':').next().unwrap();
                if from.starts_with('.') {
                    let path = beside.join(from);
                    assert!(path.exists(), "{name}: {service}: {} is not there", path.display());
                    assert!(volume.ends_with(":ro"), "{name}: {service}: {volume}");
                } else if from.starts_with('/') {
                    assert!(volume.ends_with(":ro"), "{name}: {service}: {volume}");
                } else {
                    used.insert(from);
                }
            }
            if let Some(context) = it["build"]["context"].as_str() {
                assert!(beside.join(context).join("Dockerfile").is_file(), "{name}: {service}");
            }
        }
        let declared: BTreeSet<&str> =
            file["volumes"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(used, declared, "{name}");
    }
}

#[test]
fn the_monitoring_is_the_same_with_and_without_the_rest() {
    let (stack, monitoring) = (compose(STACK), compose(MONITORING));
    let alone = services(&monitoring);
    assert_eq!(
        alone.keys().copied().collect::<Vec<_>>(),
        ["alertmanager", "cadvisor", "grafana", "node-exporter", "prometheus"]
    );
    for (name, service) in alone {
        let mut service = service.clone();
        for volume in service["volumes"].as_array_mut().unwrap() {
            *volume = volume.as_str().unwrap().replace("../", "./deploy/").into();
        }
        if name == "prometheus" {
            let hosts = service.as_object_mut().unwrap().remove("extra_hosts").unwrap();
            assert_eq!(strings(&hosts), ["tollgate:${TOLLGATE_HOST:-host-gateway}"]);
        }
        assert_eq!(&service, services(&stack)[name], "{name}");
    }
}

#[test]
fn the_sidecar_is_eleven_lines() {
    let lines = text(SIDECAR);
    let lines = lines.lines().filter(|it| !it.starts_with('#') && !it.trim().is_empty());
    assert!(lines.count() <= 11);
    // A port that is published has to be listened on: the admin port is so only if told.
    let environment = strings(&compose(SIDECAR)["services"]["tollgate"]["environment"]).join(" ");
    assert!(environment.contains("TOLLGATE_ADMIN=0.0.0.0:9900"), "{environment}");
}

#[test]
fn no_file_holds_a_secret() {
    for name in FILES.into_iter().chain(["Dockerfile", "config/compose.yaml"]) {
        for line in text(name).lines().filter(|it| !it.trim_start().starts_with('#')) {
            let low = line.to_lowercase();
            let names_one =
                ["password", "secret", "token", "api_key"].iter().any(|it| low.contains(it));
            // Grafana's own first password, for a port of loopback alone.
            let is_grafanas = line.contains("${GRAFANA_ADMIN_PASSWORD:-admin}");
            assert!(!names_one || is_grafanas, "{name}: {line}");
        }
    }
}

#[test]
fn the_configuration_of_the_stack_is_valid() {
    let output = tollgate(&[
        "check",
        "--config",
        "config/compose.yaml",
        "--tiers",
        "config/tiers.yaml",
        "--format",
        "json",
    ]);
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.success(), "{said:#}");
    assert_eq!(said["warnings"], Value::Array(Vec::new()));
    let config: Value = serde_yaml::from_str(&text("config/compose.yaml")).unwrap();
    assert_eq!(strings(&config["server"]["expose"]), ["health", "metrics"]);
    // The ports within the container are those that are published.
    assert_eq!(config["server"]["listen"], "0.0.0.0:8080");
    assert_eq!(config["admin"]["listen"], "0.0.0.0:9900");
}

/// The instructions of a Dockerfile, continued lines joined.
fn instructions(name: &str) -> Vec<(String, String)> {
    let (mut found, mut whole) = (Vec::new(), String::new());
    for line in text(name).lines().filter(|it| !it.trim_start().starts_with('#')) {
        match line.trim_end().strip_suffix('\\') {
            Some(begun) => whole.push_str(begun),
            None => {
                whole.push_str(line);
                if let Some((instruction, rest)) = whole.trim().split_once(' ') {
                    found.push((instruction.to_owned(), rest.trim().to_owned()));
                }
                whole.clear();
            }
        }
    }
    found
}

#[test]
fn the_images_are_what_they_promise() {
    let all = instructions("Dockerfile");
    let last = all.iter().rposition(|it| it.0 == "FROM").unwrap();
    let image = &all[last..];
    assert!(image[0].1.contains("distroless"), "{:?}", image[0]);
    let copied = image.iter().filter(|it| it.0 == "COPY" && it.1.contains("/out/sbom.cdx.json"));
    assert!(copied.count() == 1, "the list of components");
    let of = |name: &str| -> Vec<&str> {
        image.iter().filter(|it| it.0 == name).map(|it| it.1.as_str()).collect()
    };
    assert_eq!(of("USER"), ["65532:65532"]);
    assert!(of("HEALTHCHECK")[0].ends_with("CMD [\"/usr/local/bin/tollgate\", \"health\"]"));
    assert_eq!(of("ENTRYPOINT"), ["[\"/usr/local/bin/tollgate\"]"]);
    assert_eq!(of("CMD"), ["[\"run\"]"]);
    assert!(of("RUN").is_empty(), "there is no shell that would run it");
    assert!(of("ARG").contains(&format!("VERSION={VERSION}").as_str()));
    for label in ["title", "version", "revision", "licenses", "description"] {
        let label = format!("org.opencontainers.image.{label}=");
        assert!(of("LABEL").iter().any(|it| it.contains(&label)), "{label}");
    }
    // The layer of the dependencies must not hang on the sources or the commit.
    let built = all.iter().position(|it| it.1.contains("cargo build")).unwrap();
    for (instruction, rest) in &all[..built] {
        let hangs = rest.contains("src ") || rest.contains("TOLLGATE_COMMIT");
        assert!(!hangs || instruction == "RUN", "{instruction} {rest}");
    }
    // The compiler is the one that the code is checked with, or newer.
    let from = all.iter().find(|it| it.0 == "FROM").unwrap();
    let minor = |text: &str| text.split('.').nth(1).unwrap().parse::<u32>().unwrap();
    let oldest = text("Cargo.toml");
    let oldest = oldest.lines().find_map(|it| it.strip_prefix("rust-version = \"")).unwrap();
    assert!(minor(&from.1) >= minor(oldest.trim_end_matches('"')), "{}", from.1);
    for name in ["Dockerfile", "deploy/compose/backend/Dockerfile"] {
        for (instruction, rest) in instructions(name) {
            let latest = instruction == "FROM" && (rest.contains("latest") || !is_tagged(&rest));
            assert!(!latest, "{name}: FROM {rest}");
        }
    }
}

/// A stage that was built before needs no tag.
fn is_tagged(from: &str) -> bool {
    let image = from.split(' ').next().unwrap();
    matches!(image, "scratch" | "dependencies") || image.contains(':')
}

#[test]
fn little_is_sent_to_the_engine() {
    let ignored = text(".dockerignore");
    let rules: Vec<&str> =
        ignored.lines().filter(|it| !it.starts_with('#') && !it.is_empty()).collect();
    assert_eq!(rules[0], "*", "all is left out, then named");
    let named: Vec<&str> = rules[1..].iter().map(|it| it.strip_prefix('!').unwrap()).collect();
    for name in &named {
        assert!(!["target", ".git", "tests", "."].contains(name), "{name}");
        assert!(Path::new(name.trim_end_matches("/*.yaml")).exists(), "{name}");
    }
    // What is copied from here has to be among it.
    let copied = instructions("Dockerfile");
    let copied = copied.iter().filter(|it| it.0 == "COPY" && !it.1.starts_with("--from"));
    for (_, rest) in copied {
        let mut words: Vec<&str> = rest.split(' ').collect();
        words.pop();
        for word in words {
            let is_sent = named.iter().any(|it| {
                *it == word || it.starts_with(&format!("{word}/")) || {
                    let folder = it.strip_suffix("*.yaml").unwrap_or(it);
                    folder.ends_with('/') && word.starts_with(folder)
                }
            });
            assert!(is_sent, "{word} is copied and not sent");
        }
    }
}

fn tollgate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tollgate")).args(arguments).output().unwrap()
}

/// Runs a program on this text; `None` where it is not installed.
fn fed(program: &str, arguments: &[&str], text: &[u8]) -> Option<Output> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().ok()?;
    child.stdin.take().unwrap().write_all(text).unwrap();
    Some(child.wait_with_output().unwrap())
}

#[test]
fn completions_are_made_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let output = tollgate(&["completions", shell]);
        assert!(output.status.success());
        let script = String::from_utf8(output.stdout).unwrap();
        for word in ["explain", "upstream", "completions"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
        let check: &[&str] = match shell {
            "bash" | "zsh" => &["-n"],
            "fish" => &["--no-execute"],
            _ => continue,
        };
        match fed(shell, check, script.as_bytes()) {
            Some(output) => assert!(output.status.success(), "{shell}: {output:?}"),
            None => assert_ne!(shell, "bash", "is not installed"),
        }
    }
    assert_eq!(tollgate(&["completions", "tcsh"]).status.code(), Some(2));
}

/// What bash itself offers after these words.
#[test]
fn bash_completes_the_command_line() {
    let script = String::from_utf8(tollgate(&["completions", "bash"]).stdout).unwrap();
    let asked = "\nCOMP_WORDS=(tollgate run --up); COMP_CWORD=2\n\
                 _tollgate tollgate --up run; echo \"offered: ${COMPREPLY[*]}\"\n";
    let output = fed("bash", &["--norc"], (script + asked).as_bytes()).unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("offered: --upstream\n"), "{output:?}");
}

#[test]
fn every_command_has_a_page_of_the_manual() {
    let root = String::from_utf8(tollgate(&["man"]).stdout).unwrap();
    let plain = root.replace("\\-", "-");
    let commands: Vec<&str> = plain
        .lines()
        .filter_map(|line| line.strip_prefix("tollgate-")?.strip_suffix("(1)"))
        .collect();
    assert!(commands.contains(&"run") && commands.contains(&"man"), "{commands:?}");
    for command in commands {
        let output = Command::new(env!("CARGO_BIN_EXE_tollgate"))
            .args(["man", command])
            // A page is the same for everybody.
            .env("TOLLGATE_UPSTREAM", "http://not-for-the-manual")
            .output()
            .unwrap();
        let page = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && page.contains(".SH SYNOPSIS"), "{command}: {page}");
        assert!(!page.contains("not-for-the-manual") && !page.contains("not\\-for"), "{command}");
    }
    let run = String::from_utf8(tollgate(&["man", "run"]).stdout).unwrap();
    for wanted in ["TOLLGATE_UPSTREAM", ".SH EXAMPLES\n.nf\n", ".SH NOTES\n"] {
        assert!(run.contains(wanted), "{wanted}: {run}");
    }
    assert_eq!(tollgate(&["man", "walk"]).status.code(), Some(2));
}

/// The binary's commit is what whoever builds it says, where there is no history.
#[test]
fn the_commit_can_be_told() {
    let build = text("build.rs");
    assert!(build.contains("env::var(\"TOLLGATE_COMMIT\")"));
    assert!(build.contains("rerun-if-env-changed=TOLLGATE_COMMIT"));
    let told: Vec<PathBuf> =
        [PathBuf::from("Dockerfile"), PathBuf::from("docker-compose.yml")].into();
    for file in told {
        assert!(text(file.to_str().unwrap()).contains("TOLLGATE_COMMIT"), "{}", file.display());
    }
}

#[test]
fn a_release_is_the_same_twice() {
    let directory = tempfile::tempdir().unwrap();
    // The binary as it is would be long to pack, and says no more.
    let binary = directory.path().join("tollgate");
    let script = format!("#!/bin/sh\nexec {} \"$@\"\n", env!("CARGO_BIN_EXE_tollgate"));
    std::fs::write(&binary, script).unwrap();
    let made: Vec<PathBuf> = ["one", "two"].map(|name| directory.path().join(name)).into();
    for folder in &made {
        let output = Command::new("bash")
            .arg("deploy/release.sh")
            .arg(folder)
            .envs([("BINARY", binary.to_str().unwrap()), ("RELEASE_DIRTY", "1")])
            .env("SOURCE_DATE_EPOCH", "1700000000")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let sums: Vec<String> =
        made.iter().map(|it| text(it.join("SHA256SUMS").to_str().unwrap())).collect();
    assert_eq!(sums[0], sums[1]);

    let (sum, name) = sums[0].trim_end().split_once("  ").unwrap();
    assert_eq!(sum.len(), 64);
    assert!(name.starts_with(&format!("tollgate-{VERSION}-")), "{name}");
    let listing = Command::new("tar").arg("-tvzf").arg(made[0].join(name)).output().unwrap();
    let listing = String::from_utf8(listing.stdout).unwrap();
    let root = name.strip_suffix(".tar.gz").unwrap();
    for wanted in [
        "tollgate",
        "THIRD_PARTY_LICENSES",
        "sbom.cdx.json",
        "SECURITY.md",
        "deploy/seccomp/tollgate.json",
        "LICENSE-MIT",
        "LICENSE-APACHE",
        "README.md",
        "CHANGELOG.md",
        "config/tollgate.yaml",
        "deploy/compose/sidecar.yml",
        "docs/container.md",
        "completions/tollgate.bash",
        "completions/_tollgate",
        "man/tollgate.1",
        "man/tollgate-run.1",
    ] {
        assert!(listing.contains(&format!(" {root}/{wanted}\n")), "{wanted} is not in\n{listing}");
    }
    for line in listing.lines() {
        assert!(line.contains(" 0/0 ") && line.contains("2023-11-14"), "{line}");
        let size = line.split_whitespace().nth(2);
        assert!(line.starts_with('d') || size != Some("0"), "{line}: is empty");
    }
}

#[test]
fn the_licences_of_all_that_is_linked_are_told() {
    let output = Command::new("bash").arg("deploy/licences.sh").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told = String::from_utf8(output.stdout).unwrap();
    let (list, texts) = told.split_once("\n\n====").unwrap();
    for wanted in
        ["hyper ", "tokio ", "rustls ", "aws-lc-sys ", "tikv-jemalloc-sys ", "clap_mangen "]
    {
        assert!(list.contains(&format!("\n{wanted}")), "{wanted}");
    }
    // Of tests, build scripts and macros nothing is in the binary.
    for unwanted in ["proptest ", "cc ", "serde_derive ", "jsonschema "] {
        assert!(!list.contains(&format!("\n{unwanted}")), "{unwanted}");
    }
    // What the C libraries ask for.
    for wanted in ["jemalloc/COPYING", "aws-lc-sys-", "The standard library of Rust"] {
        assert!(texts.contains(wanted), "{wanted}");
    }
    // Every number that is referred to has its text.
    let last = texts.lines().rev().find_map(|it| it.strip_prefix('[')?.split_once("] "));
    let last: usize = last.unwrap().0.parse().unwrap();
    let numbers = list.lines().filter_map(|it| it.strip_suffix(']')?.rsplit_once('['));
    let most = numbers.flat_map(|it| it.1.split(' ')).map(|it| it.parse::<usize>().unwrap()).max();
    assert_eq!(most, Some(last));
}
