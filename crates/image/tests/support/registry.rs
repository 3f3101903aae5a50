//! A registry on loopback that speaks just enough HTTP and misbehaves on demand.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use super::image::{Image, MANIFEST};

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// With the query.
    pub path: String,
    pub headers: HashMap<String, String>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The first byte asked for by a Range header.
    pub fn range_start(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Whether there is a Content-Length.
    pub with_length: bool,
    /// The connection is cut after so many bytes of the body.
    pub cut_after: Option<usize>,
    /// Then the connection stays open and nothing comes.
    pub hangs: bool,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            with_length: true,
            cut_after: None,
            hangs: false,
        }
    }

    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub fn without_length(mut self) -> Self {
        self.with_length = false;
        self
    }

    /// The connection is cut without a word.
    pub fn nothing() -> Self {
        Self::new(0, "")
    }

    pub fn hang_after(mut self, bytes: usize) -> Self {
        (self.cut_after, self.hangs) = (Some(bytes), true);
        self
    }

    pub fn cut_after(mut self, bytes: usize) -> Self {
        self.cut_after = Some(bytes);
        self
    }
}

type Mischief = Box<dyn FnMut(&Request) -> Option<Reply> + Send>;

#[derive(Default)]
struct State {
    manifests: HashMap<String, (String, Vec<u8>)>,
    blobs: HashMap<String, Vec<u8>>,
    log: Vec<Request>,
    mischief: Option<Mischief>,
}

/// The server; ends when dropped.
pub struct FakeRegistry {
    /// Host and port.
    pub address: String,
    state: Arc<Mutex<State>>,
    server: JoinHandle<()>,
}

impl Drop for FakeRegistry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl FakeRegistry {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let server = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        Self { address, state, server }
    }

    /// Offers an image as `name:tag` and by digest.
    pub fn offer(&self, name: &str, tag: &str, image: &Image) {
        self.offer_manifest(name, tag, MANIFEST, image.manifest_bytes());
        self.state.lock().unwrap().blobs.extend(image.blobs.clone());
    }

    pub fn offer_manifest(&self, name: &str, tag: &str, kind: &str, bytes: Vec<u8>) {
        let mut state = self.state.lock().unwrap();
        let digest = super::image::digest(&bytes);
        state
            .manifests
            .insert(format!("/v2/{name}/manifests/{digest}"), (kind.to_owned(), bytes.clone()));
        state.manifests.insert(format!("/v2/{name}/manifests/{tag}"), (kind.to_owned(), bytes));
    }

    /// Serves other bytes under a blob's digest.
    pub fn replace_blob(&self, digest: &str, bytes: Vec<u8>) {
        self.state.lock().unwrap().blobs.insert(digest.to_owned(), bytes);
    }

    /// Answers some requests otherwise; those for which it gives `None` are answered properly.
    pub fn misbehave(&self, mischief: impl FnMut(&Request) -> Option<Reply> + Send + 'static) {
        self.state.lock().unwrap().mischief = Some(Box::new(mischief));
    }

    /// All requests so far.
    pub fn log(&self) -> Vec<Request> {
        self.state.lock().unwrap().log.clone()
    }

    /// How many requests there were for paths with this in them.
    pub fn count(&self, part: &str) -> usize {
        self.log().iter().filter(|request| request.path.contains(part)).count()
    }

    pub fn reference(&self, image: &str) -> String {
        format!("{}/{image}", self.address)
    }
}

async fn serve(mut stream: TcpStream, state: Arc<Mutex<State>>) {
    let Some(request) = read_request(&mut stream).await else { return };
    let reply = {
        let mut state = state.lock().unwrap();
        state.log.push(request.clone());
        let mischief = state.mischief.as_mut().and_then(|mischief| mischief(&request));
        mischief.unwrap_or_else(|| proper(&state, &request))
    };
    if reply.status == 0 {
        return;
    }
    let mut head = format!("HTTP/1.1 {} Whatever\r\nConnection: close\r\n", reply.status);
    if reply.with_length {
        head += &format!("Content-Length: {}\r\n", reply.body.len());
    }
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let reply = if request.method == "HEAD" { Reply { body: Vec::new(), ..reply } } else { reply };
    let body = &reply.body[..reply.cut_after.unwrap_or(usize::MAX).min(reply.body.len())];
    // The client may be gone: its choice.
    let _ = stream.write_all(format!("{head}\r\n").as_bytes()).await;
    let _ = stream.write_all(body).await;
    if reply.hangs {
        // Until the client goes.
        let _ = stream.read_u8().await;
    }
    let _ = stream.shutdown().await;
}

async fn read_request(stream: &mut TcpStream) -> Option<Request> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(stream.read_u8().await.ok()?);
    }
    let text = String::from_utf8(bytes).ok()?;
    let mut lines = text.lines();
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    Some(Request { method, path, headers })
}

fn proper(state: &State, request: &Request) -> Reply {
    if let Some((kind, bytes)) = state.manifests.get(&request.path) {
        let digest = super::image::digest(bytes);
        return Reply::new(200, bytes.clone())
            .header("Content-Type", kind)
            .header("Docker-Content-Digest", digest);
    }
    let blob = request.path.split_once("/blobs/").and_then(|(_, digest)| state.blobs.get(digest));
    match (blob, request.range_start()) {
        (Some(blob), Some(start)) => ranged(blob, start),
        (Some(blob), None) => Reply::new(200, blob.clone()),
        (None, _) => Reply::new(404, "{}"),
    }
}

/// The rest of a blob.
pub fn ranged(blob: &[u8], start: usize) -> Reply {
    let range = format!("bytes {start}-{}/{}", blob.len() - 1, blob.len());
    Reply::new(206, &blob[start..]).header("Content-Range", range)
}
