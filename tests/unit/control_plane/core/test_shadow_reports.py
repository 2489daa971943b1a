"""What a shadow run shows of its nodes' reports: bounded, whatever one of them sends."""

from control_plane.core.shadow import findings, trimmed
from egm.v1 import shadow_pb2


def report(count: int) -> shadow_pb2.ShadowReport:
    """Return a report with so many differences."""
    return shadow_pb2.ShadowReport(
        run_id="r",
        compared=9,
        omitted=1,
        differences=[
            shadow_pb2.ShadowDifference(change="newly-denied", method=f"a.B/{number}" + "x" * 100, count=1)
            for number in range(count)
        ],
    )


def test_a_report_that_fits_is_left_as_it_is() -> None:
    """Nothing is lost in an ordinary run."""
    assert trimmed(report(3), 10_000) == report(3)


def test_a_node_that_reports_too_much_has_its_last_differences_counted_instead() -> None:
    """One node cannot make the answer too large for whoever asks."""
    shown = trimmed(report(1_000), 10_000)
    assert shown.ByteSize() <= 10_000
    assert len(shown.differences) + shown.omitted == 1_001 and shown.compared == 9
    assert len(findings([shadow_pb2.ShadowNode(node="a", report=shown)])) == len(shown.differences)
