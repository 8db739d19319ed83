//! Certificates of an authority of the tests' own, made by openssl.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio_rustls::TlsAcceptor;

/// `ca`, which signed `server` (for `backend.test` and 127.0.0.1) and `client`; and `other`, which
/// signed nothing.
pub struct Authority(tempfile::TempDir);

impl Authority {
    /// Makes all of them.
    pub fn new() -> Self {
        let script = "
            set -e
            new='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes'
            openssl req -x509 $new -days 2 -subj /CN=authority -keyout ca.key -out ca.crt
            openssl req -x509 $new -days 2 -subj /CN=other -keyout other.key -out other.crt
            for who in server client; do
                openssl req $new -subj /CN=$who -keyout $who.key -out $who.csr
                printf 'subjectAltName=DNS:backend.test,IP:127.0.0.1\\n' > $who.ext
                openssl x509 -req -in $who.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 \\
                    -extfile $who.ext -out $who.crt
            done";
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        let made = command.args(["-c", script]).current_dir(&directory).output().unwrap();
        assert!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
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
