"""Policy folders for tests, as text by path."""

from collections.abc import Mapping

from tests.support.engines import descriptors

SETTINGS = """\
name: shop
description: who may buy
trust_domain: mesh.local
level: 4
lease: {ttl_s: 30, grace_s: 60}
services:
  payments:
    grpc_services: [shop.Orders]
  stock:
    namespace: store
    workload: warehouse
    grpc_services: [shop.Stock]
  legacy:
    level: 1
    grpc_services: [old.Thing, "old.Other/Do"]
roles:
  buyers: [alice, "spiffe://mesh.local/workload/bob"]
action_groups:
  risky: [shop.Orders/Place, old.Thing]
service_groups:
  money: [payments]
metadata_keys: [tenant]
"""
POLICIES = """\
@id("buyers-place-small-orders")
permit(
  principal in Role::"buyers",
  action == Action::"shop.Orders/Place",
  resource in ServiceGroup::"money"
) when { context.request.amount <= 100 };

@id("no-night-orders")
forbid(principal, action in Action::"risky", resource)
when { context.time.hour < 6 };
"""
TESTS = """\
- name: alice may place a small order
  caller: alice
  service: payments
  method: shop.Orders/Place
  request: {amount: 100, currency: EUR}
  expect: allow
  policy: buyers-place-small-orders
- name: not a large one
  caller: alice
  service: payments
  method: shop.Orders/Place
  request: {amount: 101}
  expect: deny
- name: not at night
  caller: alice
  service: payments
  method: shop.Orders/Place
  request: {amount: 1}
  time: "2026-01-05T05:59:59Z"
  expect: deny
  policy: [no-night-orders]
"""


def folder(**texts: str) -> dict[str, bytes]:
    """Return a folder without mistakes; keys replace files: settings, policies, tests, entities."""
    files = {
        "bundle.yaml": texts.pop("settings", SETTINGS).encode(),
        "policies/shop.cedar": texts.pop("policies", POLICIES).encode(),
        "tests/shop.yaml": texts.pop("tests", TESTS).encode(),
        "descriptors.binpb": descriptors(),
    }
    if "entities" in texts:
        files["entities.json"] = texts.pop("entities").encode()
    assert not texts
    return files


NAMESPACE_SETTINGS = """\
name: store
namespace: store
services:
  stock: {grpc_services: [shop.Stock]}
roles:
  store-staff: [carol]
"""
NAMESPACE_POLICIES = """\
@id("staff-count")
permit(principal in Role::"store-staff", action == Action::"shop.Stock/Count", resource == Service::"stock");
"""
NAMESPACE_TESTS = """\
- {name: carol counts, caller: carol, service: stock, method: shop.Stock/Count, expect: allow, policy: staff-count}
- {name: alice does not, caller: alice, service: stock, method: shop.Stock/Count, expect: deny}
"""


def namespace_folder(
    settings: str = NAMESPACE_SETTINGS, policies: str = NAMESPACE_POLICIES, tests: str = NAMESPACE_TESTS
) -> Mapping[str, bytes]:
    """Return the folder of namespace `store`."""
    return folder(settings=settings, policies=policies, tests=tests)
