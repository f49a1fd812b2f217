//! The code reads itself: the layer table, the size of files, and that what has to be written down is.
//!
//! Every exception is listed with its reason, and one that nothing needs any more fails the test.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use proxie::kernel::error::ErrorCode;

/// Parts by rank. A part imports strictly lower ranks, and itself. `domain` is that of each system.
const RANKS: &[(&str, u8)] = &[
    ("kernel", 0),
    ("domain", 1),
    ("persistence", 2),
    ("cluster", 2),
    ("ai", 2),
    ("actors", 3),
    ("contract", 4),
    ("systems", 5),
    ("gateway", 6),
    ("app", 7),
    ("config", 7),
    ("telemetry", 7),
    ("main", 7),
    ("lib", 7),
];

/// Edges that the ranks forbid: (from, to, reason).
const EDGES: &[(&str, &str, &str)] = &[
    ("app", "config", "the composition root is one layer in several files"),
    ("app", "telemetry", "the composition root is one layer in several files"),
    ("telemetry", "config", "the log's settings are a section of the configuration"),
];

/// Edges that the ranks would allow and the design does not: (from, to).
const FORBIDDEN: &[(&str, &str)] = &[("gateway", "actors"), ("systems", "actors")];

/// Who may name a crate: (crate, places). `*` is any folder.
const CRATES: &[(&str, &[&str])] = &[
    ("ractor", &["cluster/", "actors/", "persistence/writer.rs", "gateway/ws/", "app"]),
    ("ractor_cluster", &["cluster/", "app"]),
    ("sqlx", &["persistence/", "systems/*/views.rs", "app"]),
    ("redis", &["persistence/"]),
    ("object_store", &["persistence/objects.rs"]),
    ("imagesize", &["kernel/image.rs"]),
    ("bincode", &["kernel/codec.rs"]),
    ("axum", &["gateway/", "app"]),
    ("rmcp", &["gateway/mcp/", "ai/servers"]),
    ("a2a", &["ai/peers/", "gateway/outsiders/"]),
    ("chrono", &["ai/peers/wire.rs"]),
    (
        "tokio",
        &[
            "persistence/",
            "cluster/",
            "ai/",
            "contract/",
            "actors/",
            "systems/agents/",
            "systems/photos/",
            "gateway/",
            "app",
            "telemetry.rs",
            "main.rs",
        ],
    ),
    ("genai", &["ai/"]),
    ("reqwest", &["ai/", "app/cli/mcp.rs"]),
    (
        "rustls",
        &[
            "cluster/transport/tls.rs",
            "ai/router.rs",
            "ai/servers.rs",
            "persistence/objects.rs",
            "ai/peers/",
            "app/cli/mcp.rs",
        ],
    ),
    ("tokio_rustls", &["cluster/transport/tls.rs"]),
    ("rcgen", &["app/certificates.rs"]),
    ("rand", &["persistence/", "cluster/", "actors/", "gateway/", "app"]),
    // What the ranks are read from is `crate::`.
    ("proxie_runtime", &["lib.rs"]),
];

/// Files that name a crate outside of its places: (file, crate, reason).
const CRATE_USES: &[(&str, &str, &str)] = &[
    (
        "actors/services.rs",
        "sqlx",
        "carries the pool from `app` to functions of `persistence`, and runs no statement itself",
    ),
    ("telemetry.rs", "rmcp", "says which lines of its log are of no use"),
];

/// Names that every entity or component has a type of: (name, the part where each may have its own, or all).
const CONVENTIONAL: &[(&str, &str)] = &[
    ("Command", "domain"),
    ("Event", "domain"),
    ("Reply", "domain"),
    ("Rejection", "domain"),
    ("State", "domain"),
    ("Status", "domain"),
    ("Options", ""),
];

/// Where the sources are. A part is named alike in either crate, since `proxie` shows the parts of `proxie-runtime`.
pub const SOURCES: [&str; 2] = ["src", "crates/runtime/src"];

const MAX_LINES: usize = 500;

/// Parts whose modules do not import each other in a circle, besides the `domain` of each system. A file and the folder
/// of its name are one module.
const WITHOUT_CIRCLES: &[&str] = &["actors", "cluster", "contract"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The Rust files of both crates, each with its name below `src`.
fn source_files() -> Vec<(String, PathBuf)> {
    let named = |folder: PathBuf| {
        files(&folder, "rs").into_iter().map(move |path| {
            let name = path.strip_prefix(&folder).unwrap().to_str().unwrap().to_owned();
            (name, path)
        })
    };
    SOURCES.into_iter().flat_map(|folder| named(root().join(folder))).collect()
}

struct Source {
    /// Below `src`, `actors/entity.rs`.
    name: String,
    /// Without comments, blank lines and inline test modules.
    lines: Vec<String>,
}

fn is_test_file(name: &str) -> bool {
    let ends = ["tests.rs", "/fixtures.rs", "/spec.rs"];
    ends.iter().any(|end| name.ends_with(end)) || name.contains("/tests/")
}

fn sources() -> Vec<Source> {
    source_files()
        .into_iter()
        .map(|(name, path)| {
            let text = read(&path);
            let mut lines = Vec::new();
            let mut all = text.lines().peekable();
            while let Some(line) = all.next() {
                let inline_tests = line == "#[cfg(test)]"
                    && all.peek().is_some_and(|next| next.contains("mod ") && next.ends_with('{'));
                if inline_tests {
                    all.by_ref().take_while(|line| *line != "}").for_each(drop);
                } else if !line.trim().is_empty() && !line.trim().starts_with("//") {
                    lines.push(line.trim().to_owned());
                }
            }
            Source { name, lines }
        })
        .collect()
}

/// The part of the house that a file or a path belongs to: its first folder, or `domain` where it is a system's.
fn part(path: &str) -> &str {
    let mut words = path.split(['/', '.', ':']).filter(|word| !word.is_empty());
    let first = words.next().unwrap();
    if first == "systems" && words.nth(1) == Some("domain") { "domain" } else { first }
}

/// The system that a file or a path belongs to.
fn system(path: &str) -> Option<&str> {
    let mut words = path.split(['/', '.', ':']).filter(|word| !word.is_empty());
    (words.next() == Some("systems")).then(|| words.next()).flatten()
}

fn rank(part: &str) -> u8 {
    let known = RANKS.iter().find(|(name, _)| *name == part);
    known.unwrap_or_else(|| panic!("{part} has no rank: add it to the table")).1
}

/// What a line names behind `crate::`, also in a group that ends on it: `cluster::Meta`, `systems::devices::domain::clock`.
fn crate_paths(line: &str) -> Vec<String> {
    let word = |text: &str| -> String {
        let path = |c: &char| c.is_alphanumeric() || matches!(c, '_' | ':');
        text.trim_start().chars().take_while(path).collect()
    };
    line.match_indices("crate::")
        .filter(|(at, _)| !line[..*at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
        .flat_map(|(at, found)| {
            let rest = &line[at + found.len()..];
            let path = word(rest);
            let behind = &rest[path.len()..];
            // Macros stand at the root.
            if behind.starts_with('!') {
                return Vec::new();
            }
            match behind.strip_prefix('{') {
                Some(group) => group.split(',').map(|name| path.clone() + &word(name)).collect(),
                None => vec![path],
            }
        })
        .filter(|name| !name.is_empty())
        .collect()
}

fn is_below(name: &str, place: &str) -> bool {
    match place.split_once('*') {
        Some((before, after)) => {
            let below = name.strip_prefix(before).and_then(|rest| rest.split_once('/'));
            below.is_some_and(|(_, rest)| after.strip_prefix('/') == Some(rest))
        }
        None => name.starts_with(place),
    }
}

fn names_crate(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, found)| {
        let free = !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
        let rest = &line[at + found.len()..];
        free && (rest.starts_with("::") || (line.starts_with("use ") && rest.starts_with(';')))
    })
}

#[test]
fn modules_import_lower_ranks_only() {
    let mut used = BTreeSet::new();
    for source in sources() {
        let from = part(&source.name);
        for path in source.lines.iter().flat_map(|line| crate_paths(line)) {
            let to = part(&path);
            if from == to {
                continue;
            }
            assert!(!FORBIDDEN.contains(&(from, to)), "{}: {from} does not know {to}", source.name);
            if rank(from) > rank(to) {
                continue;
            }
            let allowed = EDGES.iter().find(|(a, b, _)| (*a, *b) == (from, to));
            let (a, b, _) = allowed.unwrap_or_else(|| {
                panic!(
                    "{}: {from} (rank {}) imports {to} (rank {})",
                    source.name,
                    rank(from),
                    rank(to)
                )
            });
            used.insert((*a, *b));
        }
    }
    let listed: BTreeSet<_> = EDGES.iter().map(|(a, b, _)| (*a, *b)).collect();
    assert_eq!(used, listed, "an exception is not needed any more");
}

/// The module of a part that a path behind `crate::` belongs to; `mod` for what the part itself holds.
fn module<'a>(part: &str, path: &'a str, modules: &BTreeSet<String>) -> Option<&'a str> {
    let below = path.strip_prefix(&part.replace('/', "::"))?.strip_prefix("::")?;
    let first = below.split(':').next()?;
    Some(if modules.contains(first) { first } else { "mod" })
}

/// What each module of a part imports of that part.
fn imports(part: &str, sources: &[Source]) -> BTreeMap<String, BTreeSet<String>> {
    let (below, path) = (format!("{part}/"), part.replace('/', "::"));
    let files = || sources.iter().filter(|source| source.name.starts_with(&below));
    let name = |source: &Source| {
        source.name[below.len()..].split(['/', '.']).next().unwrap_or_default().to_owned()
    };
    let modules: BTreeSet<String> = files().map(name).filter(|name| name != "mod").collect();
    let mut imports = BTreeMap::<String, BTreeSet<String>>::new();
    for source in files().filter(|source| !is_test_file(&source.name)) {
        let from = name(source);
        // `super` is the part in its first files only, and below them their own module.
        let in_first = !source.name[below.len()..].contains('/');
        for line in &source.lines {
            let mut paths = crate_paths(line);
            if in_first {
                let line = line.replace("super::", &format!("crate::{path}::"));
                paths.extend(crate_paths(&line));
            }
            if from == "mod" {
                let named = line.split_once("use ").map(|(_, name)| format!("{path}::{name}"));
                paths.extend(named);
            }
            for path in paths {
                if let Some(to) = module(part, &path, &modules).filter(|to| *to != from) {
                    imports.entry(from.clone()).or_default().insert(to.to_owned());
                }
            }
        }
    }
    imports
}

#[test]
fn modules_do_not_import_each_other_in_a_circle() {
    let sources = sources();
    let domains = sources.iter().filter(|source| part(&source.name) == "domain");
    let domains: BTreeSet<String> = domains
        .filter_map(|source| Some(format!("systems/{}/domain", system(&source.name)?)))
        .collect();
    for part in WITHOUT_CIRCLES.iter().copied().chain(domains.iter().map(String::as_str)) {
        let mut left = imports(part, &sources);
        let small = ["systems/app_topics/domain", "systems/agents/domain"].contains(&part);
        assert!(small || left.len() > 3, "{part} was read: {left:?}");
        // Whatever imports nothing that is left is in no circle.
        while let Some(free) = left.iter().find_map(|(module, imports)| {
            imports.iter().all(|import| !left.contains_key(import)).then(|| module.clone())
        }) {
            left.remove(&free);
        }
        assert!(left.is_empty(), "{part} has a circle among {left:#?}");
    }
}

#[test]
fn systems_name_only_the_api_of_each_other() {
    for source in sources() {
        let Some(from) = system(&source.name).filter(|_| !is_test_file(&source.name)) else {
            continue;
        };
        for path in source.lines.iter().flat_map(|line| crate_paths(line)) {
            let own = system(&path).is_none_or(|to| to == from);
            assert!(own || path.split("::").nth(2) == Some("api"), "{}: {path}", source.name);
        }
    }
}

#[test]
fn crates_are_named_in_their_places_only() {
    let mut used = BTreeSet::new();
    for source in sources().iter().filter(|source| !is_test_file(&source.name)) {
        for (name, places) in CRATES {
            if places.iter().any(|place| is_below(&source.name, place))
                || !source.lines.iter().any(|line| names_crate(line, name))
            {
                continue;
            }
            let allowed = CRATE_USES.iter().find(|(file, c, _)| *file == source.name && c == name);
            let (file, c, _) = allowed.unwrap_or_else(|| panic!("{} names {name}", source.name));
            used.insert((*file, *c));
        }
    }
    let listed: BTreeSet<_> = CRATE_USES.iter().map(|(file, c, _)| (*file, *c)).collect();
    assert_eq!(used, listed, "an exception is not needed any more");
}

#[test]
fn files_can_be_read_in_one_go() {
    let long: Vec<(String, usize)> = sources()
        .into_iter()
        .filter(|source| !is_test_file(&source.name) && source.lines.len() > MAX_LINES)
        .map(|source| (source.name, source.lines.len()))
        .collect();
    assert_eq!(long, [], "split them");
}

/// The public type that a line defines.
fn defined(line: &str) -> Option<&str> {
    let public = line.strip_prefix("pub ").or_else(|| line.strip_prefix("pub(crate) "))?;
    let (kind, rest) = public.split_once(' ')?;
    let name = rest.split(|c: char| !c.is_alphanumeric()).next()?;
    matches!(kind, "struct" | "enum" | "trait" | "type").then_some(name)
}

/// An operation is named by what it does to the things of its module, such as `bookings::Get`: always with the module.
#[test]
fn no_two_public_types_have_one_name() {
    let mut places = BTreeMap::<String, Vec<String>>::new();
    let mut conventional = BTreeSet::new();
    for (file, path) in source_files() {
        if is_test_file(&file) {
            continue;
        }
        let text = read(&path);
        for name in text.lines().filter_map(defined) {
            let by_convention = CONVENTIONAL.iter().find(|(conventional, place)| {
                *conventional == name && (place.is_empty() || part(&file) == *place)
            });
            if let Some((name, _)) = by_convention {
                conventional.insert(*name);
            } else if !text.contains(&format!("impl Operation for {name} ")) {
                places.entry(name.to_owned()).or_default().push(file.clone());
            }
        }
    }
    assert!(places.len() > 300, "the sources were read: {}", places.len());
    places.retain(|_, files| files.len() > 1);
    assert!(places.is_empty(), "give each a name of its own: {places:#?}");
    assert_eq!(conventional.len(), CONVENTIONAL.len(), "a convention is not needed any more");
}

#[test]
fn every_migration_is_applied() {
    let store = read(&root().join("crates/runtime/src/persistence/store.rs"));
    for file in files(&root().join("crates/runtime/migrations"), "sql") {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(store.contains(&format!("migrations/{name}\"")), "{name} is not in store.rs");
    }
    for file in files(&root().join("src/systems"), "sql") {
        let system = read(&file.parent().unwrap().with_file_name("mod.rs"));
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(system.contains(&format!("migrations/{name}\"")), "{name} is in no list");
    }
}

#[test]
fn every_error_code_has_a_page() {
    let list = read(&root().join("docs/errors/README.md"));
    for code in ErrorCode::ALL {
        let page = format!("{}.md", code.as_str());
        assert!(root().join("docs/errors").join(&page).is_file(), "docs/errors/{page} is missing");
        assert!(list.contains(&format!("({page})")), "docs/errors/README.md does not list {page}");
    }
}

#[test]
fn the_pages_a_newcomer_needs_are_there_and_their_links_lead_somewhere() {
    for name in ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "config.toml", "LICENSE"] {
        assert!(root().join(name).is_file(), "{name} is missing");
    }
    let mut pages = files(&root().join("docs"), "md");
    pages.extend(["README.md", "ARCHITECTURE.md", "CHANGELOG.md"].map(|name| root().join(name)));
    for page in pages {
        let text = read(&page);
        for (at, found) in text.match_indices("](") {
            let target = text[at + found.len()..].split(')').next().unwrap();
            let target = target.split('#').next().unwrap();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let there = page.parent().unwrap().join(target);
            assert!(there.exists(), "{}: {target} does not exist", page.display());
        }
    }
}

/// What a page quotes in a column "it says", in parts between what differs.
fn quotes(page: &str) -> Vec<Vec<&str>> {
    let mut quotes = Vec::new();
    let mut says = false;
    for line in page.lines() {
        let Some(cell) = line.strip_prefix("| ").and_then(|row| row.split(" | ").next()) else {
            says &= line.starts_with('|');
            continue;
        };
        if cell == "it says" {
            says = true;
        } else if says {
            let quoted = cell.split('`').skip(1).step_by(2);
            quotes.extend(quoted.map(|quote| {
                quote.split('…').map(str::trim).filter(|part| !part.is_empty()).collect()
            }));
        }
    }
    quotes
}

/// Finds the parts one after the other, not far apart.
fn says(source: &str, parts: &[&str]) -> bool {
    const APART: usize = 200;
    source.match_indices(parts[0]).any(|(at, _)| {
        let mut rest = &source[at..];
        parts.iter().all(|part| match rest.find(part) {
            Some(at) if at <= APART => {
                rest = &rest[at + part.len()..];
                true
            }
            _ => false,
        })
    })
}

#[test]
fn what_is_quoted_is_what_the_program_says() {
    let client = root().join("clients/typescript");
    let clients =
        [files(&client.join("src"), "ts"), files(&client.join("scripts"), "mjs")].concat();
    let sources: Vec<String> = source_files()
        .into_iter()
        .map(|(_, path)| path)
        .chain(clients)
        .map(|path| {
            // A string goes on in the next line behind a backslash.
            let text = read(&path);
            let mut lines = text.split("\\\n");
            let first = lines.next().unwrap_or_default().to_owned();
            lines.fold(first, |text, line| text + line.trim_start())
        })
        .collect();
    let page = read(&root().join("docs/troubleshooting.md"));
    let quotes = quotes(&page);
    assert!(quotes.len() > 40, "the page was read: {}", quotes.len());
    for parts in quotes {
        assert!(sources.iter().any(|source| says(source, &parts)), "nothing says {parts:?}");
    }
}

#[test]
fn kernel_and_domain_know_value_crates_only() {
    const VALUES: &[&str] = &[
        "serde",
        "serde_json",
        "schemars",
        "thiserror",
        "jiff",
        "uhlc",
        "ulid",
        "bincode",
        "imagesize",
        "zeroize",
        "sha2",
    ];
    let manifest = read(&root().join("Cargo.toml"));
    let dependencies =
        manifest.split("[workspace.dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
    let others: Vec<String> = dependencies
        .lines()
        .filter_map(|line| Some(line.split_once(" = ")?.0.replace('-', "_")))
        .filter(|name| !VALUES.contains(&name.as_str()))
        .collect();
    assert!(others.iter().any(|name| name == "tokio"), "the manifest was read");
    for source in sources().iter().filter(|source| !is_test_file(&source.name)) {
        if rank(part(&source.name)) > 1 {
            continue;
        }
        for line in &source.lines {
            assert!(!line.contains("async fn "), "{}: {line}", source.name);
            for name in &others {
                assert!(!names_crate(line, name), "{} names {name}: {line}", source.name);
            }
        }
    }
}

/// The types for which a trait is implemented in the systems.
fn implementors(of: &str) -> BTreeSet<String> {
    let before = format!("impl {of} for ");
    let sources = sources().into_iter().filter(|source| source.name.starts_with("systems/"));
    let lines = sources.flat_map(|source| source.lines);
    let types = lines.filter_map(|line| Some(line.trim().strip_prefix(&before)?.to_owned()));
    types.map(|rest| rest.split([' ', '<']).next().unwrap().to_owned()).collect()
}

#[test]
fn all_work_has_a_runner_that_its_system_lists() {
    let (work, runners) = (implementors("Work"), implementors("Runner"));
    let systems: String = sources()
        .into_iter()
        .filter(|source| source.name.starts_with("systems/") && !is_test_file(&source.name))
        .flat_map(|source| source.lines)
        .collect::<Vec<_>>()
        .join("\n");
    assert!(!work.is_empty(), "the systems were read");
    for one in &work {
        assert!(systems.contains(&format!("type Work = {one};")), "nobody does the work {one}");
    }
    for one in &runners {
        let listed = systems.lines().any(|line| {
            line.split("runner::<").skip(1).any(|rest| {
                let path = rest.split('>').next().unwrap();
                path.rsplit("::").next() == Some(one)
            })
        });
        assert!(listed, "no system lists the runner {one}");
    }
}

#[test]
fn every_operation_is_listed_by_its_system() {
    let sources = sources();
    let mut known = 0;
    for source in sources.iter().filter(|source| !is_test_file(&source.name)) {
        let Some(system) = system(&source.name) else { continue };
        let module = Path::new(&source.name).file_stem().unwrap().to_str().unwrap();
        let list = format!("systems/{system}/mod.rs");
        let listed = |path: &str| {
            let lines = sources.iter().filter(|one| one.name == list).flat_map(|one| &one.lines);
            let mut operations = lines.flat_map(|line| line.split("operation::<").skip(1));
            operations.any(|rest| {
                let before = rest.split(">()").next().unwrap().strip_suffix(path);
                before.is_some_and(|before| before.is_empty() || before.ends_with("::"))
            })
        };
        for line in &source.lines {
            let Some(rest) = line.strip_prefix("impl Operation for ") else { continue };
            let path = format!("{module}::{}", rest.split([' ', '<']).next().unwrap());
            assert!(
                listed(&path),
                "nobody can ask {path} of src/{}: src/{list} needs operation::<{path}>()",
                source.name
            );
            known += 1;
        }
    }
    assert!(known > 40, "the systems were read: {known}");
}
