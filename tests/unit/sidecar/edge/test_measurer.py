"""The software measurement: every installed file and the effective configuration change it, nothing else does."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.config_file import parse_config
from sidecar.edge.measurer import SoftwareMeasurer, installed_digest
from trust import limits
from trust.attestation.measurement import configuration_digest, distribution_digest
from trust.errors import MeshError, Reason

CONFIG = """
node: n1
trust_domain: mesh.local
data_dir: data
root: root.json
control_plane: {addresses: ["127.0.0.1:1"]}
identity: {source: embedded, ca: ca.pem}
inbound: [{service: pay, listen: "127.0.0.1:0", upstream: {address: "127.0.0.1:2"}}]
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of two files on the path."""
    folder = tmp_path / "egm_measured_probe"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "data.txt").write_text("one")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder


def digest() -> bytes:
    return installed_digest(["egm_measured_probe"])


def test_every_file_counts_by_name_and_content(package: Path) -> None:
    """Changed, added, renamed: another digest; compiled caches do not count."""
    first = digest()
    (package / "__pycache__").mkdir(exist_ok=True)
    (package / "__pycache__" / "x.pyc").write_bytes(b"1")
    assert digest() == first
    (package / "data.txt").write_text("two")
    second = digest()
    (package / "data.txt").rename(package / "other.txt")
    third = digest()
    (package / "more.txt").write_text("")
    assert len({first, second, third, digest()}) == 4


def test_an_unreadable_installation_is_not_measured(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A digest over a part would be a lie; too many files are refused as well."""
    monkeypatch.setattr(limits, "MAX_MEASURED_FILES", 1)
    with pytest.raises(MeshError) as error:
        digest()
    assert error.value.reason is Reason.MEASUREMENT_REFUSED
    shutil.rmtree(package)


def config(text: str = CONFIG) -> Any:
    return parse_config(text, base=Path("/etc/egm"), env={})


def test_the_configuration_counts_as_it_is_in_effect(package: Path) -> None:
    """Order and comments do not matter, a value does."""
    base = SoftwareMeasurer(config(), ["egm_measured_probe"]).measure()
    same = SoftwareMeasurer(config("# comment\n" + CONFIG), ["egm_measured_probe"]).measure()
    other = SoftwareMeasurer(config(CONFIG.replace("pay,", "shop,")), ["egm_measured_probe"]).measure()
    assert base == same
    assert base.distribution == other.distribution
    assert base.configuration != other.configuration


def test_the_digests_do_not_depend_on_order() -> None:
    """Two file systems list differently."""
    files = [("a", b"\x01" * 32), ("b", b"\x02" * 32)]
    assert distribution_digest(files) == distribution_digest(reversed(files))
    assert configuration_digest({"a": 1, "b": {"c": 2, "d": 3}}) == configuration_digest(
        {"b": {"d": 3, "c": 2}, "a": 1}
    )
