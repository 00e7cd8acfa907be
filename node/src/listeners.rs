//! Sockets that listen, and errors that say which one could not and what to do.

use std::net::SocketAddr;

use tokio::net::TcpListener;

use crate::exit::ExitError;

/// A socket that listens, and where. It outlives the runtimes that accept from it.
pub struct Listening {
    listener: std::net::TcpListener,
    pub address: SocketAddr,
}

impl Listening {
    /// The socket, for the runtime that this is called in.
    pub fn listener(&self) -> Result<TcpListener, ExitError> {
        let listener = self.listener.try_clone().and_then(TcpListener::from_std);
        let address = self.address;
        listener.map_err(|error| ExitError::Runtime(format!("cannot listen at {address}: {error}")))
    }
}

/// Listens at `address` (host:port; port 0 takes any), given with `flag`.
pub async fn listen(flag: &str, address: &str) -> Result<Listening, ExitError> {
    let failed = |error: std::io::Error| {
        let advice = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                "another process listens there: stop it, or choose another port"
            }
            std::io::ErrorKind::AddrNotAvailable => "this machine does not have that address",
            std::io::ErrorKind::PermissionDenied => "ports below 1024 need privileges",
            _ => "check the address",
        };
        ExitError::Runtime(format!("cannot listen at {flag} {address}: {error}; {advice}"))
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let listener = listener.into_std().map_err(failed)?;
    Ok(Listening { listener, address })
}
