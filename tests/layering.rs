//! The modules and the direction of their imports: a module imports only from lower layers.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed step is a failed test")]

use std::path::{Path, PathBuf};

/// The layers, lowest first, as in ARCHITECTURE.md; modules of one layer do not import each other.
const MODULES: &[&[&str]] = &[
    &["backoff", "clock", "secret", "json", "line_limit", "tls"],
    &["settings", "skew", "call_state"],
    &["route", "envelope"],
    &["tenant", "answer"],
    &["configuration", "caller"],
    &["cache", "limit", "signer"],
    &["upstream", "metrics", "pseudonym", "budget", "trace"],
    &["cluster"],
    &["reply"],
    &["gateway"],
    &["listener", "admin"],
    &["sandbox"],
    &["app"],
    &["cli"],
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn level(module: &str) -> usize {
    let found = MODULES.iter().position(|modules| modules.contains(&module));
    found.unwrap_or_else(|| panic!("{module} is missing from the list of modules"))
}

/// The modules that a text imports by `crate::`, alone or in a group.
fn imports(text: &str) -> Vec<String> {
    let name = |rest: &str| rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect::<String>();
    let mut found: Vec<String> = Vec::new();
    for rest in text.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            Some(group) => found.extend(group.split('}').next().unwrap().split(',').map(|item| name(item.trim()))),
            None => found.push(name(rest)),
        }
    }
    found
}

#[test]
fn every_module_imports_only_from_lower_layers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut checked = 0;
    for file in files {
        let relative = file.strip_prefix(&root).unwrap();
        let first = relative.iter().next().unwrap().to_str().unwrap();
        let module = first.strip_suffix(".rs").unwrap_or(first);
        if ["lib", "main"].contains(&module) {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        for import in imports(&text).iter().filter(|import| *import != module) {
            assert!(level(import) < level(module), "{}: {module} must not import {import}", relative.display());
            checked += 1;
        }
    }
    assert!(checked > 50, "{checked}");
}

#[test]
fn no_source_file_is_longer_than_400_lines() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    for file in files {
        let lines = std::fs::read_to_string(&file).unwrap().lines().count();
        assert!(lines <= 400, "{}: {lines} lines", file.display());
    }
}

#[test]
fn imports_are_found_alone_and_in_groups() {
    assert_eq!(imports("use crate::clock::Now;"), ["clock"]);
    assert_eq!(imports("use crate::{cache, json::Node};\nlet a = crate::reply::b();"), ["cache", "json", "reply"]);
}
