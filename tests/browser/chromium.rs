//! Drives a headless Chromium over its debugging pipe, without a driver and without a port.

use std::process::Stdio;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use standin::{TempDir, within};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdin, ChildStdout, Command},
};

/// A browser with one page. Dropping it kills the process.
pub(crate) struct Chromium {
    _child: Child,
    commands: ChildStdin,
    messages: BufReader<ChildStdout>,
    session: Option<String>,
    number: u64,
    /// Exceptions, console errors and violations of the page's content security policy.
    pub(crate) complaints: Vec<String>,
    /// The directory of the browser profile.
    _dir: TempDir,
}

impl Chromium {
    /// Starts the browser. `None` if `chromium` is not installed.
    pub(crate) async fn start() -> Option<Self> {
        let found = Command::new("sh")
            .args(["-c", "command -v chromium"])
            .output();
        if !found.await.unwrap().status.success() {
            return None;
        }
        let dir = TempDir::new();
        // Chromium reads commands from file 3 and writes its replies to file 4.
        let mut child = Command::new("sh")
            .args([
                "-c",
                "exec chromium \"$@\" 3<&0 4>&1 </dev/null >/dev/null",
                "chromium",
            ])
            .args(FLAGS)
            .arg(format!("--user-data-dir={}", dir.path().display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut browser = Self {
            commands: child.stdin.take().unwrap(),
            messages: BufReader::new(child.stdout.take().unwrap()),
            _child: child,
            session: None,
            number: 0,
            complaints: Vec::new(),
            _dir: dir,
        };
        let target = browser
            .call("Target.createTarget", json!({ "url": "about:blank" }))
            .await;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.call("Target.attachToTarget", attach).await;
        browser.session = session["sessionId"].as_str().map(ToOwned::to_owned);
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            browser.call(domain, json!({})).await;
        }
        Some(browser)
    }

    /// Opens a page.
    pub(crate) async fn open(&mut self, url: &str) {
        self.call("Page.navigate", json!({ "url": url })).await;
    }

    /// The value of an expression in the page.
    pub(crate) async fn evaluate(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true });
        let response = self.call("Runtime.evaluate", params).await;
        assert!(
            response["exceptionDetails"].is_null(),
            "{expression}: {response}"
        );
        response["result"]["value"].clone()
    }

    /// Waits until an expression is true in the page.
    pub(crate) async fn wait_until(&mut self, expression: &str) {
        let deadline = tokio::time::Instant::now() + 2 * standin::WAIT;
        while self.evaluate(expression).await != true {
            if tokio::time::Instant::now() > deadline {
                let text = self.evaluate("document.body.innerText").await;
                panic!(
                    "never: {expression}\n{}\n{:?}",
                    text.as_str().unwrap(),
                    self.complaints
                );
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    /// Waits until the element with this id shows this text.
    pub(crate) async fn wait_for_text(&mut self, id: &str, text: &str) {
        let shown = format!("document.getElementById('{id}').innerText");
        self.wait_until(&format!("{shown}.includes({})", json!(text)))
            .await;
    }

    /// Sets the width of the window and the colour scheme.
    pub(crate) async fn look(&mut self, width: u32, scheme: &str) {
        let window =
            json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", window)
            .await;
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call("Emulation.setEmulatedMedia", media).await;
    }

    /// The whole page as PNG.
    pub(crate) async fn picture(&mut self) -> Vec<u8> {
        let params = json!({ "format": "png", "captureBeyondViewport": true });
        let response = self.call("Page.captureScreenshot", params).await;
        STANDARD.decode(response["data"].as_str().unwrap()).unwrap()
    }

    async fn call(&mut self, method: &str, params: Value) -> Value {
        self.number += 1;
        let mut command = json!({ "id": self.number, "method": method, "params": params });
        if let Some(session) = &self.session {
            command["sessionId"] = session.as_str().into();
        }
        let mut bytes = command.to_string().into_bytes();
        bytes.push(0);
        self.commands.write_all(&bytes).await.unwrap();
        loop {
            let mut message = Vec::new();
            let read = self.messages.read_until(0, &mut message);
            assert!(
                within(method, read).await.unwrap() > 0,
                "chromium has ended"
            );
            message.pop();
            let mut message: Value = serde_json::from_slice(&message).unwrap();
            self.note(&message);
            if message["id"] == self.number {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].take();
            }
        }
    }

    fn note(&mut self, event: &Value) {
        let params = &event["params"];
        let is_bad = match event["method"].as_str().unwrap_or_default() {
            "Runtime.exceptionThrown" => true,
            "Runtime.consoleAPICalled" => params["type"] == "error",
            "Log.entryAdded" => params["entry"]["level"] == "error",
            _ => false,
        };
        if is_bad {
            self.complaints.push(params.to_string());
        }
    }
}

const FLAGS: &[&str] = &[
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
];
