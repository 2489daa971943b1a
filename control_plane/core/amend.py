"""What becomes of the base bundle when only some signed settings change; all else stays, byte for byte."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from trust.bundle import MESH, bundle_files, read_claimed_bundle, write_bundle
from trust.errors import InputError, Reason
from trust.levels import CRYPTOGRAPHIC, REACTIVE
from trust.mesh import MeshSettings

Change = Callable[[bytes, MeshSettings], bytes]  # base archive and its settings -> the amended archive


def settings_of(archive: bytes) -> MeshSettings | None:
    """Return the settings in a base bundle; None for a namespace's."""
    return read_claimed_bundle(archive).mesh


def with_emergency_keys(archive: bytes, keys: Mapping[str, str]) -> bytes:
    """Return the bundle with these emergency keys, if it names none.

    Raises:
        EvidenceError: BUNDLE_MALFORMED and others: not a base bundle, or not such keys.
    """
    mesh = read_claimed_bundle(archive).mesh
    if mesh is None or mesh.emergency_keys or not keys:
        return archive
    return _amended(archive, {"emergency_keys": dict(sorted(keys.items()))})


def with_witnesses(archive: bytes, attestation: Mapping[str, Any]) -> bytes:
    """Return the bundle with this witness roster, if it asks for level 5 somewhere and names no witnesses.

    Raises:
        EvidenceError: BUNDLE_MALFORMED and others: not a base bundle, or not such a roster.
    """
    mesh = read_claimed_bundle(archive).mesh
    if mesh is None or mesh.attestation is not None or CRYPTOGRAPHIC not in mesh.levels():
        return archive
    return _amended(archive, {"attestation": attestation})


def with_detection(archive: bytes, detection: Mapping[str, Any]) -> bytes:
    """Return the bundle with these settings of detection, if it asks for level 2 or more somewhere and has none.

    Raises:
        EvidenceError: BUNDLE_MALFORMED and others: not a base bundle, or not such settings.
    """
    mesh = read_claimed_bundle(archive).mesh
    if mesh is None or mesh.detection is not None or max(mesh.levels()) < REACTIVE:
        return archive
    return _amended(archive, {"detection": detection})


def ended(archive: bytes, mesh: MeshSettings, ids: Iterable[str]) -> bytes:
    """Return the bundle in which emergency revocations (by id) are ended."""
    return _amended(archive, {"ended_revocations": sorted({*mesh.ended_revocations, *ids})})


def kept(archive: bytes, mesh: MeshSettings, *, kind: str, value: str, reason: str) -> bytes:
    """Return the bundle that revokes something permanently.

    Raises:
        InputError: CONFLICT, if it does already.
    """
    revocations = [one.model_dump() for one in mesh.revocations]
    if any((one["kind"], one["value"]) == (kind, value) for one in revocations):
        raise InputError(Reason.CONFLICT, f"the policy in force revokes {kind} {value} already")
    return _amended(
        archive, {"revocations": [*revocations, {"kind": kind, "value": value, "reason": reason}]}
    )


def released(
    archive: bytes, mesh: MeshSettings, node: str, *, proofs: Iterable[str], directives: Iterable[str]
) -> bytes:
    """Return the bundle that lets a node take part again: its proofs settled, every revocation of it ended."""
    others = [one.model_dump() for one in mesh.revocations if (one.kind, one.value) != ("node", node)]
    return _amended(
        archive,
        {
            "released_proofs": sorted({*mesh.released_proofs, *proofs}),
            "ended_revocations": sorted({*mesh.ended_revocations, *directives}),
            "revocations": others,
        },
    )


def _amended(archive: bytes, changes: Mapping[str, Any]) -> bytes:
    manifest = read_claimed_bundle(archive).manifest
    files = bundle_files(archive)
    if MESH not in files:
        raise InputError(Reason.INPUT_INVALID, "this is the bundle of a namespace; give the base bundle")
    settings = MeshSettings.model_validate_json(
        json.dumps({**json.loads(files[MESH]), **changes})
    )  # refused here rather than by every node
    files[MESH] = settings.model_dump_json(indent=1, exclude_none=True).encode() + b"\n"
    return write_bundle(manifest.name, files, description=manifest.description)
