//! Brings the layers of a configuration together: built-in defaults, then the file, then the environment.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use config::{Config, ConfigError, Map, Source, Value, ValueKind};

use super::Settings;
use super::reader::{Mistake, Mistakes, Notes, Table};

/// Variables that are keys of the configuration begin with this. Others that begin with `ZVGATE_` are not ours: Kubernetes sets
/// `ZVGATE_PORT` and the like for a Service of that name.
const PREFIX: &str = "ZVGATE__";
/// Names the configuration file.
const FILE_VARIABLE: &str = "ZVGATE_CONFIG";
/// Read where no file is named and it is safe to.
const USUAL_FILE: &str = "config/zvgate.toml";

/// What a configuration is made from. It may hold keys, so that it has no `Debug`.
#[derive(Clone, Default)]
pub struct Sources {
    /// The file, if there is one.
    pub file: Option<PathBuf>,
    /// The variables that begin with `ZVGATE__`.
    pub variables: BTreeMap<String, String>,
    /// Why the usual file was passed over, where it was.
    pub passed_over: Option<String>,
}

impl Sources {
    /// The file named by the command line, else by `$ZVGATE_CONFIG`, else the usual one if it is safe; and the process's variables.
    pub fn of_process(named: Option<&Path>) -> Self {
        #[expect(clippy::disallowed_methods, reason = "the one place where the configuration meets the environment")]
        let mut variables: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
            .filter(|(name, _)| name.starts_with(PREFIX) || name == FILE_VARIABLE)
            .collect();
        let from_variable = variables.remove(FILE_VARIABLE).map(PathBuf::from);
        match named.map(Path::to_path_buf).or(from_variable) {
            Some(file) => Self { file: Some(file), variables, passed_over: None },
            None => match usual_file(Path::new(USUAL_FILE)) {
                Ok(file) => Self { file, variables, passed_over: None },
                Err(why) => Self { file: None, variables, passed_over: Some(why) },
            },
        }
    }

    /// Reads every layer, and the settings that they make together.
    ///
    /// # Errors
    /// Every mistake that was found, not only the first.
    pub fn load(&self) -> Result<Settings, Mistakes> {
        let notes = Notes::default();
        let mut layers = Config::builder();
        if let Some(file) = &self.file {
            match read_file(file) {
                Ok(layer) => layers = layers.add_source(layer),
                Err(mistake) => return Err(Mistakes(vec![mistake])),
            }
        }
        layers = layers.add_source(environment(&self.variables, &notes));
        let merged = layers.build().map(|config| config.cache).map_err(|error| {
            Mistakes(vec![Mistake { origin: None, key: "configuration".to_owned(), text: error.to_string() }])
        })?;
        let settings = Settings::read(Table::root(merged, &notes));
        let (mistakes, effective) = notes.into_parts();
        match settings {
            Some(settings) if mistakes.is_empty() => Ok(Settings { effective, ..settings }),
            _ => Err(Mistakes(mistakes)),
        }
    }
}

/// The usual file, where it exists and nobody else could have written it.
fn usual_file(path: &Path) -> Result<Option<PathBuf>, String> {
    let Ok(facts) = std::fs::metadata(path) else { return Ok(None) };
    if facts.mode() & 0o002 != 0 {
        return Err(format!(
            "{} is passed over: everybody may write it; name it with --config if that is meant",
            path.display()
        ));
    }
    if facts.uid() != rustix::process::geteuid().as_raw() {
        return Err(format!(
            "{} is passed over: it belongs to another user; name it with --config if that is meant",
            path.display()
        ));
    }
    Ok(Some(path.to_path_buf()))
}

/// One layer: values that know where they came from.
#[derive(Clone)]
struct Layer(Map<String, Value>);

/// Asked for by [`Source`]; the values may be keys.
impl fmt::Debug for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layer").finish_non_exhaustive()
    }
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(self.0.clone())
    }
}

fn read_file(path: &Path) -> Result<Layer, Mistake> {
    let origin = path.display().to_string();
    let mistake = |key: &str, text: String| Mistake { origin: Some(origin.clone()), key: key.to_owned(), text };
    let text = std::fs::read_to_string(path).map_err(|error| mistake("file", format!("cannot be read: {error}")))?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        // The error's own rendering quotes the line, which may hold a key: only the place and the grammar are told.
        let at = error.span().map_or(0, |span| span.start);
        let before = text.get(..at).unwrap_or(&text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
        mistake(&format!("line {line}, column {column}"), format!("not TOML: {}", without_values(error.message())))
    })?;
    // The merging library takes names on the top level for paths; ours are plain.
    let plain = |key: &str| key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if let Some(odd) = table.keys().find(|key| !plain(key)) {
        return Err(mistake(odd, "unknown key; wanted a table such as [server]".to_owned()));
    }
    let values = table.into_iter().map(|(key, value)| (key, with_origin(value, &origin)));
    Ok(Layer(values.collect()))
}

/// A parser's message without what it quotes from the file, unless that is a sign or two: it may be a key.
fn without_values(message: &str) -> String {
    let part = |(index, part): (usize, &str)| {
        if index % 2 == 1 && part.len() > 3 { "…".to_owned() } else { part.to_owned() }
    };
    message.split('`').enumerate().map(part).collect::<Vec<_>>().join("`")
}

fn with_origin(value: toml::Value, origin: &str) -> Value {
    let kind = match value {
        toml::Value::String(text) => ValueKind::String(text),
        toml::Value::Integer(number) => ValueKind::I64(number),
        toml::Value::Float(number) => ValueKind::Float(number),
        toml::Value::Boolean(truth) => ValueKind::Boolean(truth),
        toml::Value::Datetime(moment) => ValueKind::String(moment.to_string()),
        toml::Value::Array(items) => {
            ValueKind::Array(items.into_iter().map(|item| with_origin(item, origin)).collect())
        }
        toml::Value::Table(table) => {
            ValueKind::Table(table.into_iter().map(|(key, item)| (key, with_origin(item, origin))).collect())
        }
    };
    Value::new(Some(&origin.to_owned()), kind)
}

/// `ZVGATE__SERVER__LISTEN` is `server.listen`; every value is text, so that no id becomes a number on the way.
fn environment(variables: &BTreeMap<String, String>, notes: &Notes) -> Layer {
    let mut root = Map::new();
    for (name, text) in variables {
        let Some(levels) = name.strip_prefix(PREFIX) else { continue };
        let path: Vec<String> = levels.split("__").map(str::to_lowercase).collect();
        if !insert(&mut root, &path, name, text) {
            notes.mistake(Some("environment"), name, "stands both for a value and for a table of keys");
        }
    }
    Layer(root)
}

fn insert(table: &mut Map<String, Value>, path: &[String], name: &str, text: &str) -> bool {
    let origin = format!("environment variable {name}");
    match path {
        [] => false,
        [key] => table.insert(key.clone(), Value::new(Some(&origin), ValueKind::String(text.to_owned()))).is_none(),
        [key, rest @ ..] => {
            let below =
                table.entry(key.clone()).or_insert_with(|| Value::new(Some(&origin), ValueKind::Table(Map::new())));
            match &mut below.kind {
                ValueKind::Table(below) => insert(below, rest, name, text),
                _ => false,
            }
        }
    }
}
