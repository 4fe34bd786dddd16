//! `pods/exec` over a websocket, channel by channel as kube-apiserver and containerd do it: v5 with half-close, v4
//! without; the status on channel 3; a client that leaves means end of input for the process, never its death.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{HeaderValue, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, frame::coding::CloseCode};

use crate::error::ApiError;
use crate::http::{Body, Call, empty};
use crate::kubelet::Kubelet;
use crate::processes::{LaunchError, Surroundings};

/// How long output is drained after the process has gone: something it started may still hold the pipe.
const DRAIN: Duration = Duration::from_millis(500);

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const CLOSE: u8 = 255;

/// What a client asked to run.
struct Session {
    argv: Vec<String>,
    stdin: bool,
    stdout: bool,
    stderr: bool,
    half_close: bool,
}

/// Answers the upgrade request and serves the session in a task of its own.
pub(crate) fn upgrade(kubelet: Arc<Kubelet>, pod: &Value, call: Call) -> Result<Response<Body>, ApiError> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let argv = call.query.get("command").cloned().unwrap_or_default();
    if argv.is_empty() {
        return Err(ApiError::bad_request("you must specify at least one command for the container"));
    }
    if call.flag("tty") {
        return Err(ApiError::bad_request("the embedded cluster has no terminals: tty must be false"));
    }
    if let phase @ ("Succeeded" | "Failed") = pod["status"]["phase"].as_str().unwrap_or_default() {
        return Err(ApiError::bad_request(format!(
            "cannot exec into a container in a completed pod; current phase is {phase}"
        )));
    }
    let containers = pod["spec"]["containers"].as_array().cloned().unwrap_or_default();
    let container = match call.param("container") {
        "" if containers.len() == 1 => containers[0]["name"].as_str().unwrap_or_default().to_owned(),
        "" => {
            return Err(ApiError::bad_request(format!("a container name must be specified for pod {name}")));
        }
        named if containers.iter().any(|container| container["name"] == named) => named.to_owned(),
        named => {
            return Err(ApiError::bad_request(format!("container {named} is not valid for pod {name}")));
        }
    };
    let offered = call.header("sec-websocket-protocol").to_owned();
    let offers = |protocol: &str| offered.split(',').any(|one| one.trim() == protocol);
    let protocol = ["v5.channel.k8s.io", "v4.channel.k8s.io"].into_iter().find(|one| offers(one));
    let (Some(protocol), Some(upgrade)) = (protocol, call.upgrade) else {
        return Err(ApiError::bad_request(
            "Upgrade request required: a websocket with v5.channel.k8s.io or v4.channel.k8s.io",
        ));
    };
    let key = call.headers.get(header::SEC_WEBSOCKET_KEY);
    let key = key.ok_or_else(|| ApiError::bad_request("Sec-WebSocket-Key is missing"))?;
    let accept = derive_accept_key(key.as_bytes());
    let flag =
        |name: &str| call.query.get(name).and_then(|values| values.last()).is_some_and(|one| one == "true");
    let session = Session {
        argv,
        stdin: flag("stdin"),
        stdout: flag("stdout"),
        stderr: flag("stderr"),
        half_close: protocol.starts_with("v5"),
    };
    let surroundings = kubelet.surroundings(pod, &container);
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
            session.serve(socket, kubelet, surroundings, &container).await;
        }
    });
    let mut response = Response::new(empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    let accept = HeaderValue::from_str(&accept).map_err(|_| ApiError::internal("websocket accept key"))?;
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    Ok(response)
}

type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

impl Session {
    async fn serve(
        self,
        mut socket: Socket,
        kubelet: Arc<Kubelet>,
        surroundings: Option<Surroundings>,
        container: &str,
    ) {
        // An empty frame on stdout: the client sees that it is connected.
        let _ = socket.send(frame(STDOUT, &[])).await;
        let status = match surroundings {
            None => internal(format!("unable to upgrade connection: container not found (\"{container}\")")),
            Some(at) => match self.run(&mut socket, &kubelet, &at).await {
                Some(status) => status,
                None => return,
            },
        };
        let _ = socket.send(frame(STATUS, status.to_string().as_bytes())).await;
        let reason = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let _ = socket.close(Some(reason)).await;
        // The client answers the close; a client that does not is not waited for.
        let _ = tokio::time::timeout(Duration::from_secs(1), async {
            while let Some(Ok(_)) = socket.next().await {}
        })
        .await;
    }

    /// The status of the process, or none when the client has gone.
    async fn run(&self, socket: &mut Socket, kubelet: &Arc<Kubelet>, at: &Surroundings) -> Option<Value> {
        let pipe = |wanted: bool| if wanted { Stdio::piped() } else { Stdio::null() };
        let launched = kubelet.processes.launch(at, &self.argv, |command| {
            command.stdin(pipe(self.stdin)).stdout(pipe(self.stdout)).stderr(pipe(self.stderr));
        });
        let mut child = match launched.await {
            Ok(child) => child,
            Err(error @ LaunchError::NotFound(_)) => {
                return Some(internal(format!(
                    "error executing command in container: failed to exec in container: failed to start exec: OCI runtime exec failed: exec failed: unable to start container process: {error}"
                )));
            }
            Err(error) => return Some(internal(format!("error executing command in container: {error}"))),
        };
        let (output, mut frames) = mpsc::channel::<Message>(64);
        let readers = [
            child.stdout.take().map(|pipe| tokio::spawn(pump(pipe, STDOUT, output.clone()))),
            child.stderr.take().map(|pipe| tokio::spawn(pump(pipe, STDERR, output.clone()))),
        ];
        drop(output);
        let mut stdin = child.stdin.take().map(feed);
        let processes = Arc::clone(&kubelet.processes);
        let (exited, mut exit) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let pid = child.id();
            let status = child.wait().await;
            processes.ended(pid);
            let _ = exited.send(status);
        });
        let status = loop {
            tokio::select! {
                Some(frame) = frames.recv() => {
                    if socket.send(frame).await.is_err() {
                        drop(stdin.take());
                        discard(frames);
                        return None;
                    }
                }
                status = &mut exit => break status,
                message = socket.next() => match message {
                    Some(Ok(Message::Binary(data))) => self.input(&data, &mut stdin),
                    Some(Ok(Message::Text(data))) => self.input(data.as_bytes(), &mut stdin),
                    Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                    Some(Ok(Message::Close(_)) | Err(_)) | None => {
                        drop(stdin.take());
                        discard(frames);
                        return None;
                    }
                }
            }
        };
        drop(stdin.take());
        let drained = tokio::time::timeout(DRAIN, async {
            while let Some(frame) = frames.recv().await {
                socket.send(frame).await.ok()?;
            }
            Some(())
        });
        let gone = matches!(drained.await, Ok(None));
        for reader in readers.into_iter().flatten() {
            reader.abort();
        }
        if gone {
            return None;
        }
        Some(match status {
            Ok(Ok(status)) => exit_status(&self.argv, status),
            Ok(Err(error)) => internal(format!("error executing command in container: {error}")),
            Err(_) => internal("error executing command in container: its end was lost".to_owned()),
        })
    }

    fn input(&self, data: &[u8], stdin: &mut Option<mpsc::UnboundedSender<Bytes>>) {
        match data {
            [STDIN, content @ ..] if !content.is_empty() => {
                if let Some(stdin) = stdin {
                    let _ = stdin.send(Bytes::copy_from_slice(content));
                }
            }
            [CLOSE, STDIN] if self.half_close => drop(stdin.take()),
            // Empty frames, resize, and half-closes of channels the client only reads.
            _ => {}
        }
    }
}

/// Writes input in a task of its own, so that a process which does not read cannot hold up its own output.
fn feed(mut pipe: tokio::process::ChildStdin) -> mpsc::UnboundedSender<Bytes> {
    let (sender, mut chunks) = mpsc::unbounded_channel::<Bytes>();
    tokio::spawn(async move {
        while let Some(chunk) = chunks.recv().await {
            if pipe.write_all(&chunk).await.is_err() {
                break;
            }
        }
    });
    sender
}

async fn pump(mut pipe: impl AsyncRead + Unpin, channel: u8, output: mpsc::Sender<Message>) {
    let mut buffer = vec![0; 32 * 1024];
    while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
        if output.send(frame(channel, &buffer[..count])).await.is_err() {
            break;
        }
    }
}

/// Keeps reading for a process nobody listens to, so that it does not block or die on its own output.
fn discard(mut frames: mpsc::Receiver<Message>) {
    tokio::spawn(async move { while frames.recv().await.is_some() {} });
}

fn frame(channel: u8, content: &[u8]) -> Message {
    let mut data = Vec::with_capacity(content.len() + 1);
    data.push(channel);
    data.extend_from_slice(content);
    Message::Binary(Bytes::from(data))
}

fn exit_status(argv: &[String], status: std::process::ExitStatus) -> Value {
    use std::os::unix::process::ExitStatusExt as _;
    // A signal counts as 128 + its number, as shells and container runtimes report it.
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    if code == 0 {
        return json!({"metadata": {}, "status": "Success"});
    }
    json!({
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": format!(
            "command terminated with non-zero exit code: error executing command [{}], exit code {code}", argv.join(" ")
        ),
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

fn internal(message: String) -> Value {
    json!({
        "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
        "message": format!("Internal error occurred: {message}"), "details": {"causes": [{"message": message}]},
    })
}
