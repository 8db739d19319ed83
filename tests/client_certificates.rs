//! Certificates of clients, and those that a listener shows by name: whom it lets in, whom it takes
//! them for, what it shows them, and what becomes of all that while its files change.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

#[path = "support/certificates.rs"]
mod certificates;
mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use certificates::{revoke, shell, taken_back, trusting};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, StreamOwned};
use support::{Backend, Client, PATIENCE, Start, Tollgate, wait_until};

/// Authorities `ca` and `other`; servers signed by `ca`; clients, of which `stranger` is signed by
/// `other` and the rest by `ca`.
const MAKE: &str = r#"
    new="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    for who in ca other; do
        openssl req -x509 $new -days 2 -subj /CN=$who -keyout $who.key -out $who.crt
    done
    sign() {
        openssl req $new -utf8 -subj "$2" -keyout "$1.key" -out "$1.csr"
        openssl x509 -req -in "$1.csr" -CA "$3.crt" -CAkey "$3.key" -CAcreateserial -days "$4" \
            -extfile <(echo "subjectAltName=$5") -out "$1.crt"
    }
    sign localhost /CN=default ca 90 DNS:localhost,IP:127.0.0.1
    sign one /CN=one ca 80 DNS:one.test
    sign newer /CN=newer ca 60 DNS:one.test
    sign wild /CN=wild ca 70 DNS:*.wild.test
    sign alice /CN=alice ca 2 DNS:client
    sign cafe "/CN=café/O=Lisbon" ca 2 DNS:client
    sign nameless /O=Lisbon ca 2 DNS:client
    sign double /CN=alice/CN=bob ca 2 DNS:client
    sign over /CN=over ca -1 DNS:client
    sign stranger /CN=alice other 2 DNS:client
"#;

const TIERS: &str = "default_tier: free\ntiers: { free: { per_hour: 100000 } }\n";

struct Served {
    directory: tempfile::TempDir,
    tollgate: Tollgate,
    _backend: Backend,
}

impl Served {
    /// A tollgate whose one listener shows `localhost`, with these further lines of its `tls`, and
    /// knows callers by their certificates.
    fn new(tls: &str) -> Self {
        Self::making(tls, |at| {
            shell(at, "cp ca.crt believed.pem");
        })
    }

    /// The same, with these further files.
    fn making(tls: &str, make: impl FnOnce(&Path)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        shell(directory.path(), MAKE);
        make(directory.path());
        let at = directory.path().display();
        let config = format!(
            "server:\n  listeners:\n  - address: 127.0.0.1:0\n    tls: {{ cert: {at}/localhost.crt, \
             key: {at}/localhost.key, {} }}\nidentity: [{{ mtls: {{ subject: cn }} }}]\nlog: {{ \
             level: debug }}\n",
            tls.replace("AT", &at.to_string()),
        );
        let backend = Backend::ok();
        let start = Start::default().upstream(backend.address).config(&config).tiers(TIERS);
        Served { tollgate: start.listeners().run(), directory, _backend: backend }
    }

    fn at(&self) -> &Path {
        self.directory.path()
    }

    /// What curl is answered when it asks this host: the status, `000` where there is no connection.
    fn curl(&self, host: &str, options: &[&str]) -> String {
        let port = self.tollgate.data.port();
        let output = Command::new("curl")
            .args(["-s", "--cacert", "ca.crt", "--max-time", "20", "-o", "/dev/null"])
            .args(["-w", "%{http_code}", "--resolve", &format!("{host}:{port}:127.0.0.1")])
            .args(options)
            .arg(format!("https://{host}:{port}/"))
            .current_dir(self.at())
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// The same, by a client that shows its certificate.
    fn curl_as(&self, who: &str, options: &[&str]) -> String {
        let (cert, key) = (format!("{who}.crt"), format!("{who}.key"));
        self.curl("localhost", &[&["--cert", &cert, "--key", &key], options].concat())
    }

    /// Requests that were counted for this identity in its tier's hour.
    fn used(&self, identity: &str) -> u64 {
        let question = format!(
            "GET /api/v1/identities/{identity} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        );
        let answer = Client::connect(self.tollgate.admin).send(question).answer();
        let state: serde_json::Value = serde_json::from_str(&answer.text()).unwrap();
        assert!(state["limits"].is_array(), "{state}");
        state["limits"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it["used"].as_u64().unwrap())
            .max()
            .unwrap()
    }

    /// Puts a copy of a file in place of another, in one step.
    fn put(&self, file: &str, over: &str) {
        fs::copy(self.at().join(file), self.at().join("beside")).unwrap();
        fs::rename(self.at().join("beside"), self.at().join(over)).unwrap();
    }

    fn reloads(&self) -> f64 {
        self.tollgate.metric("tollgate_config_reloads_total{result=\"ok\"}")
    }
}

/// TLS of a client that resumes where it can.
fn client(at: &Path, who: &str) -> Arc<ClientConfig> {
    let chain = vec![CertificateDer::from_pem_file(at.join(format!("{who}.crt"))).unwrap()];
    let key = PrivateKeyDer::from_pem_file(at.join(format!("{who}.key"))).unwrap();
    Arc::new(trusting([at.join("ca.crt")]).with_client_auth_cert(chain, key).unwrap())
}

/// One request on a connection of its own: how the handshake went, and the answer's first line.
fn ask(config: &Arc<ClientConfig>, address: SocketAddr) -> Option<(HandshakeKind, String)> {
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::clone(config), name).unwrap();
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut stream = StreamOwned::new(connection, stream);
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let line = String::from_utf8_lossy(&answer).lines().next()?.to_owned();
    Some((stream.conn.handshake_kind()?, line))
}

#[test]
fn nobody_without_a_good_certificate_gets_in_where_one_is_required() {
    let served = Served::new("client_ca: AT/ca.crt");
    assert_eq!(served.curl("localhost", &[]), "000");
    for version in [&["--tls-max", "1.2"][..], &["--tlsv1.3"]] {
        assert_eq!(served.curl("localhost", version), "000");
        assert_eq!(served.curl_as("stranger", version), "000");
        assert_eq!(served.curl_as("over", version), "000");
        assert_eq!(served.curl_as("alice", version), "200");
    }
    assert_eq!(served.curl_as("alice", &["--http1.1"]), "200");
    assert_eq!(served.used("user:alice"), 3);
    assert_eq!(served.used("ip:127.0.0.1"), 0);
    assert_eq!(served.tollgate.metric(r#"tollgate_tls_handshakes_total{result="failed"}"#), 7.0);
    assert_eq!(served.curl_as("cafe", &[]), "200");
    assert_eq!(served.used("user:caf%C3%A9"), 1);
    // A name that is none, or two: who comes is who signed for it, and known by the address.
    assert_eq!(served.curl_as("nameless", &[]), "200");
    assert_eq!(served.used("ip:127.0.0.1"), 1);
    assert_eq!(served.curl_as("double", &[]), "200");
    assert_eq!(served.used("ip:127.0.0.1"), 2);
    assert_eq!(served.used("user:alice"), 3);
    let malformed = r#"tollgate_identity_errors_total{reason="malformed"}"#;
    assert_eq!(served.tollgate.metric(malformed), 1.0);
}

#[test]
fn who_need_not_show_one_may_still_not_show_a_bad_one() {
    let served = Served::new("client_ca: AT/ca.crt, client_auth: optional");
    assert_eq!(served.curl("localhost", &[]), "200");
    assert_eq!(served.used("ip:127.0.0.1"), 1);
    assert_eq!(served.curl_as("alice", &[]), "200");
    assert_eq!(served.used("user:alice"), 1);
    assert_eq!(served.curl_as("stranger", &[]), "000");
    assert_eq!(served.curl_as("over", &[]), "000");
}

#[test]
fn a_certificate_says_nothing_where_none_is_asked_for() {
    let served = Served::new("");
    assert_eq!(served.curl_as("alice", &[]), "200");
    assert_eq!(served.used("ip:127.0.0.1"), 1);
}

#[test]
fn other_authorities_are_believed_from_the_next_handshake_on() {
    let served = Served::new("client_ca: AT/believed.pem");
    let alice = client(served.at(), "alice");
    let kinds: Vec<HandshakeKind> =
        (0..2).map(|_| ask(&alice, served.tollgate.data).unwrap().0).collect();
    assert_eq!(kinds, [HandshakeKind::Full, HandshakeKind::Resumed]);
    assert_eq!(served.used("user:alice"), 2);

    let stranger = client(served.at(), "stranger");
    assert_eq!(ask(&stranger, served.tollgate.data), None);
    served.put("other.crt", "believed.pem");
    wait_until("it is in force", || served.reloads() == 1.0);
    // Nobody vouches for her any more, and what she resumes is refused as well.
    assert_eq!(ask(&alice, served.tollgate.data), None);
    assert_eq!(served.used("user:alice"), 2);
    assert_eq!(ask(&stranger, served.tollgate.data).unwrap().1, "HTTP/1.1 200 OK");
    assert_eq!(served.used("user:alice"), 3);

    // What is no authority is refused, and the last one goes on.
    fs::write(served.at().join("believed.pem"), "hello").unwrap();
    let failed = "tollgate_config_reloads_total{result=\"error\"}";
    wait_until("it is refused", || served.tollgate.metric(failed) == 1.0);
    wait_until("it is said", || {
        served.tollgate.log().contains("believed.pem: no certificate in it")
    });
    assert_eq!(ask(&stranger, served.tollgate.data).unwrap().1, "HTTP/1.1 200 OK");
}

/// A list that was to be replaced long ago.
const OVER: &str = "-crl_lastupdate 20200101000000Z -crl_nextupdate 20200102000000Z";

/// What `ca` has taken back so far, and this one's certificate, if it is one's.
fn take_back(at: &Path, who: &str, next: &str) {
    if !who.is_empty() {
        revoke(at, "ca", who);
    }
    taken_back(at, "ca", next);
}

#[test]
fn who_was_taken_back_gets_in_no_more() {
    let served = Served::making("client_ca: AT/ca.crt, client_crl: AT/ca.crl", |at| {
        take_back(at, "cafe", "-crldays 3");
    });
    let alice = client(served.at(), "alice");
    for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
        assert_eq!(ask(&alice, served.tollgate.data).unwrap().0, kind);
    }
    for version in [&["--tls-max", "1.2"][..], &["--tlsv1.3"]] {
        assert_eq!(served.curl_as("cafe", version), "000");
        assert_eq!(served.curl_as("alice", version), "200");
        assert_eq!(served.curl("localhost", version), "000");
    }
    // Nor does she resume what she began before.
    take_back(served.at(), "alice", "-crldays 3");
    wait_until("it is in force", || served.reloads() == 1.0);
    assert_eq!(ask(&alice, served.tollgate.data), None);
    assert_eq!(served.curl_as("double", &[]), "200");
    // A list that is over holds on, and is told of.
    take_back(served.at(), "double", OVER);
    wait_until("it is in force", || served.reloads() == 2.0);
    assert_eq!(served.curl_as("double", &[]), "000");
    assert_eq!(served.curl_as("nameless", &[]), "200");
    // What is no list changes nothing.
    fs::write(served.at().join("ca.crl"), "hello").unwrap();
    wait_until("it is refused", || {
        served.tollgate.log().contains("ca.crl: no list of revoked certificates in it")
    });
    assert_eq!(served.curl_as("double", &[]), "000");
    assert_eq!(served.curl_as("nameless", &[]), "200");
}

/// With lists, nobody is let in of whom none of them can say anything.
#[test]
fn of_whom_no_list_says_anything_is_not_let_in() {
    let served = Served::making("client_ca: AT/both.pem, client_crl: AT/ca.crl", |at| {
        shell(at, "cat ca.crt other.crt > both.pem");
        take_back(at, "", "-crldays 3");
    });
    assert_eq!(served.curl_as("alice", &[]), "200");
    assert_eq!(served.curl_as("stranger", &[]), "000");
}

#[test]
fn each_name_has_its_certificate_and_its_renewal() {
    let served = Served::new(
        "sni: { One.Test: { cert: AT/one.crt, key: AT/one.key }, '*.wild.test': { cert: \
         AT/wild.crt, key: AT/wild.key } }",
    );
    let days = || {
        let listener = served.tollgate.data;
        let series = format!("tollgate_tls_certificate_expiry_days{{listener=\"{listener}\"}}");
        served.tollgate.metric(&series).ceil()
    };
    // curl is satisfied with no certificate but that of the name which it asks for.
    for host in ["localhost", "one.test", "ONE.test", "a.wild.test", "b.wild.test"] {
        assert_eq!(served.curl(host, &[]), "200", "{host}");
        assert_eq!(served.curl(host, &["--http1.1", "--tls-max", "1.2"]), "200", "{host}");
    }
    for host in ["two.test", "a.b.wild.test", "wild.test", "test"] {
        assert_eq!(served.curl(host, &[]), "000", "{host}");
        assert_eq!(served.curl(host, &["--insecure"]), "200", "{host}: the default is shown");
    }
    // The one that is over first is what counts.
    assert_eq!(days(), 70.0);
    served.put("newer.crt", "one.crt");
    served.put("newer.key", "one.key");
    wait_until("it is in force", || days() == 60.0);
    let script = format!(
        "openssl s_client -connect {} -servername one.test </dev/null 2>/dev/null | openssl x509 \
         -noout -subject",
        served.tollgate.data
    );
    assert_eq!(shell(served.at(), &script).trim(), "subject=CN = newer");
    assert_eq!(served.curl("a.wild.test", &[]), "200");
    assert_eq!(served.curl("localhost", &[]), "200");
}

#[test]
fn check_says_what_is_wrong_with_names_and_authorities() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    shell(at, MAKE);
    take_back(at, "", OVER);
    let check = |tls: &str, identity: &str| {
        let config = format!(
            "upstream: {{ url: 'http://127.0.0.1:1' }}\nserver:\n  listeners:\n  - address: \
             127.0.0.1:8443\n    tls: {{ cert: localhost.crt, key: localhost.key, {tls} }}\n\
             identity: [{identity}]\n"
        );
        fs::write(at.join("tollgate.yaml"), config).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
        let command = command.args(["check", "--config", "tollgate.yaml"]).current_dir(at);
        let output = command.output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (said, output.status.code().unwrap())
    };
    let (said, code) = check("sni: { one.test: { cert: one.crt, key: one.key } }", "");
    assert!(code == 0 && said.contains("0 warnings"), "{said}");
    let (said, code) = check("client_ca: ca.crt", "mtls: {}");
    assert!(code == 0 && said.contains("0 warnings"), "{said}");
    for (tls, identity, expected) in [
        (
            "sni: { one.test: { cert: one.crt, key: wild.key } }",
            "",
            "tls.sni[\"one.test\"].key: wild.key does not fit one.crt",
        ),
        (
            "sni: { one.test: { cert: one.crt } }",
            "",
            "tls.sni[\"one.test\"].key: missing, expected a file of the private key in PEM",
        ),
        (
            "sni: { 192.0.2.7: { cert: one.crt, key: one.key } }",
            "",
            "expected a host name, or *.NAME",
        ),
        (
            "sni: { 'a.*.test': { cert: one.crt, key: one.key } }",
            "",
            "expected a host name, or *.NAME",
        ),
        (
            "sni: { one.test: { cert: one.crt, key: one.key }, ONE.test: { cert: one.crt, key: \
             one.key } }",
            "",
            "one.test, a second time",
        ),
        ("client_ca: none.crt", "", "tls.client_ca: none.crt: cannot be read"),
        ("client_ca: ca.key", "", "tls.client_ca: ca.key: no certificate in it"),
        (
            "client_ca: ca.crt, client_crl: ca.crt",
            "",
            "tls.client_crl: ca.crt: no list of revoked certificates in it",
        ),
        ("client_crl: ca.crl", "", "tls.client_crl: given without client_ca: nobody is asked"),
        (
            "client_auth: optional",
            "",
            "tls.client_auth: given without client_ca: nobody is asked, expected client_ca",
        ),
    ] {
        let (said, code) = check(tls, identity);
        assert_eq!(code, 2, "{tls}: {said}");
        assert!(said.contains(expected), "{tls}: {said}");
    }
    for (tls, identity, expected) in [
        (
            "sni: { two.test: { cert: one.crt, key: one.key } }",
            "",
            "tls.sni[\"two.test\"]: one.crt: a certificate that is not for two.test",
        ),
        ("", "mtls: {}", "identity[0].mtls: never finds anybody"),
        (
            "client_ca: ca.crt, client_crl: ca.crl",
            "",
            "tls.client_crl: ca.crl: a list that was to be replaced by 2020-01-02T00:00:00Z",
        ),
    ] {
        let (said, code) = check(tls, identity);
        assert_eq!(code, 0, "{tls}: {said}");
        assert!(said.contains(expected) && said.contains("1 warning"), "{tls}: {said}");
    }
}

#[test]
fn explain_is_told_of_a_certificate() {
    let explain = |config: &str, options: &[&str]| {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("tollgate.yaml"), config).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
        command.args(["explain", "GET", "/", "--config", "tollgate.yaml"]).args(options);
        let output = command.current_dir(directory.path()).output().unwrap();
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    let config = "identity: [{ mtls: {} }]\n";
    let said = explain(config, &["--client-cert", "alice"]);
    assert!(said.contains("a certificate of user:alice, verified"), "{said}");
    let said = explain(config, &[]);
    assert!(said.contains("no certificate with a common name"), "{said}");
    let said = explain("{}", &["--client-cert", "alice", "--format", "json"]);
    assert!(said.contains("\"identity\": \"ip:127.0.0.1\""), "{said}");
}
