#!/usr/bin/env bash
# The long runs, each by its name: tests/long.sh NAME [its arguments]. Without a name: the list.
#
# They measure, take minutes, and want a machine with nothing else to do; CI does not run them.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
    cat <<'LIST'
tests/long.sh NAME [ARGUMENTS]

  compare      tollgate beside nginx, in one run: CPU a request, requests a second, latency, memory
               (needs nginx, wrk, taskset, python3; --quick, --with haproxy, --json FILE)
  signals      what metrics, detectors, logs and traces cost: CPU a request, idle, memory, beside a
               build without any (needs what compare needs)
  conformance  what a proxy must do, line by line, tollgate beside nginx and HAProxy; writes the
               table of docs/conformance.md (needs nginx, haproxy)
  spread       how connections spread over workers, three ways to accept them
  store-bench  what a check of a limit costs in memory, and bytes per identity
  route-bench  what it costs to find the rules of a path
  identity-bench  what it costs to know a caller, and what floods of wrong tokens cost
  subscriptions-bench  what it costs to know what a user has bought
  drain        drains and reloads under load lose none of 100,000 requests each (DRAIN_REQUESTS)
  streaming    1 GiB each way through every protocol: throughput and highest memory (STREAM_MIB)
  leak-drill   a build that leaks 50 KB/s is found out, one that warms up or does nothing is not
               (the detector's hour is LEAK_DRILL_WINDOW, 240s; takes 1.7 times as long)
  pictures     docs/dashboards/*.svg: the dashboards, drawn of six minutes of a service that really ran
               (needs redis-server, postgres, prometheus, prometheus-node-exporter); redraw: the same
               run once more, after a change of what draws them
  usage-kills  kill -9 under load at random moments, 60 times with files, 20 with Redis, 20 with PostgreSQL:
               what was sent, what the backend saw, what is recorded (USAGE_KILLS_FILE, _REDIS, _POSTGRES)
  usage-million  a million identities in a minute: memory, size of journal and records, time to export
  usage-bench  what it costs to count a request
  simulate-bench  lines of a log that a replay takes in a second, by format
  schemathesis  the admin API against its description, with many requests made up for each call and
               another seed each time (SCHEMATHESIS_EXAMPLES, SCHEMATHESIS_SEED; needs python3 with venv)
  page-pictures  docs/status-page/*.png: the status page, of four minutes of a service that really ran
               (needs redis-server, chromium, node, and npm ci in web/)
  fuzz         every fuzz target for a while each, one after the other (fuzz/README.md; needs a nightly
               compiler and cargo-fuzz; fuzz SECONDS TARGET…, 1,200 seconds without)
  container    builds the image with Docker and tries it: size, user, health check, drain
  compose      starts docker-compose.yml, or the services that are named, and runs each curl of
               docs/container.md, asks Prometheus for its targets and rules (tests/container.sh)
  reproducible  makes the release of the last commit twice, in folders and with a cargo home of different
               names, and compares what comes of it (RELEASES, a folder: keeps them there)
  handover     processes that take over from each other, and restart under systemd's socket, while 100,000
               requests are sent: none is lost (HANDOVER_REQUESTS; needs python3)
  flood        ten thousand requests a second of one caller, by limits and connections: what Redis gets of
               them (FLOOD_REQUESTS, 160000 for each line; needs redis-server)
  outage       four processes lose their Redis for a minute, stopped and killed, and get it back: what the
               backend saw in any minute, and what was lost (needs redis-server; seven minutes)
  valkey       what is tried with Redis, tried with Valkey: the store, its forms, failovers, outages, leases
               (needs valkey-server, valkey-sentinel and valkey-cli in PATH or in the folder VALKEY_BIN)
  leases       1, 2, 4 and 8 processes on one Redis and one caller: calls of Redis, and whether the limits
               are kept (needs redis-server)
  overrides    how long it takes until another replica obeys (needs redis-server)
  simulation   replicas, clocks, a network and a Redis that are made up from seeds: a thousand seeds of each
               (SIMULATION_SEED is the first, SIMULATION_SEEDS how many, SIMULATION_SECONDS at most)
  abuse        attacks, one by one: memory, and how long honest requests wait meanwhile (ABUSE names one)
  soak         an hour at half of what it can, with Redis, a backend, certificates and the policy restarted
               or changed every minute: what is lost, memory, how long requests take
               (SOAK_MINUTES, SOAK_RATE; needs redis-server)
  connections  10,000 kept connections, used again and again: memory for each, and how long requests take
               beside the same rate over 64 (CONNECTIONS; ulimit -n above that)
  websockets   5,000 WebSockets: memory for each (WEBSOCKETS; ulimit -n above twice that)
  memory-churn  the longest pause that the store can make while ten million identities come and go, by
               CPU time, and what an idle one takes (MEMORY_CHURN_IDENTITIES, _RESIDENT, _PAUSE_MS)
  redis-cost   what a check costs Redis and tollgate, and how long it takes: one, 64 and 512 in flight,
               and 64 at once (needs redis-server; one of them by its name: redis-cost latency)
  properties   every property test with a hundred times its cases (PROPTEST_CASES says how many)
LIST
}

name=${1:-}
[ $# -eq 0 ] || shift
case "$name" in
compare)
    cargo build --release --locked
    exec python3 benches/compare/compare.py "$@"
    ;;
signals)
    cargo build --release --locked
    cargo build --release --locked --features without-signals --target-dir target/without-signals
    exec python3 benches/compare/signals.py \
        --without target/without-signals/release/tollgate "$@"
    ;;
conformance)
    PATH="$PATH:/usr/sbin"
    for program in nginx haproxy; do
        command -v "$program" >/dev/null || { printf '%s is not installed\n' "$program" >&2; exit 1; }
    done
    exec cargo test --locked --test conformance table_beside -- --ignored --nocapture "$@"
    ;;
flood)
    export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16
    exec cargo test --release --locked --test deny_cache ten_thousand -- --ignored --nocapture "$@"
    ;;
handover)
    export HANDOVER_REQUESTS="${HANDOVER_REQUESTS:-100000}"
    exec cargo test --locked --test handover -- --nocapture under_load systemd_holds "$@"
    ;;
outage) exec cargo test --locked --test outage -- --ignored --nocapture "$@" ;;
valkey)
    PATH="${VALKEY_BIN:+$VALKEY_BIN:}$PATH"
    for program in server sentinel cli; do
        found=$(command -v "valkey-$program") || {
            printf 'valkey-%s is not installed\n' "$program" >&2
            exit 1
        }
        export "TOLLGATE_REDIS_${program^^}=$found"
    done
    "$TOLLGATE_REDIS_SERVER" --version
    exec cargo test --locked --test redis_forms --test redis_store --test failover --test redis_failover \
        --test outage --test quotas --test leases --test deny_cache --test redis_budget --test redis_parts \
        -- --nocapture "$@"
    ;;
leases)
    export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16
    exec cargo test --release --locked --test leases curve -- --ignored --nocapture "$@"
    ;;
overrides) exec cargo test --locked --test overrides -- --ignored --nocapture "$@" ;;
memory-churn)
    # Optimised, without the minutes of a release; one after the other, as the second measures memory.
    export CARGO_PROFILE_TEST_OPT_LEVEL=2 CARGO_PROFILE_DEV_OPT_LEVEL=2
    exec cargo test --locked --target-dir target/measured --test memory_churn -- \
        --ignored --nocapture --test-threads 1 "$@"
    ;;
redis-cost)
    export CARGO_PROFILE_TEST_OPT_LEVEL=2 CARGO_PROFILE_DEV_OPT_LEVEL=2
    exec cargo test --locked --target-dir target/measured --test redis_cost -- \
        --ignored --nocapture --test-threads 1 "$@"
    ;;
abuse)
    # Optimised, without the minutes of a release.
    export CARGO_PROFILE_TEST_OPT_LEVEL=2 CARGO_PROFILE_DEV_OPT_LEVEL=2
    exec cargo test --locked --target-dir target/measured --test abuse table -- --ignored --nocapture "$@"
    ;;
soak)
    # Optimised, without the minutes of a release; the feature sets the window of the detector of leaks,
    # so that it has come to its verdict within the hour.
    export CARGO_PROFILE_TEST_OPT_LEVEL=2 CARGO_PROFILE_DEV_OPT_LEVEL=2
    exec cargo test --locked --features leak-drill --target-dir target/measured --test soak an_hour -- \
        --ignored --nocapture "$@"
    ;;
connections | websockets)
    export CARGO_PROFILE_TEST_OPT_LEVEL=2 CARGO_PROFILE_DEV_OPT_LEVEL=2
    exec cargo test --locked --target-dir target/measured --test crowds "thousand_$name" -- \
        --ignored --nocapture "$@"
    ;;
simulation)
    export SIMULATION_SEEDS="${SIMULATION_SEEDS:-1000}" SIMULATION_SECONDS="${SIMULATION_SECONDS:-3600}"
    exec cargo test --locked --test simulation -- --nocapture "$@"
    ;;
spread) exec cargo bench --locked --bench spread -- "$@" ;;
route-bench) exec cargo bench --locked --bench router -- "$@" ;;
identity-bench) exec cargo bench --locked --bench identity -- "$@" ;;
subscriptions-bench) exec cargo bench --locked --bench subscriptions -- "$@" ;;
drain | streaming)
    # The optimised build, without the minutes that its last few per cent take.
    export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16
    export DRAIN_REQUESTS="${DRAIN_REQUESTS:-100000}" STREAM_MIB="${STREAM_MIB:-1024}"
    exec cargo test --release --locked --test "$name" -- --nocapture "$@"
    ;;
pictures)
    cargo build --release --locked
    export TOLLGATE_BIN=target/release/tollgate
    exec cargo test --locked --test dashboard_pictures pictures -- --ignored --nocapture "$@"
    ;;
redraw) exec cargo test --locked --test dashboard_pictures redraw -- --ignored --nocapture "$@" ;;
page-pictures)
    exec cargo test --locked --test status_page pictures -- --ignored --nocapture "$@"
    ;;
container) exec bash tests/container.sh image "$@" ;;
compose) exec bash tests/container.sh compose "$@" ;;
reproducible)
    releases=${RELEASES:-$(mktemp -d)}
    [ -n "${RELEASES:-}" ] || trap 'rm -rf "$releases"' EXIT
    mkdir -p "$releases/one" "$releases/a/second/of/another/depth" "$releases/home"
    first=$(cd "$releases/one" && pwd)
    second=$(cd "$releases/a/second/of/another/depth" && pwd)
    # The crates themselves, at another place; what is not there is fetched.
    cp -al "${CARGO_HOME:-$HOME/.cargo}/registry" "$releases/home/" 2>/dev/null || true
    for folder in "$first" "$second"; do
        git clone --quiet . "$folder/tollgate"
        [ "$folder" = "$first" ] || export CARGO_HOME="$releases/home"
        (cd "$folder/tollgate" && TZ=Asia/Tokyo deploy/release.sh "$folder/dist")
    done
    cat "$first/dist/SHA256SUMS"
    if cmp "$first/dist/SHA256SUMS" "$second/dist/SHA256SUMS"; then
        printf 'the same\n'
    else
        cat "$second/dist/SHA256SUMS"
        exit 1
    fi
    ;;
leak-drill) exec cargo test --locked --features leak-drill --test leak_drill -- --nocapture "$@" ;;
schemathesis)
    export SCHEMATHESIS_EXAMPLES="${SCHEMATHESIS_EXAMPLES:-1000}"
    export SCHEMATHESIS_SEED="${SCHEMATHESIS_SEED-}" TOLLGATE_REQUIRE_SCHEMATHESIS=1
    exec cargo test --locked --test openapi schemathesis -- --nocapture "$@"
    ;;
properties) PROPTEST_CASES="${PROPTEST_CASES:-25600}" exec cargo test --release --locked -- "$@" ;;
fuzz)
    seconds=${1:-1200}
    [ $# -eq 0 ] || shift
    [ $# -gt 0 ] || set -- path forwarded tiers config jwt proxy_protocol access_log log_line \
        redis_reply admin request
    for target in "$@"; do
        printf '%s, %s s\n' "$target" "$seconds"
        # The first folder takes what is new; the second is read.
        mkdir -p "fuzz/target/found/$target"
        cargo +nightly fuzz run "$target" "fuzz/target/found/$target" "fuzz/corpus/$target" -- \
            -max_total_time="$seconds" -dict="fuzz/dictionaries/$target.dict" -max_len=4096 \
            -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 </dev/null
    done
    ;;
usage-kills)
    export USAGE_KILLS_FILE="${USAGE_KILLS_FILE:-60}" USAGE_KILLS_REDIS="${USAGE_KILLS_REDIS:-20}"
    export USAGE_KILLS_POSTGRES="${USAGE_KILLS_POSTGRES:-20}"
    exec cargo test --locked --test usage kills -- --nocapture --test-threads 1 "$@"
    ;;
usage-million) exec cargo bench --locked --bench usage -- million "$@" ;;
simulate-bench) exec cargo bench --locked --bench simulate -- "$@" ;;
usage-bench) exec cargo bench --locked --bench usage -- "$@" ;;
store-bench) exec cargo bench --locked --bench store -- "$@" ;;
'' | -h | --help) usage ;;
*)
    printf 'no long run is called %s\n\n' "$name" >&2
    usage >&2
    exit 2
    ;;
esac
