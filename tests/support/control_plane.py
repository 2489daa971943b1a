"""A control plane for tests: a whole trust domain in a directory, and the real driver in the test's event loop."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc.aio
from securesystemslib.signer import Key, Signer
from tuf.api.metadata import Metadata, Targets

from control_plane.config import ControlPlaneConfig, OnlineKeys
from control_plane.edge import driver
from control_plane.edge.ca import CertificateAuthority, create_ca, issue_to_directory
from control_plane.edge.operator_client import Credentials, OperatorClient
from control_plane.edge.store.database import Database
from trust.authoring import Holders, first_targets, new_root, next_targets, signable_bytes
from trust.edge.clock import SystemClock
from trust.edge.keyfiles import create_key, load_signer
from trust.policy.source import build
from trust.spiffe import SpiffeId
from trust.verified import BASE_ROLE, target_path
from trust.x509 import control_plane_dns

TRUST_DOMAIN = "mesh.test"
APPROVERS = ("approver-1", "approver-2", "approver-3")


def source(version: int = 1, *, ttl_s: int = 60, trust_domain: str = TRUST_DOMAIN) -> dict[str, bytes]:
    """Return a policy folder whose content depends on `version`."""
    return {
        "bundle.yaml": (
            f"name: test\ndescription: version {version}\ntrust_domain: {trust_domain}\nlevel: 4\n"
            f"lease: {{ttl_s: {ttl_s}, grace_s: 10}}\n"
            "services: {payments: {grpc_services: [shop.Payments/Pay]}}\n"
        ).encode(),
        "policies/payments.cedar": (
            f'@id("alice-pays")\npermit(principal == Workload::"spiffe://{trust_domain}/workload/alice", '
            'action == Action::"shop.Payments/Pay", resource == Service::"payments");\n'
        ).encode(),
        "tests/payments.yaml": (
            b"- {name: alice pays, caller: alice, service: payments, method: shop.Payments/Pay, expect: allow}\n"
            b"- {name: bob does not, caller: bob, service: payments, method: shop.Payments/Pay, expect: deny}\n"
        ),
    }


def archive(version: int = 1, *, ttl_s: int = 60, trust_domain: str = TRUST_DOMAIN) -> bytes:
    """Return the base bundle of `source`."""
    return build(source(version, ttl_s=ttl_s, trust_domain=trust_domain))


@dataclass(frozen=True)
class Domain:
    """A trust domain: 2 of 3 approvers, 2 of 3 root holders, online keys, CA."""

    directory: Path
    signers: Mapping[str, Signer]
    keys: Mapping[str, Key]
    root: bytes
    home: Path  # of the control planes that run

    def at(self, home: Path) -> "Domain":
        """Return the same domain with another home."""
        return replace(self, home=home)

    @classmethod
    def create(cls, directory: Path) -> "Domain":
        """Make every key and certificate below `directory`."""
        names = [*APPROVERS, "root-1", "root-2", "root-3", "snapshot", "timestamp", "stranger"]
        paths = {name: directory / "keys" / f"{name}.pem" for name in names}
        keys = {name: create_key(path, name, None) for name, path in paths.items()}
        signers = {name: load_signer(str(path), None) for name, path in paths.items()}
        roots = [keys[f"root-{number}"] for number in (1, 2, 3)]
        root = new_root(
            trust_domain=TRUST_DOMAIN,
            root=Holders(roots, 2),
            approvers=Holders([keys[name] for name in APPROVERS], 2),
            snapshot=keys["snapshot"],
            timestamp=keys["timestamp"],
            now_ms=SystemClock().now_ms(),
        )
        for name in ("root-1", "root-2"):
            root.sign(signers[name], append=True)
        data = root.to_bytes()
        (directory / "root.json").write_bytes(data)
        create_ca(directory / "ca", TRUST_DOMAIN)
        return cls(directory, signers, keys, data, directory)

    def config(self, name: str = "cp-1", **changes: object) -> ControlPlaneConfig:
        """Return the configuration of one control plane on free ports."""
        home = self.home / name
        settings = {
            "name": name,
            "trust_domain": TRUST_DOMAIN,
            "data_dir": home / "data",
            "listen": "127.0.0.1:0",
            "join_listen": "127.0.0.1:0",
            "root": self.directory / "root.json",
            "online_keys": OnlineKeys(
                snapshot=(str(self.directory / "keys" / "snapshot.pem"),),
                timestamp=(str(self.directory / "keys" / "timestamp.pem"),),
            ),
            "ca": self.directory / "ca",
            "identity": home / "identity",
            "broker": "none",
            **changes,
        }
        return ControlPlaneConfig.model_validate(settings)

    def credentials(self, kind: str, name: str) -> Credentials:
        """Issue a certificate for any member."""
        directory = self.home / "issued" / kind / name
        ca = CertificateAuthority.open(self.directory / "ca")
        issue_to_directory(ca, SpiffeId.of(TRUST_DOMAIN, kind, name), directory)
        return Credentials.load(directory)

    def base(self, previous: Metadata[Targets] | None, bundle: bytes | None) -> Metadata[Targets]:
        """Return the next base metadata, unsigned."""
        now_ms = SystemClock().now_ms()
        if previous is None:
            assert bundle is not None
            return first_targets(bundle, now_ms=now_ms)
        return next_targets(previous, bundle, now_ms=now_ms)

    def signature(self, name: str, metadata: Metadata[Any]) -> tuple[str, str]:
        """Return (key id, signature) of one holder over `metadata`."""
        signature = self.signers[name].sign(signable_bytes(metadata))
        return signature.keyid, signature.signature


@dataclass(frozen=True)
class Running:
    """A control plane that answers."""

    domain: Domain
    listen: str
    join_listen: str
    broker: str

    @contextlib.asynccontextmanager
    async def channel(self, kind: str = "operator", name: str = "olga") -> AsyncIterator[grpc.aio.Channel]:
        """Connect as any member."""
        credentials = self.domain.credentials(kind, name)
        async with credentials.channel(self.listen, control_plane_dns(TRUST_DOMAIN)) as channel:
            yield channel

    @contextlib.asynccontextmanager
    async def operator(self, name: str = "olga") -> AsyncIterator[OperatorClient]:
        """Connect as an operator."""
        async with self.channel("operator", name) as channel:
            yield OperatorClient(channel)


_SQLITE = "sqlite+aiosqlite:///"
_migrated: list[bytes] = []


async def prepare_store(url: str) -> None:
    """Write a SQLite store that is already at the newest version, where there is none yet.

    Making one runs every migration; tests make hundreds. What opens it migrates all the same, and finds nothing to do.
    """
    if not url.startswith(_SQLITE):
        return
    if not _migrated:
        with tempfile.TemporaryDirectory() as directory:
            first = Database(f"{_SQLITE}{directory}/store.db")
            await first.migrate()
            await first.close()  # the last connection, so that everything is in the one file
            _migrated.append(_read(Path(directory, "store.db")))
    _write_new(Path(url.removeprefix(_SQLITE)), _migrated[0])


def _read(path: Path) -> bytes:
    return path.read_bytes()


def _write_new(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_bytes(data)


@contextlib.asynccontextmanager
async def running(domain: Domain, config: ControlPlaneConfig | None = None) -> AsyncIterator[Running]:
    """Run the real driver until the block ends; it must drain without an error."""
    config = config or domain.config()
    await prepare_store(config.store_url())
    stop = asyncio.Event()
    ready: asyncio.Future[dict[str, object]] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(driver.run(config, ready=ready.set_result, stop=stop))
    both: set[asyncio.Future[Any]] = {task, ready}
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    event = await ready
    try:
        yield Running(domain, str(event["listen"]), str(event["join_listen"]), str(event["broker"]))
    finally:
        stop.set()
        await task


async def publish(
    operator: OperatorClient,
    domain: Domain,
    metadata: Metadata[Any],
    bundle: bytes | None,
    role: str = BASE_ROLE,
    holders: Sequence[str] = APPROVERS[:2],
) -> str:
    """Propose, sign with two approvers and publish; return the proposal's id."""
    files = {} if bundle is None else {target_path(role): bundle}
    proposal = await operator.propose(role=role, title="test", metadata=metadata.to_bytes(), files=files)
    for name in holders:
        await operator.add_signature(proposal.id, *domain.signature(name, metadata))
    await operator.publish(proposal.id)
    return str(proposal.id)
