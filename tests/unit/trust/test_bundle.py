"""Reading archives that somebody made to hurt the reader."""

import gzip
import hashlib
import io
import random
import tarfile
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.bundles import BASE_FILES, archive_of, manifest_bytes, tar_of
from trust import limits
from trust.bundle import MANIFEST, read_bundle, write_bundle
from trust.errors import EvidenceError, Reason


def refused(archive: bytes, role: str = "targets") -> EvidenceError:
    with pytest.raises(EvidenceError) as caught:
        read_bundle(archive, role=role)
    return caught.value


def with_member(info: tarfile.TarInfo, data: bytes = b"") -> bytes:
    """An archive whose only member is `info`."""
    return gzip.compress(tar_of([(info, data)]))


def test_written_bundle_reads_back_with_every_part_in_its_place() -> None:
    """The roundtrip loses nothing."""
    bundle = read_bundle(write_bundle("shop", BASE_FILES, description="two\nlines"), role="targets")
    assert bundle.manifest.name == "shop"
    assert bundle.manifest.description == "two\nlines"
    assert bundle.policies == {"policies/main.cedar": BASE_FILES["policies/main.cedar"].decode()}
    assert bundle.tests == {"tests/main.yaml": "[]\n"}
    assert bundle.mesh is not None
    assert bundle.mesh.trust_domain == "mesh.local"
    assert bundle.descriptors is None


def test_same_files_in_another_order_give_the_same_bytes() -> None:
    """Approvers on different machines must be able to compare digests."""
    other = dict(reversed(list(BASE_FILES.items())))
    archive = write_bundle("shop", BASE_FILES)
    assert archive == write_bundle("shop", other)
    assert read_bundle(archive, role="targets").digest == hashlib.sha256(archive).hexdigest()


def test_archive_is_an_ordinary_tar_for_other_tools() -> None:
    """An auditor can unpack a bundle without us."""
    with tarfile.open(fileobj=io.BytesIO(write_bundle("shop", BASE_FILES))) as tar:
        assert sorted(tar.getnames()) == sorted([*BASE_FILES, MANIFEST])


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../outside",
        "policies/../../outside.cedar",
        "policies\\x.cedar",
        "policies/./x.cedar",
        "policies//x.cedar",
        "policies/.hidden.cedar",
        "policies/ü.cedar",
        "C:/x",
        "policies/x.cedar/",
    ],
)
def test_member_whose_name_could_escape_is_refused(path: str) -> None:
    """No name may leave the folder that a careless reader unpacks into."""
    info = tarfile.TarInfo()
    info.name = path
    assert refused(with_member(info, b"x")).reason == Reason.BUNDLE_UNSAFE_PATH


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        tarfile.DIRTYPE,
        tarfile.AREGTYPE,
        tarfile.CONTTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_SPARSE,
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
    ],
)
def test_member_that_is_not_a_regular_file_is_refused(kind: bytes) -> None:
    """Links, devices and extension headers have no use in a bundle."""
    info = tarfile.TarInfo("policies/x.cedar")
    info.type = kind
    info.linkname = "/etc/passwd"
    assert refused(with_member(info)).reason == Reason.BUNDLE_UNSAFE_PATH


@pytest.mark.parametrize("field", ["mtime", "uid", "gid", "mode"])
def test_header_that_is_not_canonical_is_refused(field: str) -> None:
    """One content has one tar form."""
    info = tarfile.TarInfo("policies/x.cedar")
    setattr(info, field, 0o755)
    assert refused(with_member(info)).reason == Reason.BUNDLE_MALFORMED


@pytest.mark.parametrize("order", [["a", "a"], ["A", "a"], ["b", "a"]])
def test_duplicate_case_variant_and_unsorted_members_are_refused(order: list[str]) -> None:
    """Two readers must not see two different files under one name."""
    members = [(tarfile.TarInfo(f"policies/{name}.cedar"), b"x") for name in order]
    assert refused(gzip.compress(tar_of(members))).reason == Reason.BUNDLE_MALFORMED


def test_bomb_of_one_giant_member_is_refused_before_it_is_unpacked() -> None:
    """The size in the header is judged first."""
    info = tarfile.TarInfo("descriptors.binpb")
    info.size = limits.MAX_BUNDLE_ENTRY_BYTES + 1
    archive = gzip.compress(info.tobuf(tarfile.USTAR_FORMAT))
    assert refused(archive).reason == Reason.BUNDLE_TOO_LARGE


def test_bomb_of_many_members_is_refused_at_the_total_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each member is small enough; together they are not."""
    monkeypatch.setattr(limits, "MAX_BUNDLE_UNPACKED_BYTES", 100_000)
    members = [(tarfile.TarInfo(f"policies/p{i:03}.cedar"), bytes(10_000)) for i in range(12)]
    assert refused(gzip.compress(tar_of(members))).reason == Reason.BUNDLE_TOO_LARGE


def test_too_many_members_and_too_big_an_archive_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting caps hold."""
    members = [(tarfile.TarInfo(f"policies/p{i:03}.cedar"), b"") for i in range(12)]
    archive = gzip.compress(tar_of(members))
    monkeypatch.setattr(limits, "MAX_BUNDLE_ENTRIES", 11)
    assert refused(archive).reason == Reason.BUNDLE_TOO_LARGE
    monkeypatch.setattr(limits, "MAX_BUNDLE_ARCHIVE_BYTES", 10)
    assert refused(archive).reason == Reason.BUNDLE_TOO_LARGE


@pytest.mark.parametrize(
    "damage",
    [
        lambda a: a[:-1],
        lambda a: a[: len(a) // 2],
        lambda a: a + b"x",
        lambda a: a + a,
        lambda a: gzip.compress(gzip.decompress(a) + bytes(512)),
        lambda a: gzip.compress(gzip.decompress(a)[:-512]),
        lambda a: zlib.compress(gzip.decompress(a)),
        lambda _: b"",
        gzip.decompress,
    ],
    ids=["cut", "half", "tail", "twice", "extra-block", "one-end-block", "zlib", "empty", "bare-tar"],
)
def test_damaged_or_extended_archive_is_refused(damage: object) -> None:
    """Truncation and trailing bytes are never ignored."""
    assert callable(damage)
    assert refused(damage(write_bundle("x", BASE_FILES))).reason == Reason.BUNDLE_MALFORMED


def test_content_that_differs_from_the_manifest_is_refused() -> None:
    """Every file is what the manifest says, no more and no less."""
    honest = manifest_bytes(BASE_FILES)
    changed = {**BASE_FILES, "policies/main.cedar": b"// nothing"}
    extra = {**BASE_FILES, "policies/extra.cedar": b""}
    fewer = {path: data for path, data in BASE_FILES.items() if path != "tests/main.yaml"}
    for files, words in [(changed, "SHA-256"), (extra, "not named"), (fewer, "not in the archive")]:
        error = refused(archive_of(files, manifest=honest))
        assert error.reason == Reason.BUNDLE_MALFORMED
        assert words in error.detail


@pytest.mark.parametrize(
    "override",
    [
        {"format": 2},
        {"format": True},
        {"name": ""},
        {"name": "x\x1b[2J"},
        {"name": "\ud800"},
        {"name": 3},
        {"description": "\x07"},
        {"description": "x" * 2001},
        {"namespace": "targets"},
        {"namespace": "Not a name"},
        {"namespace": 1},
        {"files": []},
        {"extra": 1},
    ],
)
def test_manifest_with_a_wrong_field_is_refused(override: dict[str, object]) -> None:
    """Unknown, mistyped and unprintable fields do not pass."""
    archive = archive_of(BASE_FILES, manifest=manifest_bytes(BASE_FILES, **override))
    assert refused(archive).reason == Reason.BUNDLE_MALFORMED


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"[" * 200_000, b'{"format": 1, "format": 1}'])
def test_manifest_that_is_not_a_json_object_is_refused(data: bytes) -> None:
    """Deep nesting and repeated keys included."""
    assert refused(archive_of(BASE_FILES, manifest=data)).reason == Reason.BUNDLE_MALFORMED


def test_mesh_settings_belong_to_the_base_bundle_alone() -> None:
    """A namespace's approvers must not change the levels of the mesh."""
    without = {path: data for path, data in BASE_FILES.items() if path != "mesh.json"}
    assert refused(archive_of(without)).detail.startswith("mesh.json is missing")
    namespaced = archive_of(BASE_FILES, manifest=manifest_bytes(BASE_FILES, namespace="payments"))
    assert "base bundle alone" in refused(namespaced, role="payments").detail


def test_bundle_signed_by_another_role_is_refused() -> None:
    """A namespace bundle cannot pose as the base, nor as another namespace's."""
    without = {path: data for path, data in BASE_FILES.items() if path != "mesh.json"}
    archive = write_bundle("p", without, namespace="payments")
    assert read_bundle(archive, role="payments").mesh is None
    for role in ("targets", "billing"):
        assert refused(archive, role=role).reason == Reason.BUNDLE_MALFORMED


def test_text_that_is_not_utf8_and_bad_mesh_settings_are_refused() -> None:
    """Both are named in the error."""
    assert "policies/main.cedar" in refused(archive_of({**BASE_FILES, "policies/main.cedar": b"\xff"})).detail
    for mesh in (b"{}", b'{"trust_domain": "UPPER"}', b'{"trust_domain": "a", "level": 6}', b"\xff"):
        error = refused(archive_of({**BASE_FILES, "mesh.json": mesh}))
        assert error.reason == Reason.BUNDLE_MALFORMED
        assert "mesh.json" in error.detail


@pytest.mark.parametrize("missing", ["schema.cedarschema", "entities.json"])
def test_bundle_without_a_required_file_is_refused(missing: str) -> None:
    """A bundle that cannot be validated is not a bundle."""
    files = {path: data for path, data in BASE_FILES.items() if path != missing}
    assert refused(archive_of(files)).detail == f"{missing} is missing"


def test_writer_refuses_what_the_reader_would() -> None:
    """Authoring fails where the mistake is made, not on a node."""
    for path in ("../x", "notes.txt", "policies/a.txt", MANIFEST):
        with pytest.raises(EvidenceError):
            write_bundle("x", {**BASE_FILES, path: b""})


class _CountingZlib:
    """zlib's decompressor, counting the bytes that each call copies."""

    def __init__(self, real: Callable[[int], Any], counted: list[int]) -> None:
        self._inner, self._counted = real(31), counted

    def decompress(self, data: bytes, at_most: int) -> bytes:
        self._counted.append(len(data))
        return bytes(self._inner.decompress(data, at_most))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def test_many_small_members_before_a_large_one_do_not_cost_their_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """zlib copies what it leaves: 20,000 members before 60 MB would be terabytes of copying, for one upload."""
    noise = random.Random(1).randbytes(2 * 1024 * 1024).hex().encode()
    small = {f"policies/p{number:04}.cedar": b"// x\n" for number in range(300)}
    archive = archive_of({**BASE_FILES, **small, "tests/z.yaml": noise})
    counted: list[int] = []
    real = zlib.decompressobj
    monkeypatch.setattr(zlib, "decompressobj", lambda _bits: _CountingZlib(real, counted))
    assert len(read_bundle(archive, role="targets").policies) == 301
    assert sum(counted) < 10 * len(archive)  # it was hundreds of times the archive


def test_data_in_a_later_piece_than_the_end_is_found() -> None:
    """A second gzip stream far behind the end is still data after the end."""
    archive = archive_of(BASE_FILES)
    for tail in (b"\0", gzip.compress(b"x"), bytes(100_000)):
        assert refused(archive + tail).reason == Reason.BUNDLE_MALFORMED
    for cut in (1, 4, 8, 20, len(archive) // 2):
        assert refused(archive[:-cut]).reason == Reason.BUNDLE_MALFORMED
