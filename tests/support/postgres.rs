//! A real PostgreSQL for one test: own directory, own port and socket, ended with its owner.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tollgate::clock::monotonic;

/// How long a server may take to start on a busy machine.
const START_MAX: Duration = Duration::from_secs(60);

/// A running server, with the user `tollgate` that has the password `pa55word`. Dropped, it is
/// killed by its own process id, and its children end with it.
pub struct PostgresServer {
    directory: tempfile::TempDir,
    port: u16,
    child: Option<Child>,
    has_tls: bool,
    /// Who runs it: PostgreSQL refuses to be run by root.
    run_as: Option<(u32, u32)>,
}

impl PostgresServer {
    /// A server, or `None`, with a printed line, where there is no PostgreSQL. With
    /// `TOLLGATE_REQUIRE_POSTGRES=1` its lack is a failure.
    pub fn spawn() -> Option<Self> {
        Self::spawn_with(false)
    }

    /// The same, with a certificate for `localhost` by an authority of its own: see `authority`.
    pub fn spawn_with_tls() -> Option<Self> {
        Self::spawn_with(true)
    }

    fn spawn_with(has_tls: bool) -> Option<Self> {
        let Some(binaries) = binaries() else {
            assert!(
                std::env::var_os("TOLLGATE_REQUIRE_POSTGRES").is_none_or(|it| it != "1"),
                "TOLLGATE_REQUIRE_POSTGRES=1, but there is no PostgreSQL"
            );
            println!("SKIPPED: no PostgreSQL found; install one to run this test");
            return None;
        };
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let mut server = PostgresServer {
            directory: tempfile::tempdir().unwrap(),
            port: port.port(),
            child: None,
            has_tls,
            run_as: unprivileged(),
        };
        server.give_away(server.directory.path());
        let password = server.path("password");
        std::fs::write(&password, "pa55word\n").unwrap();
        server.give_away(&password);
        let mut command = server.command(&binaries.join("initdb"));
        command.args(["--username=tollgate", "--auth=scram-sha-256", "--no-sync", "--no-locale"]);
        command.args(["--encoding=UTF8", "--pgdata"]).arg(server.path("data"));
        command.arg("--pwfile").arg(&password);
        let made = command.stdout(Stdio::null()).stderr(Stdio::piped()).output().unwrap();
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        if has_tls {
            server.make_certificates();
        }
        server.start();
        Some(server)
    }

    /// Starts it with all that it held, and waits until it answers.
    pub fn start(&mut self) {
        let binaries = binaries().unwrap();
        let mut command = self.command(&binaries.join("postgres"));
        command.arg("-D").arg(self.path("data"));
        command.arg("-k").arg(self.directory.path());
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-F"]);
        command.args(["-c", "max_connections=40", "-c", "shared_buffers=16MB"]);
        if self.has_tls {
            command.args(["-c", "ssl=on", "-c"]);
            command.arg(format!("ssl_cert_file={}", self.path("server.crt").display()));
            command.arg("-c");
            command.arg(format!("ssl_key_file={}", self.path("server.key").display()));
        }
        let log = std::fs::File::create(self.path("log")).unwrap();
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.child = Some(child);
        let deadline = monotonic() + START_MAX;
        while self.try_sql("select 1").is_err() {
            let status = self.child.as_mut().unwrap().try_wait().unwrap();
            assert_eq!(status, None, "postgres ended at once: {}", self.log());
            assert!(monotonic() < deadline, "postgres did not start: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it and all of its children; its data stay.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // At once, children included: they are told by the one that is asked.
        kill_process(Pid::from_child(&child), Signal::CONT).ok();
        kill_process(Pid::from_child(&child), Signal::QUIT).ok();
        let deadline = monotonic() + Duration::from_secs(10);
        while matches!(child.try_wait(), Ok(None)) {
            if monotonic() > deadline {
                child.kill().ok();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Stops every one of its processes where it stands: connections stay open, nothing answers.
    pub fn pause(&self) {
        self.signal_all(Signal::STOP);
    }

    /// Lets a paused one go on.
    pub fn resume(&self) {
        self.signal_all(Signal::CONT);
    }

    /// Runs statements, one after the other, and gives the first column of all rows.
    pub fn sql(&self, statements: &str) -> Vec<String> {
        self.try_sql(statements).unwrap()
    }

    fn try_sql(&self, statements: &str) -> Result<Vec<String>, tokio_postgres::Error> {
        let config: tokio_postgres::Config = self.socket_url().parse().unwrap();
        let statements = statements.to_owned();
        let work = async move {
            let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
            let driver = tokio::spawn(connection);
            let messages = client.simple_query(&statements).await?;
            drop(client);
            driver.await.ok();
            let rows = messages.iter().filter_map(|message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            });
            Ok(rows.collect())
        };
        // Tests that are on a runtime of their own cannot wait on another one.
        let work = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(work)
        };
        std::thread::scope(|scope| scope.spawn(work).join().unwrap())
    }

    /// Its URL over TCP.
    pub fn url(&self) -> String {
        format!("postgres://tollgate:pa55word@127.0.0.1:{}/postgres", self.port)
    }

    /// The same, by the name of the machine, for certificates.
    pub fn url_by_name(&self) -> String {
        format!("postgres://tollgate:pa55word@localhost:{}/postgres", self.port)
    }

    /// Its URL over the socket.
    pub fn socket_url(&self) -> String {
        let directory = self.directory.path().display();
        format!(
            "postgres:///postgres?host={directory}&port={}&user=tollgate&password=pa55word",
            self.port
        )
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The authority's certificate.
    pub fn authority(&self) -> PathBuf {
        self.path("ca.crt")
    }

    /// Another authority's certificate.
    pub fn other_authority(&self) -> PathBuf {
        self.path("other.crt")
    }

    /// What it wrote.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.directory.path()).stdin(Stdio::null());
        if let Some((user, group)) = self.run_as {
            command.uid(user).gid(group);
        }
        command
    }

    fn give_away(&self, path: &Path) {
        if let Some((user, group)) = self.run_as {
            std::os::unix::fs::chown(path, Some(user), Some(group)).unwrap();
        }
    }

    fn signal_all(&self, signal: Signal) {
        let child = self.child.as_ref().expect("the server runs");
        let parent = Pid::from_child(child);
        // The one that makes the others first, so that none is missed; the last one to go on.
        kill_process(parent, signal).unwrap();
        for child in children_of(child.id()) {
            if test_kill_process(child).is_ok() {
                kill_process(child, signal).ok();
            }
        }
    }

    fn make_certificates(&self) {
        let script = "
            set -e
            openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
                -subj /CN=authority -keyout ca.key -out ca.crt
            openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
                -subj /CN=other -keyout other.key -out other.crt
            openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
                -subj /CN=localhost -keyout server.key -out server.csr
            printf 'subjectAltName=DNS:localhost\\n' > server.ext
            openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 \
                -extfile server.ext -out server.crt
            chmod 600 server.key
        ";
        let made = self.command(Path::new("sh")).args(["-c", script]).output().unwrap();
        assert!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.resume();
        }
        self.stop();
    }
}

/// Where `initdb` and `postgres` are.
fn binaries() -> Option<PathBuf> {
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&on_path).collect();
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    places.extend(versions.map(|version| version.path().join("bin")));
    places.into_iter().find(|it| it.join("initdb").exists() && it.join("postgres").exists())
}

/// Somebody to run it as, where this is root: its own user, or nobody.
fn unprivileged() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let of = |name: &str| {
        let line = users.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2).map(|field| field.parse().ok());
        Some((fields.next()??, fields.next()??))
    };
    Some(of("postgres").or_else(|| of("nobody")).expect("a user that is not root"))
}

fn children_of(parent: u32) -> Vec<Pid> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let children = std::fs::read_to_string(path).unwrap_or_default();
    children.split_ascii_whitespace().filter_map(|id| Pid::from_raw(id.parse().ok()?)).collect()
}
