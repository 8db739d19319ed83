//! One process takes over from another by its listening sockets, or gets them from systemd: no
//! connection is refused or lost, and no request.
//!
//! `HANDOVER_REQUESTS` says how many are sent; `tests/long.sh handover` takes 100,000 each.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::disallowed_methods, reason = "tests wait by the real time, and end")]

#[path = "support/certificates.rs"]
mod certificates;
#[path = "support/http2.rs"]
mod http2;
#[path = "support/load.rs"]
mod load;
mod support;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use load::{Fast, HTTP_1, HTTP_2, Run, Sum, Target, wait_answered};
use support::{Backend, Client, GENEROUS, PATIENCE, Start, Tollgate, nobody, wait_until};

fn requests() -> usize {
    std::env::var("HANDOVER_REQUESTS").map_or(4000, |it| it.parse().unwrap())
}

/// A tollgate at these addresses, which takes over, and hands over, at `path`.
fn serve(upstream: SocketAddr, data: SocketAddr, admin: SocketAddr, path: &Path) -> Tollgate {
    let config = format!(
        "server: {{ listeners: [{{ address: '{data}' }}], handover: '{}' }}\n",
        path.display()
    );
    let start = Start::default().upstream(upstream).config(&config).tiers(GENEROUS);
    start.listeners().admin(admin).run()
}

/// Two addresses that nobody listens on.
fn addresses() -> (SocketAddr, SocketAddr) {
    (nobody(), nobody())
}

/// Ends the load, and says what became of it.
fn finish(case: &str, run: &Arc<Run>, clients: Vec<std::thread::JoinHandle<()>>) {
    run.finish();
    for client in clients {
        client.join().unwrap();
    }
    let mut sum = Sum::default();
    sum.add(run);
    sum.tell(case, "");
}

fn start_load(address: SocketAddr) -> (Arc<Run>, Vec<std::thread::JoinHandle<()>>) {
    let run = Run::new(Target { address, tls: None }, usize::MAX / 2);
    let manners = [HTTP_1, HTTP_2].concat();
    let clients = manners.iter().cycle().take(14).map(|manner| run.client(*manner)).collect();
    (run, clients)
}

#[test]
fn a_successor_takes_over_under_load_and_nothing_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("handover.sock");
    let (backend, (data, admin)) = (Fast::spawn(), addresses());
    let mut serving = serve(backend.address, data, admin, &path);
    let (run, clients) = start_load(data);
    // As often as it takes, at another moment each time.
    let rounds = (requests() / 4000).clamp(3, 25);
    for round in 0..rounds {
        wait_answered(std::slice::from_ref(&run), requests() / rounds / 2 + 7 * round);
        let successor = serve(backend.address, data, admin, &path);
        let mut before = std::mem::replace(&mut serving, successor);
        assert!(before.wait().success(), "{}", before.log());
        assert!(before.log().contains("draining: a successor has taken over"), "{}", before.log());
        wait_answered(std::slice::from_ref(&run), requests() / rounds / 2);
    }
    finish("handed over", &run, clients);
    assert!(serving.log().contains("took over from the tollgate before"));
    // Who has nobody to hand over to ends as ever, and nobody listens there any more.
    serving.signal("TERM");
    assert!(serving.wait().success());
    assert!(std::net::TcpStream::connect(data).is_err());
    // What it left in the file system is in nobody's way.
    let alone = serve(backend.address, data, admin, &path);
    assert_eq!(alone.get("/s/1").status, 200);
}

#[test]
fn the_admin_port_goes_over_too() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("handover.sock");
    let (backend, (data, admin)) = (Backend::ok(), addresses());
    let mut before = serve(backend.address, data, admin, &path);
    before.get("/");
    let after = serve(backend.address, data, admin, &path);
    assert!(before.wait().success());
    for _ in 0..20 {
        assert_eq!(after.admin("/readyz").status, 200);
    }
    assert!(after.sum("tollgate_requests_total") < 0.5, "it counts anew");
}

/// Greets as a successor does, and is sent the sockets.
fn greet(path: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"tollgate sockets 1\n").unwrap();
    let mut bytes = [0; 2];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, [0, 0], "one for each socket, none of them shared");
    stream
}

#[test]
fn who_is_never_ready_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("handover.sock");
    let (backend, (data, admin)) = (Backend::ok(), addresses());
    let mut tollgate = serve(backend.address, data, admin, &path);
    drop(greet(&path));
    let said = |words: &str| wait_until(words, || tollgate.log().contains(words));
    said("the successor was never ready");
    assert_eq!(tollgate.get("/").status, 200);
    let mut odd = UnixStream::connect(&path).unwrap();
    odd.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    said("what asked for them is no tollgate");
    // A start that fails, for a file that is wrong, leaves the one that serves alone.
    let config = directory.path().join("tollgate.yaml");
    std::fs::write(&config, format!("server: {{ handover: {}, lsten: a }}\n", path.display()))
        .unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    let failed = command.args(["run", "--config"]).arg(&config).output().unwrap();
    assert_eq!(failed.status.code(), Some(2));
    assert_eq!(tollgate.get("/").status, 200);
    // And after all that it is handed over all the same.
    let after = serve(backend.address, data, admin, &path);
    assert!(tollgate.wait().success());
    assert_eq!(after.get("/").status, 200);
}

#[test]
fn sockets_are_closed_with_who_ends_though_they_were_offered() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("handover.sock");
    let (backend, (data, admin)) = (
        Backend::spawn(|mut connection| {
            // An answer that takes its time, so that the drain does.
            while connection.request().is_some() {
                std::thread::sleep(Duration::from_millis(1500));
                connection.ok("late");
            }
        }),
        addresses(),
    );
    let mut tollgate = serve(backend.address, data, admin, &path);
    let mut client = Client::connect(data);
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    wait_until("it has arrived", || backend.seen().len() == 1);
    tollgate.signal("TERM");
    wait_until("nobody listens", || std::net::TcpStream::connect(data).is_err());
    // One that comes now finds a process that keeps what it has to itself.
    let after = serve(backend.address, data, nobody(), &path);
    assert!(after.log().contains("is about to end"), "{}", after.log());
    assert_eq!(client.answer().status, 200);
    assert!(tollgate.wait().success());
}

/// A successor that has the sockets and is not ready yet: it prints so, and accepts once it is told.
const SUCCESSOR: &str = r#"
import socket, sys
stream = socket.socket(socket.AF_UNIX)
stream.connect(sys.argv[1])
stream.sendall(b"tollgate sockets 1\n")
_, sockets, _, _ = socket.recv_fds(stream, 300, 16)
print("has them", flush=True)
sys.stdin.readline()
listener = socket.socket(fileno=sockets[0])
listener.settimeout(60)
listener.accept()
print("accepted", flush=True)
"#;

#[test]
fn who_is_told_to_end_leaves_a_successor_that_starts_its_sockets() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("handover.sock");
    let (backend, (data, admin)) = (Backend::ok(), addresses());
    let mut tollgate = serve(backend.address, data, admin, &path);
    let mut successor = Command::new("python3")
        .args(["-c", SUCCESSOR, path.to_str().unwrap()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(successor.stdout.take().unwrap());
    let mut expect = |words: &str| {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut lines, &mut line).unwrap();
        assert_eq!(line.trim(), words);
    };
    expect("has them");
    tollgate.signal("TERM");
    assert!(tollgate.wait().success());
    // Nothing was done to the socket that would outlive who did it.
    let connected = std::net::TcpStream::connect_timeout(&data, PATIENCE);
    assert!(connected.is_ok(), "{connected:?}");
    successor.stdin.take().unwrap().write_all(b"now\n").unwrap();
    expect("accepted");
    assert!(successor.wait().unwrap().success());
}

// ----------------------------------------------------------------------------------------- systemd

/// Holds a socket, as systemd does, and starts one tollgate after the other with it; each line of its
/// input ends the one that runs and starts the next.
const HOLDER: &str = r#"
import os, signal, socket, subprocess, sys
address, command = sys.argv[1], sys.argv[2:]
host, port = address.rsplit(":", 1)
held = socket.socket()
held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
held.bind((host, int(port)))
held.listen(4096)
def start():
    def pass_on():
        os.dup2(held.fileno(), 3)
        os.set_inheritable(3, True)
        os.environ["LISTEN_FDS"], os.environ["LISTEN_PID"] = "1", str(os.getpid())
    def run():
        pass_on()
        os.execv(command[0], command)
    child = os.fork()
    if child == 0:
        run()
    return child
child = start()
for line in sys.stdin:
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    print("ended", os.waitstatus_to_exitcode(status), flush=True)
    if line.strip() == "end":
        break
    child = start()
"#;

#[test]
fn what_systemd_holds_outlives_each_process() {
    let directory = tempfile::tempdir().unwrap();
    let (backend, (data, admin)) = (Fast::spawn(), addresses());
    let tiers = directory.path().join("tiers.yaml");
    std::fs::write(&tiers, GENEROUS).unwrap();
    let upstream = format!("http://{}", backend.address);
    let tollgate = env!("CARGO_BIN_EXE_tollgate");
    let mut holder = Command::new("python3")
        .args(["-c", HOLDER, &data.to_string(), tollgate, "run", "--upstream", &upstream])
        .args(["--listen", &data.to_string(), "--admin", &admin.to_string(), "--tiers"])
        .arg(&tiers)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = holder.stdin.take().unwrap();
    let mut output = std::io::BufReader::new(holder.stdout.take().unwrap());
    let mut expect = |words: &str| loop {
        let mut line = String::new();
        assert!(std::io::BufRead::read_line(&mut output, &mut line).unwrap() > 0, "{words}");
        if line.contains(words) {
            return;
        }
    };
    expect("listening on");
    let (run, clients) = start_load(data);
    for _ in 0..3 {
        wait_answered(std::slice::from_ref(&run), requests() / 6);
        input.write_all(b"next\n").unwrap();
        expect("ended 0");
        expect("listening on");
        wait_answered(std::slice::from_ref(&run), requests() / 6);
    }
    finish("restarted under systemd's socket", &run, clients);
    input.write_all(b"end\n").unwrap();
    expect("ended 0");
    assert!(holder.wait().unwrap().success());
}

#[test]
fn a_socket_that_nobody_is_there_for_is_refused() {
    let (elsewhere, admin) = addresses();
    let data = nobody();
    let tollgate = env!("CARGO_BIN_EXE_tollgate");
    let output = Command::new("python3")
        .args(["-c", HOLDER, &elsewhere.to_string(), tollgate, "run", "--upstream"])
        .args(["http://127.0.0.1:1", "--listen", &data.to_string(), "--admin", &admin.to_string()])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    // The holder does not wait for it: what it says comes until its output is closed.
    let said = String::from_utf8_lossy(&output.stderr);
    let expected = format!("a socket on {elsewhere} was passed in LISTEN_FDS");
    assert!(said.contains(&expected), "{said}");
}

#[test]
fn check_knows_what_a_socket_may_be_called() {
    let check = |path: &str| {
        let directory = tempfile::tempdir().unwrap();
        let file: PathBuf = directory.path().join("tollgate.yaml");
        let config =
            format!("upstream: {{ url: 'http://127.0.0.1:1' }}\nserver: {{ handover: {path} }}\n");
        std::fs::write(&file, config).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
        let output = command.args(["check", "--config"]).arg(&file).output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (said, output.status.code().unwrap())
    };
    assert_eq!(check("/run/tollgate/handover.sock").1, 0);
    for path in ["/", "/run/tollgate/", &format!("/run/{}", "a".repeat(120))] {
        let (said, code) = check(path);
        assert_eq!(code, 2, "{said}");
        assert!(
            said.contains("server.handover") && said.contains("the name of a socket"),
            "{said}"
        );
    }
}
