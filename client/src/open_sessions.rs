//! The open sessions of all clients, as the cluster knows them, for whoever looks after it.

use onlyonce_wire::client::{Answer, Refusal, Request, SessionDetail, SessionStatus};
use onlyonce_wire::{Session, SessionId};

use crate::Client;
use crate::errors::Error;
use crate::questions::misplaced;

/// Some of the open sessions.
///
/// ```no_run
/// # use onlyonce_client::Client;
/// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
/// let mut after = None;
/// loop {
///     let page = client.sessions(after, 1_000).await?;
///     page.sessions.iter().for_each(|session| println!("{}", session.session));
///     let Some(last) = page.sessions.last().filter(|_| page.more) else { break };
///     after = Some(last.session.id);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionPage {
    /// In the order of their ids.
    pub sessions: Vec<SessionStatus>,
    /// Whether there are more after the last one.
    pub more: bool,
}

impl Client {
    /// Some of the open sessions, of all clients: those after `after`, at most `limit` of them, and
    /// never more than 1,000 ([`SESSIONS_LISTED_MAX`](crate::limits::SESSIONS_LISTED_MAX)).
    ///
    /// ```no_run
    /// # use onlyonce_client::Client;
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// // Whose clients are away: a session that is idle for too long is expired by the cluster.
    /// for open in client.sessions(None, 100).await?.sessions {
    ///     println!("{} idle for {} ms", open.session.id, open.idle_ms);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [every read](Client#errors-of-every-read).
    pub async fn sessions(
        &self,
        after: Option<SessionId>,
        limit: u32,
    ) -> Result<SessionPage, Error> {
        match self.inner.ask(None, None, |_| Request::Sessions { after, limit }).await? {
            Answer::Sessions { sessions, more } => Ok(SessionPage { sessions, more }),
            other => Err(misplaced(&other)),
        }
    }

    /// One session, and what the cluster remembers of its requests; none if none is open under the
    /// id.
    ///
    /// ```no_run
    /// # use onlyonce_client::SessionId;
    /// # use onlyonce_client::Client;
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let id: SessionId = "0000000000000000000000000000feed".parse()?;
    /// if let Some(open) = client.session(id).await? {
    ///     println!("{} replies are kept until its client has seen them", open.saved.len());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [every read](Client#errors-of-every-read).
    pub async fn session(&self, id: SessionId) -> Result<Option<SessionDetail>, Error> {
        match self.inner.ask(None, None, |_| Request::Session(id)).await? {
            Answer::Session(session) => Ok(session),
            other => Err(misplaced(&other)),
        }
    }

    /// Closes a session, whoever opened it: the replies that it saved are forgotten, and what its
    /// client has under way becomes unresolved. Returns when it is not open (any more).
    ///
    /// ```no_run
    /// # use onlyonce_client::Client;
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// // Those of clients that are gone for an hour: their room is for others.
    /// for open in client.sessions(None, 1_000).await?.sessions {
    ///     if open.idle_ms > 3_600_000 {
    ///         client.close_session(open.session).await?;
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [every read](Client#errors-of-every-read).
    pub async fn close_session(&self, session: Session) -> Result<(), Error> {
        let close = |incarnation| Request::Close { incarnation, session };
        match self.inner.ask(None, None, close).await {
            Ok(Answer::Closed) | Err(Error::Refused(Refusal::SessionExpired)) => Ok(()),
            Ok(other) => Err(misplaced(&other)),
            Err(error) => Err(error),
        }
    }
}
