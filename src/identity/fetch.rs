//! Fetching a key set: one GET, bounded in time and size, over http or https.
//!
//! No redirect is followed: whom to trust for keys is the configuration's to say.

use std::time::Duration;

use http::header::{ACCEPT, USER_AGENT};
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use crate::errors::chain;
use crate::tls::client::plain_client;
use crate::tls::roots::Roots;

/// For a whole fetch: name, connection, answer.
pub const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer, in bytes.
pub const BYTES_MAX: usize = 1 << 20;

/// Fetches from one place.
#[derive(Debug)]
pub struct Fetcher {
    client: Client<HttpsConnector<HttpConnector>, Empty<bytes::Bytes>>,
    url: Uri,
}

/// Why nothing was fetched. Names neither the URL nor what it answered.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Not within [`TIMEOUT`].
    #[error("no answer within {TIMEOUT:?}")]
    Timeout,
    /// No connection, or it broke.
    #[error("{}", chain(.0.as_ref()))]
    Connection(Box<dyn std::error::Error + Send + Sync>),
    /// An answer other than 200.
    #[error("answered {0}, expected 200 (redirects are not followed)")]
    Status(StatusCode),
}

impl Fetcher {
    /// Trusts the system's authorities, or those that `SSL_CERT_FILE` and `SSL_CERT_DIR` name.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(url: Uri) -> Result<Self, rustls::Error> {
        let nobody = Roots::Given(Vec::new());
        let is_tls = url.scheme() == Some(&http::uri::Scheme::HTTPS);
        let roots = if is_tls { &Roots::System } else { &nobody };
        let config = plain_client(roots).or_else(|reason| {
            // Every fetch will fail and say why; what needs no keys goes on.
            tracing::warn!(reason, "the system's authorities cannot be read");
            plain_client(&nobody).map_err(rustls::Error::General)
        })?;
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_or_http()
            .enable_http1()
            .build();
        // The next fetch is minutes away: no connection is kept for it.
        let client =
            Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        Ok(Fetcher { client, url })
    }

    /// The body of the answer.
    ///
    /// # Errors
    /// None came, or one that is no use.
    pub async fn fetch(&self) -> Result<bytes::Bytes, FetchError> {
        tokio::time::timeout(TIMEOUT, self.get()).await.unwrap_or(Err(FetchError::Timeout))
    }

    async fn get(&self) -> Result<bytes::Bytes, FetchError> {
        let request = Request::get(self.url.clone())
            .header(ACCEPT, "application/jwk-set+json, application/json")
            .header(USER_AGENT, concat!("tollgate/", env!("CARGO_PKG_VERSION")))
            .body(Empty::new())
            .map_err(|error| FetchError::Connection(error.into()))?;
        let answer = self.client.request(request).await;
        let answer = answer.map_err(|error| FetchError::Connection(error.into()))?;
        if answer.status() != StatusCode::OK {
            return Err(FetchError::Status(answer.status()));
        }
        let body = Limited::new(answer.into_body(), BYTES_MAX).collect().await;
        Ok(body.map_err(FetchError::Connection)?.to_bytes())
    }
}
