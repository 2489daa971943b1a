"""`egm doctor`'s rules: what it must notice, and that it never calls a broken mesh healthy."""

import dataclasses

import pytest

from control_plane.core.diagnosis import Facts, Finding, Listener, Severity, diagnose

NOW_MS = 1_800_000_000_000
DAY_MS = 24 * 3600 * 1000
HEALTHY = Facts(
    now_ms=NOW_MS,
    clock_offset_ms=3,
    operator_not_after_ms=NOW_MS + 30 * DAY_MS,
    root_expires_ms=NOW_MS + 365 * DAY_MS,
    policy_expires_ms=NOW_MS + 365 * DAY_MS,
    development=False,
    policy_version=3,
    nodes={"payments": ""},
    listeners=(Listener("payments", "upstream", "127.0.0.1:50051"),),
)


def worst(facts: Facts) -> Finding:
    return diagnose(facts)[0]


def test_a_healthy_mesh_has_nothing_to_mend() -> None:
    """No warning is raised for what is in order."""
    assert {finding.severity for finding in diagnose(HEALTHY)} == {Severity.OK}


@pytest.mark.parametrize(
    ("broken", "subject"),
    [
        ({"control_plane": "127.0.0.1:1: refused"}, "control plane"),
        ({"problems": ("payments: lease STALE",)}, "mesh"),
        ({"policy_version": 0}, "policy"),
        ({"operator_not_after_ms": NOW_MS - 1}, "operator certificate"),
        ({"root_expires_ms": NOW_MS}, "root metadata"),
        ({"policy_expires_ms": NOW_MS - DAY_MS}, "policy metadata"),
        ({"readable_keys": ("keys/root-1.pem",)}, "private key"),
        ({"nodes": {"payments": "NOT_READY: POLICY_MISSING"}}, "node payments"),
    ],
)
def test_what_is_broken_is_a_problem_with_a_way_to_mend_it(broken: dict[str, object], subject: str) -> None:
    """Each breakage alone is found, first, and says what to do."""
    finding = worst(dataclasses.replace(HEALTHY, **broken))  # type: ignore[arg-type]
    assert (finding.severity, finding.subject) == (Severity.PROBLEM, subject)
    assert finding.mend


@pytest.mark.parametrize(
    ("risky", "subject"),
    [
        ({"clock_offset_ms": -60_000}, "clock"),
        ({"root_expires_ms": NOW_MS + DAY_MS}, "root metadata"),
        ({"development": True}, "trust domain"),
        ({"missing": ("no attestation",)}, "level"),
        ({"listeners": (Listener("w", "outbound", "127.0.0.1:9000", "loopback"),)}, "listener of w"),
        ({"listeners": (Listener("p", "upstream", "10.0.0.7:50051"),)}, "service of p"),
    ],
)
def test_what_only_development_may_do_is_a_warning(risky: dict[str, object], subject: str) -> None:
    """A loopback listener, a service that can be reached past its sidecar, and what will expire."""
    finding = worst(dataclasses.replace(HEALTHY, **risky))  # type: ignore[arg-type]
    assert (finding.severity, finding.subject) == (Severity.WARNING, subject)
    assert finding.mend
