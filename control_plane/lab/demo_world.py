"""The mesh of the demonstration: a lab mesh, its sample services, and the few things that steps do with them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
import yaml

from control_plane.edge import operator_client
from control_plane.edge.operator_client import OperatorClient
from control_plane.edge.release import Release
from control_plane.edge.source_folder import read_folder
from control_plane.lab import sample
from control_plane.lab.bootstrap import Say, deny_all_source, in_force
from control_plane.lab.calls import Outcome
from control_plane.lab.harness import LabMesh
from control_plane.lab.mesh import WORKLOADS_NODE, DevelopmentMesh
from control_plane.lab.plan import LabPlan, Node, Service
from control_plane.lab.states import Status
from trust.attestation.roster import Roster
from trust.bundle import DESCRIPTORS, read_bundle
from trust.edge.keyfiles import load_signer, passphrase_source
from trust.errors import InputError, Reason
from trust.policy.source import SETTINGS, build
from trust.verified import BASE_ROLE

POLICY_FOLDER: Final = Path(__file__).parent / "demo_policy"
TRUST_DOMAIN: Final = "mesh.local"
TRANSFER: Final = "egm.sample.v1.Payments/Transfer"
BALANCE: Final = "egm.sample.v1.Accounts/GetBalance"
ALICE_NODE: Final = WORKLOADS_NODE  # the sidecar of alice and mallory
WAIT_S: Final = 20.0
POLL_S: Final = 0.1
# short, as the lease of demo_policy is: what ends in a partition ends while one watches
ATTESTATION_TTL_S: Final = 12


class CheckError(Exception):
    """What was seen is not what was promised."""


def expect(condition: bool, what: str) -> None:
    """Go on only if `condition` holds; `what` says what was expected and what was seen.

    Raises:
        CheckError: it does not.
    """
    if not condition:
        raise CheckError(f"expected {what}")


class World:
    """Everything a step needs, and what earlier steps left for later ones."""

    def __init__(self, directory: Path, say: Say) -> None:
        """Describe a mesh below `directory`; nothing is started.

        Raises:
            InputError: CONFLICT, if there is something in the directory already.
        """
        if directory.is_dir() and any(directory.iterdir()):
            raise InputError(
                Reason.CONFLICT,
                f"{directory} is not empty, and the tour ends with a node locked out of its mesh; "
                "give a new directory with --dir",
            )
        self.directory, self.say = directory, say
        self.payments = sample.Payments()
        self.proposal_id = ""
        self.meanwhile: Any = None  # the load that runs on the majority's side of a partition
        self._server: grpc.aio.Server | None = None
        self._lab: LabMesh | None = None

    # life

    async def start(self) -> None:
        """Start services and mesh, with a first policy that allows nothing.

        Raises:
            MeshError: what could not be started, and where its log is.
        """
        self._server, address = await sample.serve(payments=self.payments)
        services = {"payments": "egm.sample.v1.Payments", "accounts": "egm.sample.v1.Accounts"}
        nodes = {
            name: Node({name: Service(address=address, grpc_services=[one])})
            for name, one in services.items()
        }
        plan = LabPlan(
            {**nodes, ALICE_NODE: Node(workloads=("alice", "mallory"))},
            policy=deny_all_source(TRUST_DOMAIN, list(services), 4),
            trust_domain=TRUST_DOMAIN,
        )
        lab = LabMesh(plan, self.directory)
        await lab.start()
        self._lab = lab

    async def close(self) -> None:
        """End every process."""
        if self._lab is not None:
            await self._lab.close()
        if self._server is not None:
            await self._server.stop(None)

    @property
    def lab(self) -> LabMesh:
        """The running mesh, and what can be done to it."""
        if self._lab is None:
            raise CheckError("the mesh is not running")
        return self._lab

    @property
    def mesh(self) -> DevelopmentMesh:
        """The same mesh, as operators know it."""
        return self.lab.fleet.running

    # calls

    async def transfer(self, caller: str, amount: int, *, twin: bool = False) -> Outcome:
        """Call the payments service as `caller`."""
        request = {"to_account": "42", "amount": amount}
        return await self.lab.call(caller, TRANSFER, request, to="payments", timeout_s=WAIT_S, twin=twin)

    async def executed(self, caller: str, amount: int, *, within_s: float = 0.0) -> str:
        """Expect that a transfer is executed; return the id that the service gave it."""
        request = {"to_account": "42", "amount": amount}
        found = await self.lab.call(
            caller, TRANSFER, request, to="payments", timeout_s=WAIT_S, within_s=within_s
        )
        expect(found.ok, f"that {caller} may transfer {amount}, got {found}")
        return str(found.reply["id"])

    async def refused(self, caller: str, amount: int, reason: Reason, *, twin: bool = False) -> str:
        """Expect that a transfer is refused with `reason`, and not executed; return what the caller was told."""
        before = self.payments.transfers
        found = await self.transfer(caller, amount, twin=twin)
        expect(not found.ok and found.reason == reason.value, f"{reason}, got {found}")
        expect(self.payments.transfers == before, "that the service was not reached, but it was")
        return told(found.detail)

    # policy

    @asynccontextmanager
    async def release(self) -> AsyncIterator[tuple[Release, OperatorClient]]:
        """Act as an operator who proposes and publishes."""
        async with operator_client.operator(self.mesh.mesh, self.directory) as client:
            yield Release(self.mesh.mesh, self.directory, client), client

    async def sign(self, release: Release, approver: str) -> None:
        """Review the proposal and sign it with an approver's own key."""
        key = Path(self.mesh.mesh.approvers[approver])
        signer = await asyncio.to_thread(load_signer, str(key), passphrase_source(key))
        await release.sign(await release.review(self.proposal_id), signer)

    def archive(self, *, level: int | None = None, files: Mapping[str, bytes] | None = None) -> bytes:
        """Build the policy of the demonstration; at level 5 with short-lived attestation by all three nodes."""
        source = dict(policy_files() if files is None else files)
        if level == 5:
            source[SETTINGS] += b"\n" + _attestation(self.mesh.roster())
        return build({**source, DESCRIPTORS: sample.descriptors()}, level_override=level)

    async def roster(self) -> tuple[Roster, bytes]:
        """Return the witnesses that the policy in force names, and its base bundle; signatures verified."""
        policy = (await in_force(self.mesh)).policy
        if policy is None:
            raise CheckError("no policy is in force")
        mesh = read_bundle(policy.base.data, role=BASE_ROLE).mesh
        roster = None if mesh is None else mesh.roster()
        if roster is None:
            raise CheckError("the policy in force names no witnesses")
        return roster, policy.base.data

    # nodes

    async def wait(
        self, wanted: Callable[[Mapping[str, Status]], object], within_s: float = WAIT_S
    ) -> Mapping[str, Status]:
        """Wait until the nodes are as wanted; return what they say of themselves then."""
        return await self.lab.wait_until(wanted, within_s)


def policy_files() -> dict[str, bytes]:
    """Return the policy folder of the demonstration."""
    return dict(read_folder(POLICY_FOLDER))


def standing(status: Status) -> str:
    """Return how a node stands with its witnesses: ATTESTED, NOT_ATTESTED, …; "" when it says nothing."""
    return str(status.get("attestation", {}).get("standing", ""))


def told(detail: str) -> str:
    """Return a refusal without the name of the program in front."""
    return detail.removeprefix("egm: ")


def lines(*items: str) -> str:
    """Return a step's account, a line each."""
    return "\n".join(items)


def listed(names: Sequence[str]) -> str:
    """Return names as a sentence has them."""
    return ", ".join(names) or "nobody"


def _attestation(roster: Mapping[str, object]) -> bytes:
    return yaml.safe_dump({"attestation": {**roster, "ttl_s": ATTESTATION_TTL_S}}).encode()
