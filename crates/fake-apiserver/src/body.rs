//! Bodies of answers: whole ones, and those that are written while they are read.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, SizeHint};
use tokio::sync::mpsc;

/// The connection shall break here.
#[derive(Debug)]
pub(crate) struct Broken;

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cut on request")
    }
}

impl std::error::Error for Broken {}

/// Where a body that is being written comes from. Its receiver is gone when the client is.
pub(crate) type Writer = mpsc::Sender<Result<Bytes, Broken>>;

#[derive(Debug)]
pub(crate) enum Payload {
    Whole(Option<Bytes>),
    Written(mpsc::Receiver<Result<Bytes, Broken>>),
}

impl Payload {
    pub(crate) fn whole(text: impl Into<Bytes>) -> Payload {
        Payload::Whole(Some(text.into()))
    }

    pub(crate) fn written() -> (Writer, Payload) {
        let (writer, reader) = mpsc::channel(64);
        (writer, Payload::Written(reader))
    }
}

impl Body for Payload {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.get_mut() {
            Payload::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Payload::Written(reader) => {
                reader.poll_recv(context).map(|piece| piece.map(|piece| piece.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Payload::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Payload::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Payload::Written(_) => SizeHint::default(),
        }
    }
}

/// As much of a text as arrives before it is cut off.
pub(crate) fn first_half(text: &str) -> &str {
    &text[..text.floor_char_boundary(text.len() / 2)]
}
