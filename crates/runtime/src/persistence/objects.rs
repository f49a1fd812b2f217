//! The object store: bytes that are too large for rows, under names that nobody guesses. In a folder, or in a bucket of S3
//! or of what speaks its protocol, such as R2. What concerns a person is sealed before it comes here.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientOptions, Error, ObjectStore, ObjectStoreExt, PutPayload, RetryConfig,
};
use serde::Deserialize;

use crate::kernel::secret::Secret;

/// One operation with all its attempts.
const PATIENCE: Duration = Duration::from_secs(20);
const CONNECT: Duration = Duration::from_secs(3);

/// The section `[objects]`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ObjectOptions {
    /// `file:///srv/shared` or `s3://bucket`. Empty: a folder of the node's data.
    pub url: String,
    pub region: String,
    /// Where the bucket is, if it is none of AWS.
    pub endpoint: String,
    /// The access key. Empty: as the environment of AWS says.
    pub key: Secret<String>,
    pub secret: Secret<String>,
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ObjectError(String);

/// The objects of a cluster; cheap to clone.
#[derive(Clone)]
pub struct Objects(Arc<Place>);

enum Place {
    /// It is made with the first object.
    Folder(PathBuf, OnceLock<LocalFileSystem>),
    Bucket(Box<dyn ObjectStore>),
    /// Why there is none.
    Nowhere(&'static str),
}

impl Objects {
    /// Without a URL objects are in the folder `otherwise`.
    pub fn new(options: &ObjectOptions, otherwise: PathBuf) -> Result<Self, String> {
        let place = match options.url.split_once("://") {
            None if options.url.is_empty() => Place::Folder(otherwise, OnceLock::new()),
            Some(("file", path)) if path.starts_with('/') => {
                Place::Folder(path.into(), OnceLock::new())
            }
            Some(("s3", bucket)) => Place::Bucket(bucket_of(options, bucket)?),
            _ => {
                let url = &options.url;
                return Err(format!("url: {url:?} is neither file:///a/folder nor s3://a-bucket"));
            }
        };
        Ok(Self(Arc::new(place)))
    }

    /// No objects, with the reason.
    pub fn nowhere(why: &'static str) -> Self {
        Self(Arc::new(Place::Nowhere(why)))
    }

    /// Why nothing can be stored here. `None`: it can.
    pub fn refusal(&self) -> Option<&'static str> {
        match &*self.0 {
            Place::Nowhere(why) => Some(why),
            _ => None,
        }
    }

    fn store(&self) -> Result<&dyn ObjectStore, ObjectError> {
        match &*self.0 {
            Place::Bucket(bucket) => Ok(&**bucket),
            Place::Nowhere(why) => Err(ObjectError((*why).into())),
            Place::Folder(path, made) => {
                if let Some(folder) = made.get() {
                    return Ok(folder);
                }
                let failed = |error: &dyn std::fmt::Display| {
                    ObjectError(format!("{}: {error}", path.display()))
                };
                private_folder(path).map_err(|error| failed(&error))?;
                let folder = LocalFileSystem::new_with_prefix(path).map_err(|e| failed(&e))?;
                Ok(made.get_or_init(|| folder.with_fsync(true)))
            }
        }
    }

    /// Stores an object. Nobody sees a part of one.
    pub async fn put(&self, name: &str, bytes: Vec<u8>) -> Result<(), ObjectError> {
        let store = self.store()?;
        let put = async { store.put(&Path::from(name), PutPayload::from(bytes)).await.map(drop) };
        in_time("put", put).await
    }

    /// `None`: there is none of this name.
    pub async fn get(&self, name: &str) -> Result<Option<Vec<u8>>, ObjectError> {
        let store = self.store()?;
        let get = async {
            match store.get(&Path::from(name)).await {
                Ok(found) => found.bytes().await.map(|bytes| Some(bytes.into())),
                Err(Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        };
        in_time("get", get).await
    }

    /// Deletes an object, if it is there.
    pub async fn delete(&self, name: &str) -> Result<(), ObjectError> {
        let store = self.store()?;
        let delete = async {
            match store.delete(&Path::from(name)).await {
                Err(Error::NotFound { .. }) => Ok(()),
                done => done,
            }
        };
        in_time("delete", delete).await
    }
}

async fn in_time<T>(
    what: &'static str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, ObjectError> {
    let done = tokio::time::timeout(PATIENCE, work).await;
    let done = match done {
        Ok(done) => done.map_err(|error| ObjectError(error.to_string())),
        Err(_) => Err(ObjectError("the object store does not answer".into())),
    };
    let outcome = if done.is_ok() { "ok" } else { "failed" };
    metrics::counter!("proxie_object_operations_total", "operation" => what, "outcome" => outcome)
        .increment(1);
    done
}

/// For its owner alone.
fn private_folder(path: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn bucket_of(options: &ObjectOptions, bucket: &str) -> Result<Box<dyn ObjectStore>, String> {
    // What reqwest takes.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let is_plain = options.endpoint.starts_with("http://");
    let client = ClientOptions::new()
        .with_timeout(PATIENCE)
        .with_connect_timeout(CONNECT)
        .with_allow_http(is_plain);
    let backoff = BackoffConfig { init_backoff: Duration::from_millis(100), ..Default::default() };
    let retry = RetryConfig { backoff, max_retries: 3, retry_timeout: PATIENCE };
    let builder = match options.key.reveal().as_str() {
        "" => AmazonS3Builder::from_env(),
        key => AmazonS3Builder::new()
            .with_access_key_id(key)
            .with_secret_access_key(options.secret.reveal()),
    };
    let builder = builder.with_bucket_name(bucket).with_client_options(client).with_retry(retry);
    // One after the other, as they are swept.
    let builder = builder.with_disable_bulk_delete(true);
    let builder = match options.region.as_str() {
        "" => builder,
        region => builder.with_region(region),
    };
    let builder = match options.endpoint.as_str() {
        "" => builder,
        endpoint => builder.with_endpoint(endpoint),
    };
    builder.build().map(|made| Box::new(made) as _).map_err(|error| error.to_string())
}
