"""Calls made over and over while a test breaks things, and what was wrong among their answers."""

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from control_plane.lab.calls import Outcome, Payload

KEPT_WRONG: Final = 20


@dataclass(frozen=True, slots=True)
class Call:
    """One call to make."""

    workload: str
    method: str
    payload: Payload = b""
    to: str | None = None


Judge = Callable[[Call, Outcome], str]


@dataclass
class Report:
    """What came of the calls."""

    made: int = 0
    answered: int = 0
    refused: Counter[str] = field(default_factory=Counter)  # "CODE REASON" -> how many
    wrong: list[str] = field(default_factory=list)  # the first ones, for a person
    wrong_count: int = 0

    def __str__(self) -> str:
        """One line for a person."""
        refused = ", ".join(f"{count} {what}" for what, count in self.refused.most_common())
        return f"{self.made} calls: {self.answered} answered, refused: {refused or 'none'}, {self.wrong_count} wrong"


class Load:
    """Workers that call until they are told to stop."""

    def __init__(
        self,
        once: Callable[[Call], Awaitable[Outcome]],
        calls: Sequence[Call],
        *,
        workers: int,
        pause_s: float,
        judge: Judge,
    ) -> None:
        self.report = Report()
        self._once, self._judge, self._pause_s = once, judge, pause_s
        self._turn = itertools.cycle(calls)
        self._stopping = asyncio.Event()
        self._workers = [asyncio.create_task(self._work()) for _ in range(workers)]

    async def stop(self) -> Report:
        """Let calls in flight end; return the report.

        Raises:
            Exception: what a worker failed with; never because a call was refused.
        """
        self._stopping.set()
        await asyncio.gather(*self._workers)
        return self.report

    async def _work(self) -> None:
        while not self._stopping.is_set():
            call = next(self._turn)
            outcome = await self._once(call)
            report = self.report
            report.made += 1
            if outcome.ok:
                report.answered += 1
            else:
                report.refused[f"{outcome.code} {outcome.reason}".strip()] += 1
            if problem := self._judge(call, outcome):
                report.wrong_count += 1
                if len(report.wrong) < KEPT_WRONG:
                    report.wrong.append(f"{call.workload} -> {call.to} {call.method}: {problem} ({outcome})")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._pause_s)


# Under load and faults a call may find nobody; it must never be told anything else that is not so.
UNANSWERED: Final = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "RESOURCE_EXHAUSTED"})


def judge_by(*, ok: bool, reply: object = None) -> Judge:
    """Return a judge of calls that the policy allows (`ok`) or refuses, all the time.

    Args:
        ok: True: an answer must be `reply`, and a refusal may only be for want of somebody to answer.
            False: any answer is wrong.
        reply: None: any answer will do. A mapping: the fields it names must be so.
    """

    def judge(_call: Call, outcome: Outcome) -> str:
        if outcome.ok:
            if not ok:
                return "was executed, though the policy refuses it"
            return "" if fits(reply, outcome.reply) else f"the reply is not {reply!r}"
        return f"was refused with {outcome.code}" if ok and outcome.code not in UNANSWERED else ""

    return judge


def fits(wanted: object, reply: object) -> bool:
    """Return whether a reply is the wanted one, or has every field of a wanted mapping."""
    if isinstance(wanted, Mapping) and isinstance(reply, Mapping):
        return all(name in reply and fits(value, reply[name]) for name, value in wanted.items())
    return wanted is None or wanted == reply
