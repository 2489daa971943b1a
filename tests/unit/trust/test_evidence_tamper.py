"""Every field of a real evidence file, tampered with in every way: refused, naming the place, by two verifiers."""

import base64
import copy
import itertools
import json
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from control_plane.cli.evidence import app
from control_plane.edge.evidence_export import export_evidence
from tests.support import second_verifier
from tests.support.control_plane import Domain
from tests.support.evidence import Made, make
from trust.errors import EvidenceError, InputError, Reason
from trust.evidence_verify import Report, Section, Verdict, verify_evidence
from trust.execution import id_text

pytestmark = pytest.mark.xdist_group("evidence")  # one file for all of them

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Change:
    """One tampering: what was done at which path, and the file that results."""

    what: str
    path: Path
    data: bytes


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Two sidecars at level 5, two executions, exported."""
    return make(tmp_path_factory.mktemp("evidence"))


def written(document: Any) -> bytes:
    """The accepted encoding, so that it is never the encoding that is refused."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def paths(value: Any, path: Path = ()) -> Iterator[Path]:
    """Every place in the document, the whole excepted."""
    items: Any = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, item in items:
        yield (*path, key)
        yield from paths(item, (*path, key))


def get(document: Any, path: Path) -> Any:
    """The value at `path`."""
    for key in path:
        document = document[key]
    return document


def changed(document: Any, path: Path, value: Any) -> bytes:
    """The file with another value at `path`."""
    copied = copy.deepcopy(document)
    get(copied, path[:-1])[path[-1]] = value
    return written(copied)


def others(value: Any) -> Iterator[tuple[str, Any]]:
    """Other values for a field: of its type, empty, and of other types."""
    if isinstance(value, str):
        yield "truncated", value[:-1]
        yield "emptied", ""
        yield "doubled", value + value
        for at in (0, len(value) // 2, len(value) - 1):
            yield f"changed at {at}", value[:at] + ("B" if value[at] != "B" else "C") + value[at + 1 :]
        try:
            raw = base64.b64decode(value, validate=True)
        except ValueError:
            raw = b""
        if len(raw) > 1:
            step = max(1, len(raw) // 8)
            for at in [*range(0, len(raw), step), len(raw) - 1]:
                flipped = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
                yield f"bit flipped in byte {at}", base64.b64encode(flipped).decode()
            yield "last byte cut", base64.b64encode(raw[:-1]).decode()
            yield "byte added", base64.b64encode(raw + b"\n").decode()
    elif isinstance(value, int):
        yield from (("one more", value + 1), ("one less", value - 1), ("huge", 2**70), ("a text", str(value)))
    for name, replacement in (
        ("null", None),
        ("a number", 1.5),
        ("true", True),
        ("a list", []),
        ("an object", {}),
    ):
        if replacement != value:
            yield name, replacement


def tamperings(document: Any, member: str) -> Iterator[Change]:
    """Change, drop, duplicate, reorder, truncate and swap, at every place within `member`."""
    for path in [(member,), *paths(document[member], (member,))]:
        value = get(document, path)
        for what, other in others(value):
            yield Change(what, path, changed(document, path, other))
        copied = copy.deepcopy(document)
        parent = get(copied, path[:-1])
        del parent[path[-1]]
        yield Change("dropped", path, written(copied))
        if isinstance(parent, dict):
            yield Change("member added", path, changed(document, (*path[:-1], "extra"), value))
            continue
        siblings = get(document, path[:-1])
        at = int(path[-1])
        again = [*siblings[: at + 1], *siblings[at:]]
        yield Change("duplicated", path, changed(document, path[:-1], again))
        for other_at in range(at + 1, len(siblings)):
            swapped = list(siblings)
            swapped[at], swapped[other_at] = swapped[other_at], swapped[at]
            if swapped != siblings:
                yield Change(f"reordered with {other_at}", path, changed(document, path[:-1], swapped))


def swaps(document: Any, member: str) -> Iterator[Change]:
    """Each field of each item of a list, swapped with the same field of each other item: across executions."""
    for path in [(member,), *paths(document[member], (member,))]:
        items = get(document, path)
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            continue
        for one in range(len(items)):
            for other in range(one + 1, len(items)):
                for name in items[one]:
                    if items[one][name] == items[other][name]:
                        continue
                    copied = copy.deepcopy(document)
                    a, b = get(copied, (*path, one)), get(copied, (*path, other))
                    a[name], b[name] = b[name], a[name]
                    yield Change(f"swapped with {other}", (*path, one, name), written(copied))


def cli(*arguments: str) -> Result:
    """Run `egm evidence`."""
    return CliRunner().invoke(app, list(arguments))


def verdict(made: Made, data: bytes) -> tuple[Verdict, list[str]]:
    """What the product says, and the places that it names."""
    try:
        report: Report = verify_evidence(data, made.root, made.ca)
    except EvidenceError as error:
        assert error.reason is Reason.PROOF_INVALID
        return Verdict.CONTRADICTED, [error.detail]
    return report.verdict(), [f"{f.where}: {f.what}" for f in report.findings]


def second(made: Made, data: bytes) -> bool:
    """Whether the second verifier accepts."""
    try:
        second_verifier.check(data, made.root, made.ca)
    except second_verifier.Refused:
        return False
    return True


def test_the_untouched_file_is_established_by_both_verifiers(made: Made) -> None:
    """Without this, refusing everything would pass."""
    report = verify_evidence(made.data, made.root, made.ca)
    assert {section: report.verdict(section) for section in Section} == dict.fromkeys(
        Section, Verdict.ESTABLISHED
    )
    assert report.approved[0].approvers == ("approver-1", "approver-2")
    assert {one.witnesses for one in report.attested} == {("a", "b")}
    assert len({content.execution for content in report.contents}) == 2
    assert second(made, made.data)


# What may be left out of a file; then nothing contradicts, and the part it would prove is open.
_OPTIONAL = {"credentials", "endorsement", "endorsements", "links", "policies", "outcome"}


# The members of a file, and how many tamperings each has at least.
_MEMBERS = {
    "anchors": 30,
    "contents": 200,
    "credentials": 50,
    "endorsements": 30,
    "format": 10,
    "links": 20,
    "nodes": 130,
    "policies": 240,
    "records": 450,
}
# The tamperings of a member are dealt out, those of one place to every share in turn, so that each share has some of
# every place and of every kind. `make test` tries the first share, `make lab` the others.
_SHARES = 4


@pytest.mark.parametrize("share", [0, *(pytest.param(n, marks=pytest.mark.lab) for n in range(1, _SHARES))])
@pytest.mark.parametrize("member", _MEMBERS)
def test_every_tampering_at_every_place_is_refused_by_both_and_named(
    made: Made, member: str, share: int
) -> None:
    """One change anywhere: not accepted, a place is named, and the second verifier agrees."""
    document = json.loads(made.data)
    assert written(document) == made.data
    assert document.keys() == _MEMBERS.keys()
    count = 0
    tried: set[Path] = set()
    for change in itertools.chain(tamperings(document, member), swaps(document, member)):
        count += 1
        if count % _SHARES != share:
            continue
        tried.add(change.path)
        told, places = verdict(made, change.data)
        label = (change.what, change.path)
        assert told is not Verdict.ESTABLISHED, label
        assert places and all(places), label
        if told is Verdict.UNKNOWN:
            assert _OPTIONAL & set(change.path), label
        assert not second(made, change.data), label
    assert count >= _MEMBERS[member]
    assert tried >= {(member,), *paths(document[member], (member,))}, "a place that this share left out"


def test_the_place_named_is_the_place_of_the_change(made: Made) -> None:
    """Whoever reads the answer finds the field: the list and the number of the item are in it."""
    document = json.loads(made.data)
    for number in range(len(document["records"])):
        for name in ("record", "proof", "index", "node"):
            value = document["records"][number][name]
            for what, other in others(value):
                _, places = verdict(made, changed(document, ("records", number, name), other))
                named: tuple[str, ...] = f"records[{number}]", f"records[{number + 1}]", "contents[", "nodes["
                if what == "a number":  # no fraction is read anywhere
                    named = ("the file",)
                assert any(place.startswith(named) for place in places), (number, name, what, places)
    for number in range(len(document["nodes"])):
        flipped = base64.b64encode(
            base64.b64decode(document["nodes"][number]["checkpoint"])[:-9] + b"\n"
        ).decode()
        _, places = verdict(made, changed(document, ("nodes", number, "checkpoint"), flipped))
        assert places[0].startswith(f"nodes[{number}].checkpoint")


def test_bytes_cut_repeated_or_spelled_otherwise_are_refused(made: Made) -> None:
    """The file has one encoding: no byte of it may be another, none may be missing, none may follow."""
    size = len(made.data)
    variants = [made.data[:cut] for cut in range(0, size, max(1, size // 200))]
    variants += [made.data + b"\n", b" " + made.data, made.data * 2, made.data.replace(b'":', b'": ', 1)]
    first = made.data.index(b'"contents"')
    variants.append(made.data[:first] + b'"anchors":[],' + made.data[first:])  # a member twice
    shown = id_text(made.executions[0])
    variants += [made.data.replace(shown.encode(), shown.upper().encode())]  # the same id, written otherwise
    assert shown != shown.upper()
    for data in variants:
        assert verdict(made, data)[0] is Verdict.CONTRADICTED
        assert not second(made, data)


def test_another_root_or_another_ca_contradicts(made: Made, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A genuine file of one mesh proves nothing to those who trust another."""
    other = Domain.create(tmp_path_factory.mktemp("other"))
    report = verify_evidence(made.data, other.root, made.ca)
    assert report.verdict(Section.AUTHORITY) is Verdict.CONTRADICTED
    report = verify_evidence(made.data, made.root, (other.directory / "ca" / "ca.pem").read_bytes())
    assert report.verdict(Section.IDENTITY) is Verdict.CONTRADICTED
    assert not report.nodes


def test_one_execution_alone_is_a_smaller_and_genuine_file(made: Made) -> None:
    """What is exported is what was asked for, and no more."""
    data, evidence = export_evidence(made.executions[:1], made.ledgers, sources=made.sources)
    assert {content.execution for content in evidence.contents} == {id_text(made.executions[0])}
    assert len(evidence.records) == 4
    assert verify_evidence(data, made.root, made.ca).verdict() is Verdict.ESTABLISHED
    assert second(made, data)


def test_an_execution_that_no_ledger_has_is_not_exported(made: Made) -> None:
    """Asking for two and getting one would mislead."""
    with pytest.raises(InputError) as caught:
        export_evidence([made.executions[0], bytes(16)], made.ledgers)
    assert caught.value.reason is Reason.NOT_FOUND


def test_the_verbs_write_check_and_refuse_a_file(made: Made, tmp_path: pathlib.Path) -> None:
    """Exit 0 for a good file, 1 with the place for a bad one, 3 without the CA, 2 without ledgers."""
    file, root, ca = (tmp_path / name for name in ("e.json", "root.json", "ca.pem"))
    root.write_bytes(made.root)
    ca.write_bytes(made.ca)
    options = [word for node, path in made.ledgers.items() for word in ("--ledger", f"{node}={path}")]
    wanted = [id_text(execution) for execution in made.executions]
    options += ["--repository", str(made.repository)]
    assert cli("export", *wanted, "-o", str(file), *options).exit_code == 0
    assert file.read_bytes() == made.data
    mesh = tmp_path / "mesh"
    mesh.mkdir()
    (mesh / "nodes").symlink_to(made.home)  # as `egm up` lays it out
    (mesh / "control-plane").symlink_to(made.home / "cp-1")
    assert cli("export", *wanted, "-o", str(file), "--mesh", str(mesh)).exit_code == 0
    assert file.read_bytes() == made.data
    check = ("verify", str(file), "--root", str(root), "--json")
    told = cli(*check, "--ca", str(ca))
    assert (told.exit_code, json.loads(told.stdout)["verdict"]) == (0, "established")
    assert cli(*check).exit_code == 3
    swapped = cli(
        "verify", str(file), "--root", str(ca), "--ca", str(root)
    )  # by mistake: nothing about the file
    assert isinstance(swapped.exception, InputError)
    document = json.loads(made.data)
    document["records"][1]["index"], document["records"][0]["index"] = 1, 0
    file.write_bytes(changed(document, ("records", 0, "record"), document["records"][1]["record"]))
    told = cli(*check, "--ca", str(ca))
    assert told.exit_code == 1
    assert "records[0]" in {found["where"] for found in json.loads(told.stdout)["contradictions"]}
    file.write_bytes(made.data[:-40])
    assert cli(*check, "--ca", str(ca)).exit_code == 1
    assert isinstance(cli("export", *wanted, "-o", str(file)).exception, InputError)


def test_without_the_ca_from_elsewhere_identity_stays_open(made: Made) -> None:
    """A file that brings its own CA could be anybody's."""
    report = verify_evidence(made.data, made.root)
    assert report.verdict(Section.IDENTITY) is Verdict.UNKNOWN
    assert report.verdict(Section.INTEGRITY) is Verdict.ESTABLISHED
    assert [f.where for f in report.findings] == ["anchors"]
