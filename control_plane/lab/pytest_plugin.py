"""The pytest plugin: fixture `mesh`, a real mesh of processes that a test can break. See docs/lab.md.

Loaded by every pytest run where egm is installed, so it imports nothing heavy until a test asks for a mesh.
"""

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from control_plane.lab.mesh_sync import Mesh
    from control_plane.lab.plan import LabPlan

_SCOPES: Final = ("function", "class", "module", "package", "session")
_SECTION: Final = "egm mesh"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --egm-mesh-scope and the ini setting egm_mesh_scope."""
    text = "how long one mesh is kept: a mesh takes seconds to start; it is mended between tests"
    parser.getgroup("egm").addoption("--egm-mesh-scope", choices=_SCOPES, default=None, help=text)
    parser.addini("egm_mesh_scope", text, default="function")


def _scope(fixture_name: str, config: pytest.Config) -> Any:
    chosen = config.getoption("--egm-mesh-scope") or config.getini("egm_mesh_scope")
    if chosen not in _SCOPES:
        raise pytest.UsageError(f"egm_mesh_scope = {chosen!r}: use one of {', '.join(_SCOPES)}")
    return chosen


@pytest.fixture(scope="session")
def mesh_plan() -> "LabPlan":
    """Say what the mesh consists of: override it in your conftest.py. Three nodes with a sample service each."""
    from control_plane.lab.plan import LabPlan

    return LabPlan.of("a", "b", "c")


@pytest.fixture(scope=_scope)
def egm_mesh_processes(mesh_plan: "LabPlan", tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Mesh]":
    """Run the mesh; `mesh` hands it to tests."""
    from control_plane.lab.mesh_sync import Mesh

    with Mesh(mesh_plan, tmp_path_factory.mktemp("egm-mesh")) as running:
        yield running


@pytest.fixture
def mesh(egm_mesh_processes: "Mesh") -> "Mesh":
    """Give a running mesh, every node ready and nothing broken; a failed test shows what was done and the logs."""
    egm_mesh_processes.restore()
    return egm_mesh_processes


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: "pytest.CallInfo[None]"
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the story of the mesh with a failure."""
    report = yield
    used = getattr(item, "funcargs", {}).get("egm_mesh_processes")
    if report.failed and call.when == "call" and used is not None:
        report.sections.append((_SECTION, used.story()))
    return report
