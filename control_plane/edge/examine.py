"""Gathers the facts that `egm doctor` judges: asks the control plane and nodes, reads files, looks at clocks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml
from cryptography import x509
from tuf.api.metadata import Root

from control_plane.core.diagnosis import Facts, Listener
from control_plane.edge import operator_client
from control_plane.edge.fleet_view import fleet_view
from control_plane.edge.mesh_file import MeshFile
from trust.authoring import parse_metadata
from trust.edge.clock import SystemClock
from trust.edge.config_file import MAX_CONFIG_BYTES
from trust.edge.files import read_at_most
from trust.errors import InputError, MeshError, Reason
from trust.metadata import is_development

_PRIVATE_MODE: Final = 0o077


async def examine(mesh: MeshFile, directory: Path) -> Facts:
    """Look at everything that can be reached from here; what cannot is a fact too."""
    clock = SystemClock()
    unreachable: str | None = None
    offset_ms: int | None = None
    version: int | None = None
    problems: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    try:
        async with operator_client.operator(mesh, directory) as client:
            before = clock.now_ms()
            status = await client.status()
            offset_ms = status.now_ms - (before + clock.now_ms()) // 2
            view = fleet_view(status, await client.nodes())
            problems, missing = tuple(view.problems), tuple(view.missing)
            version = view.role_versions.get("targets", 0)
    except MeshError as error:
        unreachable = f"{mesh.control_plane}: {error.detail}"
    root = _root(Path(mesh.root))
    certificate = directory / mesh.operator / "svid.pem"
    return Facts(
        now_ms=clock.now_ms(),
        control_plane=unreachable,
        clock_offset_ms=offset_ms,
        operator_not_after_ms=_not_after_ms(certificate) if certificate.is_file() else None,
        root_expires_ms=None if root is None else int(root.expires.timestamp() * 1000),
        development=None if root is None else is_development(root),
        policy_version=version,
        readable_keys=tuple(_readable(directory / mesh.domain)) if mesh.domain else (),
        missing=missing,
        problems=problems,
        nodes=await _ask_nodes(mesh, directory),
        listeners=tuple(
            listener for name in mesh.nodes for listener in _listeners(name, mesh.nodes[name].config)
        ),
    )


async def _ask_nodes(mesh: MeshFile, directory: Path) -> dict[str, str]:
    answers: dict[str, str] = {}
    for name in mesh.nodes:
        try:
            async with operator_client.node(mesh, directory, name) as client:
                status = await client.status()
        except MeshError as error:
            answers[name] = error.detail
        else:
            answers[name] = (
                "" if status.state == "READY" else f"{status.state}: {', '.join(status.not_ready)}"
            )
    return answers


def _root(path: Path) -> Root | None:
    try:
        return parse_metadata(path.read_bytes(), Root).signed if path.is_file() else None
    except MeshError as error:
        raise InputError(error.reason, f"{path}: {error.detail}") from None


def _not_after_ms(path: Path) -> int:
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError:
        mend = "issue a new one: egm node operator NAME --domain DOMAIN --out DIR"
        raise InputError(Reason.KEY_UNREADABLE, f"{path} is not a PEM certificate; {mend}") from None
    return int(certificate.not_valid_after_utc.timestamp() * 1000)


def _readable(domain: Path) -> Iterator[str]:
    for path in sorted(domain.rglob("*")):
        secret = (path.suffix == ".pem" and not path.name.startswith("ca.pem")) or path.name == "passphrase"
        if secret and path.is_file() and path.stat().st_mode & _PRIVATE_MODE:
            yield str(path)


def _listeners(node: str, config: str) -> Iterator[Listener]:
    path = Path(config)
    if not config or not path.is_file():
        return
    try:
        data = yaml.safe_load(read_at_most(path, MAX_CONFIG_BYTES))
    except (yaml.YAMLError, ValueError, OSError):
        return  # the node's own check names the fault; it does not run on such a file
    for route in _mappings(data, "outbound"):
        if isinstance(address := route.get("listen"), str):
            yield Listener(node, "outbound", address, str(route.get("identify", "loopback")))
    for route in _mappings(data, "inbound"):
        upstream = route.get("upstream")
        if isinstance(upstream, dict) and isinstance(address := upstream.get("address"), str):
            yield Listener(node, "upstream", address)


def _mappings(data: object, key: str) -> list[dict[str, Any]]:
    """Return the mappings of the list `data[key]`; of anything else none."""
    found = data.get(key) if isinstance(data, dict) else None
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
