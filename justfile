# What one types while working. The list of checks is in .ci/run; CI runs the same.

[private]
default:
    @just --list --unsorted

# Everything a change has to pass
check:
    .ci/run all

# Some of it: test fmt clippy doc deny cluster
step +STEPS:
    .ci/run {{STEPS}}

# The tests with NAME in their name
test NAME="":
    cargo test --workspace -- {{NAME}}

# The benchmarks
bench *ARGS:
    cargo bench {{ARGS}}

# One fuzz target, until it finds something or Ctrl-C (nightly, cargo-fuzz)
fuzz TARGET *ARGS:
    cargo +nightly fuzz run {{TARGET}} {{ARGS}}

# The proxy before a stand-in apiserver, with a kubeconfig to try it
run:
    cargo run --release --example demo

# The container image
image TAG="kube-tls-proxy:dev":
    docker build --tag {{TAG}} .
