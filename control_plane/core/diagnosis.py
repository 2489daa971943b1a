"""What is wrong with a mesh, and how to mend it: rules over facts that the edge gathered."""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

CERTIFICATE_WARNING_MS: Final = 24 * 3600 * 1000
METADATA_WARNING_MS: Final = 14 * 24 * 3600 * 1000
CLOCK_WARNING_MS: Final = 2_000


@enum.unique
class Severity(enum.StrEnum):
    """PROBLEM: something does not work or is unsafe. WARNING: it will be, or only development may do so."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `mend` says what to do; empty when there is nothing to do."""

    severity: Severity
    subject: str
    detail: str
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Listener:
    """An outbound listener, or the upstream of an inbound one, as configured."""

    node: str
    kind: str  # "outbound" or "upstream"
    address: str
    identify: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found out. None: could not be found out, which is a finding of its own."""

    now_ms: int
    control_plane: str | None = None  # why it cannot be reached; None when it can
    clock_offset_ms: int | None = None
    operator_not_after_ms: int | None = None
    root_expires_ms: int | None = None
    policy_expires_ms: int | None = None
    development: bool | None = None
    policy_version: int | None = None
    readable_keys: Sequence[str] = ()  # private files that others can read
    missing: Sequence[str] = ()  # what the levels in force promise and this version does not keep
    problems: Sequence[str] = ()  # what the control plane says of itself and of its nodes
    nodes: Mapping[str, str] | None = None  # node -> why it cannot be asked, "" when it can
    listeners: Sequence[Listener] = ()


def diagnose(facts: Facts) -> list[Finding]:
    """Return a finding for everything that was looked at, worst first."""
    findings = [
        *_control_plane(facts),
        *_time(facts),
        *_expiries(facts),
        *_domain(facts),
        *(
            Finding(Severity.WARNING, "level", gap, "do not claim level 5 for this mesh; see docs/levels.md")
            for gap in facts.missing
        ),
        *_nodes(facts),
        *_listeners(facts.listeners),
    ]
    order = (Severity.PROBLEM, Severity.WARNING, Severity.OK)
    return sorted(findings, key=lambda finding: order.index(finding.severity))


def _control_plane(facts: Facts) -> list[Finding]:
    if facts.control_plane is not None:
        mend = (
            "start it with 'egm control-plane run -c FILE'; nodes serve from their cache until the lease ends"
        )
        return [Finding(Severity.PROBLEM, "control plane", facts.control_plane, mend)]
    found = [
        Finding(Severity.PROBLEM, "mesh", problem, "see 'egm status' and the logs")
        for problem in facts.problems
    ]
    if facts.policy_version == 0:
        detail = "no policy has been published: every governed call is refused"
        found.append(Finding(Severity.PROBLEM, "policy", detail, "egm policy propose FOLDER, sign, publish"))
    return found or [Finding(Severity.OK, "control plane", "reachable, nothing to report")]


def _time(facts: Facts) -> list[Finding]:
    if facts.clock_offset_ms is None:
        return []
    if abs(facts.clock_offset_ms) > CLOCK_WARNING_MS:
        detail = f"this machine and the control plane differ by {facts.clock_offset_ms / 1000:.1f} s"
        return [Finding(Severity.WARNING, "clock", detail, "synchronise both with NTP")]
    return [Finding(Severity.OK, "clock", "agrees with the control plane")]


def _expiries(facts: Facts) -> list[Finding]:
    looked = (
        (
            "operator certificate",
            facts.operator_not_after_ms,
            CERTIFICATE_WARNING_MS,
            "issue a new one: egm node operator NAME --domain DOMAIN --out DIR",
        ),
        ("root metadata", facts.root_expires_ms, METADATA_WARNING_MS, "egm keys rotate, sign, publish"),
        (
            "policy metadata",
            facts.policy_expires_ms,
            METADATA_WARNING_MS,
            "propose, sign and publish it again",
        ),
    )
    findings = []
    for subject, expires_ms, warning_ms, mend in looked:
        if expires_ms is None:
            continue
        left_h = (expires_ms - facts.now_ms) / 3_600_000
        if left_h <= 0:
            findings.append(Finding(Severity.PROBLEM, subject, f"expired {-left_h:.0f} h ago", mend))
        elif expires_ms - facts.now_ms < warning_ms:
            findings.append(Finding(Severity.WARNING, subject, f"expires in {left_h:.0f} h", mend))
        else:
            findings.append(Finding(Severity.OK, subject, f"valid for {left_h / 24:.0f} days"))
    return findings


def _domain(facts: Facts) -> list[Finding]:
    findings = [
        Finding(Severity.PROBLEM, "private key", f"{path} is readable by others", f"chmod 600 {path}")
        for path in facts.readable_keys
    ]
    if facts.development:
        detail = "development domain: every key was made on one machine and quorum rules are relaxed"
        mend = "for production make a domain without --development, every holder with their own key"
        findings.append(Finding(Severity.WARNING, "trust domain", detail, mend))
    return findings


def _nodes(facts: Facts) -> list[Finding]:
    if facts.nodes is None:
        return []
    findings = []
    for node, why in sorted(facts.nodes.items()):
        if why:
            mend = "is the process running? see its log; 'egm sidecar check -c FILE' checks its configuration"
            findings.append(Finding(Severity.PROBLEM, f"node {node}", why, mend))
        else:
            findings.append(Finding(Severity.OK, f"node {node}", "ready"))
    return findings


def _listeners(listeners: Sequence[Listener]) -> list[Finding]:
    findings = []
    for listener in listeners:
        loopback = listener.address.startswith(("127.", "[::1]", "localhost:"))
        if listener.kind == "outbound" and listener.identify == "loopback":
            detail = f"{listener.address} stands for a workload: any process on the machine can call as it"
            mend = "use a Unix socket (listen: unix:///…, identify: unix-socket) outside development"
            findings.append(Finding(Severity.WARNING, f"listener of {listener.node}", detail, mend))
        if listener.kind == "upstream" and not loopback and not listener.address.startswith("unix:"):
            detail = (
                f"the service at {listener.address} is not on loopback: others may reach it past the sidecar"
            )
            mend = "bind it to 127.0.0.1 or to a Unix socket, or close its port with network policy"
            findings.append(Finding(Severity.WARNING, f"service of {listener.node}", detail, mend))
    return findings
