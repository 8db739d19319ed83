//! Nothing is lost to a drain or to a reload: the real binary under load, and a client that sends
//! no request twice. Every request that was sent on an established connection has to be answered.
//!
//! `DRAIN_REQUESTS` says how many each case sends; `tests/long.sh drain` takes 100,000.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::disallowed_methods, reason = "tests wait by the real time, and end")]

#[path = "support/certificates.rs"]
mod certificates;
#[path = "support/http2.rs"]
mod http2;
#[path = "support/load.rs"]
mod load;
mod support;

use std::fs;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use load::{Fast, HTTP_1, HTTP_2, Manner, Run, Sum, Target, show, two_certificates, wait_answered};
use support::{Backend, GENEROUS, Tollgate, wait_until};

/// Of each case.
fn requests() -> usize {
    std::env::var("DRAIN_REQUESTS").map_or(2000, |it| it.parse().unwrap())
}

/// One tollgate after the other is sent SIGTERM under load until enough was sent.
fn drain(case: &str, manners: &[Manner], start: impl Fn() -> (Tollgate, Target)) {
    let (mut sum, mut drains) = (Sum::default(), 0);
    // Each time at another place in its clients' lives.
    let each = (requests() / 20).clamp(400, 2000);
    while sum.sent < requests() {
        let (mut tollgate, target) = start();
        let run = Run::new(target, usize::MAX);
        let clients: Vec<_> =
            manners.iter().cycle().take(manners.len() * 4).map(|it| run.client(*it)).collect();
        let enough = each + 37 * drains % each;
        wait_answered(std::slice::from_ref(&run), enough);
        run.may_refuse.store(true, Relaxed);
        tollgate.signal("TERM");
        for client in clients {
            client.join().unwrap();
        }
        assert!(tollgate.wait().success());
        sum.add(&run);
        drains += 1;
    }
    sum.tell(case, &format!(", {drains} drains, {} said goodbye to twice", sum.twice));
    assert!(sum.sent >= requests(), "{case}");
    assert!(manners.iter().all(|it| it.streams.is_none()) || sum.twice > 0);
}

fn plain(backend: &Fast) -> (Tollgate, Target) {
    load::plain(backend.address)
}

#[test]
fn a_drain_under_load_loses_nothing_over_tls() {
    let (backend, certificates) = (Fast::spawn(), two_certificates());
    let with_tls = |speaks| load::with_tls(backend.address, certificates.path(), speaks);
    drain("SIGTERM, HTTP/1.1 by TLS", HTTP_1, || with_tls(b"http/1.1"));
    drain("SIGTERM, HTTP/2 by TLS", HTTP_2, || with_tls(b"h2"));
}

#[test]
fn a_drain_under_load_loses_nothing_over_http_1() {
    let backend = Fast::spawn();
    drain("SIGTERM, HTTP/1.1", HTTP_1, || plain(&backend));
}

#[test]
fn a_drain_under_load_loses_nothing_over_http_2() {
    let backend = Fast::spawn();
    drain("SIGTERM, HTTP/2", HTTP_2, || plain(&backend));
}

/// What was established before the socket closed is served, however late it was.
#[test]
fn a_drain_loses_no_connection_that_has_just_come() {
    let backend = Fast::spawn();
    let once = Manner { streams: None, requests_max: 1, pause: Duration::ZERO };
    drain("SIGTERM, one connection for each request", &[once; 6], || plain(&backend));
}

/// One tollgate takes the place of another, as pods do: it is unknown when each client hears of it,
/// and who has not yet goes on connecting to the old one. `waits` is the preStop of the manifests:
/// the signal comes after the last client has heard, and not with the first.
fn replace(waits: bool) -> Sum {
    let backend = Fast::spawn();
    let ((mut old, target), (_new, successor)) = (plain(&backend), plain(&backend));
    let manners = [HTTP_1, HTTP_2].concat();
    // A run for each client, so that each hears for itself.
    let runs: Vec<_> = (0..14).map(|_| Run::new(target.clone(), usize::MAX / 2)).collect();
    let clients: Vec<_> =
        runs.iter().zip(manners.iter().cycle()).map(|(run, manner)| run.client(*manner)).collect();
    wait_answered(&runs, requests() / 2);
    if !waits {
        old.signal("TERM");
    }
    for run in &runs {
        wait_answered(std::slice::from_ref(run), 5);
        run.go_elsewhere(successor.address);
    }
    if waits {
        old.signal("TERM");
    }
    assert!(old.wait().success());
    wait_answered(&runs, requests() / 2);
    runs.iter().for_each(|it| it.finish());
    for client in clients {
        client.join().unwrap();
    }
    let mut sum = Sum::default();
    runs.iter().for_each(|run| sum.add(run));
    sum
}

#[test]
fn a_pod_that_is_replaced_loses_nothing() {
    let sum = replace(true);
    sum.tell("replaced after a preStop", "");
    assert!(sum.sent >= requests());
    // And it is the waiting that does it.
    let sum = replace(false);
    println!("replaced without: {} sent, {} clients failed", sum.sent, sum.failures.len());
    assert!(!sum.failures.is_empty());
    assert!(sum.failures.iter().all(|it| it.contains("refused")), "{:#?}", sum.failures);
}

/// Sends SIGHUP every 50 ms while the clients are at it, each time after `change`.
fn reload(tollgate: &Tollgate, run: &Arc<Run>, manners: &[Manner], change: impl Fn(usize)) -> Sum {
    let clients: Vec<_> = manners.iter().map(|it| run.client(*it)).collect();
    for round in 0.. {
        if clients.iter().all(|it| it.is_finished()) {
            break;
        }
        change(round);
        tollgate.signal("HUP");
        std::thread::sleep(Duration::from_millis(50));
    }
    for client in clients {
        client.join().unwrap();
    }
    let mut sum = Sum::default();
    sum.add(run);
    sum
}

/// The policy's file is rewritten all the time.
#[test]
fn reloads_of_the_policy_under_load_lose_nothing() {
    let backend = Fast::spawn();
    let (tollgate, target) = plain(&backend);
    let run = Run::new(target, requests());
    let path = tollgate.path("tiers.yaml");
    let sum = reload(&tollgate, &run, &[HTTP_1, HTTP_2].concat(), |round| {
        fs::write(&path, format!("# {round}\n{GENEROUS}")).unwrap();
    });
    let reloads = || tollgate.metric(r#"tollgate_config_reloads_total{result="ok"}"#);
    wait_until("it was reloaded", || reloads() > 0.0);
    sum.tell("policy reloads", &format!(", {} reloads", reloads()));
    assert!(sum.sent >= requests());
}

/// The certificate is replaced all the time, and most requests come on a connection of their own.
#[test]
fn reloads_of_the_certificate_under_load_lose_nothing() {
    let (backend, certificates) = (Fast::spawn(), two_certificates());
    let once = Manner { streams: None, requests_max: 1, pause: Duration::ZERO };
    let few = Manner { streams: Some(8), requests_max: 16, pause: Duration::ZERO };
    for (case, speaks, manners) in [
        ("certificate reloads, HTTP/1.1", &b"http/1.1"[..], [once, once, HTTP_1[0], HTTP_1[3]]),
        ("certificate reloads, HTTP/2", b"h2", [few, few, few, HTTP_2[0]]),
    ] {
        show(certificates.path(), "a");
        let (tollgate, mut target) = load::with_tls(backend.address, certificates.path(), speaks);
        // A session that is resumed shows the certificate that it began with.
        let tls = target.tls.as_mut().and_then(Arc::get_mut).unwrap();
        tls.resumption = rustls::client::Resumption::disabled();
        let run = Run::new(target, requests());
        let sum = reload(&tollgate, &run, &manners, |round| {
            show(certificates.path(), ["b", "a"][round % 2]);
        });
        let shown = run.tally.certificates.lock().unwrap().len();
        sum.tell(case, &format!(", {shown} certificates seen"));
        assert!(sum.sent >= requests(), "{case}");
        assert_eq!(shown, 2, "{case}");
    }
}

/// Transfers that are under way when the drain begins come to their end, however long they take;
/// and whoever was not told of it may ask once more.
#[test]
fn transfers_under_way_come_to_their_end() {
    const PART: usize = 1 << 20;
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let backend = Backend::spawn(move |mut connection| {
        while let Some(seen) = connection.head() {
            let wait = || released.lock().unwrap().recv().unwrap();
            match seen.target() {
                "/down" => {
                    let length = 2 * PART;
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
                    connection.send(head);
                    connection.send(vec![b'd'; PART]);
                    wait();
                    connection.send(vec![b'd'; PART]);
                }
                "/up" => {
                    let mut left = 2 * PART;
                    while left > 0 {
                        let got = connection.read_some(left.min(1 << 16)).len();
                        assert!(got > 0, "the upload broke off, {left} bytes are left");
                        left -= got;
                    }
                    connection.ok("got");
                }
                _ => {
                    connection.ok("ok");
                }
            }
        }
    });
    let mut tollgate = Tollgate::generous(&backend);
    let mut downs: Vec<_> = (0..3).map(|_| tollgate.connect()).collect();
    for down in &mut downs {
        down.send("GET /down HTTP/1.1\r\nHost: a\r\n\r\n");
        let head = down.head();
        assert_eq!((head.status, head.field("connection")), (200, None));
    }
    let mut ups: Vec<_> = (0..3).map(|_| tollgate.connect()).collect();
    for up in &mut ups {
        let head = format!("POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", 2 * PART);
        up.send(head).send(vec![b'u'; PART]);
    }
    http2::run(async {
        let mut client = http2::Polite::connect(tollgate.data).await;
        client.requests.clone().ready().await.unwrap();
        let asked = http2::request("GET", "/down").body(()).unwrap();
        let (down, _) = client.requests.send_request(asked, true).unwrap();
        let down = down.await.unwrap();
        let asked = http2::request("POST", "/up");
        let asked = asked.header("content-length", 2 * PART).body(()).unwrap();
        let (up, mut sending) = client.requests.send_request(asked, false).unwrap();
        sending.send_data(vec![b'u'; PART].into(), false).unwrap();

        tollgate.signal("TERM");
        wait_until("it drains", || tollgate.admin("/readyz").status == 503);
        // Longer than an idle connection would be kept.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        for _ in 0..4 {
            release.send(()).unwrap();
        }
        sending.send_data(vec![b'u'; PART].into(), true).unwrap();
        // Side by side: what one of them does not read fills the connection's window.
        let up = async { http2::whole(up.await.unwrap()).await.unwrap() };
        let down = async { http2::whole(down).await.unwrap() };
        let (up, down) = tokio::join!(up, down);
        assert_eq!(up.body, b"got");
        assert!(down.body == vec![b'd'; 2 * PART], "{} bytes", down.body.len());
    });
    for down in &mut downs {
        assert!(down.read_exactly(2 * PART) == vec![b'd'; 2 * PART]);
        // Its answer had begun before the drain, and did not say that it was the last.
        let last = down.get("/");
        assert_eq!((last.status, last.field("connection")), (200, Some("close")));
    }
    for up in &mut ups {
        let answer = up.send(vec![b'u'; PART]).answer();
        assert_eq!((answer.text().as_str(), answer.field("connection")), ("got", Some("close")));
    }
    drop((downs, ups));
    assert!(tollgate.wait().success());
}
