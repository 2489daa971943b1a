"""Where a sidecar hears of new policy, and fetches it: the control plane's streams, and the broker."""

from collections.abc import Callable

from sidecar.config import SidecarConfig
from sidecar.edge.feeds import Listener, ListenerFactory, PolicyFeed
from sidecar.edge.policy_keeper import PolicyKeeper
from trust.edge.distribution_client import WatchListener
from trust.edge.file_source import GrpcFileSource
from trust.edge.mqtt import BrokerUrl, MqttListener
from trust.edge.tls import channel_credentials, channel_options
from trust.identity import IdentitySource
from trust.ports import Clock
from trust.x509 import control_plane_dns


def control_plane_files(config: SidecarConfig, identity: IdentitySource) -> GrpcFileSource:
    """Return what fetches policy files from the control plane, as this node."""
    node = config.spiffe_id("node", config.node)
    return GrpcFileSource(
        config.control_plane.addresses,
        lambda: channel_credentials(identity, node),
        channel_options(control_plane_dns(config.trust_domain)),
    )


def policy_feed(
    config: SidecarConfig, identity: IdentitySource, keeper: PolicyKeeper, broker: BrokerUrl, clock: Clock
) -> PolicyFeed:
    """Return what listens for announcements wherever they come from, and has `keeper` look at them."""
    node = config.spiffe_id("node", config.node)

    def watch(take: Callable[[bytes], None]) -> Listener:
        return WatchListener(
            config.control_plane.addresses,
            lambda: channel_credentials(identity, node),
            take,
            channel_options(control_plane_dns(config.trust_domain)),
        )

    factories: dict[str, ListenerFactory] = {"watch": watch}
    if broker.enabled:
        factories["mqtt"] = lambda take: MqttListener(broker, config.trust_domain, take)
    return PolicyFeed(
        factories,
        keeper.refresh,
        held_version=keeper.held_version,
        poll_ms=keeper.poll_ms,
        clock=clock,
    )
