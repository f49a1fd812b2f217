//! The TypeScript client as somebody else's dependency: installed from its folder in a fresh clone, and used as its
//! README says.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use super::{must, npm, served};
use crate::process::Folder;

const CLIENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/clients/typescript");

/// What git would bring: nothing is built or installed.
fn clone(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap();
        if name == "dist" || name == "node_modules" {
            continue;
        }
        if path.is_dir() {
            clone(&path, &to.join(name));
        } else {
            std::fs::copy(&path, to.join(name)).unwrap();
        }
    }
}

/// The code of a page, block by block.
fn code(page: &str) -> Vec<&str> {
    page.split("\n```ts\n").skip(1).map(|rest| rest.split("\n```").next().unwrap()).collect()
}

/// A project that depends on the client's folder. Also where the client's own TypeScript is then.
fn project(folder: &Folder) -> (PathBuf, PathBuf) {
    let client = folder.0.join("proxie/clients/typescript");
    clone(Path::new(CLIENT), &client);
    let app = folder.0.join("app");
    std::fs::create_dir_all(&app).unwrap();
    std::fs::write(app.join("package.json"), r#"{"private": true, "type": "module"}"#).unwrap();
    must(npm(&app, &["install", "--no-audit", "--no-fund", "../proxie/clients/typescript"]));
    (app, client)
}

fn node(app: &Path, file: &str) -> Command {
    let mut command = Command::new("node");
    command.arg(file).current_dir(app);
    command
}

#[test]
fn the_client_installs_from_its_folder_and_its_readme_runs() {
    let folder = Folder::new("package");
    let (app, client) = project(&folder);
    must(npm(
        &app,
        &[
            "install",
            "--no-audit",
            "--no-fund",
            "ws@8.23.0",
            "@types/ws@8.18.1",
            "@types/node@20.19.43",
        ],
    ));
    let blocks = code(include_str!("../../../clients/typescript/README.md"));
    assert_eq!(blocks.len(), 3, "the conversation, reads, devices");

    // Types, as a strict project has them, in all ways to find them.
    for (n, block) in blocks.iter().enumerate() {
        std::fs::write(app.join(format!("readme{n}.mts")), block).unwrap();
        std::fs::write(app.join(format!("readme{n}.mjs")), block).unwrap();
    }
    let uses = "import { connect, type Offer, type Reads } from '@proxie/client';\n\
                import { Device } from '@proxie/client/sync';\n\
                import { fileStore } from '@proxie/client/sync/file';\n\
                const proxie = connect({ url: 'http://127.0.0.1:1', token: 't' });\n\
                const price = (offer: Offer): number => offer.price.amount_minor;\n\
                const answer: Promise<Reads['/v1/requests/{id}/offers']['answer']> =\n\
                \x20 proxie.get('/v1/requests/{id}/offers', { id: 'req_1', limit: 3 });\n\
                answer.then(({ items }) => items.map(price));\n\
                // @ts-expect-error -- the request has to be named\n\
                void proxie.get('/v1/requests/{id}/offers');\n\
                // @ts-expect-error -- there is no such path\n\
                void proxie.get('/v1/nothing');\n\
                void Device; void fileStore;\n";
    std::fs::write(app.join("uses.cts"), uses).unwrap();
    let tsc = client.join("node_modules/typescript/bin/tsc");
    for (module, resolution, files) in
        [("node16", "node16", "*"), ("nodenext", "nodenext", "*"), ("esnext", "bundler", "*.mts")]
    {
        let settings = json!({
            "compilerOptions": {
                "module": module, "moduleResolution": resolution, "target": "es2022", "lib": ["es2022", "dom"],
                "types": ["node"], "strict": true, "exactOptionalPropertyTypes": true, "noEmit": true,
            },
            "include": [files],
        });
        std::fs::write(app.join("tsconfig.json"), settings.to_string()).unwrap();
        let mut check = node(&app, tsc.to_str().unwrap());
        check.args(["-p", "."]);
        must(check);
    }

    // CommonJS.
    let required = "const { ProxieError } = require('@proxie/client');\n\
                    require('@proxie/client/sync').Device;\n\
                    const { fileStore } = require('@proxie/client/sync/file');\n\
                    if (typeof ProxieError !== 'function' || typeof fileStore !== 'function') process.exit(1);\n";
    std::fs::write(app.join("required.cjs"), required).unwrap();
    must(node(&app, "required.cjs"));

    // What would be published: both builds, and neither sources nor tests.
    let packed = must(npm(&client, &["pack", "--dry-run", "--json", "--silent"]));
    for wanted in [
        "dist/src/index.js",
        "dist/src/sync/file.d.ts",
        "dist/cjs/index.js",
        "dist/cjs/package.json",
    ] {
        assert!(packed.contains(&format!("\"{wanted}\"")), "{wanted} is missing: {packed}");
    }
    assert!(!packed.contains("test") && !packed.contains("\"src/"), "{packed}");

    // The examples, as they are written.
    let (served, token) = served(&folder);
    let run = |n: usize| {
        let mut example = node(&app, &format!("readme{n}.mjs"));
        example.env("PROXIE_URL", format!("http://{}", served.address)).env("PROXIE_TOKEN", &token);
        must(example)
    };
    let booked = run(0);
    let provider = booked.lines().find_map(|line| line.strip_prefix("booked: ")?.split(',').next());
    let provider = provider.unwrap_or_else(|| panic!("nothing was booked: {booked}"));
    let read = run(1);
    assert!(
        read.contains(&format!("{provider} confirmed")) && read.contains("not_found"),
        "{read}"
    );
    let shared = run(2);
    assert!(shared.contains("tt0133093") && shared.contains("position_ms: 61000"), "{shared}");
}
