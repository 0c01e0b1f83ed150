//! The rest of one response, and of the upload when the response overtook it.

use std::{
    future::{Future as _, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::StatusCode;
use hyper::body::{Frame, SizeHint};
use tokio::{sync::oneshot, task::yield_now};

use super::{
    H1Connection, H1Error, Upgraded,
    body::BodyDecoder,
    head::ResponseHead,
    sending::{SendError, Sending},
};
use crate::{drain::Drain, metrics::LeaseEnd, transport::SharedIo, upstream::lease::LeaseTable};

/// Where a connection goes when its response has come to a good end.
#[derive(Debug)]
pub(in crate::upstream) struct GiveBack {
    pub(in crate::upstream) held: Arc<LeaseTable>,
    pub(in crate::upstream) cluster: u64,
}

/// The rest of a response.
#[derive(Debug)]
pub(in crate::upstream) struct H1Response {
    rest: BodyDecoder,
    /// `None` behind the end, good or bad.
    running: Option<ActiveExchange>,
    /// Bytes that were read since others last had their turn.
    turn: usize,
    /// Why there is no more, until what came before has gone on its way.
    fault: Option<H1Error>,
}

#[derive(Debug)]
struct ActiveExchange {
    connection: H1Connection,
    /// What becomes of the rest of the request, and where that is waited for if the answer ends before.
    sent: Option<(RequestSent, Drain)>,
    /// Where the connection goes if another request may follow.
    give_back: Option<GiveBack>,
}

impl H1Response {
    /// The answer behind this head.
    pub(super) fn new(
        mut connection: H1Connection,
        sending: Sending,
        head: &ResponseHead,
        give_back: Option<GiveBack>,
        drain: &Drain,
    ) -> Self {
        // A task of its own, since the client may read nothing of the answer before it has sent all.
        let sent = (!sending.is_over()).then(|| {
            let sent = send_rest(&mut connection, sending, drain);
            (sent, drain.clone())
        });
        let switches = head.parts.status == StatusCode::SWITCHING_PROTOCOLS;
        let mut answer = Self {
            rest: head.body,
            running: Some(ActiveExchange {
                connection,
                sent,
                give_back: give_back.filter(|_| head.keep_alive && !switches),
            }),
            turn: 0,
            fault: None,
        };
        if answer.is_end_stream() && !switches {
            answer.ended();
        }
        answer
    }

    pub(in crate::upstream) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, H1Error>>> {
        if let Some(fault) = self.fault.take() {
            return Poll::Ready(Some(Err(fault)));
        }
        let polled = self.poll_rest(cx);
        match polled {
            Poll::Ready(Some(Err(fault))) => {
                self.cut();
                // hyper drops what it has not written yet when it hears of an error.
                self.fault = Some(fault);
                yields(cx)
            }
            Poll::Ready(_) if self.is_end_stream() => {
                self.ended();
                polled
            }
            Poll::Ready(_) => polled,
            Poll::Pending => {
                self.turn = 0;
                polled
            }
        }
    }

    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, H1Error>>> {
        let Some(running) = &mut self.running else {
            let after = (self.rest != BodyDecoder::Nothing).then_some(Err(H1Error::Cut));
            return Poll::Ready(after);
        };
        let wire = &mut running.connection.wire;
        if let Some((sent, _)) = &mut running.sent
            && let Poll::Ready(ended) = Pin::new(sent).poll(cx)
        {
            running.sent = None;
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(SendError::Upload(cut))) => {
                    return Poll::Ready(Some(Err(H1Error::Upload(cut))));
                }
                // It may take no more because it has said all in its answer.
                Ok(Err(SendError::Refused(_))) | Err(_) => running.give_back = None,
            }
        }
        loop {
            let decoded = self.rest.decode(&mut wire.unread);
            if let Some(frame) = decoded.transpose() {
                return Poll::Ready(Some(frame));
            }
            if self.rest == BodyDecoder::Nothing {
                return Poll::Ready(None);
            }
            if self.turn >= MAX_BYTES_PER_TURN {
                return yields(cx);
            }
            match wire.poll_more(cx) {
                Poll::Ready(Ok(0)) => {
                    running.give_back = None;
                    return Poll::Ready(self.rest.closed().err().map(Err));
                }
                Poll::Ready(Ok(read)) => self.turn += read,
                Poll::Ready(Err(fault)) => return Poll::Ready(Some(Err(fault))),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    pub(in crate::upstream) fn is_end_stream(&self) -> bool {
        self.rest == BodyDecoder::Nothing
    }

    pub(in crate::upstream) fn size_hint(&self) -> SizeHint {
        match self.rest {
            BodyDecoder::Nothing => SizeHint::with_exact(0),
            BodyDecoder::Length(left) => SizeHint::with_exact(left),
            BodyDecoder::Chunks(_) | BodyDecoder::UntilClose => SizeHint::default(),
        }
    }

    /// The connection, if it was kept because the answer is a 101.
    pub(in crate::upstream) fn into_upgraded(mut self) -> Option<Upgraded> {
        let is_over = self.is_end_stream();
        let running = self.running.take().filter(|_| is_over)?;
        Some(Upgraded(running.connection.wire))
    }

    /// Lets the connection go on to another request if it can.
    fn ended(&mut self) {
        let Some(mut running) = self.running.take() else {
            return;
        };
        // The apiserver may want the rest of an upload all the same, and closing the connection on the
        // client before it has sent all could cost it the answer.
        if let Some((sent, drain)) = running.sent.take() {
            drain.spawn(async move {
                if let Ok(Ok(())) = sent.await {
                    running.ended();
                }
            });
        } else {
            running.ended();
        }
    }

    /// Given up before its end, or cut.
    fn cut(&mut self) {
        if let Some(running) = self.running.take() {
            running.connection.stats.set_end_reason(LeaseEnd::Reset);
        }
    }
}

impl ActiveExchange {
    /// Request and answer are whole.
    fn ended(self) {
        let mut connection = self.connection;
        connection.becomes_idle();
        // More than was asked for would be taken for the next answer.
        if connection.wire.unread.is_empty()
            && let Some(GiveBack { held, cluster }) = self.give_back
        {
            held.give_back(cluster, connection);
        }
    }
}

/// Sends what is left of a request, until it is asked for no more; the wire keeps the half that reads.
fn send_rest(connection: &mut H1Connection, mut sending: Sending, drain: &Drain) -> RequestSent {
    let mut io = SharedIo::of(&mut connection.wire.io);
    let (mut tell, sent) = oneshot::channel();
    drain.spawn(async move {
        let ended = poll_fn(|cx| {
            if tell.poll_closed(cx).is_ready() {
                return Poll::Ready(None);
            }
            sending.poll_send(&mut io, cx).map(Some)
        });
        if let Some(ended) = ended.await {
            // Before anybody is told that the connection is free.
            drop(io);
            tell.send(ended).ok();
        }
    });
    sent
}

/// How the rest of a request ended.
type RequestSent = oneshot::Receiver<Result<(), SendError>>;

impl Drop for H1Response {
    fn drop(&mut self) {
        self.cut();
    }
}

/// Pending until everybody else has had a turn. Not by waking the task: tokio looks for new events only
/// once in 61 turns of those that are awake.
fn yields<T>(cx: &mut Context<'_>) -> Poll<T> {
    let _pending = pin!(yield_now()).poll(cx);
    Poll::Pending
}

/// What may be read of one answer before everybody else on the thread has had a turn.
const MAX_BYTES_PER_TURN: usize = 64 * 1024;
