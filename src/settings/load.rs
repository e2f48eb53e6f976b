//! Merges the layers of a configuration: built-in defaults, then the file, then the environment.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use config::{Config, Map, Source, Value, ValueKind};

use super::Settings;
use super::reader::{ConfigError, ConfigErrors, Notes, Table, VARIABLE};
use crate::tls::TlsFiles;

/// Variables that are keys of the configuration begin with this. Others that begin with `ZVGATE_` are not ours: Kubernetes sets
/// `ZVGATE_PORT` and the like for a Service of that name.
const PREFIX: &str = "ZVGATE__";
/// The variable that names the configuration file.
const FILE_VARIABLE: &str = "ZVGATE_CONFIG";
/// The first of these that exists is read if no file is named.
const DEFAULT_FILES: [&str; 3] = ["./zvgate.toml", "config/zvgate.toml", "/etc/zvgate/zvgate.toml"];
/// Variables that name the system's trusted CAs (as OpenSSL has them).
const ROOTS_VARIABLES: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];
/// Variables that name a forward proxy for other programs.
const PROXY_VARIABLES: [&str; 4] = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];

/// Where a configuration comes from. It may hold keys, so that it has no `Debug`.
#[derive(Clone, Default)]
pub struct Sources {
    /// The file, if there is one.
    pub file: Option<PathBuf>,
    /// The variables that begin with `ZVGATE__`.
    pub variables: BTreeMap<String, String>,
    /// The environment variables that name the system's trusted CAs, if any do.
    pub named_roots: Vec<&'static str>,
    /// What an operator should know of them.
    pub warnings: Vec<String>,
}

impl Sources {
    /// The file named by the command line, else by `$ZVGATE_CONFIG`, else the first of the default ones that exists and that
    /// nobody else could have written; and the process's variables.
    pub fn of_process(named: Option<&Path>) -> Self {
        #[expect(clippy::disallowed_methods, reason = "the one place where the configuration meets the environment")]
        let mut variables: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.to_string_lossy().into_owned())))
            .collect();
        let is_set = |name: &&str| variables.get(*name).is_some_and(|value| !value.is_empty());
        let named_roots = ROOTS_VARIABLES.into_iter().filter(|name| is_set(name)).collect();
        let proxies: Vec<&str> = PROXY_VARIABLES.into_iter().filter(is_set).collect();
        let mut warnings = Vec::new();
        if !proxies.is_empty() {
            warnings
                .push(format!("{} is not used; a forward proxy is configured by upstream.proxy", proxies.join(", ")));
        }
        let file = named.map(Path::to_path_buf);
        let file = file.or_else(|| variables.get(FILE_VARIABLE).map(PathBuf::from));
        let file = file.or_else(|| default_file(&mut warnings));
        variables.retain(|name, _| name.starts_with(PREFIX));
        Self { file, variables, named_roots, warnings }
    }

    /// Where a file was looked for, if there is none.
    pub fn missing_file(&self) -> Option<String> {
        let places = || DEFAULT_FILES.join(", ");
        self.file.is_none().then(|| {
            format!("no configuration file: --config and ${FILE_VARIABLE} name none, and looked for {}", places())
        })
    }

    /// Merges all layers and reads the settings. No file that they name is read.
    pub fn parse(&self) -> Parsed {
        let notes = Notes::default();
        let settings = self.merge(&notes).and_then(|merged| Settings::read(Table::root(merged, &notes)));
        let (errors, effective) = (notes.errors.into_inner(), notes.effective.into_inner());
        Parsed {
            settings: settings.map(|settings| Settings { effective, ..settings }),
            errors,
            warnings: self.warnings.clone(),
            files: notes.files.into_inner(),
            secret_files: notes.secret_files.into_inner(),
            tls_files: notes.tls_files.into_inner(),
        }
    }

    /// The settings alone.
    ///
    /// # Errors
    /// All errors, not only the first.
    pub fn settings(&self) -> Result<Settings, ConfigErrors> {
        let Parsed { settings, errors, .. } = self.parse();
        settings.filter(|_| errors.is_empty()).ok_or(ConfigErrors(errors))
    }

    fn merge(&self, notes: &Notes) -> Option<Value> {
        let mut layers = Config::builder();
        if let Some(file) = &self.file {
            match read_file(file) {
                Ok(layer) => layers = layers.add_source(layer),
                Err(error) => {
                    notes.errors.borrow_mut().push(error);
                    return None;
                }
            }
        }
        layers = layers.add_source(environment(&self.variables, notes));
        let merged = layers.build().map(|config| config.cache);
        merged.map_err(|error| notes.error(None, "configuration", error.to_string())).ok()
    }
}

/// What parsing found.
#[derive(Debug)]
pub struct Parsed {
    /// The settings, if they can be read; valid only without errors.
    pub settings: Option<Settings>,
    /// All errors.
    pub errors: Vec<ConfigError>,
    /// What an operator should know although it is valid.
    pub warnings: Vec<String>,
    /// The configuration file, if it has secrets itself.
    pub secret_files: BTreeSet<PathBuf>,
    /// Files whose contents are needed.
    pub files: Vec<FileReference>,
    /// The files of `server.tls`, and where they were given.
    pub tls_files: Option<(Option<String>, TlsFiles)>,
}

/// A file that the configuration names, to be read later.
#[derive(Clone, Debug)]
pub struct FileReference {
    /// The key that names it.
    pub key: String,
    /// The file or variable that has the key.
    pub origin: Option<String>,
    /// The file.
    pub path: PathBuf,
    /// What it holds.
    pub holds: Holds,
}

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holds {
    /// The signing key of this tenant.
    SigningKey(String),
    /// CAs that are trusted for the platform.
    TrustedCas,
    /// `user:password` for the forward proxy.
    ProxyCredentials,
    /// The password of Redis.
    RedisPassword,
    /// CAs that are trusted for Redis.
    RedisCas,
    /// Header fields for the collector of traces.
    TraceHeaders,
}

/// The first default file that exists and that nobody else could have written.
fn default_file(warnings: &mut Vec<String>) -> Option<PathBuf> {
    for path in DEFAULT_FILES.map(Path::new) {
        let Ok(metadata) = std::fs::metadata(path) else { continue };
        let problem = if metadata.mode() & 0o002 != 0 {
            "it is world-writable"
        } else if metadata.uid() != rustix::process::geteuid().as_raw() && metadata.uid() != 0 {
            "it belongs to another user"
        } else {
            return Some(path.to_path_buf());
        };
        warnings.push(format!("{} is ignored: {problem}; name it with --config if that is intended", path.display()));
    }
    None
}

/// One layer: values with their origin.
#[derive(Clone)]
struct Layer(Map<String, Value>);

/// Required by [`Source`]; the values may be keys.
impl fmt::Debug for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layer").finish_non_exhaustive()
    }
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, config::ConfigError> {
        Ok(self.0.clone())
    }
}

fn read_file(path: &Path) -> Result<Layer, ConfigError> {
    let origin = path.display().to_string();
    let invalid = |key: &str, text: String| ConfigError { origin: Some(origin.clone()), key: key.to_owned(), text };
    let text = std::fs::read_to_string(path).map_err(|error| invalid("file", format!("cannot be read: {error}")))?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        // The error's own rendering quotes the line, which may hold a key: only its position and the grammar are shown.
        let at = error.span().map_or(0, |span| span.start);
        let before = text.get(..at).unwrap_or(&text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
        invalid(&format!("line {line}, column {column}"), format!("not TOML: {}", without_values(error.message())))
    })?;
    // The merging library takes names at the top level for paths; ours are plain.
    let plain = |key: &str| key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if let Some(odd) = table.keys().find(|key| !plain(key)) {
        return Err(invalid(odd, "unknown key; expected a table such as [server]".to_owned()));
    }
    let values = table.into_iter().map(|(key, value)| (key, with_origin(value, &origin)));
    Ok(Layer(values.collect()))
}

/// A parser's message without what it quotes from the file, except for a few characters: it may be a key.
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

/// `ZVGATE__SERVER__LISTEN` is `server.listen`; every value is a string, so that no id becomes a number.
fn environment(variables: &BTreeMap<String, String>, notes: &Notes) -> Layer {
    let mut root = Map::new();
    for (name, text) in variables {
        let Some(levels) = name.strip_prefix(PREFIX) else { continue };
        let mut path: Vec<String> = levels.split("__").map(str::to_lowercase).collect();
        if let [tables, named, ..] = path.as_mut_slice()
            && matches!(tables.as_str(), "tenants" | "callers")
        {
            // Variables cannot have hyphens in their names; names of tenants and callers have no underscores.
            *named = named.replace('_', "-");
        }
        if !insert(&mut root, &path, name, text) {
            notes.error(Some("environment"), name, "is used both for a value and for a table of keys");
        }
    }
    Layer(root)
}

fn insert(table: &mut Map<String, Value>, path: &[String], name: &str, text: &str) -> bool {
    let origin = format!("{VARIABLE}{name}");
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
