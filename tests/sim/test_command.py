"""`python -m tests.sim` as somebody uses it: bounds, signals, replay, guards, wrong usage."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim import __main__ as command
from tests.sim.mutants import MUTANTS

ROOT = Path(__file__).parents[2]


def _start(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.sim", "--jobs", "1", "--trouble-ms", "2000", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_without_a_bound_it_runs_until_told_to_stop_and_then_sums_up() -> None:
    """Ctrl-C or a supervisor's SIGTERM ends it with what it did, not with a traceback; another one changes nothing."""
    run = _start()
    assert run.stderr is not None and "Ctrl-C" in run.stderr.readline()
    with pytest.raises(subprocess.TimeoutExpired):
        run.wait(2)
    for number in (signal.SIGTERM, signal.SIGINT):
        run.send_signal(number)
    out, err = run.communicate(timeout=60)
    assert re.fullmatch(r"\d+ seeds, \d+ events, \d+ s, \d+ events/s on 1 processes, no violation\n", out), (
        out
    )
    assert run.returncode == 0 and "Traceback" not in err


def test_a_bound_ends_it_and_json_says_what_it_did() -> None:
    """A program reads seeds, events and violations."""
    run = _start("--seeds", "3", "--first", "7", "--json")
    out, _ = run.communicate(timeout=60)
    said = json.loads(out)
    assert run.returncode == 0
    assert (said["seeds"], said["violations"]) == (3, []) and said["events"] > 300


def test_one_seed_says_its_trace_and_gives_the_same_again(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever replays a seed can see that it is the same run."""
    said = []
    for _ in range(2):
        assert command.main(["--seed", "5", "--trouble-ms", "2000", "--json"]) == 0
        said.append(json.loads(capsys.readouterr().out))
    assert said[0] == said[1] and len(said[0]["trace"]) == 64


def test_a_violation_is_the_exit_code_and_the_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pipeline stops at it."""
    guard = next(one for one in MUTANTS if one.name == "intent durable before forward")
    guard.remove(monkeypatch)
    codes = [command.main(["--seed", str(seed), "--trouble-ms", "7000"]) for seed in range(3)]
    out = capsys.readouterr().out
    assert 1 in codes and "invariant 5" in out and "replay: python -m tests.sim --seed" in out


def test_a_guard_that_nothing_notices_is_named_and_the_exit_code_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One seed is not enough for every guard; whoever asks for one sees which was not noticed."""
    assert command.main(["--mutants", "--only", "gossip: bound", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["not_noticed"] == 0
    assert command.main(["--mutants", "--only", "witness: counter", "--seeds", "1"]) == 1
    assert "NOT NOTICED" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["--keep", "3"], ["--seeds", "0"], ["--seed", "x"], ["--seed", "1", "--keep", "a"]],
    ids=["keep-alone", "no-seeds", "no-number", "no-step"],
)
def test_wrong_usage_is_exit_2_and_says_what_is_wrong(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistyped option must not start an endless run."""
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err
    assert command.main(["--mutants", "--only", "no such guard"]) == 2
