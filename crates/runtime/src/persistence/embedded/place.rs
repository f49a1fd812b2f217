//! The place of a store's files, and their creation on first use.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    time::Duration,
};

use sha2::{Digest, Sha256};

use super::{
    DataLock, Error, Install, PORT, io_error,
    process::{self, Launcher, Owner},
};

/// The file that names the folder of `postgres/` if that cannot be in the data folder itself.
const LOCATION: &str = "postgres.location";
/// The file that names the folder of the running server's socket, for other commands.
const SOCKET: &str = "postgres.socket";
/// The folder for root's stores whose data folder is closed to the user that PostgreSQL runs as.
const ROOT_STORES: &str = "/var/lib/proxie";
/// Longest path that fits into a `sockaddr_un` on every such system, without its final NUL.
const SOCKET_PATH_MAX_BYTES: usize = if cfg!(target_os = "linux") { 107 } else { 103 };
const INITDB_LIMIT: Duration = Duration::from_secs(120);
/// Prefix of a cluster that initdb has not finished.
const UNFINISHED: &str = "postgres.unfinished-";

#[derive(Debug)]
pub(super) struct DataLayout {
    pub owner: Owner,
    /// PostgreSQL's own folder (PGDATA).
    pub cluster: PathBuf,
    pub socket_dir: PathBuf,
    /// The lock of a folder elsewhere, since two copies of a data folder name the same one.
    pub _elsewhere: Option<DataLock>,
}

/// Decides the place and remembers it in the data folder, so that every later start finds the same one.
pub(super) fn choose(data_dir: &Path) -> Result<DataLayout, Error> {
    let pointer = data_dir.join(LOCATION);
    let told = fs::read_to_string(&pointer)
        .ok()
        .map(|text| PathBuf::from(text.trim()))
        .filter(|home| home.is_absolute());
    let new_owner = Owner::of_new_store();
    let switches_user = new_owner != Owner::current();
    let home = match told {
        Some(home) => home,
        None if data_dir.join("postgres").exists() || !switches_user => data_dir.into(),
        None => match new_owner.blocked_at(data_dir) {
            None => data_dir.into(),
            Some(blocked) => {
                let home = unused_home(data_dir)?;
                // Written before the folder is filled: a store that nothing points to would be lost.
                write(&pointer, &home)?;
                let (blocked, home_shown) = (blocked.display(), home.display());
                tracing::info!(
                    "PostgreSQL does not run as root, and others cannot enter {blocked}: its files are in {home_shown}"
                );
                home
            }
        },
    };
    let _elsewhere = if home == data_dir { None } else { Some(DataLock::acquire(&home)?) };
    let cluster = home.join("postgres");
    let owner = match fs::metadata(&cluster) {
        Ok(metadata) => Owner::of(&metadata),
        Err(_) => new_owner,
    };
    let is_root = rustix::process::geteuid().is_root();
    if !is_root && owner.uid != new_owner.uid {
        return Err(Error::ForeignStore { cluster, uid: owner.uid });
    }
    if is_root && let Some(blocked) = owner.blocked_at(&home) {
        return Err(Error::UnreachableStore { cluster, uid: owner.uid, blocked });
    }
    let socket_dir = socket_dir(&cluster, owner)?;
    Ok(DataLayout { owner, cluster, socket_dir, _elsewhere })
}

fn unused_home(data_dir: &Path) -> Result<PathBuf, Error> {
    let stores = Path::new(ROOT_STORES);
    fs::create_dir_all(stores).map_err(|error| io_error("cannot create", stores, error))?;
    let readable = fs::Permissions::from_mode(0o755);
    fs::set_permissions(stores, readable.clone())
        .map_err(|error| io_error("cannot open", stores, error))?;
    let hash = short_hash(data_dir);
    // If the home exists, the data folder was deleted and created anew. That was meant as a fresh start, so the former
    // store is not reused; nor is it deleted without anybody noticing.
    for attempt in 1..=100 {
        let home =
            stores.join(if attempt == 1 { hash.clone() } else { format!("{hash}-{attempt}") });
        match fs::create_dir(&home) {
            Ok(()) => {
                fs::set_permissions(&home, readable)
                    .map_err(|error| io_error("cannot open", &home, error))?;
                return Ok(home);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                tracing::warn!(
                    "{} holds the store of an earlier {}; delete it if nobody needs it",
                    home.display(),
                    data_dir.display()
                );
            }
            Err(error) => return Err(io_error("cannot create", &home, error)),
        }
    }
    Err(io_error("too many abandoned stores in", stores, io::ErrorKind::AlreadyExists.into()))
}

fn short_hash(path: &Path) -> String {
    let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The folder of the socket: the cluster's own, which only its owner can enter, or a private folder with a short path
/// if that path is too long for a socket.
fn socket_dir(cluster: &Path, owner: Owner) -> Result<PathBuf, Error> {
    if socket_file(cluster).as_os_str().len() <= SOCKET_PATH_MAX_BYTES {
        return Ok(cluster.into());
    }
    let runtime =
        std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let base = runtime
        .filter(|path| path.is_dir() && owner == Owner::current() && path.as_os_str().len() < 60);
    let base = base.unwrap_or_else(|| "/tmp".into());
    let mut last = io::Error::from(io::ErrorKind::AlreadyExists);
    // In /tmp, anybody may have created a folder of this name. Only a folder that is ours and closed to others is
    // acceptable.
    for attempt in 1..=8 {
        let folder = base.join(format!("proxie-{}-{attempt}", short_hash(cluster)));
        match fs::DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => {
                hand_over(&folder, owner)?;
                return Ok(folder);
            }
            Err(error) => last = error,
        }
        let ours = |metadata: fs::Metadata| {
            metadata.is_dir() && metadata.uid() == owner.uid && metadata.mode() & 0o077 == 0
        };
        if fs::symlink_metadata(&folder).is_ok_and(ours) {
            return Ok(folder);
        }
    }
    Err(io_error("cannot make a folder for the socket in", &base, last))
}

fn hand_over(folder: &Path, owner: Owner) -> Result<(), Error> {
    if owner == Owner::current() {
        return Ok(());
    }
    chown(folder, Some(owner.uid), Some(owner.gid))
        .map_err(|error| io_error("cannot hand over", folder, error))
}

/// Creates the cluster if there is none. It is renamed into place, so an existing one is complete.
pub(super) fn init_cluster(
    place: &DataLayout,
    install: &Install,
    launcher: &Launcher,
    durable: bool,
) -> Result<(), Error> {
    let cluster = &place.cluster;
    if let Ok(version) = fs::read_to_string(cluster.join("PG_VERSION")) {
        let found = version.trim().to_owned();
        return if found == install.major.to_string() {
            Ok(())
        } else {
            Err(Error::OtherMajor { cluster: cluster.clone(), found, wanted: install.major })
        };
    }
    let home = cluster.parent().unwrap_or(Path::new("/"));
    for entry in fs::read_dir(home).map_err(|error| io_error("cannot read", home, error))?.flatten()
    {
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            process::discard_cluster(&entry.path());
        }
    }
    let fresh = home.join(format!("{UNFINISHED}{}", std::process::id()));
    let made = make_cluster(&fresh, place, install, launcher, durable).and_then(|()| {
        fs::rename(&fresh, cluster).map_err(|error| io_error("cannot create", cluster, error))
    });
    if made.is_err() {
        process::discard_cluster(&fresh);
    }
    made
}

fn make_cluster(
    fresh: &Path,
    place: &DataLayout,
    install: &Install,
    launcher: &Launcher,
    durable: bool,
) -> Result<(), Error> {
    fs::DirBuilder::new()
        .mode(0o700)
        .create(fresh)
        .map_err(|error| io_error("cannot create", fresh, error))?;
    hand_over(fresh, place.owner)?;
    let mut initdb = launcher.command(&install.bin.join("initdb"), "KILL");
    // The permissions of the socket's folder decide who may connect.
    initdb.args([
        "--username=postgres",
        "--auth=trust",
        "--encoding=UTF8",
        "--locale=C.UTF-8",
        "--no-sync",
    ]);
    if install.major >= 17 {
        // The builtin collation does not change with the C library. Such a change would silently break indexes.
        initdb.args(["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]);
    }
    let failed = |said: String| Error::Initdb { cluster: place.cluster.clone(), said };
    let done = process::output(initdb.arg("-D").arg(fresh), INITDB_LIMIT)
        .map_err(|error| failed(error.to_string()))?;
    if !done.status.success() {
        return Err(failed(process::complaint(&done)));
    }
    if durable {
        // One sync of the file system instead of a thousand syncs of single files.
        let synced = fs::File::open(fresh).and_then(|folder| Ok(rustix::fs::syncfs(folder)?));
        synced.map_err(|error| io_error("cannot sync", fresh, error))?;
    }
    Ok(())
}

pub(super) fn socket_file(socket_dir: &Path) -> PathBuf {
    socket_dir.join(format!(".s.PGSQL.{PORT}"))
}

/// Tells other commands where the server listens. Call it only once it does.
pub(super) fn publish_socket(data_dir: &Path, socket_dir: &Path) -> Result<(), Error> {
    write(&data_dir.join(SOCKET), socket_dir)
}

pub(super) fn published_socket(data_dir: &Path) -> Option<PathBuf> {
    let told = fs::read_to_string(data_dir.join(SOCKET)).ok()?;
    Some(PathBuf::from(told.trim())).filter(|path| path.is_absolute())
}

/// Removes the published socket after an orderly stop. After any other end it stays, and names a socket that nobody
/// listens on.
pub(super) fn retract_socket(data_dir: &Path, place: &DataLayout) {
    let _ = fs::remove_file(data_dir.join(SOCKET));
    if place.socket_dir != place.cluster {
        let _ = fs::remove_dir(&place.socket_dir);
    }
}

/// Writes the path by a rename, so that nobody reads half of it.
fn write(file: &Path, content: &Path) -> Result<(), Error> {
    let half = file.with_extension("new");
    let mut line = content.as_os_str().as_encoded_bytes().to_vec();
    line.push(b'\n');
    let written = fs::write(&half, line)
        .and_then(|()| fs::File::open(&half)?.sync_all())
        .and_then(|()| fs::rename(&half, file));
    written.map_err(|error| io_error("cannot write", file, error))
}
