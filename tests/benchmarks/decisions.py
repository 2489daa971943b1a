"""How long one decision takes at 10 to 100,000 policies, measured side by side.

    python -m tests.benchmarks.decisions [SIZE ...]

The policies are a mesh's: each permits one role one method on one service up to an amount, and one forbid speaks
of a whole gRPC service. "memoised" asks again what no request can change; "unmemoised" brings a request never
seen, so that Cedar evaluates; "same_input" brings one that agrees with an earlier one in all that is read (it is
still decoded); "new_slice" is a caller, method and service that may never have been seen. Of each kind the engines
take turns call by call, so that what else the machine does falls on all sizes alike.
"""

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil
from cedarpy import Entities, _internal, is_authorized

from tests.support.engines import bundle, descriptors, entity, order, workload
from trust.policy.engine import Engine
from trust.policy.schema import generate_schema
from trust.policy.types import Authn, Call

SIZES = (10, 1_000, 10_000, 100_000)
ROUNDS = 2_000
METHODS = ("shop.Orders/Place", "shop.Orders/Watch")
NOW_MS = 1_795_392_000_000


def policies(count: int) -> str:
    """Return `count` policies: a forbid for all, and permits for roles on services."""
    lines = ['@id("ceiling") forbid(principal, action in Action::"shop.Orders", resource)'
             ' when { context.caller.authn == "loopback" };']  # fmt: skip
    for i in range(count - 1):
        lines.append(
            f'@id("p{i}") permit(principal in Role::"role{i % 500}", action == Action::"{METHODS[i % 2]}", '
            f'resource == Service::"service{i // 2}") when {{ context.request.amount < {1000 + i} }};'
        )
    return "\n".join(lines)


def build(count: int) -> tuple[Engine, dict[str, Any]]:
    """Return an engine of `count` policies, with the time and memory that it took."""
    entities = [entity("Role", "all")]
    entities += [entity("Role", f"role{i}", [("Role", "all")]) for i in range(500)]
    entities += [entity("Workload", workload(f"w{i}"), [("Role", f"role{i}")]) for i in range(500)]
    base = bundle(
        policies(count), entities=entities, schema=generate_schema(descriptors()), services={}
    )  # the schema has the 6 methods of RICH_PROTO
    process = psutil.Process()
    gc.collect()
    before = process.memory_info().rss
    started = time.perf_counter()
    engine = Engine.build(base, {})
    elapsed = time.perf_counter() - started
    gc.collect()
    rss_mb = (process.memory_info().rss - before) / 2**20
    return engine, {"policies": count, "build_s": round(elapsed, 2), "rss_mb": round(rss_mb)}


def call(number: int, request: bytes, *, method: int | None = None) -> Call:
    """Return a call that the permit `number` covers."""
    action = METHODS[number % 2 if method is None else method]
    return Call(
        workload(f"w{number % 500}"), action, f"service{number // 2}", Authn.MTLS, "node-a", 4, request
    )


def timed(engine: Engine, question: Call) -> float:
    """Return how long one decision took, in microseconds."""
    started = time.perf_counter_ns()
    engine.decide(question, now_ms=NOW_MS)
    return (time.perf_counter_ns() - started) / 1000


def run(sizes: Sequence[int] = SIZES, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """Measure every size and return one row each; times in microseconds."""
    engines: list[Engine] = []
    rows: list[dict[str, Any]] = []
    for size in sizes:
        engine, row = build(size)
        engines.append(engine)
        rows.append(row)
    requests = [order(amount=-n, currency="EUR") for n in range(rounds)]
    stock = Call(workload("w0"), "shop.Stock/Count", "service0", Authn.MTLS, "node-a", 4)
    kinds: dict[str, Callable[[int, int], Call]] = {
        "memoised": lambda n, size: stock,
        "unmemoised": lambda n, size: call(n % min(size - 1, 4), requests[n]),
        "same_input": lambda n, size: call(n % min(size - 1, 4), requests[n]),
        "new_slice": lambda n, size: call((n * 7 + 5) % (size - 1), requests[n]),
    }
    gc.collect()
    gc.disable()
    try:
        for kind, question in kinds.items():
            took: list[list[float]] = [[] for _ in sizes]
            for n in range(rounds):
                for size, engine, times in zip(sizes, engines, took, strict=True):
                    times.append(timed(engine, question(n, size)))
            for row, times in zip(rows, took, strict=True):
                ordered = sorted(times[rounds // 20 :])
                row[f"{kind}_us"] = round(statistics.median(ordered), 1)
                row[f"{kind}_p99_us"] = round(ordered[len(ordered) * 99 // 100], 1)
    finally:
        gc.enable()
    return rows


def wrapper_cost(rounds: int = ROUNDS) -> dict[str, float]:
    """Compare cedarpy's public `is_authorized` with the call that the engine makes; medians in microseconds."""
    engine, _ = build(10)
    question = engine._prepare(workload("w0"), METHODS[0], "service0")
    context = {"request": {"amount": 1}, "caller": {"authn": "mtls", "trust_domain": "mesh.local"}}
    text = json.dumps(context)
    request = {**question.question.uids, "context": text}
    entities, handle = question.question.entities, question.policies.handle
    public_entities = Entities(entities)
    took: dict[str, list[float]] = {"public_us": [], "direct_us": []}
    for _ in range(rounds):
        started = time.perf_counter_ns()
        is_authorized(request, handle, public_entities)
        between = time.perf_counter_ns()
        json.loads(_internal.is_authorized(request, handle, entities, None, False))
        took["public_us"].append((between - started) / 1000)
        took["direct_us"].append((time.perf_counter_ns() - between) / 1000)
    return {name: statistics.median(values) for name, values in took.items()}


def main() -> int:
    """Print the table."""
    rows = run([int(a) for a in sys.argv[1:]] or SIZES)
    names = list(rows[0])
    widths = [max(len(name), 8) for name in names]
    lines = ["  ".join(name.rjust(w) for name, w in zip(names, widths, strict=True))]
    for row in rows:
        lines.append("  ".join(str(row[name]).rjust(w) for name, w in zip(names, widths, strict=True)))
    lines.append(
        "one call of cedarpy, public wrapper and direct: {public_us:.1f} and {direct_us:.1f} us".format(
            **wrapper_cost()
        )
    )
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
