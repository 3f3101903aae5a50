//! The API as raw JSON, so that tests see exactly what is on the wire.

use std::sync::Once;

use anyhow::{Context as _, Result, bail, ensure};
use reqwest::{Method, header::HeaderMap};
use serde_json::{Value, json};

use crate::{DEADLINE, Machine};

/// A client.
#[derive(Debug, Clone)]
pub struct Api {
    base: String,
    token: Option<String>,
    http: reqwest::Client,
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// Body as it came.
    pub text: String,
    /// Body as JSON, `null` when it is none.
    pub body: Value,
}

impl Reply {
    /// The body of a success.
    ///
    /// # Errors
    /// For any other status; the error holds the body.
    pub fn ok(self) -> Result<Value> {
        ensure!((200..300).contains(&self.status), "{}: {}", self.status, self.text);
        Ok(self.body)
    }

    /// `error` of an error body.
    pub fn error(&self) -> &str {
        self.body["error"].as_str().unwrap_or_default()
    }
}

impl Api {
    /// A client for the server at `base`.
    ///
    /// # Errors
    /// When no HTTP client can be made.
    pub fn new(base: impl Into<String>, token: Option<&str>) -> Result<Self> {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            // Already installed is as good.
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        });
        let http = reqwest::Client::builder()
            .no_proxy()
            // Less than servers keep theirs.
            .pool_idle_timeout(std::time::Duration::from_secs(30))
            .timeout(DEADLINE)
            .build()
            .context("making an HTTP client")?;
        Ok(Self { base: base.into(), token: token.map(str::to_owned), http })
    }

    /// The same with another token.
    ///
    /// # Errors
    /// When no HTTP client can be made.
    pub fn with_token(&self, token: Option<&str>) -> Result<Self> {
        Self::new(self.base.clone(), token)
    }

    /// Its token.
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// Sends a request with any body and headers.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<String>,
    ) -> Result<Reply> {
        let mut request = self.http.request(method.clone(), self.url(path));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body);
        }
        let response = request.send().await.with_context(|| format!("{method} {path}"))?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.with_context(|| format!("body of {method} {path}"))?;
        let body = serde_json::from_str(&text).unwrap_or_default();
        Ok(Reply { status, headers, text, body })
    }

    /// GET.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn get(&self, path: &str) -> Result<Reply> {
        self.send(Method::GET, path, &[], None).await
    }

    /// POST; `null` sends no body.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn post(&self, path: &str, body: Value) -> Result<Reply> {
        let body = (!body.is_null()).then(|| body.to_string());
        self.send(Method::POST, path, &[], body).await
    }

    /// PUT.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn put(&self, path: &str, body: Value) -> Result<Reply> {
        self.send(Method::PUT, path, &[], Some(body.to_string())).await
    }

    /// DELETE.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn delete(&self, path: &str) -> Result<Reply> {
        self.send(Method::DELETE, path, &[], None).await
    }

    /// Makes an app in the organisation that every server has.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn create_app(&self, name: &str, network: Option<&str>) -> Result<()> {
        let body =
            json!({ "name": name, "org_slug": "personal", "network": network.unwrap_or_default() });
        self.post("/v1/apps", body).await?.ok().context("creating an app")?;
        Ok(())
    }

    /// Makes a machine from a config; it need not run yet.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn create_machine(&self, app: &str, config: Value) -> Result<Machine> {
        self.create_machine_from(app, json!({ "config": config })).await
    }

    /// Makes a machine from a whole request body.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn create_machine_from(&self, app: &str, body: Value) -> Result<Machine> {
        let machine = self
            .post(&format!("/v1/apps/{app}/machines"), body)
            .await?
            .ok()
            .context("creating a machine")?;
        match machine["id"].as_str() {
            Some(id) => Ok(Machine::new(self.clone(), app, id)),
            None => bail!("a machine without id: {machine}"),
        }
    }
}
