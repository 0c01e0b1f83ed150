# syntax=docker/dockerfile:1
#
#   docker build --build-arg VERSION=0.1.0 --build-arg REVISION="$(git rev-parse HEAD)" --tag kube-tls-proxy:0.1.0 .
#   docker buildx build --platform linux/amd64,linux/arm64 …      # both kinds of machine; an emulated build takes hours
#   docker build --target symbols --output symbols .      # the debug symbols of the same binary
#
# Both images are Debian 12, so the binary runs with the C library that it was linked with. A tag may move: the release workflow
# replaces both by their digests, and records them in the labels. Do the same when you build for production.
ARG BUILD_IMAGE=rust:1.95-bookworm
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM ${BUILD_IMAGE} AS build
WORKDIR /src
# Line tables make the frames of a core dump or a profile readable. They change no instruction, and leave the binary below.
ENV CARGO_PROFILE_RELEASE_DEBUG=line-tables-only

# First the dependencies, with empty sources for every target that a manifest names. This layer is built again only when a
# manifest changes.
COPY Cargo.toml Cargo.lock ./
COPY tests/standin/Cargo.toml tests/standin/
COPY benches/peers/load/Cargo.toml benches/peers/load/
COPY demo/Cargo.toml demo/
RUN for file in src/lib.rs tests/standin/src/lib.rs; do mkdir -p "${file%/*}" && : >"$file"; done \
 && for file in $(sed -n 's/^path = "\(.*\.rs\)".*/\1/p' Cargo.toml) benches/proxy/main.rs benches/peers/load/src/main.rs demo/src/main.rs; do \
      mkdir -p "${file%/*}" && echo 'fn main() {}' >"$file"; done \
 && cargo build --release --locked --package kube-tls-proxy --bin kube-tls-proxy

COPY src src
# `--version` has the commit.
ARG REVISION
# Copied files keep their modification times, which are older than the build above. Without `touch`, cargo would not build again.
RUN touch src/lib.rs src/main.rs \
 && GIT_COMMIT="$REVISION" cargo build --release --locked --package kube-tls-proxy --bin kube-tls-proxy

# The symbols leave the binary, which then names their file.
RUN cd target/release \
 && objcopy --only-keep-debug --compress-debug-sections kube-tls-proxy kube-tls-proxy.debug \
 && objcopy --strip-all --add-gnu-debuglink=kube-tls-proxy.debug kube-tls-proxy

FROM scratch AS symbols
COPY --from=build /src/target/release/kube-tls-proxy.debug /

# The C library and libgcc, and no shell. The proxy writes no files, so the root file system may be read-only.
FROM ${RUNTIME_IMAGE}
ARG VERSION=unknown
ARG REVISION=unknown
# The address of the repository that the image was built from.
ARG SOURCE=unknown
ARG RUNTIME_IMAGE
ARG RUNTIME_DIGEST=unknown
LABEL org.opencontainers.image.title="kube-tls-proxy" \
      org.opencontainers.image.description="The TLS front door of a kube-apiserver: public certificate outside, verified cluster CA inside" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.source="$SOURCE" \
      org.opencontainers.image.url="$SOURCE" \
      org.opencontainers.image.base.name="$RUNTIME_IMAGE" \
      org.opencontainers.image.base.digest="$RUNTIME_DIGEST"
COPY --from=build /src/target/release/kube-tls-proxy /usr/bin/kube-tls-proxy
# As a number, because runAsNonRoot can only check a number.
USER 65532:65532
EXPOSE 8443 9090
ENTRYPOINT ["/usr/bin/kube-tls-proxy"]
CMD ["serve"]
