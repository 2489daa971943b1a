"""Attestation with a real TPM 2.0 in software: a node whose TPM the policy pins is vouched for by its quotes alone."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.config_tpm import Tpm
from sidecar.core.trust_state import Standing
from sidecar.edge import measurer
from sidecar.edge.tpm import ToolsTpm
from tests.integration.sidecar.test_level_five import settled
from tests.support.attested_mesh import Attested, attested, standing
from tests.support.cli import Outcome, egm
from tests.support.eventually import eventually
from tests.support.sidecar_mesh import Mesh
from tests.support.sidecars import RunningSidecar
from tests.support.swtpm import ECDSA_KEY, RSASSA_KEY, UNRESTRICTED_KEY, SoftTpm, running
from trust.attestation.statement import quoted_digest
from trust.attestation.tpm import Quote, TpmReference, key_text, read_key, verify_quote
from trust.errors import Reason, StateError

PCR = 16  # of a platform's debugging: any program may extend it
OTHER_DIGEST = b"\x07" * 32


@pytest.fixture(scope="module")
def tpm() -> Iterator[SoftTpm]:
    """One TPM with its keys."""
    with running() as made:
        yield made


class Machine(Attested):
    """The mesh of three, in which node a has a TPM."""

    def __init__(self, mesh: Mesh, tpm: SoftTpm) -> None:
        super().__init__(mesh, ttl_s=3)
        self.tpm, self.key = tpm, ECDSA_KEY

    def config(self, name: str) -> dict[str, Any]:
        """Return the configuration of a node."""
        made = super().config(name)
        if name == "a" and self.key:
            made["tpm"] = {"device": self.tpm.device, "ak_handle": self.key, "pcrs": [0, PCR]}
        return made

    def measured(self, folder: Path) -> dict[str, Any]:
        """Return what `egm sidecar measure` proposes on node a."""
        path = folder / "a.yaml"
        path.write_text(yaml.safe_dump(self.config("a")))
        done = egm("sidecar", "measure", "-c", str(path))
        assert done.code == 0, done.stderr
        values: dict[str, Any] = json.loads(done.stdout)
        return values

    def checked(self, folder: Path, key: str) -> Outcome:
        """Return what `egm sidecar check` says on node a with this key."""
        path = folder / "checked.yaml"
        path.write_text(
            yaml.safe_dump(self.config("a") | {"tpm": {"device": self.tpm.device, "ak_handle": key}})
        )
        return egm("sidecar", "check", "-c", str(path))

    async def sign(self, values: dict[str, Any]) -> None:
        """Publish a policy with these reference values."""
        await self.publish(files={"reference_values.json": json.dumps(values).encode()})

    @asynccontextmanager
    async def refused(self, told: str, b: RunningSidecar) -> AsyncIterator[RunningSidecar]:
        """Run node a until witness b refuses it so, and it is not attested; b itself stays it."""
        async with self.running("a") as nodes:
            a = nodes["a"]
            await refused(a, told)
            await attested(b)
            yield a


async def refused(node: RunningSidecar, told: str) -> None:
    """Wait until witness b refuses `node` for its measurement, and nobody vouches for it any more."""

    def why() -> str:
        return node.sidecar.view.attestation().not_vouched.get("b", "")

    await eventually(lambda: "MEASUREMENT_REFUSED" in why() and told in why(), f"refused: {told}")
    await eventually(lambda: standing(node) is Standing.NOT_ATTESTED, "nobody vouches")


async def test_node_is_vouched_for_by_quotes_of_its_own_tpm_over_what_was_signed(
    mesh: Mesh, tpm: SoftTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From `egm sidecar measure` to a call; then something else is loaded, signed, and every false quote refused."""
    world = Machine(mesh, tpm)
    values = world.measured(tmp_path)
    # nodes start one after another; a file of the sources that changes meanwhile is not what is tested
    distribution = bytes.fromhex(values["distributions"][0]["sha256"])
    monkeypatch.setattr(measurer, "installed_digest", lambda _packages: distribution)
    assert set(values["tpm"]["a"]["pcrs"]) == {"0", str(PCR)}
    assert world.checked(tmp_path, ECDSA_KEY).code == 0
    wrong = world.checked(tmp_path, "0x81010099")
    assert (wrong.code, "key 0x81010099" in wrong.stderr) == (2, True)
    await world.sign(values)
    async with world.running("b", "c") as others:
        b = others["b"]
        async with world.running("a") as nodes:
            a = nodes["a"]
            await attested(a, *others.values())
            assert await settled(a.outbound) == b"\0"
            credential = a.sidecar.trust.own()
            assert credential is not None
            said = credential.evidence.statement
            assert said.quote is not None
            verify_quote(said.quote, [read_key(values["tpm"]["a"]["keys"][0])], quoted_digest(said))
            tpm.extend(PCR, OTHER_DIGEST)
            await refused(a, f"PCR {PCR} of node a is")
            values["tpm"] = (await asyncio.to_thread(world.measured, tmp_path))["tpm"]
            await world.sign(values)
            await attested(a)
        with monkeypatch.context() as patch:
            patch.setattr(ToolsTpm, "quote", lambda _self, _extra, _pcrs: said.quote)
            await lied(world, b, "another statement")
        world.key = RSASSA_KEY
        await lied(world, b, "not signed by an attestation key that the policy pins")
        world.key = ""
        await lied(world, b, "sent no TPM quote")


async def lied(world: Machine, b: RunningSidecar, told: str) -> None:
    """Start node a, which gives no good quote; it must be refused and end."""
    async with world.refused(told, b):
        pass


@pytest.mark.parametrize("handle", [ECDSA_KEY, RSASSA_KEY], ids=["ecdsa", "rsassa"])
def test_quotes_of_each_kind_of_key_verify(tpm: SoftTpm, handle: str) -> None:
    """What is proposed for signing accepts the next quote, and no quote over other data."""
    asked = ToolsTpm(Tpm(device=tpm.device, ak_handle=handle, pcrs=(7, 0)))
    reference = asked.reference()
    assert reference.selected == (0, 7)
    reference.check("a", asked.quote(bytes(32), reference.selected), bytes(32))
    with pytest.raises(ValueError, match="another statement"):
        verify_quote(asked.quote(bytes(32), (0,)), [asked.key()], b"\x01" * 32)


def test_key_that_would_sign_made_up_quotes_is_not_proposed(tpm: SoftTpm) -> None:
    """The TPM signs a copied quote with an unrestricted key, and refuses it with the attestation key."""
    asked = ToolsTpm(Tpm(device=tpm.device, ak_handle=ECDSA_KEY))
    copied: Quote = asked.quote(bytes(32), (0,))
    (tpm.folder / "copied").write_bytes(copied.attest)
    sign: Sequence[str] = ("-g", "sha256", "-o", "signed", "copied")
    assert tpm.tool("sign", "-c", UNRESTRICTED_KEY, *sign, check=False).returncode == 0
    assert tpm.tool("sign", "-c", ECDSA_KEY, *sign, check=False).returncode != 0
    with pytest.raises(StateError) as error:
        ToolsTpm(Tpm(device=tpm.device, ak_handle=UNRESTRICTED_KEY)).reference()
    assert error.value.reason is Reason.MEASUREMENT_REFUSED
    assert "lacks restricted" in error.value.detail


def test_handle_without_a_key_and_tpm_that_is_gone_are_named(tpm: SoftTpm, tmp_path: Path) -> None:
    """So that a person knows which of the two settings to change."""
    for device, handle in ((tpm.device, "0x81010099"), (f"swtpm:path={tmp_path}/gone", ECDSA_KEY)):
        with pytest.raises(StateError) as error:
            ToolsTpm(Tpm(device=device, ak_handle=handle)).key()
        assert error.value.reason is Reason.MEASUREMENT_REFUSED
        assert f"{device}, key {handle}: " in error.value.detail


def test_reference_is_the_public_key_that_the_tools_export(tpm: SoftTpm) -> None:
    """Anybody can compare what they sign with what the TPM itself says."""
    made: TpmReference = ToolsTpm(Tpm(device=tpm.device, ak_handle=ECDSA_KEY)).reference()
    tpm.tool("readpublic", "-Q", "-c", ECDSA_KEY, "-f", "pem", "-o", "pem")
    exported = (tpm.folder / "pem").read_text()
    assert "".join(exported.splitlines()[1:-1]) == made.keys[0] == key_text(read_key(made.keys[0]))
