"""CPU seconds per test, of this process and of those that it starts: `EGM_TEST_CPU=FILE pytest …` appends to FILE.

A line is `CPU seconds <tab> test id`, one per test, with the fixtures that it set up and took down; `(collected)` is
what a process spent before its first test. `python -m tests.support.cpu_cost FILE [N]` prints the N costliest files.
CPU time depends less than wall time on what else a machine does; that of a process whose parent ended before it is
not counted.
"""

import os
import resource
import sys
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import psutil
import pytest


def spent_s() -> float:
    """CPU seconds, user and system, of this process, its ended children and its living descendants."""
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        total += usage.ru_utime + usage.ru_stime
    for process in psutil.Process().children(recursive=True):
        try:
            total += sum(process.cpu_times()[:4])  # its own, and that of its ended children
        except psutil.Error:
            continue  # it ended a moment ago; its parent has counted it, or will
    return total


class CpuCost:
    """The pytest plugin: measures around each test and appends to a file, which all workers share."""

    def __init__(self, into: Path) -> None:
        self._into = into
        self._before = 0.0

    def _note(self, name: str) -> None:
        now = spent_s()
        with self._into.open("a", encoding="utf-8") as out:
            out.write(f"{now - self._before:.3f}\t{name}\n")
        self._before = now

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self) -> Generator[None, object, object]:
        """What it took to get here: imports, collection."""
        self._note("(collected)")
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """One test, from its first fixture to its last."""
        try:
            return (yield)
        finally:
            self._note(item.nodeid)


def plugin_of(environment: dict[str, str]) -> CpuCost | None:
    """The plugin, where the environment asks for it."""
    into = environment.get("EGM_TEST_CPU")
    return CpuCost(Path(into).absolute()) if into else None


def main(file: str, count: str = "40") -> None:
    """Print what the costliest files of tests took, and all together."""
    by_file: Counter[str] = Counter()
    for line in Path(file).read_text(encoding="utf-8").splitlines():
        seconds, name = line.split("\t", 1)
        by_file[name.split("::", 1)[0]] += float(seconds)  # type: ignore[assignment]  # a Counter may hold floats
    for name, spent in by_file.most_common(int(count)):
        sys.stdout.write(f"{spent:8.1f}  {name}\n")
    sys.stdout.write(f"{sum(by_file.values()):8.1f}  {len(by_file)} files\n")


if __name__ == "__main__":
    os.environ.pop("EGM_TEST_CPU", None)
    main(*sys.argv[1:])
