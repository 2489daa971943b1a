"""What an installation that deserves less than it claims shows: proxies, contradicting records, other sockets."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from control_plane.assess import ordinary
from control_plane.assess.answers import UNREACHED, Answer
from control_plane.assess.bypass import Bypass, judge
from control_plane.assess.catalogue import load_catalogue
from control_plane.assess.edge.past import Listening, reachable, siblings
from control_plane.assess.edge.records import contradictions
from control_plane.assess.edge.shared import counters
from control_plane.assess.model import Outcome, Verdict
from control_plane.assess.ordinary import Past, Seen
from control_plane.assess.outside import outside
from trust.record import Ending, Side

# a namespace's service is not decided again, so no compiled policy is needed here
ENGINE = cast("Any", SimpleNamespace(mesh=SimpleNamespace(services={"shop": SimpleNamespace(namespace="n")})))


def seen(executed: bool = False, **changes: Any) -> Seen:
    intent = {
        "allowed": True,
        "reason": "ALLOWED",
        "would_deny": "",
        "level": 5,
        "side": Side.INBOUND,
        "permit_sha256": b"p" * 32,
        "execution_id": b"e" * 16,
        "wall_ms": 0,
        **changes,
    }
    outcome = SimpleNamespace(ending=Ending.COMPLETED, status="OK") if executed else None
    return Seen(cast("Any", SimpleNamespace(**intent)), cast("Any", outcome))


@pytest.mark.parametrize(
    ("one", "outcome"),
    [
        (seen(), Outcome.HELD),
        (seen(level=3), Outcome.FAILED),
        (seen(permit_sha256=b""), Outcome.FAILED),
        (seen(would_deny="NO_POLICY_PERMITS"), Outcome.FAILED),
        (seen(reason="PASSED_UNGOVERNED"), Outcome.FAILED),
        (seen(allowed=False, reason="NO_POLICY_PERMITS"), Outcome.HELD),
        (seen(executed=True, allowed=False, reason="NO_POLICY_PERMITS"), Outcome.FAILED),
        (seen(executed=True, side=Side.OUTBOUND), Outcome.FAILED),
    ],
    ids=["good", "lower", "no-permit", "would-deny", "ungoverned", "refused", "refused-yet-run", "one-sided"],
)
def test_records_of_ordinary_calls_contradict_a_sidecar_that_behaves_for_probes(
    one: Seen, outcome: Outcome
) -> None:
    """What it let through is on its record, or on its caller's."""
    assert ordinary.judge("shop", 5, ENGINE, Past([one]), now_ms=10**9).outcome is outcome


@pytest.mark.parametrize(
    ("past", "level", "outcome"),
    [(Past(), 5, Outcome.UNKNOWN), (Past(problem="x"), 5, Outcome.UNKNOWN), (Past(), 3, Outcome.FAILED)],
    ids=["nothing", "no-index", "level-3"],
)
def test_without_records_nothing_is_granted(past: Past, level: int, outcome: Outcome) -> None:
    """An empty index contradicts nothing, and shows nothing."""
    assert ordinary.judge("shop", level, ENGINE, past, now_ms=0).outcome is outcome


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (Answer("UNAUTHENTICATED"), Outcome.UNKNOWN),
        (Answer("PERMISSION_DENIED"), Outcome.UNKNOWN),
        (Answer("FAILED_PRECONDITION", "PERMIT_MISSING"), Outcome.HELD),
        (Answer("UNIMPLEMENTED"), Outcome.FAILED),
    ],
    ids=["token", "denied", "interceptor", "open"],
)
def test_a_proxy_with_a_token_of_its_own_is_no_sidecar(answer: Answer, outcome: Outcome) -> None:
    """Whoever has the token gets past; only the mesh's own words show an interceptor that wants its sidecar."""
    assert judge("shop", [Bypass("10.0.0.1:9", False, answer)]).outcome is outcome


@pytest.mark.parametrize(
    ("attempts", "outcome"),
    [
        ([("127.0.0.1:9", True)], Outcome.UNKNOWN),
        ([("127.0.0.1:9", True), ("10.0.0.1:9", False)], Outcome.UNKNOWN),
        ([("10.0.0.1:9", False)], Outcome.HELD),
    ],
    ids=["own-machine", "every-address", "behind-a-firewall"],
)
def test_a_service_that_does_not_run_is_not_closed(
    attempts: list[tuple[str, bool]], outcome: Outcome
) -> None:
    """Where even its own machine gets no answer, nothing is shown of who could call it once it runs."""
    silent = [Bypass(address, local, Answer(UNREACHED)) for address, local in attempts]
    assert judge("shop", silent).outcome is outcome


@pytest.mark.parametrize("code", ["UNAUTHENTICATED", "PERMISSION_DENIED"])
def test_a_service_that_asks_for_credentials_of_its_own_is_not_said_to_ask_nobody(code: str) -> None:
    """From outside it cannot be told by which policy it lets callers in: neither found wanting, nor met."""
    found, notes = outside(load_catalogue(), "10.0.0.1:9", Answer(code), Answer(UNREACHED))
    assert found.level == 0
    assert {result.verdict for result in found.results} == {Verdict.NOT_ESTABLISHED}
    assert code in notes[0]


def test_other_sockets_of_the_service_and_every_address_are_tried() -> None:
    """A second port, IPv6 and a Unix socket of the same process are as good a way in as the first."""
    listening = [Listening(7, "127.0.0.1", 9), Listening(7, "::", 10), Listening(7, "", 0, "/run/s.sock")]
    found = dict(siblings("127.0.0.1:9", [*listening, Listening(8, "0.0.0.0", 11)], ["10.0.0.1", "fd00::1"]))

    assert found["[fd00::1]:10"] is False and found["10.0.0.1:10"] is False
    assert found["unix:///run/s.sock"] is True
    assert not any(address.endswith(":11") for address in found), "another process is another service"
    assert reachable("127.0.0.1:9", ["fd00::1"]) == [("127.0.0.1:9", True), ("[fd00::1]:9", False)]


def test_a_record_that_says_something_else_than_the_caller_was_told_is_found() -> None:
    """A sidecar that refuses in words and writes down another decision, or none."""
    told = {"d": Answer("PERMISSION_DENIED", "NO_POLICY_PERMITS")}

    def record(reason: str) -> Any:
        return SimpleNamespace(decision_id="d", allowed=False, reason=reason)

    assert contradictions(told, [record("NO_POLICY_PERMITS")]) == []
    assert contradictions(told, [record("POLICY_DENIED")]) and contradictions(told, [])


@pytest.mark.parametrize(
    ("after", "calls", "outcome"), [(15, 5, Outcome.HELD), (11, 5, Outcome.FAILED), (15, 0, Outcome.UNKNOWN)]
)
def test_counters_that_move_by_less_than_the_calls_have_not_counted_them(
    after: int, calls: int, outcome: Outcome
) -> None:
    """Traffic of others alone moves them, too."""
    assert counters("shop", 10, after, calls).outcome is outcome
