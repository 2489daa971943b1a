"""Alerts and analytics of a real control plane: records in, sums and messages out, across a restart."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from control_plane.config import ControlPlaneConfig, WebhookConfig
from control_plane.edge.ca import CertificateAuthority, issue_to_directory
from control_plane.edge.driver import check
from control_plane.edge.mesh_file import MeshFile
from control_plane.edge.webhooks import Webhooks, delivery_id
from egm.v1 import analytics_pb2 as pb
from egm.v1 import analytics_pb2_grpc as rpc
from egm.v1 import record_pb2, record_pb2_grpc
from tests.support.cli import Outcome, egm
from tests.support.control_plane import TRUST_DOMAIN, Domain, Running, publish, running, source
from tests.support.errors import outcome as refusal_of
from tests.support.records import callee_side, execution_id, intent, outcome, refusal
from tests.support.webhook import SECRET, Receiver, receiver
from trust import limits
from trust.alerting import DELIVERY_HEADER, SIGNATURE_HEADER, topic, verify
from trust.edge.clock import SystemClock
from trust.edge.mqtt import BrokerUrl, MqttListener
from trust.errors import InputError, Reason
from trust.policy.source import build
from trust.record import Intent, build_record
from trust.record import Outcome as Ended
from trust.spiffe import SpiffeId

RULES = b"""
alerts:
  refused: {when: refusals, above: 2, window_s: 60, service: payments, severity: critical, to: [webhook:oncall, mqtt]}
  busy: {when: calls, above: 4, window_s: 60, to: [webhook:missing]}
"""


def now_records(first: int, refusals: int) -> list[Intent | Ended]:
    """Two calls that both sides recorded as node a's, and refusals, all of now."""
    now_ms = int(time.time() * 1000)

    def at(number: int) -> dict[str, Any]:
        return {"execution_id": execution_id(number, now_ms), "wall_ms": now_ms}

    records: list[Intent | Ended] = []
    for number in (first, first + 1):
        outbound = intent(number, **at(number), root_id=execution_id(number, now_ms))
        inbound = callee_side(outbound, "a")
        records += [outbound, inbound, outcome(outbound), outcome(inbound)]
    records += [
        refusal(n, **at(n), root_id=execution_id(n, now_ms)) for n in range(first + 2, first + 2 + refusals)
    ]
    return records


async def ship(plane: Running, records: list[Intent | Ended], at: int = 0) -> None:
    """Ship records of node a."""
    request = record_pb2.ShipRequest(
        node="a", ledger="l1", first_index=at, records=list(map(build_record, records))
    )
    async with plane.channel("node", "a") as channel:
        stub = record_pb2_grpc.RecordsStub(channel)
        assert [ack.next_index async for ack in stub.Ship(iter([request]))] == [at + len(records)]


async def until(ready: Callable[[], Any], what: str) -> Any:
    """Wait until `ready` returns something true."""
    for _ in range(600):
        if found := ready():
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(f"never: {what}")


def book(domain: Domain, plane: Running) -> Path:
    """Write a mesh directory that names the control plane, with an operator's credentials."""
    directory = domain.home / "mesh"
    operator = SpiffeId.of(TRUST_DOMAIN, "operator", "olga")
    issue_to_directory(CertificateAuthority.open(domain.directory / "ca"), operator, directory / "operator")
    root = str(domain.directory / "root.json")
    MeshFile(trust_domain=TRUST_DOMAIN, root=root, control_plane=plane.listen).save(directory)
    return directory


async def run(directory: Path, *arguments: str) -> Outcome:
    """Run one command."""
    return await asyncio.to_thread(egm, *arguments, mesh=directory)


@contextlib.asynccontextmanager
async def heard(url: str) -> AsyncIterator[list[dict[str, Any]]]:
    """Listen to alerts at a broker."""
    found: list[dict[str, Any]] = []
    listener = MqttListener(
        BrokerUrl.parse(url),
        TRUST_DOMAIN,
        lambda data: found.append(json.loads(data)),
        topic=topic(TRUST_DOMAIN),
    )
    task = asyncio.create_task(listener.run())
    try:
        await until(lambda: listener.connected, "a connection to the broker")
        yield found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def config(domain: Domain, hook: Receiver) -> ControlPlaneConfig:
    """Return a control plane with a broker and one webhook."""
    oncall = WebhookConfig(url=hook.url, secret_file=hook.secret_file, ca=hook.ca)
    return domain.config(broker="embedded", webhooks={"oncall": oncall})


async def test_refusals_become_a_signed_message_once_and_survive_a_restart(
    domain: Domain, tmp_path: Path
) -> None:
    """The whole way: records, sums, rule, webhook and MQTT, acknowledgement, restart; and what operators see of it."""
    with receiver(tmp_path / "hook") as hook:
        hook.answers = [503]  # the first attempt fails: it is tried again
        async with running(domain, config(domain, hook)) as plane, heard(plane.broker) as told:
            async with plane.operator() as operator:
                files = source()
                bundle = build(files | {"bundle.yaml": files["bundle.yaml"] + RULES})
                await publish(operator, domain, domain.base(None, bundle), bundle)
            await ship(plane, now_records(1, refusals=3))
            message = await until(
                lambda: next((m for m in told if m["rule"] == "refused"), None), "an alert by MQTT"
            )
            assert (message["state"], message["severity"], message["value"]) == ("firing", "critical", 3)
            assert message["detail"].endswith("alice to payments shop.Payments/Pay 3")
            await until(lambda: len(hook.received) >= 2, "a second attempt")
            (first, body), (second, again) = hook.received[:2]
            assert body == again
            assert first[DELIVERY_HEADER] == second[DELIVERY_HEADER]
            assert verify(SECRET, again, second[SIGNATURE_HEADER], now_s=int(time.time()))
            assert json.loads(again)["id"] == message["id"]
            directory = book(domain, plane)
            await _look(directory, message["id"])
        async with running(domain, config(domain, hook)) as plane:
            held = (await run(book(domain, plane), "alerts", "show", message["id"], "--json")).data["alert"]
            assert (held["state"], held["acked_by"]) == ("firing", f"spiffe://{TRUST_DOMAIN}/operator/olga")
        assert sum(json.loads(data)["rule"] == "refused" for _, data in hook.received) == 2
    await until(
        lambda: not any(one.name.startswith("webhook-oncall") for one in threading.enumerate()),
        "the threads of webhooks ended with their control plane",
    )


async def _look(directory: Path, alert: str) -> None:
    """See analytics and alerts as an operator does."""
    listed = await run(directory, "alerts", "list", "--json")
    assert (listed.code, listed.data["rules"]) == (1, 2)
    assert {a["rule"]: a["state"] for a in listed.data["alerts"]} == {"refused": "firing", "busy": "firing"}
    assert any("webhook:missing" in problem for problem in listed.data["problems"])
    shown = await run(directory, "alerts", "show", alert)
    assert "webhook:oncall" in shown.stdout
    assert "answered 503" in shown.stdout or "done" in shown.stdout
    assert (await run(directory, "alerts", "ack", alert)).code == 0
    tested = await run(directory, "alerts", "test", "--to", "webhook:oncall", "--json")
    assert (tested.code, tested.data["ok"]) == (0, True)
    wrong = await run(directory, "alerts", "test", "--to", "webhook:elsewhere")
    assert wrong.code == 2
    assert "there are: mqtt, webhook:oncall" in wrong.stderr
    assert (await run(directory, "alerts", "show", "0" * 16)).code == 2
    sums = await run(directory, "analytics", "--since", "10m", "--json")
    assert sums.code == 0, sums.stderr
    (group,) = sums.data["groups"]
    assert (group["calls"], group["refused"], group["ended"]) == (5, {"POLICY_DENIED": 3}, {"OK": 2})
    assert group["p95_ms"] == pytest.approx(1.5, rel=0.1)
    by_node = await run(directory, "analytics", "--since", "10m", "--by", "node")
    assert "outbound" in by_node.stdout
    nothing = await run(directory, "analytics", "--service", "stock")
    assert "no executions from" in nothing.stdout
    assert (await run(directory, "analytics", "--since", "yesterday")).code == 2
    top = (await run(directory, "top", "--json")).data
    assert (top["all"]["calls"], top["edges"][0]["name"]) == (5, "alice > payments shop.Payments/Pay")
    assert {a["rule"] for a in top["alerts"]} == {"refused", "busy"}
    assert "busiest edges" in (await run(directory, "top", "--once")).stdout


async def test_a_wrong_question_is_refused_and_a_node_may_not_ask(domain: Domain) -> None:
    """Who calls what is for operators: a node would learn of everybody's traffic."""
    wrong = {
        "since is missing": pb.AnalyticsRequest(),
        "cannot group by": pb.AnalyticsRequest(since_ms=1, by="weather"),
        "limit is": pb.AnalyticsRequest(since_ms=1, limit=10**6),
        "not before": pb.AnalyticsRequest(since_ms=10_000, until_ms=5_000),
    }
    async with running(domain) as plane:
        async with plane.channel("operator", "olga") as channel:
            for says, request in wrong.items():
                code, detail, _ = await refusal_of(rpc.AnalyticsStub(channel).Query(request))
                assert (code, says in detail) == ("INVALID_ARGUMENT", True), detail
        async with plane.channel("node", "a") as channel:
            code, _, info = await refusal_of(rpc.AlertsStub(channel).ListAlerts(pb.ListAlertsRequest()))
            assert (code, info["reason"]) == ("PERMISSION_DENIED", "NOT_AUTHORIZED")


async def test_a_redirect_is_not_followed_and_an_unknown_certificate_not_trusted(tmp_path: Path) -> None:
    """A receiver must not send the control plane to an address inside its network."""
    with receiver(tmp_path / "hook") as hook:
        good = WebhookConfig(url=hook.url, secret_file=hook.secret_file, ca=hook.ca)
        stranger = WebhookConfig(url=hook.url, secret_file=hook.secret_file)
        closed = WebhookConfig(url="https://127.0.0.1:1/", secret_file=hook.secret_file, ca=hook.ca)
        hooks = Webhooks({"good": good, "stranger": stranger, "closed": closed}, SystemClock())
        hook.answers, hook.location = [307, 302, 500], hook.url.replace("/alerts", "/inside")
        for status in (307, 302, 500):
            assert await hooks.send("good", b"{}", "d") == f"the receiver answered {status}"
        assert await hooks.send("good", b"{}", "d") == ""
        assert set(hook.paths) == {"/alerts"}
        assert "CERTIFICATE_VERIFY_FAILED" in await hooks.send("stranger", b"{}", "d")
        assert "refused" in await hooks.send("closed", b"{}", "d")
        assert "no webhook" in await hooks.send("other", b"{}", "d")
        hooks.close()


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        (b"short", 0o600, Reason.CONFIG_INVALID),
        (SECRET, 0o644, Reason.KEY_UNREADABLE),
        (None, 0, Reason.KEY_UNREADABLE),
    ],
    ids=["too short", "readable by others", "missing"],
)
def test_a_secret_that_is_none_is_refused_at_start(
    tmp_path: Path, content: bytes | None, mode: int, reason: Reason
) -> None:
    """Messages would be signed with what anybody may know."""
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)
    with pytest.raises(InputError) as caught:
        Webhooks({"x": WebhookConfig(url="https://x.test/", secret_file=path)}, SystemClock())
    assert caught.value.reason is reason


@pytest.mark.parametrize("url", ["http://x.test/", "https://", "file:///etc/passwd", "https://u:p@x.test/"])
def test_a_webhook_is_https_without_credentials_in_its_address(url: str) -> None:
    """What is sent names callers and services."""
    with pytest.raises(ValueError, match="https"):
        WebhookConfig(url=url, secret_file=Path("x"))


def test_check_finds_a_webhook_whose_secret_is_missing(domain: Domain, tmp_path: Path) -> None:
    """`egm control-plane check` must say it before a start does."""
    hook = WebhookConfig(url="https://x.test/", secret_file=tmp_path / "none")
    with pytest.raises(InputError, match="none does not exist"):
        check(domain.config(webhooks={"x": hook}))
    check(domain.config())


async def test_a_receiver_that_drips_its_answer_is_cut_off_in_time_and_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte starts the time of a socket anew: without an end for the whole a thread is lost for hours."""
    monkeypatch.setattr(limits, "WEBHOOK_TIMEOUT_S", 0.4)
    released = threading.Event()
    with receiver(tmp_path / "slow") as slow, receiver(tmp_path / "quick") as quick:
        slow.drip = released
        hooks = Webhooks(
            {
                name: WebhookConfig(url=one.url, secret_file=one.secret_file, ca=one.ca)
                for name, one in (("slow", slow), ("quick", quick))
            },
            SystemClock(),
        )
        try:
            many = [asyncio.create_task(hooks.send("slow", b"{}", str(n))) for n in range(12)]
            assert await hooks.send("quick", b"{}", "d") == ""
            assert not any(task.done() for task in many[limits.WEBHOOKS_AT_ONCE :])
            said = await asyncio.wait_for(asyncio.gather(*many), 60)
            assert all(said)
        finally:
            released.set()
            hooks.close()


def test_the_id_of_a_message_is_never_that_of_an_earlier_one_about_the_same_alert() -> None:
    """A store counts its rows anew when it forgot them all; a receiver drops what it has seen."""
    assert delivery_id("0123456789abcdef", 1, 1_000) != delivery_id("0123456789abcdef", 1, 2_000)
