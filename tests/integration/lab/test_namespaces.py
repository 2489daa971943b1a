"""A mesh whose members have a network namespace each: the kernel itself loses the packets."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from control_plane.lab.mesh_sync import Mesh
from control_plane.lab.plan import NAMESPACES, LabPlan, Node, Service
from trust.errors import InputError

GET = "egm.sample.v1.Accounts/GetBalance"
pytestmark = [pytest.mark.lab, pytest.mark.timeout(280)]


def require() -> None:
    """Skip the test where namespaces cannot be made, or fail it when CI=true."""
    if os.geteuid() == 0 and shutil.which("ip") is not None:
        return
    message = "network namespaces need root and iproute2 (Debian: apt-get install iproute2)"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


def left() -> str:
    """Return the namespaces and interfaces that labs of this process have."""
    shown = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    shown += subprocess.run(["ip", "-brief", "link"], capture_output=True, text=True, check=True).stdout
    return "\n".join(line for line in shown.splitlines() if line.startswith(f"egm{os.getpid()}"))


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    require()
    with Mesh(LabPlan.of("a", "b", "c", network=NAMESPACES), tmp_path_factory.mktemp("spread")) as running:
        yield running


def test_a_cut_below_the_programs_seals_the_minority_and_heals(spread: Mesh) -> None:
    """The same promise as with links, kept against a kernel that answers nothing."""
    assert spread.call("a", GET, to="b").ok
    spread.isolate("a")
    spread.wait_until({"a": "SEALED"})
    assert spread.call("a", GET, to="b").reason == "POLICY_STALE"
    assert spread.call("b", GET, to="c").ok
    spread.heal()
    spread.wait_until({"a": "FRESH"})
    assert spread.call("a", GET, to="b", within_s=20).ok


def test_a_one_way_cut_stops_calls_though_the_other_way_is_open(spread: Mesh) -> None:
    """Packets from a to b are lost, those of the others are not."""
    spread.restore()
    spread.partition({"a"}, {"b"}, one_way=True)
    assert not spread.call("a", GET, to="b", timeout_s=2).ok
    assert spread.call("a", GET, to="c").ok
    spread.heal()
    assert spread.call("a", GET, to="b", within_s=20).ok


def test_what_namespaces_cannot_do_is_refused_and_changes_nothing(spread: Mesh) -> None:
    """A scenario that wants a slow link must not pass on a quick one."""
    with pytest.raises(InputError, match="use network: links"):
        spread.fault("a", "b", delay_ms=50)
    assert spread.call("a", GET, to="b", within_s=20).ok


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """Namespaces and cables go with the mesh, also when it cannot start."""
    require()
    before = left()
    broken = Node({"x": Service(command=["false"], grpc_services=["x.X"])})
    with (
        pytest.raises(Exception, match="ended before it was ready"),
        Mesh(LabPlan({"x": broken}, network=NAMESPACES), tmp_path),
    ):
        pass
    assert left() == before


def test_a_service_outside_the_mesh_cannot_be_reached_from_a_namespace() -> None:
    """The plan says so before anything is started."""
    outside = Node({"x": Service(address="127.0.0.1:1", grpc_services=["x.X"])})
    with pytest.raises(InputError, match="the lab must start it"):
        LabPlan({"x": outside}, network=NAMESPACES)
