"""The bundle reader is total: any bytes give a bundle or an EvidenceError."""

import gzip

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.bundles import BASE_FILES
from trust.bundle import Bundle, read_bundle, write_bundle
from trust.errors import EvidenceError, Reason

ARCHIVE = write_bundle("p", BASE_FILES)
TAR = gzip.decompress(ARCHIVE)
REASONS = {Reason.BUNDLE_MALFORMED, Reason.BUNDLE_UNSAFE_PATH, Reason.BUNDLE_TOO_LARGE}


def outcome(archive: bytes) -> Bundle | None:
    try:
        return read_bundle(archive, role="targets")
    except EvidenceError as error:
        assert error.reason in REASONS
        return None


def mutated(data: bytes, edits: list[tuple[int, bytes, int]]) -> bytes:
    for position, insert, drop in edits:
        at = position % (len(data) + 1)
        data = data[:at] + insert + data[at + drop :]
    return data


EDITS = st.lists(
    st.tuples(st.integers(0, 1 << 20), st.binary(max_size=8), st.integers(0, 600)), min_size=1, max_size=4
)


@given(st.binary(max_size=4096))
def test_arbitrary_bytes_are_judged_never_crashed_on(data: bytes) -> None:
    """Raw, and wrapped in valid compression."""
    assert outcome(data) is None
    assert outcome(gzip.compress(data)) is None


@settings(max_examples=200)
@given(EDITS)
def test_mutated_archive_is_refused_or_has_the_original_content(edits: list[tuple[int, bytes, int]]) -> None:
    """The manifest's hashes leave no room between the two, whatever was changed in the compressed bytes."""
    bundle = outcome(mutated(ARCHIVE, edits))
    assert bundle is None or bundle.policies == {
        path: data.decode() for path, data in BASE_FILES.items() if path.startswith("policies/")
    }


@settings(max_examples=300)
@given(EDITS)
def test_mutated_tar_inside_valid_compression_never_changes_a_file(
    edits: list[tuple[int, bytes, int]],
) -> None:
    """An attacker who recompresses has to get past the manifest as well."""
    bundle = outcome(gzip.compress(mutated(TAR, edits), mtime=0))
    if bundle is not None and bundle.manifest.name == "p":
        assert set(bundle.manifest.files) == set(BASE_FILES)


SEGMENT = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)


@given(st.dictionaries(SEGMENT.map(lambda s: f"policies/{s.lower()}.cedar"), st.text(), max_size=5))
def test_what_is_written_is_read_back(policies: dict[str, str]) -> None:
    """For any policy texts that UTF-8 can carry."""
    encodable = {p: t for p, t in policies.items() if not any(0xD800 <= ord(c) <= 0xDFFF for c in t)}
    files = {**BASE_FILES, **{path: text.encode() for path, text in encodable.items()}}
    archive = write_bundle("p", files)
    bundle = read_bundle(archive, role="targets")
    assert {**bundle.policies} == {p: d.decode() for p, d in files.items() if p.startswith("policies/")}
    assert archive == write_bundle("p", files)
