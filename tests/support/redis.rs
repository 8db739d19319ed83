//! A real `redis-server` for one test: own directory, own socket, ended with its owner.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tollgate::clock::monotonic;

/// How long a server may take to start on a busy machine.
const START_MAX: Duration = Duration::from_secs(20);

/// A running server. Dropped, it is killed by its own process id.
pub struct RedisServer {
    directory: tempfile::TempDir,
    options: Vec<String>,
    port: Option<u16>,
    child: Option<Child>,
}

/// A reply, as far as tests look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Text(Vec<u8>),
    Integer(i64),
    Nil,
    Error(String),
    List(Vec<Reply>),
}

impl RedisServer {
    /// A server that listens on a socket in its directory, or `None`, with a printed line, where
    /// there is no `redis-server`. With `TOLLGATE_REQUIRE_REDIS=1` its lack is a failure.
    pub fn spawn() -> Option<Self> {
        Self::spawn_with(&[])
    }

    /// Like `spawn`, with more options.
    pub fn spawn_with(options: &[&str]) -> Option<Self> {
        let mut server = Self::prepare(options)?;
        server.start();
        Some(server)
    }

    /// Like `spawn`, listening on a port of the loopback interface too.
    pub fn spawn_tcp() -> Option<Self> {
        Self::spawn_tcp_with(&[])
    }

    /// Like `spawn_tcp`, with more options.
    pub fn spawn_tcp_with(options: &[&str]) -> Option<Self> {
        let mut server = Self::prepare(options)?;
        server.port = Some(free_port());
        server.start();
        Some(server)
    }

    /// A server that is not started yet; its socket's path is known.
    pub fn prepare(options: &[&str]) -> Option<Self> {
        Program::Server.found()?;
        Some(RedisServer {
            directory: tempfile::tempdir().unwrap(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
            port: None,
            child: None,
        })
    }

    /// Starts it, empty, and waits until it answers.
    pub fn start(&mut self) {
        let _ = std::fs::remove_file(self.socket());
        let deadline = monotonic() + START_MAX;
        self.child = Some(self.spawn_server());
        while UnixStream::connect(self.socket()).is_err() {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(monotonic() < deadline, "redis-server did not start: {ended:?}");
            std::thread::sleep(Duration::from_millis(if ended.is_some() { 100 } else { 5 }));
            if ended.is_some() {
                // Somebody's connection may have its port for a moment, or that of its cluster.
                self.child = Some(self.spawn_server());
            }
        }
    }

    fn spawn_server(&self) -> Child {
        Program::Server
            .command()
            .args(["--save", "", "--appendonly", "no", "--daemonize", "no", "--unixsocket"])
            .arg(self.socket())
            .args(["--bind", "127.0.0.1", "--port", &self.port.unwrap_or(0).to_string(), "--dir"])
            .arg(self.directory.path())
            .args(&self.options)
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Kills it, with all that it holds.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Has it end as it does when it is told to, and waits for that.
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        self.child.take().unwrap().wait().unwrap();
    }

    /// Whether it was started and not killed.
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// Stops its process where it stands: connections stay open, nothing answers.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets a paused one go on.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Its URL over the socket.
    pub fn url(&self) -> String {
        format!("redis+unix://{}", self.socket().display())
    }

    /// Its URL over TCP.
    pub fn tcp_url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port.expect("spawned with spawn_tcp"))
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port.expect("spawned with spawn_tcp")
    }

    /// Runs one command on a connection of its own.
    pub fn command(&self, arguments: &[&[u8]]) -> Reply {
        self.try_command(arguments).unwrap()
    }

    /// The same of a server that may end the connection meanwhile, as sentinels have one do that they
    /// make a replica.
    ///
    /// # Errors
    /// The connection's.
    pub fn try_command(&self, arguments: &[&[u8]]) -> io::Result<Reply> {
        let mut stream = UnixStream::connect(self.socket())?;
        stream.write_all(&request(arguments))?;
        read_reply(&mut BufReader::new(stream))
    }

    /// Runs all of them on one connection, fifty at a time, and gives the last reply.
    pub fn pipeline(&self, commands: &[Vec<Vec<u8>>]) -> Reply {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut last = Reply::Nil;
        for batch in commands.chunks(50) {
            let requests: Vec<u8> = batch.iter().flat_map(|command| request(command)).collect();
            stream.write_all(&requests).unwrap();
            for _ in batch {
                last = read_reply(&mut reader).unwrap();
                assert!(!matches!(last, Reply::Error(_)), "{last:?}");
            }
        }
        last
    }

    /// Runs one command of words.
    pub fn words(&self, line: &str) -> Reply {
        self.command(&line.split(' ').map(str::as_bytes).collect::<Vec<_>>())
    }

    /// Every key there is, but for those by which replicas know of each other.
    pub fn keys(&self) -> Vec<Vec<u8>> {
        let of_replicas = |key: &Vec<u8>| key.windows(10).any(|part| part == b"{replicas}");
        let mut keys = self.all_keys();
        keys.retain(|key| !of_replicas(key));
        keys
    }

    /// Every key there is.
    pub fn all_keys(&self) -> Vec<Vec<u8>> {
        let Reply::List(keys) = self.words("KEYS *") else { panic!("KEYS did not give a list") };
        keys.into_iter()
            .map(|key| match key {
                Reply::Text(key) => key,
                other => panic!("{other:?} is no key"),
            })
            .collect()
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("redis.sock")
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("the server runs");
        kill_process(Pid::from_child(child), signal).unwrap();
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port of the loopback interface that nobody listens on.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// A program of Redis, or the one of Valkey that stands in for it.
#[derive(Clone, Copy, Debug)]
pub enum Program {
    Server,
    Sentinel,
    Cli,
}

impl Program {
    /// Its usual name, and the variable that names another file.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Program::Server => ("redis-server", "TOLLGATE_REDIS_SERVER"),
            Program::Sentinel => ("redis-sentinel", "TOLLGATE_REDIS_SENTINEL"),
            Program::Cli => ("redis-cli", "TOLLGATE_REDIS_CLI"),
        }
    }

    /// How it is run.
    pub fn command(self) -> Command {
        let (usual, variable) = self.names();
        Command::new(std::env::var_os(variable).unwrap_or_else(|| usual.into()))
    }

    /// Whether it is there; `None`, with a printed line, where it is not. With
    /// `TOLLGATE_REQUIRE_REDIS=1`, or where the variable names a file, its lack is a failure.
    pub fn found(self) -> Option<()> {
        let found = self.command().arg("--version").stdout(Stdio::null()).status();
        if found.is_err() {
            let (usual, variable) = self.names();
            let is_set = std::env::var_os(variable).is_some();
            assert!(!is_set, "{variable} names what cannot be run");
            assert!(
                std::env::var_os("TOLLGATE_REQUIRE_REDIS").is_none_or(|it| it != "1"),
                "TOLLGATE_REQUIRE_REDIS=1, but there is no {usual}"
            );
            println!("SKIPPED: no {usual} found; install one to run this test");
            return None;
        }
        Some(())
    }
}

fn request(arguments: &[impl AsRef<[u8]>]) -> Vec<u8> {
    let mut request = format!("*{}\r\n", arguments.len()).into_bytes();
    for argument in arguments.iter().map(AsRef::as_ref) {
        request.extend(format!("${}\r\n", argument.len()).as_bytes());
        request.extend(argument);
        request.extend(b"\r\n");
    }
    request
}

fn read_reply(reader: &mut BufReader<UnixStream>) -> io::Result<Reply> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let (kind, rest) = line.trim_end().split_at(1);
    Ok(match kind {
        "+" => Reply::Text(rest.into()),
        "-" => Reply::Error(rest.into()),
        ":" => Reply::Integer(rest.parse().unwrap()),
        "$" if rest == "-1" => Reply::Nil,
        "$" => {
            let mut text = vec![0; rest.parse::<usize>().unwrap() + 2];
            reader.read_exact(&mut text)?;
            text.truncate(text.len() - 2);
            Reply::Text(text)
        }
        "*" => {
            let replies = (0..rest.parse().unwrap()).map(|_| read_reply(reader));
            Reply::List(replies.collect::<io::Result<_>>()?)
        }
        _ => panic!("unexpected reply {line:?}"),
    })
}
