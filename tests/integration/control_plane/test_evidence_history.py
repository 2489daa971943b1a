"""What a real control plane keeps of its past is enough to verify every policy that it ever published."""

import asyncio
import hashlib
from collections.abc import Callable

from tuf.api.metadata import Root

from control_plane.edge.evidence_export import repository_in
from control_plane.edge.evidence_remote import Remote
from tests.integration.control_plane.test_driver import namespace_source
from tests.support.control_plane import Domain, publish, running, source
from trust.authoring import Holders, find_key, first_targets, next_root, next_targets, parse_metadata
from trust.chain import verify_metadata, verify_policy, verify_roots
from trust.edge.clock import SystemClock
from trust.evidence import PolicyPart
from trust.past_policy import find_policy
from trust.policy.source import build

MINUTE_MS = 60_000


def policy_files() -> dict[str, bytes]:
    """A base that leaves a service to the namespace `store`."""
    files = source()
    files["bundle.yaml"] = files["bundle.yaml"].replace(
        b"}}\n", b"}, stock: {namespace: store, grpc_services: [shop.Stock/Count]}}\n"
    )
    return files


def holders_of(part: PolicyPart, root: bytes, role: str) -> set[str]:
    """Verify a policy from the first root on; return who signed `role`."""
    verified = verify_metadata(verify_roots(root, part.metadata.roots), part.metadata)
    archives = {hashlib.sha256(data).hexdigest(): data for _, data in part.archives}
    verify_policy(verified, archives.get)
    quorum = verified.quorums[role]
    return set(map(quorum.name, quorum.signed))


async def test_every_policy_of_a_history_with_namespace_and_root_rotation_verifies(domain: Domain) -> None:
    """Base, delegation, namespace, new root, base again: over the wire and from the directory, the same files."""
    now_ms = SystemClock().now_ms()
    bundle, own_bundle = build(policy_files()), build(namespace_source())
    first = first_targets(bundle, now_ms=now_ms)
    holders = Holders([domain.keys["stranger"], domain.keys["approver-3"]], 2)
    delegated = next_targets(first, None, now_ms=now_ms, delegate={"store": holders})
    own = first_targets(own_bundle, now_ms=now_ms, role="store")
    root = parse_metadata(domain.root, Root)
    leaver = find_key(root.signed, "targets", "approver-1")
    rotated = next_root(root, now_ms=now_ms, add=[domain.keys["stranger"]], remove=[leaver.keyid])
    files = policy_files()
    files["bundle.yaml"] = files["bundle.yaml"].replace(b"version 1", b"version 2")
    last_bundle = build(files)
    last = next_targets(delegated, last_bundle, now_ms=now_ms)
    async with running(domain) as plane, plane.operator() as operator:
        await publish(operator, domain, first, bundle)
        await publish(operator, domain, delegated, None, holders=("approver-2", "approver-3"))  # who remain
        await publish(operator, domain, own, own_bundle, role="store", holders=("stranger", "approver-3"))
        await publish(operator, domain, rotated, None, role="root", holders=("root-1", "root-3"))
        await publish(operator, domain, last, last_bundle, holders=("approver-2", "stranger"))
        async with plane.channel() as channel:
            reader = Remote(channel).reader()
            over_the_wire = await asyncio.to_thread(history, reader, bundle, last_bundle)
    from_disk = history(repository_in(domain.home / "cp-1" / "data" / "repository"), bundle, last_bundle)
    assert over_the_wire == from_disk
    one, two, two_later, three = from_disk
    assert [set(dict(part.archives)) for part in from_disk] == [
        {"targets"},
        {"targets"},
        {"targets", "store"},
        {"targets", "store"},
    ]
    assert [len(part.metadata.roots) for part in (one, two, three)] == [0, 1, 1]
    assert holders_of(one, domain.root, "targets") == {"approver-1", "approver-2"}
    assert holders_of(two, domain.root, "targets") == {"approver-2", "approver-3"}
    assert holders_of(two_later, domain.root, "store") == {"stranger", "approver-3"}
    assert holders_of(three, domain.root, "targets") == {"approver-2", "stranger"}


def history(read: Callable[[str], bytes | None], bundle: bytes, last_bundle: bytes) -> list[PolicyPart]:
    """Base versions 1, 2, 2 when its leases had long ended, and 3."""
    now_ms = SystemClock().now_ms()
    wanted = [(1, bundle, 0), (2, bundle, 0), (2, bundle, 10 * MINUTE_MS), (3, last_bundle, 0)]
    found = [
        find_policy(read, version, hashlib.sha256(data).digest(), now_ms + after_ms)
        for version, data, after_ms in wanted
    ]
    parts = [part for part in found if part is not None]
    assert len(parts) == len(wanted)
    return parts
