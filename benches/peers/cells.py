"""The cells: the work that is measured, its amount and its unit. No cell depends on a contender."""

from dataclasses import dataclass

MIB = 1 << 20
# The sizes of the apiserver's responses.
BODY_BYTES = {"/small": 1 << 10, "/list": 10 * MIB}


@dataclass(frozen=True)
class Unit:
    """The unit that CPU time is divided by, and its label."""

    name: str
    label: str
    ns: float  # nanoseconds in one of the label's time unit


REQUEST = Unit("request", "µs per request", 1e3)
CONNECTION = Unit("connection", "µs per connection", 1e3)
BULK = Unit("100 MiB", "ms per 100 MiB", 1e6)
EVENT = Unit("event", "µs per event", 1e3)


@dataclass(frozen=True)
class H2load:
    """A closed loop of h2load: `count` requests over `clients` connections, `streams` at a time on each."""

    path: str
    clients: int
    streams: int
    count: int
    quick: int
    warm: int
    http1: bool = False


@dataclass(frozen=True)
class Load:
    """A command of peers-load; `full` or `quick` says how much of it."""

    command: str
    flags: tuple
    full: tuple
    quick: tuple


@dataclass(frozen=True)
class Watch:
    """Watches that stay open while `events` events come, one each 100 ms."""

    protocol: str
    watches: int = 2000
    connections: int = 100
    events: int = 50
    quick_watches: int = 200
    quick_connections: int = 10
    quick_events: int = 10
    every_ms: int = 100

    def size(self, quick):
        if quick:
            return self.quick_watches, self.quick_connections, self.quick_events
        return self.watches, self.connections, self.events


@dataclass(frozen=True)
class Mixed:
    """Small GETs over HTTP/2 that are timed, beside watches, lists and new connections; numbers per second but the first two."""

    clients: int = 100
    watches: int = 500
    watch_connections: int = 25
    requests_per_client: int = 10
    lists: int = 4
    connections: int = 40
    seconds: int = 12
    quick_seconds: int = 2


@dataclass(frozen=True)
class Cell:
    name: str
    title: str
    unit: Unit
    # Cells of one group share a process of the contender; watches get a new process, for their memory.
    group: str
    work: object
    seconds: float  # about how long it takes, and how long with --quick
    quick_seconds: float
    # Measured only if --cells names it: it asks for the latency under other load, and not for CPU time.
    by_name: bool = False


def _keepalive(connections, count, quick, warm):
    return Load(
        "requests",
        ("--connections", str(connections), "--warm", str(warm)),
        ("--count", str(count)),
        ("--count", str(quick)),
    )


def _handshakes(*flags):
    return Load("connections", ("--parallel", "8", *flags), ("--count", "3000"), ("--count", "400"))


def _tunnel(way, mib, quick, *flags):
    return Load("tunnel", ("--way", way, *flags), ("--mib", str(mib)), ("--mib", str(quick)))


CELLS = {
    cell.name: cell
    for cell in (
        Cell("h2_small", "1 KiB over HTTP/2, 8 × 16 streams", REQUEST, "load",
             H2load("/small", 8, 16, 80000, 6000, 1000), 3, 0.4),
        Cell("h1_small", "1 KiB over HTTP/1.1, 32 clients", REQUEST, "load",
             H2load("/small", 32, 1, 60000, 4000, 1000, http1=True), 3, 0.4),
        Cell("conc_1", "1 KiB over HTTP/1.1, 1 client", REQUEST, "load",
             _keepalive(1, 4000, 500, 50), 1.5, 0.4),
        Cell("conc_10", "1 KiB over HTTP/1.1, 10 clients", REQUEST, "load",
             _keepalive(10, 15000, 1000, 50), 1.5, 0.4),
        Cell("conc_100", "1 KiB over HTTP/1.1, 100 clients", REQUEST, "load",
             _keepalive(100, 20000, 2000, 500), 2, 0.5),
        Cell("conc_1000", "1 KiB over HTTP/1.1, 1,000 clients", REQUEST, "load",
             _keepalive(1000, 40000, 4000, 5000), 5, 2),
        Cell("hs_full", "Connection, full handshake", CONNECTION, "load", _handshakes(), 2, 0.5),
        Cell("hs_resume", "Connection, resumed session", CONNECTION, "load",
             _handshakes("--resume"), 1.5, 0.4),
        Cell("list_h2", "10 MiB lists over HTTP/2", BULK, "load",
             H2load("/list", 4, 1, 60, 8, 4), 2, 0.5),
        Cell("list_h1", "10 MiB lists over HTTP/1.1", BULK, "load",
             H2load("/list", 4, 1, 60, 8, 4, http1=True), 2, 0.5),
        Cell("tun_down", "Tunnel, down", BULK, "load", _tunnel("down", 400, 40), 0.8, 0.2),
        Cell("tun_up", "Tunnel, up", BULK, "load", _tunnel("up", 400, 40), 0.8, 0.2),
        Cell("tun_echo", "Tunnel, there and back", BULK, "load", _tunnel("echo", 400, 40), 1.2, 0.3),
        Cell("tun_spdy", "Tunnel by SPDY/3.1, there and back", BULK, "load",
             _tunnel("echo", 20, 5, "--upgrade", "SPDY/3.1"), 0.3, 0.2),
        Cell("watch_h2", "Watch event over HTTP/2", EVENT, "watch_h2", Watch("h2"), 9, 2.5),
        Cell("watch_h1", "Watch event over HTTP/1.1", EVENT, "watch_h1", Watch("h1"), 10, 2.5),
        Cell("mixed", "Small GETs beside other load", REQUEST, "mixed", Mixed(), 20, 8, by_name=True),
    )
}
