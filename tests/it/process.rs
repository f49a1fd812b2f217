//! The binary as a user runs it: real processes, killed for real.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

#[path = "../../examples/crash.rs"]
#[allow(dead_code)]
mod crash;

fn proxie() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_proxie"))
}

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("proxie-it-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn run(folder: &Folder, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(proxie());
    command
        .args(arguments)
        .current_dir(&folder.0)
        .env_remove("DATABASE_URL")
        .env_remove("REDIS_URL");
    command.envs(environment.iter().copied());
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_demonstration_ends_well() {
    let folder = Folder::new("demo");
    let output = run(&folder, &["demo"], &[]);
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{shown}\n{}", text(&output.stderr));
    assert!(shown.contains("SIGKILL") && shown.contains("the booking is there"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_under_load_lose_and_double_nothing() {
    let folder = Folder::new("crash");
    crash::run(proxie(), &folder.0, 12).await.unwrap();
}

#[test]
fn usage_and_configuration_errors_exit_2_in_one_line() {
    let folder = Folder::new("usage");
    let cases: [(&[&str], &[(&str, &str)], &str); 6] = [
        (&["fly"], &[], "unrecognized"),
        (&["check-config"], &[("PROXIE__GATEWAY__LISTEN", "nowhere")], "gateway.listen"),
        (&["check-config"], &[("PROXIE__GATEWAY__LISSEN", "127.0.0.1:1")], "lissen"),
        (
            &["serve"],
            &[("PROXIE__CLUSTER__ENABLED", "true"), ("DATABASE_URL", "postgres://localhost/x")],
            "cookie",
        ),
        (
            &["serve"],
            &[("PROXIE__CLUSTER__ENABLED", "true"), ("PROXIE__CLUSTER__COOKIE", "c")],
            "DATABASE_URL",
        ),
        (&["--config", "missing.toml", "check-config"], &[], "missing.toml"),
    ];
    for (arguments, environment, expected) in cases {
        let output = run(&folder, arguments, environment);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?} {error}");
        assert!(error.contains(expected), "{arguments:?}: {error}");
    }
    assert_eq!(run(&folder, &["check-config"], &[]).status.code(), Some(0));
    assert_eq!(
        run(&folder, &["entity", "show", "booking", "x"], &[]).status.code(),
        Some(1),
        "no store yet"
    );
    let off = run(&folder, &["token", "--user", "a"], &[("PROXIE__AUTH__DEV_TOKENS", "false")]);
    assert_eq!(off.status.code(), Some(1));
    assert!(text(&off.stderr).contains("dev_tokens"), "{}", text(&off.stderr));
}
