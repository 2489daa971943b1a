"""Ports that a lab chooses before anybody listens on them."""

import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from control_plane.lab import ports
from control_plane.lab.ports import FIRST_PORT, free_port


def drawn(*offsets: int) -> Callable[[int], int]:
    """Draw these, in turn."""
    turn: Iterator[int] = iter(offsets)
    return lambda _below: next(turn)


def test_two_meshes_that_start_at_once_never_choose_the_same_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither listens yet, and neither knows what the other has taken."""
    first = free_port(set())
    offset = first - FIRST_PORT
    other = free_port(set()) - FIRST_PORT
    monkeypatch.setattr(
        secrets, "randbelow", drawn(offset, offset, other, (other + 1) % 12_000, 11_999, 11_998)
    )
    assert free_port(set()) not in {first, other + FIRST_PORT}


def test_a_port_that_another_process_has_chosen_is_passed_over() -> None:
    """Until that process ends, or has chosen many others."""
    mine = free_port(set())
    script = (
        "import secrets; from control_plane.lab.ports import *\n"
        f"turn = iter([{mine - FIRST_PORT}] * 3 + list(range(12000)))\n"
        "secrets.randbelow = lambda _: next(turn)\n"
        "print(free_port(set()))"
    )
    theirs = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(theirs.stdout) != mine


def test_reservations_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that starts one mesh after the other does not run out of descriptors."""
    monkeypatch.setattr(ports, "_MAX_RESERVED", len(ports._reserved) + 2)
    before = len(ports._reserved)
    for _ in range(5):
        free_port(set())
    assert len(ports._reserved) == before + 2
