//! Registers that went back or another way, and logs that did: nobody follows the one, and everybody
//! comes back from the other.

mod one_node;

use onlyonce_replica::{Event, FeedId, PeerMessage, Position, ReadId};
use onlyonce_storage::engine::memory::MemoryDisk;
use onlyonce_storage::{Entry, Index, Options, Record, View, open};
use onlyonce_wire::ProposalId;
use onlyonce_wire::authority::{Register, Revision, Versioned};

use one_node::{Node, member};

/// The register that it would be if n2 had made the view, with nobody else in it.
fn made_by_n2(register: &Register) -> Register {
    let (proposal, primary) = (ProposalId(4_711), member(2));
    Register { proposal, primary, backups: Vec::new(), ..register.clone() }
}

/// An authority was put back to an older copy, and came to the same revision by another proposal. Its
/// value is not the one that this primary knows: two primaries could serve.
#[test]
fn another_register_of_the_same_revision_stops_a_primary() {
    let mut node = Node::serving();
    node.put(10);
    let Versioned { revision, register } = node.register.clone();
    let other = made_by_n2(&register.expect("a register"));
    let now = Versioned { revision, register: Some(other) };
    node.give(Event::RegisterRead { asked: Some(ReadId(1_000)), now });
    assert!(node.stopped.is_some(), "it stops");
}

/// News of an older register may just be late: the node reads, and what the read shows counts. News that
/// are late change nothing.
#[test]
fn news_of_a_lost_register_are_looked_into() {
    let mut node = Node::serving();
    let lost = Versioned { revision: Revision(0), register: None };
    node.give(Event::RegisterRead { asked: None, now: lost.clone() });
    assert_eq!(node.stopped, None, "the register is what it was");
    node.register = lost.clone();
    node.give(Event::RegisterRead { asked: None, now: lost });
    let reason = node.stopped.expect("it stops");
    assert!(reason.contains("lost data"), "{reason}");
}

/// The same while the node is down: the view has the number that its store knows, but another proposal
/// made it. Equal positions of the two logs need not hold equal records.
#[test]
fn another_view_of_the_same_number_is_not_followed() {
    let disk = MemoryDisk::new();
    let opened = open(disk.disk(), &Options::new(1)).expect("opens");
    let mut node = Node::on(opened, 1, Versioned { revision: Revision(0), register: None });
    node.tick(5);
    node.put(10);
    let Versioned { revision, register } = node.register.clone();
    let register = register.expect("a register");
    drop(node);
    disk.kill();
    let restart = |register| {
        let opened = open(disk.disk(), &Options::new(1)).expect("opens");
        Node::on(opened, 1, Versioned { revision, register: Some(register) })
    };
    assert!(restart(made_by_n2(&register)).stopped.is_some(), "it stops");
    // Somebody gave a proposal up: that is the same view.
    let bumped = Register { bumps: 1, ..register };
    assert_eq!(restart(bumped).stopped, None);
}

/// A proposal won, which its node learns only when somebody has bumped the register since. That is how it
/// knows the register from then on: what it reads next is no other value of the same revision.
#[test]
fn a_proposal_that_was_bumped_after_it_won_is_known_so() {
    let opened = open(MemoryDisk::new().disk(), &Options::new(1)).expect("opens");
    let mut node = Node::refused(opened, 1, Versioned { revision: Revision(0), register: None });
    node.tick(5);
    let won = node.proposal.clone().expect("it proposes itself");
    let bumped = Some(Register { bumps: 1, ..won });
    node.register = Versioned { revision: Revision(2), register: bumped };
    node.tick(1_000);
    assert!(node.replica.status().serving, "it finds that it won");
    node.give(Event::RegisterRead { asked: None, now: node.register.clone() });
    node.register_read(ReadId(1_000));
    assert_eq!(node.stopped, None);
}

/// A primary that was cut off, and whose memory was full of what it could not commit, is fed by the
/// next one: the cut makes room, and nothing else could.
#[test]
fn a_full_overlay_of_uncommitted_records_is_cut() {
    let mut node = Node::serving();
    node.put(10);
    node.gain_backup();
    let (common_view, common) = node.replica.state().last();
    for _ in 0..280 {
        node.put(1 << 20);
    }
    assert_eq!(node.replica.status().committed, common.0, "nothing more was acknowledged");
    let Versioned { revision, register } = node.register.clone();
    let mut register = made_by_n2(&register.expect("a register"));
    register.view = register.view.next();
    let view = View(register.view.0);
    let revision = Revision(revision.0 + 1);
    let now = Versioned { revision, register: Some(register.clone()) };
    node.give(Event::RegisterRead { asked: None, now });
    node.sent.clear();

    let record = Record::new(view, common.next(), common, vec![Entry::default()]);
    let (feed, previous) = (FeedId(7), Position { view: common_view, index: common });
    for round in 0..10 {
        let (register, committed) = (register.clone(), Index(0));
        node.hear(PeerMessage::Heartbeat { nonce: round, register, revision, committed });
        let records = vec![record.encode()];
        node.hear(PeerMessage::Append { view, feed, previous, committed: common, records });
        node.tick(50);
    }
    let matched = common.next();
    let acknowledged = PeerMessage::AppendOk { view, feed, matched };
    assert!(node.sent.contains(&acknowledged), "{:?}", node.sent);
}
