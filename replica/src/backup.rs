//! A backup: a snapshot of the primary's tables that a client asks for, piece by piece.
//!
//! ```text
//! client                      primary
//! Backup{id, 0} ────────────▶ waits until all that is committed now is folded
//!        ◀──────────── Begin
//! Backup{id, 1} ────────────▶ reads rows from the tables, as for a learner (see `source`)
//!        ◀───────────── Rows
//! ...
//! Backup{id, n} ────────────▶
//!        ◀────────────── End: "this is the state after record e"
//! ```
//! - Everything that was acknowledged before the backup was begun is in it: the first piece needs the
//!   lease, and what was committed then is folded before anything is read.
//! - A number that was asked for before is answered with the same piece; the next number says that the
//!   client has the one before.
//! - One backup is made at a time. Who asks for one that is over is told so, and begins another.
//!
//! A backup ends
//! - with its last piece, which is kept for a while, to be asked for again;
//! - when its client is silent for too long;
//! - when the log does not hold what it needs any more;
//! - with this primary.

use onlyonce_storage::Index;
use onlyonce_wire::backup::{BackupBegin, BackupEnd, BackupRecord};
use onlyonce_wire::client::{Answer, Limit, Refusal};

use crate::event::{Effect, Moment, ReplyTo};
use crate::message::{Piece, SnapshotId};
use crate::primary::Primary;
use crate::replica::{Replica, Role, Stop};
use crate::snapshot::STALL_APPEND_TIMEOUTS;
use crate::source::{Next, Source, rest_after};

/// A backup that a client asks for.
pub(crate) struct Backup {
    source: Source,
    stage: Stage,
    /// The newest piece that was asked for.
    number: u64,
    /// It, once it is there.
    piece: Option<BackupRecord>,
    /// Who waits for it.
    asks: Option<ReplyTo>,
    /// When its client asked last.
    heard: Moment,
    /// When the newest piece was begun.
    begun: Moment,
}

enum Stage {
    /// What was committed when it was begun is not all folded.
    Folding { upto: Index },
    /// Rows are being read.
    Reading,
    /// The newest piece is there.
    Ready,
    /// The next piece is asked for, but requests come first.
    Resting { until: Moment },
}

impl Primary {
    /// Whether a backup waits for a checkpoint.
    pub(crate) fn needs_checkpoint(&self) -> bool {
        self.backup.as_ref().is_some_and(Backup::needs_checkpoint)
    }
}

impl Backup {
    /// Whether it waits for a checkpoint.
    fn needs_checkpoint(&self) -> bool {
        matches!(self.stage, Stage::Folding { .. })
    }

    /// From which record on the log is needed; none before anything is read, and after all is.
    pub(crate) fn pin(&self) -> Option<Index> {
        let is_read = !self.needs_checkpoint() && !self.source.is_complete();
        is_read.then_some(self.source.after)
    }

    /// Who waits for a piece.
    pub(crate) fn waiter(&self) -> Option<ReplyTo> {
        self.asks
    }
}

impl Replica {
    /// A client asks for a piece.
    pub(crate) fn back_up(&mut self, from: ReplyTo, id: u128, number: u64) -> Result<(), Stop> {
        if !self.lease_holds() {
            self.reply(from, Answer::AskAgain);
            return Ok(());
        }
        let now = self.now;
        let committed = self.state.committed();
        let Role::Primary(primary) = &mut self.role else { return Ok(()) };
        match &mut primary.backup {
            Some(backup) if backup.source.id == SnapshotId(id) => {
                backup.heard = now;
                if number == backup.number + 1 && backup.piece.take().is_some() {
                    backup.number = number;
                    backup.stage = Stage::Resting { until: rest_after(backup.begun, now) };
                }
                if number != backup.number {
                    let reason = format!("piece {number} of a backup after {}", backup.number);
                    self.reply(from, Answer::Refused(Refusal::Invalid(reason)));
                    return Ok(());
                }
                if let Some(earlier) = backup.asks.replace(from) {
                    // Its client has asked again since; but every request is answered.
                    self.reply(earlier, Answer::AskAgain);
                }
                self.answer_piece();
                self.tick_backup()
            }
            _ if number > 0 => {
                self.reply(from, Answer::Backup(None));
                Ok(())
            }
            Some(backup) if !backup.source.is_complete() => {
                self.reply(from, Answer::Refused(Refusal::Busy(Limit::Backups)));
                Ok(())
            }
            Some(_) | None => {
                tracing::info!(committed = committed.0, "a client makes a backup");
                primary.backup = Some(Backup {
                    source: Source::new(SnapshotId(id), committed, self.config.piece_bytes),
                    stage: Stage::Folding { upto: committed },
                    number,
                    piece: None,
                    asks: Some(from),
                    heard: now,
                    begun: now,
                });
                self.tick_backup()
            }
        }
    }

    /// The source of the backup with this id.
    pub(crate) fn backup_source(&mut self, id: SnapshotId) -> Option<&mut Source> {
        let Role::Primary(primary) = &mut self.role else { return None };
        primary.backup.as_mut().map(|backup| &mut backup.source).filter(|it| it.id == id)
    }

    /// Hands the newest piece to who waits for it, if it is there.
    fn answer_piece(&mut self) {
        let Role::Primary(primary) = &mut self.role else { return };
        let Some(Backup { piece: Some(piece), asks, .. }) = &mut primary.backup else { return };
        let Some(from) = asks.take() else { return };
        let answer = Answer::Backup(Some(piece.clone()));
        self.reply(from, answer);
    }

    /// Goes on with what had to wait.
    pub(crate) fn tick_backup(&mut self) -> Result<(), Stop> {
        let now = self.now;
        let silence = self.config.timing.append_timeout * STALL_APPEND_TIMEOUTS;
        let Role::Primary(primary) = &mut self.role else { return Ok(()) };
        let Some(backup) = &mut primary.backup else { return Ok(()) };
        match backup.stage {
            Stage::Folding { upto } if self.state.applied() >= upto => {
                self.begin_backup();
                Ok(())
            }
            Stage::Resting { until } if now >= until => {
                backup.begun = now;
                self.next_backup_piece()
            }
            _ if now.since(backup.heard) > silence => {
                self.end_backup("its client is silent");
                Ok(())
            }
            Stage::Folding { .. } | Stage::Reading | Stage::Ready | Stage::Resting { .. } => Ok(()),
        }
    }

    /// All that was committed when it was begun is folded: the first piece, and the point from which
    /// on the log is needed.
    fn begin_backup(&mut self) {
        let applied = self.state.applied();
        let cluster = self.cluster().expect("a primary belongs to a cluster");
        let begin = BackupBegin { cluster, incarnation: self.incarnation() };
        let Role::Primary(primary) = &mut self.role else { return };
        let Some(backup) = &mut primary.backup else { return };
        backup.source.after = applied;
        backup.stage = Stage::Ready;
        backup.piece = Some(BackupRecord::Begin(begin));
        self.answer_piece();
    }

    /// Reads the next piece, or hands it out.
    pub(crate) fn next_backup_piece(&mut self) -> Result<(), Stop> {
        let Role::Primary(primary) = &mut self.role else { return Ok(()) };
        let Some(backup) = &mut primary.backup else { return Ok(()) };
        match backup.source.next(&self.state)? {
            Next::Rows(from) => {
                backup.stage = Stage::Reading;
                let id = backup.source.id;
                self.effects.push(Effect::ReadRows { id, from });
            }
            Next::Piece(piece) => {
                backup.stage = Stage::Ready;
                backup.piece = Some(told(piece, &backup.source));
                self.answer_piece();
            }
            Next::Lost => self.end_backup("the log no longer holds what it needs"),
            Next::Nothing => self.end_backup("its client has all of it"),
        }
        Ok(())
    }

    fn end_backup(&mut self, why: &str) {
        let Role::Primary(primary) = &mut self.role else { return };
        let Some(backup) = primary.backup.take() else { return };
        tracing::info!(pieces = backup.number, "a backup ends: {why}");
        if let Some(from) = backup.asks {
            self.reply(from, Answer::Backup(None));
        }
    }
}

/// A piece, as its client is told.
fn told(piece: Piece, source: &Source) -> BackupRecord {
    match piece {
        Piece::Effects(entry) => BackupRecord::Rows(entry),
        Piece::End(end) => BackupRecord::End(BackupEnd {
            index: end.index.0,
            view: onlyonce_wire::View(end.view.0),
            chain: end.chain,
            digests: source.digests.sums(),
        }),
    }
}
