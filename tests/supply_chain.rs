//! What others wrote and tollgate is built from: licences, sources and duplicates are those that
//! `deny.toml` accepts, and the list of components names what is in the binary.
//!
//! It asks cargo for the graph of this machine's target, which is there once the tests are built.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";
/// Linked where tests are built as well, for features that only their crates switch on.
const OF_TESTS: [&str; 3] = ["aho-corasick@1", "allocator-api2@0.2", "untrusted@0.7"];

fn text(name: &str) -> String {
    std::fs::read_to_string(name).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn target() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

/// The text of the list that this line of `deny.toml` opens.
fn list_of_deny(opening: &str) -> String {
    let deny = text("deny.toml");
    let list = deny.split(&format!("\n{opening} = [\n")).nth(1);
    list.unwrap_or_else(|| panic!("deny.toml has no {opening}")).split("\n]").next().unwrap().into()
}

/// What stands behind `crate = ` in a list of `deny.toml`; each has its reason.
fn crates_of_deny(opening: &str) -> Vec<String> {
    let list = list_of_deny(opening);
    let entry = |line: &str| {
        let (name, reason) = line.split_once("crate = \"")?.1.split_once('"')?;
        let reason = reason.split_once("reason = \"")?.1;
        (reason.len() > 3).then(|| name.to_owned())
    };
    list.lines().map(|line| entry(line).unwrap_or_else(|| panic!("deny.toml: {line}"))).collect()
}

/// Whether `name@1.2` speaks of this version.
fn is_of(entry: &str, name: &str, version: &str) -> bool {
    let (of, begin) = entry.split_once('@').unwrap();
    of == name && version.strip_prefix(begin).is_some_and(|rest| rest.starts_with('.'))
}

fn graph() -> Vec<Value> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["metadata", "--locked", "--format-version", "1", "--filter-platform", &target()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let graph: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = graph["packages"].as_array().unwrap().clone();
    assert!(packages.len() > 100, "only {} packages were seen", packages.len());
    packages
}

fn field<'a>(package: &'a Value, name: &str) -> &'a str {
    package[name].as_str().unwrap_or_default()
}

#[test]
fn dependencies_come_from_one_registry() {
    for name in ["Cargo.lock", "fuzz/Cargo.lock"] {
        let lock = text(name);
        let sources = lock.lines().filter_map(|line| line.strip_prefix("source = "));
        let elsewhere = sources.filter(|from| from.trim_matches('"') != CRATES_IO);
        assert_eq!(elsewhere.collect::<Vec<_>>(), [""; 0], "{name}");
    }
    for package in graph() {
        let is_ours = field(&package, "name") == "tollgate";
        assert_eq!(field(&package, "source"), if is_ours { "" } else { CRATES_IO }, "{package}");
        // Any version at all would be whatever somebody publishes next.
        for dependency in package["dependencies"].as_array().unwrap().iter().filter(|_| is_ours) {
            assert_ne!(field(dependency, "req"), "*", "{dependency}");
        }
    }
}

#[test]
fn licences_are_those_that_are_accepted() {
    let list = list_of_deny("allow");
    let accepted: BTreeSet<&str> = list.split('"').skip(1).step_by(2).collect();
    assert!(accepted.contains("MIT"), "deny.toml's list of licences was not understood");
    for package in graph() {
        let licence = field(&package, "license");
        let place = format!("{}: {licence}", field(&package, "name"));
        assert!(licence_is_accepted(licence, &accepted), "{place}");
    }
}

#[test]
fn two_versions_of_one_crate_are_explained_and_nothing_else_is() {
    let mut versions: BTreeMap<String, Vec<Vec<u64>>> = BTreeMap::new();
    let graph = graph();
    for package in &graph {
        let numbers = field(package, "version").split(['.', '-', '+']).take(3);
        let numbers = numbers.map(|it| it.parse().unwrap()).collect();
        versions.entry(field(package, "name").to_owned()).or_default().push(numbers);
    }
    let skipped = crates_of_deny("skip");
    let mut found = BTreeSet::new();
    for (name, mut of_it) in versions {
        of_it.sort();
        of_it.pop();
        for version in of_it {
            let version: Vec<String> = version.iter().map(u64::to_string).collect();
            let version = version.join(".");
            let entry = skipped.iter().find(|it| is_of(it, &name, &version));
            found.insert(entry.unwrap_or_else(|| panic!("{name} {version} beside a newer one")));
        }
    }
    assert_eq!(found, skipped.iter().collect(), "deny.toml explains what is no pair any more");
}

/// Else two builds of one commit would differ by where and when they were made.
#[test]
fn nothing_of_time_or_place_goes_into_the_binary() {
    let build = text("build.rs");
    for unwanted in ["SystemTime", "CARGO_MANIFEST_DIR", "current_dir", "hostname", "\"date\""] {
        assert!(!build.contains(unwanted), "build.rs: {unwanted}");
    }
    let told = build.matches("cargo:rustc-env=").count();
    let both = ["cargo:rustc-env=TOLLGATE_COMMIT=", "cargo:rustc-env=TOLLGATE_RUSTC="];
    assert!(told == 2 && both.iter().all(|it| build.contains(it)), "build.rs tells {told}");
    let mut folders = vec![std::path::PathBuf::from("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == "rs") {
                let code = text(path.to_str().unwrap());
                for unwanted in ["env!(\"CARGO_MANIFEST_DIR\")", "env!(\"OUT_DIR\")", "file!()"] {
                    assert!(!code.contains(unwanted), "{}: {unwanted}", path.display());
                }
            }
        }
    }
    // And paths of the machine are taken out of what compilers put in.
    let release = text("deploy/release.sh");
    for wanted in ["--remap-path-prefix=", "-ffile-prefix-map=", "--locked"] {
        assert!(release.contains(wanted), "deploy/release.sh: {wanted}");
    }
}

fn sbom(time: Option<&str>) -> Vec<u8> {
    let mut command = Command::new("bash");
    command.arg("deploy/sbom.sh").env("TARGET", target()).env_remove("SOURCE_DATE_EPOCH");
    command.envs(time.map(|time| ("SOURCE_DATE_EPOCH", time)));
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
    stdout
}

#[test]
fn the_list_of_components_has_its_form_and_is_the_same_twice() {
    let (once, twice) = (sbom(Some("1700000000")), sbom(Some("1700000000")));
    assert!(once == twice, "not the same twice");
    let list: Value = serde_json::from_slice(&once).unwrap();
    assert_eq!((&list["bomFormat"], &list["specVersion"]), (&"CycloneDX".into(), &"1.5".into()));
    assert_eq!(list["metadata"]["timestamp"], "2023-11-14T22:13:20Z");
    assert_eq!(list["metadata"]["component"]["version"], env!("CARGO_PKG_VERSION"));
    let serial = field(&list, "serialNumber").strip_prefix("urn:uuid:").unwrap();
    let parts: Vec<usize> = serial.split('-').map(str::len).collect();
    assert_eq!(parts, [8, 4, 4, 4, 12]);
    assert!(serial.bytes().all(|it| it == b'-' || it.is_ascii_hexdigit()));

    let root = field(&list["metadata"]["component"], "bom-ref");
    let mut references = BTreeSet::from([root]);
    let lock = text("Cargo.lock");
    for component in list["components"].as_array().unwrap() {
        let purl = field(component, "purl");
        assert_eq!(field(component, "bom-ref"), purl);
        assert!(references.insert(purl), "{purl} is named twice");
        assert!(!field(&component["licenses"][0], "expression").is_empty(), "{purl}");
        assert!(matches!(field(component, "scope"), "required" | "excluded"), "{purl}");
        let (name, version) = (field(component, "name"), field(component, "version"));
        let sum = &component["hashes"][0];
        if name == "uplot" {
            continue;
        }
        assert_eq!(purl, format!("pkg:cargo/{name}@{}", version.replace('+', "%2B")));
        let of_lock = format!(
            "name = \"{name}\"\nversion = \"{version}\"\nsource = \"{CRATES_IO}\"\nchecksum = \"{}\"\n",
            field(sum, "content")
        );
        assert!(lock.contains(&of_lock) && field(sum, "alg") == "SHA-256", "{purl}: {sum}");
    }
    // Every reference leads somewhere, and everything has its row.
    let rows = list["dependencies"].as_array().unwrap();
    assert_eq!(rows.iter().map(|row| field(row, "ref")).collect::<BTreeSet<_>>(), references);
    for below in rows.iter().flat_map(|row| row["dependsOn"].as_array().unwrap()) {
        assert!(references.contains(below.as_str().unwrap()), "{below}");
    }
}

#[test]
fn the_list_of_components_names_what_is_linked_and_no_test() {
    let list: Value = serde_json::from_slice(&sbom(None)).unwrap();
    assert!(list["metadata"]["timestamp"].is_null());
    let mut required = BTreeSet::new();
    let mut excluded = BTreeSet::new();
    for component in list["components"].as_array().unwrap() {
        let key = format!("{}-{}", field(component, "name"), field(component, "version"));
        let is_linked = field(component, "scope") == "required";
        if is_linked { &mut required } else { &mut excluded }.insert(key);
    }
    let has = |set: &BTreeSet<String>, name: &str| set.iter().any(|it| it.starts_with(name));
    for name in ["tokio-1", "rustls-0", "aws-lc-sys-", "tikv-jemalloc-sys-", "uplot-"] {
        assert!(has(&required, name), "{name}");
    }
    for name in ["serde_derive-", "cc-", "syn-"] {
        assert!(has(&excluded, name) && !has(&required, name), "{name}");
    }
    for name in ["proptest-", "jsonschema-", "tempfile-", "jsonwebtoken-", "serde_yaml-"] {
        assert!(!has(&required, name) && !has(&excluded, name), "{name}");
    }
    // The binary itself says of which crates it has code: by the paths for its backtraces.
    let linked = linked(Path::new(env!("CARGO_BIN_EXE_tollgate")));
    if linked.len() < 100 {
        return println!("skipped: this build holds no paths of its crates");
    }
    let missing: Vec<&String> = linked
        .difference(&required)
        .filter(|it| {
            let (name, version) = it.rsplit_once('-').unwrap();
            !OF_TESTS.iter().any(|entry| is_of(entry, name, version))
        })
        .collect();
    assert!(missing.is_empty(), "linked and not in the list: {missing:?}");
}

/// `name-version` of each crate from the registry of which this binary names a file.
fn linked(binary: &Path) -> BTreeSet<String> {
    // A debug build has more than a hundred megabytes, through which an unoptimised test is slow.
    let output = Command::new("grep")
        .args(["--only-matching", "--text", "-E", "/registry/src/[^/]*/[A-Za-z0-9_.+-]*/"])
        .arg(binary)
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    let paths = String::from_utf8_lossy(&output.stdout).into_owned();
    paths
        .lines()
        .filter_map(|path| path.trim_end_matches('/').rsplit('/').next())
        .map(str::to_owned)
        .collect()
}

/// Whether one licence of each alternative is accepted; `/` is the old way to write `OR`.
fn licence_is_accepted(expression: &str, accepted: &BTreeSet<&str>) -> bool {
    let one = |licence: &str| accepted.contains(licence.trim_matches(['(', ')', ' ']));
    expression.replace('/', " OR ").split(" AND ").all(|part| part.split(" OR ").any(one))
}

#[test]
fn licences_are_read_as_expressions() {
    let accepted = BTreeSet::from(["MIT", "Apache-2.0", "Zlib"]);
    for good in ["MIT", "GPL-3.0 OR MIT", "MIT/GPL-2.0", "MIT AND (Apache-2.0 OR GPL-2.0)"] {
        assert!(licence_is_accepted(good, &accepted), "{good}");
    }
    for bad in ["", "none given", "GPL-3.0", "MIT AND GPL-3.0", "(MIT OR Zlib) AND MPL-2.0"] {
        assert!(!licence_is_accepted(bad, &accepted), "{bad}");
    }
}
