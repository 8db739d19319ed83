//! The threads of a running tollgate: one acceptor, the workers, and the control runtime.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

use crate::proxy::gate::Gate;
use crate::proxy::listener::{self, Bound, INBOX, WorkerHandle};
use crate::proxy::worker::{self, Inbox};

use super::handover::{Inherited, Listening};

/// A listening address that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({option})")]
pub struct ListenError {
    /// The address.
    pub address: SocketAddr,
    /// The option or key that names it.
    pub option: &'static str,
    /// Why not.
    #[source]
    pub source: io::Error,
}

/// One socket for each address: of those that are there already, or opened.
///
/// # Errors
/// The first that cannot be opened.
pub fn bind_all(
    addresses: &[SocketAddr],
    option: &'static str,
    inherited: &mut Inherited,
) -> Result<Vec<Listening>, ListenError> {
    let listening = |address| match inherited.claim(address) {
        Some(listening) => Ok(listening),
        None => match listener::bind(address) {
            Ok(socket) => Ok(Listening { socket, is_shared: false }),
            Err(source) => Err(ListenError { address, option, source }),
        },
    };
    addresses.iter().copied().map(listening).collect()
}

/// The data path's threads.
#[derive(Debug)]
pub struct DataPath {
    /// Ends once every worker has.
    ended: Vec<oneshot::Receiver<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl DataPath {
    /// Starts `workers` workers and, once they are ready, the acceptor.
    ///
    /// # Errors
    /// A thread could not be started.
    pub async fn start(
        gate: &Arc<Gate>,
        listeners: Vec<Bound>,
        workers: usize,
        beat: impl Fn(usize) + Send + Clone + 'static,
    ) -> io::Result<Self> {
        let mut data_path = DataPath { ended: Vec::new(), threads: Vec::new() };
        let mut handles = Vec::new();
        let mut workers_ready = Vec::new();
        for index in 0..workers.max(1) {
            let (sender, accepted) = mpsc::channel(INBOX);
            let (ready, is_ready) = oneshot::channel();
            let connections = Arc::new(AtomicUsize::new(0));
            let inbox = Inbox { accepted, connections: Arc::clone(&connections), ready };
            handles.push(WorkerHandle { inbox: sender, connections });
            workers_ready.push(is_ready);
            let (gate, beat) = (Arc::clone(gate), beat.clone());
            data_path
                .spawn(format!("worker-{index}"), move || worker::run(gate, index, inbox, beat))?;
        }
        for is_ready in workers_ready {
            // Dropped unsent, which is the message.
            is_ready.await.ok();
        }
        let gate = Arc::clone(gate);
        data_path.spawn("acceptor".to_owned(), move || {
            listener::accept(gate, &listeners, handles);
            Ok(())
        })?;
        Ok(data_path)
    }

    /// Waits until every thread has ended, which is after a drain.
    pub async fn ended(self) {
        for ended in self.ended {
            // An error means the sender is gone: the thread has ended all the same.
            ended.await.ok();
        }
        for thread in self.threads {
            thread.join().ok();
        }
    }

    fn spawn(
        &mut self,
        name: String,
        work: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let (sender, receiver) = oneshot::channel();
        let thread = std::thread::Builder::new().name(name.clone()).spawn(move || {
            if let Err(error) = work() {
                tracing::error!(%error, thread = name, "a thread of the data path has failed");
            }
            drop(sender);
        })?;
        self.ended.push(receiver);
        self.threads.push(thread);
        Ok(())
    }
}
