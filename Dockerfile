# The image of tollgate: built in one stage, carried by another that has neither shell nor package
# manager. docs/container.md says how to build and run it.
#
#   docker build --build-arg TOLLGATE_COMMIT="$(git rev-parse --short=12 HEAD)" -t tollgate:0.1.0 .
#
# Base images are named by tag. Who wants the same bytes on every day names their digests instead.

FROM rust:1.95.0-slim-bookworm AS dependencies
# The allocator is built by make; the compiler comes with the base image.
RUN apt-get update \
    && apt-get install -y --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build

# Not for a release: `--build-arg LTO=off --build-arg CODEGEN_UNITS=16` builds in a fraction of the time.
ARG LTO=fat
ARG CODEGEN_UNITS=1
ENV CARGO_PROFILE_RELEASE_LTO=$LTO CARGO_PROFILE_RELEASE_CODEGEN_UNITS=$CODEGEN_UNITS

# The dependencies, in a layer that lasts until the manifest, the lock or cargo's settings change:
# they are built for a program of one empty line. The other targets that the manifest names have to
# be there, or cargo does not read it. What came of the empty program goes again, since its files
# are newer than the real ones, and would be taken for them.
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
RUN mkdir src benches tests \
    && echo 'fn main() {}' > src/main.rs && touch src/lib.rs \
    && awk -F'"' '/^\[/ { of = ""; if ($0 == "[[bench]]") of = "benches"; if ($0 == "[[test]]") of = "tests" } \
        /^name = / && of { print of "/" $2 ".rs" }' Cargo.toml | xargs touch \
    && cargo build --release --locked \
    && cargo clean --release --package tollgate --locked

FROM dependencies AS build
COPY build.rs ./
COPY src src
# The repository's history is not among what is sent to the engine, so the commit is told.
ARG TOLLGATE_COMMIT=unknown
RUN TOLLGATE_COMMIT=$TOLLGATE_COMMIT cargo build --release --locked \
    && mkdir -p /out && cp target/release/tollgate /out/tollgate \
    && objcopy --only-keep-debug /out/tollgate /out/tollgate.debug \
    && strip --strip-all /out/tollgate \
    && objcopy --add-gnu-debuglink=/out/tollgate.debug /out/tollgate

COPY LICENSE-APACHE LICENSE-MIT ./
COPY deploy/licences.sh deploy/sbom.sh deploy/
RUN bash deploy/licences.sh > /out/THIRD_PARTY_LICENSES \
    && TARGET="$(rustc -vV | sed -n 's/^host: //p')" bash deploy/sbom.sh > /out/sbom.cdx.json

# `docker build --target symbols --output . .` writes the line tables, for a debugger or `perf`.
FROM scratch AS symbols
COPY --from=build /out/tollgate.debug /

# glibc, as on the machines that tollgate is tested and measured on, with certificate authorities
# and the user `nonroot` (65532).
FROM gcr.io/distroless/cc-debian12:nonroot
ARG VERSION=0.1.0
ARG TOLLGATE_COMMIT=unknown
LABEL org.opencontainers.image.title="tollgate" \
      org.opencontainers.image.description="A rate-limiting reverse proxy: tiers, exact limits, metrics" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$TOLLGATE_COMMIT" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.base.name="gcr.io/distroless/cc-debian12:nonroot"
COPY --from=build /out/tollgate /usr/local/bin/tollgate
COPY --from=build /out/THIRD_PARTY_LICENSES /out/sbom.cdx.json /usr/share/doc/tollgate/
COPY LICENSE-APACHE LICENSE-MIT /usr/share/doc/tollgate/
# To start from: nothing is read that is not named (--config, --tiers, or their variables).
COPY config/tollgate.yaml config/tiers.yaml /etc/tollgate/
# By number, so that an orchestrator can see that it is not root.
USER 65532:65532
EXPOSE 8080 9900
# Asks the admin port that TOLLGATE_ADMIN names, or 127.0.0.1:9900. It gives up after 5 s by itself.
HEALTHCHECK --interval=10s --timeout=6s --start-period=5s --retries=3 \
    CMD ["/usr/local/bin/tollgate", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/tollgate"]
CMD ["run"]
