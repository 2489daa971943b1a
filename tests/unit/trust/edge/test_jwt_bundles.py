"""JWT-SVID keys from a file that is followed."""

import json
from pathlib import Path

import pytest
from joserfc.jwk import ECKey

from trust.edge.jwt_bundles import FileJwtBundles
from trust.errors import InputError


def write(path: Path, kid: str) -> None:
    entry = {**ECKey.generate_key("P-256").as_dict(private=False), "kid": kid}
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"keys": [entry]}))
    new.replace(path)


def test_a_replaced_file_is_read_again(tmp_path: Path) -> None:
    """Key rotation needs no restart."""
    path = tmp_path / "jwks.json"
    write(path, "one")
    bundles = FileJwtBundles(path, "mesh.test")
    assert list(bundles.jwt_keys()["mesh.test"]) == ["one"]
    write(path, "two-longer")
    assert list(bundles.jwt_keys()["mesh.test"]) == ["two-longer"]


def test_a_file_that_breaks_or_disappears_leaves_the_keys_in_force(tmp_path: Path) -> None:
    """An editor's mistake must not lock every caller out, nor let anybody in."""
    path = tmp_path / "jwks.json"
    write(path, "one")
    bundles = FileJwtBundles(path, "mesh.test")
    path.write_text("{")
    assert list(bundles.jwt_keys()["mesh.test"]) == ["one"]
    path.unlink()
    assert list(bundles.jwt_keys()["mesh.test"]) == ["one"]


def test_a_missing_or_malformed_file_at_start_is_an_error_that_names_it(tmp_path: Path) -> None:
    """A sidecar that was told to check tokens does not start without keys."""
    with pytest.raises(InputError, match=r"jwks\.json"):
        FileJwtBundles(tmp_path / "jwks.json", "mesh.test")
    (tmp_path / "jwks.json").write_text("[]")
    with pytest.raises(InputError, match="no list of keys"):
        FileJwtBundles(tmp_path / "jwks.json", "mesh.test")
