"""What the pages tell a reader to type exists, with the options they name."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from control_plane.assess.catalogue import load_catalogue
from control_plane.cli.main import commands, load

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_INLINE = re.compile(r"`(egm [^`]+)`")
_WORDS = re.compile(r"[a-z][a-z-]*\Z")


def written() -> Iterator[tuple[str, str]]:
    """Every `egm …` of the pages, in code blocks and inline."""
    for page in PAGES:
        text = re.sub(r" *\\\n *", " ", page.read_text())  # a command may go on in the next line
        for line in text.splitlines():
            block = line.removeprefix("    ") if line.startswith("    egm ") else ""
            found = [block.partition("#")[0]] if block else _INLINE.findall(line)
            yield from ((page.name, command.strip()) for command in found)


def find(command: str) -> tuple[Any, list[str]]:
    """Return the command object, and the words that follow its name."""
    noun, *rest = shlex.split(command.replace("…", ""))[1:]
    assert noun in commands(), f"no command {noun!r}"
    found: Any = typer.main.get_command(load(noun))
    name = f"egm {noun}"
    while getattr(found, "commands", None):  # egm NOUN [NOUN] VERB
        if getattr(found, "invoke_without_command", False) and (not rest or rest[0].startswith("-")):
            break  # a noun that does something by itself
        verb = rest.pop(0) if rest else ""
        assert verb in found.commands, f"{name} has no verb {verb!r}"
        found, name = found.commands[verb], f"{name} {verb}"
    return found, rest


def advised() -> Iterator[tuple[str, str]]:
    """Every command of the roadmaps of an assessment."""
    for one in load_catalogue().characteristics:
        for command in () if one.remedy is None else one.remedy.commands:
            yield one.id, command


CASES = sorted({*written(), *advised()})


@pytest.mark.parametrize(("page", "command"), CASES)
def test_a_command_that_a_page_shows_exists_with_its_options(page: str, command: str) -> None:
    """Renaming a verb or an option without its documentation fails here."""
    words = command.split()
    if len(words) == 2 and (words[1].startswith("-") or words[1].isupper()):
        return
    if len(words) == 2 and words[1] in commands() and _WORDS.match(words[1]):
        return  # the noun alone
    found, rest = find(command)
    known = {name for parameter in found.params for name in (*parameter.opts, *parameter.secondary_opts)}
    used = {word.partition("=")[0] for word in rest if word.startswith("-") and word != "-"}
    assert used <= known | {"--help"}, f"{page}: {sorted(used - known)}"


def test_every_command_is_shown_somewhere() -> None:
    """A noun that no page mentions is one that nobody finds."""
    shown = {command.split()[1] for _, command in CASES}
    assert set(commands()) <= shown


def verbs_of(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Every verb of a command, with the words before it."""
    inner = getattr(command, "commands", None)
    if not inner:
        yield name, command
    for verb, one in (inner or {}).items():
        yield from verbs_of(f"{name} {verb}", one)


@pytest.mark.parametrize("noun", sorted(commands()))
def test_every_verb_that_tells_something_has_json_and_a_help_text(noun: str) -> None:
    """Every verb has --json and says what it does."""
    command: Any = typer.main.get_command(load(noun))
    for name, verb in verbs_of(noun, command):
        assert verb.help, f"egm {name} has no help"
        options = {option for parameter in verb.params for option in parameter.opts}
        assert "--json" in options, f"egm {name} has no --json"
