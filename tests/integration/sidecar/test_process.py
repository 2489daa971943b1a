"""`egm sidecar run` as a process: its ready lines, its signals, and its death at the worst moment."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from sidecar.edge.record_file import load_record
from tests.support import sidecars
from tests.support.control_plane import TRUST_DOMAIN, Domain, publish
from tests.support.control_plane import running as control_plane
from tests.support.eventually import eventually
from trust.policy.source import build

POLICIES = 600


class Process:
    """One real `egm sidecar run --json`."""

    def __init__(self, path: Path) -> None:
        self.log = path.with_suffix(".log")
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", "control_plane.cli.main", "sidecar", "run", "-c", str(path), "--json"],
                stdout=subprocess.PIPE,
                stderr=log,
                env={k: v for k, v in os.environ.items() if not k.startswith("OTEL_")},
            )

    async def event(self) -> dict[str, Any]:
        """Return the next line of standard output."""
        assert self.popen.stdout is not None
        line = await asyncio.to_thread(self.popen.stdout.readline)
        assert line, self.log.read_text()[-2000:]
        event: dict[str, Any] = json.loads(line)
        return event

    async def end(self, how: signal.Signals) -> int:
        """Signal it and return its exit code."""
        self.popen.send_signal(how)
        assert self.popen.stdout is not None
        code = await asyncio.to_thread(self.popen.wait, 30)
        self.popen.stdout.close()
        return code


def configuration(home: Path, config: dict[str, Any]) -> Path:
    """Write a configuration with an inbound service that nobody answers."""
    inbound = [{"service": "payments", "listen": "127.0.0.1:0", "upstream": {"address": "127.0.0.1:9"}}]
    path = home / "sidecar.yaml"
    path.write_text(yaml.safe_dump(config | {"inbound": inbound}))
    return path


def large_policy() -> bytes:
    """Return a bundle that takes a while to compile."""
    text = "".join(
        f'@id("p{n}")\npermit(principal == Workload::"spiffe://{TRUST_DOMAIN}/workload/w{n}", '
        'action == Action::"shop.Payments/Pay", resource == Service::"payments") when { context.node.level == 4 };\n'
        for n in range(POLICIES)
    )
    return build(
        {
            "bundle.yaml": (
                f"name: t\ndescription: t\ntrust_domain: {TRUST_DOMAIN}\nlevel: 4\n"
                "services: {payments: {grpc_services: [shop.Payments/Pay]}}\n"
            ).encode(),
            "policies/p.cedar": text.encode(),
            "tests/t.yaml": b"[]\n",
        }
    )


async def test_killed_during_activation_it_recovers_alone_and_is_never_open_meanwhile(
    domain: Domain, tmp_path: Path
) -> None:
    """kill -9 after the download, before the swap; then a start without the control plane."""
    at = domain.at(tmp_path)
    home = tmp_path / "n1"
    accepted = home / "data" / "tuf" / "accepted.json"
    async with control_plane(at) as cp:
        await sidecars.token(cp, home, "n1", "payments")
        path = configuration(home, sidecars.settings(cp, home, at))
        first = Process(path)
        assert (await first.event())["event"] == "listening"
        bundle = large_policy()
        async with cp.operator() as operator:
            await publish(operator, at, at.base(None, bundle), bundle)
        await eventually(accepted.exists, "metadata on disk")
        assert await first.end(signal.SIGKILL) == -signal.SIGKILL
        assert load_record(home / "data" / "policy-state.json").versions == {}, (
            "killed too late to prove anything"
        )
    second = Process(path)
    try:
        assert (await second.event())["event"] == "listening"
        assert (await second.event())["event"] == "ready-to-serve"
        assert load_record(home / "data" / "policy-state.json").versions["targets"] == 1
    finally:
        assert await second.end(signal.SIGTERM) == 0


async def test_ready_lines_and_orderly_end(domain: Domain, tmp_path: Path) -> None:
    """Port 0 is replaced by what was bound; SIGTERM ends with 0; stderr is JSON, line by line."""
    at = domain.at(tmp_path)
    home = tmp_path / "n1"
    async with control_plane(at) as cp:
        await sidecars.token(cp, home, "n1", "payments")
        process = Process(configuration(home, sidecars.settings(cp, home, at)))
        event = await process.event()
        assert await process.end(signal.SIGTERM) == 0
    assert event["event"] == "listening"
    assert not event["inbound"]["payments"].endswith(":0")
    assert not event["admin"].endswith(":0")
    lines = [json.loads(line) for line in process.log.read_text().splitlines()]
    assert any("draining" in line["message"] for line in lines)


async def test_refused_join_token_ends_the_process_with_the_reason(domain: Domain, tmp_path: Path) -> None:
    """Waiting cannot mend a used token."""
    at = domain.at(tmp_path)
    home = tmp_path / "n1"
    async with control_plane(at) as cp:
        await sidecars.token(cp, home, "another-node", "payments")
        process = Process(configuration(home, sidecars.settings(cp, home, at)))
        error = await process.event()
        assert process.popen.stdout is not None
        assert await asyncio.to_thread(process.popen.wait, 30) == 2
        process.popen.stdout.close()
    assert error["error"] in {"JOIN_TOKEN_INVALID", "NOT_AUTHORIZED"}


async def test_second_sidecar_on_the_same_data_directory_is_refused(domain: Domain, tmp_path: Path) -> None:
    """Two would overwrite each other's floors; after a kill -9 the directory is free again."""
    at = domain.at(tmp_path)
    home = tmp_path / "n1"
    async with control_plane(at) as cp:
        await sidecars.token(cp, home, "n1", "payments")
        path = configuration(home, sidecars.settings(cp, home, at))
        first = Process(path)
        assert (await first.event())["event"] == "listening"
        second = Process(path)
        refusal = await second.event()
        assert second.popen.stdout is not None
        assert await asyncio.to_thread(second.popen.wait, 30) != 0
        second.popen.stdout.close()
        assert refusal["error"] == "CONFLICT"
        assert "data_dir" in refusal["detail"]
        assert await first.end(signal.SIGKILL) == -signal.SIGKILL
        third = Process(path)
        assert (await third.event())["event"] == "listening"
        assert await third.end(signal.SIGTERM) == 0
