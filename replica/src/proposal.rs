//! One attempt to change the register: saved, sent, and resolved.
//!
//! Success is definite. Whatever else comes of it is unknown until a read of the register shows the
//! proposal's id (won) or a revision beyond the one it expects (lost for ever); until then the very
//! same proposal is sent again.

use onlyonce_wire::ProposalId;
use onlyonce_wire::authority::{Member, Register, Revision};
use rand::Rng;

use crate::event::{Effect, Moment, ProposalResult};
use crate::marks::Mark;
use crate::replica::{Known, Replica, Role, Stop, Then};
use crate::saved::SavedProposal;

/// An attempt of this process to change the register.
#[derive(Debug)]
pub(crate) struct Proposal {
    /// The value proposed.
    pub(crate) register: Register,
    expected: Revision,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Being saved; not sent yet.
    Saving,
    /// Sent then; no answer yet.
    Sent(Moment),
    /// Answered by no clear success, or not answered: a read was asked for then.
    Unknown(Moment),
    /// Won at this revision; the view is being saved.
    Won(Revision),
}

impl Proposal {
    /// The revision at which it won, once that is known.
    pub(crate) fn won_at(&self) -> Option<Revision> {
        match self.stage {
            Stage::Won(revision) => Some(revision),
            Stage::Saving | Stage::Sent(_) | Stage::Unknown(_) => None,
        }
    }
}

impl Replica {
    /// Proposes the next view with this node as its primary.
    pub(crate) fn propose_view(&mut self, backups: Vec<Member>) {
        if self.proposal.is_some() {
            return;
        }
        let known = self.known.as_ref().expect("only a replica of a view proposes the next");
        let register = Register {
            view: known.register.view.next(),
            proposal: ProposalId(self.rng.random()),
            bumps: 0,
            primary: self.config.me.clone(),
            backups,
            ..known.register.clone()
        };
        let revision = known.revision;
        self.propose(register, revision);
    }

    pub(crate) fn propose(&mut self, register: Register, expected: Revision) {
        tracing::info!(
            view = register.view.0,
            backups = ?register.backups.iter().map(|backup| &backup.name).collect::<Vec<_>>(),
            "propose view"
        );
        let id = register.proposal;
        self.saved.proposal = Some(SavedProposal { expected, id });
        self.proposal = Some(Proposal { register, expected, stage: Stage::Saving });
        self.save(Then::Propose(id));
    }

    /// The proposal is on disk: now it may be sent.
    pub(crate) fn send_proposal(&mut self, id: ProposalId) {
        let now = self.now;
        let Some(proposal) = &mut self.proposal else { return };
        if proposal.register.proposal == id && proposal.stage == Stage::Saving {
            proposal.stage = Stage::Sent(now);
            let register = proposal.register.clone();
            self.effects.push(Effect::Propose { expected: proposal.expected, register });
        }
    }

    pub(crate) fn on_proposed(&mut self, id: ProposalId, result: ProposalResult) {
        let now = self.now;
        if let Some(proposal) = &mut self.proposal
            && let Stage::Sent(_) = proposal.stage
            && proposal.register.proposal == id
        {
            match result {
                ProposalResult::Won(revision) => {
                    self.note_won(revision);
                    return;
                }
                ProposalResult::Unknown => proposal.stage = Stage::Unknown(now),
            }
        } else {
            self.marks.hit(Mark::AnswerToOtherProposal);
        }
        self.read_register();
    }

    /// Finds out how an own proposal ended. Returns whether the register holds it.
    pub(crate) fn resolve_proposal(
        &mut self,
        revision: Revision,
        register: Option<&Register>,
    ) -> bool {
        let now = self.now;
        let Some(proposal) = &mut self.proposal else { return false };
        if matches!(proposal.stage, Stage::Won(_)) {
            return register.is_some_and(|register| register.view <= proposal.register.view);
        }
        if let Some(register) = register
            && register.proposal == proposal.register.proposal
        {
            // As it is at this revision: others may have bumped it since it won.
            proposal.register = register.clone();
            self.marks.hit(Mark::UnknownProposalWon);
            self.note_won(revision);
            return true;
        }
        if revision > proposal.expected {
            tracing::info!(view = proposal.register.view.0, "proposal lost");
            self.marks.hit(Mark::UnknownProposalLost);
            self.proposal = None;
            self.saved.proposal = None;
        } else if let Stage::Unknown(_) = proposal.stage {
            // It can still only win at this revision, and only once: the very same again.
            self.marks.hit(Mark::ProposalSentAgain);
            proposal.stage = Stage::Sent(now);
            let register = proposal.register.clone();
            self.effects.push(Effect::Propose { expected: proposal.expected, register });
        }
        false
    }

    fn note_won(&mut self, revision: Revision) {
        let proposal = self.proposal.as_mut().expect("a proposal was won");
        proposal.stage = Stage::Won(revision);
        let id = proposal.register.proposal;
        self.saved.enter(&proposal.register);
        self.saved.proposal = None;
        self.save(Then::BeginView(id));
    }

    /// The won view is on disk: it begins.
    pub(crate) fn begin_won_view(&mut self, id: ProposalId) -> Result<(), Stop> {
        let Some(Proposal { register, stage: Stage::Won(revision), .. }) =
            self.proposal.take_if(|proposal| proposal.register.proposal == id)
        else {
            return Ok(());
        };
        tracing::info!(view = register.view.0, "won view");
        let me = self.config.me.store;
        for member in register.replicas().filter(|member| member.store != me) {
            self.effects.push(Effect::Know(member.clone()));
        }
        self.known = Some(Known { register, revision });
        match &self.role {
            Role::Primary(_) => self.continue_in_view(),
            Role::Starting(_) | Role::Recovering(_) | Role::Follower(_) => self.become_primary(),
            Role::Stopped => Ok(()),
        }
    }

    /// A backup's own attempt to take over.
    pub(crate) fn propose_myself(&mut self) {
        let known = self.known.as_ref().expect("a backup knows its view");
        let me = self.config.me.store;
        let others = known.register.backups.iter().filter(|backup| backup.store != me);
        let backups = others.cloned().collect();
        self.propose_view(backups);
    }

    /// Repeats what got no answer.
    pub(crate) fn tick_proposal(&mut self) {
        let resend = self.config.timing.resend;
        let now = self.now;
        let Some(proposal) = &mut self.proposal else { return };
        match proposal.stage {
            Stage::Sent(at) | Stage::Unknown(at) if now.since(at) > resend => {
                proposal.stage = Stage::Unknown(now);
                self.read_register();
            }
            Stage::Saving | Stage::Sent(_) | Stage::Unknown(_) | Stage::Won(_) => {}
        }
    }
}
