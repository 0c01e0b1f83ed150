//! How hyper's HTTP/1.1 server reads the bytes of one connection.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    io,
    pin::{Pin, pin},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body_util::{BodyExt as _, Empty};
use hyper::{
    body::Incoming,
    rt::{Read, ReadBufCursor, Write},
    server::conn::http1,
    service::service_fn,
};

/// One request that hyper passed to its service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReadRequest {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) version: Version,
    pub(crate) fields: Vec<(String, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
    /// Whether the body came to its end.
    pub(crate) is_complete: bool,
}

/// The requests that hyper reads from these bytes. It has the settings with which it served clients of the proxy,
/// before the proxy had a parser of its own.
pub(crate) fn read(bytes: &[u8]) -> Vec<ReadRequest> {
    let found = Rc::new(RefCell::new(Vec::new()));
    let has_ended = Rc::new(Cell::new(false));
    let service = service_fn({
        let found = Rc::clone(&found);
        move |request| collect(Rc::clone(&found), request)
    });
    let input = Input {
        unread: Bytes::copy_from_slice(bytes),
        has_ended: Rc::clone(&has_ended),
        reader: None,
    };
    let connection = http1::Builder::new()
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_FIELDS)
        .half_close(false)
        .serve_connection(input, service);
    let mut connection = pin!(connection);
    let woken = Arc::new(Woken(AtomicBool::new(true)));
    let waker = Waker::from(Arc::clone(&woken));
    let mut context = Context::from_waker(&waker);
    // The client closes its side only when hyper has done all that it can do with the bytes.
    for _ in 0..2 {
        while woken.0.swap(false, Ordering::Relaxed) {
            if connection.as_mut().poll(&mut context).is_ready() {
                return found.take();
            }
        }
        has_ended.set(true);
        woken.0.store(true, Ordering::Relaxed);
    }
    panic!("hyper waits for a client that has closed the connection");
}

async fn collect(
    found: Rc<RefCell<Vec<ReadRequest>>>,
    request: Request<Incoming>,
) -> Result<Response<Empty<Bytes>>, Infallible> {
    let (head, mut body) = request.into_parts();
    let fields = head.headers.iter();
    let read = ReadRequest {
        method: head.method.to_string(),
        target: head.uri.to_string(),
        version: head.version,
        fields: fields
            .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()))
            .collect(),
        body: Vec::new(),
        is_complete: false,
    };
    found.borrow_mut().push(read);
    let update = |change: &mut dyn FnMut(&mut ReadRequest)| {
        found.borrow_mut().last_mut().map(change);
    };
    loop {
        match body.frame().await {
            Some(Ok(frame)) => {
                let data = frame.into_data().unwrap_or_default();
                update(&mut |request| request.body.extend_from_slice(&data));
            }
            Some(Err(_)) => break,
            None => {
                update(&mut |request| request.is_complete = true);
                break;
            }
        }
    }
    Ok(Response::new(Empty::new()))
}

/// The bytes of the client, and then silence until `has_ended` is set. What hyper writes is discarded.
struct Input {
    unread: Bytes,
    has_ended: Rc<Cell<bool>>,
    reader: Option<Waker>,
}

impl Read for Input {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let length = self.unread.len().min(buf.remaining());
        if length == 0 && !self.has_ended.get() {
            self.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        buf.put_slice(&self.unread.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl Write for Input {
    fn poll_write(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One more than the default limit.
const MAX_FIELDS: usize = 129;
/// The default limits together, with room for line ends.
const MAX_HEAD_BYTES: usize = 144 * 1024;
