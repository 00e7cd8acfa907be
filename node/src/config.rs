//! A node's settings: flags over environment over file over defaults, then checked as a whole.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use onlyonce_replica::{CHECKPOINT_BYTES, Duplicates, LOG_PIN_BYTES, LOG_TAIL_BYTES, Timing};
use onlyonce_storage::limits::OVERLAY_BYTES_MAX;
use onlyonce_wire::limits::{NAME_BYTES_MAX, REPLICAS_MAX};
use serde::{Deserialize, Serialize};

use crate::args::{DuplicatesPlace, ServeArgs};
use crate::authority::etcd::{EtcdAddress, SCHEME};
use crate::exit::ExitError;

macro_rules! settings {
    ($($(#[$doc:meta])* $key:ident: $type:ty,)*) => {
        /// One source of settings: what it does not set is none.
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct Settings {
            $($(#[$doc])* #[serde(skip_serializing_if = "Option::is_none")] pub $key: Option<$type>,)*
        }

        impl Settings {
            /// Every key.
            pub(crate) const KEYS: &[&str] = &[$(stringify!($key)),*];

            /// These settings, and those of `lower` where these are silent.
            pub fn or(self, lower: Self) -> Self {
                Self { $($key: self.$key.or(lower.$key),)* }
            }

            /// What the environment sets, as `ONCED_<KEY>`.
            pub fn from_environment(
                lookup: impl Fn(&str) -> Option<String>,
            ) -> Result<Self, ExitError> {
                Ok(Self { $($key: read_variable(stringify!($key), &lookup)?,)* })
            }
        }
    };
}

settings! {
    /// The data folder.
    data: PathBuf,
    /// The node's name.
    name: String,
    /// Where clients connect.
    listen: String,
    /// Where other nodes connect.
    peer: String,
    /// Where HTTP is served.
    http: String,
    /// The authority's address.
    authority: String,
    /// Whether an empty register makes a new cluster.
    bootstrap: bool,
    /// The fewest copies with which anything is committed.
    min_copies: usize,
    /// How log lines look.
    log_format: LogFormat,
    /// What clients are told to connect to, where it is not `listen`.
    advertise_client: String,
    /// What other nodes are told to connect to, where it is not `peer`.
    advertise_peer: String,
    /// How long a session may be idle.
    session_idle_ms: u64,
    /// How long idempotency keys are remembered.
    key_retention_ms: u64,
    /// Between two heartbeats.
    heartbeat_ms: u64,
    /// How long an echoed heartbeat lets the primary answer reads.
    lease_ms: u64,
    /// How long a node that hears no primary waits before it proposes itself.
    grace_ms: u64,
    /// How long an append may stay unacknowledged before its backup is dropped.
    append_timeout_ms: u64,
    /// How long a flush may take before the process stops.
    flush_timeout_ms: u64,
    /// The cache of the tables.
    cache_bytes: u64,
    /// How many committed bytes make a checkpoint due.
    checkpoint_bytes: usize,
    /// The longest time between two checkpoints while there is something to fold.
    checkpoint_interval_ms: u64,
    /// How long the scrub of the tables rests after each piece.
    scrub_pause_ms: u64,
    /// How much of the log stays below the checkpoint, for nodes that come back.
    log_tail_bytes: usize,
    /// How much of it stays for a learner that is catching up.
    log_pin_bytes: usize,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(format!("{other:?} is not a log format: use text or json")),
        }
    }
}

fn read_variable<T: FromStr<Err: fmt::Display>>(
    key: &str,
    lookup: &impl Fn(&str) -> Option<String>,
) -> Result<Option<T>, ExitError> {
    let name = format!("ONCED_{}", key.to_uppercase());
    let Some(text) = lookup(&name).filter(|text| !text.is_empty()) else { return Ok(None) };
    text.parse().map(Some).map_err(|error: T::Err| {
        ExitError::Usage(format!("environment variable {name}={text:?}: {error}"))
    })
}

/// Variables that are no settings of a node.
const OTHER_VARIABLES: [&str; 5] =
    ["ONCED_CONFIG", "ONCED_LOG", "ONCED_FAULTS", "ONCED_AUTHORITY_DATA", "ONCED_AUTHORITY_LISTEN"];

/// Those of `names` that look like variables of this program and are none.
pub fn unknown_variables(names: impl Iterator<Item = String>) -> Vec<String> {
    let known = |name: &str| {
        let is_key = |key: &&str| name == format!("ONCED_{}", key.to_uppercase());
        OTHER_VARIABLES.contains(&name) || Settings::KEYS.iter().any(is_key)
    };
    let mut unknown: Vec<_> =
        names.filter(|name| name.starts_with("ONCED_") && !known(name)).collect();
    unknown.sort_unstable();
    unknown
}

impl Settings {
    /// What holds where nothing else is said.
    pub fn defaults() -> Self {
        let timing = Timing::default();
        Self {
            listen: Some("127.0.0.1:7400".to_owned()),
            peer: Some("127.0.0.1:7500".to_owned()),
            http: Some("127.0.0.1:7600".to_owned()),
            bootstrap: Some(false),
            min_copies: Some(1),
            log_format: Some(LogFormat::Text),
            session_idle_ms: Some(milliseconds(timing.session_idle)),
            key_retention_ms: Some(milliseconds(timing.key_retention)),
            heartbeat_ms: Some(milliseconds(timing.heartbeat)),
            lease_ms: Some(milliseconds(timing.lease)),
            grace_ms: Some(milliseconds(timing.grace)),
            append_timeout_ms: Some(milliseconds(timing.append_timeout)),
            flush_timeout_ms: Some(10_000),
            cache_bytes: Some(256 << 20),
            checkpoint_bytes: Some(CHECKPOINT_BYTES),
            checkpoint_interval_ms: Some(milliseconds(timing.checkpoint_interval)),
            scrub_pause_ms: Some(1_000),
            log_tail_bytes: Some(LOG_TAIL_BYTES),
            log_pin_bytes: Some(LOG_PIN_BYTES),
            ..Self::default()
        }
    }

    /// Reads a TOML file.
    pub fn from_file(path: &Path) -> Result<Self, ExitError> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            ExitError::Usage(format!("cannot read the config file {}: {error}", path.display()))
        })?;
        toml::from_str(&text).map_err(|error| {
            let line = error.span().map_or(1, |span| {
                1 + text.bytes().take(span.start).filter(|byte| *byte == b'\n').count()
            });
            ExitError::Usage(format!("{}:{line}: {}", path.display(), error.message()))
        })
    }

    /// The settings of a process: `args` over the environment over the file over the defaults.
    pub fn effective(
        args: &ServeArgs,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ExitError> {
        let file = match &args.config {
            Some(path) => Self::from_file(path)?,
            None => Self::default(),
        };
        let settings = args.settings().or(Self::from_environment(lookup)?).or(file);
        Ok(settings.or(Self::defaults()))
    }
}

fn milliseconds(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

/// Where the authority is, and of which kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthorityAddress {
    /// `onced authority`, at HOST:PORT.
    Embedded(String),
    /// A key of an etcd cluster.
    Etcd(EtcdAddress),
}

/// Settings that were checked and make sense together.
#[derive(Clone, Debug)]
pub struct ServeConfig {
    pub data: PathBuf,
    pub name: String,
    pub listen: String,
    pub peer: String,
    pub http: String,
    pub authority: Option<AuthorityAddress>,
    pub bootstrap: bool,
    pub min_copies: usize,
    pub advertise_client: Option<String>,
    pub advertise_peer: Option<String>,
    pub timing: Timing,
    pub flush_timeout: Duration,
    pub cache_bytes: u64,
    pub checkpoint_bytes: usize,
    pub scrub_pause: Duration,
    pub log_tail_bytes: usize,
    pub log_pin_bytes: usize,
    pub duplicates: Duplicates,
}

impl ServeConfig {
    /// Checks `settings`, which must hold every default.
    pub fn check(settings: Settings) -> Result<Self, ExitError> {
        let wanted = |flag: &str| {
            let variable = flag.to_uppercase();
            ExitError::Usage(format!(
                "--{flag} is needed (or ONCED_{variable}, or {flag} in the config file)"
            ))
        };
        let timing = timing(&settings)?;
        let scrub_pause = period("scrub_pause_ms", settings.scrub_pause_ms)?;
        let config = Self {
            timing,
            scrub_pause,
            data: settings.data.ok_or_else(|| wanted("data"))?,
            name: settings.name.ok_or_else(|| wanted("name"))?,
            listen: settings.listen.ok_or_else(|| wanted("listen"))?,
            peer: settings.peer.ok_or_else(|| wanted("peer"))?,
            http: settings.http.ok_or_else(|| wanted("http"))?,
            authority: settings.authority.as_deref().map(authority_address).transpose()?,
            bootstrap: settings.bootstrap.unwrap_or_default(),
            min_copies: settings.min_copies.unwrap_or(1),
            advertise_client: settings.advertise_client,
            advertise_peer: settings.advertise_peer,
            flush_timeout: Duration::from_millis(settings.flush_timeout_ms.unwrap_or_default()),
            cache_bytes: settings.cache_bytes.unwrap_or_default(),
            checkpoint_bytes: settings.checkpoint_bytes.unwrap_or_default(),
            log_tail_bytes: settings.log_tail_bytes.unwrap_or_default(),
            log_pin_bytes: settings.log_pin_bytes.unwrap_or_default(),
            duplicates: Duplicates::Durable,
        };
        config.check_names()?;
        config.check_sizes()?;
        Ok(config)
    }

    /// Adds what only a flag can ask for, so that no file or variable does it by accident.
    pub fn demonstrating(self, args: &ServeArgs) -> Result<Self, ExitError> {
        let duplicates = match args.duplicates {
            None | Some(DuplicatesPlace::Durable) => Duplicates::Durable,
            Some(DuplicatesPlace::Memory) => Duplicates::Memory,
        };
        let refused = match (duplicates, args.unsafe_demo) {
            (Duplicates::Durable, true) => Some("--unsafe-demo is for --duplicates memory alone"),
            (Duplicates::Memory, false) => Some(
                "--duplicates memory makes requests run twice after a restart: \
                 it is a demonstration, and needs --unsafe-demo",
            ),
            (Duplicates::Memory, true) if self.authority.is_some() => Some(
                "--duplicates memory is a demonstration with one node alone: leave --authority out",
            ),
            (Duplicates::Durable, false) | (Duplicates::Memory, true) => None,
        };
        match refused {
            Some(text) => Err(ExitError::Usage(text.to_owned())),
            None => Ok(Self { duplicates, ..self }),
        }
    }

    fn check_names(&self) -> Result<(), ExitError> {
        let name = &self.name;
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(char::is_whitespace) {
            return Err(ExitError::Usage(format!(
                "--name {name:?}: a name has 1 to {NAME_BYTES_MAX} bytes and no spaces"
            )));
        }
        check_address("--listen", &self.listen)?;
        check_address("--peer", &self.peer)?;
        check_address("--http", &self.http)?;
        if let Some(address) = &self.advertise_client {
            check_address("advertise_client", address)?;
        }
        if let Some(address) = &self.advertise_peer {
            check_address("advertise_peer", address)?;
        }
        match &self.authority {
            None if self.bootstrap => Err(ExitError::Usage(
                "--bootstrap makes a cluster and needs --authority; \
                 a node alone needs neither"
                    .to_owned(),
            )),
            Some(_) | None => Ok(()),
        }
    }

    fn check_sizes(&self) -> Result<(), ExitError> {
        let copies = self.min_copies;
        if !(1..=REPLICAS_MAX).contains(&copies) {
            return Err(ExitError::Usage(format!(
                "--min-copies {copies}: a view has 1 to {REPLICAS_MAX} copies"
            )));
        }
        if copies > 1 && self.authority.is_none() {
            return Err(ExitError::Usage(format!(
                "--min-copies {copies}: a node alone is one copy and would never commit; \
                 give --authority"
            )));
        }
        if self.flush_timeout < Duration::from_millis(100) {
            return Err(ExitError::Usage(format!(
                "flush_timeout_ms = {}: at least 100 is needed, or a healthy disk stops the node",
                milliseconds(self.flush_timeout)
            )));
        }
        for (key, bytes, least) in [
            ("cache_bytes", self.cache_bytes, 1 << 20),
            ("checkpoint_bytes", self.checkpoint_bytes as u64, 64 << 10),
        ] {
            if bytes < least {
                return Err(ExitError::Usage(format!("{key} = {bytes}: at least {least}")));
            }
        }
        if self.checkpoint_bytes >= OVERLAY_BYTES_MAX / 2 {
            return Err(ExitError::Usage(format!(
                "checkpoint_bytes = {}: it must be less than half of OVERLAY_BYTES_MAX = \
                 {OVERLAY_BYTES_MAX}, at which requests are refused until a checkpoint has ended",
                self.checkpoint_bytes
            )));
        }
        Ok(())
    }
}

/// The authority that `text` names.
pub fn authority_address(text: &str) -> Result<AuthorityAddress, ExitError> {
    if text.starts_with(SCHEME) {
        let address = text.parse().map_err(|error| {
            ExitError::Usage(format!(
                "--authority {text:?} is not etcd://HOST:PORT,HOST:PORT/NAME: {error}"
            ))
        })?;
        return Ok(AuthorityAddress::Etcd(address));
    }
    check_address("--authority", text)?;
    Ok(AuthorityAddress::Embedded(text.to_owned()))
}

fn period(key: &str, milliseconds: Option<u64>) -> Result<Duration, ExitError> {
    match milliseconds {
        Some(1..=86_400_000) => Ok(Duration::from_millis(milliseconds.unwrap_or_default())),
        Some(other) => Err(ExitError::Usage(format!("{key} = {other}: must be 1 to 86400000"))),
        None => Err(ExitError::Usage(format!("{key} is needed"))),
    }
}

fn timing(settings: &Settings) -> Result<Timing, ExitError> {
    let grace = period("grace_ms", settings.grace_ms)?;
    let timing = Timing {
        heartbeat: period("heartbeat_ms", settings.heartbeat_ms)?,
        lease: period("lease_ms", settings.lease_ms)?,
        grace,
        grace_jitter: grace / 4,
        append_timeout: period("append_timeout_ms", settings.append_timeout_ms)?,
        session_idle: period("session_idle_ms", settings.session_idle_ms)?,
        key_retention: period("key_retention_ms", settings.key_retention_ms)?,
        checkpoint_interval: period("checkpoint_interval_ms", settings.checkpoint_interval_ms)?,
        ..Timing::default()
    };
    if timing.is_safe() {
        return Ok(timing);
    }
    Err(ExitError::Usage(format!(
        "heartbeat_ms = {}, lease_ms = {}, grace_ms = {} are unsafe together: two heartbeats must \
         fit into a lease, and a grace must be over 2.1 % longer than a lease, \
         or a lease could outlive the grace on clocks that drift",
        milliseconds(timing.heartbeat),
        milliseconds(timing.lease),
        milliseconds(timing.grace),
    )))
}

/// Checks that `address`, given as `what`, is HOST:PORT; an IPv6 host stands in brackets.
pub fn check_address(what: &str, address: &str) -> Result<(), ExitError> {
    let is_name_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let is_host = |host: &str| match host.strip_prefix('[').and_then(|host| host.strip_suffix(']'))
    {
        Some(host) => host.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(is_name_byte),
    };
    let is_port =
        |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    let valid = address.len() <= NAME_BYTES_MAX
        && address.rsplit_once(':').is_some_and(|(host, port)| is_host(host) && is_port(port));
    if valid {
        return Ok(());
    }
    Err(ExitError::Usage(format!("{what} {address:?} is not HOST:PORT, such as 127.0.0.1:7400")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(name: &str) -> ServeArgs {
        ServeArgs {
            data: Some("/data".into()),
            name: Some(name.to_owned()),
            ..ServeArgs::default()
        }
    }

    fn usage(settings: Settings) -> String {
        match ServeConfig::check(settings) {
            Err(ExitError::Usage(text)) => text,
            other => panic!("taken: {other:?}"),
        }
    }

    /// A flag wins over the environment, that over the file, that over the default.
    #[test]
    fn precedence() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("onced.toml");
        let text = "name = 'file'\nlisten = 'file:1'\nlease_ms = 300\ncache_bytes = 7";
        std::fs::write(&file, text).expect("written");
        let args = ServeArgs { config: Some(file), ..flags("flag") };
        let environment = |name: &str| match name {
            "ONCED_NAME" => Some("environment".to_owned()),
            "ONCED_LISTEN" => Some("environment:2".to_owned()),
            "ONCED_CACHE_BYTES" => Some(String::new()),
            _ => None,
        };
        let settings = Settings::effective(&args, environment).expect("settings");
        assert_eq!(settings.name.as_deref(), Some("flag"));
        assert_eq!(settings.listen.as_deref(), Some("environment:2"));
        assert_eq!(settings.lease_ms, Some(300));
        assert_eq!(settings.cache_bytes, Some(7), "an empty variable sets nothing");
        assert_eq!(settings.peer.as_deref(), Some("127.0.0.1:7500"));
    }

    /// What `--print-config` prints can be read again.
    #[test]
    fn printed_settings_are_a_config_file() {
        let settings = flags("n1").settings().or(Settings::defaults());
        let text = toml::to_string(&settings).expect("toml");
        assert_eq!(toml::from_str::<Settings>(&text).expect("read again"), settings);
    }

    /// An unknown key is an error that names the key and its line; a bad variable names itself.
    #[test]
    fn mistakes_are_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("onced.toml");
        std::fs::write(&file, "name = 'n1'\nlease_msec = 3\n").expect("written");
        let Err(ExitError::Usage(text)) = Settings::from_file(&file) else { panic!("taken") };
        assert!(text.contains(":2: ") && text.contains("lease_msec"), "{text}");

        let lookup = |name: &str| (name == "ONCED_LEASE_MS").then(|| "soon".to_owned());
        let Err(ExitError::Usage(text)) = Settings::from_environment(lookup) else {
            panic!("taken")
        };
        assert!(text.contains("ONCED_LEASE_MS") && text.contains("soon"), "{text}");
    }

    /// An address is a host and a port and nothing else.
    #[test]
    fn addresses_are_checked() {
        for good in ["127.0.0.1:0", "localhost:7300", "my-host.example_net:1", "[::1]:7300"] {
            check_address("--listen", good).expect(good);
        }
        let bad = [
            "",
            "7300",
            ":7300",
            "h:",
            "h:+1",
            "h:70000",
            "authority=h:1",
            "::1:7300",
            "a b:1",
            "[x]:1",
        ];
        for bad in bad {
            let error = check_address("--listen", bad).expect_err(bad).to_string();
            assert!(error.contains("not HOST:PORT"), "{error}");
        }
    }

    /// A variable that nothing reads is named; those of other programs are not.
    #[test]
    fn unknown_variables_are_named() {
        let names = ["ONCED_LEASE_MS", "ONCED_LOG", "ONCED_LEASE", "ONCE_DIR", "HOME", "ONCED_A"];
        let unknown = unknown_variables(names.into_iter().map(str::to_owned));
        assert_eq!(unknown, ["ONCED_A", "ONCED_LEASE"]);
    }

    /// That requests run twice must be asked for by two flags, and on a node alone.
    #[test]
    fn the_unsafe_demonstration_is_fenced() {
        let demonstrating = |args: &ServeArgs| {
            let settings = args.settings().or(Settings::defaults());
            let config = ServeConfig::check(settings).expect("good settings").demonstrating(args);
            config.map(|config| config.duplicates).map_err(|error| error.to_string())
        };
        let memory = ServeArgs { duplicates: Some(DuplicatesPlace::Memory), ..flags("n1") };
        let refused = demonstrating(&memory).expect_err("one flag is not enough");
        assert!(refused.contains("--unsafe-demo"), "{refused}");
        let both = ServeArgs { unsafe_demo: true, ..memory };
        assert_eq!(demonstrating(&both), Ok(Duplicates::Memory));
        let cluster = ServeArgs { authority: Some("127.0.0.1:7300".to_owned()), ..both };
        let refused = demonstrating(&cluster).expect_err("a cluster must not forget");
        assert!(refused.contains("--authority"), "{refused}");
        assert_eq!(demonstrating(&flags("n1")), Ok(Duplicates::Durable));
        let alone = ServeArgs { unsafe_demo: true, ..flags("n1") };
        demonstrating(&alone).expect_err("it means nothing alone");
        let lookup = |name: &str| (name == "ONCED_DUPLICATES").then(|| "memory".to_owned());
        let settings = Settings::effective(&flags("n1"), lookup).expect("settings");
        let config = ServeConfig::check(settings).expect("good settings");
        assert_eq!(config.duplicates, Duplicates::Durable, "no variable asks for it");
    }

    /// Settings that make no sense, or are not safe together, are refused with their values.
    #[test]
    fn senseless_settings_are_refused() {
        let good = flags("n1").settings().or(Settings::defaults());
        ServeConfig::check(good.clone()).expect("good settings");
        let lease = Settings { lease_ms: Some(600), ..good.clone() };
        assert!(usage(lease).contains("lease_ms = 600, grace_ms = 600"));
        let zero = Settings { heartbeat_ms: Some(0), ..good.clone() };
        assert!(usage(zero).contains("heartbeat_ms = 0"));
        let etcd = Settings { authority: Some("etcd://127.0.0.1".to_owned()), ..good.clone() };
        assert!(usage(etcd).contains("--authority \"etcd://127.0.0.1\" is not etcd://HOST:PORT"));
        let authority = Settings { authority: Some("7300".to_owned()), ..good.clone() };
        assert!(usage(authority).contains("--authority \"7300\" is not HOST:PORT"));
        let alone = Settings { bootstrap: Some(true), ..good.clone() };
        assert!(usage(alone).contains("needs --authority"));
        let copies = Settings { min_copies: Some(2), ..good.clone() };
        assert!(usage(copies).contains("--min-copies 2"));
        let address = Settings { http: Some("7600".to_owned()), ..good.clone() };
        assert!(usage(address).contains("--http \"7600\""));
        let large = Settings { checkpoint_bytes: Some(OVERLAY_BYTES_MAX / 2), ..good.clone() };
        let text = usage(large);
        assert!(
            text.contains("checkpoint_bytes = ") && text.contains("OVERLAY_BYTES_MAX"),
            "{text}"
        );
        assert!(usage(Settings { name: None, ..good }).contains("--name is needed"));
    }
}
