"""`make bench`: measure, print, and write docs/performance.md with the machine and the date."""

import datetime
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks import (
    attestation,
    decisions,
    handovers,
    index,
    ledger,
    mesh,
    payloads,
    permits,
    proxy,
    revocation,
)

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"

DECISIONS = """\
## Decisions

One `Engine.decide`, in microseconds, at different numbers of policies. *memoised*: a question whose answer depends
on nothing that changed. *unmemoised*: a request never seen, so that Cedar evaluates its slice. *same input*: agrees
with an earlier request in every attribute that is read. *new slice*: any caller, method and service, perhaps for the
first time. `build s` and `rss mb`: what compiling the bundle takes, once per bundle, beside the old one.
Goal: the median at 100,000 policies under 50 µs and within 1.5 times the one at 10. The engines of all sizes take
turns, so every decision finds the caches cold; one engine by itself, in a loop, took 47 µs for a request never seen,
fastest of rounds: 30 in cedarpy's own call (19 of them whatever the context, which it parses from JSON), 16 in ours.
"""
PROXY = """\
## Proxy

CPU of one sidecar's process per unary call, or per message there and back, with mTLS on the inbound side, against the
least that forwards a call correctly with grpc.aio's public API ("bare"). "governed": the real pipeline, engine and
proxy; "reading": a policy reads the request, which is decoded; "direct": no hop, the service's own process.
Goal: governed at most 1.35 times bare.
"""
LEVELS = """\
## Levels

CPU of both sidecars of a unary call on a real mesh, by the level in force; level 0 passes through, decides and records
nothing. From level 1 on every execution is decided twice, written to two ledgers and shipped to the index; level 5
adds a permit (signed and verified) and two waits for the disk. Goal: level 5 at most 1.5 times level 0. Both rise when
something else keeps the machine busy, level 5 more: its threads are switched more often.

Where it goes, by the CPU times of the threads of both sidecars, in µs per call (2026-11-23, medians of twelve rounds of
meshes that took turns, 16 callers, on a machine that others kept busy: not to be compared with the table below):

| threads | level 0 | level 5 | what level 5 adds |
|---|---|---|---|
| the loops | 1252 | 2671 | permits, decisions, records, two waits each, shipping |
| the ledgers | | 336 | half a write and fdatasync per call and sidecar, three switches of threads |
| trees and checkpoints | | 146 | a checkpoint a second takes 3 to 5 ms, whatever the calls |
| gRPC's | 576 | 725 | 3 kB more metadata: 26 to 40 µs of it for the endorsement, both ends of a bare echo together |
| all | 1827 | 3931 | |

Our own code of both sidecars by itself, in one process, without gRPC and without waiting, took 29 µs at level 0, 146 at
level 4 and 400 at level 5 (fastest of rounds), of which libsodium signs for 30 and verifies for 72 (OpenSSL: 44 and
133, [ADR 12](adr/0012-ed25519-by-libsodium.md)). The loops' 1,419 µs are more than three times that: what runs after a
wait for the disk or a peer finds its caches cold, and the fewer calls a second, the more of what a sidecar does anyway
falls on each: idle it uses some 19 ms of CPU a second. So the ratio rises with everything else that the machine does:
runs of one version have shown 1.9 to 2.2, and versions that showed 1.9 and 2.4 did not measurably differ when they took
turns.
"""
INDEX = """\
## Index

CPU of the control plane per 1,000 execution records, by how many a message brings: checking each, taking it with its
sums (one transaction per message, SQLite), and detection. A sidecar gathers records for a quarter of a second, or 1,024
of them; what several nodes send meanwhile shares a transaction.
"""
REVOCATION = """\
## Revocation

From signing an emergency directive to the moment from which a sidecar denies, on 50 sidecars, each a process of its
own, otherwise idle, on this one machine, which they keep busy; directives one at a time. "last node": the slowest of
the 50, per directive. Handed in at the control plane, every node hears of it over the stream that it keeps open; with
the control plane stopped it is handed to one node alone, and gossip carries it (`egm revoke` hands it to every node of
its address book, which is quicker). Goal: at most 500 ms to the last node.
"""
ATTESTATION = """\
## Attestation

What it takes to be vouched for by a roster of five, per node and round (a round every 20 s with `ttl_s` 60), as the
mesh grows: the cores for real, message by message, without network and disk. A node talks to its witnesses and to
nobody else, so its cost does not grow; a witness's does, with the nodes that it vouches for. Then what a callee pays
for a caller's credential, once and with every later call, and a witness's disk per node (write, fsync, rename).
"""
PERMITS = """\
## Permits

CPU of the thread per permit, in microseconds, beside the Ed25519 operation in it by itself.
"""
HANDOVERS = """\
## Hand-overs

Making and checking one, as above; then the CPU of a service's process per call without and with the interceptor, for
`grpc.aio` and for `grpc` (whose calls run on threads), with the same metadata. "stream": one message there and back.
"""
PAYLOADS = """\
## Payloads for auditors

CPU per payload that policy asks to keep, in microseconds: sealing it in a sidecar (each of the two seals its own), and
opening it with an auditor's key; and what it adds to the record.
"""
LEDGER = """\
## Ledger

Durable records per second at 1, 16 and 256 callers that each wait for theirs (group commit; 600-byte records), against
one fdatasync of this disk; the tree alone (no disk) over a million appends; an inclusion proof in a tree of a million.
Goals: 50,000 durable records/s with 256 callers, no append over 20 ms because of growth, a proof within 1 ms.
What growth takes falls on the same append in every run, what else the machine did does not: "worst append" takes of
each append the best of three runs, and then the worst; beside it the worst of one run.
"""


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as a Markdown table."""
    names = list(rows[0])
    lines = ["| " + " | ".join(name.replace("_", " ") for name in names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(str(row[name]) for name in names) + " |" for row in rows]
    return "\n".join(lines)


def verdict(goal: str, value: float, limit: float) -> str:
    """Return one line that says whether a goal is met."""
    return f"- {goal}: {value:.2f} (goal {limit:g}): {'met' if value <= limit else 'NOT met'}"


def page(
    decided: Sequence[dict[str, Any]],
    proxied: Sequence[dict[str, Any]],
    permitted: Sequence[dict[str, Any]],
    handed: dict[str, list[dict[str, Any]]],
    kept: Sequence[dict[str, Any]],
    logged: dict[str, list[dict[str, Any]]],
    levels: Sequence[dict[str, Any]],
    indexed: Sequence[dict[str, Any]],
    revoked: Sequence[dict[str, Any]],
    vouched: dict[str, list[dict[str, Any]]],
) -> str:
    """Return docs/performance.md."""
    now = datetime.datetime.now(tz=datetime.UTC)
    memory = psutil.virtual_memory().total // 2**30
    first, last = decided[0], decided[-1]
    unary, stream = (
        next(row for row in proxied if (row["kind"], row["hop"]) == (kind, "governed"))
        for kind in ("unary", "stream")
    )
    goals = [
        verdict("median of an unmemoised decision at the most policies, µs", last["unmemoised_us"], 50),
        verdict(
            "the same, as a multiple of the fewest policies",
            last["unmemoised_us"] / first["unmemoised_us"],
            1.5,
        ),
        verdict("governed unary call, CPU as a multiple of a bare hop", unary["cpu_ratio_to_bare"], 1.35),
        verdict(
            "governed stream message, CPU as a multiple of a bare hop", stream["cpu_ratio_to_bare"], 1.35
        ),
        verdict(
            "level 5, CPU of both sidecars as a multiple of level 0", levels[-1]["ratio_to_level_0"], 1.5
        ),
        *(
            verdict(
                f"revocation handed in {row['handed_in']}, the last of {row['nodes']} sidecars, worst, ms",
                row["last_node_worst_ms"],
                revocation.GOAL_MS,
            )
            for row in revoked
        ),
    ]
    machine = (
        f"{platform.machine()}, {psutil.cpu_count()} cores, {memory} GiB, Python {platform.python_version()}"
    )
    head = (
        "# Performance\n\n"
        f"Written by `make bench` on {now:%Y-%m-%d} ({machine}). Compare the columns of one run with each other, "
        "not runs on different machines.\n"
    )
    sections = [
        (DECISIONS, table(decided)),
        (PROXY, table(proxied)),
        (LEVELS, table(levels)),
        (INDEX, table(indexed)),
        (REVOCATION, table(revoked)),
        (ATTESTATION, table(vouched["rounds"]) + "\n\n" + table(vouched["relying"])),
        (PERMITS, table(permitted)),
        (HANDOVERS, table(handed["steps"]) + "\n\n" + table(handed["calls"])),
        (PAYLOADS, table(kept)),
        (LEDGER, table(logged["durable"]) + "\n\n" + table(logged["tree"])),
    ]
    return "\n".join([head, "\n".join(goals) + "\n", *(f"{text}\n{rows}\n" for text, rows in sections)])


def main() -> int:
    """Run every benchmark."""
    sys.stderr.write("decisions …\n")
    decided = decisions.run()
    sys.stderr.write("proxy …\n")
    proxied = proxy.run()
    sys.stderr.write("permits …\n")
    permitted = permits.run()
    sys.stderr.write("hand-overs …\n")
    handed = handovers.run()
    sys.stderr.write("payloads …\n")
    kept = payloads.run()
    sys.stderr.write("ledger …\n")
    logged = ledger.run()
    sys.stderr.write("index …\n")
    indexed = index.run()
    sys.stderr.write("revocation …\n")
    revoked = revocation.run()
    sys.stderr.write("attestation …\n")
    vouched = attestation.run()
    sys.stderr.write("levels …\n")
    text = page(decided, proxied, permitted, handed, kept, logged, mesh.run(), indexed, revoked, vouched)
    PAGE.write_text(text)
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
