//! Notifications about tasks, which are posted to addresses that strangers have named.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Client, StatusCode};

use super::guard::{GuardedResolver, address_of};
use super::options::Options;
use super::wire;
use crate::kernel::task::{TaskPush, TaskRow};

const TIMEOUT: Duration = Duration::from_secs(15);
const TOKEN: &str = "x-a2a-notification-token";

/// Why a notification was not taken.
#[derive(Debug, PartialEq, Eq)]
pub enum PushFailure {
    /// Trying again may help.
    Later(String),
    /// It will not.
    Never(String),
}

pub struct PushSender {
    client: Client,
    loopback: bool,
}

impl PushSender {
    /// `Err`: what is wrong with the options.
    pub fn new(options: &Options) -> Result<Self, String> {
        let loopback = options.push_to_loopback;
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .dns_resolver(Arc::new(GuardedResolver { loopback }))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(Duration::from_secs(5))
            .timeout(TIMEOUT)
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(1)
            .build()
            .map_err(|error| format!("no client for notifications: {error}"))?;
        Ok(Self { client, loopback })
    }

    /// What is wrong with an address, if anything is.
    pub fn check(&self, url: &str) -> Result<(), String> {
        address_of(url, self.loopback).map(drop)
    }

    /// Posts the task as it is. Redirects are not followed: their target was not checked.
    pub async fn send(&self, task: &TaskRow, push: &TaskPush) -> Result<(), PushFailure> {
        let never = |error: String| PushFailure::Never(error);
        let address = address_of(&push.url, self.loopback).map_err(never)?;
        let payload = a2a::StreamResponse::Task(wire::task(task, None, true));
        let body = serde_json::to_vec(&payload).map_err(|error| never(error.to_string()))?;
        let mut request = self
            .client
            .post(address.url())
            .header(CONTENT_TYPE, "application/a2a+json")
            .header(a2a::SVC_PARAM_VERSION, a2a::VERSION)
            .body(body);
        if let Some(token) = &push.token {
            request = request.header(TOKEN, secret(token).map_err(never)?);
        }
        if let Some(scheme) = &push.scheme {
            let credentials = push.credentials.as_deref().unwrap_or_default();
            let value = secret(format!("{scheme} {credentials}").trim()).map_err(never)?;
            request = request.header(AUTHORIZATION, value);
        }
        // The error's own words name the address, which may hold a secret.
        let answer = request
            .send()
            .await
            .map_err(|error| PushFailure::Later(error.without_url().to_string()))?;
        match answer.status() {
            status if status.is_success() => Ok(()),
            status @ (StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS) => {
                Err(PushFailure::Later(format!("the address answered {status}")))
            }
            status if status.is_server_error() => {
                Err(PushFailure::Later(format!("the address answered {status}")))
            }
            status => Err(never(format!("the address answered {status}"))),
        }
    }
}

fn secret(text: &str) -> Result<HeaderValue, String> {
    let mut value =
        HeaderValue::from_str(text).map_err(|_| "a secret that is no header".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}
