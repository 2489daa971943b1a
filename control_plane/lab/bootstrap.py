"""From nothing to a running development mesh: keys, certificates, processes, first policy."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import yaml

from control_plane.core.amend import with_detection, with_emergency_keys, with_witnesses
from control_plane.edge import operator_client
from control_plane.edge.ca import CertificateAuthority, issue_to_directory
from control_plane.edge.domain import DEFAULT_TRUST_DOMAIN, create_development, emergency_keys, open_domain
from control_plane.edge.release import InForce, Release, build_folder
from control_plane.edge.source_folder import read_folder
from control_plane.lab.mesh import DevelopmentMesh, Plan
from trust.edge.keyfiles import load_signer, passphrase_source
from trust.errors import InputError, Reason
from trust.policy.source import build
from trust.spiffe import SpiffeId
from trust.verified import BASE_ROLE

OPERATOR: Final = "local"
OPERATOR_TTL_S: Final = 30 * 24 * 3600  # as `egm node operator` gives; `egm up` issues a new one each time
DENY_ALL: Final = "Nothing is allowed yet"
# what a mesh of `egm up` does about incidents unless its policy says otherwise: people are told, probing is slowed down
DETECTION: Final[Mapping[str, object]] = {
    "respond": True,
    "responses": [
        {"on": "severity high", "do": ["alert"]},
        {"on": "EGM-T003", "do": ["throttle"], "rate": "60/m", "ttl_s": 600},
    ],
}

Say = Callable[[str], None]


def prepare(directory: Path, trust_domain: str | None) -> str:
    """Make the trust domain and operator credentials below `directory`, once; return the trust domain.

    Raises:
        InputError: CONFLICT, if the directory belongs to another trust domain.
    """
    domain = directory / "domain"
    if (domain / "domain.json").is_file():
        existing = open_domain(domain).trust_domain
        if trust_domain not in {None, existing}:
            detail = f"{directory} is a mesh of trust domain {existing}; use another --dir for {trust_domain}"
            raise InputError(Reason.CONFLICT, detail)
    else:
        existing = trust_domain or DEFAULT_TRUST_DOMAIN
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        create_development(domain, trust_domain=existing)
    ca = CertificateAuthority.open(domain / "ca")
    me = SpiffeId.of(existing, "operator", OPERATOR)
    issue_to_directory(ca, me, directory / "operator", ttl_s=OPERATOR_TTL_S)
    return existing


def trust_domain_of_folder(folder: Path | None) -> str | None:
    """Return the trust domain that a policy folder names, if there is one."""
    if folder is None:
        return None
    data = yaml.safe_load(read_folder(folder)["bundle.yaml"])
    found = data.get("trust_domain") if isinstance(data, dict) else None
    return found if isinstance(found, str) else None


def base_of_folder(policy: Path, level: int | None) -> tuple[bytes, str]:
    """Build the base bundle that a policy folder holds; return it with a title for its proposal.

    Raises:
        InputError: INPUT_INVALID, every mistake with file and line, or the folder is a namespace's.
    """
    archive, role, name = build_folder(policy, level_override=level)
    if role != BASE_ROLE:
        raise InputError(
            Reason.INPUT_INVALID, f"{policy} is the bundle of namespace {role}; give the base bundle"
        )
    return archive, f"{name}, from {policy.name}"


def deny_all_source(trust_domain: str, services: Sequence[str], level: int) -> dict[str, bytes]:
    """Return the policy folder that names the services and allows nothing."""
    source = {
        "name": "deny-all",
        "description": DENY_ALL,
        "trust_domain": trust_domain,
        "level": level,
        "services": {service: {} for service in services},
    }
    return {"bundle.yaml": yaml.safe_dump(source).encode()}


def deny_all(trust_domain: str, services: Sequence[str], level: int) -> bytes:
    """Return a bundle that names the services and allows nothing."""
    return build(deny_all_source(trust_domain, services, level))


async def publish(mesh: DevelopmentMesh, archive: bytes, *, role: str = BASE_ROLE, title: str) -> int:
    """Propose, sign with as many development approvers as the threshold asks, publish; return the version."""
    if role == BASE_ROLE:
        archive = completed(mesh, archive)
    async with operator_client.operator(mesh.mesh, mesh.directory) as client:
        release = Release(mesh.mesh, mesh.directory, client)
        proposal = await release.propose(archive, role=role, title=title)
        reviewed = await release.review(proposal.id)
        for path in list(mesh.mesh.approvers.values())[: proposal.threshold]:
            signer = await asyncio.to_thread(load_signer, path, passphrase_source(Path(path)))
            await release.sign(reviewed, signer)
        answer = await client.publish(proposal.id)
        return int(answer.proposal.version)


def completed(mesh: DevelopmentMesh, archive: bytes) -> bytes:
    """Return the bundle with what a development mesh knows better than its policy folder, unless that says it itself.

    The emergency key of the domain; from level 2 on what is done about incidents; at level 5 a roster: every node of
    the mesh vouches for every other.
    """
    keys = emergency_keys(open_domain(mesh.directory / "domain"))
    archive = with_emergency_keys(archive, keys)
    if mesh.detection is not None:
        archive = with_detection(archive, mesh.detection)
    # without a node nobody can vouch: the roster follows with the first service
    return with_witnesses(archive, mesh.roster()) if mesh.plan.nodes() else archive


async def in_force(mesh: DevelopmentMesh) -> InForce:
    """Return what is published on the mesh, verified."""
    async with operator_client.operator(mesh.mesh, mesh.directory) as client:
        return await Release(mesh.mesh, mesh.directory, client).in_force()


async def bring_up(
    directory: Path,
    plan: Plan,
    *,
    policy: Path | None = None,
    level: int | None = None,
    say: Say,
) -> DevelopmentMesh:
    """Start a mesh below `directory` and wait until every node enforces its policy; writes mesh.json.

    Raises:
        MeshError: what could not be started, and where its log is. Nothing is left running.
    """
    mesh = DevelopmentMesh(directory, plan, detection=DETECTION)
    try:
        say("starting the control plane")
        await mesh.start_control_plane()
        version = await _first_policy(mesh, policy, level, say)
        say(f"starting {len(plan.nodes())} sidecars")
        await mesh.start_nodes()
        say(f"waiting until every node enforces policy version {version}")
        await mesh.settled(version=version)
    except BaseException:
        await mesh.stop()
        raise
    mesh.mesh.save(directory)
    return mesh


async def _first_policy(mesh: DevelopmentMesh, policy: Path | None, level: int | None, say: Say) -> int:
    """Publish the policy folder unless it is in force already; without one, deny all. Return the version."""
    current = await in_force(mesh)
    base = current.bundle(BASE_ROLE)
    version = 0 if current.policy is None else current.policy.base.version
    if policy is not None:
        archive, title = base_of_folder(policy, level)
    elif base is None or level is not None:
        archive = deny_all(mesh.plan.trust_domain, list(mesh.plan.services), 4 if level is None else level)
        title = DENY_ALL
    else:
        return version
    archive = completed(mesh, archive)
    if current.policy is not None and current.policy.base.data == archive:
        return version
    say(f"proposing, signing and publishing: {title}")
    return await publish(mesh, archive, title=title)
