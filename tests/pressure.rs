//! Backpressure, from the outside: a worker that hangs is seen while it hangs, every task is
//! counted, and who waits for the upstream too.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tollgate::admin::server::{self, Timeouts};
use tollgate::clock::monotonic;
use tollgate::commands::logging::Recorders;
use tollgate::commands::serve::DataPath;
use tollgate::commands::watchdog::{self, Watchdog};
use tollgate::commands::wiring::Wired;
use tollgate::config::compile_upstream::UpstreamNeed;
use tollgate::config::load::{LoadRequest, Overrides, load};
use tollgate::health::loops::Loops;
use tollgate::health::tasks::{watched, watched_root};
use tollgate::metrics::labels::TaskType;
use tollgate::proxy::listener::{Bound, bind};

#[path = "support/http2.rs"]
mod http2;
#[path = "support/http2_backend.rs"]
mod http2_backend;
mod support;

use http2::Polite;
use http2_backend::{How, Http2Backend};
use support::{Answer, Backend, Client, Start, nobody, wait_until};

const WORKERS: usize = 2;

/// tollgate within this process, so that a worker can be had to hang: `/hang` on the data port waits
/// until it is told to go on.
struct InProcess {
    data: SocketAddr,
    admin: SocketAddr,
    loops: Arc<Loops>,
    go_on: mpsc::SyncSender<()>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl InProcess {
    fn start(upstream: SocketAddr) -> Self {
        let loaded = load(&LoadRequest {
            config: None,
            tiers: None,
            overrides: Overrides {
                upstream: Some(format!("http://{upstream}")),
                ..Overrides::default()
            },
            upstream: UpstreamNeed::Required,
            env: &|_| None,
        });
        let mut wired =
            Wired::new(loaded.unwrap(), WORKERS, None, Recorders::default(), None).unwrap();
        let (go_on, is_to_go_on) = mpsc::sync_channel(1);
        let is_to_go_on = Mutex::new(is_to_go_on);
        let hang = move || {
            // Its sender is gone once the test is over: then it goes on too.
            is_to_go_on.lock().unwrap().recv().ok();
            let (reply, page) = tokio::sync::oneshot::channel();
            reply.send(http::Response::new(Bytes::from_static(b"went on"))).unwrap();
            page
        };
        Arc::get_mut(&mut wired.gate).unwrap().exposed.push(("/hang", Box::new(hang)));
        let loops = Arc::clone(&wired.gate.loops);
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        let data = bind(free).unwrap();
        let admin = bind(free).unwrap();
        let addresses = (data.local_addr().unwrap(), admin.local_addr().unwrap());
        let (stop, is_to_stop) = tokio::sync::oneshot::channel();
        let (started, has_started) = mpsc::sync_channel(1);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build_local(Default::default())
                .unwrap();
            let loops = &wired.gate.loops;
            loops.sit(loops.control(), runtime.metrics());
            let _watchdog = Watchdog::start(Arc::clone(&wired.admin.detector)).unwrap();
            runtime.block_on(watched_root(async {
                let hearts = Arc::clone(&wired.admin.heartbeats);
                let beat = move |worker| hearts.beat(worker, monotonic());
                let listeners = vec![Bound { socket: data, tls: None, is_shared: false }];
                let data_path = DataPath::start(&wired.gate, listeners, WORKERS, beat);
                let data_path = data_path.await.unwrap();
                let state = Arc::clone(&wired.admin);
                let never = std::future::pending();
                let served = server::serve(admin, state, Timeouts::default(), never);
                tokio::task::spawn_local(watched(TaskType::Background, served));
                let sampling = watchdog::sample(Arc::clone(loops), loops.control());
                tokio::task::spawn_local(watched(TaskType::Background, sampling));
                wired.admin.readiness.set_bound();
                started.send(()).unwrap();
                is_to_stop.await.ok();
                wired.gate.drain.begin();
                data_path.ended().await;
            }));
        });
        has_started.recv().unwrap();
        let (data, admin) = addresses;
        InProcess { data, admin, loops, go_on, stop: Some(stop), thread: Some(thread) }
    }

    fn admin(&self, path: &str) -> Answer {
        Client::connect(self.admin).get(path)
    }

    fn backpressure(&self) -> serde_json::Value {
        let answer = self.admin("/health");
        let health: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        health["backpressure"].clone()
    }

    fn metric(&self, series: &str) -> f64 {
        let page = self.admin("/metrics").text();
        let found = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        found.unwrap_or_else(|| panic!("no {series}")).parse().unwrap()
    }

    /// How often the timer of a worker fired, and how often it was more than half a second late.
    fn timer(&self, worker: usize) -> (f64, f64) {
        let name = "tollgate_runtime_lag_seconds";
        let all = self.metric(&format!("{name}_count{{worker=\"{worker}\"}}"));
        let quick = self.metric(&format!("{name}_bucket{{worker=\"{worker}\",le=\"0.5\"}}"));
        (all, all - quick)
    }

    fn tasks(&self, kind: TaskType) -> usize {
        self.loops.cells().tasks(kind)
    }

    /// Tasks that the runtimes know of.
    fn alive(&self) -> usize {
        (0..=WORKERS).map(|index| self.loops.runtime(index).unwrap().num_alive_tasks()).sum()
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        self.go_on.try_send(()).ok();
        self.stop.take().map(|stop| stop.send(()));
        if !std::thread::panicking() {
            self.thread.take().map(JoinHandle::join);
        }
    }
}

#[test]
fn a_worker_that_hangs_is_seen_while_it_hangs() {
    let tollgate = InProcess::start(nobody());
    let loops = &tollgate.loops;
    let before = tollgate.backpressure();
    assert_eq!(before["workers_stuck"], 0);
    assert!(before["event_loop_lag_ms"].is_number());

    let mut caller = Client::connect(tollgate.data);
    caller.send("GET /hang HTTP/1.1\r\nHost: a\r\n\r\n");
    wait_until("the watchdog has seen it", || {
        (0..WORKERS).any(|worker| loops.running(worker) > Duration::from_millis(50))
    });
    let hung = (0..WORKERS).max_by_key(|worker| loops.running(*worker)).unwrap();
    let other = 1 - hung;
    wait_until("it counts as stuck", || tollgate.backpressure()["workers_stuck"] == 1);

    // What answers probes does not run there.
    assert_eq!(tollgate.admin("/livez").status, 200);
    assert_eq!(tollgate.admin("/readyz").status, 200);
    let said = tollgate.backpressure();
    assert_eq!(said["has_backpressure"], true);
    assert_eq!(said["severity"], "critical");
    assert!(said["event_loop_lag_ms"].as_f64().unwrap() >= 1_000.0, "{said}");
    let lag = || tollgate.metric("backpressure_event_loop_lag_seconds");
    let (first, second) = (lag(), lag());
    assert!(first >= 1.0 && second >= first, "a reading takes nothing away: {first} {second}");
    assert_eq!(tollgate.metric("tollgate_runtime_workers_stuck"), 1.0);

    // Its own timer has told nothing of this: it does not fire. The other worker's does.
    let (fired, late) = tollgate.timer(hung);
    let (of_other, _) = tollgate.timer(other);
    wait_until("the other worker ticks", || tollgate.timer(other).0 >= of_other + 10.0);
    assert_eq!(tollgate.timer(hung), (fired, late));
    let lag_of = |worker| loops.lag_of(worker, monotonic());
    wait_until("it stands out", || lag_of(hung) > 2 * lag_of(other));
    // The backend is nobody: what counts is that somebody says so.
    assert_eq!(Client::connect(tollgate.data).get("/").status, 502);

    tollgate.go_on.send(()).unwrap();
    assert_eq!(caller.answer().text(), "went on");
    wait_until("its timer tells", || tollgate.timer(hung).1 > late);
    wait_until("nobody is stuck", || tollgate.backpressure()["workers_stuck"] == 0);
    assert!(lag_of(hung) >= Duration::from_secs(1), "the peak is still shown");
    assert_eq!(tollgate.backpressure()["severity"], "critical", "and told of");
    let busy = format!("tollgate_runtime_busy_ratio{{worker=\"{hung}\"}}");
    wait_until("the time counts as busy", || tollgate.metric(&busy) > 0.0);
}

#[test]
fn every_task_is_counted_by_what_it_is_for() {
    // Upgrades, or else answers nothing until it is told to.
    let (release, is_released) = mpsc::sync_channel::<()>(0);
    let is_released = Mutex::new(is_released);
    let backend = Backend::spawn(move |mut connection| {
        while let Some(seen) = connection.request() {
            if seen.field("upgrade").is_some() {
                connection.send(
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
                     Upgrade: websocket\r\n\r\n",
                );
                while !connection.read_some(100).is_empty() {}
                return;
            }
            if seen.target() == "/hold" {
                is_released.lock().unwrap().recv().ok();
            }
            connection.ok("ok");
        }
    });
    let tollgate = InProcess::start(backend.address);
    // A timer of each worker, the admin port's and the control thread's.
    wait_until("it has started", || tollgate.tasks(TaskType::Background) == WORKERS + 2);
    assert_eq!(tollgate.loops.cells().all_tasks(), WORKERS + 2);
    wait_until("the runtimes agree", || tollgate.alive() == WORKERS + 2);

    let mut plain = Client::connect(tollgate.data);
    assert_eq!(plain.get("/").status, 200);
    let mut socket = Client::connect(tollgate.data);
    socket.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert_eq!(socket.head().status, 101);
    http2::run(async {
        let mut polite = Polite::connect(tollgate.data).await;
        let mut held = Vec::new();
        for _ in 0..3 {
            polite.requests = polite.requests.clone().ready().await.unwrap();
            let request = http2::request("GET", "/hold").body(()).unwrap();
            held.push(polite.requests.send_request(request, true).unwrap().0);
        }
        while tollgate.tasks(TaskType::Request) != 3 || tollgate.tasks(TaskType::Websocket) != 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let shown = |kind: &str| {
            tollgate.metric(&format!("backpressure_async_tasks_pending{{task_type=\"{kind}\"}}"))
        };
        // Two of callers, one to the upstream for each stream, and the one that is idle if none of
        // the streams has taken it: once what was upgraded has left its own.
        wait_until("everybody says the same", || {
            let connections = tollgate.tasks(TaskType::Connection);
            let said = tollgate.backpressure()["async_tasks_pending"].as_u64().unwrap();
            (5..=6).contains(&connections)
                && shown("connection") == connections as f64
                // With the connection that asks for it.
                && said == (connections + 3 + 1 + WORKERS + 2 + 1) as u64
                && tollgate.alive() == tollgate.loops.cells().all_tasks()
        });
        assert_eq!((shown("request"), shown("websocket"), shown("redis")), (3.0, 1.0, 0.0));
        assert_eq!((shown("healthcheck"), shown("usage_flush")), (0.0, 0.0));
        for _ in 0..3 {
            let release = release.clone();
            tokio::task::spawn_blocking(move || release.send(())).await.unwrap().unwrap();
        }
        for answer in held {
            assert_eq!(answer.await.unwrap().status(), 200);
        }
    });
    drop((plain, socket));
    wait_until("what has ended is counted no more", || {
        [TaskType::Request, TaskType::Websocket].iter().all(|kind| tollgate.tasks(*kind) == 0)
    });
    wait_until("the runtimes agree", || tollgate.alive() == tollgate.loops.cells().all_tasks());
}

#[test]
fn who_waits_for_the_upstream_is_counted_and_how_long_it_was() {
    // One stream at a time on one connection: of three requests two wait.
    let (release, is_released) = tokio::sync::watch::channel(false);
    let how = How { streams_max: Some(1), ..How::default() };
    let backend = Http2Backend::spawn_with(how, move |mut exchange| {
        let mut is_released = is_released.clone();
        async move {
            is_released.wait_for(|it| *it).await.unwrap();
            exchange.ok("ok");
        }
    });
    let config = format!(
        "server: {{ workers: 1 }}\nupstream: {{ url: {}, max_idle_connections: 1 }}\n",
        backend.h2c()
    );
    let tollgate = Start::default().config(&config).run();
    assert_eq!(tollgate.metric("tollgate_upstream_waiting"), 0.0);
    let mut callers: Vec<Client> = (0..3).map(|_| tollgate.connect()).collect();
    for caller in &mut callers {
        caller.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    wait_until("two wait", || {
        backend.requests() == 1 && tollgate.metric("tollgate_upstream_waiting") == 2.0
    });
    let health: serde_json::Value =
        serde_json::from_slice(&tollgate.admin("/health").body).unwrap();
    assert_eq!(health["backpressure"]["upstream_waiting"], 2);
    // The one that is on its way has a task of its own there, whatever its caller speaks.
    let tasks = |kind: &str| {
        tollgate.metric(&format!("backpressure_async_tasks_pending{{task_type=\"{kind}\"}}"))
    };
    assert_eq!((tasks("request"), tasks("connection")), (1.0, 3.0 + 2.0));
    release.send(true).unwrap();
    for caller in &mut callers {
        assert_eq!(caller.answer().status, 200);
    }
    assert_eq!(tollgate.metric("tollgate_upstream_waiting"), 0.0);
    // The first one waited for the connection, which is waiting too.
    assert_eq!(tollgate.metric("tollgate_pool_wait_seconds_count{pool=\"upstream\"}"), 3.0);
}

#[test]
fn a_running_tollgate_tells_how_it_keeps_up() {
    let backend = Backend::ok();
    let tollgate = Start::default().upstream(backend.address).run();
    assert_eq!(tollgate.get("/").status, 200);
    let health: serde_json::Value =
        serde_json::from_slice(&tollgate.admin("/health").body).unwrap();
    let said = &health["backpressure"];
    assert!(said["event_loop_lag_ms"].as_f64().unwrap() >= 0.0);
    assert!(said["db_queue_size"].is_null(), "no database");
    assert_eq!((&said["redis_queue_size"], &said["workers_stuck"]), (&0.into(), &0.into()));
    assert!(said["async_tasks_pending"].as_u64().unwrap() >= 3);
    assert!(["normal", "warning", "critical"].contains(&said["severity"].as_str().unwrap()));
    let page = tollgate.admin("/metrics").text();
    for series in [
        "backpressure_event_loop_lag_seconds ",
        "backpressure_async_tasks_pending{task_type=\"usage_flush\"} 0",
        "tollgate_runtime_workers_stuck 0",
        "tollgate_runtime_busy_ratio{worker=\"0\"} ",
        "tollgate_runtime_lag_seconds_bucket{worker=\"control\",le=\"0.05\"} ",
        "tollgate_pool_wait_seconds_count{pool=\"upstream\"} 1",
    ] {
        assert!(page.contains(&format!("\n{series}")), "{series}");
    }
}
