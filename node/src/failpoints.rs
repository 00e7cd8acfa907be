//! The failpoints at the core's door: before an event is handled, and before an effect is carried
//! out. Those inside the effects are where they are carried out.

use onlyonce_replica::{Effect, Event, PeerMessage};
use onlyonce_storage::failpoints::{Point, failpoint};

/// The core is about to handle this.
pub fn before_event(event: &Event) {
    match event {
        Event::Request { .. } => failpoint(Point::RequestReceived),
        Event::Peer { message, .. } => before_message(message),
        Event::Persisted { .. } => failpoint(Point::LogPersisted),
        Event::Saved => failpoint(Point::StateSaved),
        Event::PeerConnected(_)
        | Event::RegisterRead { .. }
        | Event::Proposed { .. }
        | Event::Checkpointed(_)
        | Event::Scrubbed
        | Event::RowsRead { .. }
        | Event::Received { .. }
        | Event::Drained
        | Event::Tick(_) => {}
    }
}

fn before_message(message: &PeerMessage) {
    match message {
        PeerMessage::Append { .. } => failpoint(Point::AppendReceived),
        PeerMessage::AppendOk { .. } => failpoint(Point::AppendOkReceived),
        PeerMessage::FetchTail { .. } => failpoint(Point::TailAsked),
        PeerMessage::Tail { .. } => failpoint(Point::TailReceived),
        PeerMessage::Snapshot { .. } => failpoint(Point::SnapshotReceived),
        PeerMessage::SnapshotOk { .. } => failpoint(Point::SnapshotOkReceived),
        PeerMessage::Heartbeat { .. }
        | PeerMessage::Echo { .. }
        | PeerMessage::AppendMismatch { .. }
        | PeerMessage::HoldsCommitted { .. }
        | PeerMessage::Differs { .. }
        | PeerMessage::Join { .. }
        | PeerMessage::NewerView { .. } => {}
    }
}

/// The core's thread is about to carry this out.
pub fn before_effect(effect: &Effect) {
    match effect {
        Effect::Reply { .. } => failpoint(Point::ReplyReady),
        Effect::Send { message, .. } => before_sending(message),
        Effect::Propose { .. } => failpoint(Point::ProposalSending),
        Effect::Know(_)
        | Effect::Persist(_)
        | Effect::Cut { .. }
        | Effect::Save { .. }
        | Effect::Prune { .. }
        | Effect::ReadRegister(_)
        | Effect::Checkpoint(_)
        | Effect::Release(_)
        | Effect::Scrub
        | Effect::ReadRows { .. }
        | Effect::Receive { .. }
        | Effect::Install { .. }
        | Effect::Stop(_) => {}
    }
}

fn before_sending(message: &PeerMessage) {
    match message {
        PeerMessage::Append { .. } => failpoint(Point::AppendSending),
        PeerMessage::AppendOk { .. } => failpoint(Point::AppendOkSending),
        PeerMessage::Snapshot { .. } => failpoint(Point::SnapshotSending),
        PeerMessage::Heartbeat { .. }
        | PeerMessage::Echo { .. }
        | PeerMessage::AppendMismatch { .. }
        | PeerMessage::HoldsCommitted { .. }
        | PeerMessage::Differs { .. }
        | PeerMessage::Join { .. }
        | PeerMessage::FetchTail { .. }
        | PeerMessage::Tail { .. }
        | PeerMessage::SnapshotOk { .. }
        | PeerMessage::NewerView { .. } => {}
    }
}
