# syntax=docker/dockerfile:1
# A static binary on nothing. Pin both images by digest where you build for production.

FROM rust:1.95-alpine AS build
RUN apk add --no-cache gcc make musl-dev
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src src
# The workspace and its targets must be there to be parsed; neither is built.
COPY benches benches
COPY tests tests
COPY examples examples
RUN cargo build --release --locked --package kube-tls-proxy --bin kube-tls-proxy \
 && cp target/release/kube-tls-proxy /kube-tls-proxy

# No shell, no files but this one, nothing to write to: runs with a read-only root file system.
FROM scratch
COPY --from=build /kube-tls-proxy /kube-tls-proxy
USER 65532:65532
EXPOSE 8443
ENTRYPOINT ["/kube-tls-proxy"]
CMD ["serve"]
