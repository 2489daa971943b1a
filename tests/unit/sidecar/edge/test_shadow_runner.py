"""One node's part in shadow runs: what it reports stays small, and no candidate ends the process."""

from collections.abc import Iterator
from typing import Any

import pytest

from egm.v1 import shadow_pb2, shadow_pb2_grpc
from sidecar.core.call import Direction
from sidecar.core.shadow import Change, Comparison, Kind, Tally
from sidecar.edge.shadow import ShadowRunner
from tests.support.sidecar_core import ALICE, Core, RuleDecider
from trust import limits
from trust.errors import Reason
from trust.spiffe import SpiffeId


class OneAnswer:
    """A control plane that orders the same run each time."""

    def __init__(self, _channel: object) -> None:
        """Take what a stub takes."""

    async def Report(self, _report: object, *, timeout: float) -> shadow_pb2.ShadowAssignment:
        """Assign."""
        return shadow_pb2.ShadowAssignment(order=b"order")


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Iterator[ShadowRunner]:
    """Return a runner on a node that has a policy."""
    monkeypatch.setattr(shadow_pb2_grpc, "ShadowStub", OneAnswer)
    core = Core.new()
    core.adopt(RuleDecider())
    nothing: Any = type("Channels", (), {"get": lambda *_args, **_named: None})()
    yield ShadowRunner(
        nothing,
        ["cp:1"],
        node=SpiffeId.parse("spiffe://mesh.local/node/n1"),
        boot_id="b",
        client=nothing,
        state=core.state,
        pipeline=core.pipeline,
        clock=core.clock,
        local_level=None,
    )


async def test_a_candidate_that_breaks_in_an_unforeseen_way_is_left_and_told(
    runner: ShadowRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part that ends by itself ends the sidecar: this one must not, and does not try the same again."""
    tries: list[bytes] = []

    async def follow(_stub: object, order: bytes, _held: object) -> None:
        tries.append(order)
        raise KeyError("nobody thought of this")

    monkeypatch.setattr(runner, "_follow", follow)
    await runner._exchange("cp:1")
    await runner._exchange("cp:1")
    assert tries == [b"order"]
    assert "could not be tried" in runner._report().problem


def test_a_report_has_a_bounded_size_and_counts_what_it_leaves_out(runner: ShadowRunner) -> None:
    """Else the control plane refuses it, and the node never hears that the run is over."""
    comparison = runner._comparison = Comparison(RuleDecider(), None)
    for number in range(limits.MAX_SHADOW_DIFFERENCES):
        kind = Kind(
            Change.DENIES,
            Direction.INBOUND,
            ALICE,
            "payments",
            f"a.B/{number}",
            Reason.ALLOWED,
            Reason.POLICY_DENIED,
        )
        comparison.tallies[kind] = Tally(("p" * 2_000,), "b-1", 1, 1, 1)
    report = runner._report()
    assert report.ByteSize() <= limits.MAX_SHADOW_REPORT_BYTES + 1_000
    assert len(report.differences) > 100
    assert len(report.differences) + report.omitted == limits.MAX_SHADOW_DIFFERENCES
