//! What may be asked any number of times, until there is an answer: reads, and questions about requests,
//! sessions and backups. A cancel and a close are among them: a second one does no more.

use onlyonce_wire::client::{Answer, Outcome, Read, Refusal, Request};
use onlyonce_wire::{Incarnation, codec};

use crate::errors::{Error, NoAnswer, answer_name};
use crate::execute::Inner;
use crate::handle::Home;
use crate::progress::Progress;
use crate::retry::Stop;

impl Inner {
    /// Reads, as often as it takes.
    pub(crate) async fn read(&self, read: Read) -> Result<Outcome, Error> {
        read.check().map_err(Error::Refused)?;
        match self.ask(None, None, |_| Request::Read(read.clone())).await? {
            Answer::Read(outcome) => Ok(outcome),
            other => Err(Error::BadReply(format!("{} to a read", answer_name(&other)))),
        }
    }

    /// Asks what may be asked any number of times, until there is an answer: in `incarnation`, else in
    /// the one that the cluster is in.
    pub(crate) async fn ask(
        &self,
        home: Option<Home>,
        incarnation: Option<Incarnation>,
        question: impl Fn(Incarnation) -> Request,
    ) -> Result<Answer, Error> {
        let mut progress = home.map_or_else(Progress::default, Progress::at);
        let asking = self.ask_on(incarnation, question, &mut progress);
        let answer = match self.cluster.options().deadline {
            None => asking.await,
            Some(within) => {
                let Ok(answer) = tokio::time::timeout(within, asking).await else {
                    let nodes = std::mem::take(&mut progress.reports);
                    return Err(Error::NoAnswer(NoAnswer { within, nodes }));
                };
                answer
            }
        };
        match answer {
            Ok(Answer::Refused(refusal)) | Err(Stop::Refused(refusal)) => {
                Err(Error::Refused(refusal))
            }
            Ok(answer) => Ok(answer),
            Err(Stop::Unusable(why)) => Err(Error::Unusable(why)),
            Err(Stop::BadReply(text)) => Err(Error::BadReply(text)),
            Err(Stop::Unanswered | Stop::KeyExpired(_)) => {
                unreachable!("questions are asked again")
            }
        }
    }

    async fn ask_on(
        &self,
        incarnation: Option<Incarnation>,
        question: impl Fn(Incarnation) -> Request,
        progress: &mut Progress,
    ) -> Result<Answer, Stop> {
        loop {
            let named = match incarnation {
                Some(incarnation) => incarnation,
                None => self.cluster.first_incarnation(progress).await?,
            };
            let request = codec::encode(&question(named));
            match self.cluster.call(&request, progress).await? {
                Answer::Refused(Refusal::OtherIncarnation { current }) if incarnation.is_none() => {
                    self.cluster.adopt_incarnation(current);
                    self.cluster.pause(progress).await?;
                }
                answer => return Ok(answer),
            }
        }
    }
}

/// What fits no answer to its question.
pub(crate) fn misplaced(answer: &Answer) -> Error {
    Error::BadReply(format!("{} to another question", answer_name(answer)))
}
