//! Certificates for tests, made afresh by openssl.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustls::client::WantsClientCert;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

/// A new key, as `openssl req` is asked for it.
const NEW_KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";

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
        openssl req -x509 {NEW_KEY} -days {days} \\
            -subj /CN={subject} -config {name}.cnf -keyout {name}.key -out {name}.crt"
    );
    shell(directory, &script);
}

/// Has an authority, `NAME.crt` and `NAME.key`, take back the certificate `WHO.crt`.
pub fn revoke(directory: &Path, name: &str, who: &str) {
    openssl_ca(directory, name, &format!("-revoke {who}.crt"));
}

/// Makes or replaces `NAME.crl`, what an authority has taken back so far; `next` says in openssl's terms
/// when there is to be a newer one.
pub fn taken_back(directory: &Path, name: &str, next: &str) {
    openssl_ca(directory, name, &format!("-gencrl {next} -out {name}.crl.new"));
    shell(directory, &format!("mv {name}.crl.new {name}.crl"));
}

fn openssl_ca(directory: &Path, name: &str, what: &str) {
    let script = format!(
        "[ -e {name}.index ] || : > {name}.index; [ -e {name}.number ] || echo 01 > {name}.number
        printf '[ca]\\ndefault_ca=x\\n[x]\\ndatabase={name}.index\\ncrlnumber={name}.number\\n' > {name}.ca
        echo default_md=sha256 >> {name}.ca
        openssl ca -config {name}.ca -cert {name}.crt -keyfile {name}.key {what}"
    );
    shell(directory, &script);
}

/// Makes `NAME.crt` and `NAME.key` of a certificate that was over a day ago.
pub fn expired(directory: &Path, name: &str) {
    let script = format!(
        "echo subjectAltName=DNS:localhost > {name}.ext
        openssl req {NEW_KEY} -subj /CN=over \\
            -keyout {name}.key -out {name}.csr
        openssl x509 -req -in {name}.csr -signkey {name}.key -extfile {name}.ext -days -1 \\
            -out {name}.crt"
    );
    shell(directory, &script);
}

/// The beginning of a client that trusts these files, each of one certificate.
pub fn trusting(
    files: impl IntoIterator<Item = impl AsRef<Path>>,
) -> ConfigBuilder<ClientConfig, WantsClientCert> {
    let mut roots = RootCertStore::empty();
    for file in files {
        roots.add(CertificateDer::from_pem_file(file).unwrap()).unwrap();
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider);
    builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots)
}

/// A client that trusts these files, has no certificate of its own, and offers one protocol.
pub fn client(
    files: impl IntoIterator<Item = impl AsRef<Path>>,
    speaks: &[u8],
) -> Arc<ClientConfig> {
    let mut config = trusting(files).with_no_client_auth();
    config.alpn_protocols = vec![speaks.to_vec()];
    Arc::new(config)
}

/// `ca`, which signed `server` (for `backend.test` and 127.0.0.1) and `client`; and `other`, which
/// signed nothing.
pub struct Authority(tempfile::TempDir);

impl Authority {
    /// Makes all of them.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let script = format!(
            "for who in ca other; do
                openssl req -x509 {NEW_KEY} -days 2 -subj /CN=$who -keyout $who.key -out $who.crt
            done
            printf 'subjectAltName=DNS:backend.test,IP:127.0.0.1\\n' > names.ext
            for who in server client; do
                openssl req {NEW_KEY} -subj /CN=$who -keyout $who.key -out $who.csr
                openssl x509 -req -in $who.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 \\
                    -extfile names.ext -out $who.crt
            done"
        );
        shell(directory.path(), &script);
        Authority(directory)
    }

    /// Where a file is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Where a file is, as the configuration names it.
    pub fn file(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// A server that offers these protocols, and asks for a client's certificate if it is told to.
    pub fn server(&self, alpn: &[&[u8]], asks_for_client: bool) -> TlsAcceptor {
        let certificate = |name: &str| {
            let pem = std::fs::read(self.path(name)).unwrap();
            CertificateDer::from_pem_slice(&pem).unwrap()
        };
        let key = std::fs::read(self.path("server.key")).unwrap();
        let key = PrivateKeyDer::from_pem_slice(&key).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if asks_for_client {
            let mut roots = RootCertStore::empty();
            roots.add(certificate("ca.crt")).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let mut config = builder.with_single_cert(vec![certificate("server.crt")], key).unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }
}
