# Shortcuts for daily work. The list of checks is in .ci/run; CI runs the same.

[private]
default:
    @just --list --unsorted

# Every check that a change has to pass
check:
    .ci/run all

# Some of its steps: test fmt clippy doc deny demo h2spec acme browser sbom workflows packaging cluster
step +STEPS:
    .ci/run {{STEPS}}

# The tests with NAME in their name
test NAME="":
    cargo test --workspace -- {{NAME}}

# The benchmarks
bench *ARGS:
    cargo bench {{ARGS}}

# Compare the proxy with nginx, HAProxy, Caddy and Envoy; see benches/peers/README.md
peers *ARGS:
    benches/peers/compare.py {{ARGS}}

# Run one fuzz target until it finds something or Ctrl-C (nightly, cargo-fuzz); new inputs go below target
fuzz TARGET *ARGS:
    mkdir -p target/fuzz/{{TARGET}}
    cargo +nightly fuzz run {{TARGET}} target/fuzz/{{TARGET}} fuzz/corpus/{{TARGET}} {{ARGS}}

# The proxy in front of a stand-in apiserver, with a kubeconfig to try it
run:
    cargo run --package demo

# The container image
image TAG="kube-tls-proxy:dev":
    docker build --tag {{TAG}} .
