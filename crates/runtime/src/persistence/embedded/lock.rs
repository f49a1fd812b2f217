//! The lock that allows one process per data folder.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{Read, Seek, Write},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    process::{Pid, test_kill_process},
};

use super::{Error, io_error};

/// How long a child of a dead holder may keep the lock.
const INHERITED: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The exclusive right to a data folder. It is an flock, so the kernel releases it when the process dies, however it
/// dies. The file stays: deleting it would let two processes lock two different files of the same name.
///
/// The descriptor is close-on-exec, but between fork and exec a child shares it, and the lock with it. So a drop
/// unlocks explicitly instead of only closing, and a lock whose holder has died is waited for.
#[derive(Debug)]
pub struct DataLock {
    data_dir: PathBuf,
    file: File,
}

impl Drop for DataLock {
    fn drop(&mut self) {
        let _ = self.file.unlock();
    }
}

impl DataLock {
    /// Takes the lock, creating the folder if need be. [`Error::Locked`] names the process that holds it.
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
        let deadline = Instant::now() + INHERITED;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(error)) => return Err(failed(error)),
                Err(TryLockError::WouldBlock) => {}
            }
            let mut pid = String::new();
            file.rewind().map_err(failed)?;
            let _ = (&file).take(32).read_to_string(&mut pid);
            let pid = pid.trim();
            if !is_gone(pid) || Instant::now() > deadline {
                let pid = if pid.is_empty() { "unknown" } else { pid }.to_owned();
                return Err(Error::Locked { data_dir, pid });
            }
            thread::sleep(LOOK_AGAIN);
        }
        file.set_len(0).map_err(failed)?;
        file.rewind().map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self { data_dir, file })
    }

    /// The folder's canonical path.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }
}

/// Whether the process is gone. False for a live process of another user, too.
fn is_gone(pid: &str) -> bool {
    let pid = pid.parse().ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| matches!(test_kill_process(pid), Err(Errno::SRCH)))
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A child that has the descriptor as every child has it between fork and exec.
    fn heir(file: &File) -> Child {
        let inherited = Stdio::from(file.try_clone().unwrap());
        Command::new("sleep").arg("1").stdin(inherited).spawn().unwrap()
    }

    fn folder(name: &str) -> PathBuf {
        let folder =
            std::env::temp_dir().join(format!("proxie-lock-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn a_dropped_lock_is_free_although_a_child_has_its_descriptor() {
        let folder = folder("dropped");
        let lock = DataLock::acquire(&folder).unwrap();
        let mut child = heir(&lock.file);
        drop(lock);
        DataLock::acquire(&folder).unwrap();
        child.wait().unwrap();
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn the_lock_of_a_dead_process_is_waited_for_while_a_child_of_it_has_it() {
        let folder = folder("dead");
        let mut dead = Command::new("true").spawn().unwrap();
        dead.wait().unwrap();
        fs::write(folder.join("lock"), format!("{}\n", dead.id())).unwrap();
        let file = File::open(folder.join("lock")).unwrap();
        file.try_lock().unwrap();
        let mut child = heir(&file);
        drop(file);
        DataLock::acquire(&folder).unwrap();
        child.wait().unwrap();
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn the_lock_of_a_live_process_is_refused_with_its_pid() {
        let folder = folder("live");
        let _lock = DataLock::acquire(&folder).unwrap();
        let refused = DataLock::acquire(&folder).unwrap_err().to_string();
        assert!(refused.contains(&std::process::id().to_string()), "{refused}");
        fs::remove_dir_all(folder).unwrap();
    }
}
