//! Several real servers for one test: a cluster, or a primary with its replicas under sentinels.
//! All on ports of the loopback interface that are free, ended with their owner.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use tollgate::clock::monotonic;

use crate::redis::{Program, RedisServer, Reply, free_port};

/// By when whatever servers agree on among themselves is agreed on.
const AGREED_MAX: Duration = Duration::from_secs(30);
/// How long a server may be silent before the others call it dead, in milliseconds.
pub const SILENCE_MS: &str = "500";
/// Slots of a cluster.
const SLOTS: usize = 16_384;

/// Waits for a condition.
#[track_caller]
pub fn agreed(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = monotonic() + AGREED_MAX;
    while !condition() {
        assert!(monotonic() < deadline, "not so in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What a command of words is answered with, as text.
pub fn text(server: &RedisServer, line: &str) -> String {
    match server.words(line) {
        Reply::Text(text) => String::from_utf8(text).unwrap(),
        other => panic!("{line}: {other:?}"),
    }
}

/// Says that it is done, or why it is not.
#[track_caller]
pub fn ok(server: &RedisServer, line: &str) {
    let reply = server.words(line);
    assert_eq!(reply, Reply::Text(b"OK".into()), "{line}");
}

/// The slot of a key without braces, or of what is in them.
pub fn slot(server: &RedisServer, key: &str) -> usize {
    match server.command(&[b"CLUSTER", b"KEYSLOT", key.as_bytes()]) {
        Reply::Integer(slot) => usize::try_from(slot).unwrap(),
        other => panic!("{other:?} is no slot"),
    }
}

/// Whether there is what sentinels take; `None`, with a printed line, where there is not. With
/// `TOLLGATE_REQUIRE_REDIS=1` its lack is a failure.
pub fn has_sentinels() -> Option<()> {
    Program::Sentinel.found()?;
    Program::Cli.found()
}

/// A cluster: so many primaries, then their replicas, one for each of the first, then such as keep
/// nothing.
pub struct Cluster {
    pub servers: Vec<RedisServer>,
    primaries: usize,
}

impl Cluster {
    /// Starts it and waits until all agree that it is whole.
    pub fn spawn(primaries: usize, replicas: usize, options: &[&str]) -> Option<Self> {
        Self::spawn_with_spares(primaries, replicas, 0, options)
    }

    /// The same, with so many that keep nothing.
    pub fn spawn_with_spares(
        primaries: usize,
        replicas: usize,
        spares: usize,
        options: &[&str],
    ) -> Option<Self> {
        let mut servers = Vec::new();
        for _ in 0..primaries + replicas + spares {
            let bus = free_port().to_string();
            let mut all = vec!["--cluster-enabled", "yes", "--cluster-port", &bus];
            all.extend(["--cluster-node-timeout", SILENCE_MS, "--repl-diskless-sync-delay", "0"]);
            // A replica may stand in however long it has heard nothing.
            all.extend(["--cluster-replica-validity-factor", "0"]);
            all.extend(options);
            servers.push((RedisServer::spawn_tcp_with(&all)?, bus));
        }
        for (index, (server, _)) in servers.iter().enumerate() {
            ok(server, &format!("CLUSTER SET-CONFIG-EPOCH {}", index + 1));
            if index < primaries {
                let (first, last) =
                    (SLOTS * index / primaries, SLOTS * (index + 1) / primaries - 1);
                ok(server, &format!("CLUSTER ADDSLOTSRANGE {first} {last}"));
            }
        }
        let (first, _) = &servers[0];
        for (server, bus) in &servers[1..] {
            ok(first, &format!("CLUSTER MEET 127.0.0.1 {} {bus}", server.port()));
        }
        let servers: Vec<RedisServer> = servers.into_iter().map(|(server, _)| server).collect();
        let cluster = Cluster { servers, primaries };
        cluster.wait_whole();
        let of_primary = |index: usize| text(&cluster.servers[index], "CLUSTER MYID");
        for index in 0..replicas {
            let replica = &cluster.servers[primaries + index];
            ok(replica, &format!("CLUSTER REPLICATE {}", of_primary(index)));
        }
        for replica in &cluster.servers[primaries..primaries + replicas] {
            agreed("the replica follows", || {
                text(replica, "INFO replication").contains("master_link_status:up")
            });
        }
        Some(cluster)
    }

    /// Waits until every server that runs knows all of them, and that all slots are kept.
    pub fn wait_whole(&self) {
        let count = format!("cluster_known_nodes:{}", self.servers.len());
        agreed("the cluster is whole", || {
            self.running().all(|server| {
                let info = text(server, "CLUSTER INFO");
                info.contains("cluster_state:ok") && info.contains(&count)
            })
        });
    }

    /// Waits until a replica has taken its primary's place, and the cluster is whole with it. Returns
    /// when either was so.
    pub fn wait_promoted(&self, place: usize) -> (Instant, Instant) {
        let server = &self.servers[place];
        agreed("the replica is a primary", || {
            text(server, "INFO replication").contains("role:master")
        });
        let promoted = monotonic();
        agreed("the cluster is whole", || {
            text(server, "CLUSTER INFO").contains("cluster_state:ok")
        });
        (promoted, monotonic())
    }

    /// Has a replica take its primary's place, with the consent of all.
    pub fn hand_over(&self, place: usize) {
        let server = &self.servers[place];
        let is_primary = || text(server, "INFO replication").contains("role:master");
        let id = text(server, "CLUSTER MYID");
        agreed("all know it for a replica", || {
            self.running().all(|other| {
                let nodes = text(other, "CLUSTER NODES");
                nodes.lines().any(|line| line.starts_with(&id) && line.contains("slave"))
            })
        });
        // The others may not agree while they still remember the last time.
        agreed("the replica is a primary", || {
            server.words("CLUSTER FAILOVER");
            let asked = monotonic();
            while !is_primary() && asked.elapsed() < Duration::from_secs(6) {
                std::thread::sleep(Duration::from_millis(10));
            }
            is_primary()
        });
        self.wait_promoted(place);
    }

    /// Those that run.
    pub fn running(&self) -> impl Iterator<Item = &RedisServer> {
        self.servers.iter().filter(|server| server.is_running())
    }

    /// Its URL; it names those whose places are given.
    pub fn url(&self, places: &[usize]) -> String {
        let address = |place: &usize| format!("127.0.0.1:{}", self.servers[*place].port());
        let nodes: Vec<String> =
            places[1..].iter().map(|place| format!("node={}", address(place))).collect();
        format!("redis-cluster://{}?{}", address(&places[0]), nodes.join("&"))
    }

    /// Announces to both that a slot goes from one server to another.
    pub fn begin_move(&self, slot: usize, from: usize, to: usize) {
        let id = |place: usize| text(&self.servers[place], "CLUSTER MYID");
        ok(&self.servers[to], &format!("CLUSTER SETSLOT {slot} IMPORTING {}", id(from)));
        ok(&self.servers[from], &format!("CLUSTER SETSLOT {slot} MIGRATING {}", id(to)));
    }

    /// Hands over the keys of a slot of which `wanted` says so.
    pub fn move_keys(&self, slot: usize, from: usize, to: usize, wanted: impl Fn(&str) -> bool) {
        let (from, to) = (&self.servers[from], self.servers[to].port());
        let Reply::List(keys) = from.words(&format!("CLUSTER GETKEYSINSLOT {slot} 1000")) else {
            panic!("no keys")
        };
        for key in keys {
            let Reply::Text(key) = key else { panic!("{key:?} is no key") };
            let key = String::from_utf8(key).unwrap();
            if wanted(&key) {
                // What has ended meanwhile is not there any more.
                let reply = from.words(&format!("MIGRATE 127.0.0.1 {to} {key} 0 5000"));
                assert!(matches!(&reply, Reply::Text(said) if said == b"OK" || said == b"NOKEY"));
            }
        }
    }

    /// Tells both that a slot has moved; the others hear of it from them.
    pub fn end_move(&self, slot: usize, from: usize, to: usize) {
        let id = text(&self.servers[to], "CLUSTER MYID");
        for place in [to, from] {
            ok(&self.servers[place], &format!("CLUSTER SETSLOT {slot} NODE {id}"));
        }
    }

    /// Which of the first primaries kept a slot when all began.
    pub fn first_keeper(&self, slot: usize) -> usize {
        (0..self.primaries).find(|index| slot < SLOTS * (index + 1) / self.primaries).unwrap()
    }
}

/// A primary, its replicas, and sentinels that watch over them.
pub struct Watched {
    pub servers: Vec<RedisServer>,
    sentinels: Vec<Sentinel>,
    password: Option<String>,
}

/// One sentinel.
pub struct Sentinel {
    port: u16,
    child: Child,
    _directory: tempfile::TempDir,
}

impl Watched {
    /// What the sentinels call it.
    pub const SERVICE: &str = "main";

    /// Starts one primary, so many replicas, and three sentinels, who have a password if one is
    /// given.
    pub fn spawn(replicas: usize, password: Option<&str>) -> Option<Self> {
        has_sentinels()?;
        let primary = RedisServer::spawn_tcp_with(&["--repl-diskless-sync-delay", "0"])?;
        let port = primary.port().to_string();
        let mut servers = vec![primary];
        for _ in 0..replicas {
            let of = format!("127.0.0.1 {port}");
            servers.push(RedisServer::spawn_tcp_with(&["--replicaof", &of])?);
        }
        for replica in &servers[1..] {
            agreed("the replica follows", || {
                text(replica, "INFO replication").contains("master_link_status:up")
            });
        }
        let sentinels = (0..3).map(|_| Sentinel::spawn(&port, password)).collect();
        let watched = Watched { servers, sentinels, password: password.map(str::to_owned) };
        for sentinel in &watched.sentinels {
            agreed("the sentinels know each other and the replicas", || {
                let told = sentinel.ask(password, &["SENTINEL", "MASTER", Self::SERVICE]);
                let knows = |name: &str, count: usize| told.contains(&format!("{name}\n{count}\n"));
                knows("num-other-sentinels", 2) && knows("num-slaves", replicas)
            });
        }
        Some(watched)
    }

    /// The URL that names all sentinels. `parameters` come after their names.
    pub fn url(&self, user_info: &str, parameters: &str) -> String {
        let address = |sentinel: &Sentinel| format!("127.0.0.1:{}", sentinel.port);
        let nodes: Vec<String> =
            self.sentinels[1..].iter().map(|it| format!("node={}", address(it))).collect();
        let (first, nodes) = (address(&self.sentinels[0]), nodes.join("&"));
        let service = Self::SERVICE;
        format!(
            "redis-sentinel://{user_info}{first}/0?sentinelServiceName={service}&{nodes}{parameters}"
        )
    }

    /// Which of the servers the sentinels agree on; `None` while they do not.
    pub fn primary(&self) -> Option<usize> {
        let password = self.password.as_deref();
        let named: Vec<String> = self
            .sentinels
            .iter()
            .map(|it| it.ask(password, &["SENTINEL", "GET-MASTER-ADDR-BY-NAME", Self::SERVICE]))
            .collect();
        if named.iter().any(|it| *it != named[0]) {
            return None;
        }
        let port = named[0].lines().nth(1)?.parse::<u16>().ok()?;
        self.servers.iter().position(|server| server.port() == port)
    }

    /// Waits until another server than that one is a primary, and until most of the sentinels name it.
    /// Returns when either was so.
    pub fn replaced(&self, place: usize) -> (Instant, Instant) {
        let others = |server: &&RedisServer| {
            server.is_running() && server.port() != self.servers[place].port()
        };
        agreed("another server is a primary", || {
            self.servers
                .iter()
                .filter(others)
                .any(|it| text(it, "INFO replication").contains("role:master"))
        });
        let promoted = monotonic();
        let old = self.servers[place].port().to_string();
        let password = self.password.as_deref();
        let ask = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", Self::SERVICE];
        agreed("most sentinels name another primary", || {
            let named = self.sentinels.iter().map(|it| it.ask(password, &ask));
            named.filter(|named| named.lines().nth(1).is_some_and(|port| port != old)).count() >= 2
        });
        (promoted, monotonic())
    }

    /// Has a sentinel make another server the primary.
    pub fn fail_over(&self) {
        let reply = self.sentinels[0]
            .ask(self.password.as_deref(), &["SENTINEL", "FAILOVER", Self::SERVICE]);
        assert_eq!(reply.trim(), "OK");
    }

    /// Stops the first sentinel where it stands: it accepts connections and answers nothing.
    pub fn pause_first_sentinel(&self) {
        crate::support::signal(self.sentinels[0].child.id(), "STOP");
    }
}

impl Sentinel {
    fn spawn(of_port: &str, own: Option<&str>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = free_port();
        let service = Watched::SERVICE;
        let mut config = format!(
            "bind 127.0.0.1\nport {port}\ndir {}\nsentinel monitor {service} 127.0.0.1 {of_port} 2\n\
             sentinel down-after-milliseconds {service} {SILENCE_MS}\n\
             sentinel failover-timeout {service} 2000\n",
            directory.path().display()
        );
        if let Some(own) = own {
            config.push_str(&format!("requirepass {own}\n"));
        }
        let path = directory.path().join("sentinel.conf");
        std::fs::write(&path, config).unwrap();
        let mut command = Program::Sentinel.command();
        let child = command.arg(path).stdout(Stdio::null()).spawn().unwrap();
        let sentinel = Sentinel { port, child, _directory: directory };
        agreed("the sentinel answers", || sentinel.ask(own, &["PING"]).trim() == "PONG");
        sentinel
    }

    /// One that watches alone, speaks nothing but TLS, and is not waited for.
    pub fn spawn_over_tls(of_port: &str, options: &[String]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let service = Watched::SERVICE;
        let config = format!(
            "bind 127.0.0.1\nport 0\ndir {}\nsentinel monitor {service} 127.0.0.1 {of_port} 1\n",
            directory.path().display()
        );
        let path = directory.path().join("sentinel.conf");
        std::fs::write(&path, config).unwrap();
        let mut command = Program::Sentinel.command();
        let child = command.arg(path).args(options).stdout(Stdio::null()).spawn().unwrap();
        Sentinel { port: 0, child, _directory: directory }
    }

    fn ask(&self, password: Option<&str>, words: &[&str]) -> String {
        let mut command = Program::Cli.command();
        command.args(["-p", &self.port.to_string()]).args(words);
        if let Some(password) = password {
            command.env("REDISCLI_AUTH", password);
        }
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}
