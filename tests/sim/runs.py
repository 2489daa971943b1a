"""Runs seeds, and makes a failure small: which few steps of the schedule are enough for the same invariant to fall."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.sim.kernel import Violation
from tests.sim.mesh import Mesh
from tests.sim.trouble import TROUBLE_MS, Step, schedule_of

SHORT_MS = 7_000  # of trouble, for `make test`: more seeds in the same time
_MAX_TRIES = 60


@dataclass(frozen=True)
class Outcome:
    """What became of one seed. `fell`: the whole message, empty when nothing fell; `saw`: what happened, how often."""

    seed: int
    events: int
    fell: str = ""
    saw: Mapping[str, int] = field(default_factory=dict)


def live(
    seed: int, schedule: Sequence[Step], trouble_ms: int = TROUBLE_MS
) -> tuple[Mesh, BaseException | None]:
    """Run one schedule; return the mesh as it ended, and what fell."""
    mesh = Mesh(seed)
    try:
        mesh.run(list(schedule), trouble_ms)
    except Exception as error:  # whatever ends a run is a finding, an uncaught error of the product, too
        return mesh, error
    return mesh, None


def run_seed(seed: int, *, trouble_ms: int = TROUBLE_MS, keep: Sequence[int] | None = None) -> Mesh:
    """Run one seed.

    Args:
        seed: everything is drawn from it.
        trouble_ms: how long things go wrong, simulated.
        keep: numbers of the schedule's steps to carry out; None: all.

    Raises:
        Violation: naming the invariant, the seed, the shrunk schedule, and the command that replays it.
    """
    schedule = schedule_of(seed, trouble_ms)
    if keep is not None:
        schedule = [step for number, step in enumerate(schedule) if number in keep]
    mesh, error = live(seed, schedule, trouble_ms)
    if error is not None:
        raise Violation(_told(mesh, seed, schedule, trouble_ms, error)) from error
    return mesh


def one_seed(work: tuple[int, int]) -> Outcome:
    """Run a seed for so many simulated ms of trouble; return what became of it."""
    seed, trouble_ms = work
    schedule = schedule_of(seed, trouble_ms)
    mesh, error = live(seed, schedule, trouble_ms)
    fell = "" if error is None else _told(mesh, seed, schedule, trouble_ms, error)
    return Outcome(seed, mesh.events, fell, dict(mesh.observer.saw))


def _told(mesh: Mesh, seed: int, schedule: Sequence[Step], trouble_ms: int, error: BaseException) -> str:
    small = shrink(seed, schedule, trouble_ms, error)
    numbers = [number for number, step in enumerate(schedule_of(seed, trouble_ms)) if step in small]
    steps = (
        "\n".join(f"  {at:6d} ms  {what} ({number})" for at, what, number in small) or "  (nothing at all)"
    )
    command = f"python -m tests.sim --seed {seed} --trouble-ms {trouble_ms}"
    return (
        f"{_headline(error)}\nseed {seed}, event {mesh.events}; these steps of the schedule are enough:\n{steps}\n"
        f"replay: {command}\nshrunk: {command} --keep {','.join(map(str, numbers)) or '-'}"
    )


def shrink(seed: int, schedule: Sequence[Step], trouble_ms: int, error: BaseException) -> list[Step]:
    """Leave out what is not needed for the same invariant to fall; halves first, then single steps."""
    wanted, kept, tries = _kind(error), list(schedule), 0
    size = max(1, len(kept) // 2)
    while tries < _MAX_TRIES:
        removed = False
        for start in range(0, len(kept), size):
            tries += 1
            fewer = kept[:start] + kept[start + size :]
            fell = live(seed, fewer, trouble_ms)[1]
            if fell is not None and _kind(fell) == wanted:
                kept, removed = fewer, True
                break
            if tries >= _MAX_TRIES:
                break
        if not removed:
            if size == 1:
                break
            size //= 2
    return kept


def _kind(error: BaseException) -> str:
    return _headline(error).partition(":")[0]


def _headline(error: BaseException) -> str:
    return str(error) if isinstance(error, Violation) else f"{type(error).__name__}: {error}"
