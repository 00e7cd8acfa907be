//! Making a backup: the bytes of its file, piece by piece.

use bytes::Bytes;
use onlyonce_wire::backup::{BackupBegin, BackupEncoder, BackupEnd, BackupRecord};
use onlyonce_wire::client::{Answer, Request};

use crate::errors::answer_name;
use crate::{Client, Error};

/// What comes next of a backup.
///
/// ```
/// # use onlyonce_client::BackupStep;
/// /// Takes a step into a file that is being written; returns whether it is complete.
/// fn take(file: &mut Vec<u8>, step: BackupStep) -> bool {
///     match step {
///         BackupStep::Bytes(bytes) => file.extend_from_slice(&bytes),
///         BackupStep::Anew => file.clear(), // another node took over: from the beginning
///         BackupStep::Last { bytes, .. } => {
///             file.extend_from_slice(&bytes);
///             return true;
///         }
///     }
///     false
/// }
/// let mut file = Vec::new();
/// assert!(!take(&mut file, BackupStep::Bytes("of a node that died".into())));
/// assert!(!take(&mut file, BackupStep::Anew));
/// assert!(take(&mut file, BackupStep::Last { bytes: "the last".into(), index: 7 }));
/// assert_eq!(file, b"the last");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupStep {
    /// More of the file.
    Bytes(Bytes),
    /// The last of the file: it is complete, and holds the state after record `index` of the log.
    Last {
        /// The bytes.
        bytes: Bytes,
        /// The record.
        index: u64,
    },
    /// The node that was asked does not go on with it (another one became the primary, or it lasted
    /// too long). It begins anew: what came before is of no use.
    Anew,
}

/// A backup of a whole cluster that is being made; [`Client::backup`] begins one.
///
/// It is consistent: the state after one record of the log, with everything that was acknowledged
/// before it was begun. A node ends a backup that is not asked for its next piece for some seconds.
///
/// ```
/// # use onlyonce_client::Client;
/// let client = Client::builder().nodes(["127.0.0.1:7400"]).build().expect("an address");
/// let backup = client.backup(); // nothing is asked before the first `next`
/// assert_eq!(backup.begin(), None);
/// ```
#[derive(Debug)]
pub struct Backup {
    client: Client,
    id: u128,
    /// The next piece.
    number: u64,
    encoder: BackupEncoder,
    begin: Option<BackupBegin>,
}

impl Client {
    /// Begins a backup of the whole cluster. While requests go on, its file comes piece by piece, to be
    /// written in this order; `onced restore` makes a store of it.
    ///
    /// ```no_run
    /// # use onlyonce_client::{BackupStep, Client};
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut file = Vec::new();
    /// let mut backup = client.backup();
    /// loop {
    ///     match backup.next().await? {
    ///         BackupStep::Bytes(bytes) => file.extend_from_slice(&bytes),
    ///         BackupStep::Anew => file.clear(),
    ///         BackupStep::Last { bytes, .. } => break file.extend_from_slice(&bytes),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn backup(&self) -> Backup {
        Backup {
            client: self.clone(),
            id: rand::random(),
            number: 0,
            encoder: BackupEncoder::default(),
            begin: None,
        }
    }
}

impl Backup {
    /// Waits for what comes next. A [deadline](crate::ClientBuilder::deadline) is for each step.
    ///
    /// ```no_run
    /// # use onlyonce_client::{BackupStep, Client};
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut backup = client.backup();
    /// let mut bytes_so_far = 0;
    /// while let BackupStep::Bytes(bytes) = backup.next().await? {
    ///     bytes_so_far += bytes.len();
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::NoAnswer`] when a deadline ends it; the step may be waited for again.
    pub async fn next(&mut self) -> Result<BackupStep, Error> {
        let request = Request::Backup { id: self.id, number: self.number };
        let answer = self.client.inner.ask(None, None, |_| request.clone()).await?;
        let Answer::Backup(record) = answer else {
            return Err(Error::BadReply(format!("{} to a backup", answer_name(&answer))));
        };
        let Some(record) = record else {
            *self = self.client.backup();
            return Ok(BackupStep::Anew);
        };
        self.number += 1;
        let bytes = self.encoder.encode(&record);
        Ok(match record {
            BackupRecord::Begin(begin) => {
                self.begin = Some(begin);
                BackupStep::Bytes(bytes)
            }
            BackupRecord::Rows(_) => BackupStep::Bytes(bytes),
            BackupRecord::End(BackupEnd { index, .. }) => BackupStep::Last { bytes, index },
        })
    }

    /// Whose state it holds; none before the first bytes.
    ///
    /// ```no_run
    /// # use onlyonce_client::Client;
    /// # async fn example(client: Client) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut backup = client.backup();
    /// backup.next().await?;
    /// if let Some(begin) = backup.begin() {
    ///     println!("of cluster {}, incarnation {}", begin.cluster, begin.incarnation);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn begin(&self) -> Option<BackupBegin> {
        self.begin
    }
}
