//! The configuration: the reference file, every key, and every error.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a failed step is a failed test")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::Command;

use zvgate::configuration::Configuration;
use zvgate::settings::{KeySource, Settings, Sources};

const REFERENCE: &str = include_str!("../config/zvgate.toml");
const TENANT: &str = "[tenants.a]\nopen_id = \"i\"\ngrant_code = \"g\"\nopen_key = \"canary-key\"\n";

fn load(text: &str, variables: &[(&str, &str)]) -> Result<Settings, String> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let sources =
        Sources { file: Some(file.path().to_path_buf()), variables: variables.collect(), ..Sources::default() };
    let path = file.path().display().to_string();
    let loaded = Configuration::load(&sources).map(|configuration| configuration.settings);
    loaded.map_err(|errors| errors.to_string().replace(&path, "FILE"))
}

fn effective(text: &str) -> String {
    load(text, &[]).unwrap_or_else(|error| panic!("{error}")).to_toml()
}

fn errors(text: &str) -> String {
    load(text, &[]).expect_err("an error")
}

/// A caller with these permissions; with all, if `permissions` is empty.
fn caller(name: &str, permissions: &str) -> String {
    let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let permissions = if permissions.is_empty() { "tenants = [\"*\"]\nroutes = [\"*\"]" } else { permissions };
    format!("[callers.{name:?}]\nkey_sha256 = \"{hash}\"\n{permissions}\n")
}

/// The reference with every commented-out key enabled.
fn reference_with_every_key() -> String {
    let is_key = |line: &str| {
        let name = line.split([' ', '=']).next().unwrap_or_default();
        line.starts_with('[')
            || (line.contains(" = ")
                && !name.is_empty()
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'))
    };
    let enable = |line: &str| line.strip_prefix("# ").filter(|rest| is_key(rest)).unwrap_or(line).to_owned();
    REFERENCE.lines().map(|line| enable(line) + "\n").collect()
}

#[test]
fn the_reference_equals_the_built_in_defaults() {
    assert_eq!(effective(REFERENCE), Settings::defaults().unwrap().to_toml());
    assert_eq!(effective(""), Settings::defaults().unwrap().to_toml());
}

#[test]
fn the_reference_documents_every_key() {
    let keys = |text: &str| -> BTreeSet<String> {
        let lines = text.lines().take_while(|line| !line.starts_with("[["));
        lines.filter_map(|line| line.split_once(" = ")).map(|(key, _)| key.to_owned()).collect()
    };
    let shown = effective(&reference_with_every_key());
    assert!(keys(&shown).is_superset(&keys(&Settings::defaults().unwrap().to_toml())));
    // The error for an unknown key lists the known keys of its table; each must be in the reference.
    for (table, prefix) in [
        ("server", ""),
        ("upstream", ""),
        ("limits", ""),
        ("cache", ""),
        ("log", ""),
        ("budget", ""),
        ("traces", ""),
        ("cluster", ""),
        ("limits.upstream", ""),
        ("limits.caller", "rate = 1\n"),
        (
            "callers.a",
            "key_sha256 = \"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\"\ntenants = [\"*\"]\nroutes = [\"*\"]\n",
        ),
        ("tenants.a", "open_id = \"i\"\ngrant_code = \"g\"\nopen_key = \"k\"\n"),
        ("[routes]", "path = \"/a\"\nkind = \"cached\"\n"),
        ("[routes]", "path = \"/a\"\nkind = \"write\"\n"),
        ("[routes]", "path = \"/a\"\nkind = \"pass\"\n"),
    ] {
        let errors = errors(&format!("[{table}]\n{prefix}qqqqqqqqqqqq = 1\n"));
        let (_, known) = errors.split_once("known here: ").unwrap_or_else(|| panic!("{errors}"));
        for key in known.trim().split(", ") {
            let spellings =
                [format!("\n{key} = "), format!("\n# {key} = "), format!("\n## {key} = "), format!("[{table}.{key}]")];
            assert!(spellings.iter().any(|spelling| REFERENCE.contains(spelling)), "{table}.{key}");
        }
    }
}

#[test]
fn every_key_of_the_reference_is_accepted() {
    let text = reference_with_every_key();
    let shown = effective(&text);
    for line in [
        "upstream.base_url = \"https://openapi.zvcms.com\"",
        "upstream.breaker.ratio = 0.5",
        "tenants.shop.open_id = \"d14c1559e87b747d577c834b275a4310\"",
        "tenants.shop.open_key = \"***\"",
        "tenants.shop.pace.rate = 10",
        "limits.caller.burst = 2000",
        "callers.orders.key_sha256 = \"***\"",
        "callers.orders.limit.burst = 200",
        "server.admin_key_sha256 = \"***\"",
        "server.hosts = [\"zvgate.internal\"]",
        "log.hash_key_file = \"/run/secrets/zvgate/log-hash\"",
        "ttl = \"10s\"",
        "unknown_customer = \"tenant\"",
        "kind = \"pass\"",
    ] {
        assert!(shown.contains(line), "{line}\n{shown}");
    }
    for secret in ["LyvrkvkxRkG2R6aM", "a86118fa", "cc735318"] {
        assert!(!shown.contains(secret), "a key or its hash is never shown");
    }
}

#[test]
fn the_effective_configuration_can_be_loaded_again() {
    let text = "[server]\nlisten = \"[::1]:1\"\n[cache]\nttl = \"90s\"\nmax_bytes = \"1000B\"\n[upstream]\nutc_offset = \"-03:30\"\n[[routes]]\npath = \"/a/**\"\nkind = \"cached\"\npace = { rate = 3 }\n";
    let shown = effective(text);
    for line in [
        "server.listen = \"[::1]:1\"",
        "cache.ttl = \"1m30s\"",
        "cache.max_bytes = \"1000B\"",
        "upstream.utc_offset = \"-03:30\"",
    ] {
        assert!(shown.contains(line), "{line}\n{shown}");
    }
    assert_eq!(effective(&shown), shown);
}

#[test]
fn environment_variables_override_single_keys_of_the_file() {
    let file = "[limits.upstream]\nrate = 5\nper = \"2s\"\n[upstream]\nretry_codes = [\"1\"]\n";
    let settings = load(
        file,
        &[
            ("ZVGATE__LIMITS__UPSTREAM__RATE", "7"),
            ("ZVGATE__UPSTREAM__RETRY_CODES", "2, 3"),
            ("ZVGATE__TENANTS__A__OPEN_ID", "782e281"),
            ("ZVGATE__TENANTS__A__GRANT_CODE", "00123"),
            ("ZVGATE__TENANTS__A__OPEN_KEY", "true"),
            ("ZVGATE__SERVER__ALLOW_ANONYMOUS", "true"),
        ],
    )
    .unwrap();
    let shown = settings.to_toml();
    for line in [
        "limits.upstream.rate = 7",
        "limits.upstream.per = \"2s\"",
        "upstream.retry_codes = [\"2\", \"3\"]",
        "tenants.a.open_id = \"782e281\"",
        "tenants.a.grant_code = \"00123\"",
        "server.allow_anonymous = true",
    ] {
        assert!(shown.contains(line), "{line}\n{shown}");
    }
    let KeySource::Inline(key) = &settings.dynamic.tenants[0].key else { panic!("the key is inline") };
    assert_eq!(key.expose(), "true");
}

#[test]
fn every_error_names_its_key_its_value_and_what_is_expected() {
    for (text, key, expected) in [
        ("[server]\nlisten = \"here\"", "server.listen", "found \"here\"; expected an address and port"),
        ("[server]\nlisten = \"0.0.0.0:80\"", "server.listen", "allow_anonymous = true"),
        ("[server]\nworkers = 2000", "server.workers", "found 2000; expected 0 (one per core) to 1024"),
        ("[server]\nmax_connections = 0", "server.max_connections", "found 0; expected a whole number of at least 1"),
        ("[server]\nmax_body = \"much\"", "server.max_body", "found \"much\"; expected a size such as"),
        ("[server]\nheader_timeout = 5", "server.header_timeout", "found 5; expected a duration such as"),
        ("[server]\nidle_timeout = \"0s\"", "server.idle_timeout", "expected a duration greater than zero"),
        ("[server]\nallow_anonymous = 1", "server.allow_anonymous", "found 1; expected true or false"),
        (
            "[server]\nhosts = [\"a:80\"]",
            "server.hosts",
            "found a list: [found \"a:80\"]; expected names of this gateway",
        ),
        (
            "[server]\nadmin_key_sha256 = \"canary\"",
            "server.admin_key_sha256",
            "not shown; expected the SHA-256 of a key in hex",
        ),
        ("[server]\nlsten = \"a\"", "server.lsten", "did you mean server.listen?"),
        (
            "[upstream]\nbase_url = \"ftp://a\"",
            "upstream.base_url",
            "found \"ftp://a\"; expected an http or https address",
        ),
        ("[upstream]\nbase_url = \"http://platform\"", "upstream.base_url", "allow_plaintext = true"),
        ("[upstream]\nutc_offset = \"8\"", "upstream.utc_offset", "expected an offset from UTC such as"),
        ("[upstream]\nretry_codes = [110004]", "upstream.retry_codes", "expected a list of strings"),
        ("[cache]\nttl = \"-1s\"", "cache.ttl", "found \"-1s\"; expected a duration such as"),
        ("[cache]\nttl = \"9000years\"", "cache.ttl", "at most 366 days"),
        ("[limits.upstream]\nrate = -1", "limits.upstream.rate", "expected a whole number"),
        ("[limits.upstream]\nrate = 1000000", "limits.upstream.rate", "expected a rate from 0 (no limit) to 100000"),
        ("[limits.caller]\nburst = 5", "limits.caller.rate", "is missing"),
        ("[limits.caller]\nrate = 2000000000", "limits.caller.rate", "cannot be enforced"),
        ("[limits.caller]\nrate = 1\nper = \"1d\"\nburst = 300000", "limits.caller.rate", "cannot be enforced"),
        ("\"cache.ttl\" = \"5s\"", "cache.ttl", "unknown key"),
        ("[log]\naccess = \"some\"", "log.access", "found \"some\"; expected \"all\", \"errors\" or \"none\""),
        ("[cluster]\nreplicas = 0", "cluster.replicas", "expected a whole number of at least 1"),
        ("[cluster]\nreplicas = 20", "cluster.replicas", "rate 10 cannot be split among 20"),
        (
            "[cluster]\nreplicas = 3\n[limits.upstream]\nrate = 9\n[[routes]]\npath = \"/a\"\nkind = \"pass\"\npace = { rate = 2 }",
            "cluster.replicas",
            "rate 2 cannot be split among 3",
        ),
        (
            "[cluster]\nurl = \"redis://a\"\n[log]\nhash_key_file = \"/a\"",
            "cluster.replicas",
            "is missing; with cluster.url, expected how many replicas run",
        ),
        ("[cluster]\nreplicas = 3\nurl = \"redis://a\"", "cluster.url", "is given without log.hash_key_file"),
        (
            "[cluster]\nreplicas = 3\nurl = \"redis://u:canary@a\"\n[log]\nhash_key_file = \"/a\"",
            "cluster.url",
            "expected redis://HOST:PORT, rediss://HOST:PORT, both",
        ),
        (
            "[cluster]\nreplicas = 3\nurl = \"redis://u@a\"\n[log]\nhash_key_file = \"/a\"",
            "cluster.url",
            "names a user, without cluster.password_file",
        ),
        ("[cluster]\nprefix = \"a b\"", "cluster.prefix", "expected at most 64 letters, digits"),
        ("[cluster]\nlease = \"1ms\"", "cluster.lease", "expected \"0s\" (ask on every read), or \"20ms\" to \"5s\""),
        ("[cluster]\nunfenced_writes = \"no\"", "cluster.unfenced_writes", "expected \"send\" or \"refuse\""),
        ("server = 5", "server", "expected a table of keys"),
        ("routes = 5", "routes", "each begun by [[routes]]"),
        (
            "[callers.a]\ntenants = [\"*\"]\nroutes = [\"*\"]",
            "callers.a.key_sha256",
            "is missing; expected the SHA-256 of its key",
        ),
        (&caller("A B", ""), "callers.A B", "is not a valid name"),
        (
            &caller("a", "tenants = [\"nobody\"]\nroutes = [\"*\"]"),
            "callers.a.tenants",
            "names a tenant that is not configured",
        ),
        (
            &caller("a", "tenants = [\"*\"]\nroutes = [\"/v9/a\"]"),
            "callers.a.routes",
            "names a path that no route serves",
        ),
        (&caller("a", "tenants = [\"*\"]"), "callers.a.routes", "is missing; expected the paths that it may use"),
        (&caller("a", "routes = [\"*\"]"), "callers.a.tenants", "is missing; expected the tenants that it may use"),
        (&(caller("a", "") + &caller("b", "")), "callers.b.key_sha256", "contains a key of callers.a"),
        ("[[routes]]\nkind = \"pass\"", "routes[0].path", "is missing"),
        ("[[routes]]\npath = \"/a\"", "routes[0].kind", "is missing; expected \"cached\", \"write\""),
        ("[[routes]]\npath = \"/a/../b\"\nkind = \"pass\"", "routes[0].path", "expected a path such as"),
        (
            "[[routes]]\npath = \"/a\"\nkind = \"pass\"\n[[routes]]\npath = \"/a\"\nkind = \"pass\"",
            "routes[1].path",
            "is duplicated",
        ),
        ("[[routes]]\npath = \"/a\"\nkind = \"pass\"\nttl = \"1s\"", "routes[0].ttl", "unknown key"),
        ("[[routes]]\npath = \"/a\"\nkind = \"cached\"\ncustomer = [\"id\"]", "routes[0].customer", "JSON pointers"),
        ("[tenants.A_B]\nopen_id = \"i\"\ngrant_code = \"g\"\nopen_key = \"k\"", "tenants.A_B", "is not a valid name"),
        ("[tenants.a]\ngrant_code = \"g\"\nopen_key = \"k\"", "tenants.a.open_id", "is missing"),
        ("[tenants.a]\nopen_id = \"i\"\ngrant_code = \"g\"", "tenants.a.open_key", "is missing"),
        (
            "[tenants.a]\nopen_id = \"i\"\ngrant_code = \"g\"\nopen_key_file = \"/nowhere\"",
            "tenants.a.open_key_file",
            "cannot be read",
        ),
    ] {
        let text: &str = text;
        let shown = errors(text);
        assert!(shown.starts_with(&format!("FILE: {key}: ")), "{text}\n{shown}");
        assert!(shown.contains(expected), "{text}\n{shown}");
        assert_eq!(shown.lines().count(), 1, "{shown}");
    }
}

#[test]
fn conflicts_between_tenants_are_reported() {
    let two_tenants =
        |more: &str| format!("{TENANT}default = true\n[tenants.b]\nopen_id = \"i\"\nopen_key = \"k\"\n{more}");
    assert!(errors(&two_tenants("grant_code = \"g\"\n")).contains("tenants.b.open_id: has the identity of tenants.a"));
    assert!(
        errors(&two_tenants("grant_code = \"h\"\ndefault = true\n"))
            .contains("tenants.b.default: tenants.a is already the default")
    );
    let both = format!("{TENANT}open_key_file = \"/a\"\n");
    assert!(errors(&both).contains("tenants.a.open_key: is given together with open_key_file"));
}

#[test]
fn all_errors_are_reported_together() {
    let text = "[server]\nlisten = \"x\"\nnonsense = 1\n[cache]\nttl = 3\n[tenants.a]\nopen_id = 5\n";
    let shown = load(text, &[("ZVGATE__LOG__LEVEL", "loud"), ("ZVGATE__", "1")]).unwrap_err();
    for part in [
        "server.listen",
        "server.nonsense",
        "cache.ttl",
        "tenants.a.open_id",
        "tenants.a.grant_code",
        "tenants.a.open_key",
        "environment variable ZVGATE__LOG__LEVEL: log.level: found \"loud\"",
        "environment variable ZVGATE__: ",
    ] {
        assert!(shown.contains(part), "{part}\n{shown}");
    }
}

/// Neither values under `tenants` and `callers` nor misplaced keys appear in an error.
#[test]
fn no_error_contains_a_secret() {
    for text in [
        "[tenants.a]\nopen_id = \"canary\"\ngrant_code = [\"canary\"]\nopen_key = { canary = \"canary\" }",
        "[tenants.a]\nopen_id = \"i\"\ngrant_code = \"g\"\nopen_key = [\"canary\"]",
        "[tenants.a]\nopen_id = \"i\"\ngrant_code = \"g\"\nopenkey = \"canary\"",
        "[tenants.a]\nopen_key = \"canary",
        "[upstream]\nopenKey = \"canary\"",
        "OPEN-KEY = \"canary\"",
        "[tenants.a]\nopen_key = canary\n",
        "[tenants.a]\nopen_key = \"canary\"\nopen_key = \"canary\"",
        "[tenants.a]\nopen_key = \"\\qcanary\"",
        "[upstream]\nopen_key = \"canary\"",
        "open_key = \"canary\"",
        "tenants = \"canary\"",
        "tenants = [\"canary\"]",
        "[tenants]\na = \"canary\"",
        "[tenants.a.pace]\nrate = \"canary\"",
        "[callers.a]\nkey_sha256 = \"canary\"\ntenants = [\"canary\"]\nroutes = [\"canary\"]\ninvalidate = \"canary\"",
        "[callers.a]\nkey = \"canary\"",
        "[callers.a.limit]\nrate = \"canary\"",
        "callers = \"canary\"",
    ] {
        let shown = errors(text).replace("tenants.a.open_key.canary", "");
        assert!(!shown.contains("canary"), "{text}\n{shown}");
        assert!(shown.starts_with("FILE: "), "{shown}");
    }
    for number in
        ["99999999999999999999999999999999999999999", "99999999999999999999", "0x7fffffffffffffffffffffff", "9.9.9"]
    {
        let shown = errors(&format!("[tenants.a]\nopen_key = {number}\n"));
        assert!(!shown.contains("9999") && !shown.contains("7fff") && !shown.contains("9.9"), "{number}\n{shown}");
    }
    let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    for mistyped in ["admin_sha256", "admin_kye_sha", "adminn"] {
        let shown = errors(&format!("[server]\n{mistyped} = \"{hash}\"\n"));
        assert!(!shown.contains("ba7816") && shown.contains(mistyped), "{shown}");
    }
    let shown = load("", &[("ZVGATE__TENANTS__A", "canary"), ("ZVGATE__TENANTS__B__OPEN_KEYS", "canary")]).unwrap_err();
    assert!(!shown.contains("canary"), "{shown}");
}

#[test]
fn invalid_toml_is_reported_with_line_and_column() {
    assert!(errors("[server]\nlisten = \n").starts_with("FILE: line 2, column "));
    let missing = Sources { file: Some("/nowhere/zvgate.toml".into()), ..Sources::default() };
    assert!(missing.settings().unwrap_err().to_string().starts_with("/nowhere/zvgate.toml: file: cannot be read"));
}

fn check(folder: &std::path::Path, arguments: &[&str], variables: &BTreeMap<&str, &str>) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zvgate"));
    let output = command.arg("check").args(arguments).current_dir(folder).env_clear().envs(variables).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_default_file_is_loaded_unless_it_is_world_writable() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let none = BTreeMap::new();
    assert!(check(folder.path(), &[], &none).1.contains("cache.ttl = \"30s\""));
    let default_file = folder.path().join("config/zvgate.toml");
    std::fs::create_dir(folder.path().join("config")).unwrap();
    std::fs::write(&default_file, "[cache]\nttl = \"7s\"\n").unwrap();
    assert!(check(folder.path(), &[], &none).1.contains("cache.ttl = \"7s\""));
    std::fs::set_permissions(&default_file, std::fs::Permissions::from_mode(0o666)).unwrap();
    let (code, shown, stderr) = check(folder.path(), &[], &none);
    assert_eq!((code, shown.contains("cache.ttl = \"30s\"")), (2, true));
    assert!(stderr.contains("world-writable"), "{stderr}");
    assert!(check(folder.path(), &["--config", "config/zvgate.toml"], &none).1.contains("cache.ttl = \"7s\""));
    let other = folder.path().join("other.toml");
    std::fs::write(&other, "[cache]\nttl = \"9s\"\n").unwrap();
    let named = BTreeMap::from([("ZVGATE_CONFIG", other.to_str().unwrap())]);
    assert!(check(folder.path(), &[], &named).1.contains("cache.ttl = \"9s\""));
    assert!(check(folder.path(), &["--config", "config/zvgate.toml"], &named).1.contains("cache.ttl = \"7s\""));
}

#[test]
fn check_exits_2_for_an_invalid_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let wrong = BTreeMap::from([("ZVGATE__CACHE__TTL", "soon"), ("ZVGATE__NONSENSE", "1")]);
    let (code, shown, stderr) = check(folder.path(), &[], &wrong);
    assert_eq!((code, shown.as_str()), (2, ""));
    assert!(stderr.contains("ZVGATE__CACHE__TTL: cache.ttl: found \"soon\""), "{stderr}");
    assert!(stderr.contains("ZVGATE__NONSENSE: nonsense: unknown key"), "{stderr}");
    assert_eq!(check(folder.path(), &["--live"], &BTreeMap::new()).0, 2);
}

#[test]
fn check_exits_2_wherever_serve_does() {
    let folder = tempfile::tempdir().unwrap();
    let complete = BTreeMap::from([
        ("ZVGATE__UPSTREAM__BASE_URL", "https://platform"),
        ("ZVGATE__TENANTS__A__OPEN_ID", "i"),
        ("ZVGATE__TENANTS__A__GRANT_CODE", "g"),
        ("ZVGATE__TENANTS__A__OPEN_KEY", "k"),
    ]);
    assert_eq!(check(folder.path(), &[], &complete).0, 0);
    let with = |name, value| complete.iter().map(|(n, v)| (*n, *v)).chain([(name, value)]).collect();
    let without = |part: &str| complete.iter().map(|(n, v)| (*n, *v)).filter(|(n, _)| !n.contains(part)).collect();
    let cases: [(BTreeMap<&str, &str>, &str); 4] = [
        (without("BASE_URL"), "upstream.base_url"),
        (without("TENANTS"), "tenants.NAME.open_id"),
        (with("ZVGATE__LOG__HASH_KEY_FILE", "/nowhere"), "log.hash_key_file: /nowhere: "),
        (with("ZVGATE__UPSTREAM__BASE_URL", "https://*"), "upstream.base_url: "),
    ];
    for (variables, named) in cases {
        let (code, _, stderr) = check(folder.path(), &[], &variables);
        assert!(code == 2 && stderr.contains(named), "{named}: {code} {stderr}");
        let mut serve = Command::new(env!("CARGO_BIN_EXE_zvgate"));
        let serve = serve.arg("serve").current_dir(folder.path()).env_clear().envs(&variables).output().unwrap();
        assert!(serve.status.code() == Some(2) && String::from_utf8_lossy(&serve.stderr).contains(named), "{serve:?}");
    }
}

/// Kubernetes sets these for a Service named `zvgate`.
#[test]
fn service_variables_of_kubernetes_are_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let variables = BTreeMap::from([
        ("ZVGATE_PORT", "tcp://10.0.0.1:8080"),
        ("ZVGATE_SERVICE_HOST", "10.0.0.1"),
        ("ZVGATE_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("ZVGATE__UPSTREAM__BASE_URL", "https://platform"),
        ("ZVGATE__TENANTS__A__OPEN_ID", "i"),
        ("ZVGATE__TENANTS__A__GRANT_CODE", "g"),
        ("ZVGATE__TENANTS__A__OPEN_KEY", "k"),
    ]);
    assert_eq!(check(folder.path(), &[], &variables).0, 0);
}

#[test]
fn commands_whose_output_cannot_be_written_exit_1() {
    let folder = tempfile::tempdir().unwrap();
    let complete = [
        ("ZVGATE__UPSTREAM__BASE_URL", "https://platform"),
        ("ZVGATE__TENANTS__A__OPEN_ID", "i"),
        ("ZVGATE__TENANTS__A__GRANT_CODE", "g"),
        ("ZVGATE__TENANTS__A__OPEN_KEY", "k"),
    ];
    for arguments in [&["key"][..], &["sign"], &["check"], &["--help"], &["--version"], &[]] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_zvgate"));
        command.args(arguments).current_dir(folder.path()).env_clear().envs(complete).stdout(full);
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
        assert!(stderr.contains("standard output"), "{arguments:?}: {stderr}");
    }
}

#[test]
fn an_empty_callers_table_still_requires_loopback() {
    let errors = errors("[server]\nlisten = \"0.0.0.0:1\"\n[callers]\n");
    assert!(errors.contains("server.listen: 0.0.0.0:1 is not a loopback address"), "{errors}");
}

#[test]
fn underscores_in_variables_stand_for_hyphens_in_names() {
    let caller = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let variables = [
        ("ZVGATE__TENANTS__MY_SHOP__OPEN_ID", "i"),
        ("ZVGATE__TENANTS__MY_SHOP__GRANT_CODE", "g"),
        ("ZVGATE__TENANTS__MY_SHOP__OPEN_KEY", "k"),
        ("ZVGATE__CALLERS__THE_APP__KEY_SHA256", caller),
        ("ZVGATE__CALLERS__THE_APP__TENANTS", "my-shop"),
        ("ZVGATE__CALLERS__THE_APP__ROUTES", "*"),
    ];
    let settings = load("", &variables).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(settings.dynamic.tenants[0].name, "my-shop");
    assert_eq!(settings.dynamic.callers[0].name, "the-app");
}

#[test]
fn paths_in_a_file_are_relative_to_it_and_those_in_variables_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    std::fs::create_dir(place("keys")).unwrap();
    std::fs::write(place("keys/shop"), "canary-key").unwrap();
    let tenant = "[tenants.a]\nopen_id = \"i\"\ngrant_code = \"g\"\nopen_key_file = \"keys/shop\"\n";
    std::fs::write(place("zvgate.toml"), tenant).unwrap();
    let sources = Sources { file: Some(place("zvgate.toml")), ..Sources::default() };
    let settings = Configuration::load(&sources).map(|loaded| loaded.settings).unwrap();
    let KeySource::File(path) = &settings.dynamic.tenants[0].key else { panic!("a file") };
    assert_eq!(*path, place("keys/shop"));
    let variables = [("ZVGATE__TENANTS__A__OPEN_KEY_FILE".to_owned(), "keys/nowhere".to_owned())].into();
    let errors = Configuration::load(&Sources { variables, ..sources }).err().unwrap().to_string();
    assert!(errors.contains("names keys/nowhere, which cannot be read: No such file"), "{errors}");
}

#[test]
fn the_first_safe_default_file_is_read_and_an_error_lists_where_it_was_looked_for() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    let (code, _, err) = check(folder.path(), &[], &BTreeMap::new());
    assert_eq!(code, 2);
    for looked_for in ["--config", "$ZVGATE_CONFIG", "./zvgate.toml", "config/zvgate.toml", "/etc/zvgate/zvgate.toml"] {
        assert!(err.contains(looked_for), "{err}");
    }
    std::fs::create_dir(place("config")).unwrap();
    for (file, ttl) in [("config/zvgate.toml", 11), ("zvgate.toml", 12)] {
        std::fs::write(place(file), format!("[cache]\nttl = \"{ttl}s\"\n")).unwrap();
        std::fs::set_permissions(place(file), PermissionsExt::from_mode(0o600)).unwrap();
        let (_, out, _) = check(folder.path(), &[], &BTreeMap::new());
        assert!(out.contains(&format!("cache.ttl = \"{ttl}s\"")), "{out}");
    }
    std::fs::set_permissions(place("zvgate.toml"), PermissionsExt::from_mode(0o602)).unwrap();
    let (_, out, err) = check(folder.path(), &[], &BTreeMap::new());
    assert!(
        out.contains("cache.ttl = \"11s\"") && err.contains("./zvgate.toml is ignored: it is world-writable"),
        "{err}"
    );
}

#[test]
fn keys_and_identities_with_invisible_characters_are_rejected_without_showing_them() {
    for bad in ["\u{feff}canary", "canary\u{200b}", "can\u{a0}ary", "'canary'"] {
        for key in ["open_id", "grant_code", "open_key"] {
            let values = [("open_id", "i"), ("grant_code", "g"), ("open_key", "k")];
            let line =
                |(name, value): (&str, &str)| format!("{name} = \"{}\"\n", if name == key { bad } else { value });
            let text = format!("[tenants.a]\n{}", values.map(line).concat());
            let errors = load(&text, &[]).err().unwrap_or_else(|| panic!("{text}"));
            assert!(errors.contains(&format!("tenants.a.{key}")) && !errors.contains("canary"), "{errors}");
        }
    }
    let quoted = "[tenants.a]\nopen_id = '\"i\"'\ngrant_code = \"g\"\nopen_key = \"k\"\n";
    assert!(load(quoted, &[]).is_err());
}

#[test]
fn secrets_that_others_can_see_are_warned_of() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    std::fs::write(place("key"), "canary-key").unwrap();
    let base = "[upstream]\nbase_url = \"http://127.0.0.1:1\"\n";
    let tenant = "[tenants.a]\nopen_id = \"i\"\ngrant_code = \"g\"\n";
    let check_with = |text: &str, mode: u32| {
        std::fs::write(place("zvgate.toml"), format!("{text}{base}{tenant}open_key_file = \"key\"\n")).unwrap();
        std::fs::set_permissions(place("key"), PermissionsExt::from_mode(mode)).unwrap();
        check(folder.path(), &["--config", "zvgate.toml"], &BTreeMap::new())
    };
    assert_eq!(check_with("", 0o640).2, "");
    let (code, _, err) = check_with("", 0o644);
    assert!(code == 0 && err.contains("key holds a secret") && !err.contains("canary"), "{err}");
    let listen = format!("[server]\nlisten = \"0.0.0.0:1\"\n{}", caller("a", ""));
    let (code, _, err) = check_with(&listen, 0o600);
    assert!(code == 0 && err.contains("in plain text"), "{err}");
}
