//! Tells the binary what it was built from: `tollgate --version` and the build metric say it.

use std::process::Command;

fn main() {
    // Where the history is not at hand, as in a container's build, whoever builds says the commit.
    let told = std::env::var("TOLLGATE_COMMIT").ok().filter(|text| is_a_word(text));
    let commit = told.or_else(|| output("git", &["rev-parse", "--short=12", "HEAD"]));
    let compiler = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let rustc = output(&compiler, &["--version"]);
    println!("cargo:rustc-env=TOLLGATE_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
    println!("cargo:rustc-env=TOLLGATE_RUSTC={}", rustc.as_deref().unwrap_or("unknown"));
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=TOLLGATE_COMMIT");
    if std::path::Path::new(".git/logs/HEAD").exists() {
        println!("cargo:rerun-if-changed=.git/logs/HEAD");
    }
}

/// A line break would be one more instruction to cargo.
fn is_a_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned()).filter(|text| !text.is_empty())
}
