#!/usr/bin/env bash
# Runs every test from a fresh clone: tests/run.sh [arguments for `cargo test`]
#
# On Debian and Ubuntu it installs what the tests need and is missing (with sudo where it is not
# root). Elsewhere it names what is missing and runs the rest. It never leaves a service behind.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PATH="$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin:/usr/sbin"
skipped=()
say() { printf '==> %s\n' "$*"; }
has() { command -v "$1" >/dev/null 2>&1; }

is_debian() {
    has apt-get && [ -r /etc/os-release ] &&
        (
            # shellcheck disable=SC1091
            . /etc/os-release
            case " ${ID:-} ${ID_LIKE:-} " in *" debian "* | *" ubuntu "*) exit 0 ;; *) exit 1 ;; esac
        )
}

# How to become root here without a question that nobody is there to answer; empty for root.
find_sudo() {
    if [ "$(id -u)" -eq 0 ]; then
        sudo=()
    elif has sudo && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
        sudo=(sudo)
    else
        return 1
    fi
}

# Whether systemd runs here and this unit with it; containers mostly have none.
unit_is_active() { [ -d /run/systemd/system ] && systemctl --quiet is-active "$1"; }

# Servers of PostgreSQL are not on the PATH of Debian.
has_postgres() {
    local directory
    for directory in ${PATH//:/ } /usr/lib/postgresql/*/bin; do
        if [ -x "$directory/initdb" ] && [ -x "$directory/postgres" ]; then return 0; fi
    done
    return 1
}

# Debian calls it by its package's name, its makers do not.
has_alertmanager() { has prometheus-alertmanager || has alertmanager; }

# stop_unit UNIT: a service that the installation of a package started.
stop_unit() {
    say "stopping the $1 service that the installation started"
    "${sudo[@]}" systemctl disable --now --quiet "$1" </dev/null || true
}

# What the status page is built and tried with, as web/package-lock.json has it; done once for each lock.
install_web() {
    { has chromium && has node && has npm; } || return 1
    node -e 'process.exit(Number(process.versions.node.split(".")[0]) < 20 ? 1 : 0)' || return 1
    local lock stamp=web/node_modules/.installed
    lock=$(sha256sum <web/package-lock.json)
    if [ "$(cat "$stamp" 2>/dev/null)" = "$lock" ]; then return 0; fi
    say "npm ci in web/"
    (cd web && npm ci --ignore-scripts --no-audit --no-fund --no-progress </dev/null) || return 1
    printf '%s\n' "$lock" >"$stamp"
}

install() {
    local redis_was_installed=no sentinel_was_installed=no postgres_was_installed=no
    local prometheus_was_installed=no alertmanager_was_installed=no nginx_was_installed=no
    local exporter_was_installed=no
    if has redis-server; then redis_was_installed=yes; fi
    if has redis-sentinel; then sentinel_was_installed=yes; fi
    if has_postgres; then postgres_was_installed=yes; fi
    if has prometheus; then prometheus_was_installed=yes; fi
    if has_alertmanager; then alertmanager_was_installed=yes; fi
    if has nginx; then nginx_was_installed=yes; fi
    if has prometheus-node-exporter; then exporter_was_installed=yes; fi

    say "installing: $*"
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -q </dev/null ||
        say "apt-get update did not get everything; trying with what there is"
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -q -y --no-install-recommends "$@" </dev/null || return 1

    # The packages start servers of their own; the tests bring theirs, so those go again.
    if [ "$redis_was_installed" = no ] && unit_is_active redis-server; then
        stop_unit redis-server
    fi
    if [ "$sentinel_was_installed" = no ] && unit_is_active redis-sentinel; then
        stop_unit redis-sentinel
    fi
    if [ "$prometheus_was_installed" = no ] && unit_is_active prometheus; then
        stop_unit prometheus
    fi
    if [ "$alertmanager_was_installed" = no ] && unit_is_active prometheus-alertmanager; then
        stop_unit prometheus-alertmanager
    fi
    if [ "$nginx_was_installed" = no ] && unit_is_active nginx; then
        stop_unit nginx
    fi
    if [ "$exporter_was_installed" = no ] && unit_is_active prometheus-node-exporter; then
        stop_unit prometheus-node-exporter
    fi
    if [ "$postgres_was_installed" = no ] && unit_is_active postgresql; then
        stop_unit postgresql
    elif [ "$postgres_was_installed" = no ] && pg_lsclusters -h 2>/dev/null | grep -q online; then
        say "stopping the PostgreSQL that the installation started"
        "${sudo[@]}" service postgresql stop </dev/null || true
    fi
}

missing=()
has redis-server || missing+=(redis-server)
has redis-sentinel || missing+=(redis-sentinel)
has_postgres || missing+=(postgresql)
# The guides are typed as they stand, and certificates are made.
for tool in curl openssl; do
    has "$tool" || missing+=("$tool")
done
# The guide to moving from it runs it.
has nginx || missing+=(nginx-light)
# promtool, which checks what the metrics look like, and the servers that alerts and dashboards are
# tried with.
{ has promtool && has prometheus; } || missing+=(prometheus)
{ has_alertmanager && has amtool; } || missing+=(prometheus-alertmanager)
has prometheus-node-exporter || missing+=(prometheus-node-exporter)
# What holds the admin API to its description is Python's.
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
# The status page is tried in a browser, and built from its source.
has chromium || missing+=(chromium)
has node || missing+=(nodejs)
has npm || missing+=(npm)
# The allocator is built from C: it asks for a compiler and for make.
{ has cc && has make; } || missing+=(build-essential)

if [ ${#missing[@]} -gt 0 ]; then
    if ! is_debian; then
        say "missing here: ${missing[*]} (the names of the Debian packages); please install them"
    elif ! find_sudo; then
        say "missing here: ${missing[*]}; neither root nor sudo without a password, not installed"
    elif ! install "${missing[@]}"; then
        say "could not install: ${missing[*]}"
    fi
fi

if ! has cargo; then
    say "cargo is missing: install Rust 1.95 or newer from https://rustup.rs"
    exit 1
fi
if ! has cc || ! has make; then
    say "a C compiler (cc) and make are needed to build"
    exit 1
fi

if has redis-server && has redis-sentinel && has redis-cli; then
    # From here on a test that finds no Redis fails instead of passing without a look.
    export TOLLGATE_REQUIRE_REDIS=1
    say "redis-server: $(redis-server --version | cut -d ' ' -f 1-3)"
else
    skipped+=("everything that needs a real Redis (no redis-server, redis-sentinel or redis-cli)")
fi
if has_postgres; then
    export TOLLGATE_REQUIRE_POSTGRES=1
else
    skipped+=("everything that needs a real PostgreSQL (no initdb and postgres)")
fi
if has promtool && has prometheus && has amtool && has_alertmanager &&
    has prometheus-node-exporter; then
    export TOLLGATE_REQUIRE_PROMETHEUS=1
else
    skipped+=("what takes Prometheus, Alertmanager, node_exporter: alerts, dashboards, promtool")
fi
if has nginx; then
    export TOLLGATE_REQUIRE_NGINX=1
else
    skipped+=("nginx beside tollgate (no nginx)")
fi
if bash tests/schemathesis.sh install; then
    export TOLLGATE_REQUIRE_SCHEMATHESIS=1
else
    skipped+=("schemathesis against the admin port (no python3 with venv, or no PyPI)")
fi
if install_web; then
    export TOLLGATE_REQUIRE_BROWSER=1
else
    skipped+=("the status page in a browser (no chromium, no Node.js of version 20, or no npm ci)")
fi
has kubectl || skipped+=("that the rendered manifests are those of the files (optional, kubectl)")
has systemd-analyze || skipped+=("what systemd says of its unit (optional)")

# A thousand connections through a proxy in one process are three thousand descriptors.
ulimit -Sn 65536 2>/dev/null || ulimit -Sn "$(ulimit -Hn)" 2>/dev/null || true

log=$(mktemp)
trap 'rm -f "$log"' EXIT
started=$SECONDS
status=0
say "cargo test --locked${*:+ $*}"
cargo test --locked --no-fail-fast "$@" </dev/null 2>&1 | tee "$log" || status=$?

counts=$(awk '/^test result: / { p += $4; f += $6; i += $8 } END { print p + 0, f + 0, i + 0 }' "$log")
read -r passed failed ignored <<<"$counts"
for what in ${skipped[@]+"${skipped[@]}"}; do say "skipped: $what"; done
if [ "$passed" -eq 0 ] && [ "$status" -eq 0 ]; then
    say "not one test ran"
    status=1
fi
verdict=ok
[ "$status" -eq 0 ] || verdict=FAILED
say "$verdict: $passed passed, $failed failed, $ignored left out by name, $((SECONDS - started)) s"
exit "$status"
