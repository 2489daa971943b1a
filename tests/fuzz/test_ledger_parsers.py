"""Notes, checkpoints, tiles and entry bundles: any bytes are read or refused, nothing else happens."""

from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trust.checkpoint import parse_checkpoint
from trust.errors import EvidenceError
from trust.note import Verifier, read_unverified
from trust.tiles import decode_entries, parse_tile_path

CHECKPOINT = "example.com/log\n3\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
LINE = "\n\u2014 example.com/log Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe\n"
PARSERS: list[Callable[[bytes], object]] = [
    read_unverified,
    parse_checkpoint,
    lambda data: decode_entries(data, 3),
    lambda data: parse_tile_path(data.decode("latin-1")),
    lambda data: Verifier.parse(data.decode("latin-1")),
]


@given(data=st.one_of(st.binary(max_size=300), st.text(max_size=100).map(str.encode)))
@example(data=CHECKPOINT.encode())
@example(data=(CHECKPOINT + LINE).encode())
@example(data=b"a\n99999999999999999999\n=\n")
@example(data=b"tile/0/x000/001")
@example(data="\u0663".encode())
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """Only `EvidenceError` leaves a parser."""
    for parse in PARSERS:
        try:
            parse(data)
        except EvidenceError:
            continue


@given(at=st.integers(0, len(CHECKPOINT) - 1), to=st.characters(max_codepoint=0x2FF))
def test_a_checkpoint_has_one_spelling(at: int, to: str) -> None:
    """A changed character is refused, or means something else: never the same checkpoint."""
    changed = CHECKPOINT[:at] + to + CHECKPOINT[at + 1 :]
    if changed == CHECKPOINT:
        return
    try:
        assert parse_checkpoint(changed.encode()) != parse_checkpoint(CHECKPOINT.encode())
    except EvidenceError:
        return


@pytest.mark.parametrize(
    "path",
    [
        "tile/0/1", "tile/00/001", "tile/0/x000/001", "tile/0/0001", "tile/0/001.p/0", "tile/0/001.p/256",
        "tile/0/001.p/007", "tile/64/001", "tile/0/001.p/1/", "tile/0/001\n", "/tile/0/001", "tile/0/../001",
    ],
)  # fmt: skip
def test_a_tile_has_one_path(path: str) -> None:
    """Other spellings could escape a cache, or a folder."""
    with pytest.raises(EvidenceError):
        parse_tile_path(path)
