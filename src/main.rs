//! The `proxie` binary: parses the command line and hands over to `app::cli`.

use std::process::ExitCode;

/// Bursts of small allocations are what this process does: about half the CPU of the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    proxie::app::cli::main()
}
