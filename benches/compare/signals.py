#!/usr/bin/env python3
"""What tollgate's signals cost: three ways to run it, in one run, on two cores of one machine.

  everything       as below, and an access log to a file, traces at the default sample of 1 % to a
                   collector, and a scrape of /metrics in every round
  as shipped       metrics, detectors, watchdog, circuit breakers, heavy hitters: what is always on
  without signals  a build of the same source that counts, measures and watches nothing
                   (cargo's feature `without-signals`)

Rounds, scenarios and figures are those of compare.py. Before the load each process is watched while
it has nothing to do.
"""

import argparse
import http.client
import json
import sys
import time
from pathlib import Path

import compare

NAMES = ("everything", "as shipped", "without signals")
SCENARIOS = ("allowed", "refused")

EVERYTHING = """
log: {{ level: warn, access: "{folder}/access.log" }}
tracing: {{ otlp_endpoint: "http://127.0.0.1:{collector}" }}
"""


def configuration(name, folder, port, admin, backend):
    text = compare.TOLLGATE.format(port=port, admin=admin, backend=backend)
    if name == "everything":
        text = text.replace("log: { level: warn }\n", "")
        text += EVERYTHING.format(folder=folder, collector=backend)
    return text


def command(name, scenario, folder, port, admin, backend, options):
    (folder / "tollgate.yaml").write_text(configuration(name, folder, port, admin, backend))
    tier = compare.TOLLGATE_TIERS[scenario]
    (folder / "tiers.yaml").write_text(f"default_tier: free\ntiers:\n  free: {tier}\n")
    binary = options.without if name == "without signals" else options.tollgate
    files = ["--config", str(folder / "tollgate.yaml"), "--tiers", str(folder / "tiers.yaml")]
    return [str(binary), "run", *files]


def scrape(admin):
    connection = http.client.HTTPConnection("127.0.0.1", admin, timeout=5)
    try:
        connection.request("GET", "/metrics")
        page = connection.getresponse().read()
    finally:
        connection.close()
    return sum(not line.startswith(b"#") for line in page.splitlines())


def idle(processes, seconds):
    """Share of one core that each process takes while nothing is asked of it, in per cent."""
    before = {key: process.cpu_seconds() for key, process in processes.items()}
    started = time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - started
    return {
        key: 100 * (process.cpu_seconds() - before[key]) / took
        for key, process in processes.items()
    }


def ratios(rounds, scenario, one, other):
    pairs = zip(rounds[scenario, one], rounds[scenario, other])
    return compare.spread([a["cpu_us"] / b["cpu_us"] for a, b in pairs])


def run(options, folder, started):
    for binary in (options.tollgate, options.without):
        if not binary.exists():
            raise compare.Failed(f"{binary} is missing; tests/long.sh signals builds it")

    def start(name, argv, port, core):
        process = compare.Process(folder / name, argv, core, port)
        started.append(process)
        process.wait_until_ready()
        return process

    def room(name):
        (folder / name).mkdir()
        return folder / name, compare.free_port()

    place, backend = room("backend")
    text = compare.NGINX_BACKEND.format(dir=place, port=backend, body="x" * compare.BODY_BYTES)
    start("backend", compare.nginx_command(place, text), backend, options.load_core)
    processes, admins, memory = {}, {}, {}
    for scenario in SCENARIOS:
        for name in NAMES:
            place, port = room(f"{scenario}-{name.replace(' ', '-')}")
            admin = compare.free_port()
            argv = command(name, scenario, place, port, admin, backend, options)
            key = scenario, name
            processes[key], admins[key] = start(place.name, argv, port, options.proxy_core), admin
            memory[key] = [processes[key].resident_mib()]
    series = scrape(admins["allowed", "as shipped"])
    at_rest = idle(processes, options.idle)

    rounds = {key: [] for key in processes}
    for number in range(-1, options.rounds):
        for scenario in SCENARIOS:
            for name in NAMES if number % 2 == 0 else reversed(NAMES):
                key = scenario, name
                seconds = 1 if number < 0 else options.seconds
                figures = compare.load(processes[key], options, seconds)
                if name == "everything":
                    cpu = processes[key].cpu_seconds()
                    scrape(admins[key])
                    cpu = processes[key].cpu_seconds() - cpu
                    figures["cpu_us"] += cpu * 1e6 / figures["requests"]
                if number >= 0:
                    compare.check_round(name, scenario, figures)
                    rounds[key].append(figures)
        if number >= 0:
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    for key, process in processes.items():
        memory[key].append(process.resident_mib())

    print(f"{options.rounds} rounds of {options.seconds} s, {options.connections} connections, "
          f"{series} series\n")
    print(f"{'':10}{'':18}{'CPU µs a request':>24}{'over without signals':>26}"
          f"{'idle %':>8}{'MiB at start, after':>21}")
    for scenario in SCENARIOS:
        for name in NAMES:
            key = scenario, name
            cpu = compare.spread([one["cpu_us"] for one in rounds[key]])
            ratio = ratios(rounds, scenario, name, "without signals")
            start_mib, after_mib = memory[key]
            print(
                f"{scenario:10}{name:18}"
                f"{cpu['median']:8.2f} ({cpu['low']:.2f}..{cpu['high']:.2f})".ljust(54)
                + f"{ratio['median']:8.3f} ({ratio['low']:.3f}..{ratio['high']:.3f})"
                f"{at_rest[key]:8.2f}{start_mib:11.1f}{after_mib:10.1f}"
            )
    if options.json:
        every = {f"{scenario}/{name}": one for (scenario, name), one in rounds.items()}
        idle_by_name = {f"{scenario}/{name}": one for (scenario, name), one in at_rest.items()}
        report = {"rounds": every, "idle_per_cent": idle_by_name}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=int, default=3, help="of load in each round")
    parser.add_argument("--idle", type=int, default=30, help="seconds without load")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--json", type=Path, metavar="FILE", help="every round")
    parser.add_argument("--tollgate", type=Path, default=compare.ROOT / "target/release/tollgate")
    parser.add_argument("--without", type=Path, required=True, help="the build without signals")
    parser.add_argument("--proxy-core", type=int, default=0)
    parser.add_argument("--load-core", type=int, default=1)
    options = parser.parse_args()
    options.tollgate, options.without = options.tollgate.resolve(), options.without.resolve()
    return compare.guarded("signals", options, run)


if __name__ == "__main__":
    sys.exit(main())
