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
    query::Query,
    response::{ApiResponse, failure},
    shell::{self, Stdio},
    store::Pod,
    websocket::{self, Reader, Received},
};
use crate::upstream::{RequestBody, empty};

/// The sub-protocols in order of preference.
const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];

const STDIN: u8 = 0;
pub(super) const STDOUT: u8 = 1;
pub(super) const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// In v5: the channel in the next byte has ended.
const CLOSE: u8 = 255;

/// How long the client may take to close the connection after the server did.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The response to an exec request. The session starts after the 101 was sent.
pub(super) fn exec(request: Request<RequestBody>, pod: &Pod, query: &Query) -> ApiResponse {
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
            "the request has no Sec-WebSocket-Key",
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
    let response = websocket::switched(key)
        .header(header::SEC_WEBSOCKET_PROTOCOL, protocol)
        .body(empty())
        .expect("an accept key is a valid header");
    let session_options = ExecOptions {
        command: query.all("command"),
        pod: pod.name.clone(),
        stdin: query.is_set("stdin"),
        tty: query.is_set("tty"),
    };
    tokio::spawn(async move {
        if let Ok(upgraded) = hyper::upgrade::on(request).await {
            session(TokioIo::new(upgraded), session_options).await;
        }
    });
    response
}

struct ExecOptions {
    command: Vec<String>,
    pod: String,
    stdin: bool,
    tty: bool,
}

async fn session(stream: impl AsyncRead + AsyncWrite + Send, session_options: ExecOptions) {
    let (read, mut write) = split(stream);
    let (input, stdin) = mpsc::channel(16);
    let (output, written) = mpsc::channel(16);
    let (pongs, pinged) = mpsc::unbounded_channel();
    let (resize, size) = watch::channel((80, 24));
    let stdio = Stdio {
        stdin,
        output,
        tty: session_options.tty,
        pod: session_options.pod,
        size,
    };
    let input = session_options.stdin.then_some(input);
    let work = async {
        // kube-apiserver sends an empty message first, on the lowest channel that it can write to.
        websocket::message(&mut write, &[&[STDOUT]]).await?;
        let (code, pumped) = tokio::join!(
            shell::run(session_options.command, stdio),
            pump(&mut write, written, pinged)
        );
        pumped?;
        websocket::message(&mut write, &[&[ERROR], status(code).to_string().as_bytes()]).await?;
        websocket::close(&mut write).await?;
        write.shutdown().await
    };
    let mut incoming = pin!(listen(Reader::new(read), input, &pongs, &resize));
    tokio::select! {
        // Fails only if the client is gone, and then no output is needed.
        ended = work => drop(ended),
        () = &mut incoming => return,
    }
    // Waits until the client closes too: leaving earlier would reset the connection.
    drop(timeout(CLOSE_TIMEOUT, incoming).await);
}

/// Sends the output of the command, and pongs, until the command ends.
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

/// Handles the messages of the client until it closes the connection.
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
                // Fails only if the session has ended.
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
