"""Reads the ledgers of nodes that serve a service: whole, on a disk, as a quorum saw them; and changed copies."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil

from control_plane.assess.edge.collect import Installation
from control_plane.assess.edge.past import node_config
from control_plane.assess.model import Basis, Check, Outcome
from trust import limits
from trust.attestation.credential import Credential, log_verifier
from trust.edge.ledger import Reader
from trust.edge.ledger import verify as verify_ledger
from trust.errors import MeshError

NAMES: Final = ("ledger-intact", "ledger-cosigned", "ledger-durable", "ledger-tampering-noticed")
_OBSERVED: Final = frozenset({"ledger-cosigned", "ledger-durable"})
_TRIED: Final = "read the ledgers of the nodes that serve it"
_IN_FIRST_RECORD: Final = 150  # bytes into the first segment: its first record is there, which is signed
_IN_MEMORY: Final = frozenset({"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"})


def ledgers(installation: Installation, service: str, serving: Sequence[str]) -> list[Check]:
    """Verify the ledgers of the nodes that serve a service, and copies of them that were tampered with. Blocks."""
    found = {node: path for node in serving if (path := ledger_of(installation, node)) is not None}
    if not serving or len(found) < len(serving):
        missing = ", ".join(sorted(set(serving) - found.keys())) or "any node"
        return _untold(service, f"the ledger of {missing} is not on this machine")
    if large := [node for node, path in found.items() if _size(path) > limits.MAX_ASSESSED_LEDGER_BYTES]:
        most = limits.MAX_ASSESSED_LEDGER_BYTES >> 20
        return _untold(
            service,
            f"the ledger of {', '.join(large)} is larger than {most} MiB: run egm ledger verify there",
        )
    node, path = next(iter(found.items()))
    return [
        _intact(installation, service, found),
        _cosigned(installation, service, found),
        _durable(service, found),
        _tampering(service, node, path),
    ]


def ledger_of(installation: Installation, node: str) -> Path | None:
    """Return where a node's ledger is on this machine; None when it is not."""
    entry = installation.mesh.nodes.get(node)
    data_dir = node_config(entry.config).get("data_dir") if entry is not None else None
    path = Path(str(data_dir)) / "ledger" if data_dir else None
    return path if path is not None and (path / "checkpoint").is_file() else None


def in_memory(path: Path) -> str:
    """Return the kind of file system that holds `path`, if it is one that ends with the machine; else ""."""
    real = path.resolve()
    holding = [
        one
        for one in psutil.disk_partitions(all=True)
        if real.is_relative_to(one.mountpoint) and Path(one.mountpoint).exists()
    ]
    nearest = max(holding, key=lambda one: len(Path(one.mountpoint).parts), default=None)
    return nearest.fstype if nearest is not None and nearest.fstype in _IN_MEMORY else ""


def _intact(installation: Installation, service: str, found: Mapping[str, Path]) -> Check:
    """Hold every record against the signed checkpoint; with the node's own key, where a quorum vouches for that."""
    outcome, evidence = Outcome.HELD, {}
    for node, path in found.items():
        credential = installation.credentials.get(node)
        key = None if credential is None else log_verifier(credential.evidence)
        verification = verify_ledger(path, key=key)
        evidence[node] = f"{verification.size} records, root {verification.root.hex()[:16]}"
        if not verification.ok:
            outcome = Outcome.FAILED
            evidence[node] = "; ".join(f"{one.where}: {one.what}" for one in verification.findings[:3])
    answered = (
        "every record fits its signed checkpoint" if outcome is Outcome.HELD else f"damaged: {evidence}"
    )
    return _check("ledger-intact", service, outcome, answered, evidence)


def _cosigned(installation: Installation, service: str, found: Mapping[str, Path]) -> Check:
    """Each ledger must continue the head that a quorum cosigned: else its node has written it anew, or lost some."""
    name = "ledger-cosigned"
    evidence: dict[str, str] = {}
    if not installation.facts.policy.witnesses:
        why = "the signed policy names no witnesses: whoever has a node's key can write its ledger anew"
        return _check(name, service, Outcome.FAILED, why)
    for node, path in found.items():
        credential = installation.credentials.get(node)
        if credential is None:
            return _check(name, service, Outcome.UNKNOWN, f"no quorum has cosigned a head of {node}'s ledger")
        if problem := departs(path, credential):
            return _check(name, service, Outcome.FAILED, f"{node}: {problem}", evidence)
        head = credential.checkpoint.checkpoint
        evidence[node] = f"root {head.root.hex()[:16]} of the first {head.size} records"
    return _check(name, service, Outcome.HELD, "each continues the head that a quorum cosigned", evidence)


def departs(path: Path, credential: Credential) -> str:
    """Return how a ledger on disk contradicts the head in its node's credential; "" when it continues it."""
    head = credential.checkpoint.checkpoint
    try:
        reader = Reader(path)
        if reader.checkpoint.origin != head.origin:
            return f"the ledger on disk is {reader.checkpoint.origin}, and a quorum cosigned {head.origin}"
        if reader.size < head.size:
            return f"it has {reader.size} signed records, and a quorum cosigned {head.size}: some are gone"
        if head.size and reader.root(head.size) != head.root:
            return f"its first {head.size} records are others than those whose root a quorum cosigned"
    except MeshError as error:
        return f"it cannot be read: {error.detail[:160]}"
    return ""


def _durable(service: str, found: Mapping[str, Path]) -> Check:
    name = "ledger-durable"
    lost = {node: kind for node, path in found.items() if (kind := in_memory(path))}
    evidence = {node: lost.get(node) or "on a disk" for node in found}
    if lost:
        kinds = ", ".join(sorted(set(lost.values())))
        why = f"the ledger of {', '.join(lost)} is in memory ({kinds}): it ends with the machine"
        return _check(name, service, Outcome.FAILED, why, evidence)
    return _check(name, service, Outcome.HELD, "none is in memory alone", evidence)


def _tampering(service: str, node: str, path: Path) -> Check:
    """Change one byte of a record in a copy, and cut another copy short: both must be found."""
    name, tried = "ledger-tampering-noticed", "changed a byte in a copy of the ledger, and cut another short"
    with tempfile.TemporaryDirectory(prefix="egm-assess-") as home:
        original = Path(home) / "whole"
        shutil.copytree(path, original, symlinks=True)
        whole = verify_ledger(original)
        if not whole.ok or whole.size == 0:
            why = "the copy does not verify as it is, or nothing in it is signed yet"
            return _check(name, service, Outcome.UNKNOWN, why, tried=tried)
        segments = sorted(one for one in original.glob("records/*") if one.is_file())
        data = segments[0].read_bytes() if segments else b""
        if len(data) < 2 * _IN_FIRST_RECORD:
            return _check(name, service, Outcome.UNKNOWN, "it holds no records yet", tried=tried)
        target, at, evidence = segments[0], _IN_FIRST_RECORD, {"node": node}
        for how, changed in (
            ("changed", data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]),
            ("cut", data[:at]),
        ):
            target.write_bytes(changed)
            verification = verify_ledger(original)
            if verification.ok:
                why = f"{tried}: the {how} copy still verifies"
                return _check(name, service, Outcome.FAILED, why, evidence, tried=tried)
            evidence[how] = f"{verification.findings[0].where}: {verification.findings[0].what}"[:160]
    return _check(name, service, Outcome.HELD, "both were found, with their place", evidence, tried=tried)


def _size(path: Path) -> int:
    return sum(one.stat().st_size for one in path.rglob("*") if one.is_file())


def _untold(service: str, why: str) -> list[Check]:
    return [_check(name, service, Outcome.UNKNOWN, why) for name in NAMES]


def _check(  # noqa: PLR0917 (in the order of a sentence)
    name: str,
    service: str,
    outcome: Outcome,
    answered: str,
    evidence: Mapping[str, str] | None = None,
    tried: str = _TRIED,
) -> Check:
    basis = Basis.OBSERVED if name in _OBSERVED else Basis.PROBED
    return Check(name, service, outcome, basis, tried, answered, evidence or {})
