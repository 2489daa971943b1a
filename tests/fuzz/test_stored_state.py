"""What was written to a disk or a database, damaged: read as it was, or refused with what to do, never a crash."""

import hashlib
import io
import json
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from control_plane.core.detection import Detector
from control_plane.core.findings import Decided, Ended, Evidence
from control_plane.edge.mesh_file import FILE_NAME, MeshFile
from control_plane.edge.operator_memory import FLOOR_FILE, OperatorMemory
from control_plane.edge.store.detection import _unpack, pack
from tests.support.damage import JUNK, damaged
from trust.detection import DetectionSettings
from trust.edge.ledger.archived import read_archived
from trust.edge.ledger.layout import ARCHIVED, segment_path
from trust.edge.ledger.segments import DamageError, Segment, frame_header, frame_places, read_frames
from trust.edge.policy_cache import _from_json
from trust.errors import EvidenceError, InputError, Reason, StateError
from trust.record import Side

NOW_MS = 1_700_000_000_000
CALLER = "spiffe://mesh.test/workload/w"
EXACT = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
MESH = {
    "trust_domain": "mesh.test",
    "root": "root.json",
    "control_plane": "127.0.0.1:1",
    "nodes": {"a": {"admin": "127.0.0.1:2", "inbound": {"s": "127.0.0.1:3"}}},
}
CACHED = {"format": 1, "roots": ["{}"], "timestamp": "{}", "snapshot": "{}", "roles": {"targets": "{}"}}


def detector(state: Any = None) -> Detector:
    """Return a detector that takes up what was learned."""
    return Detector(DetectionSettings(), state, denied=lambda _who: False, trust_domain="mesh.test")


def learned() -> Any:
    """Return what a detector has learned of some calls, as the store has it."""
    one = detector()
    for number in range(3):
        evidence = Evidence("a", "a/ledger", number, bytes(16))
        parts = (evidence, NOW_MS + number, Side.INBOUND, CALLER, "s", "p.S/M")
        refused = Decided(*parts, allowed=False, reason=Reason.POLICY_DENIED.value)
        ended = Ended(*parts, status="OK", duration_us=5, request_bytes=1, response_bytes=1)
        allowed = Decided(*parts, allowed=True, reason=Reason.ALLOWED.value)
        one.see([refused, allowed, ended], now_ms=NOW_MS + number)
    return json.loads(json.dumps(one.state()))


def segment() -> bytes:
    """Return a segment file of two batches."""
    frames = [frame_header(len(one), hashlib.sha256(one).digest()) + one for one in RECORDS]
    with tempfile.TemporaryDirectory() as folder:
        made = Segment.create(Path(folder), 0)
        made.write(0, frames[0] + frames[1])
        made.write(2, frames[2])
        made.close()
        return segment_path(Path(folder), 0).read_bytes()


RECORDS = (b"one", b"two" * 20, b"three")
SEGMENT = segment()
LEARNED = learned()


def with_count(value: object) -> Any:
    """Return what was learned with another number of calls counted."""
    state = json.loads(json.dumps(LEARNED))
    state["counts"][0][4] = value
    return state


def written(name: str, data: bytes, read: Callable[[Path], object]) -> object:
    """Read `data` from a file `name` of a directory."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(data)
        return read(Path(folder))


@given(damaged(LEARNED) | JUNK)
@example(with_count(float("inf")))
@settings(max_examples=300, deadline=None)
def test_what_detection_has_learned_is_taken_up_or_refused(state: Any) -> None:
    """A detector that cannot start would see nothing at all."""
    try:
        detector(state)
    except InputError as error:
        assert error.reason is Reason.INPUT_INVALID


@given(st.binary(max_size=200) | JUNK.map(lambda value: zlib.compress(json.dumps(value).encode())))
@settings(max_examples=100, deadline=None)
def test_what_the_store_keeps_of_it_is_unpacked_or_refused(data: bytes) -> None:
    """Compressed JSON, or not."""
    try:
        _unpack(data)
    except InputError as error:
        assert error.reason is Reason.INPUT_INVALID


@given(st.dictionaries(st.text(max_size=8), EXACT | st.lists(EXACT, max_size=600), max_size=4))
@settings(max_examples=50, deadline=None)
def test_what_is_packed_is_unpacked(state: dict[str, Any]) -> None:
    """It is written in pieces: none is lost, and none twice."""
    assert _unpack(pack(state)) == state


@given(st.binary(max_size=100) | (damaged(MESH) | JUNK).map(lambda value: json.dumps(value).encode()))
@settings(max_examples=150, deadline=None)
def test_an_address_book_is_read_or_refused(data: bytes) -> None:
    """People write it, too."""
    try:
        assert isinstance(written(FILE_NAME, data, MeshFile.load), MeshFile)
    except InputError as error:
        assert error.reason is Reason.INPUT_INVALID


@given(st.binary(max_size=100) | JUNK.map(lambda value: json.dumps(value).encode()))
@settings(max_examples=100, deadline=None)
def test_an_operators_memory_is_read_or_refused(data: bytes) -> None:
    """It guards against being shown older policy: what cannot be read must not count as nothing."""
    try:
        written(FLOOR_FILE, data, lambda path: OperatorMemory(path).check_floor({}, frozenset()))
    except StateError as error:
        assert error.reason is Reason.POLICY_ROLLBACK


@given(st.binary(max_size=100) | (damaged(CACHED) | JUNK).map(lambda value: json.dumps(value).encode()))
@settings(max_examples=150, deadline=None)
def test_a_policy_cache_is_read_or_refused(data: bytes) -> None:
    """A node resumes from it, and verifies what is in it."""
    try:
        _from_json(data)
    except EvidenceError as error:
        assert error.reason is Reason.METADATA_INVALID


@given(st.binary(max_size=60) | st.text("0123456789 /:abc\n", max_size=60).map(str.encode))
@settings(max_examples=150, deadline=None)
def test_a_list_of_archived_segments_is_read_or_refused(data: bytes) -> None:
    """A ledger's directory may be somebody else's."""
    try:
        found = written(ARCHIVED, data, read_archived)
    except StateError as error:
        assert error.reason is Reason.LEDGER_CONTRADICTED
    else:
        assert isinstance(found, dict)


@given(st.integers(0, len(SEGMENT)), st.integers(0, 20), st.binary(max_size=20))
@settings(max_examples=300, deadline=None)
def test_of_a_damaged_segment_no_record_is_read_that_was_not_written(at: int, less: int, more: bytes) -> None:
    """Bytes are changed, removed, put in or cut off: what is read is a beginning of what was written."""
    file = io.BytesIO(SEGMENT[:at] + more + SEGMENT[at + less :])
    found = []
    try:
        for frame in read_frames(file, 0):
            found.append(frame.record)
    except DamageError as error:
        assert error.index == len(found)
    assert tuple(found) == RECORDS[: len(found)]
    assert len(list(frame_places(file, 0, at))) <= len(SEGMENT)
