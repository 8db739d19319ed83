//! Certificates for tests, made afresh by openssl.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::path::Path;
use std::process::{Command, Stdio};

/// Runs a script in the directory.
#[track_caller]
pub fn shell(directory: &Path, script: &str) -> String {
    let mut command = Command::new("bash");
    command.args(["-euc", script]).current_dir(directory).stdin(Stdio::null());
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Makes `NAME.crt`, signed by itself for localhost with this subject, and `NAME.key`. It is no
/// authority, as openssl would have it by default and strict clients would not.
pub fn self_signed(directory: &Path, name: &str, subject: &str, days: u32) {
    let script = format!(
        "printf '[req]\\ndistinguished_name=dn\\nx509_extensions=v3\\n[dn]\\n[v3]\\n' > {name}.cnf
        echo subjectAltName=DNS:localhost,IP:127.0.0.1 >> {name}.cnf
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days {days} \\
            -subj /CN={subject} -config {name}.cnf -keyout {name}.key -out {name}.crt"
    );
    shell(directory, &script);
}

/// Makes `NAME.crt` and `NAME.key` of a certificate that was over a day ago.
pub fn expired(directory: &Path, name: &str) {
    let script = format!(
        "echo subjectAltName=DNS:localhost > {name}.ext
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=over \\
            -keyout {name}.key -out {name}.csr
        openssl x509 -req -in {name}.csr -signkey {name}.key -extfile {name}.ext -days -1 \\
            -out {name}.crt"
    );
    shell(directory, &script);
}
