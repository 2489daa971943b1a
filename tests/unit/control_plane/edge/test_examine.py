"""What the examination of a mesh makes of the files that it finds."""

from pathlib import Path

import pytest

from control_plane.core.diagnosis import Listener
from control_plane.edge.examine import _listeners


@pytest.mark.parametrize(
    "text",
    ["", "- a", "7", "outbound: 7", "outbound: [7, [], null]", "inbound: {a: b}", "a: [", "\0"],
    ids=["empty", "list", "number", "number-for-list", "no-mappings", "mapping-for-list", "no-yaml", "nul"],
)
def test_a_configuration_that_no_node_would_run_on_has_no_listeners(tmp_path: Path, text: str) -> None:
    """`egm doctor` is asked when something is wrong: it must not fail on what is."""
    path = tmp_path / "sidecar.yaml"
    path.write_text(text)
    assert list(_listeners("a", str(path))) == []


def test_listeners_and_upstreams_are_found(tmp_path: Path) -> None:
    """Who may call as a workload, and who may reach a service past its sidecar."""
    path = tmp_path / "sidecar.yaml"
    path.write_text(
        "outbound: [{listen: '127.0.0.1:1', identify: metadata}]\n"
        "inbound: [{upstream: {address: '127.0.0.1:2'}}, {upstream: 7}, {upstream: {}}]\n"
    )
    assert list(_listeners("a", str(path))) == [
        Listener("a", "outbound", "127.0.0.1:1", "metadata"),
        Listener("a", "upstream", "127.0.0.1:2"),
    ]
