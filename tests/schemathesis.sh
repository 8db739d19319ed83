#!/usr/bin/env bash
# Runs schemathesis, which makes requests up from an OpenAPI document and holds the answers to it,
# against a running admin port: tests/schemathesis.sh http://127.0.0.1:9900 [TOKEN_FILE]
#
# It is installed into a virtual environment below target/ once. `tests/schemathesis.sh install` does
# only that. Ends with 77 where it cannot be had. SCHEMATHESIS_EXAMPLES is how many requests it makes
# up for each call and phase at most, SCHEMATHESIS_SEED the seed; empty: another one each time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

pinned=tests/support/schemathesis.txt
place=${SCHEMATHESIS_VENV:-${CARGO_TARGET_DIR:-target}/schemathesis}

install() {
    if cmp -s "$pinned" "$place/installed"; then return; fi
    rm -rf "$place"
    if ! python3 -m venv "$place" ||
        ! "$place/bin/pip" install --quiet --disable-pip-version-check --requirement "$pinned"; then
        rm -rf "$place"
        echo "schemathesis cannot be installed: python3 with venv and pip, and PyPI, are needed" >&2
        exit 77
    fi
    cp "$pinned" "$place/installed"
}

install
[ "${1:-}" != install ] || exit 0
url=${1%/}
hooks=$PWD/tests/support/schemathesis_hooks.py
schemathesis=$(cd "$place" && pwd)/bin/schemathesis
options=(--url "$url" --max-examples "${SCHEMATHESIS_EXAMPLES:-10}" --continue-on-failure --no-color)
seed=${SCHEMATHESIS_SEED-1}
[ -z "$seed" ] || options+=(--seed "$seed")

# It leaves files where it runs.
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
document=$directory/openapi.json
head=()
[ -z "${2:-}" ] || head=(--header "Authorization: Bearer $(cat "$2")")
curl --silent --fail "${head[@]}" "$url/api/v1/openapi.json" > "$document"
if [ -z "${2:-}" ]; then
    # This one asks nobody for a token.
    sed -i 's/^  "security": .*,$/  "security": [],/' "$document"
    grep -q '^  "security": \[\],$' "$document"
fi
printf 'hooks = "%s"\n' "$hooks" > "$directory/schemathesis.toml"
cd "$directory"
# The stream goes on for as long as somebody listens.
"$schemathesis" run "$document" "${options[@]}" "${head[@]}" --exclude-path /api/v1/stream
