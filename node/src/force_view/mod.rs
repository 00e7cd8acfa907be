//! `onced admin force-view`: the way out when the register is lost.
//!
//! It works on the folders of stopped nodes, which it holds locked. See "A lost register, and
//! force-view" in `docs/replication.md` for what it does and why each moment at which it can be cut
//! short is harmless:
//!
//! 1. It reads the register, opens the stores, and shows what is there ([`report`]) and what it
//!    would do ([`plan`]). Without `--fenced` that is all.
//! 2. It compare-and-swaps the register: a new incarnation, whose first view names one store alone.
//! 3. It saves that view in this store. From now on a node can be started on it.

mod plan;
mod report;

use std::fmt::Display;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use onlyonce_replica::{Position, Saved};
use onlyonce_storage::{LogWriter, OpenError, Options};
use onlyonce_wire::StoreId;
use onlyonce_wire::authority::{Register, Revision, Versioned};

use self::plan::{Found, Plan, Step, decide};
use crate::args::ForceViewArgs;
use crate::authority::{Authority, AuthorityError, Swap};
use crate::exit::{self, ExitError};
use crate::serve::{say, tokio_runtime};

/// Cache of the tables of one store: hardly anything of them is read.
const CACHE_BYTES: u64 = 8 << 20;

/// Shows the stores and, with `--fenced`, forces the view.
pub fn run(args: &ForceViewArgs, authority: &impl Authority) -> Result<(), ExitError> {
    let runtime = tokio_runtime(1)?;
    let now = runtime.block_on(authority.read()).map_err(|error| not_reached(&error))?;
    let (stores, mut logs) = open_all(&args.data)?;
    say(&report::table(&stores, &args.authority, &now));
    let wanted = args.primary.as_deref();
    let plan = decide(&stores, &now, wanted, now_ms()).map_err(refused)?;
    say(report::intention(&stores, &plan, wanted.is_some()).trim_end());
    let chosen = &stores[plan.chosen];
    if matches!(plan.step, Step::Done(_)) {
        say(&format!("\ndone already: start {} as before", chosen.me.name));
        return Ok(());
    }
    if !args.fenced {
        return Err(ExitError::Usage(
            "nothing was written. When every other store of this cluster is stopped for good, repeat \
             the command with --fenced"
                .to_owned(),
        ));
    }
    runtime.block_on(carry_out(&plan, chosen, &mut logs[plan.chosen], authority))?;
    say(&format!(
        "\ndone: start {name} as before; it serves alone. Start every other node on a new, empty \
         folder: it joins by itself. Keep the old folders aside",
        name = chosen.me.name
    ));
    Ok(())
}

fn refused(why: impl Display) -> ExitError {
    ExitError::Runtime(format!("refused: {why}. Nothing was written"))
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

fn not_reached(error: &AuthorityError) -> ExitError {
    ExitError::Runtime(format!(
        "{error}; nothing was written: bring the authority back, and try again"
    ))
}

/// Opens every store, as a node would, and keeps it locked.
fn open_all(folders: &[PathBuf]) -> Result<(Vec<Found>, Vec<LogWriter>), ExitError> {
    let (mut stores, mut logs) = (Vec::new(), Vec::new());
    for folder in folders {
        let (found, log) = open(folder.clone())?;
        stores.push(found);
        logs.push(log);
    }
    Ok((stores, logs))
}

fn open(folder: PathBuf) -> Result<(Found, LogWriter), ExitError> {
    if !onlyonce_storage::holds_store(&folder)? {
        return Err(refused(format!("{} is no data folder of a node", folder.display())));
    }
    let options = Options { tables_cache_bytes: CACHE_BYTES, ..Options::new(rand::random()) };
    let opened = exit::reading(&folder, || onlyonce_storage::open_dir(&folder, &options));
    let opened = opened.map_err(|error| match error {
        OpenError::InUse { .. } => {
            refused(format!("a node runs on {}: stop it first", folder.display()))
        }
        error => refused(format!("{error}. Or leave this folder out, as one that is lost")),
    })?;
    let saved = Saved::decode(&opened.state_bytes).map_err(|error| {
        ExitError::Runtime(format!(
            "the head of {} holds a replication state that this release cannot read ({error}): use \
             the release that wrote it",
            folder.display()
        ))
    })?;
    let (view, index) = opened.state.last();
    let last = Position { view, index };
    let (store, committed) = (StoreId(opened.store_id), opened.state.committed());
    let checkpoint = opened.checkpointer.checkpoint();
    let found = Found::new(folder, store, saved, last, committed, checkpoint).map_err(refused)?;
    Ok((found, opened.log))
}

/// First the register, then the store. Cut short before the register is changed, nothing happened;
/// afterwards the register says what is left to do, and a node on the store refuses to start.
async fn carry_out(
    plan: &Plan,
    chosen: &Found,
    log: &mut LogWriter,
    authority: &impl Authority,
) -> Result<(), ExitError> {
    let register = plan.step.register();
    if let Step::Swap { expected, register } = &plan.step {
        swap(authority, *expected, register).await?;
    }
    say("\nregister   names this store");
    let saved = chosen.saved.in_forced_view(register);
    log.save(&saved.encode()).map_err(|error| {
        ExitError::Runtime(format!("{error}. The register names this store: repeat the command"))
    })?;
    say(&format!("store      {} knows it", chosen.store));
    Ok(())
}

/// Changes the register, or finds that it is changed.
async fn swap(
    authority: &impl Authority,
    expected: Revision,
    register: &Register,
) -> Result<(), ExitError> {
    let unknown = match authority.compare_and_swap(expected, register.clone()).await {
        Swap::Swapped(_) => return Ok(()),
        Swap::Conflict(_) => "it was changed meanwhile".to_owned(),
        Swap::Unknown(error) => error.to_string(),
    };
    // It may have taken place all the same.
    if let Ok(Versioned { register: Some(found), .. }) = authority.read().await
        && found == *register
    {
        return Ok(());
    }
    Err(ExitError::Runtime(format!(
        "whether the register was changed is not known ({unknown}). No store was touched: repeat the \
         command, it goes on from what the register holds then"
    )))
}
