#!/usr/bin/env bash
# Prints THIRD_PARTY_LICENSES: whose work is in the binary, and under which terms. deploy/licences.sh
#
# It asks cargo for what is linked on TARGET (x86_64-unknown-linux-gnu where it is not set): neither
# build scripts nor macros are. A crate's licence texts come from its own sources, those of the C
# libraries that a `-sys` crate carries among them; a text that many share is printed once.
set -euo pipefail
shopt -s nullglob
cd "$(dirname "${BASH_SOURCE[0]}")/.."

target=${TARGET:-x86_64-unknown-linux-gnu}
sources=$(cargo metadata --locked --format-version 1 --filter-platform "$target" |
    grep -o '"manifest_path":"[^"]*/registry/src/[^/"]*/' | cut -d '"' -f 4 | sort -u)
[ -d "$sources" ] || { printf 'the sources of the crates were not found\n' >&2; exit 1; }

crates() {
    cargo tree --locked --edges normal,no-proc-macro --target "$target" --prefix none --no-dedupe \
        --format '{p}|{l}' | grep -v '^tollgate ' | LC_ALL=C sort -u
}

# texts_of FOLDER DEPTH: its files with terms, in an order that is the same everywhere.
texts_of() {
    find "$1" -maxdepth "$2" -type f \
        -iregex '.*/\(licen[sc]e\|copying\|copyright\|notice\|unlicense\)[^/]*' \
        -not -name '*.rs' | LC_ALL=C sort
}

declare -A number_of=()
texts=()
# numbered FILE: prints nothing; leaves the number of its text in `number`.
numbered() {
    local sum
    sum=$(tr -d '\r' <"$1" | sed 's/[[:space:]]*$//' | sha256sum)
    if [ -z "${number_of[$sum]:-}" ]; then
        texts+=("$1")
        number_of[$sum]=${#texts[@]}
    fi
    number=${number_of[$sum]}
}

# The status page holds uPlot, whose terms stand at the page's top.
of_page=$(mktemp)
trap 'rm -f "$of_page"' EXIT
sed -n '/under these terms:$/,/^-->$/p' src/admin/page.html | sed -e '1,2d' -e '$d' >"$of_page"
uplot=$(sed -n 's/^The charts are drawn by uPlot \([0-9.]*\) .*/\1/p' src/admin/page.html)
{ [ -n "$uplot" ] && grep -q '^Permission is hereby granted' "$of_page"; } ||
    { printf 'src/admin/page.html does not say under which terms uPlot is\n' >&2; exit 1; }

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
rule=$(printf '=%.0s' {1..100})
cat <<HEAD
The work of others in tollgate $version ($target)

tollgate itself is under MIT or Apache-2.0. Its binary holds the crates below, each under the terms that
are named beside it; where these give a choice, either may be taken. The numbers are those of the texts
that follow. The standard library of Rust comes last.

HEAD

count=0
while IFS='|' read -r package terms; do
    read -r name release _ <<<"$package"
    folder="$sources$name-${release#v}"
    depth=1
    # What is compiled from C has terms of its own, further down.
    case $name in *-sys) depth=6 ;; esac
    numbers=
    while read -r file; do
        numbered "$file"
        case " $numbers " in *" $number "*) ;; *) numbers="$numbers $number" ;; esac
    done < <(texts_of "$folder" "$depth")
    if [ -z "$numbers" ]; then
        printf '%s: no text of its licence in %s\n' "$name" "$folder" >&2
        exit 1
    fi
    printf '%-34s %-12s %s [%s]\n' "$name" "${release#v}" "$terms" "${numbers# }"
    count=$((count + 1))
done < <(crates)
numbered "$of_page"
texts[number - 1]=uplot
printf '%-34s %-12s %s [%s]\n' "uPlot (in the status page)" "$uplot" MIT "$number"
# A list that is too short is a question that cargo did not understand.
[ "$count" -gt 100 ] || { printf 'only %s crates were found\n' "$count" >&2; exit 1; }

for index in "${!texts[@]}"; do
    text=${texts[$index]}
    printf '\n%s\n[%s] %s\n\n' "$rule" "$((index + 1))" "${text#"$sources"}"
    [ "$text" != uplot ] || text=$of_page
    tr -d '\r' <"$text" | sed 's/[[:space:]]*$//'
done

printf '\n%s\nThe standard library of Rust (%s), MIT OR Apache-2.0\n\n' "$rule" "$(rustc --version)"
notices="$(rustc --print sysroot)/share/doc/rust/COPYRIGHT-library.html"
if [ -r "$notices" ]; then
    # The notices of its authors, as text.
    sed -e 's/<[^>]*>//g' -e 's/&lt;/</g; s/&gt;/>/g; s/&quot;/"/g' -e "s/&#x27;/'/g; s/&#39;/'/g" \
        -e 's/&amp;/\&/g' -e 's/[[:space:]]*$//' "$notices" | cat -s
else
    printf 'the notices of the standard library are not installed: %s\n' "$notices" >&2
    printf 'Copyright The Rust Project Developers (see https://thanks.rust-lang.org).\n\n'
    cat LICENSE-MIT LICENSE-APACHE
fi
