"""`egm incidents`, `egm review` and `egm policy replay` as a person runs them, against one control plane."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from control_plane.core.join_tokens import make_grant
from control_plane.edge.ca import CertificateAuthority, issue_to_directory
from control_plane.edge.mesh_file import MeshFile
from control_plane.edge.source_folder import write_folder
from control_plane.edge.store.database import Database
from control_plane.edge.tokens import StoredTokens
from egm.v1 import incidents_pb2, incidents_pb2_grpc
from egm.v1 import record_pb2 as pb
from egm.v1 import record_pb2_grpc as rpc
from tests.support.cli import Outcome as Said
from tests.support.cli import egm
from tests.support.control_plane import TRUST_DOMAIN, Domain, Running, publish, running, source
from tests.support.errors import outcome as refusal_of
from tests.support.records import callee_side, intent, outcome, refusal, workload
from trust.edge.clock import SystemClock
from trust.edge.keyfiles import create_key
from trust.policy.source import build
from trust.record import Intent, Outcome, Side, build_record
from trust.spiffe import SpiffeId

MALLORY = workload("mallory")
DETECTION = """
detection:
  respond: true
  protected: [payments]
  responses:
    - {on: severity high, do: [alert, quarantine], ttl_s: 600}
"""


def policy(key: str, *, mallory: bool = False) -> dict[str, bytes]:
    """Return a policy folder by which incidents are answered; `mallory` may pay under it, and alice may not."""
    files = source()
    extra = f"emergency_keys: {{responder: {key}}}\n{DETECTION}"
    files["bundle.yaml"] += extra.encode()
    if mallory:
        files["policies/payments.cedar"] = files["policies/payments.cedar"].replace(b"alice", b"mallory")
        files["tests/payments.yaml"] = files["tests/payments.yaml"].replace(b"alice", b"mallory")
    return files


@contextlib.asynccontextmanager
async def mesh(domain: Domain) -> AsyncIterator[tuple[Path, Running, str]]:
    """Run a control plane with a responder; give a mesh directory, the control plane and the responder's key."""
    directory = domain.home / "mesh"
    ca = CertificateAuthority.open(domain.directory / "ca")
    issue_to_directory(ca, SpiffeId.of(TRUST_DOMAIN, "operator", "olga"), directory / "operator")
    key_file = domain.home / "responder.pem"
    key = str(create_key(key_file, "responder", None).keyval["public"])
    async with running(domain, domain.config(responder_key=str(key_file))) as plane:
        bundle = build(policy(key))
        async with plane.operator() as operator:
            await publish(operator, domain, domain.base(None, bundle), bundle)
        root = str(domain.directory / "root.json")
        MeshFile(trust_domain=TRUST_DOMAIN, root=root, control_plane=plane.listen).save(directory)
        await ship(plane)
        yield directory, plane, key


async def ship(plane: Running) -> None:
    """Ship what node b recorded: alice pays three times, and mallory presents a spent permit."""
    now_ms = SystemClock().now_ms()
    calls = [callee_side(intent(n, wall_ms=now_ms - 10_000 + n), "b") for n in (1, 2, 3)]
    replay = refusal(4, reason="PERMIT_REPLAYED", caller=MALLORY, node="b", side=Side.INBOUND, wall_ms=now_ms)
    denied = refusal(
        5, reason="NO_POLICY_PERMITS", caller=MALLORY, node="b", side=Side.INBOUND, wall_ms=now_ms
    )
    records: list[Intent | Outcome] = [*calls, *map(outcome, calls), replay, denied]
    request = pb.ShipRequest(node="b", ledger="l1", records=list(map(build_record, records)))
    async with plane.channel("node", "b") as channel:
        async for _ in rpc.RecordsStub(channel).Ship(iter([request])):
            pass


async def cli(directory: Path, *arguments: str) -> Said:
    """Run one verb beside the control plane."""
    return await asyncio.to_thread(egm, *arguments, mesh=directory)


async def the_incident(directory: Path, plane: Running) -> dict[str, Any]:
    """Wait until something was done about the incident; return it as `show --json` has it."""
    async with plane.channel() as channel:
        stub = incidents_pb2_grpc.IncidentsStub(channel)
        for _ in range(200):
            for one in (await stub.ListIncidents(incidents_pb2.ListIncidentsRequest())).incidents:
                found = await stub.GetIncident(incidents_pb2.GetIncidentRequest(id=one.id))
                if all(done.fate != "planned" for done in found.responses):
                    shown: dict[str, Any] = (await cli(directory, "incidents", "show", one.id, "--json")).data
                    return shown
            await asyncio.sleep(0.1)
    raise AssertionError("no incident")


async def test_incident_from_records_to_quarantine_to_resolution(domain: Domain) -> None:
    """What a person sees at each step, and what is in effect meanwhile."""
    async with mesh(domain) as (directory, plane, _key):
        shown = await the_incident(directory, plane)
        incident = shown["incident"]
        assert (incident["rule"], incident["subject"]) == ("EGM-T002", MALLORY)
        assert [one["index"] for one in shown["evidence"]] == [6]
        alert, quarantine = shown["responses"]
        assert (alert["action"], alert["fate"]) == ("alert", "done")
        assert (quarantine["value"], quarantine["in_effect"]) == ("mallory", True)
        text = await cli(directory, "incidents", "show", incident["id"][:6])
        assert f"egm revoke lift {quarantine['directive'][:16]}" in text.stdout
        denials = (await cli(directory, "revoke", "list", "--json")).data["denials"]
        assert [(one["kind"], one["value"], one["key"]) for one in denials] == [
            ("workload", "mallory", "responder")
        ]
        listed = await cli(directory, "incidents", "list")
        assert listed.code == 1
        assert "permit replayed" in listed.stdout
        alerts = await cli(directory, "audit", "--json")
        assert {entry["action"] for entry in alerts.data["entries"]} >= {"incident", "respond"}

        assert (await cli(directory, "incidents", "resolve", incident["id"], "--why", " ")).code == 2
        closed = await cli(directory, "incidents", "resolve", incident["id"], "--why", "a drill", "--json")
        assert closed.data["resolved_by"] == f"spiffe://{TRUST_DOMAIN}/operator/olga"
        again = await cli(directory, "incidents", "resolve", incident["id"], "--why", "mine")
        assert (again.code, "a drill" in again.stderr) == (2, True)
        assert (await cli(directory, "incidents", "list")).code == 0
        everything = await cli(directory, "incidents", "list", "--state", "all", "--json")
        assert [one["state"] for one in everything.data["incidents"]] == ["resolved"]
        wrong = await cli(directory, "incidents", "show", "zz")
        assert (wrong.code, "egm incidents list" in wrong.stderr) == (2, True)
        async with plane.channel() as channel:
            operator = incidents_pb2_grpc.IncidentsStub(channel)
            for values, words in (
                ({"rule": "EGM-X"}, "EGM-T002"),
                ({"min_severity": "huge"}, "critical"),
                ({"state": "maybe"}, "resolved"),
                ({"cursor": "x"}, "not a cursor"),
                ({"limit": 100_000}, "limit is"),
                ({"subject": "\0"}, "NUL"),
            ):
                _, detail, why = await refusal_of(
                    operator.ListIncidents(incidents_pb2.ListIncidentsRequest(**values))
                )
                assert (why["reason"], words in detail) == ("INPUT_INVALID", True)
            _, detail, why = await refusal_of(operator.GetIncident(incidents_pb2.GetIncidentRequest(id="0")))
            assert why["reason"] == "NOT_FOUND"
        async with plane.channel("node", "b") as channel:
            stub = incidents_pb2_grpc.IncidentsStub(channel)
            _, _, why = await refusal_of(stub.ListIncidents(incidents_pb2.ListIncidentsRequest()))
            assert why["reason"] == "NOT_AUTHORIZED"


async def test_node_that_makes_up_calls_of_others_accuses_nobody_but_itself(domain: Domain) -> None:
    """By policy any serious incident is answered with a quarantine, and this node knows how to look like one."""
    async with mesh(domain) as (directory, plane, _key):
        store = Database(domain.config().store_url())
        tokens = StoredTokens(store)
        await tokens.create("0" * 64, make_grant("liar", ["evil"]), expires_ms=2**62, now_ms=1)
        await tokens.consume("0" * 64, SystemClock().now_ms())
        await store.close()
        now_ms = SystemClock().now_ms()
        made_up: list[Intent | Outcome] = [
            *(refusal(n, method=f"a.B/M{n}", node="liar", wall_ms=now_ms) for n in range(10, 20)),
            refusal(30, reason="PERMIT_REPLAYED", node="liar", side=Side.INBOUND, wall_ms=now_ms),
            refusal(31, caller=workload("evil"), node="liar", wall_ms=now_ms),
        ]
        request = pb.ShipRequest(node="liar", ledger="l1", records=list(map(build_record, made_up)))
        async with plane.channel("node", "liar") as channel:
            async for _ in rpc.RecordsStub(channel).Ship(iter([request])):
                pass
        found = []
        async with plane.channel() as channel:
            stub = incidents_pb2_grpc.IncidentsStub(channel)
            for _ in range(200):
                found = list((await stub.ListIncidents(incidents_pb2.ListIncidentsRequest())).incidents)
                if len(found) > 1:
                    break
                await asyncio.sleep(0.1)
        liar = f"spiffe://{TRUST_DOMAIN}/node/liar"
        assert {(one.rule, one.subject) for one in found} == {("EGM-T002", MALLORY), ("EGM-T011", liar)}
        own = next(one for one in found if one.rule == "EGM-T011")
        assert "liar records calls" in own.text and "not enrolled" in own.text
        shown = (await cli(directory, "incidents", "show", own.id, "--json")).data
        assert {(one["node"], one["ledger"]) for one in shown["evidence"]} == {("liar", "l1")}
        # a node carries the mesh: what an operator does about it is said in the docs
        assert {(one["action"], one["fate"]) for one in shown["responses"]} == {
            ("alert", "done"),
            ("quarantine", "nobody"),
        }
        denials = (await cli(directory, "revoke", "list", "--json")).data["denials"]
        assert "alice" not in {one["value"] for one in denials}
        sums = (await cli(directory, "analytics", "--json")).data
        assert not [g for g in sums["groups"] if g["caller"] == workload("alice") and g["calls"] > 3]
        assert [g["calls"] for g in sums["groups"] if g["caller"] == workload("evil")] == [1]


async def test_a_person_can_restrict_by_hand_what_a_rule_would_restrict(domain: Domain) -> None:
    """The same directive, signed with an emergency key; a rate that cannot be is refused before anything is signed."""
    async with mesh(domain) as (directory, _plane, _key):
        key = ["--key", str(domain.home / "responder.pem"), "--reason", "too keen"]
        done = await cli(directory, "revoke", "throttle", "alice", "10/m", *key, "--json")
        assert done.code == 0, done.stderr
        assert (done.data["kind"], done.data["value"]) == ("throttle", "alice 10/m")
        asked = await cli(
            directory, "revoke", "approval", f"spiffe://{TRUST_DOMAIN}/workload/alice", "1 of ops", *key
        )
        assert asked.stdout.startswith("restricted: approval alice 1 of ops until")
        listed = (await cli(directory, "revoke", "list", "--json")).data["denials"]
        assert {(one["kind"], one["value"]) for one in listed} >= {
            ("throttle", "alice 10/m"),
            ("approval", "alice 1 of ops"),
        }
        wrong = await cli(directory, "revoke", "throttle", "alice", "10/year", *key)
        assert (wrong.code, "alice 10/m" in wrong.stderr) == (2, True)


async def test_past_executions_under_other_policies(domain: Domain) -> None:
    """A folder, a version, a proposal; and the approver who reviews the proposal sees it unasked."""
    async with mesh(domain) as (directory, _plane, key):
        same = await cli(directory, "review", "--json")
        assert same.code == 0, same.stderr
        # the replayed permit was refused for another reason than policy
        assert (same.data["counts"]["unchanged"], same.data["counts"]["not-by-policy"]) == (4, 1)

        folder = domain.home / "other"
        write_folder(folder, policy(key, mallory=True))
        other = await cli(directory, "review", "--bundle", str(folder), "--json")
        assert other.code == 1
        assert [(g["change"], g["caller"], g["count"]) for g in other.data["groups"]] == [
            ("newly-denied", workload("alice"), 3),
            ("newly-allowed", MALLORY, 1),
        ]
        proposed = await cli(directory, "policy", "propose", str(folder), "--json")
        assert proposed.code == 0, proposed.stderr
        replayed = await cli(directory, "policy", "replay", proposed.data["id"], "--json")
        assert replayed.code == 1
        assert [g["change"] for g in replayed.data["groups"]] == ["newly-denied", "newly-allowed"]
        reviewed = await cli(directory, "policy", "review", proposed.data["id"])
        assert "newly denied (3):" in reviewed.stdout
        version = await cli(directory, "review", "--bundle", "1", "--json")
        assert version.code == 0, version.stderr
        refused = await cli(directory, "review", "--bundle", "nowhere", "--until", "1d")
        assert (refused.code, "egm policy status" in refused.stderr) == (2, True)
