"""Attempts at the way of policy: what nodes' policy client and the control plane do with policy that is not right.

The client is the one that every sidecar of this version runs, over the files that this installation serves, changed
on the way; the control plane is the running one.
"""

import asyncio
import copy
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import grpc

from control_plane.assess.edge.collect import Installation
from control_plane.assess.model import MESH, Basis, Check, Outcome
from control_plane.edge.mesh_file import MeshFile
from control_plane.edge.operator_client import Credentials, OperatorClient
from control_plane.edge.release import InForce, Release
from trust.chain import require_quorum
from trust.edge.distribution_client import GrpcFileSource
from trust.edge.tuf_client import PolicyClient
from trust.errors import MeshError, Reason
from trust.ports import FileSource
from trust.verified import BASE_ROLE
from trust.x509 import control_plane_dns

TITLE: Final = "Assessment: a change without signatures, to be refused and withdrawn"
LEASE_WAIT_S: Final = 45.0
CONFLICTS: Final = 8
CONFLICT_PAUSE_S: Final = 1.0
_POLL_S: Final = 0.5
Change = Callable[[str, bytes], bytes]


class Altered:
    """A source of policy files that changes some on the way."""

    def __init__(self, source: FileSource, change: Change) -> None:
        self._source, self._change = source, change
        self.kept: dict[str, bytes] = {}

    def fetch(self, path: str) -> Iterator[bytes]:
        """Return one file, changed."""
        data = b"".join(self._source.fetch(path))
        self.kept[path] = data
        yield self._change(path, data)


def source_of(mesh: MeshFile, directory: Path) -> GrpcFileSource:
    """Return where the control plane's files are, asked as an operator.

    Raises:
        InputError: KEY_UNREADABLE, there are no operator credentials.
    """
    own = Credentials.load(directory / mesh.operator)
    return GrpcFileSource(
        [mesh.control_plane],
        lambda: grpc.ssl_channel_credentials(own.anchors, own.key, own.chain),
        [("grpc.ssl_target_name_override", control_plane_dns(mesh.trust_domain))],
    )


def client_checks(root: bytes, source: FileSource, wait: Callable[[float], None]) -> list[Check]:
    """Give the policy client files that must be refused. Blocks: call it in a thread.

    Args:
        root: the trust anchor.
        source: of the installation.
        wait: sleeps, s.
    """
    return [
        _refused(
            "tampered-policy-refused",
            "served the published policy with one byte of the bundle changed",
            root,
            Altered(source, _bundle_changed),
            {Reason.DIGEST_MISMATCH},
        ),
        _rollback(root, source, wait),
    ]


def _check(name: str, outcome: Outcome, tried: str, answered: str, **evidence: str) -> Check:
    return Check(name, MESH, outcome, Basis.PROBED, tried, answered, evidence)


def _refused(name: str, tried: str, root: bytes, source: Altered, right: set[Reason]) -> Check:
    """Refresh twice: from the files as they are, which must work, and as they were changed, which must not."""
    with tempfile.TemporaryDirectory(prefix="egm-assess-") as home:
        try:
            good = PolicyClient(Path(home) / "good", root).refresh(source._source)
        except MeshError as error:
            return _check(
                name, Outcome.UNKNOWN, tried, f"even the unchanged policy is refused: {error.reason}"
            )
        try:
            PolicyClient(Path(home) / "bad", root).refresh(source)
        except MeshError as error:
            if error.reason in right:
                answered = f"refused: {error.reason}"
                return _check(name, Outcome.HELD, tried, answered, reason=error.reason, unchanged=good.digest)
            return _check(name, Outcome.UNKNOWN, tried, f"refused for another reason: {error.reason}")
    return _check(name, Outcome.FAILED, tried, f"{tried}: it was accepted")


def _bundle_changed(path: str, data: bytes) -> bytes:
    if not path.startswith("targets/") or len(data) < 64:
        return data
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def short_quorum(in_force: InForce) -> Check:
    """Hold the published signatures against the signed threshold, and again with one less than it asks for.

    The digests that the online keys pin would refuse such a file before its signatures are counted; so the counting
    itself is tried, with the function that every node's client calls.
    """
    name, tried = "short-quorum-refused", "had k-1 of the published policy's signatures counted"
    root, metadata = in_force.root.signed, in_force.roles.get(BASE_ROLE)
    if metadata is None:
        return _check(name, Outcome.UNKNOWN, tried, "there is no policy")
    threshold = root.roles[BASE_ROLE].threshold
    try:
        require_quorum(root, BASE_ROLE, metadata)
    except MeshError as error:
        return _check(
            name, Outcome.UNKNOWN, tried, f"even the published signatures do not count: {error.reason}"
        )
    short = copy.deepcopy(metadata)
    short.signatures = dict(list(short.signatures.items())[: threshold - 1])
    try:
        require_quorum(root, BASE_ROLE, short)
    except MeshError as error:
        right = error.reason is Reason.QUORUM_NOT_MET
        outcome = Outcome.HELD if right else Outcome.UNKNOWN
        counted = f"{len(short.signatures)} of {threshold}"
        return _check(
            name, outcome, tried, f"refused: {error.reason}", signatures=counted, reason=error.reason
        )
    return _check(name, Outcome.FAILED, tried, f"{tried}: they were enough")


def _rollback(root: bytes, source: FileSource, wait: Callable[[float], None]) -> Check:
    """Accept the newest lease, then be shown the one before: a whole state that was genuinely signed, and is older."""
    name, tried = "rollback-refused", "served a genuine state that is older than what was accepted"
    with tempfile.TemporaryDirectory(prefix="egm-assess-") as home:
        client = PolicyClient(Path(home) / "tuf", root)
        older = Altered(source, lambda _path, data: data)
        try:
            client.refresh(older)
            first, waited = client.newest[0], 0.0
            while client.newest[0] == first:
                if waited >= LEASE_WAIT_S:
                    why = f"no newer lease within {LEASE_WAIT_S:.0f} s, so there is nothing to roll back to"
                    return _check(name, Outcome.UNKNOWN, tried, why)
                wait(_POLL_S)
                waited += _POLL_S
                client.refresh(source)
        except MeshError as error:
            return _check(name, Outcome.UNKNOWN, tried, f"the unchanged policy is refused: {error.reason}")
        newer = client.newest[0]
        versions = {"accepted": str(newer), "shown": str(first)}
        kept = older.kept

        def replay(path: str, data: bytes) -> bytes:
            return kept.get(path, data)

        try:
            client.refresh(Altered(source, replay))
        except MeshError as error:
            if error.reason is Reason.POLICY_ROLLBACK:
                return _check(name, Outcome.HELD, tried, f"refused: {error.reason}", **versions)
            return _check(
                name, Outcome.UNKNOWN, tried, f"refused for another reason: {error.reason}", **versions
            )
        if client.newest[0] < newer:
            return _check(name, Outcome.FAILED, tried, f"{tried}: it was accepted", **versions)
        return _check(name, Outcome.UNKNOWN, tried, "the older state was not looked at", **versions)


async def unsigned(
    installation: Installation, release: Release, client: OperatorClient, pause_s: float = CONFLICT_PAUSE_S
) -> Check:
    """Propose the policy in force anew, without a signature; try to publish it; withdraw it.

    Another assessment at the same time makes the same proposal, and withdraws it under our hands: then try again.
    """
    for _ in range(CONFLICTS):
        check, again = await _unsigned(installation, release, client)
        if not again:
            break
        await asyncio.sleep(pause_s)
    return check


async def _unsigned(
    installation: Installation, release: Release, client: OperatorClient
) -> tuple[Check, bool]:
    """Return what came of it, and whether somebody else's proposal was in the way."""
    name, tried = "unsigned-refused", "proposed a policy change, and tried to publish it without a signature"
    policy = None if installation.in_force is None else installation.in_force.policy
    if policy is None:
        return _check(name, Outcome.UNKNOWN, tried, "there is no policy to change"), False
    proposal_id = ""
    try:
        proposal = await release.propose(policy.base.data, role=BASE_ROLE, title=TITLE)
        proposal_id = proposal.id
        if proposal.signatures:
            return _check(name, Outcome.FAILED, tried, f"{tried}: signatures appeared by themselves"), False
        await client.publish(proposal_id)
    except MeshError as error:
        if error.reason is Reason.QUORUM_NOT_MET:
            answered, found = f"refused: {error.reason}", {"proposal": proposal_id, "reason": error.reason}
            return _check(name, Outcome.HELD, tried, answered, **found), False
        why = f"{error.reason}: {error.detail[:200]}"
        return _check(name, Outcome.UNKNOWN, tried, why), error.reason is Reason.CONFLICT
    finally:
        if proposal_id:
            await asyncio.shield(_withdraw(client, proposal_id))
    why = f"{tried}: it was published"
    return _check(name, Outcome.FAILED, tried, why, proposal=proposal_id), False


def patient(stop: threading.Event) -> Callable[[float], None]:
    """Return a sleep that ends, with InterruptedError, when `stop` is set: a thread cannot be cancelled otherwise."""

    def wait(seconds: float) -> None:
        if stop.wait(seconds):
            raise InterruptedError("the assessment was stopped")

    return wait


async def _withdraw(client: OperatorClient, proposal_id: str) -> None:
    try:
        await client.withdraw(proposal_id)
    except MeshError:
        return  # published, which is the finding; or the control plane is gone, which the next attempt says
