//! The proof after a workload: everything is read back and compared with what was acknowledged.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use onlyonce_client::Client;

use crate::client::runtime;
use crate::workload::{Increments, Ledger, WorkloadConfig};

/// How long each read may take.
const READ_LIMIT: Duration = Duration::from_secs(60);
/// How many rows are read at once.
const ROWS: u32 = 50;
/// How many findings of one kind are named; the rest are counted.
const NAMED: usize = 10;

/// What an audit found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Requests that were acknowledged.
    pub acknowledged: u64,
    /// Acknowledged requests whose effect is there, exactly once.
    pub applied: u64,
    /// Requests that are open.
    pub unresolved: u64,
    /// Of the open ones, those whose effect is there.
    pub unresolved_applied: u64,
    /// Acknowledged requests whose effect is not there.
    pub lost: u64,
    /// Effects that are there more often than their request was made.
    pub doubled: u64,
    /// Effects that nobody asked for, or that were definitely refused.
    pub foreign: u64,
    /// Everything that is wrong, in words.
    pub findings: Vec<String>,
}

impl Report {
    /// Whether every promise was kept.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.lost == 0 && self.doubled == 0 && self.foreign == 0 && self.findings.is_empty()
    }

    /// For tests.
    ///
    /// # Panics
    /// With everything that was found, unless all is well.
    #[track_caller]
    pub fn assert_clean(&self) {
        assert!(self.is_clean(), "the audit failed\n{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { acknowledged, applied, unresolved, unresolved_applied, .. } = self;
        writeln!(f, "  acknowledged      {acknowledged:>10}")?;
        writeln!(f, "  applied           {applied:>10}")?;
        writeln!(f, "  unresolved        {unresolved:>10}   ({unresolved_applied} took effect)")?;
        writeln!(f, "  lost              {:>10}", self.lost)?;
        writeln!(f, "  doubled           {:>10}", self.doubled)?;
        writeln!(f, "  foreign           {:>10}", self.foreign)?;
        for finding in &self.findings {
            writeln!(f, "  ! {finding}")?;
        }
        Ok(())
    }
}

/// Reads everything back that the workload may have written, and compares.
///
/// # Errors
/// When it cannot be read.
///
/// # Panics
/// When the system has no threads left, or `config` names no nodes.
pub fn audit(config: &WorkloadConfig, ledger: &Ledger) -> Result<Report, String> {
    runtime(1).block_on(async {
        let client = Client::builder()
            .nodes(config.nodes.iter().cloned())
            .deadline(READ_LIMIT)
            .build()
            .expect("addresses of nodes");
        let counters = read_counters(&client, config).await?;
        let rows = read_tokens(&client, config).await?;
        client.close().await;
        Ok(compare(ledger, &counters, &rows))
    })
}

async fn read_counters(client: &Client, config: &WorkloadConfig) -> Result<Vec<i64>, String> {
    let mut counters = Vec::new();
    for counter in 0..config.counters {
        let key = config.counter(counter);
        let value = client.get(key.clone()).await.map_err(|error| format!("{key}: {error}"))?;
        let text = value.as_deref().map_or("0".into(), String::from_utf8_lossy);
        let value = text.parse().map_err(|_| format!("{key} holds {text:?}, not a number"))?;
        counters.push(value);
    }
    Ok(counters)
}

async fn read_tokens(
    client: &Client,
    config: &WorkloadConfig,
) -> Result<Vec<(Bytes, Bytes)>, String> {
    let prefix = config.token_prefix();
    let mut end = prefix.clone().into_bytes();
    *end.last_mut().expect("a prefix ends with a slash") += 1;
    let mut rows = Vec::new();
    let mut start = Bytes::from(prefix);
    loop {
        let read = client.scan(start, Some(end.clone().into()), ROWS).await;
        let read = read.map_err(|error| format!("reading the tokens back: {error}"))?;
        rows.extend(read.rows);
        match read.next {
            Some(next) => start = next,
            None => return Ok(rows),
        }
    }
}

/// Compares what is there with what should be.
#[must_use]
pub fn compare(ledger: &Ledger, counters: &[i64], rows: &[(Bytes, Bytes)]) -> Report {
    let mut report = Report {
        acknowledged: ledger.acknowledged(),
        unresolved: ledger.unresolved(),
        findings: ledger.violations.iter().take(NAMED).cloned().collect(),
        ..Report::default()
    };
    if ledger.violations.len() > NAMED {
        report.findings.push(format!("... {} of these", ledger.violations.len()));
    }
    let none = Increments::default();
    for (counter, &value) in counters.iter().enumerate() {
        compare_counter(&mut report, counter, ledger.counters.get(counter).unwrap_or(&none), value);
    }
    compare_tokens(&mut report, ledger, rows);
    report
}

fn compare_counter(report: &mut Report, counter: usize, increments: &Increments, value: i64) {
    let value = u64::try_from(value).unwrap_or(0);
    let acknowledged = increments.returned.len() as u64;
    let allowed = acknowledged + increments.unresolved;
    let lost = acknowledged.saturating_sub(value);
    let doubled = value.saturating_sub(allowed);
    report.applied += acknowledged - lost;
    report.unresolved_applied += value.min(allowed).saturating_sub(acknowledged);
    report.lost += lost;
    report.doubled += doubled;
    if lost + doubled > 0 {
        report.findings.push(format!(
            "counter {counter} is {value}: {acknowledged} increments were acknowledged, {} are open",
            increments.unresolved
        ));
    }
    let mut seen = HashSet::new();
    for &returned in &increments.returned {
        let possible =
            u64::try_from(returned).is_ok_and(|returned| 0 < returned && returned <= value);
        if !possible || !seen.insert(returned) {
            report.findings.push(format!(
                "counter {counter}: an increment returned {returned}, which {}",
                if possible { "another one returned too" } else { "the counter never held" }
            ));
        }
    }
}

fn compare_tokens(report: &mut Report, ledger: &Ledger, rows: &[(Bytes, Bytes)]) {
    let mut found: HashMap<(&str, &str), u64> = HashMap::new();
    for (key, value) in rows {
        let (Ok(key), Ok(value)) = (std::str::from_utf8(key), std::str::from_utf8(value)) else {
            report.foreign += 1;
            report.findings.push(format!("{key:?} holds bytes that nobody wrote"));
            continue;
        };
        for token in value.split_terminator(';') {
            *found.entry((key, token)).or_default() += 1;
        }
    }
    let mut named = Findings::default();
    for (key, token) in &ledger.appended {
        match found.remove(&(key, token)) {
            Some(1) => report.applied += 1,
            None => {
                report.lost += 1;
                named.add("lost", key, token);
            }
            Some(times) => {
                report.doubled += times - 1;
                named.add("doubled", key, token);
            }
        }
    }
    for (key, token) in &ledger.unresolved {
        let times = found.remove(&(key, token)).unwrap_or(0);
        report.unresolved_applied += times.min(1);
        if times > 1 {
            report.doubled += times - 1;
            named.add("doubled, though open", key, token);
        }
    }
    let refused: HashSet<_> =
        ledger.refused.iter().map(|(key, token)| (&**key, &**token)).collect();
    for ((key, token), times) in found {
        report.foreign += times;
        let refused = refused.contains(&(key, token));
        named.add(if refused { "refused, yet there" } else { "foreign" }, key, token);
    }
    named.report(report);
}

/// Tokens that are wrong, by kind; the first of each are named.
#[derive(Default)]
struct Findings(HashMap<&'static str, (u64, Vec<String>)>);

impl Findings {
    fn add(&mut self, kind: &'static str, key: &str, token: &str) {
        let (count, named) = self.0.entry(kind).or_default();
        *count += 1;
        if named.len() < NAMED {
            named.push(format!("{token} in {key}"));
        }
    }

    fn report(self, report: &mut Report) {
        for (kind, (count, named)) in self.0 {
            report.findings.push(format!("{count} tokens {kind}: {}", named.join(", ")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> Ledger {
        let token = |token: &str| ("key".to_owned(), token.to_owned());
        Ledger {
            counters: vec![Increments { returned: vec![1, 3], unresolved: 1 }],
            appended: vec![token("a"), token("b")],
            unresolved: vec![token("c")],
            refused: vec![token("d")],
            violations: Vec::new(),
        }
    }

    fn audited(counter: i64, value: &'static str) -> Report {
        compare(&ledger(), &[counter], &[(Bytes::from("key"), Bytes::from(value))])
    }

    /// Exactly once passes, whether the open requests ran or not.
    #[test]
    fn exactly_once_is_clean() {
        let report = audited(3, "b;a;");
        assert!(report.is_clean(), "{report}");
        assert_eq!((report.acknowledged, report.applied), (4, 4));
        assert_eq!((report.unresolved, report.unresolved_applied), (2, 1));
        audited(3, "b;c;a;").assert_clean();
    }

    /// Each way of breaking the promise is found and counted.
    #[test]
    fn every_breach_is_found() {
        assert_eq!(audited(3, "a;").lost, 1);
        assert_eq!(audited(3, "a;b;b;").doubled, 1);
        assert_eq!(audited(3, "a;b;c;c;").doubled, 1);
        assert_eq!(audited(3, "a;b;x;").foreign, 1);
        assert_eq!(audited(3, "a;b;d;").foreign, 1);
        assert_eq!(audited(1, "a;b;").lost, 1);
        assert_eq!(audited(4, "a;b;").doubled, 1);
        assert!(!audited(2, "a;b;").is_clean(), "3 was returned, so it was there");
        let mut twice = ledger();
        twice.counters[0].returned = vec![2, 2];
        assert!(!compare(&twice, &[3], &[("key".into(), "a;b;".into())]).is_clean());
        let mut violated = ledger();
        violated.violations.push("a stale read".to_owned());
        assert!(!compare(&violated, &[3], &[("key".into(), "a;b;".into())]).is_clean());
    }
}
