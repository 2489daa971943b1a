"""`egm sidecar witness-key` and `measure`: what they print goes into the policy folder as it is."""

from pathlib import Path

from sidecar.config_file import parse_config
from sidecar.edge.measurer import SoftwareMeasurer
from tests.support.cli import egm
from trust.attestation.measurement import Measurement, parse_reference_values

CONFIG = """
node: n1
trust_domain: mesh.local
data_dir: data
root: root.json
control_plane: {addresses: ["127.0.0.1:1"]}
identity: {source: embedded, ca: ca.pem}
inbound: [{service: pay, listen: "127.0.0.1:0", upstream: {address: "127.0.0.1:2"}}]
"""


def test_what_measure_prints_is_accepted_as_reference_values(tmp_path: Path) -> None:
    """`egm sidecar measure -c FILE > reference_values.json` needs no editing."""
    path = tmp_path / "sidecar.yaml"
    path.write_text(CONFIG)
    done = egm("sidecar", "measure", "-c", path)
    assert done.code == 0, done.stderr
    values = parse_reference_values(done.stdout.encode())
    found = SoftwareMeasurer(parse_config(CONFIG, base=tmp_path, env={})).measure()
    values.check("n1", Measurement(found.version, found.distribution, b"\x00" * 32))


def test_witness_key_prints_what_the_roster_takes(tmp_path: Path) -> None:
    """The same key each time; it is the node's."""
    path = tmp_path / "sidecar.yaml"
    path.write_text(CONFIG)
    first = egm("sidecar", "witness-key", "-c", path)
    assert first.code == 0, first.stderr
    assert first.stdout.startswith("mesh.local/witness/n1+")
    assert egm("sidecar", "witness-key", "-c", path).stdout == first.stdout
    assert (tmp_path / "data" / "node-key.pem").exists()
