"""The authoring verbs of `egm policy`, as a person and as a program use them."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from control_plane.cli.policy_source import register
from control_plane.edge.source_folder import bundle_at, read_folder, write_folder
from tests.support.engines import descriptors
from tests.support.folders import POLICIES, folder, namespace_folder
from trust import limits
from trust.bundle import read_bundle
from trust.errors import InputError, Reason
from trust.policy.source import build

APP = typer.Typer()
register(APP)


def run(*arguments: object) -> tuple[int, str]:
    """Run one verb; a MeshError passes through, as it does to the shared handler."""
    result = CliRunner().invoke(APP, [str(a) for a in arguments], catch_exceptions=False)
    return result.exit_code, result.stdout


def ask(*arguments: object) -> tuple[int, dict[str, object]]:
    """Run one verb with --json."""
    code, text = run(*arguments, "--json")
    value = json.loads(text)
    assert isinstance(value, dict)
    return code, value


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """The example folder on disk."""
    write_folder(tmp_path / "shop", folder())
    return tmp_path / "shop"


def test_new_folder_passes_lint_and_test_and_builds(tmp_path: Path) -> None:
    """The first five minutes of an author."""
    target = tmp_path / "policy"
    (tmp_path / "d.binpb").write_bytes(descriptors())
    code, data = ask("new", target, "--service", "payments", "--descriptors", tmp_path / "d.binpb")
    assert code == 0
    assert "bundle.yaml" in str(data["files"])
    assert ask("lint", target) == (0, {"ok": True, "problems": []})
    code, data = ask("test", target)
    assert (code, data["passed"], data["failed"]) == (0, 2, 0)
    code, data = ask("build", target, "-o", tmp_path / "out.tar.gz", "--level", "1")
    bundle = read_bundle((tmp_path / "out.tar.gz").read_bytes(), role="targets")
    assert code == 0
    assert data["sha256"] == bundle.digest
    assert bundle.mesh is not None
    assert bundle.mesh.level == 1


def test_new_overwrites_nothing(shop: Path) -> None:
    """An author's work is not replaced by an example."""
    before = read_folder(shop)
    with pytest.raises(InputError):
        run("new", shop)
    assert read_folder(shop) == before


def test_lint_exits_1_and_lists_file_line_and_hint(shop: Path) -> None:
    """For a program and for a person."""
    (shop / "policies/shop.cedar").write_text("permit(principal, action, resource);")
    code, data = ask("lint", shop)
    problems = data["problems"]
    assert isinstance(problems, list)
    assert (code, data["ok"]) == (1, False)
    assert {"file": "policies/shop.cedar", "line": 1, "severity": "error"}.items() <= next(
        p for p in problems if "@id" in p["message"]
    ).items()
    code, text = run("lint", shop)
    assert code == 1
    assert "error: policies/shop.cedar:1: the policy has no @id; give it a name" in text


def test_warnings_pass_unless_strict(shop: Path) -> None:
    """A reviewer may insist."""
    (shop / "README.md").write_text("about")
    assert run("lint", shop)[0] == 0
    assert run("lint", shop, "--strict")[0] == 1


def test_failing_case_exits_1_and_says_what_happened(shop: Path) -> None:
    """With the line of the case."""
    path = shop / "tests/shop.yaml"
    path.write_text(path.read_text().replace("{amount: 101}", "{amount: 99}"))
    code, data = ask("test", shop)
    assert (code, data["ok"], data["failed"]) == (1, False, 1)
    code, text = run("test", shop)
    assert "FAIL tests/shop.yaml:8  not a large one" in text
    assert "expected deny, got ALLOWED by buyers-place-small-orders" in text


def test_namespace_folder_is_tested_with_the_base(shop: Path, tmp_path: Path) -> None:
    """The base may be a folder or an archive."""
    write_folder(tmp_path / "store", namespace_folder())
    (tmp_path / "base.tar.gz").write_bytes(build(folder()))
    for base in (shop, tmp_path / "base.tar.gz"):
        assert run("test", tmp_path / "store", "--base", base)[0] == 0
        assert run("lint", tmp_path / "store", "--base", base)[0] == 0
        assert run("diff", "-", tmp_path / "store", "--base", base)[0] == 0
    with pytest.raises(InputError):
        run("test", tmp_path / "store")


def test_diff_shows_policies_settings_and_reach(shop: Path, tmp_path: Path) -> None:
    """Old and new may each be a folder or an archive."""
    (tmp_path / "old.tar.gz").write_bytes(build(folder()))
    wider = POLICIES.replace("amount <= 100", "amount <= 500")
    (shop / "policies/shop.cedar").write_text(
        wider + '@id("all") permit(principal, action, resource == Service::"legacy");\n'
    )
    code, data = ask("diff", tmp_path / "old.tar.gz", shop)
    policies = data["policies"]
    assert isinstance(policies, dict)
    assert code == 0
    assert [c["id"] for c in policies["added"]] == ["all"]
    assert [c["id"] for c in policies["changed"]] == ["buyers-place-small-orders"]
    code, text = run("diff", tmp_path / "old.tar.gz", shop)
    for words in (
        "policies added:",
        "+ all",
        "may newly call:",
        "any-other-workload",
        "under other conditions:",
    ):
        assert words in text
    assert run("diff", shop, shop)[1] == "no difference\n"
    assert run("diff", "-", shop)[0] == 0


def test_schema_is_shown_or_written(shop: Path, tmp_path: Path) -> None:
    """From a folder or from descriptors; exactly one source."""
    assert 'action "shop.Orders/Place" in' in run("schema", shop)[1]
    (tmp_path / "d.binpb").write_bytes(descriptors())
    code, data = ask("schema", "--descriptors", tmp_path / "d.binpb", "-o", tmp_path / "s")
    assert code == 0
    assert "shop.Orders/Place" in str(data["methods"])
    assert (tmp_path / "s").read_text() == data["schema"]
    for wrong in ((), (shop, "--descriptors", tmp_path / "d.binpb")):
        with pytest.raises(InputError):
            run("schema", *wrong)


def test_missing_files_are_named(tmp_path: Path) -> None:
    """Never a traceback."""
    for arguments in (
        ("lint", tmp_path / "no"),
        ("build", tmp_path / "no", "-o", tmp_path / "x"),
        ("diff", "-", tmp_path / "no"),
    ):
        with pytest.raises(InputError) as caught:
            run(*arguments)
        assert caught.value.reason is Reason.INPUT_INVALID
        assert str(tmp_path / "no") in caught.value.detail


def test_hidden_files_and_backups_are_left_out_of_a_folder(shop: Path) -> None:
    """An editor's leavings are not policy."""
    for name in (".git/config", "policies/.x.cedar.swp", "policies/shop.cedar~", "policies/.old/x.cedar"):
        (shop / name).parent.mkdir(exist_ok=True)
        (shop / name).write_text("garbage")
    assert read_folder(shop).keys() == folder().keys()
    assert bundle_at(shop).manifest.name == "shop"


def test_policies_in_subfolders_are_read(shop: Path) -> None:
    """Big bundles are sorted into folders."""
    (shop / "policies/more").mkdir()
    (shop / "policies/more/x.cedar").write_text('@id("x") forbid(principal, action, resource);')
    assert "policies/more/x.cedar" in bundle_at(shop).policies


def test_folder_that_is_too_large_is_refused_before_it_is_read(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`egm policy lint /` must not swallow the disk."""
    monkeypatch.setattr(limits, "MAX_BUNDLE_UNPACKED_BYTES", 10)
    with pytest.raises(InputError) as caught:
        read_folder(shop)
    assert "larger than a bundle may be" in caught.value.detail
