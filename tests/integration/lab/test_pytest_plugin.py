"""The pytest plugin as somebody uses it who tests a service of their own."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.timeout(300)

SERVICE = """
import sys
from concurrent import futures
import grpc
from grpc_health.v1 import health, health_pb2_grpc

server = grpc.server(futures.ThreadPoolExecutor(4))
health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
server.add_insecure_port(sys.argv[1])
server.start()
print("my service runs", flush=True)
server.wait_for_termination()
"""
# pytest as a terminal starts it: whatever runs in the background was started with SIGINT ignored, and hands that on
HEARING = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("pytest", run_name="__main__", alter_sys=True)
"""
CONFTEST = """
import sys
from pathlib import Path
import pytest
from control_plane.lab.plan import LabPlan, Node, Service

@pytest.fixture(scope="session")
def mesh_plan():
    command = [sys.executable, str(Path(__file__).parent / "service.py"), "{address}"]
    probe = Service(command=command, grpc_services=["grpc.health.v1.Health"])
    return LabPlan({"n1": Node({"probe": probe}), "n2": Node(workloads=["alice", "mallory"])}, level=4)
"""
TESTS = '''
CHECK = "grpc.health.v1.Health/Check"

def test_alice_is_answered_and_a_cut_is_noticed(mesh):
    assert mesh.call("alice", CHECK, b"").reply == b"\\x08\\x01"
    mesh.partition({"n1"}, {"n2"})
    assert mesh.call("alice", CHECK, b"", timeout_s=1).code in {"DEADLINE_EXCEEDED", "UNAVAILABLE"}
    mesh.kill("n1")

def test_the_mesh_is_mended_between_tests(mesh):
    assert mesh.call("alice", CHECK, b"", timeout_s=10).ok

def test_mallory_loses_a_right(mesh):
    assert mesh.call("mallory", CHECK).ok
    only_alice = """@id("alice") permit (principal == Workload::"spiffe://mesh.local/workload/alice", action,
        resource == Service::"probe");"""
    version = mesh.publish({"policies/members.cedar": only_alice})
    mesh.wait_until({"policy_version_at_least": version})
    assert mesh.call("mallory", CHECK).reason == "NO_POLICY_PERMITS"

def test_the_first_policy_is_back(mesh):
    assert mesh.call("mallory", CHECK).ok

def test_a_failure_tells_the_story(mesh):
    mesh.skew("n1", "+1s")
    assert mesh.call("alice", CHECK).reason == "THIS IS WRONG"
'''


def mesh_processes(directory: Path) -> list[psutil.Process]:
    """Return the processes of meshes below `directory`."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(directory) in part for part in process.info["cmdline"] or ()):
            found.append(process)
    return found


def write(directory: Path, tests: str) -> None:
    """Write the files of a user."""
    for name, text in {"service.py": SERVICE, "conftest.py": CONFTEST, "test_mine.py": tests}.items():
        (directory / name).write_text(text)


def test_a_user_breaks_a_mesh_around_their_own_service(pytester: pytest.Pytester) -> None:
    """One mesh for all tests, mended between them; a failure shows what was done and the logs."""
    write(pytester.path, TESTS)
    base = pytester.path / "base"
    result = pytester.runpytest_subprocess(
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "--egm-mesh-scope=session",
        f"--basetemp={base}",
        timeout=110,
    )
    result.assert_outcomes(passed=4, failed=1)
    result.stdout.fnmatch_lines(["*egm mesh*", "*skew n1 +1000 ms*", "*log of control-plane*"])
    result.stdout.fnmatch_lines(["*log of service probe*", "*my service runs*"])
    assert mesh_processes(base) == []


def test_a_wrong_scope_is_a_usage_error(pytester: pytest.Pytester) -> None:
    """Named with the right ones."""
    write(pytester.path, "def test_it(mesh): pass")
    pytester.makeini("[pytest]\negm_mesh_scope = forever\n")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", timeout=60)
    assert result.ret != 0
    result.stdout.fnmatch_lines(["*egm_mesh_scope = 'forever': use one of function*"])


def test_a_run_without_a_mesh_imports_nothing_heavy(pytester: pytest.Pytester) -> None:
    """The plugin is loaded by every pytest where egm is installed."""
    pytester.makepyfile(
        "import sys\ndef test_it(): assert not {'grpc', 'yaml', 'pydantic'} & set(sys.modules)"
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:asyncio", timeout=60)
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_survives_an_interrupted_run(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C cleans up; where nothing can (kill -9), the kernel ends every member."""
    write(
        tmp_path,
        "import time\ndef test_it(mesh):\n    open('up', 'w').close()\n    mesh.wait_until('SEALED', 100)\n",
    )
    base = tmp_path / "base"
    with (tmp_path / "output").open("wb") as output:
        run = subprocess.Popen(
            [sys.executable, "-c", HEARING, "-p", "no:cacheprovider", f"--basetemp={base}", "test_mine.py"],
            cwd=tmp_path,
            stdout=output,
            stderr=output,
        )
    deadline = time.monotonic() + 200
    while not (tmp_path / "up").exists():
        assert run.poll() is None and time.monotonic() < deadline, (tmp_path / "output").read_text()
        time.sleep(0.1)
    assert len(mesh_processes(base)) >= 3
    run.send_signal(number)
    code = run.wait(60)
    assert code == (2 if number is signal.SIGINT else -signal.SIGKILL), (tmp_path / "output").read_text()
    while left := mesh_processes(base):
        assert time.monotonic() < deadline + 30, left
        time.sleep(0.1)
