//! Connections: accepted, counted, and cut while the server plays dead.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;

use crate::api::answer;
use crate::shared::Shared;

/// What tests tell the server's thread. Each order is acknowledged once it is carried out.
#[derive(Debug)]
pub(crate) enum Order {
    /// Cut all connections and refuse new ones.
    Close(SyncSender<io::Result<()>>),
    /// Listen again, at the address as before.
    Open(SyncSender<io::Result<()>>),
}

/// A socket that keeps the address for us while nobody listens there.
pub(crate) fn reserve() -> io::Result<(TcpSocket, SocketAddr)> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let address = socket.local_addr()?;
    Ok((socket, address))
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(1024)
}

/// Serves until the sender of orders is gone.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    address: SocketAddr,
    mut orders: UnboundedReceiver<Order>,
    started: SyncSender<io::Result<()>>,
) {
    let mut listener = None;
    let mut connections = JoinSet::new();
    let outcome = listen(address).map(|open| listener = Some(open));
    // Who started us waits for this.
    let _ = started.send(outcome);
    loop {
        tokio::select! {
            order = orders.recv() => match order {
                None => return,
                Some(Order::Close(done)) => {
                    listener = None;
                    connections.shutdown().await;
                    let _ = done.send(Ok(()));
                }
                Some(Order::Open(done)) => {
                    let outcome = if listener.is_some() { Ok(()) } else { listen(address).map(|open| listener = Some(open)) };
                    let _ = done.send(outcome);
                }
            },
            stream = accept(listener.as_ref()) => {
                connections.spawn(converse(Arc::clone(&shared), stream));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// The next connection, or none ever while nobody listens.
async fn accept(listener: Option<&TcpListener>) -> TcpStream {
    loop {
        let Some(listener) = listener else { return std::future::pending().await };
        // A connection that is gone before it was accepted is no concern of ours.
        if let Ok((stream, _)) = listener.accept().await {
            return stream;
        }
        tokio::task::yield_now().await;
    }
}

async fn converse(shared: Arc<Shared>, stream: TcpStream) {
    // Events are small and shall not wait for each other. Without it they only come later.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(answer(shared, request).await) }
    });
    // A connection that a fault cuts ends with an error; that is what was asked for.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}
