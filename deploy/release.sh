#!/usr/bin/env bash
# Makes the archive of a release: deploy/release.sh [FOLDER], by default dist/.
#
#   tollgate-VERSION-TARGET.tar.gz        the binary, its manual and completions, licences of all that is
#                                         in it, the list of its components (CycloneDX), the shipped
#                                         configuration, deploy/ and docs/
#   tollgate-VERSION-TARGET.debug.gz      the line tables of the binary, for debuggers and `perf`
#   SHA256SUMS                            of both
#
# Of one commit and one compiler it makes the same bytes again: names are sorted, times are those of the
# commit (or SOURCE_DATE_EPOCH), owners are numbers, paths of this machine are left out of the binary.
# Files come from git, so that nothing goes out that is not in it. BINARY names one that is built
# already and is taken as it is, without line tables; RELEASE_DIRTY=1 allows changes that are not
# committed, for trying.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
umask 022
export LC_ALL=C TZ=UTC

folder=${1:-dist}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
target=$(rustc -vV | sed -n 's/^host: //p')
name=tollgate-$version-$target
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}

if [ -n "$(git status --porcelain)" ] && [ "${RELEASE_DIRTY:-}" != 1 ]; then
    printf 'there are changes that are not committed\n' >&2
    exit 1
fi
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
stage=$work/$name
mkdir -p "$stage/completions" "$stage/man"

if [ -n "${BINARY:-}" ]; then
    cp "$BINARY" "$stage/tollgate"
    made=("$name.tar.gz")
else
    TOLLGATE_COMMIT=$(git rev-parse --short=12 HEAD)
    export TOLLGATE_COMMIT
    # The last that fits holds: the folder of what is built may be within the repository.
    from=("$PWD=/tollgate" "${CARGO_HOME:-$HOME/.cargo}=/cargo")
    [ -z "${CARGO_TARGET_DIR:-}" ] ||
        from+=("$(mkdir -p "$CARGO_TARGET_DIR" && cd "$CARGO_TARGET_DIR" && pwd)=/tollgate/target")
    # For the C libraries as well, which have paths in what debuggers read.
    RUSTFLAGS="${from[*]/#/--remap-path-prefix=}" CFLAGS="${from[*]/#/-ffile-prefix-map=}" \
        cargo build --release --locked
    built=${CARGO_TARGET_DIR:-target}/release/tollgate
    objcopy --only-keep-debug "$built" "$work/tollgate.debug"
    strip --strip-all -o "$stage/tollgate" "$built"
    (cd "$work" && objcopy --add-gnu-debuglink=tollgate.debug "$stage/tollgate")
    gzip -9 -n <"$work/tollgate.debug" >"$folder/$name.debug.gz"
    made=("$name.debug.gz" "$name.tar.gz")
fi
chmod 755 "$stage/tollgate"

git archive --format=tar HEAD -- CHANGELOG.md LICENSE-APACHE LICENSE-MIT README.md SECURITY.md \
    config deploy docs |
    tar -x -C "$stage"
TARGET=$target deploy/licences.sh >"$stage/THIRD_PARTY_LICENSES"
TARGET=$target SOURCE_DATE_EPOCH=$epoch deploy/sbom.sh >"$stage/sbom.cdx.json"

"$stage/tollgate" completions bash >"$stage/completions/tollgate.bash"
"$stage/tollgate" completions zsh >"$stage/completions/_tollgate"
"$stage/tollgate" completions fish >"$stage/completions/tollgate.fish"
"$stage/tollgate" completions elvish >"$stage/completions/tollgate.elv"
"$stage/tollgate" completions powershell >"$stage/completions/tollgate.ps1"
"$stage/tollgate" man >"$stage/man/tollgate.1"
sed -n 's/^tollgate\\-\([a-z]*\)(1)$/\1/p' "$stage/man/tollgate.1" | while read -r command; do
    "$stage/tollgate" man "$command" >"$stage/man/tollgate-$command.1"
done

tar --create --format=gnu --sort=name --mtime="@$epoch" --owner=0 --group=0 --numeric-owner \
    --mode='u=rwX,go=rX' --directory "$work" "$name" | gzip -9 -n >"$folder/$name.tar.gz"
(cd "$folder" && sha256sum "${made[@]}" >SHA256SUMS)
(cd "$folder" && ls -l "${made[@]}" SHA256SUMS)
