"""What is wrong with the alert rules of a bundle: rules that can never fire, or that nobody hears of."""

from trust.alerting import doubts
from trust.mesh import MeshSettings


def alert_problems(mesh: MeshSettings) -> list[tuple[tuple[str, ...], str, str]]:
    """Return (place in bundle.yaml, what, what to do about it) for every doubtful rule."""
    services = {name: service.grpc_services for name, service in mesh.services.items()}
    levels = {name: mesh.level_of(name) for name in services} or {"": mesh.level}
    found = doubts(mesh.alerts or {}, services=services, levels=levels)
    return [(("alerts", rule), f"alert {rule!r}: {what}", hint) for rule, what, hint in found]
