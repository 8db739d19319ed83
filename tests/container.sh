#!/usr/bin/env bash
# Builds and starts for real what is deployed in containers: tests/container.sh image | compose
#
#   image                 the image: its size, user, labels, health check, read-only root file system,
#                         the container's limit of memory, what a SIGTERM does
#   compose [SERVICE…]    docker-compose.yml, or these services of it: everything healthy, each curl of
#                         docs/container.md, Prometheus's targets and rules, the drain
#
# Needs a Docker engine, compose of either generation, curl and python3; and for `compose` the host
# ports of docker-compose.yml. BUILD_ARGUMENTS goes to `docker build`; TOLLGATE_IMAGE_READY=1 takes the
# image tollgate:VERSION that is there. It takes away what it started.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
image=tollgate:$version
ours_mib_max=25
commit=$(git rev-parse --short=12 HEAD)
work=$(mktemp -d)

ok() { printf 'ok: %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }

# waits SECONDS COMMAND…: until it succeeds.
waits() {
    local until=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$until" ] || return 1
        sleep 0.5
    done
}

is_healthy() { [ "$(docker inspect --format '{{.State.Health.Status}}' "$1")" = healthy ]; }

# json EXPRESSION: of the JSON on standard input, as `it`.
json() { python3 -c "import json, sys; it = json.load(sys.stdin); print($1)"; }

for program in docker curl python3; do
    command -v "$program" >/dev/null || fail "$program is not installed"
done
docker info >/dev/null 2>&1 || fail "no Docker engine answers"

build() {
    [ "${TOLLGATE_IMAGE_READY:-}" != 1 ] || return 0
    local started=$SECONDS
    # shellcheck disable=SC2086
    docker build ${BUILD_ARGUMENTS:-} --build-arg "TOLLGATE_COMMIT=$commit" -t "$image" .
    ok "built in $((SECONDS - started)) s"
}

try_image() {
    container=tollgate-try-$$
    trap 'docker rm -f "$container" >/dev/null 2>&1 || true; rm -rf "$work"' EXIT
    build

    # Layers that the base has not.
    local base base_layers layers
    base=$(sed -n 's/^FROM \(.*distroless[^ ]*\).*/\1/p' Dockerfile)
    base_layers=$(docker image inspect --format '{{len .RootFS.Layers}}' "$base")
    layers=$(docker image inspect --format '{{len .RootFS.Layers}}' "$image")
    local whole of_base
    whole=$(docker image inspect --format '{{.Size}}' "$image")
    of_base=$(docker image inspect --format '{{.Size}}' "$base")
    local ours=$((whole - of_base))
    [ "$ours" -le $((ours_mib_max << 20)) ] || fail "$ours bytes of ours, more than $ours_mib_max MiB"
    ok "$ours bytes of ours in $((layers - base_layers)) layers, above a base of $of_base"

    local label
    for label in "version=$version" "revision=$commit" "licenses=MIT OR Apache-2.0"; do
        local key=${label%%=*} value=${label#*=} found
        found=$(docker image inspect \
            --format "{{index .Config.Labels \"org.opencontainers.image.$key\"}}" "$image")
        [ "$found" = "$value" ] || [ "${TOLLGATE_IMAGE_READY:-}" = 1 ] || fail "$key: $found"
    done
    ok "labels"
    docker run --rm --read-only "$image" --version | grep -q "^tollgate $version" || fail "--version"
    ok "$(docker run --rm --read-only "$image" --version)"
    docker run --rm "$image" check --config /etc/tollgate/tollgate.yaml --tiers /etc/tollgate/tiers.yaml \
        >/dev/null || fail "the files in the image"
    ok "the files in /etc/tollgate are valid"

    # The admin port elsewhere than usual: the health check has to follow.
    docker run -d --name "$container" --read-only --cap-drop ALL --security-opt no-new-privileges \
        --security-opt seccomp=deploy/seccomp/tollgate.json --memory 256m --stop-timeout 40 \
        -e TOLLGATE_ADMIN=0.0.0.0:9911 -p 127.0.0.1::8080 -p 127.0.0.1::9911 "$image" demo --listen 0.0.0.0:8080 >/dev/null
    waits 60 is_healthy "$container" || fail "it is not healthy: $(docker logs "$container" 2>&1)"
    ok "healthy, on another admin port, under the seccomp profile, with a root file system that cannot be written to"
    local components
    components=$(docker cp "$container:/usr/share/doc/tollgate/sbom.cdx.json" - | tar -xO |
        json 'len(it["components"])') || fail "no list of components"
    ok "sbom.cdx.json names $components components"
    local data admin
    data=$(docker port "$container" 8080 | head -n 1)
    admin=$(docker port "$container" 9911 | head -n 1)
    curl -sf "http://$data/fo/strike-distribution" >/dev/null || fail "the demo does not answer"
    local uid
    uid=$(docker top "$container" -eo pid,uid | awk 'NR == 2 { print $2 }')
    [ "$uid" = 65532 ] || fail "it runs as $uid"
    ok "runs as $uid"
    local limit
    limit=$(curl -sf "http://$admin/metrics" | sed -n 's/^memory_limit_bytes //p')
    [ "$limit" = 268435456 ] || fail "memory_limit_bytes $limit"
    ok "memory_limit_bytes $limit"
    [ -z "$(docker diff "$container")" ] || fail "it wrote: $(docker diff "$container")"
    ok "wrote nothing"
    stops_gracefully "$container" "http://$data/slow?ms=3000"
}

# stops_gracefully CONTAINER SLOW_URL: what is under way is finished, and the exit code is 0.
stops_gracefully() {
    local code
    curl -s -o /dev/null -w '%{http_code}' "$2" >"$work/slow" &
    local slow=$!
    in_flight() { docker exec "$1" /usr/local/bin/tollgate health | json \
        'it["backpressure"]["requests_in_flight"]' | grep -qv '^0$'; }
    waits 3 in_flight "$1" || fail "the slow request was not seen under way"
    docker stop -t 40 "$1" >/dev/null
    wait "$slow" || fail "the slow request was cut off"
    [ "$(cat "$work/slow")" = 200 ] || fail "the slow request ended with $(cat "$work/slow")"
    code=$(docker inspect --format '{{.State.ExitCode}}' "$1")
    [ "$code" = 0 ] || fail "exit code $code after SIGTERM"
    ok "SIGTERM: the request that was under way got its answer, exit code 0"
}

# The blocks of shell below a heading of docs/container.md.
typed_below() {
    awk -v heading="$1" '
        /^##/ { below = ($0 == heading) }
        /^```/ { inside = below && $0 == "```sh" && !inside; next }
        inside' docs/container.md
}

try_compose() {
    if docker compose version >/dev/null 2>&1; then
        compose=(docker compose)
    else
        compose=(docker-compose)
    fi
    compose+=(--project-name tollgate-try)
    trap '"${compose[@]}" down --volumes --timeout 5 >/dev/null 2>&1 || true; rm -rf "$work"' EXIT
    build
    export TOLLGATE_COMMIT=$commit
    "${compose[@]}" up -d "$@"
    local service id health
    mapfile -t started < <("${compose[@]}" ps --services | sort)
    for service in "${started[@]}"; do
        id=$("${compose[@]}" ps -q "$service")
        [ -n "$id" ] || continue
        health=$(docker inspect --format '{{if .State.Health}}yes{{end}}' "$id")
        [ "$health" = yes ] || fail "$service has no health check"
        waits 120 is_healthy "$id" || fail "$service is not healthy: $(docker logs --tail 20 "$id" 2>&1)"
        running+=("$service")
    done
    ok "healthy: ${running[*]}"

    # As their reader would.
    typed_below '### The first requests' >"$work/typed"
    grep -q '^curl ' "$work/typed" || fail "docs/container.md shows no curl"
    { cat "$work/typed"; echo wait; } | bash -eo pipefail >"$work/said" 2>/dev/null ||
        fail "docs/container.md, The first requests: $(tail -n 20 "$work/said")"
    local wanted
    for wanted in '"symbol": "NIFTY50"' '"status":"\(healthy\|degraded\)"' '^HTTP/1.1 200 OK' \
        '^HTTP/1.1 429 Too Many Requests' '^retry-after: ' '^x-ratelimit-limit: 100' \
        '"error":"Rate limit exceeded"' '^backpressure_event_loop_lag_seconds ' \
        '^memory_rss_bytes ' '^rate_limit_hits_total' '^error_rate_total'; do
        grep -q "$wanted" "$work/said" || fail "docs/container.md, The first requests: no $wanted"
    done
    ok "docs/container.md: $(grep -c '^ *curl' "$work/typed") lines of curl, the loop ran into a 429"

    local tollgate
    tollgate=$("${compose[@]}" ps -q tollgate)
    [ "$(docker inspect --format '{{.HostConfig.ReadonlyRootfs}}' "$tollgate")" = true ] ||
        fail "its root file system can be written to"
    [ -z "$(docker diff "$tollgate" | grep -v ' /tmp$' || true)" ] || fail "$(docker diff "$tollgate")"
    [ "$(docker top "$tollgate" -eo pid,uid | awk 'NR == 2 { print $2 }')" = 65532 ] || fail "its user"
    # Through a file: whoever reads a pipe to its first match alone leaves curl with an error.
    curl -sf http://localhost:8081/metrics >"$work/metrics"
    grep -q '^memory_limit_bytes 536870912$' "$work/metrics" || fail "memory_limit_bytes"
    ok "tollgate: read-only, user 65532, memory_limit_bytes 536870912"
    [ "$(curl -s -o /dev/null -w '%{http_code}' http://localhost:9900/api/v1/top)" = 403 ] ||
        fail "/api answers without a token"
    ok "/api is closed without a token"
    [ "$("${compose[@]}" exec -T redis redis-cli dbsize | tr -cd 0-9)" -gt 0 ] || fail "no key in Redis"
    ok "the counters are in Redis"

    if is_started prometheus; then try_prometheus; fi
    if is_started alertmanager; then
        curl -sf http://localhost:9093/-/ready >/dev/null || fail "Alertmanager is not ready"
        ok "Alertmanager is ready"
    fi
    if is_started grafana; then
        local user="admin:${GRAFANA_ADMIN_PASSWORD:-admin}" dashboards=(deploy/grafana/dashboards/*.json)
        local found
        found=$(curl -sf -u "$user" 'http://localhost:3000/api/search?type=dash-db' | json 'len(it)')
        [ "$found" = "${#dashboards[@]}" ] || fail "Grafana has $found dashboards"
        ok "Grafana has $found dashboards"
    fi

    stops_gracefully "$tollgate" 'http://localhost:8081/slow?seconds=3'
    for service in "${running[@]}"; do
        id=$("${compose[@]}" ps -a -q "$service" 2>/dev/null || "${compose[@]}" ps -q "$service")
        [ "$(docker inspect --format '{{.RestartCount}}' "$id")" = 0 ] || fail "$service was restarted"
    done
    ok "none was restarted"
}

is_started() { printf '%s\n' "${running[@]}" | grep -qx "$1"; }

try_prometheus() {
    # Each of its jobs that was started has been asked, and answered.
    local jobs=(prometheus) job
    is_started tollgate && jobs+=(tollgate)
    is_started alertmanager && jobs+=(alertmanager)
    is_started node-exporter && jobs+=(node)
    is_started cadvisor && jobs+=(cadvisor)
    for job in "${jobs[@]}"; do
        is_up() { curl -sf http://localhost:9090/api/v1/targets | json "[t['health'] for t in
            it['data']['activeTargets'] if t['labels']['job'] == '$job']" | grep -qx "\['up'\]"; }
        waits 60 is_up || fail "Prometheus: the target $job is not up"
    done
    ok "Prometheus's targets are up: ${jobs[*]}"
    local written loaded
    written=$(cat deploy/prometheus/*.yml | grep -cE '^ *- (alert|record): ')
    are_evaluated() { curl -sf http://localhost:9090/api/v1/rules | json "all(r['health'] == 'ok'
        for g in it['data']['groups'] for r in g['rules'])" | grep -qx True; }
    waits 120 are_evaluated || fail "Prometheus: a rule that is not well"
    loaded=$(curl -sf http://localhost:9090/api/v1/rules |
        json "sum(len(g['rules']) for g in it['data']['groups'])")
    [ "$loaded" = "$written" ] || fail "Prometheus has $loaded of $written rules"
    ok "Prometheus has all $loaded rules, each evaluated"
}

running=()
what=${1:-}
[ $# -eq 0 ] || shift
case "$what" in
image) try_image "$@" ;;
compose) try_compose "$@" ;;
*) sed -n '2,12p' "${BASH_SOURCE[0]}" | sed 's/^# \{0,1\}//' >&2; exit 2 ;;
esac
printf 'everything as it should be, %s s\n' "$SECONDS"
