//! `tollgate run`: serves until a signal ends it.

use std::fmt;
use std::future::pending;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::admin::health::observe;
use crate::admin::server::{self, Timeouts};
use crate::clock;
use crate::config::compile_upstream::UpstreamNeed;
use crate::config::load::{LoadRequest, Loaded, load};
use crate::health::tasks::{watched, watched_root};
use crate::metrics::labels::TaskType;
use crate::otlp::encode::Resource;
use crate::overrides::SYNC_INTERVAL;
use crate::proxy::connect::Place;
use crate::proxy::health_check;
use crate::store::redis::leasing::RETURN_INTERVAL;

use super::handover::{self, Inherited, Listening, Offer};
use super::logging::{Exporting, Logs};
use super::reload_files::Origin;
use super::serve::{DataPath, bind_all};
use super::watchdog::{self, Watchdog};
use super::wiring::{Wired, instance};
use super::{Failure, RunArgs, live, memory, reload, reload_files, say, subscriptions, tls, usage};

/// How long the data path may take to end after its drain's own limit.
const GRACE: Duration = Duration::from_secs(2);
/// How long it may take at the end to give leases back and to tell the other replicas.
const LEAVING_MAX: Duration = Duration::from_millis(500);
/// How long a start waits for key sets.
const KEYS_AT_START: Duration = Duration::from_secs(3);
/// How long a start waits for overrides and denials.
const OVERRIDES_AT_START: Duration = Duration::from_millis(500);
/// How often the store in memory looks for expired state.
const SWEEP_INTERVAL: Duration = Duration::from_millis(10);
/// How long one round over it takes at the least: a small one need not be looked at all the time.
const SWEEP_ROUND: Duration = Duration::from_secs(1);
/// How often the status is noted, and the minutes that are over are taken from the workers.
const OBSERVE_INTERVAL: Duration = Duration::from_secs(1);

/// Where a running tollgate can be reached.
#[derive(Clone, Debug)]
pub struct Addresses {
    /// Its data ports.
    pub data: Vec<DataAddress>,
    /// Its admin port.
    pub admin: SocketAddr,
}

/// An address of the data path.
#[derive(Clone, Copy, Debug)]
pub struct DataAddress {
    /// Where it is.
    pub address: SocketAddr,
    /// Whether TLS is spoken there.
    pub is_tls: bool,
}

impl fmt::Display for DataAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_tls = if self.is_tls { " (TLS)" } else { "" };
        write!(f, "{}{is_tls}", self.address)
    }
}

/// Serves what the files and options say.
///
/// # Errors
/// Invalid configuration; an address that cannot be listened on; a second signal.
pub fn run(args: &RunArgs) -> Result<(), Failure> {
    let inherited = handover::from_systemd()?;
    let loaded = load(&LoadRequest {
        config: args.files.config.as_deref(),
        tiers: args.files.tiers.as_deref(),
        overrides: args.overrides(),
        upstream: UpstreamNeed::Required,
        env: &|name| std::env::var(name).ok(),
    })?;
    let limits_in = if loaded.settings.redis.is_some() { "Redis" } else { "memory" };
    let origin = Origin {
        config: args.files.config.clone(),
        tiers: args.files.tiers.clone(),
        overrides: args.overrides(),
    };
    serve(loaded, origin, inherited, |addresses| {
        let data: Vec<String> = addresses.data.iter().map(ToString::to_string).collect();
        let line = format!(
            "tollgate {}: listening on {}, admin on {}, limits in {limits_in}",
            env!("CARGO_PKG_VERSION"),
            data.join(", "),
            addresses.admin
        );
        say(std::io::stdout(), line);
    })
}

/// Serves until a signal ends it; `announce` is told where, once that is sure. The files of
/// `origin` are watched.
///
/// # Errors
/// An address that cannot be listened on; a thread that cannot be started; a second signal.
pub fn serve(
    loaded: Loaded,
    origin: Origin,
    inherited: Inherited,
    announce: impl FnOnce(&Addresses),
) -> Result<(), Failure> {
    let logs = Arc::new(Logs::start(&loaded.settings)?);
    let served = serve_logged(loaded, origin, inherited, announce, &logs);
    logs.finish();
    served
}

fn serve_logged(
    loaded: Loaded,
    origin: Origin,
    mut inherited: Inherited,
    announce: impl FnOnce(&Addresses),
    logs: &Arc<Logs>,
) -> Result<(), Failure> {
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let settings = &loaded.settings;
    raise_file_limit(settings.server.max_connections);
    let of_listeners = settings.server.listeners.clone();
    let data: Vec<SocketAddr> = of_listeners.iter().map(|it| it.address).collect();
    let handover = settings.server.handover.clone();
    if let Some(path) = &handover {
        inherited.take_over(path)?;
    }
    let sockets =
        bind_all(&data, "--listen, server.listen", &mut inherited).map_err(anyhow::Error::from)?;
    let admin = bind_all(&[settings.admin_listen], "--admin, admin.listen", &mut inherited)
        .map_err(anyhow::Error::from)?
        .pop()
        .context("no admin listener")?;
    inherited.settle()?;
    let offered = handover.as_ref().map(|_| offered(&sockets, &admin)).transpose()?;
    let local = |it: &std::net::TcpListener| it.local_addr().context("a socket without an address");
    let data = sockets.iter().zip(&of_listeners).map(|(socket, settings)| {
        Ok(DataAddress { address: local(&socket.socket)?, is_tls: settings.tls.is_some() })
    });
    let data = data.collect::<anyhow::Result<_>>()?;
    let addresses = Addresses { data, admin: local(&admin.socket)? };
    let workers = match settings.server.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        workers => workers,
    };
    let (running, read) = (loaded.settings.clone(), loaded.read.clone());
    let resource = Resource { version: env!("CARGO_PKG_VERSION"), instance: instance() };
    let (recorders, exporter) = Logs::recorders(logs, settings.tracing.as_ref(), resource)?;
    let bought = subscriptions::start(settings, workers, &recorders.slow_calls)?;
    let metered = usage::start(settings, workers)?;
    let mut wired = Wired::new(loaded, workers, bought, recorders, metered.clone())?;
    let (listeners, with_tls) = tls::equip(sockets, &of_listeners, &wired.gate.metrics)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(Default::default())
        .context("cannot make the control runtime")?;
    wired.gate.loops.sit(wired.gate.loops.control(), runtime.metrics());
    let has_signals = cfg!(not(feature = "without-signals"));
    let _watchdog = has_signals
        .then(|| Watchdog::start(Arc::clone(&wired.admin.detector)))
        .transpose()
        .context("cannot start a thread")?;
    let end = runtime.block_on(watched_root(async {
        let reloader = reload_files::reloader(&wired, with_tls, running, origin, read);
        let reload = reload::spawn(reloader).context("cannot start a thread")?;
        live::answer(&wired, reload.clone());
        let mut signals = Signals::new(reload, Arc::clone(logs))?;
        let exporting = exporter.map(Exporting::spawn);
        let heartbeats = Arc::clone(&wired.admin.heartbeats);
        let beat = move |worker| heartbeats.beat(worker, clock::monotonic());
        fetch_keys(&wired).await;
        // So that the first requests meet what operators have said; if Redis is not there, so be it.
        let _ = tokio::time::timeout(OVERRIDES_AT_START, wired.gate.overrides.sync()).await;
        let data_path = DataPath::start(&wired.gate, listeners, workers, beat)
            .await
            .context("cannot start a thread")?;
        let (admin_state, gate) = (Arc::clone(&wired.admin), Arc::clone(&wired.gate));
        background(async move {
            // A successor answers for itself. What is under way here ends here.
            let succeeded = async move {
                gate.drain.begun().await;
                if !gate.drain.is_succeeded() {
                    std::future::pending::<()>().await;
                }
            };
            let served = server::serve(admin.socket, admin_state, Timeouts::default(), succeeded);
            if let Err(error) = served.await {
                tracing::error!(%error, "the admin port is not served");
            }
        });
        if let Some(mut wanted) = wired.wanted_pages.take() {
            let admin = Arc::clone(&wired.admin);
            background(async move {
                while let Some(page) = wanted.recv().await {
                    page.serve(&admin);
                }
            });
        }
        spawn_background(&wired);
        let losses = Arc::clone(logs);
        background(async move { losses.tell_losses().await });
        wired.admin.readiness.set_bound();
        let succession = Succession::begin(handover.as_deref(), offered, inherited)?;
        announce(&addresses);
        let end = control(&wired, data_path, &mut signals, succession).await;
        if let Some(redis) = wired.admin.counters.redis() {
            let _ = tokio::time::timeout(LEAVING_MAX, redis.leave()).await;
        }
        if let Some(exporting) = exporting {
            exporting.finish().await;
        }
        end
    }));
    if let Some(metered) = metered {
        metered.finish();
    }
    runtime.shutdown_background();
    Ok(end?)
}

/// The same sockets once more, for a successor.
fn offered(data: &[Listening], admin: &Listening) -> anyhow::Result<Vec<Listening>> {
    let again = |it: &Listening| {
        let socket = it.socket.try_clone().context("cannot hold a socket twice")?;
        Ok(Listening { socket, is_shared: it.is_shared })
    };
    data.iter().chain([admin]).map(again).collect()
}

/// Waits for a signal or for a successor, drains, and waits for the end of it.
async fn control(
    wired: &Wired,
    data_path: DataPath,
    signals: &mut Signals,
    succession: Succession,
) -> anyhow::Result<()> {
    let Succession { offer, taken } = succession;
    let signal = tokio::select! {
        name = signals.end() => Some(name),
        () = taken => None,
    };
    let is_lent = offer.withdraw();
    wired.admin.readiness.set_draining();
    match signal {
        Some(signal) => {
            tracing::info!(signal, "draining");
            if is_lent {
                // Its sockets are those of a successor that is still starting.
                wired.gate.drain.begin_succeeded();
            } else {
                wired.gate.drain.begin();
            }
        }
        None => {
            tracing::info!("draining: a successor has taken over");
            wired.gate.drain.begin_succeeded();
        }
    }
    let limit = wired.gate.settings.drain_timeout + GRACE;
    tokio::select! {
        _ = tokio::time::timeout(limit, data_path.ended()) => {
            tracing::info!("drained");
            Ok(())
        }
        name = signals.end() => anyhow::bail!("ended by a second signal ({name}) while draining"),
    }
}

/// What comes after this process.
struct Succession {
    offer: Offer,
    taken: Pin<Box<dyn Future<Output = ()>>>,
}

impl Succession {
    /// Tells the predecessor that this one serves, and is there for the next.
    fn begin(
        path: Option<&Path>,
        offered: Option<Vec<Listening>>,
        inherited: Inherited,
    ) -> anyhow::Result<Self> {
        let (Some(path), Some(sockets)) = (path, offered) else {
            return Ok(Succession { offer: Offer::default(), taken: Box::pin(pending()) });
        };
        let (sender, taken) = oneshot::channel();
        let offer = handover::offer(path, sockets, move || {
            let _ = sender.send(());
        })?;
        inherited.ready();
        let taken = Box::pin(async move {
            if taken.await.is_err() {
                pending::<()>().await;
            }
        });
        Ok(Succession { offer, taken })
    }
}

/// Fetches the key sets, and goes on fetching them. Waits a moment for the first ones, so that the
/// first tokens are not taken for invalid; if they do not come, so be it.
async fn fetch_keys(wired: &Wired) {
    let remotes: Vec<_> = wired.gate.identifier.remotes().map(Arc::clone).collect();
    for remote in &remotes {
        let remote = Arc::clone(remote);
        background(async move { remote.keep_fresh().await });
    }
    let all = async {
        for remote in &remotes {
            remote.wait_fetched(KEYS_AT_START).await;
        }
    };
    let _ = tokio::time::timeout(KEYS_AT_START, all).await;
}

/// Keeps up with what operators do on other replicas.
fn spawn_sync(wired: &Wired) {
    let overrides = Arc::clone(&wired.gate.overrides);
    if overrides.is_transient() {
        return;
    }
    background(async move {
        let mut interval = tokio::time::interval(SYNC_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            // Whether Redis answers is told of by those who check limits there.
            let _ = overrides.sync().await;
        }
    });
}

/// What runs beside the data path.
fn spawn_background(wired: &Wired) {
    spawn_sync(wired);
    for (index, upstream) in wired.gate.upstreams.places.iter().enumerate() {
        if let Some(check) = wired.health_check.clone() {
            let checks = health_check::run(Arc::clone(&wired.gate), check, index);
            tokio::task::spawn_local(watched(TaskType::Healthcheck, checks));
        }
        if let Place::Tcp(addresses) = &upstream.target.place {
            let (addresses, ttl) = (Arc::clone(addresses), wired.dns_ttl);
            background(async move { addresses.keep_fresh(ttl).await });
        }
    }
    #[cfg(feature = "leak-drill")]
    background(super::drill::run());
    let gate = Arc::clone(&wired.gate);
    if gate.redis.is_some() {
        let admin = Arc::clone(&wired.admin);
        background(async move {
            let mut interval = tokio::time::interval(RETURN_INTERVAL);
            interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            while let Some(redis) = admin.counters.redis() {
                interval.tick().await;
                redis.give_leases_back(false).await;
            }
        });
    }
    background(async move {
        let shards = u32::try_from(gate.memory.shards()).unwrap_or(u32::MAX).max(1);
        let mut interval = tokio::time::interval(SWEEP_INTERVAL.max(SWEEP_ROUND / shards));
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for shard in (0..gate.memory.shards()).cycle() {
            interval.tick().await;
            gate.memory.sweep(gate.clock.now(), shard);
            if let Some(redis) = &gate.redis {
                let share = redis.share();
                share.sweep(gate.clock.now(), shard % share.shards().max(1));
                let denials = redis.denials();
                denials.sweep(shard % denials.shards(), clock::monotonic());
            }
        }
    });
    if cfg!(not(feature = "without-signals")) {
        spawn_observers(wired);
    }
}

/// What looks at the process from within.
fn spawn_observers(wired: &Wired) {
    let (watch, metrics) = (Arc::clone(&wired.memory_watch), Arc::clone(&wired.gate.metrics));
    background(memory::watch(watch, metrics));
    let admin = Arc::clone(&wired.admin);
    background(async move {
        let mut interval = tokio::time::interval(OBSERVE_INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            observe(&admin);
            admin.top.collect(clock::monotonic());
        }
    });
    let loops = &wired.gate.loops;
    background(watchdog::sample(Arc::clone(loops), loops.control()));
}

/// Runs beside everything else on this thread, counted and seen.
fn background(task: impl Future<Output = ()> + 'static) {
    tokio::task::spawn_local(watched(TaskType::Background, task));
}

/// The signals that end tollgate, and the one that has it reload and open its log anew.
struct Signals {
    reload: reload::Handle,
    logs: Arc<Logs>,
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new(reload: reload::Handle, logs: Arc<Logs>) -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Signals {
            reload,
            logs,
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// The next one that ends tollgate.
    async fn end(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hang_up.recv() => {
                    self.logs.reopen();
                    self.reload.request();
                }
            }
        }
    }
}

/// Raises the limit of open files: the soft one of 1024 would be met first of all limits.
fn raise_file_limit(connections_max: usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, "the limit of open files cannot be raised");
        }
    }
    // A caller that waits needs one, a request under way one more.
    let wanted = u64::try_from(connections_max).unwrap_or(u64::MAX);
    if let Some(files) = getrlimit(Resource::Nofile).current.filter(|files| *files < wanted) {
        tracing::warn!(
            "only {files} open files are allowed; server.max_connections is {connections_max}"
        );
    }
}
