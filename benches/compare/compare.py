#!/usr/bin/env python3
"""tollgate beside nginx (and, asked for, HAProxy) in one run, on two cores of one machine.

Every contender is pinned to one core, the load (wrk) and the backend (an nginx that answers
1 KiB) to another. Three scenarios, each with processes of its own that live for the whole run:

  allowed   limits are checked and never met
  refused   limits so low that all but a few requests get a 429
  plain     no limits, for reference

Rounds are interleaved and their order alternates, so that a noisy minute meets everybody. The
figure to trust is the CPU time of a request (user and system time of all of a contender's
processes over the requests that wrk completed): it holds even where wrk's core is the bottleneck,
which `busy` below 100 % shows. nginx keeps one rate for each key, tollgate checks four windows.
nginx is told to send Host, X-Forwarded-For and X-Forwarded-Proto, as tollgate does by itself.

Everything listens on 127.0.0.1 at free ports, lives in a temporary directory, and is ended by
its process id. `--peer-only` measures nginx against itself: the noise of this machine.
"""

import argparse
import http.client
import json
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCENARIOS = ("allowed", "refused", "plain")
BODY_BYTES = 1024
RATIOS = {"cpu_us": "CPU", "per_second": "requests/s", "p99_ms": "p99"}
PLENTY = 1_000_000_000
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


class Failed(Exception):
    """The run cannot go on; the message says why."""


# ----- configurations ------------------------------------------------------------------------

NGINX_HEAD = """
worker_processes 1;
daemon off;
pid {dir}/pid;
error_log {dir}/error.log crit;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy;
  fastcgi_temp_path {dir}/fastcgi; uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
"""

NGINX_BACKEND = NGINX_HEAD + """
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location / {{ default_type text/plain; return 200 "{body}"; }}
  }}
}}
"""

NGINX_PROXY = NGINX_HEAD + """
  upstream backend {{
    server 127.0.0.1:{backend};
    keepalive 256; keepalive_requests 1000000000;
  }}
  {zone}
  limit_req_status 429;
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location / {{
      {limit}
      proxy_pass http://backend;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto $scheme;
    }}
  }}
}}
"""

NGINX_LIMITS = {
    "allowed": (
        "limit_req_zone $binary_remote_addr zone=each:10m rate=1000000r/s;",
        "limit_req zone=each burst=100000 nodelay;",
    ),
    "refused": (
        "limit_req_zone $binary_remote_addr zone=each:10m rate=1r/m;",
        "limit_req zone=each;",
    ),
    "plain": ("", ""),
}

HAPROXY = """
global
  nbthread 1
  maxconn 4096
defaults
  mode http
  option forwardfor
  http-reuse always
  timeout connect 2s
  timeout client 60s
  timeout server 60s
frontend entry
  bind 127.0.0.1:{port}
  {limit}
  default_backend backend
backend backend
  server one 127.0.0.1:{backend}
"""

HAPROXY_LIMIT = """stick-table type ip size 100k expire 1h store http_req_rate(60s)
  http-request track-sc0 src
  http-request deny deny_status 429 if {{ sc_http_req_rate(0) gt {limit} }}"""

TOLLGATE = """
server: {{ listen: "127.0.0.1:{port}", workers: 1 }}
admin: {{ listen: "127.0.0.1:{admin}" }}
upstream: {{ url: "http://127.0.0.1:{backend}" }}
log: {{ level: warn }}
"""

TOLLGATE_TIERS = {
    "allowed": "{ per_second: 1000000, burst: 1000000, per_minute: 100000000, "
    f"per_hour: {PLENTY} }}",
    "refused": "{ per_second: 1, burst: 1, per_minute: 2, per_hour: 3 }",
    "plain": "{}",
}


def nginx(folder, scenario, port, backend, _options):
    zone, limit = NGINX_LIMITS[scenario]
    text = NGINX_PROXY.format(dir=folder, port=port, backend=backend, zone=zone, limit=limit)
    return nginx_command(folder, text)


def nginx_command(folder, text):
    (folder / "nginx.conf").write_text(text)
    return [program("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]


def haproxy(folder, scenario, port, backend, _options):
    limits = {"allowed": PLENTY, "refused": 1, "plain": None}
    limit = limits[scenario]
    rules = "" if limit is None else HAPROXY_LIMIT.format(limit=limit)
    text = HAPROXY.format(port=port, backend=backend, limit=rules)
    (folder / "haproxy.cfg").write_text(text)
    return [program("haproxy"), "-db", "-f", str(folder / "haproxy.cfg")]


def tollgate(folder, scenario, port, backend, options):
    (folder / "tollgate.yaml").write_text(
        TOLLGATE.format(port=port, admin=free_port(), backend=backend)
    )
    tier = TOLLGATE_TIERS[scenario]
    (folder / "tiers.yaml").write_text(f"default_tier: free\ntiers:\n  free: {tier}\n")
    files = ["--config", str(folder / "tollgate.yaml"), "--tiers", str(folder / "tiers.yaml")]
    return [str(options.tollgate), "run", *files]


# What it is called in tables, and what writes its files and gives its command.
CONTENDERS = {
    "tollgate": tollgate,
    "nginx": nginx,
    "nginx again": nginx,
    "haproxy": haproxy,
}


# ----- processes -----------------------------------------------------------------------------


class Process:
    """One contender in one scenario: started once, measured often, ended at the end."""

    def __init__(self, folder, command, core, port):
        self.port = port
        self.log = folder / "output.log"
        with open(self.log, "wb") as log:
            self.child = subprocess.Popen(
                [program("taskset"), "-c", str(core), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def wait_until_ready(self, seconds=10.0):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.child.poll() is not None:
                break
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.02)
        raise Failed(f"{self.child.args[3]} does not listen:\n{self.said()}")

    def said(self):
        return self.log.read_text(errors="replace")[-2000:]

    def pids(self):
        """The process and its children (nginx's worker)."""
        pid = self.child.pid
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError as error:
            raise Failed(f"{self.child.args[3]} ended:\n{self.said()}") from error
        return [pid, *map(int, children)]

    def cpu_seconds(self):
        ticks = 0
        for pid in self.pids():
            # The name in brackets may hold blanks; what follows it does not.
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / TICKS

    def resident_mib(self):
        """Of the largest process: nginx's worker, without its master, in nginx's favour."""
        pages = max(int(Path(f"/proc/{p}/statm").read_text().split()[1]) for p in self.pids())
        return pages * PAGE / 2**20

    def end(self):
        if self.child.poll() is None:
            self.child.terminate()
            try:
                self.child.wait(5)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()


def program(name):
    # Debian keeps servers where only root's path leads.
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if not found:
        raise Failed(f"{name} is not installed")
    return found


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def status_of(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/")
        answer = connection.getresponse()
        return answer.status, len(answer.read())
    finally:
        connection.close()


# ----- measuring -----------------------------------------------------------------------------


def load(process, options, seconds):
    """One run of wrk: a dictionary of figures."""
    command = [program("taskset"), "-c", str(options.load_core), program("wrk"), "-t1"]
    command += [f"-c{options.connections}", f"-d{seconds}s", "--latency"]
    command += [f"http://127.0.0.1:{process.port}/"]
    cpu, started = process.cpu_seconds(), time.monotonic()
    run = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=seconds + 20
    )
    cpu, took = process.cpu_seconds() - cpu, time.monotonic() - started
    if run.returncode != 0:
        raise Failed(f"wrk: {run.stdout}{run.stderr}")
    figures = read_wrk(run.stdout)
    if figures["requests"] == 0:
        raise Failed(f"no request was answered:\n{process.said()}")
    figures["cpu_us"] = cpu * 1e6 / figures["requests"]
    figures["busy"] = cpu / took
    return figures


def read_wrk(text):
    def number(pattern, default=None):
        found = re.search(pattern, text)
        if not found and default is None:
            raise Failed(f"wrk said something else:\n{text}")
        return float(found.group(1)) if found else default

    def milliseconds(percent):
        found = re.search(rf"^\s+{percent}%\s+([\d.]+)(us|ms|s|m)\s*$", text, re.M)
        if not found:
            raise Failed(f"wrk gave no latency:\n{text}")
        return float(found.group(1)) * {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}[found.group(2)]

    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    return {
        "requests": int(number(r"(\d+) requests in")),
        "per_second": number(r"Requests/sec:\s+([\d.]+)"),
        "not_2xx": int(number(r"Non-2xx or 3xx responses: (\d+)", 0.0)),
        "errors": sum(map(int, errors.groups())) if errors else 0,
        "p50_ms": milliseconds(50),
        "p99_ms": milliseconds(99),
    }


def check_round(name, scenario, figures):
    """A round that measured something else is worse than none."""
    refused = figures["not_2xx"] / figures["requests"]
    if scenario == "refused" and refused < 0.99:
        raise Failed(f"{name}: only {refused:.1%} of requests were refused")
    if scenario != "refused" and figures["not_2xx"]:
        raise Failed(f"{name}: {figures['not_2xx']} requests of scenario {scenario} were refused")
    if figures["errors"]:
        raise Failed(f"{name}: {figures['errors']} errors of connections in {scenario}")


def measure(processes, options):
    """Rounds of every scenario and contender, interleaved; the first of each warms up."""
    rounds = {key: [] for key in processes}
    for number in range(-1, options.rounds):
        for scenario in options.scenarios:
            keys = [key for key in processes if key[0] == scenario]
            for key in keys if number % 2 == 0 else reversed(keys):
                figures = load(processes[key], options, 1 if number < 0 else options.seconds)
                if number >= 0:
                    check_round(key[1], scenario, figures)
                    rounds[key].append(figures)
        if number >= 0:
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    return rounds


# ----- the report ----------------------------------------------------------------------------


def spread(values):
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def summarise(rounds, memory, names):
    summary = {}
    for (scenario, name), figures in rounds.items():
        columns = ("cpu_us", "per_second", "p50_ms", "p99_ms", "busy")
        entry = {column: spread([one[column] for one in figures]) for column in columns}
        entry["requests"] = sum(one["requests"] for one in figures)
        entry["resident_mib"] = memory[scenario, name]
        summary.setdefault(scenario, {})[name] = entry
    first, rest = names[0], names[1:]
    for scenario, entries in summary.items():
        # Ratios of the same round: what disturbed one has mostly disturbed the other as well.
        for other in rest:
            pairs = list(zip(rounds[scenario, first], rounds[scenario, other]))
            entries[first][f"over {other}"] = {
                column: spread([a[column] / b[column] for a, b in pairs])
                for column in RATIOS
            }
    return summary


def show(summary, names):
    print(f"{'':10}{'':13}{'CPU µs a request':>22}{'requests/s':>24}{'p50 ms':>8}{'p99 ms':>8}"
          f"{'busy':>6}{'MiB at start, after':>21}")
    for scenario, entries in summary.items():
        for name in names:
            one = entries[name]
            cpu, rate = one["cpu_us"], one["per_second"]
            start, after = one["resident_mib"]
            print(
                f"{scenario:10}{name:13}"
                f"{cpu['median']:8.2f} ({cpu['low']:.2f}..{cpu['high']:.2f})".ljust(46)
                + f"{rate['median']:8.0f} ({rate['low']:.0f}..{rate['high']:.0f})".ljust(23)
                + f"{one['p50_ms']['median']:8.2f}{one['p99_ms']['median']:8.2f}"
                f"{one['busy']['median']:6.0%}{start:11.1f}{after:10.1f}"
            )
    print()
    for scenario, entries in summary.items():
        for other in names[1:]:
            ratio = entries[names[0]][f"over {other}"]
            cells = (
                f"{label} {ratio[column]['median']:.2f} "
                f"({ratio[column]['low']:.2f}..{ratio[column]['high']:.2f})"
                for column, label in RATIOS.items()
            )
            print(f"{scenario:10}{names[0]} / {other}: " + ", ".join(cells))


def conditions(options, names):
    def version(command):
        run = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        lines = (run.stdout + run.stderr).strip().splitlines()
        return lines[0] if lines else "unknown"

    commands = {"nginx": [program("nginx"), "-v"]}
    if "haproxy" in names:
        commands["haproxy"] = [program("haproxy"), "-v"]
    if "tollgate" in names:
        commands["tollgate"] = [str(options.tollgate), "--version"]
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "versions": {name: version(command) for name, command in commands.items()},
        "cpu": cpu.group(1) if cpu else platform.machine(),
        "kernel": platform.release(),
        "load_before": os.getloadavg()[0],
        "connections": options.connections,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "body_bytes": BODY_BYTES,
    }


# ----- the run -------------------------------------------------------------------------------


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=3, help="of load in each round")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--scenario", dest="scenarios", action="append", choices=SCENARIOS)
    parser.add_argument("--quick", action="store_true", help="two rounds of a second, to see it run")
    parser.add_argument("--peer-only", action="store_true", help="nginx against itself")
    parser.add_argument("--with", dest="peers", action="append", choices=["haproxy"], default=[])
    parser.add_argument("--json", type=Path, metavar="FILE", help="every round, and the summary")
    parser.add_argument("--tollgate", type=Path, default=ROOT / "target/release/tollgate")
    parser.add_argument("--proxy-core", type=int, default=0)
    parser.add_argument("--load-core", type=int, default=1)
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds = 2, 1
    options.scenarios = options.scenarios or list(SCENARIOS)
    options.tollgate = options.tollgate.resolve()
    return options


def run(options, folder, started):
    names = ["nginx" if options.peer_only else "tollgate"]
    names += ["nginx again" if options.peer_only else "nginx", *options.peers]
    if "tollgate" in names and not options.tollgate.exists():
        raise Failed(f"{options.tollgate} is missing: cargo build --release --locked")
    needed = {options.proxy_core, options.load_core}
    if not needed <= os.sched_getaffinity(0) or len(needed) < 2:
        raise Failed("two cores are needed, one for the proxy and one for load and backend")
    facts = conditions(options, names)
    if facts["load_before"] > 0.5:
        print(f"warning: the machine is busy (load {facts['load_before']:.1f}); read ratios only",
              file=sys.stderr)

    def start(name, command, port, core):
        process = Process(folder / name, command, core, port)
        started.append(process)
        process.wait_until_ready()
        return process

    def room(name):
        (folder / name).mkdir()
        return folder / name, free_port()

    place, backend = room("backend")
    text = NGINX_BACKEND.format(dir=place, port=backend, body="x" * BODY_BYTES)
    start("backend", nginx_command(place, text), backend, options.load_core)

    processes, memory = {}, {}
    for scenario in options.scenarios:
        for name in names:
            place, port = room(f"{scenario}-{name.replace(' ', '-')}")
            command = CONTENDERS[name](place, scenario, port, backend, options)
            process = start(place.name, command, port, options.proxy_core)
            processes[scenario, name] = process
            memory[scenario, name] = [process.resident_mib()]
            status, length = status_of(port)
            if (status, length) != (200, BODY_BYTES):
                raise Failed(f"{name}, {scenario}: the first answer was {status}, {length} bytes")

    rounds = measure(processes, options)
    for key, process in processes.items():
        memory[key].append(process.resident_mib())
    summary = summarise(rounds, memory, names)
    print(", ".join(facts["versions"].values()))
    print(f"{facts['cpu']}, Linux {facts['kernel']}, {options.connections} connections, "
          f"{options.rounds} rounds of {options.seconds} s, load before {facts['load_before']:.1f}\n")
    show(summary, names)
    if options.json:
        every = {f"{scenario}/{name}": one for (scenario, name), one in rounds.items()}
        report = {"conditions": facts, "summary": summary, "rounds": every}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def guarded(name, options, run):
    """Runs `run` in a directory of its own; ends what it started, whatever happens."""
    # A signal ends the run through the same door, so that no process is left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    started = []
    with tempfile.TemporaryDirectory(prefix=f"tollgate-{name}-") as folder:
        # nginx started by root gives its worker to another user, who has to get in.
        os.chmod(folder, 0o755)
        try:
            run(options, Path(folder), started)
        except Failed as failed:
            print(f"{name}: {failed}", file=sys.stderr)
            return 1
        finally:
            for process in started:
                process.end()
    return 0


if __name__ == "__main__":
    sys.exit(guarded("compare", arguments(), run))
