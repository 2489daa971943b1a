"""What is kept of the reports of a shadow run: the newest of each start of a node, and not without end."""

from typing import Any, cast

import pytest

from control_plane.edge.shadow import ShadowDesk
from control_plane.edge.store import proposals, shadow
from control_plane.edge.store.database import Database
from egm.v1 import shadow_pb2
from tests.integration.control_plane.test_store import proposal
from trust import limits
from trust.errors import EvidenceError, Reason

RUN = "0123456789abcdef"
NODE = "a"


@pytest.fixture
async def run(database: Database) -> shadow.Run:
    """A run under way."""
    tried = proposal(1)
    found = shadow.Run(RUN, tried.id, b"order", "targets", "base.tar.gz", "o", "approver-1", 1, 10**14, 0)
    async with database.write() as connection:
        await proposals.add(connection, tried, {})
        await shadow.add(connection, found)
    return found


async def test_the_last_start_that_is_kept_goes_on_reporting_and_one_more_is_not_kept(
    database: Database, run: shadow.Run
) -> None:
    """A node that starts again and again fills no store, and what its last kept start counts is no old number."""
    last = limits.MAX_SHADOW_STARTS - 1
    async with database.write() as connection:
        for start in range(limits.MAX_SHADOW_STARTS):
            await shadow.report(connection, run.id, f"boot-{start}", shadow.Report(NODE, start, b"first"))
        await shadow.report(connection, run.id, f"boot-{last}", shadow.Report(NODE, last, b"newest"))
        await shadow.report(connection, run.id, "one-more", shadow.Report(NODE, 1_000, b"too many"))
        await shadow.report(connection, run.id, "one-more", shadow.Report("b", 1_000, b"of another node"))
        found = await shadow.reports(connection, run.id)
    assert len(found) == limits.MAX_SHADOW_STARTS + 1
    assert [one.report for one in found if one.at_ms == last] == [b"newest"]
    assert [one.report for one in found if one.at_ms == 1_000] == [b"of another node"]


@pytest.mark.parametrize("boot_id", ["", "x" * 65, "a\0b", "a b"], ids=["none", "long", "nul", "space"])
async def test_a_report_whose_start_has_no_proper_id_is_refused_before_the_store_sees_it(
    database: Database, run: shadow.Run, boot_id: str
) -> None:
    """PostgreSQL takes no NUL: a node must not be able to make the store look broken."""
    desk = ShadowDesk(database, cast(Any, None), cast(Any, None), trust_domain="mesh.test")
    report = shadow_pb2.ShadowReport(run_id=run.id, boot_id=boot_id)
    with pytest.raises(EvidenceError) as refused:
        await desk.Report(report, cast(Any, None))
    assert refused.value.reason is Reason.INPUT_INVALID
