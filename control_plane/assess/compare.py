"""What changed between two assessments: grades, verdicts, and services that came or went."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from control_plane.assess.model import Assessment, Verdict

_GOOD = frozenset({Verdict.MET, Verdict.OVERCOME})


@dataclass(frozen=True, slots=True)
class Change:
    """One verdict that differs. `better`: True, False, or None when it is neither."""

    service: str
    characteristic: str
    before: str
    after: str
    better: bool | None
    why: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two assessments, held against each other. `levels`: service -> (before, after); None: it was not there."""

    before: str
    after: str
    before_level: int
    after_level: int
    levels: Mapping[str, tuple[int | None, int | None]]
    changes: Sequence[Change]
    notes: Sequence[str] = ()

    @property
    def worse(self) -> bool:
        """Whether the fleet's or any service's grade went down, or a verdict did."""
        lower = any(b is not None and a is not None and a < b for b, a in self.levels.values())
        return (
            self.after_level < self.before_level or lower or any(one.better is False for one in self.changes)
        )


def compare(before: Assessment, after: Assessment) -> Comparison:
    """Return what changed."""
    old = {one.service: one for one in before.services}
    new = {one.service: one for one in after.services}
    names = sorted(old.keys() | new.keys())
    changes = []
    for name in names:
        if name not in old or name not in new:
            continue
        verdicts = {one.id: one for one in old[name].results}
        for result in new[name].results:
            was = verdicts.get(result.id)
            if was is not None and was.verdict is not result.verdict:
                better = _better(was.verdict, result.verdict)
                changes.append(Change(name, result.id, was.verdict, result.verdict, better, result.why))
    notes = []
    if before.target != after.target:
        notes.append(f"they are of different meshes: {before.target} and {after.target}")
    if before.probe != after.probe:
        notes.append(f"they were made differently: --probe {before.probe} and {after.probe}")
    if before.version != after.version:
        notes.append(f"they were made by different versions of egm: {before.version} and {after.version}")
    unlike = {one.id for grade in old.values() for one in grade.results} ^ {
        one.id for grade in new.values() for one in grade.results
    }
    if unlike and old and new:
        notes.append(f"only one of them knows {', '.join(sorted(unlike))}: the levels need not mean the same")
    if after.started_ms < before.started_ms:
        notes.append("the second was made before the first")
    levels = {
        name: (old[name].level if name in old else None, new[name].level if name in new else None)
        for name in names
    }
    return Comparison(before.run, after.run, before.level, after.level, levels, tuple(changes), tuple(notes))


def _better(before: Verdict, after: Verdict) -> bool | None:
    if after in _GOOD:
        return True
    return False if before in _GOOD else None
