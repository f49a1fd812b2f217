//! The console, as the node serves it. `./dev console` builds it with Node.js; without that a page that says so takes
//! its place, so that a node is built with nothing but Rust (ADR 19).

use std::path::Path;

fn main() {
    let console = Path::new("../../clients/console");
    println!("cargo::rerun-if-changed=../../clients/console/dist");
    println!("cargo::rerun-if-changed=../../clients/console/unbuilt.js");
    let built = console.join("dist/console.js");
    let script = if built.is_file() { built } else { console.join("unbuilt.js") };
    let out = std::env::var("OUT_DIR").expect("cargo sets it");
    std::fs::copy(&script, Path::new(&out).join("console.js"))
        .unwrap_or_else(|error| panic!("{}: {error}", script.display()));
}
