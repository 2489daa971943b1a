"""The Workload API source against a server that speaks the real protocol."""

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from spiffe import WorkloadApiClient
from spiffe._proto import workload_pb2

from tests.support.eventually import eventually
from tests.support.identity import TRUST_DOMAIN, ShiftedClock, make_ca, make_svid, member
from tests.support.workload_api import WorkloadApi, workload_api
from trust.edge.identity_workload_api import WorkloadApiIdentity
from trust.edge.jwt_bundles import verifier
from trust.errors import EvidenceError, Reason, StateError
from trust.spiffe import SpiffeId

NODE, ALICE = member("node", "a"), member("workload", "alice")


@pytest.fixture
def socket() -> Iterator[Path]:
    """A path short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="egm-") as directory:
        yield Path(directory) / "agent.sock"


def source_of(socket: Path, *ids: SpiffeId, jwt: bool = False) -> WorkloadApiIdentity:
    return WorkloadApiIdentity(
        f"unix://{socket}", ids, trust_domain=TRUST_DOMAIN, clock=ShiftedClock(), jwt=jwt
    )


async def test_every_wanted_identity_arrives_and_rotates(tmp_path: Path, socket: Path) -> None:
    """A push replaces certificate and key; subscribers hear of it."""
    ca = make_ca(tmp_path)
    async with workload_api(socket) as api:
        await api.set_x509([make_svid(ca, NODE), make_svid(ca, ALICE)], ca.anchors_pem())
        source = source_of(socket, NODE, ALICE)
        await source.start()
        first = source.svid(ALICE)
        rotated = asyncio.Event()
        source.subscribe(rotated.set)
        await api.set_x509([make_svid(ca, NODE), make_svid(ca, ALICE)], ca.anchors_pem())
        await asyncio.wait_for(rotated.wait(), 60)
        assert source.svid(ALICE).key_pem != first.key_pem
        assert source.svid(NODE).spiffe_id == NODE
        await source.close()


async def test_a_new_ca_is_followed(tmp_path: Path, socket: Path) -> None:
    """The anchors are the bundle of the last push."""
    old, new = make_ca(tmp_path / "old"), make_ca(tmp_path / "new")
    async with workload_api(socket) as api:
        await api.set_x509([make_svid(old, NODE)], old.anchors_pem())
        source = source_of(socket, NODE)
        await source.start()
        assert source.anchors_pem() == old.anchors_pem()
        await api.set_x509([make_svid(new, NODE)], new.anchors_pem() + old.anchors_pem())
        await eventually(lambda: source.anchors_pem().count(b"BEGIN") == 2, "the update arrives")
        await source.close()


async def test_an_identity_that_is_withdrawn_is_gone(tmp_path: Path, socket: Path) -> None:
    """Deleting the registration entry ends the right to the name at once, not at expiry."""
    ca = make_ca(tmp_path)
    async with workload_api(socket) as api:
        await api.set_x509([make_svid(ca, NODE), make_svid(ca, ALICE)], ca.anchors_pem())
        source = source_of(socket, NODE, ALICE)
        await source.start()
        told = asyncio.Event()
        source.subscribe(told.set)
        await api.set_x509([make_svid(ca, NODE)], ca.anchors_pem())
        await asyncio.wait_for(told.wait(), 60)
        with pytest.raises(StateError) as gone:
            source.svid(ALICE)
        assert gone.value.reason is Reason.IDENTITY_UNAVAILABLE
        assert source.svid(NODE).spiffe_id == NODE
        await source.close()


@pytest.mark.parametrize("case", ["wrong bundle", "garbage"])
async def test_an_unusable_update_changes_nothing(tmp_path: Path, socket: Path, case: str) -> None:
    """A certificate that does not lead to the pushed bundle, or is none, is not adopted; later ones are."""
    ca, other = make_ca(tmp_path / "ca"), make_ca(tmp_path / "other")
    async with workload_api(socket) as api:
        await api.set_x509([make_svid(ca, NODE)], ca.anchors_pem())
        source = source_of(socket, NODE)
        await source.start()
        held = source.svid(NODE)
        if case == "wrong bundle":
            await api.set_x509([make_svid(ca, NODE)], other.anchors_pem())
        else:
            await api.set_raw(
                workload_pb2.X509SVIDResponse(svids=[workload_pb2.X509SVID(x509_svid=b"\x30\x01")])
            )
        await asyncio.sleep(0.1)
        assert source.svid(NODE) == held
        await api.set_x509([make_svid(ca, NODE)], ca.anchors_pem())
        await eventually(
            lambda: source.svid(NODE) != held, "the update arrives"
        )  # also after the library ended its stream
        await source.close()


async def test_an_agent_that_restarts_is_found_again(tmp_path: Path, socket: Path) -> None:
    """The held certificate stays in use meanwhile."""
    ca = make_ca(tmp_path)
    async with workload_api(socket) as api:
        await api.set_x509([make_svid(ca, NODE)], ca.anchors_pem())
        source = source_of(socket, NODE)
        await source.start()
        held = source.svid(NODE)
        await api.drop_streams()
        assert source.svid(NODE) == held
        await eventually(lambda: api.streams == 1, "the update arrives")
        await api.set_x509([make_svid(ca, NODE)], ca.anchors_pem())
        await eventually(lambda: source.svid(NODE) != held, "the update arrives")
        await source.close()


async def test_an_agent_that_starts_later_is_waited_for(tmp_path: Path, socket: Path) -> None:
    """A sidecar may start before the agent's socket exists."""
    ca = make_ca(tmp_path)
    source = source_of(socket, NODE)
    starting = asyncio.create_task(source.start())
    await asyncio.sleep(0.05)
    async with workload_api(socket) as api:
        await api.set_x509([make_svid(ca, NODE)], ca.anchors_pem())
        await starting
        assert source.svid(NODE).spiffe_id == NODE
        await source.close()


async def test_start_names_the_identity_that_is_missing(tmp_path: Path, socket: Path) -> None:
    """Somebody must be able to see which registration entry to create."""
    ca = make_ca(tmp_path)
    async with workload_api(socket) as api:
        await api.set_x509([make_svid(ca, NODE)], ca.anchors_pem())
        source = source_of(socket, NODE, ALICE)
        with pytest.raises(StateError, match=r"spiffe://mesh\.test/workload/alice"):
            await source.start(timeout_s=0.5)


async def test_jwt_svids_verify_with_the_pushed_bundles_and_follow_their_rotation(
    tmp_path: Path, socket: Path
) -> None:
    """A token of a removed key stops verifying; one of the new key verifies."""
    ca = make_ca(tmp_path)
    async with workload_api(socket) as api:
        await api.set_x509([make_svid(ca, NODE)], ca.anchors_pem())
        await api.rotate_jwt(TRUST_DOMAIN, "k1")
        source = source_of(socket, NODE, jwt=True)
        await source.start()
        verify, clock = verifier(source, "payments"), ShiftedClock()
        old = api.sign(str(ALICE), ["payments"])
        assert verify(old, clock.now_ms()) == ALICE
        await api.rotate_jwt(TRUST_DOMAIN, "k2")
        await eventually(lambda: "k2" in source.jwt_keys()[TRUST_DOMAIN], "the update arrives")
        with pytest.raises(EvidenceError) as refused:
            verify(old, clock.now_ms())
        assert refused.value.reason is Reason.CALLER_TOKEN_INVALID
        assert verify(api.sign(str(ALICE), ["payments"]), clock.now_ms()) == ALICE
        await source.close()


async def test_the_server_speaks_the_protocol_that_the_library_expects(tmp_path: Path, socket: Path) -> None:
    """The stand-in is checked with the library's own one-shot calls."""
    ca = make_ca(tmp_path)
    async with workload_api(socket) as api:
        await api.set_x509([make_svid(ca, ALICE)], ca.anchors_pem())
        await api.rotate_jwt(TRUST_DOMAIN, "k1")

        def ask() -> tuple[str, str, int]:
            with WorkloadApiClient(f"unix://{socket}", default_timeout=10) as client:
                token = client.fetch_jwt_svid({"payments"})
                bundles = client.fetch_x509_bundles()
                return str(client.fetch_x509_svid().spiffe_id), str(token.spiffe_id), len(bundles.bundles)

        assert await asyncio.to_thread(ask) == (str(ALICE), str(ALICE), 1)
        assert isinstance(api, WorkloadApi)
