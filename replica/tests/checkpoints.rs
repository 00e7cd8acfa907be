//! At which marks a backup has checkpoints: those are what the primary can compare.

mod one_node;

use std::time::Duration;

use onlyonce_replica::{Config, FeedId, PeerMessage, Position, Timing};
use onlyonce_storage::engine::memory::MemoryDisk;
use onlyonce_storage::{Effect, Entry, Generation, Index, Options, Record, Table, View, open};
use onlyonce_wire::authority::{Revision, Versioned};

use one_node::{Node, register};

/// When the primary puts a mark.
const WANTED: usize = 10_000;
const INTERVAL: Duration = Duration::from_secs(30);

/// A backup of n2 that folds slowly.
struct Backup(Node);

impl Backup {
    fn new() -> Self {
        let opened = open(MemoryDisk::new().disk(), &Options::new(1)).expect("opens");
        let now = Versioned { revision: Revision(1), register: Some(register(1, 2, &[1])) };
        let timing = Timing { checkpoint_interval: INTERVAL, ..Timing::default() };
        let config = Config { checkpoint_bytes: WANTED, timing, ..Node::config(1) };
        let mut node = Node::configured(config, opened, now, true);
        node.folds_slowly = true;
        node.tick(5);
        Self(node)
    }

    /// n2 sends a record, and says that it is committed.
    fn hear(&mut self, entries: Vec<Entry>) -> Index {
        let (view, index) = self.0.replica.state().last();
        let previous = Position { view, index };
        let (view, committed) = (View(1), index.next());
        let records = vec![Record::new(view, committed, index, entries).encode()];
        let feed = FeedId(1);
        self.0.hear(PeerMessage::Append { view, feed, previous, committed, records });
        assert_eq!(self.0.replica.state().committed(), committed);
        self.0.tick(5);
        committed
    }

    /// As many bytes as a checkpoint has, and some more.
    fn hear_rows(&mut self) {
        let row =
            Effect { table: Table::Kv, key: "row".into(), value: Some(vec![1; WANTED].into()) };
        self.hear(vec![Entry { effects: vec![row] }]);
    }

    fn hear_mark(&mut self) -> Index {
        self.hear(Vec::new())
    }

    /// Where the checkpoint ends that is under way.
    fn folding(&self) -> Option<Index> {
        self.0.folding.as_ref().map(Generation::upto)
    }

    /// The checkpoint that its echo names.
    fn named(&mut self) -> Option<Index> {
        self.0.sent.clear();
        let (register, revision) = (register(1, 2, &[1]), Revision(1));
        let committed = self.0.replica.state().committed();
        self.0.hear(PeerMessage::Heartbeat { nonce: 1, register, revision, committed });
        self.0.sent.iter().find_map(|message| match message {
            PeerMessage::Echo { checkpoint, .. } => checkpoint.map(|it| it.mark.index),
            _ => None,
        })
    }
}

/// A backup that folds for longer than it takes the primary to come to the next marks goes on at a
/// mark each time: all its checkpoints can be compared.
#[test]
fn a_slow_backup_folds_at_marks() {
    let mut backup = Backup::new();
    backup.hear_rows();
    let mut mark = backup.hear_mark();
    for _ in 0..5 {
        assert_eq!(backup.folding(), Some(mark));
        for _ in 0..3 {
            backup.hear_rows();
            backup.hear_mark();
        }
        backup.hear_rows();
        backup.0.fold();
        assert_eq!(backup.named(), Some(mark));
        backup.0.tick(5);
        assert_eq!(backup.folding(), None, "it waits for a mark, with more than two were worth");
        mark = backup.hear_mark();
    }
}

/// A backup for which no mark comes folds without: at once if none passed while it folded, else when
/// one is overdue.
#[test]
fn a_backup_waits_for_no_mark_for_ever() {
    let mut backup = Backup::new();
    backup.hear_rows();
    backup.hear_mark();
    backup.0.fold();
    backup.hear_rows();
    assert_eq!(backup.folding(), None, "a mark is about to come");
    backup.hear_rows();
    let without = Some(backup.0.replica.state().committed());
    assert_eq!(backup.folding(), without, "a faster one than the primary");

    backup.hear_mark();
    backup.hear_rows();
    backup.hear_rows();
    backup.0.fold();
    let end = Some(backup.0.replica.state().committed());
    backup.0.tick(5);
    assert_eq!(backup.folding(), None, "it waits for a mark");
    let twice = 2 * INTERVAL.as_millis() as u64;
    backup.0.tick(twice - 1_000);
    assert_eq!(backup.folding(), None, "it may still come");
    backup.0.tick(1_000);
    assert_eq!(backup.folding(), end, "it is overdue");
}
