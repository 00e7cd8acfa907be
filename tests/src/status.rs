//! The status page of a node.

use serde_json::Value;

/// What a node says about itself over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields of NodeStatus, documented there")]
pub struct Status {
    pub name: String,
    pub store: String,
    pub cluster: Option<String>,
    pub role: String,
    pub serving: bool,
    pub view: u64,
    pub primary: Option<String>,
    pub backups: Vec<String>,
    pub learners: Vec<String>,
    pub prepared: u64,
    pub committed: u64,
    pub applied: u64,
    pub sessions: u64,
    pub idempotency_keys: u64,
}

impl Status {
    /// Reads a status page.
    ///
    /// # Errors
    /// When it is not one.
    pub fn parse(page: &str) -> Result<Self, String> {
        let page: Value =
            serde_json::from_str(page).map_err(|error| format!("{error} in {page:?}"))?;
        let missing = |key: &str| format!("no {key} in {page}");
        let text = |key: &str| page[key].as_str().map(str::to_owned);
        let number = |key: &str| page[key].as_u64().ok_or_else(|| missing(key));
        let names = |key: &str| {
            let names = page[key].as_array().ok_or_else(|| missing(key))?;
            Ok::<_, String>(names.iter().filter_map(Value::as_str).map(str::to_owned).collect())
        };
        Ok(Self {
            name: text("name").ok_or_else(|| missing("name"))?,
            store: text("store").ok_or_else(|| missing("store"))?,
            cluster: text("cluster"),
            role: text("role").ok_or_else(|| missing("role"))?,
            serving: page["serving"].as_bool().ok_or_else(|| missing("serving"))?,
            view: number("view")?,
            primary: text("primary"),
            backups: names("backups")?,
            learners: names("learners")?,
            prepared: number("prepared")?,
            committed: number("committed")?,
            applied: number("applied")?,
            sessions: number("sessions")?,
            idempotency_keys: number("idempotency_keys")?,
        })
    }

    /// Whether it executes requests.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.role == "primary" && self.serving
    }
}
