//! One process a data folder.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{Read, Seek, Write},
    path::{Path, PathBuf},
};

use super::{Error, io_error};

/// The exclusive right to a data folder. It is an flock, so the kernel gives it back when the process dies, however
/// it dies. The file stays: to delete it would let two processes lock two different files of the same name.
/// The descriptor is close-on-exec, so no child can keep the lock alive.
#[derive(Debug)]
pub struct DataLock {
    data_dir: PathBuf,
    _file: File,
}

impl DataLock {
    /// Creates the folder if need be. [`Error::Locked`] names the process that has it.
    pub fn acquire(data_dir: &Path) -> Result<Self, Error> {
        fs::create_dir_all(data_dir).map_err(|error| io_error("cannot create", data_dir, error))?;
        let data_dir =
            data_dir.canonicalize().map_err(|error| io_error("cannot open", data_dir, error))?;
        let path = data_dir.join("lock");
        let failed = |error| io_error("cannot lock", &path, error);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(error)) => return Err(failed(error)),
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = file.take(32).read_to_string(&mut pid);
                let pid =
                    if pid.trim().is_empty() { "unknown".into() } else { pid.trim().to_owned() };
                return Err(Error::Locked { data_dir, pid });
            }
        }
        file.set_len(0).map_err(failed)?;
        file.rewind().map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self { data_dir, _file: file })
    }

    /// The folder's canonical path.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }
}
