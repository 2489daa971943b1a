"""Signed notes, checkpoints, cosignatures and tile names against published examples."""

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from trust.checkpoint import parse_checkpoint
from trust.errors import EvidenceError
from trust.note import Verifier, cosigned_message, open_note, read_unverified, sign_note
from trust.tiles import ENTRIES, Tile, partial_tiles, tile_width

VECTORS = json.loads((Path(__file__).parent / "notes.json").read_text())
TEXT = VECTORS["text"].encode()
PETER, ENOCH = (Verifier.parse(VECTORS[name]["vkey"]) for name in ("peter", "enoch"))
PETER_LINE, ENOCH_LINE = (VECTORS[name]["line"].encode() for name in ("peter", "enoch"))
SEED = base64.b64decode(VECTORS["peter"]["seed"])[1:]


def test_signing_gives_the_published_bytes() -> None:
    """The same key and text as in the Go checksum database's tests give the same note."""
    sign = Ed25519PrivateKey.from_private_bytes(SEED).sign
    made = sign_note(TEXT, PETER.name, sign, public_key=PETER.public_key)
    assert made == TEXT + b"\n" + PETER_LINE


def test_known_and_unknown_signatures_are_told_apart() -> None:
    """Only signatures of known keys count; repeated ones count once."""
    data = TEXT + b"\n" + PETER_LINE + PETER_LINE + ENOCH_LINE + ENOCH_LINE
    note = open_note(data, [PETER])
    assert note.text == TEXT
    assert [s.name for s in note.verified] == ["PeterNeumann"]
    assert [s.name for s in note.unknown] == ["EnochRoot"]
    both = open_note(data, [PETER, ENOCH, ENOCH])
    assert [s.name for s in both.verified] == ["PeterNeumann", "EnochRoot"]
    with pytest.raises(EvidenceError, match="SIGNATURE_INVALID"):
        open_note(data, [])


@pytest.mark.parametrize(
    "data",
    [
        TEXT,
        TEXT + b"\n",
        TEXT + b"\n" + PETER_LINE[:-1],
        b"\x01" + TEXT + b"\n" + PETER_LINE,
        b"\xff" + TEXT + b"\n" + PETER_LINE,
        TEXT + b"\n" + PETER_LINE.replace(b"PeterNeumann", b"Bad Name"),
        TEXT + b"\n" + PETER_LINE + b"Unexpected line.\n",
        TEXT + b"\n" + PETER_LINE * 101,
        TEXT + b"\n" + PETER_LINE.replace(b"=\n", b"\n"),
        TEXT.replace(b"\n", b"\r\n") + b"\n" + PETER_LINE,
    ],
)
def test_a_malformed_note_is_refused(data: bytes) -> None:
    """The bad messages of the Go tests, and padding and line ends that are not canonical."""
    with pytest.raises(EvidenceError, match="PROOF_INVALID"):
        open_note(data, [PETER])


def test_a_wrong_signature_of_a_known_key_spoils_the_note() -> None:
    """Even beside a good one: a known key that does not verify is an alarm, not noise."""
    bad = PETER_LINE[:60] + b"ABCD" + PETER_LINE[60:]
    for lines in (bad, PETER_LINE + bad, ENOCH_LINE + bad):
        with pytest.raises(EvidenceError, match="SIGNATURE_INVALID"):
            open_note(TEXT + b"\n" + lines, [PETER, ENOCH])


def test_verifier_keys_round_trip_and_no_mangled_one_is_accepted() -> None:
    """Every substring and every changed character of a verifier key is refused."""
    for vkey in (VECTORS["peter"]["vkey"], *VECTORS["cosigner_vkeys"]):
        assert Verifier.parse(vkey).encode() == vkey
    vkey = VECTORS["peter"]["vkey"]
    mangled = {vkey[i:j] for i in range(0, len(vkey), 5) for j in range(i, len(vkey) + 1)} - {vkey}
    mangled |= {vkey[:i] + chr(ord(vkey[i]) + 1) + vkey[i + 1 :] for i in range(len(vkey))}
    for bad in mangled | set(VECTORS["bad_vkeys"]):
        with pytest.raises(EvidenceError, match="KEY_UNSAFE"):
            Verifier.parse(bad)


def test_the_published_checkpoint_reads_back_to_the_byte() -> None:
    """Form only: C2SP does not publish the keys of its example."""
    data = VECTORS["checkpoint"].encode()
    note = read_unverified(data)
    checkpoint = parse_checkpoint(note.text)
    assert (checkpoint.origin, checkpoint.size) == ("example.com/behind-the-sofa", 20852163)
    assert checkpoint.body() == note.text
    assert [s.name for s in note.unknown] == ["example.com/behind-the-sofa", "witness.example.com/w1"]
    at = int.from_bytes(note.unknown[1].value[:8], "big")
    assert at == VECTORS["checkpoint_time"]
    assert cosigned_message(note.text, at) == VECTORS["cosigned"].encode()


def test_the_time_of_a_published_cosignature_is_read() -> None:
    """Eight bytes after the key id, big-endian seconds."""
    encoded, time_s = VECTORS["cosignature_time"]
    assert int.from_bytes(base64.b64decode(encoded)[4:12], "big") == time_s


def test_tiles_are_named_and_counted_as_in_the_specification() -> None:
    """The examples of C2SP tlog-tiles."""
    index, path = VECTORS["tile_path"]
    assert Tile(0, index).path == f"tile/0/{path}"
    expected = {tuple(t) for t in VECTORS["tiles_of_70000"]} | {(ENTRIES, 273, 112)}
    assert {(t.level, t.index, t.width) for t in partial_tiles(70_000)} == expected
    assert [tile_width(0, i, 70_000) for i in (272, 273, 274)] == [256, 112, 0]
    assert {(t.level, t.index, t.width) for t in partial_tiles(256)} == {(1, 0, 1)}
