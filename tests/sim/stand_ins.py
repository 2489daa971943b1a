"""What the simulation puts in the place of disk, loop, randomness and certificates while a mesh runs."""

import contextlib
import functools
import logging
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

from sidecar.edge import approvals, attestation_files, permit_floor, spent_file, witness_desk
from tests.sim import policy_client
from tests.sim.kernel import Coro, Kernel, SimLock, SimPath, write_atomic
from tests.sim.policy_client import SimCache, scratch_of
from tests.sim.realm import RememberedKey, endorsed
from trust import (
    authoring,
    chain,
    checkpoint,
    heads,
    limits,
    node_key,
    note,
    quorum,
    repository,
    repository_state,
)
from trust.attestation import cosignature, dsse, statement
from trust.authoring import parse_metadata
from trust.edge import denial_keeper, policy_cache, tuf_client


class _Lock:
    """A lock nobody waits for: files are read and written without a pause here."""

    async def __aenter__(self) -> None:
        """Enter."""

    async def __aexit__(self, *_: object) -> None:
        """Leave."""


async def _at_once(action: Callable[..., Any], *arguments: Any) -> Any:
    return action(*arguments)


class _Flag:
    """An event that nobody waits for: rounds are ticks here."""

    def set(self) -> None:
        """Set it."""

    def clear(self) -> None:
        """Clear it."""


class _Task:
    """A task that runs when it is waited for, which it is at once."""

    def __init__(self, coroutine: Coro) -> None:
        self._coroutine = coroutine

    def __await__(self) -> Any:
        return self._coroutine.__await__()

    def add_done_callback(self, _action: object) -> None:
        """Nobody keeps it longer than it runs."""


def _slow_disk(world: Kernel) -> SimpleNamespace:
    """Return an asyncio in which a thread writes a little later, and whose process may have died by then."""

    async def to_thread(action: Callable[..., Any], *arguments: Any) -> Any:
        await world.sleep(world.random.randint(1, 40))
        return action(*arguments)

    loop = SimpleNamespace(create_task=_Task)
    return SimpleNamespace(
        Lock=SimLock,
        to_thread=to_thread,
        timeout=lambda _seconds: _Lock(),
        shield=lambda task: task,
        get_running_loop=lambda: loop,
    )


def _written(path: SimPath, data: bytes) -> int:
    path.disk.append(path.name, data)
    return len(data)


_APPENDING = SimpleNamespace(
    O_WRONLY=0, O_APPEND=0, O_CLOEXEC=0,
    open=lambda path, _flags: path, write=_written, fsync=lambda _path: None, close=lambda _path: None,
)  # fmt: skip


@functools.cache
def users_of(name: str) -> tuple[ModuleType, ...]:
    """Return the modules of `trust` that call this function of `trust.node_key`."""
    real = getattr(node_key, name)
    loaded = [module for path, module in sorted(sys.modules.items()) if path.startswith("trust.")]
    return tuple(module for module in loaded if getattr(module, name, None) is real)


def _once_each(pure: Callable[..., Any]) -> Callable[..., Any]:
    """Return `pure`, which answers once for the same objects; they are kept, or another could take their place."""
    known: dict[tuple[int, ...], tuple[Any, Any]] = {}

    def answer(*arguments: Any) -> Any:
        key = tuple(map(id, arguments))
        if key not in known:
            known[key] = (arguments, pure(*arguments))
        return known[key][1]

    return answer


def _current(where: ModuleType, name: str) -> Callable[..., Any]:
    """Return what is there now, which may be a guard that was taken away."""
    found: Callable[..., Any] = getattr(where, name)
    return found


_tuf_verifies = functools.lru_cache(maxsize=100_000)(quorum._verifies)

# they read what was parsed and change none of it
_PARSING = (authoring, chain, policy_cache, policy_client, repository, repository_state, tuf_client)


@contextlib.contextmanager
def stand_ins(world: Kernel) -> Iterator[None]:
    """Replace the edges' doors to the real world."""
    dice = world.random
    loop = SimpleNamespace(to_thread=_at_once, Lock=_Lock)
    swaps: list[tuple[object, str, object]] = [
        (witness_desk, "asyncio", loop),
        (witness_desk, "to_thread_until_done", _at_once),
        (witness_desk, "secrets", SimpleNamespace(token_bytes=dice.randbytes)),
        (attestation_files, "write_atomic", write_atomic),
        (permit_floor, "write_atomic", write_atomic),
        (denial_keeper, "write_atomic", write_atomic),
        (policy_cache, "write_atomic", write_atomic),
        (tuf_client, "PolicyCache", SimCache),
        (tuf_client, "Path", scratch_of),
        (approvals, "asyncio", SimpleNamespace(Event=_Flag)),
        (spent_file, "write_atomic", write_atomic),
        (spent_file, "asyncio", _slow_disk(world)),
        (spent_file, "os", _APPENDING),
        (limits, "MAX_APPROVAL_LIFETIME_S", 10),  # so that what was used up is forgotten within a run
        *(
            (where, "verify_endorsement", lambda data, *_: endorsed(data))
            for where in users_of("verify_endorsement")
        ),
        *((where, "endorsement_times", lambda _data: (0, 2**52)) for where in users_of("endorsement_times")),
        (note, "Ed25519PublicKey", RememberedKey),
        (cosignature, "Ed25519PublicKey", RememberedKey),
        (dsse, "Ed25519PublicKey", RememberedKey),
    ]
    # pure functions of the product, asked by many members about the same bytes: each answers once
    swaps += [
        (where, name, functools.lru_cache(maxsize=4_096)(getattr(where, name)))
        for where, name in (
            (note, "_split"),
            (note, "is_key_name"),
            (statement, "parse_statement"),
            (dsse, "decode"),
            (heads, "open_checkpoint"),
            (policy_cache, "_from_json"),
            (attestation_files, "read_memory"),
            (checkpoint, "parse_checkpoint"),
        )
    ]
    parsed = functools.cache(parse_metadata)
    swaps += [(where, "parse_metadata", parsed) for where in _PARSING]
    counted = _once_each(_current(chain, "quorum_of"))
    swaps += [(where, "quorum_of", counted) for where in (chain, repository)]
    swaps += [
        (tuf_client, "digest_of", _once_each(_current(tuf_client, "digest_of"))),
        (quorum, "_verifies", _tuf_verifies),
    ]
    quiet = logging.root.manager.disable
    with contextlib.ExitStack() as stack:
        for where, name, instead in swaps:
            stack.enter_context(mock.patch.object(where, name, instead))
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(quiet)
