"""Which obligations can be met, and how a record lists what was done about them."""

import pytest

from sidecar.core.levels import Finding, finding_of
from sidecar.core.obligations import (
    MET,
    Kept,
    asks_payload,
    beyond_us,
    completed,
    explain,
    newly_asked,
    noted,
    why_unsealable,
)
from trust import limits
from trust.errors import Reason
from trust.policy.types import Verdict

PAYLOAD = ("audit", "payload")


def verdict(*obligations: tuple[str, str]) -> Verdict:
    return Verdict(allowed=True, reason=Reason.ALLOWED, policies=("p",), obligations=obligations)


@pytest.mark.parametrize(
    ("obligations", "finding"),
    [
        ((), Finding.ALLOWED),
        ((PAYLOAD,), Finding.ALLOWED),
        ((("audit", "Payload"),), Finding.OBLIGED),
        ((("audit", "headers"),), Finding.OBLIGED),
        ((PAYLOAD, ("lease", "30s")), Finding.OBLIGED),
        ((PAYLOAD, ("rate", "1/s"), ("budget", "10 per day of amount")), Finding.ALLOWED),
        ((("rate", "1/fortnight"),), Finding.OBLIGED),
        ((("budget", "0 per day"),), Finding.OBLIGED),
    ],
)
def test_only_what_this_version_can_do_counts_as_allowed(
    obligations: tuple[tuple[str, str], ...], finding: Finding
) -> None:
    """An unknown value is as little met as an unknown obligation."""
    assert finding_of(verdict(*obligations), governs=True) is finding
    assert beyond_us(obligations) is (finding is Finding.OBLIGED)


def test_a_record_lists_each_obligation_with_what_was_done() -> None:
    """So that an auditor sees what should be there."""
    both = (PAYLOAD, ("lease", "30s"))
    assert asks_payload(both) and not asks_payload(both[1:])
    done = noted((), PAYLOAD, Kept.SEALED.value)
    assert completed(both, done) == (("audit", "payload=sealed"), ("lease", "30s=unsupported"))
    assert completed((), done) == ()


@pytest.mark.parametrize(
    ("size", "auditors", "ended", "expected"),
    [
        (0, 1, False, None),
        (limits.MAX_AUDITED_PAYLOAD_BYTES, 8, False, None),
        (limits.MAX_AUDITED_PAYLOAD_BYTES + 1, 1, False, Kept.TOO_LARGE),
        (1, 0, False, Kept.NO_AUDITOR),
        (None, 1, True, Kept.NOTHING),
        (None, 1, False, Kept.UNSEEN),
    ],
)
def test_what_can_be_sealed(size: int | None, auditors: int, ended: bool, expected: Kept | None) -> None:
    """A stream that never sent a message has no payload; one whose message was not waited for does."""
    assert why_unsealable(size, auditors, ended=ended) is expected


def test_every_reason_for_not_keeping_a_payload_is_explained() -> None:
    """The table is total; what is met needs no words."""
    texts = {kept: explain(kept, "request", 70_000) for kept in Kept if kept not in MET}
    assert len(set(texts.values())) == len(texts)
    assert "70000 bytes" in texts[Kept.TOO_LARGE] and "auditors:" in texts[Kept.NO_AUDITOR]


def test_an_open_stream_lacks_what_only_a_later_policy_asks() -> None:
    """What it was opened under may be more, never less."""
    assert newly_asked((), (PAYLOAD,))
    assert not newly_asked((PAYLOAD,), (PAYLOAD,)) and not newly_asked((PAYLOAD,), ())
    assert not newly_asked((), (("rate", "1/s"),))  # it counts what is opened, and this one is open
