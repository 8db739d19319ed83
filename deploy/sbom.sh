#!/usr/bin/env bash
# Prints what the binary is made of, as CycloneDX 1.5 in JSON: deploy/sbom.sh
#
# It asks cargo for the crates of TARGET (x86_64-unknown-linux-gnu where it is not set), with the features
# of a release. Those that are linked are `required`; macros and what build scripts use are `excluded`,
# since nothing of them is in the binary, but they ran while it was built. Crates of tests are left out.
# Sums are those of Cargo.lock. Of one commit and one compiler it prints the same bytes every time;
# SOURCE_DATE_EPOCH, where it is set, is the time that it names.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export LC_ALL=C TZ=UTC

target=${TARGET:-x86_64-unknown-linux-gnu}
tree() {
    cargo tree --locked --target "$target" --prefix depth --format '|{p}|{l}' --edges "$1"
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tree normal,no-proc-macro >"$work/linked"
tree normal,build >"$work/all"

uplot=$(sed -n 's/^The charts are drawn by uPlot \([0-9.]*\) .*/\1/p' src/admin/page.html)
[ -n "$uplot" ] || { printf 'src/admin/page.html does not say which uPlot it holds\n' >&2; exit 1; }
compiler=$(rustc --version | cut -d ' ' -f 2)
time=
[ -z "${SOURCE_DATE_EPOCH:-}" ] || time=$(date -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)
# A name for this list: another list has another one.
sum=$(cat "$work/linked" "$work/all" Cargo.lock - <<<"$target $compiler $uplot $time" |
    sed "s|$PWD||" | sha256sum)
serial=${sum:0:8}-${sum:8:4}-4${sum:13:3}-8${sum:17:3}-${sum:20:12}

awk -v target="$target" -v uplot="$uplot" -v compiler="$compiler" -v time="$time" -v serial="$serial" '
    function fail(what) { print what > "/dev/stderr"; failed = 1; exit 1 }
    # The names of crates, versions and licences have no character that JSON would want escaped.
    function plain(text) {
        if (text !~ /^[A-Za-z0-9 .,_()+\/-]+$/) fail("not understood: " text)
        return text
    }
    function reference(key, parts) {
        split(key, parts, " ")
        gsub(/\+/, "%2B", parts[2])
        return "pkg:cargo/" parts[1] "@" parts[2]
    }
    function row(parts, line) {
        sub(/ \(\*\)$/, "", line)
        if (split(line, parts, "|") != 3) fail("not understood: " line)
        split(parts[2], word, " ")
        parts[2] = plain(word[1] " " substr(word[2], 2))
        gsub(/ ?\/ ?/, " OR ", parts[3])
        if (parts[3] == "") fail("no licence: " parts[2])
        plain(parts[3])
    }
    function component(key, scope, licence, parts) {
        split(key, parts, " ")
        printf "%s    {\n      \"type\": \"library\",\n", between
        printf "      \"bom-ref\": \"%s\",\n", reference(key)
        printf "      \"name\": \"%s\",\n      \"version\": \"%s\",\n", parts[1], parts[2]
        printf "      \"scope\": \"%s\",\n", scope
        if (!(key in sums)) fail("Cargo.lock has no sum of " key)
        printf "      \"hashes\": [{ \"alg\": \"SHA-256\", \"content\": \"%s\" }],\n", sums[key]
        printf "      \"licenses\": [{ \"expression\": \"%s\" }],\n", licence
        printf "      \"purl\": \"%s\"\n    }", reference(key)
        between = ",\n"
    }
    FILENAME ~ /Cargo\.lock$/ {
        if ($1 == "name") name = $3
        if ($1 == "version") version = $3
        if ($1 == "checksum") {
            key = name " " version
            gsub(/"/, "", key)
            sums[key] = substr($3, 2, 64)
        }
        next
    }
    FILENAME ~ /linked$/ { row(of, $0); linked[of[2]] = 1; next }
    {
        row(of, $0)
        above[of[1] + 0] = of[2]
        if (!(of[2] in terms)) order[++count] = of[2]
        terms[of[2]] = of[3]
        if (of[1] == 0) { root = of[2]; next }
        edge = above[of[1] - 1] "|" of[2]
        if (edge in edges) next
        edges[edge] = 1
        below[above[of[1] - 1]] = below[above[of[1] - 1]] "|" of[2]
    }
    # Few enough for the simplest of sorts, which every awk can do.
    function sort(list, size, at, to, held) {
        for (at = 2; at <= size; at++) {
            held = list[at]
            for (to = at - 1; to >= 1 && list[to] > held; to--) list[to + 1] = list[to]
            list[to + 1] = held
        }
    }
    END {
        if (failed) exit 1
        if (count < 100) fail("only " count " crates were found")
        sort(order, count)
        split(root, self, " ")
        print "{\n  \"bomFormat\": \"CycloneDX\",\n  \"specVersion\": \"1.5\","
        printf "  \"serialNumber\": \"urn:uuid:%s\",\n  \"version\": 1,\n  \"metadata\": {\n", serial
        if (time != "") printf "    \"timestamp\": \"%s\",\n", time
        print "    \"component\": {\n      \"type\": \"application\","
        printf "      \"bom-ref\": \"%s\",\n", reference(root)
        printf "      \"name\": \"%s\",\n      \"version\": \"%s\",\n", self[1], self[2]
        printf "      \"licenses\": [{ \"expression\": \"%s\" }],\n", terms[root]
        printf "      \"purl\": \"%s\"\n    },\n", reference(root)
        printf "    \"properties\": [\n      { \"name\": \"tollgate:target\", \"value\": \"%s\" },\n", target
        printf "      { \"name\": \"tollgate:rustc\", \"value\": \"%s\" }\n    ]\n  },\n", compiler
        print "  \"components\": ["
        for (at = 1; at <= count; at++)
            if (order[at] != root)
                component(order[at], order[at] in linked ? "required" : "excluded", terms[order[at]])
        print ",\n    {\n      \"type\": \"library\","
        printf "      \"bom-ref\": \"pkg:npm/uplot@%s\",\n      \"name\": \"uplot\",\n", uplot
        printf "      \"version\": \"%s\",\n      \"scope\": \"required\",\n", uplot
        printf "      \"licenses\": [{ \"expression\": \"MIT\" }],\n"
        printf "      \"purl\": \"pkg:npm/uplot@%s\"\n    }\n  ],\n  \"dependencies\": [\n", uplot
        for (at = 1; at <= count; at++) {
            size = split(substr(below[order[at]], 2), list, "|")
            sort(list, size)
            printf "%s    { \"ref\": \"%s\", \"dependsOn\": [", (at > 1 ? ",\n" : ""), reference(order[at])
            for (to = 1; to <= size; to++)
                printf "%s\"%s\"", (to > 1 ? ", " : ""), reference(list[to])
            if (order[at] == root) printf ", \"pkg:npm/uplot@%s\"", uplot
            printf "] }"
        }
        printf ",\n    { \"ref\": \"pkg:npm/uplot@%s\", \"dependsOn\": [] }\n  ]\n}\n", uplot
    }' Cargo.lock "$work/linked" "$work/all"
