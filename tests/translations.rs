//! The Chinese documents: each has the structure of its original, and says which state of each section it translates.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a failed step is a failed test")]

use std::fmt::Write;
use std::path::Path;

use sha2::{Digest, Sha256};

/// The originals, and their translations.
const PAIRS: [(&str, &str); 4] = [
    ("README.md", "README.zh-CN.md"),
    ("docs/recipes.md", "docs/zh-CN/recipes.md"),
    ("docs/errors.md", "docs/zh-CN/errors.md"),
    ("docs/configuration.md", "docs/zh-CN/configuration.md"),
];

/// A heading with what follows, up to the next one.
#[derive(Debug)]
struct Section {
    level: usize,
    heading: String,
    text: String,
    fences: usize,
    rows: usize,
    /// The state of the original, in a comment before the heading.
    translates: Option<String>,
}

impl Section {
    /// Says which state of a section this is.
    fn state(&self) -> String {
        zvgate::secret::hex(&Sha256::digest(format!("{}\n{}", self.heading, self.text.trim()))[..6])
    }
}

fn read(path: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn sections(text: &str) -> Vec<Section> {
    let (mut found, mut is_code, mut translates) = (Vec::<Section>::new(), false, None);
    for line in text.lines() {
        if let Some(state) = line.strip_prefix("<!-- original: ").and_then(|rest| rest.strip_suffix(" -->")) {
            translates = Some(state.to_owned());
            continue;
        }
        let level = line.chars().take_while(|c| *c == '#').count();
        if !is_code && level > 0 {
            let translates = translates.take();
            found.push(Section {
                level,
                heading: line.to_owned(),
                text: String::new(),
                fences: 0,
                rows: 0,
                translates,
            });
            continue;
        }
        let Some(section) = found.last_mut() else { continue };
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
            section.fences += 1;
        }
        section.rows += usize::from(!is_code && line.starts_with('|'));
        writeln!(section.text, "{line}").unwrap();
    }
    found
}

#[test]
fn every_translation_has_the_structure_of_its_original() {
    for (original, translation) in PAIRS {
        let (originals, translations) = (sections(&read(original)), sections(&read(translation)));
        assert!(originals.len() > 3, "{original}");
        for (one, other) in originals.iter().zip(&translations) {
            let shape = |section: &Section| (section.level, section.fences, section.rows);
            assert_eq!(shape(one), shape(other), "{original}: {} and {translation}: {}", one.heading, other.heading);
        }
        assert_eq!(originals.len(), translations.len(), "{translation} has other sections than {original}");
        assert!(read(translation).contains("英文版本为准"), "{translation} says that the original is binding");
    }
}

#[test]
fn no_section_has_changed_since_it_was_translated() {
    let mut changed = String::new();
    for (original, translation) in PAIRS {
        for (one, other) in sections(&read(original)).iter().zip(&sections(&read(translation))) {
            let (state, translates) = (one.state(), other.translates.as_deref().unwrap_or("none"));
            if state != translates {
                writeln!(
                    changed,
                    "{original}, {}: translate it, and write <!-- original: {state} --> before {} in {translation}",
                    one.heading, other.heading
                )
                .unwrap();
            }
        }
    }
    assert!(changed.is_empty(), "sections changed since they were translated:\n{changed}");
}

/// Links within the documents lead to files that are there.
#[test]
fn every_link_to_a_file_leads_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<_> = ["README.md", "README.zh-CN.md", "ARCHITECTURE.md", "SECURITY.md", "CONTRIBUTING.md"]
        .map(|name| root.join(name))
        .into();
    for folder in ["docs", "docs/zh-CN"] {
        let entries = std::fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path());
        files.extend(entries.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    }
    let mut checked = 0;
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = target.split('#').next().unwrap();
            if path.is_empty() || path.contains("://") {
                continue;
            }
            let leads = file.parent().unwrap().join(path).exists();
            assert!(leads, "{}: {target}", file.display());
            checked += 1;
        }
    }
    assert!(checked > 50, "{checked}");
}
