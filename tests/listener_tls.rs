//! Certificates of listeners: what may be shown and what is said of the rest, by the reader, by
//! `tollgate check` and by a tollgate that runs while its files change.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

#[path = "support/certificates.rs"]
mod certificates;
mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use certificates::{expired, self_signed, shell, trusting};
use support::{Backend, PATIENCE, Start, Tollgate, wait_until};
use tollgate::tls::certificate::ServerCertificate;

// ---------------------------------------------------------------------------------- the two files

fn read(directory: &Path, chain: &str, key: &str) -> Result<ServerCertificate, String> {
    let content = |name: &str| fs::read(directory.join(name)).unwrap();
    ServerCertificate::from_pem(&content(chain), &content(key)).map_err(|it| it.to_string())
}

#[test]
fn every_usual_kind_of_key_makes_a_pair() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    for (name, options) in [
        ("rsa", "rsa:2048"),
        ("p256", "ec -pkeyopt ec_paramgen_curve:P-256"),
        ("p384", "ec -pkeyopt ec_paramgen_curve:P-384"),
        ("ed", "ed25519"),
    ] {
        let make = format!(
            "openssl req -x509 -newkey {options} -nodes -subj /CN=a -days 90 -keyout {name}.key \
             -out {name}.crt"
        );
        shell(at, &make);
        let certificate = read(at, &format!("{name}.crt"), &format!("{name}.key")).unwrap();
        let valid = certificate.not_after().since(certificate.not_before());
        assert_eq!(valid.as_micros(), 90 * 86_400_000_000, "{name}");
        assert!(!format!("{certificate:?}").contains("key"), "{certificate:?}");
    }
    // The older forms of a key, a chain, both in one file, and text around it.
    shell(
        at,
        "openssl pkey -traditional -in rsa.key -out pkcs1.key
        (openssl ecparam -name prime256v1; openssl pkey -traditional -in p256.key) > sec1.key
        cat p256.crt rsa.crt > chain.crt; cat p256.key p256.crt > both.pem
        openssl x509 -in p256.crt -text > text.crt",
    );
    for (chain, key) in [
        ("rsa.crt", "pkcs1.key"),
        ("p256.crt", "sec1.key"),
        ("chain.crt", "p256.key"),
        ("both.pem", "both.pem"),
        ("text.crt", "p256.key"),
    ] {
        let certificate = read(at, chain, key);
        assert!(certificate.is_ok(), "{chain} and {key}: {certificate:?}");
    }
}

#[test]
fn what_cannot_be_used_is_said_in_plain_words() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    self_signed(at, "one", "one", 90);
    self_signed(at, "two", "two", 90);
    shell(
        at,
        "cat one.crt two.crt > chain.crt; : > empty
        openssl x509 -in one.crt -outform DER -out der.crt
        openssl pkey -in one.key -outform DER -out der.key
        head -c 300 one.crt > cut.crt; head -c 150 one.key > cut.key
        sed '2s/^...../<<<<</' one.crt > odd.crt; sed '2s/^...../<<<<</' one.key > odd.key
        (echo '-----BEGIN CERTIFICATE-----'; echo AAAA; echo '-----END CERTIFICATE-----') > no.crt
        cat one.crt no.crt > second.crt
        (echo '-----BEGIN PRIVATE KEY-----'; echo AAAA; echo '-----END PRIVATE KEY-----') > no.key
        openssl pkey -in one.key -aes256 -passout pass:hunter2 -out locked.key
        openssl ec -in one.key -aes256 -passout pass:hunter2 -out locked_old.key
        openssl req -x509 -newkey rsa:1024 -nodes -subj /CN=a -keyout short.key -out short.crt
        openssl req -new -key one.key -subj /CN=a -out one.csr
        openssl x509 -req -in one.csr -signkey one.key -out old.crt",
    );
    let no_certificate = "expected PEM: -----BEGIN CERTIFICATE-----";
    let no_key = "expected PEM: -----BEGIN PRIVATE KEY-----";
    let kinds = "RSA of 2048 bits or more, ECDSA (P-256, P-384, P-521) or Ed25519";
    for (chain, key, expected) in [
        ("empty", "one.key", format!("an empty file, {no_certificate}")),
        ("one.csr", "one.key", format!("no certificate in it, {no_certificate}")),
        ("one.key", "one.key", format!("a private key and no certificate, {no_certificate}")),
        ("der.crt", "one.key", format!("DER, {no_certificate}")),
        ("cut.crt", "one.key", "cut off: no -----END line".to_owned()),
        ("odd.crt", "one.key", "broken PEM: not Base64".to_owned()),
        ("no.crt", "one.key", "certificate 1 of it cannot be read as X.509".to_owned()),
        ("second.crt", "one.key", "certificate 2 of it cannot be read as X.509".to_owned()),
        (
            "old.crt",
            "one.key",
            "an X.509 certificate of an old version, expected version 3, with a subjectAltName"
                .to_owned(),
        ),
        ("one.crt", "empty", format!("an empty file, {no_key}")),
        ("one.crt", "one.crt", format!("a certificate and no private key, {no_key}")),
        ("one.crt", "der.key", format!("no private key in it, {no_key}")),
        ("one.crt", "cut.key", "cut off: no -----END line".to_owned()),
        ("one.crt", "odd.key", "broken PEM: not Base64".to_owned()),
        ("one.crt", "no.key", format!("a key that cannot be used, expected {kinds}")),
        ("short.crt", "short.key", format!("a key that cannot be used, expected {kinds}")),
        (
            "one.crt",
            "locked.key",
            "an encrypted private key, expected one without a passphrase; `openssl pkey -in OLD \
             -out NEW` takes the passphrase off"
                .to_owned(),
        ),
        (
            "one.crt",
            "locked_old.key",
            "an encrypted private key, expected one without a passphrase; `openssl pkey -in OLD \
             -out NEW` takes the passphrase off"
                .to_owned(),
        ),
        ("one.crt", "two.key", "not the key that the certificate was made for".to_owned()),
        (
            "chain.crt",
            "two.key",
            "the key of certificate 2, expected that of the first: the server's own certificate \
             comes first"
                .to_owned(),
        ),
    ] {
        assert_eq!(read(at, chain, key).unwrap_err(), expected, "{chain} and {key}");
    }
}

// --------------------------------------------------------------------------------- tollgate check

/// What `tollgate check` says of a listener with this `tls`, and its exit code.
fn check(directory: &Path, tls: &str) -> (String, i32) {
    let config = format!(
        "upstream: {{ url: 'http://127.0.0.1:1' }}\nserver:\n  listeners:\n  - address: \
         127.0.0.1:8443\n    tls: {tls}\n"
    );
    fs::write(directory.join("tollgate.yaml"), config).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    let output = command
        .args(["check", "--config", "tollgate.yaml"])
        .current_dir(directory)
        .env("TLS_KEY", fs::read_to_string(directory.join("good.key")).unwrap())
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (String::from_utf8(said).unwrap(), output.status.code().unwrap())
}

#[test]
fn check_reads_the_files_and_names_the_place() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    self_signed(at, "good", "good", 365);
    self_signed(at, "other", "other", 365);
    self_signed(at, "soon", "soon", 10);
    expired(at, "over");
    fs::create_dir(at.join("folder")).unwrap();
    let (said, code) = check(at, "{ cert: good.crt, key: good.key }");
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("0 warnings"), "{said}");

    let key = "server.listeners[0].tls.key";
    let cert = "server.listeners[0].tls.cert";
    for (tls, column, path, expected) in [
        (
            "{ cert: good.crt, key: none.key }",
            33,
            key,
            "none.key: cannot be read: No such file or directory (os error 2)",
        ),
        ("{ cert: folder, key: good.key }", 18, cert, "folder: a directory, expected a file"),
        (
            "{ cert: good.key, key: good.key }",
            18,
            cert,
            "good.key: a private key and no certificate, expected PEM: -----BEGIN CERTIFICATE-----",
        ),
        (
            "{ cert: good.crt, key: good.crt }",
            33,
            key,
            "good.crt: a certificate and no private key, expected PEM: -----BEGIN PRIVATE KEY-----",
        ),
        (
            "{ cert: good.crt, key: other.key }",
            33,
            key,
            "other.key does not fit good.crt: not the key that the certificate was made for",
        ),
        ("{ cert: good.crt }", 5, key, "missing, expected a file of the private key in PEM"),
        ("{ key: good.key }", 5, cert, "missing, expected a file of certificates in PEM"),
    ] {
        let (said, code) = check(at, tls);
        assert_eq!(code, 2, "{tls}: {said}");
        let line = format!("tollgate.yaml:5:{column}: {path}: {expected}\n");
        assert!(said.contains(&line), "{tls}: expected\n{line}in\n{said}");
    }
    // Both sides are told of at once.
    let (said, _) = check(at, "{ cert: none.crt, key: none.key }");
    assert!(said.contains(cert) && said.contains(key), "{said}");

    for (name, expected) in [("soon", "expires in 9 days, on 20"), ("over", "expired on 20")] {
        let (said, code) = check(at, &format!("{{ cert: {name}.crt, key: {name}.key }}"));
        assert_eq!(code, 0, "{said}");
        let line = format!("tollgate.yaml:5:18: {cert}: {name}.crt: {expected}");
        assert!(said.contains(&line), "expected\n{line}in\n{said}");
    }
}

#[test]
fn the_shipped_example_takes_the_names_of_the_files_from_the_environment() {
    let directory = tempfile::tempdir().unwrap();
    self_signed(directory.path(), "good", "good", 365);
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    let output = command
        .args(["check", "--config", "config/tls.yaml"])
        .env("TLS_CERT", directory.path().join("good.crt"))
        .env("TLS_KEY", directory.path().join("good.key"))
        .output()
        .unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success() && said.contains("0 warnings"), "{said}");
}

#[test]
fn a_private_key_in_place_of_its_files_name_is_not_repeated() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    self_signed(at, "good", "good", 365);
    let pem = fs::read_to_string(at.join("good.key")).unwrap();
    let body = pem.lines().nth(1).unwrap();
    let block: String = pem.lines().map(|line| format!("        {line}\n")).collect();
    let quoted = pem.replace('\n', "\\n");
    for tls in [
        format!("\n      cert: good.crt\n      key: |\n{block}"),
        format!("{{ cert: good.crt, key: \"{quoted}\" }}"),
        "{ cert: good.crt, key: \"${TLS_KEY}\" }".to_owned(),
        "{ cert: \"${TLS_KEY}\", key: good.key }".to_owned(),
        // No YAML, no name of a key, not the right kind.
        format!("\n      cert: good.crt\n      key: {pem}"),
        format!("\n      cert: good.crt\n      keys: |\n{block}"),
        format!("\n      cert: good.crt\n      key:\n      - |\n{block}"),
        format!("\"{quoted}\""),
        format!("|\n{block}"),
        "\"${TLS_KEY}\"".to_owned(),
        format!("{{ cert: good.crt, key: good.key, sni: \"{quoted}\" }}"),
        format!("{{ cert: good.crt, \"{quoted}\": a }}"),
    ] {
        let (said, code) = check(at, &tls);
        assert_eq!(code, 2, "{said}");
        assert!(!said.contains(&body[..16]), "{tls}\n{said}");
    }
}

#[test]
fn a_file_that_a_variable_names_is_said_to_be_missing() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    self_signed(at, "good", "good", 90);
    let (said, code) = check(at, "{ cert: good.crt, key: \"${A_KEY:-secret-place.key}\" }");
    assert_eq!(code, 2, "{said}");
    // The name goes in place of the key itself, which some would put there.
    let reason = "tls.key: the value of ${A_KEY}, which is not shown: cannot be read: No such file";
    assert!(said.contains(reason), "{said}");
    assert!(!said.contains("not shown: secret-place"), "{said}");
}

// ----------------------------------------------------------------------------------- while it runs

struct Served {
    directory: tempfile::TempDir,
    tollgate: Tollgate,
    _backend: Backend,
}

impl Served {
    /// A tollgate whose one listener shows `cert.pem` with `key.pem` of a directory, where the
    /// certificates `old`, which it begins with, `new` and `soon` lie ready.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        self_signed(directory.path(), "old", "old", 100);
        self_signed(directory.path(), "new", "new", 200);
        self_signed(directory.path(), "soon", "soon", 10);
        let served = |name: &str| directory.path().join(name).display().to_string();
        fs::copy(served("old.crt"), served("cert.pem")).unwrap();
        fs::copy(served("old.key"), served("key.pem")).unwrap();
        Self::from(&served("cert.pem"), &served("key.pem"), directory)
    }

    fn from(cert: &str, key: &str, directory: tempfile::TempDir) -> Self {
        let backend = Backend::ok();
        let config = format!(
            "server: {{ listeners: [{{ address: '127.0.0.1:0', tls: {{ cert: {cert}, key: {key} \
             }} }}] }}"
        );
        let start = Start::default().upstream(backend.address).config(&config).listeners();
        Served { directory, tollgate: start.run(), _backend: backend }
    }

    /// Puts a copy of a file in place of another, in one step.
    fn put(&self, file: &str, over: &str) {
        let at = |name: &str| self.directory.path().join(name);
        fs::copy(at(file), at("beside")).unwrap();
        fs::rename(at("beside"), at(over)).unwrap();
    }

    /// Whole days that the certificate in force has left.
    fn days(&self) -> f64 {
        let listener = self.tollgate.data;
        let series = format!("tollgate_tls_certificate_expiry_days{{listener=\"{listener}\"}}");
        self.tollgate.metric(&series).ceil()
    }

    /// Reloads that went well, those that did not, and whether all is well.
    fn reloads(&self) -> [f64; 3] {
        [
            "tollgate_config_reloads_total{result=\"ok\"}",
            "tollgate_config_reloads_total{result=\"error\"}",
            "tollgate_config_last_reload_successful",
        ]
        .map(|series| self.tollgate.metric(series))
    }

    #[track_caller]
    fn expect(&self, reloads: [f64; 3], days: f64) {
        wait_until("it is reloaded", || self.reloads() == reloads);
        assert_eq!(self.days(), days);
    }
}

#[test]
fn a_pair_is_taken_when_both_files_have_come_one_after_the_other() {
    let served = Served::new();
    assert!(
        served.tollgate.log().contains(&format!("listening on {} (TLS)", served.tollgate.data))
    );
    served.expect([0.0, 0.0, 1.0], 100.0);
    assert_eq!(served.tollgate.metric("tollgate_tls_handshakes_total{result=\"ok\"}"), 0.0);
    assert!(served.tollgate.admin("/metrics").text().contains("tollgate_tls_handshakes_total"));

    // The certificate alone is none for the key that is there.
    served.put("new.crt", "cert.pem");
    served.expect([0.0, 1.0, 0.0], 100.0);
    let reason = "not the key that the certificate was made for";
    wait_until("it is said", || served.tollgate.log().contains(reason));
    // The key makes it good.
    served.put("new.key", "key.pem");
    served.expect([1.0, 1.0, 1.0], 200.0);
    wait_until("it is said", || served.tollgate.log().contains("certificate reloaded"));

    // The other way round.
    served.put("old.key", "key.pem");
    served.expect([1.0, 2.0, 0.0], 200.0);
    served.put("old.crt", "cert.pem");
    served.expect([2.0, 2.0, 1.0], 100.0);

    // And one that has not long to go, which is said.
    served.put("soon.crt", "cert.pem");
    served.put("soon.key", "key.pem");
    wait_until("it is in force", || served.days() == 10.0);
    wait_until("it is said", || served.tollgate.log().contains("expires in 9 days, on 20"));
    let key = fs::read_to_string(served.directory.path().join("soon.key")).unwrap();
    assert!(!served.tollgate.log().contains(key.lines().nth(1).unwrap()));
}

#[test]
fn what_is_bad_is_refused_and_the_old_pair_kept() {
    let served = Served::new();
    let at = served.directory.path().to_owned();
    let mut refused = 0.0;
    let mut expect_refused = |reason: &str| {
        refused += 1.0;
        served.expect([0.0, refused, 0.0], 100.0);
        wait_until(reason, || served.tollgate.log().contains(reason));
    };
    fs::write(at.join("cert.pem"), "").unwrap();
    expect_refused("an empty file, expected PEM: -----BEGIN CERTIFICATE-----");
    let whole = fs::read_to_string(at.join("new.crt")).unwrap();
    fs::write(at.join("cert.pem"), &whole[..whole.len() / 2]).unwrap();
    expect_refused("cut off: no -----END line");
    fs::remove_file(at.join("cert.pem")).unwrap();
    expect_refused("cert.pem: cannot be read: no such file");
    // SIGHUP tries again, and says so.
    served.tollgate.signal("HUP");
    expect_refused("cert.pem: cannot be read: no such file");
    served.put("old.crt", "cert.pem");
    served.expect([1.0, refused, 1.0], 100.0);
    served.tollgate.signal("HUP");
    served.expect([2.0, refused, 1.0], 100.0);
}

#[test]
fn a_secret_of_kubernetes_is_swapped_as_a_whole() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    self_signed(directory.path(), "old", "old", 100);
    self_signed(directory.path(), "new", "new", 200);
    let publish = |version: &str, pair: &str| {
        fs::create_dir(at(version)).unwrap();
        fs::copy(at(&format!("{pair}.crt")), at(version).join("tls.crt")).unwrap();
        fs::copy(at(&format!("{pair}.key")), at(version).join("tls.key")).unwrap();
        symlink(version, at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
    };
    publish("..2026_a", "old");
    let link = |name: &str| {
        symlink(Path::new("..data").join(name), at(name)).unwrap();
        at(name).display().to_string()
    };
    let (cert, key) = (link("tls.crt"), link("tls.key"));
    let path = directory.path().to_owned();
    let served = Served::from(&cert, &key, directory);
    served.expect([0.0, 0.0, 1.0], 100.0);
    fs::create_dir(path.join("..2026_b")).unwrap();
    for (file, name) in [("new.crt", "tls.crt"), ("new.key", "tls.key")] {
        fs::copy(path.join(file), path.join("..2026_b").join(name)).unwrap();
    }
    symlink("..2026_b", path.join("..data_tmp")).unwrap();
    fs::rename(path.join("..data_tmp"), path.join("..data")).unwrap();
    fs::remove_dir_all(path.join("..2026_a")).unwrap();
    // Once, and without an error between.
    served.expect([1.0, 0.0, 1.0], 200.0);
}

// ------------------------------------------------------------------------------------ over the wire

/// What `openssl s_client` with these arguments says of the listener, whatever its exit code.
fn s_client(served: &Served, arguments: &str, input: &str) -> String {
    let address = served.tollgate.data;
    let script = format!(
        "printf '{input}' | timeout 20 openssl s_client -connect {address} -servername localhost \
         {arguments} 2>&1 || true"
    );
    shell(served.directory.path(), &script)
}

const GET: &str = "GET / HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n";

#[test]
fn the_next_handshake_shows_the_new_certificate_and_open_connections_go_on() {
    let served = Served::new();
    let mut open = Https::connect(&served, "old.crt");
    assert!(open.get().starts_with("HTTP/1.1 200"), "before");
    for (index, name) in ["new", "old", "new"].into_iter().enumerate() {
        served.put(&format!("{name}.crt"), "cert.pem");
        served.put(&format!("{name}.key"), "key.pem");
        served.tollgate.signal("HUP");
        let days = if name == "new" { 200.0 } else { 100.0 };
        wait_until("it is in force", || served.days() == days);
        let said = s_client(&served, &format!("-CAfile {name}.crt -verify_return_error"), "");
        assert!(said.contains(&format!("subject=CN = {name}")), "{said}");
        assert!(said.contains("Verify return code: 0 (ok)"), "{said}");
        assert!(open.get().starts_with("HTTP/1.1 200"), "after {} renewals", index + 1);
    }
    // One that is refused changes nothing.
    let [_, refused, _] = served.reloads();
    served.put("old.key", "key.pem");
    wait_until("it is refused", || served.reloads()[1] > refused);
    let mut again = Https::connect(&served, "new.crt");
    assert!(again.get().starts_with("HTTP/1.1 200") && open.get().starts_with("HTTP/1.1 200"));
}

#[test]
fn versions_and_protocols_are_as_promised() {
    let served = Served::new();
    for (arguments, expected) in [
        ("-tls1_2", "Protocol  : TLSv1.2"),
        ("-tls1_3", "New, TLSv1.3, Cipher is TLS_AES_256_GCM_SHA384"),
        ("-alpn h2,http/1.1", "ALPN protocol: h2"),
        ("-alpn http/1.1,h2", "ALPN protocol: h2"),
        ("-alpn http/1.1", "ALPN protocol: http/1.1"),
        ("", "No ALPN negotiated"),
        ("-tls1_1 -cipher DEFAULT@SECLEVEL=0", "SSL alert number"),
        ("-tls1 -cipher DEFAULT@SECLEVEL=0", "SSL alert number"),
        ("-alpn acme-tls/1", "alert no application protocol"),
        // No key exchange without forward secrecy, no CBC.
        ("-tls1_2 -cipher AES128-GCM-SHA256", "alert handshake failure"),
        ("-tls1_2 -cipher ECDHE-ECDSA-AES128-SHA256", "alert handshake failure"),
    ] {
        let said = s_client(&served, arguments, "");
        assert!(said.contains(expected), "{arguments}: {said}");
        assert_eq!(said.contains("subject=CN = old"), !expected.contains("alert"), "{arguments}");
    }
    assert!(s_client(&served, "-tls1_3 -quiet", GET).contains("HTTP/1.1 200"));
}

#[test]
fn sessions_are_resumed_in_both_versions_and_over_a_renewal() {
    let served = Served::new();
    let options = ["-tls1_3", "-tls1_2", "-tls1_2 -no_ticket"];
    for (index, option) in options.into_iter().enumerate() {
        // -quiet keeps it there for the answer, and TLS 1.3's tickets come before that.
        let keep = format!("{option} -ign_eof -sess_out session{index}");
        let first = s_client(&served, &keep, GET);
        assert!(first.contains("New, TLSv1") && first.contains("HTTP/1.1 200"), "{first}");
    }
    let resumed = |index: usize| {
        let again = format!("{} -ign_eof -sess_in session{index}", options[index]);
        let said = s_client(&served, &again, GET);
        assert!(said.contains("HTTP/1.1 200"), "{said}");
        assert!(!said.contains("Early data was accepted"), "{said}");
        said.contains("Reused, TLSv1")
    };
    assert_eq!([0, 1, 2].map(resumed), [true; 3]);
    served.put("new.crt", "cert.pem");
    served.put("new.key", "key.pem");
    wait_until("it is in force", || served.days() == 200.0);
    assert_eq!([0, 1, 2].map(resumed), [true; 3], "after a renewal");
    let fresh = s_client(&served, "-tls1_3", "");
    assert!(fresh.contains("Max Early Data: 0") || !fresh.contains("Max Early Data"), "{fresh}");
    // What is not of this process resumes nothing.
    let other = Served::new();
    let session = |served: &Served| served.directory.path().join("session0");
    fs::copy(session(&served), session(&other)).unwrap();
    let said = s_client(&other, "-tls1_3 -ign_eof -sess_in session0", GET);
    assert!(said.contains("New, TLSv1.3") && said.contains("HTTP/1.1 200"), "{said}");
}

/// A connection over TLS that trusts one certificate.
struct Https(rustls::StreamOwned<rustls::ClientConnection, TcpStream>);

impl Https {
    fn connect(served: &Served, trusted: &str) -> Self {
        let config = trusting([served.directory.path().join(trusted)]).with_no_client_auth();
        let name = "localhost".try_into().unwrap();
        let client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let stream = TcpStream::connect(served.tollgate.data).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Https(rustls::StreamOwned::new(client, stream))
    }

    /// The head of the answer to a GET; its content is read.
    fn get(&mut self) -> String {
        self.0.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let (mut text, mut byte) = (String::new(), [0]);
        while !text.ends_with("\r\n\r\n") {
            self.0.read_exact(&mut byte).unwrap();
            text.push(byte[0].into());
        }
        let length = text.lines().find_map(|it| it.strip_prefix("content-length: ")).unwrap();
        let mut content = vec![0; length.parse().unwrap()];
        self.0.read_exact(&mut content).unwrap();
        text
    }
}
