"""`egm init` and `egm keys`: a whole ceremony and a rotation, typed as people type them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from control_plane.cli import init, keys
from trust.errors import InputError, MeshError, Reason
from trust.policy.settings import BundleSettings

SECRET = "correct horse battery"


@pytest.fixture(autouse=True)
def _passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EGM_PASSPHRASE_FILE", raising=False)
    monkeypatch.setenv("EGM_PASSPHRASE", SECRET)


def run(app: Any, *arguments: object, code: int = 0) -> dict[str, Any]:
    """Run a verb with --json, as `main` does, and return what it printed."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    parsed: dict[str, Any] = json.loads(result.stdout)
    return parsed


def make_keys(directory: Path, names: Sequence[str]) -> None:
    for name in names:
        run(keys.app, "new", name, "--dir", directory)


def test_ceremony_and_rotation_from_start_to_end(tmp_path: Path) -> None:
    """Six holders, one trust domain, one approver replaced."""
    k, domain = tmp_path / "k", tmp_path / "domain"
    make_keys(k, ["root-1", "root-2", "root-3", "alice", "bob", "carol"])
    arguments: list[object] = [domain, "--trust-domain", "acme.test"]
    for name in ("root-1", "root-2", "root-3"):
        arguments += ["--root-key", k / f"{name}.pub.json"]
    for name in ("alice", "bob"):
        arguments += ["--approver-key", k / f"{name}.pub.json"]
    waiting = run(init.app, *arguments, code=1)
    assert waiting["complete"] is False and waiting["missing"]
    copy = tmp_path / "copy.json"
    copy.write_bytes(Path(waiting["unsigned_root"]).read_bytes())
    run(keys.app, "sign-root", copy, "--key", k / "root-2.pem")
    with pytest.raises(MeshError) as caught:
        run(keys.app, "sign-root", copy, "--key", k / "alice.pem")
    assert caught.value.reason is Reason.NOT_AUTHORIZED
    signed = run(keys.app, "sign-root", waiting["unsigned_root"], "--key", k / "root-1.pem")
    assert signed["complete"] is False
    done = run(init.app, domain, "--signed", copy)
    assert done["complete"] is True and done["roles"]["targets"]["threshold"] == 2
    assert run(init.app, domain) == done

    new = tmp_path / "2.root.json"
    rotate = ["rotate", "--domain", domain, "--remove", "bob", "--add", k / "carol.pub.json", "-o", new]
    assert run(keys.app, *rotate)["complete"] is False
    with pytest.raises(InputError, match="--previous"):
        run(keys.app, "sign-root", new, "--key", k / "root-1.pem")
    run(keys.app, "sign-root", new, "--domain", domain, "--key", k / "root-1.pem")
    with pytest.raises(MeshError) as caught:
        run(keys.app, "adopt-root", new, "--domain", domain)
    assert caught.value.reason is Reason.QUORUM_NOT_MET
    last = run(keys.app, "sign-root", new, "--domain", domain, "--key", k / "root-3.pem")
    assert last["complete"] is True
    assert run(keys.app, "adopt-root", new, "--domain", domain)["version"] == 2
    listed = run(keys.app, "list", "--domain", domain)
    assert [key["name"] for key in listed["roles"]["targets"]["keys"]] == ["alice", "carol"]


def test_development_domain_in_one_command(tmp_path: Path) -> None:
    """The quick start needs no passphrase typed."""
    made = run(init.app, tmp_path / "d", "--development", "--approvers", 1, "--threshold", 1)
    assert made["development"] is True and made["roles"]["targets"]["threshold"] == 1
    with pytest.raises(InputError) as caught:
        run(init.app, tmp_path / "d", "--development")
    assert caught.value.reason is Reason.CONFLICT


@pytest.mark.parametrize(
    "arguments",
    [
        ["d"],
        ["d", "--development", "--signed", "x"],
        ["d", "--root-key", "absent.pub.json", "--approver-key", "x"],
    ],
)
def test_incomplete_init_says_what_to_give(arguments: list[str], tmp_path: Path) -> None:
    """Nothing is made from half an input."""
    with pytest.raises(InputError):
        run(init.app, *arguments)


def test_rotation_without_change_or_over_a_file_is_refused(tmp_path: Path) -> None:
    """A root version that changes nothing is a mistake."""
    run(init.app, tmp_path / "d", "--development")
    with pytest.raises(InputError, match="nothing to change"):
        run(keys.app, "rotate", "--domain", tmp_path / "d", "-o", tmp_path / "r.json")
    (tmp_path / "r.json").write_text("")
    with pytest.raises(InputError, match="exists"):
        run(keys.app, "rotate", "--domain", tmp_path / "d", "--threshold", 3, "-o", tmp_path / "r.json")


def test_key_is_shown_and_a_passphrase_is_never_asked_without_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scripts get an error that names the variable instead of hanging."""
    made = run(keys.app, "new", "alice", "--dir", tmp_path)
    shown = run(keys.app, "show", made["public"])
    assert shown["name"] == "alice" and shown["key_id"] == made["key_id"]
    monkeypatch.delenv("EGM_PASSPHRASE")
    with pytest.raises(InputError, match="EGM_PASSPHRASE"):
        run(keys.app, "new", "bob", "--dir", tmp_path)


def test_text_output_names_the_next_step(tmp_path: Path) -> None:
    """A person is told what to do next."""
    make_keys(tmp_path, ["r1", "r2"])
    both = [f"{tmp_path}/r1.pub.json", f"{tmp_path}/r2.pub.json"]
    arguments = [str(tmp_path / "d")]
    for path in both:
        arguments += ["--root-key", path, "--approver-key", path]
    result = CliRunner().invoke(init.app, arguments)
    assert result.exit_code == 1


def test_a_root_holder_sees_who_may_sign_before_signing_and_an_unsafe_root_is_never_signed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file comes from somebody else: its keys are shown with their material, a weak threshold is refused."""
    k, domain = tmp_path / "k", tmp_path / "domain"
    make_keys(k, ["root-1", "root-2", "alice", "bob"])
    arguments: list[object] = [domain, "--trust-domain", "acme.test"]
    for name in ("root-1", "root-2"):
        arguments += ["--root-key", k / f"{name}.pub.json"]
    for name in ("alice", "bob"):
        arguments += ["--approver-key", k / f"{name}.pub.json"]
    unsigned = Path(run(init.app, *arguments, code=1)["unsigned_root"])
    before = unsigned.read_bytes()
    seen = run(keys.app, "sign-root", unsigned, "--check")
    assert unsigned.read_bytes() == before
    alice = json.loads((k / "alice.pub.json").read_bytes())
    told = {change["what"]: change["after"] for change in seen["holders"]}
    assert alice["keyval"]["public"] in told[f"role targets: key {alice['keyid']}"]
    assert told["development domain"] == "no"
    weak = json.loads(before)
    weak["signed"]["roles"]["targets"]["threshold"] = 1
    unsigned.write_text(json.dumps(weak))
    with pytest.raises(MeshError) as caught:
        run(keys.app, "sign-root", unsigned, "--key", k / "root-1.pem")
    assert caught.value.reason is Reason.METADATA_UNSAFE
    assert json.loads(unsigned.read_bytes())["signatures"] == []


def test_a_key_for_approving_calls_prints_the_line_for_the_policy(tmp_path: Path) -> None:
    """What is printed, with the group filled in, is what bundle.yaml takes."""
    made = run(keys.app, "new", "ann", "--purpose", "approvals", "--dir", tmp_path)
    settings = yaml.safe_load(f"name: t\n{made['bundle'].replace('GROUP', 'ops')}")
    assert BundleSettings.model_validate(settings).approver_groups["ops"].keys() == {"ann"}
    shown = run(keys.app, "show", tmp_path / "ann.pub.json")
    assert settings["approver_groups"]["ops"]["ann"] == shown["public"]  # also for who lost that output
