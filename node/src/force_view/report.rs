//! What `onced admin force-view` shows before it does anything.

use std::fmt::Write as _;

use onlyonce_storage::Checkpoint;
use onlyonce_wire::authority::{Member, Versioned};

use super::plan::{Found, Loss, Plan, Step, loss};

/// The register and the stores, as they were found.
pub fn table(stores: &[Found], authority: &str, now: &Versioned) -> String {
    let mut text = format!("cluster    {}\n", stores[0].cluster);
    let _ = match &now.register {
        None => writeln!(text, "register   {authority}: empty"),
        Some(register) => writeln!(
            text,
            "register   {authority}: view {} of incarnation {}, primary {} (store {}), {} backups",
            register.view,
            register.incarnation,
            register.primary.name,
            register.primary.store,
            register.backups.len()
        ),
    };
    text.push('\n');
    let titles = [
        "folder",
        "name",
        "store",
        "clients",
        "incarnation",
        "view",
        "role",
        "prepared",
        "committed",
        "tables",
    ];
    let mut rows = vec![titles.map(str::to_owned)];
    for found in stores {
        rows.push([
            found.folder.display().to_string(),
            found.me.name.clone(),
            found.store.to_string(),
            found.me.client_address.clone(),
            found.saved.incarnation.to_string(),
            found.saved.view.to_string(),
            found.role().to_owned(),
            format!("({}, {})", found.last.view, found.last.index),
            found.committed.to_string(),
            tables(&found.checkpoint),
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..titles.len()).map(width).collect();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// The record that tables are as of, and the beginning of their digest.
fn tables(checkpoint: &Checkpoint) -> String {
    format!("{} ({:.8})", checkpoint.mark.index, checkpoint.digests.to_string())
}

/// What would be done, what may be lost by it, and what must be true before.
pub fn intention(stores: &[Found], plan: &Plan, by_user: bool) -> String {
    let chosen = &stores[plan.chosen];
    let Found { me, store, last, .. } = chosen;
    let register = plan.step.register();
    let why = match &plan.step {
        Step::Finish(_) => "the register names it already: an earlier run was cut short",
        Step::Done(_) => "the register names it, and it knows: an earlier run has done everything",
        Step::Swap { .. } if by_user => "as --primary says",
        Step::Swap { .. } => {
            "no log here goes further than its own, by (view, index) of the last record"
        }
    };
    let mut text = format!("chosen     {} (store {store}): {why}\n", me.name);
    let _ = writeln!(text, "lost       {}", lost(stores, plan.chosen, (last.view.0, last.index.0)));
    let others = stores.iter().filter(|found| found.store != *store);
    let others: Vec<_> = others.map(|found| found.folder.display().to_string()).collect();
    let these = if others.is_empty() { String::new() } else { format!(" ({})", others.join(", ")) };
    let _ = writeln!(
        text,
        "fenced     every other store of this cluster{these} must be stopped for good: no node may ever \
         run on its folder again"
    );
    let _ = writeln!(
        text,
        "then       incarnation {} (the time, in ms), view {}, primary {} alone; the sessions of before \
         are expired",
        register.incarnation, register.view, me.name
    );
    text
}

/// What becomes of a request whose only trace is in lost records.
const SENT_AGAIN: &str = "What was lost, if it is sent again: with a named idempotency key, it runs \
     anew; with a timed one, it is refused as forgotten, since that is older than the forced view; in a \
     session, it is refused, since all sessions end";

fn lost(stores: &[Found], chosen: usize, (view, index): (u64, u64)) -> String {
    let (newest, loss) = loss(stores, chosen);
    let what = match loss {
        Loss::None => {
            return format!(
                "nothing that was acknowledged: all replicas of view {newest}, the newest, are here, \
                 and this store holds all that they acknowledged"
            );
        }
        Loss::UnlessLater(missing) => format!(
            "nothing that was acknowledged up to view {newest}, the newest that is known here; but {} \
             took part in it, with no folder here: what was acknowledged in a view that it made \
             afterwards. Give its folder too, if there is one",
            names(&missing)
        ),
        Loss::Tail(replicas) => format!(
            "what was acknowledged after record ({view}, {index}): the replicas of view {newest}, the \
             newest that is known here, were {}, and this store does not hold all that they \
             acknowledged. Give their folders too, if there are any, and choose one of them",
            names(&replicas)
        ),
    };
    format!("{what}. {SENT_AGAIN}")
}

fn names(members: &[Member]) -> String {
    let names = members.iter().map(|member| format!("{} (store {})", member.name, member.store));
    names.collect::<Vec<_>>().join(", ")
}
