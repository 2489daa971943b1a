"""The address book of a mesh directory."""

from pathlib import Path

import pytest

from control_plane.edge.mesh_file import MeshFile, NodeEntry, WorkloadEntry, find_mesh
from trust.errors import InputError, Reason

FILE = MeshFile(
    trust_domain="mesh.local",
    root="root.json",
    control_plane="127.0.0.1:7400",
    nodes={"a": NodeEntry(admin="127.0.0.1:1")},
    workloads={"alice": WorkloadEntry(outbound={"a": "127.0.0.1:2"})},
)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    """Round trip, but for the paths."""
    FILE.save(tmp_path)
    paths = {"root", "operator"}
    assert MeshFile.load(tmp_path).model_dump(exclude=paths) == FILE.model_dump(exclude=paths)


def test_paths_are_relative_to_the_file_wherever_a_verb_is_run(tmp_path: Path) -> None:
    """As a person writes them by hand; absolute ones stay."""
    entry = NodeEntry(admin="127.0.0.1:1", config="sidecar.yaml")
    update = {"domain": "/etc/domain", "approvers": {"ann": "ann.pem"}, "nodes": {"a": entry}}
    FILE.model_copy(update=update).save(tmp_path)
    found = MeshFile.load(tmp_path)
    assert found.root == str(tmp_path / "root.json")
    assert found.operator == str(tmp_path / "operator")
    assert found.domain == "/etc/domain"
    assert found.approvers == {"ann": str(tmp_path / "ann.pem")}
    assert found.nodes["a"].config == str(tmp_path / "sidecar.yaml")


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    """The error names the command."""
    with pytest.raises(InputError, match="egm up") as caught:
        MeshFile.load(tmp_path)
    assert caught.value.reason is Reason.NOT_FOUND


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"trust_domain": 1}', "\x00"])
def test_a_broken_file_is_named_with_its_first_wrong_key(tmp_path: Path, text: str) -> None:
    """Never a traceback."""
    (tmp_path / "mesh.json").write_text(text)
    with pytest.raises(InputError) as caught:
        MeshFile.load(tmp_path)
    assert caught.value.reason is Reason.INPUT_INVALID


def test_the_option_wins_over_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--mesh, then EGM_MESH, then the current directory, then an error that says so."""
    monkeypatch.setenv("EGM_MESH", str(tmp_path / "environment"))
    assert find_mesh(tmp_path) == tmp_path
    assert find_mesh(None) == tmp_path / "environment"
    monkeypatch.delenv("EGM_MESH")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="--mesh"):
        find_mesh(None)
    FILE.save(tmp_path)
    assert find_mesh(None) == tmp_path
