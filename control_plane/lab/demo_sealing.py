"""Steps of the demonstration: no control plane, no network; who goes on, who stops, and how it comes back."""

import asyncio
import time
from collections.abc import Mapping
from typing import Final

from control_plane.lab.demo_world import (
    ALICE_NODE,
    BALANCE,
    WAIT_S,
    CheckError,
    World,
    expect,
    lines,
    standing,
)
from control_plane.lab.load import Call, judge_by
from control_plane.lab.states import Status
from trust.errors import Reason

_ORDER: Final = ["FRESH", "STALE", "SEALED"]
_PAUSE_S: Final = 0.05
_TRIES: Final = 3
_BALANCE: Final = {"account": "42"}


async def stale(world: World) -> str:
    """Kill the control plane and call while the grace lasts; on a machine too busy for that, once more."""
    for left in reversed(range(_TRIES)):
        await world.lab.control_plane.kill()
        held = await world.wait(lambda seen: all("lease_remaining_ms" in one for one in seen.values()))
        # Nobody renews the lease any more: it has lapsed everywhere when the longest that a node holds has.
        await asyncio.sleep(max(int(one["lease_remaining_ms"]) for one in held.values()) / 1000 + _PAUSE_S)
        found, nodes = await asyncio.gather(
            world.transfer("alice", 7),
            world.wait(lambda seen: all(one.get("lease") in _ORDER[1:] for one in seen.values())),
        )
        late = any(one["lease"] != "STALE" for one in nodes.values())
        if not left or not (late or found.reason == Reason.POLICY_STALE.value):
            break
        await returned(world)
    expect(not late, f"every node STALE at one time, got {nodes}")
    expect(found.ok, f"that alice may transfer 7, got {found}")
    expect(all(one["alarms"] for one in nodes.values()), "an alarm on every node")
    return (
        "killed (SIGKILL); lease STALE and an alarm on every node; alice's call still executed: "
        f"{found.reply['id']}"
    )


async def sealed(world: World) -> str:
    """Call when the grace is over."""
    await world.lab.wait_until("SEALED", WAIT_S)
    return await world.refused("alice", 7, Reason.POLICY_STALE)


async def returned(world: World) -> str:
    """Start the control plane again."""
    await world.lab.control_plane.start()
    await world.lab.wait_until("FRESH", WAIT_S)
    return f"lease FRESH on every node; alice's call: {await world.executed('alice', 7, within_s=WAIT_S)}"


async def cut_off(world: World) -> str:
    """Cut alice's node off from everybody, while the others go on calling each other."""
    attested = await world.wait(lambda nodes: all(standing(one) == "ATTESTED" for one in nodes.values()))
    expect(all(one["lease"] == "FRESH" for one in attested.values()), "every node FRESH before the cut")
    world.lab.isolate(ALICE_NODE)
    calls = [Call("payments", BALANCE, _BALANCE, "accounts")]
    world.meanwhile = world.lab.load(calls, pause_s=_PAUSE_S, judge=judge_by(ok=True))
    seen: list[tuple[str, float]] = []
    others: set[str] = set()
    cut = time.monotonic()

    def noticed(nodes: Mapping[str, Status]) -> bool:
        lease = str(nodes[ALICE_NODE].get("lease"))
        others.update(str(one.get("lease")) for name, one in nodes.items() if name != ALICE_NODE)
        if not seen or seen[-1][0] != lease:
            seen.append((lease, time.monotonic() - cut))
        return lease == _ORDER[-1]

    await world.wait(noticed)
    expect([lease for lease, _ in seen] == _ORDER, f"FRESH, STALE, SEALED in this order, got {seen}")
    expect(others == {"FRESH"}, f"the others FRESH all the time, got {sorted(others)}")
    told = ", ".join(f"{lease} after {seconds:.1f} s" for lease, seconds in seen[1:])
    return f"node {ALICE_NODE} alone, no bytes to or from it: FRESH, {told}; the others: FRESH throughout"


async def minority_refuses(world: World) -> str:
    """Call through the node that is cut off."""
    told = await world.refused("alice", 7, Reason.POLICY_STALE)
    nodes = await world.wait(lambda seen: standing(seen[ALICE_NODE]) == "NOT_ATTESTED")
    said = nodes[ALICE_NODE]["attestation"]
    silent = {name: why for name, why in said["not_vouched"].items() if name != ALICE_NODE}
    expect(len(silent) == 2, f"two witnesses that it cannot reach, got {said['not_vouched']}")
    why = ", ".join(f"{name}: {answer}" for name, answer in sorted(silent.items()))
    return lines(
        f"alice: {told}",
        f"its trust credential has run out, too: NOT_ATTESTED, {said['quorum']} witnesses must vouch for it ({why})",
    )


async def majority_goes_on(world: World) -> str:
    """Count what the other two nodes executed meanwhile."""
    if world.meanwhile is None:
        raise CheckError("nobody called meanwhile")
    report = await world.meanwhile.stop()
    expect(report.answered == report.made > 0, f"every call executed, got {report}; {report.wrong}")
    both = await world.lab.statuses(["payments", "accounts"])
    expect(all(standing(one) == "ATTESTED" for one in both.values()), f"both attested, got {both}")
    return lines(
        f"payments -> accounts, one call after the other since the cut: {report.made} calls, all executed",
        "payments and accounts are ATTESTED still: they vouch for each other, two of three",
    )


async def healed(world: World) -> str:
    """Mend the network."""
    world.lab.heal()
    await world.wait(
        lambda nodes: all(
            one.get("lease") == "FRESH" and standing(one) == "ATTESTED" for one in nodes.values()
        ),
        2 * WAIT_S,
    )
    done = await world.executed("alice", 7, within_s=WAIT_S)
    return f"every node FRESH and ATTESTED, without a restart; alice's call: {done}"
