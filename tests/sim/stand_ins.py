"""What the simulation puts in the place of disk, loop, randomness and certificates while a mesh runs."""

import contextlib
import functools
import logging
import random
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

from sidecar.edge import attestation_files, permit_floor, witness_desk
from tests.sim.kernel import write_atomic
from tests.sim.realm import RememberedKey, endorsed
from trust import heads, node_key, note
from trust.attestation import cosignature, dsse, statement
from trust.edge import denial_keeper


class _Lock:
    """A lock nobody waits for: files are read and written without a pause here."""

    async def __aenter__(self) -> None:
        """Enter."""

    async def __aexit__(self, *_: object) -> None:
        """Leave."""


async def _at_once(action: Callable[..., Any], *arguments: Any) -> Any:
    return action(*arguments)


@functools.cache
def users_of(name: str) -> tuple[ModuleType, ...]:
    """Return the modules of `trust` that call this function of `trust.node_key`."""
    real = getattr(node_key, name)
    loaded = [module for path, module in sorted(sys.modules.items()) if path.startswith("trust.")]
    return tuple(module for module in loaded if getattr(module, name, None) is real)


@contextlib.contextmanager
def stand_ins(dice: random.Random) -> Iterator[None]:
    """Replace the edges' doors to the real world."""
    loop = SimpleNamespace(to_thread=_at_once, Lock=_Lock)
    swaps: list[tuple[object, str, object]] = [
        (witness_desk, "asyncio", loop),
        (witness_desk, "to_thread_until_done", _at_once),
        (witness_desk, "secrets", SimpleNamespace(token_bytes=dice.randbytes)),
        (attestation_files, "write_atomic", write_atomic),
        (permit_floor, "write_atomic", write_atomic),
        (denial_keeper, "write_atomic", write_atomic),
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
        )
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
