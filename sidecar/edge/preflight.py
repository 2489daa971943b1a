"""Whether a configuration can work, as far as its files tell: what `egm sidecar check` looks at."""

from sidecar.config import SidecarConfig
from sidecar.edge.members import make_identity, read_root
from sidecar.edge.record_file import load_record
from sidecar.edge.tpm import ToolsTpm
from trust.chain import verify_roots
from trust.edge.clock import SystemClock
from trust.edge.mqtt import BrokerUrl
from trust.edge.tls import read_ca_file


def preflight(config: SidecarConfig) -> tuple[str, ...]:
    """Read every file that the configuration names; return what a person should know though it is no error.

    Raises:
        MeshError: what is wrong, where, and what to do.
    """
    BrokerUrl.parse(config.broker)
    verify_roots(read_root(config.root), ())
    make_identity(config, SystemClock())
    load_record(config.data_dir / "policy-state.json")
    for one in config.inbound:
        if one.upstream.tls is not None:
            read_ca_file(one.upstream.tls.ca)
    if config.tpm is not None:
        ToolsTpm(config.tpm).reference()
    notes = [
        f"outbound {one.workload} to {one.service}: any local process can call as {one.workload}; "
        "identify: unix-socket is safer"
        for one in config.outbound
        if one.identify == "loopback"
    ]
    if config.health is None:
        notes.append("no plaintext health listener; grpc.health.v1 is on the admin listener (mTLS)")
    return tuple(notes)
