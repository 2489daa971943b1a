"""Several control planes on one database, restarts, and crashes in the middle of a publication."""

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tuf.api.metadata import Targets

from control_plane.edge.operator_client import OperatorClient
from tests.support.control_plane import APPROVERS, Domain, Running, archive, publish, running
from tests.support.eventually import eventually
from trust.authoring import parse_metadata
from trust.edge.clock import SystemClock
from trust.edge.tuf_client import PolicyClient
from trust.errors import MeshError, Reason, StateError
from trust.verified import BASE_TARGET


class Folder:
    """A `FileSource` over a control plane's repository directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def fetch(self, path: str) -> Iterator[bytes]:
        """Yield one file."""
        yield (self._directory / path).read_bytes()


def repository(domain: Domain, name: str) -> Path:
    """Return where a control plane keeps what it serves."""
    return domain.config(name).data_dir / "repository"


async def propose_and_sign(operator: OperatorClient, domain: Domain, number: int) -> str:
    """Make a proposal that is ready to be published."""
    metadata = domain.base(None, archive(number))
    proposal = await operator.propose(
        role="targets", title=f"{number}", metadata=metadata.to_bytes(), files={BASE_TARGET: archive(number)}
    )
    for name in APPROVERS[:2]:
        await operator.add_signature(proposal.id, *domain.signature(name, metadata))
    return str(proposal.id)


async def attempt(operator: OperatorClient, proposal_id: str) -> bool:
    """Publish; return whether it was this one."""
    try:
        await operator.publish(proposal_id)
    except MeshError as error:
        assert error.reason is Reason.CONFLICT, error
        return False
    return True


async def test_of_two_control_planes_that_publish_at_once_exactly_one_wins(
    domain: Domain, shared_store: str, tmp_path: Path
) -> None:
    """Versions stay monotonic, both serve the same, and a node accepts it."""
    async with (
        running(domain, domain.config("cp-1", store=shared_store)) as one,
        running(domain, domain.config("cp-2", store=shared_store)) as two,
        one.operator() as first,
        two.operator() as second,
    ):
        ids = [await propose_and_sign(first, domain, number) for number in (1, 2, 3)]
        clients = [first, second, first, second, first, second]
        won = await asyncio.gather(*(attempt(c, ids[i % 3]) for i, c in enumerate(clients)))
        assert sum(won) == 1
        timestamps = [repository(domain, name) / "metadata" / "timestamp.json" for name in ("cp-1", "cp-2")]

        def same() -> bool:
            return all(t.exists() for t in timestamps) and len({t.read_bytes() for t in timestamps}) == 1

        await eventually(same, "both control planes serve the same lease")
        async with asyncio.timeout(60):  # what is on disk is in force a moment later
            while (await second.status()).role_versions != (await first.status()).role_versions:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert (await first.status()).role_versions["targets"] == 1
        for name in ("cp-1", "cp-2"):
            client = PolicyClient(tmp_path / f"node-{name}", domain.root, clock=SystemClock())
            policy = await asyncio.to_thread(client.refresh, Folder(repository(domain, name)))
            assert policy.versions == {"root": 1, "timestamp": 1, "snapshot": 1, "targets": 1}


async def test_two_control_planes_renew_one_lease(domain: Domain, shared_store: str) -> None:
    """Each renewal is one version; the two do not race each other to twice as many, nor apart."""
    configs = [domain.config(name, store=shared_store) for name in ("cp-1", "cp-2")]
    async with (
        running(domain, configs[0]) as one,
        running(domain, configs[1]) as two,
        one.operator() as first,
        two.operator() as second,
    ):
        bundle = archive(ttl_s=2)
        await publish(first, domain, domain.base(None, bundle), bundle)

        async def version(operator: OperatorClient) -> int:
            return int((await operator.status()).role_versions["timestamp"])

        async with asyncio.timeout(60):
            while min(await version(first), await version(second)) < 4:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert abs(await version(first) - await version(second)) <= 2
        assert not (await first.status()).problems
        assert not (await second.status()).problems


async def test_a_restarted_control_plane_serves_the_same_repository(domain: Domain, tmp_path: Path) -> None:
    """The store is the truth: a lost or damaged copy on disk is made again."""
    async with running(domain) as plane, plane.operator() as operator:
        await publish(operator, domain, domain.base(None, archive()), archive())
    files = repository(domain, "cp-1")
    target = next((files / "targets").iterdir())
    target.write_bytes(b"damaged")
    (files / "metadata" / "1.targets.json").unlink()
    async with running(domain) as plane, plane.operator() as operator:
        assert (await operator.status()).role_versions["targets"] == 1
        assert target.read_bytes() == archive()
        client = PolicyClient(tmp_path / "node", domain.root, clock=SystemClock())
        assert (await asyncio.to_thread(client.refresh, Folder(files))).base.version == 1
        changed = domain.base(domain.base(None, archive()), archive(2))
        await publish(operator, domain, changed, archive(2))
        assert (await asyncio.to_thread(client.refresh, Folder(files))).base.version == 2


async def test_one_data_directory_has_one_control_plane(domain: Domain) -> None:
    """A second process by mistake must not write where the first one does."""
    async with running(domain):
        with pytest.raises(StateError) as caught:
            async with running(domain):
                pass
    assert caught.value.reason is Reason.CONFLICT


async def test_a_store_of_another_trust_anchor_is_refused(
    domain: Domain, tmp_path: Path, store_url: str
) -> None:
    """A wrong `store` in the configuration must not mix two trust domains."""
    other = Domain.create(tmp_path / "other")
    async with running(domain, domain.config(store=store_url)):
        pass
    with pytest.raises(MeshError) as caught:
        async with running(other, other.config("cp-2", store=store_url)):
            pass
    assert caught.value.reason is Reason.CONFIG_INVALID


class _Process:
    """`egm control-plane run` as a real process."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        config = json.loads(domain.config().model_dump_json())
        self.path = domain.home / "cp.yaml"
        self.path.write_text(yaml.safe_dump(config))
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> Running:
        """Start it and wait until it is ready."""
        self.process = await asyncio.create_subprocess_exec(
            *(
                sys.executable,
                "-m",
                "control_plane.cli.main",
                "control-plane",
                "run",
                "-c",
                str(self.path),
                "--json",
            ),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert self.process.stdout is not None
        event = json.loads(await self.process.stdout.readline())
        return Running(self.domain, event["listen"], event["join_listen"], event["broker"])

    async def end(self, number: int) -> int:
        """Send a signal and wait."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        return await self.process.wait()


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "delays_ms",
    [(4, 25, 500), pytest.param((0, 4, 12, 25, 60, 500), marks=pytest.mark.lab)],
    ids=["some-moments", "all-moments"],
)  # each moment starts a control plane
async def test_kill_9_during_publication_leaves_the_repository_consistent(
    domain: Domain, tmp_path: Path, delays_ms: tuple[int, ...]
) -> None:
    """Whenever the process dies, the next start serves the old or the new policy, whole, and a node accepts it."""
    process = _Process(domain)
    client = PolicyClient(tmp_path / "node", domain.root, clock=SystemClock())
    files = repository(domain, "cp-1")
    previous = None
    published = 0
    for number, delay_ms in enumerate(delays_ms, start=1):
        plane = await process.start()
        async with plane.operator() as operator:
            versions = (await operator.status()).role_versions
            assert versions.get("targets", 0) >= published, "an acknowledged publication is never lost"
            published = versions.get("targets", 0)
            if published:
                previous = parse_metadata(
                    (files / "metadata" / f"{published}.targets.json").read_bytes(), Targets
                )
                policy = await asyncio.to_thread(client.refresh, Folder(files))
                assert policy.base.version == published
            metadata = domain.base(previous, archive(number))
            proposal = await operator.propose(
                role="targets", title="", metadata=metadata.to_bytes(), files={BASE_TARGET: archive(number)}
            )
            for name in APPROVERS[:2]:
                await operator.add_signature(proposal.id, *domain.signature(name, metadata))
            call = asyncio.create_task(operator.publish(proposal.id))
            await asyncio.sleep(delay_ms / 1000)
            await process.end(signal.SIGKILL)
            with contextlib.suppress(MeshError):
                published = (await call).proposal.version
    plane = await process.start()
    async with plane.operator() as operator:
        assert (await operator.status()).role_versions["targets"] >= published > 0
    policy = await asyncio.to_thread(client.refresh, Folder(files))
    assert policy.base.version >= published
    assert await process.end(signal.SIGTERM) == 0
