//! A lone node of real processes.

use tempfile::TempDir;

use crate::cluster::{Environment, Node, folder};
use crate::status::Status;

/// One node alone, with its folder.
pub struct Lone {
    /// The node.
    pub node: Node,
    _folder: TempDir,
}

impl Lone {
    /// Starts one and waits until it serves.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn start(environment: Environment) -> Self {
        Self::start_with(&[], environment)
    }

    /// As [`start`](Self::start), with further arguments.
    ///
    /// # Panics
    /// When it does not serve.
    #[must_use]
    pub fn start_with(arguments: &[&str], environment: Environment) -> Self {
        let folder = folder();
        let mut node = Node::new("n1", &folder.path().join("n1"), arguments, environment);
        node.start();
        node.wait_status("to serve", Status::serves);
        Self { node, _folder: folder }
    }

    /// What a client is told to connect to.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        vec![self.node.client_address().to_string()]
    }
}
