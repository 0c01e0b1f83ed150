//! `exec` over WebSocket: `v5.channel.k8s.io` and `v4.channel.k8s.io`.

use std::{pin::pin, time::Duration};

use http::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, split},
    sync::{mpsc, watch},
    time::timeout,
};

use super::{
    answer::{Answer, failure},
    query::Query,
    shell::{self, Stdio},
    websocket::{self, Reader, Received},
    world::Pod,
};
use crate::upstream::{RequestBody, empty};

/// Sub-protocols, most wanted first.
const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];

const STDIN: u8 = 0;
pub(super) const STDOUT: u8 = 1;
pub(super) const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// With v5: the channel named by the next byte has ended.
const CLOSE: u8 = 255;

/// How long the client may take to close after the server has.
const FAREWELL: Duration = Duration::from_secs(1);

/// The answer to an exec request; the session runs once the 101 is out.
pub(super) fn exec(request: Request<RequestBody>, pod: &Pod, query: &Query) -> Answer {
    let header = |name| {
        request
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    let Some(upgrade) = header(header::UPGRADE) else {
        return failure(
            StatusCode::BAD_REQUEST,
            "BadRequest",
            "Upgrade request required",
        );
    };
    if !upgrade.eq_ignore_ascii_case("websocket") {
        let message = "the stand-in speaks WebSocket only, as kubectl 1.30 and newer do";
        return failure(StatusCode::BAD_REQUEST, "BadRequest", message);
    }
    let Some(key) = header(header::SEC_WEBSOCKET_KEY) else {
        return failure(
            StatusCode::BAD_REQUEST,
            "BadRequest",
            "a WebSocket request has a key",
        );
    };
    let offered: Vec<&str> = request
        .headers()
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(',').map(str::trim))
        .collect();
    let Some(protocol) = PROTOCOLS
        .into_iter()
        .find(|protocol| offered.contains(protocol))
    else {
        return Response::builder()
            .status(StatusCode::FORBIDDEN)
            .body(empty())
            .expect("a status is valid");
    };
    let answer = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::UPGRADE, "websocket")
        .header(header::CONNECTION, "Upgrade")
        .header(header::SEC_WEBSOCKET_ACCEPT, websocket::accept(key))
        .header(header::SEC_WEBSOCKET_PROTOCOL, protocol)
        .body(empty())
        .expect("an accept key is a valid header");
    let order = Order {
        command: query.all("command"),
        pod: pod.name.clone(),
        stdin: query.is_set("stdin"),
        tty: query.is_set("tty"),
    };
    tokio::spawn(async move {
        if let Ok(upgraded) = hyper::upgrade::on(request).await {
            session(TokioIo::new(upgraded), order).await;
        }
    });
    answer
}

struct Order {
    command: Vec<String>,
    pod: String,
    stdin: bool,
    tty: bool,
}

async fn session(stream: impl AsyncRead + AsyncWrite + Send, order: Order) {
    let (read, mut write) = split(stream);
    let (input, stdin) = mpsc::channel(16);
    let (output, written) = mpsc::channel(16);
    let (pongs, pinged) = mpsc::unbounded_channel();
    let (resize, size) = watch::channel((80, 24));
    let stdio = Stdio {
        stdin,
        output,
        tty: order.tty,
        pod: order.pod,
        size,
    };
    let input = order.stdin.then_some(input);
    let work = async {
        // kube-apiserver says something empty first, on the lowest channel it can write to.
        websocket::message(&mut write, &[&[STDOUT]]).await?;
        let (code, pumped) = tokio::join!(
            shell::run(order.command, stdio),
            pump(&mut write, written, pinged)
        );
        pumped?;
        websocket::message(&mut write, &[&[ERROR], status(code).to_string().as_bytes()]).await?;
        websocket::close(&mut write).await?;
        write.shutdown().await
    };
    let mut listening = pin!(listen(Reader::new(read), input, &pongs, &resize));
    tokio::select! {
        // A client that is gone needs neither the rest nor the exit code.
        ended = work => drop(ended),
        () = &mut listening => return,
    }
    // The client closes too; to be gone before it does would reset the connection.
    drop(timeout(FAREWELL, listening).await);
}

/// Sends what the command writes, and pongs, until the command has ended.
async fn pump(
    write: &mut (impl AsyncWrite + Unpin),
    mut written: mpsc::Receiver<(u8, Vec<u8>)>,
    mut pinged: mpsc::UnboundedReceiver<Vec<u8>>,
) -> std::io::Result<()> {
    loop {
        tokio::select! {
            biased;
            Some(payload) = pinged.recv() => websocket::pong(write, &payload).await?,
            data = written.recv() => match data {
                Some((channel, data)) => websocket::message(write, &[&[channel], &data]).await?,
                None => return Ok(()),
            },
        }
    }
}

/// Takes what the client says until it closes.
async fn listen(
    mut reader: Reader<impl AsyncRead + Unpin>,
    mut input: Option<mpsc::Sender<Vec<u8>>>,
    pongs: &mpsc::UnboundedSender<Vec<u8>>,
    resize: &watch::Sender<(u64, u64)>,
) {
    loop {
        let message = match reader.next().await {
            Ok(Received::Message(message)) => message,
            Ok(Received::Ping(payload)) => {
                // Fails only when the session has ended.
                drop(pongs.send(payload));
                continue;
            }
            Ok(Received::Close) | Err(_) => return,
        };
        match message.split_first() {
            Some((&STDIN, data)) if !data.is_empty() => {
                if let Some(input) = &input {
                    // The command may have stopped reading.
                    drop(input.send(data.to_vec()).await);
                }
            }
            Some((&RESIZE, data)) => {
                let size: Value = serde_json::from_slice(data).unwrap_or_default();
                if let (Some(width), Some(height)) =
                    (size["Width"].as_u64(), size["Height"].as_u64())
                {
                    resize.send_replace((width, height));
                }
            }
            Some((&CLOSE, [STDIN])) => input = None,
            _ => {}
        }
    }
}

fn status(code: u8) -> Value {
    if code == 0 {
        return json!({ "metadata": {}, "status": "Success" });
    }
    json!({
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
    })
}
