"""The reference pages say what the code does: reasons, their statuses, and limits."""

import re
from pathlib import Path

from trust import limits
from trust.edge.grpc_errors import STATUS_OF
from trust.errors import Reason

DOCS = Path(__file__).parents[3] / "docs"


def test_every_reason_is_explained_with_the_status_it_is_sent_with() -> None:
    """docs/reasons.md is total, and has nothing that does not exist."""
    rows = re.findall(r"^\| `([A-Z_]+)` \| (\S+) \|", (DOCS / "reasons.md").read_text(), re.MULTILINE)
    documented = dict(rows)
    assert len(documented) == len(rows)
    assert documented.keys() == {reason.value for reason in Reason}
    sent = {reason.value: STATUS_OF[reason].name for reason in Reason if documented[reason.value] != "(OK)"}
    assert {name: status for name, status in documented.items() if status != "(OK)"} == sent


def test_every_limit_is_listed_with_its_value() -> None:
    """docs/limits.md is total and current."""
    text = (DOCS / "limits.md").read_text()
    rows = dict(re.findall(r"^\| `([A-Z_0-9]+)` \| ([0-9.]+) \|", text, re.MULTILINE))
    actual = {name: value for name, value in vars(limits).items() if name.isupper()}
    assert rows == {
        name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in actual.items()
    }
