"""A reviewer sees every difference, and what it means for who may call what."""

import json
from dataclasses import replace

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from tests.support.engines import descriptors, workload
from tests.support.fake_tpm import FakeTpm
from tests.support.folders import POLICIES, SETTINGS, folder, namespace_folder
from trust import limits
from trust.bundle import Bundle, read_bundle
from trust.errors import InputError
from trust.policy.diff import ANY_OTHER_METHOD, ANY_OTHER_WORKLOAD, Answer, Reach, diff
from trust.policy.source import build

ALICE_ONLY = (
    '@id("a") permit(principal == Workload::"spiffe://mesh.local/workload/alice", '
    'action == Action::"shop.Orders/Place", resource == Service::"payments");\n'
)


def bundle(policies: str = POLICIES, settings: str = SETTINGS) -> Bundle:
    return read_bundle(build(folder(policies=policies, settings=settings, tests="")), role="targets")


def test_bundle_compared_with_itself_shows_nothing() -> None:
    """Not even its conditional reach."""
    found = diff(bundle(), bundle())
    assert found.empty
    assert not found.truncated


def test_first_bundle_shows_everything_it_allows() -> None:
    """Against nothing, all policies are added and all reach is new."""
    found = diff(None, bundle(ALICE_ONLY))
    assert [c.id for c in found.added] == ["a"]
    assert found.reach == (
        Reach(workload("alice"), "payments", "shop.Orders/Place", Answer.DENIED, Answer.ALLOWED),
    )
    assert found.newly_allowed == found.reach


def test_added_removed_and_changed_policies_are_told_apart_by_id() -> None:
    """A moved policy is no change, a changed text is."""
    old = bundle(ALICE_ONLY + '@id("b") forbid(principal, action, resource == Service::"legacy");')
    new = bundle(
        ALICE_ONLY.replace("permit(", "permit (")
        + '@id("c") permit(principal, action, resource == Service::"legacy");'
    )
    found = diff(old, new)
    assert [c.id for c in found.added] == ["c"]
    assert [c.id for c in found.removed] == ["b"]
    assert [(c.id, c.after.startswith('@id("a") permit (')) for c in found.changed] == [("a", True)]
    assert found.removed[0].where == "policies/shop.cedar:2"
    assert diff(bundle(ALICE_ONLY), bundle("// moved down\n\n" + ALICE_ONLY)).empty


def test_permit_for_everybody_shows_callers_and_methods_nobody_named() -> None:
    """A wide rule must not look narrow because the known names are few."""
    found = diff(
        bundle(ALICE_ONLY), bundle('@id("a") permit(principal, action, resource == Service::"payments");')
    )
    shown = {(r.caller, r.method) for r in found.newly_allowed}
    assert (workload(ANY_OTHER_WORKLOAD), ANY_OTHER_METHOD) in shown
    assert (workload("alice"), "shop.Orders/Place") not in shown
    assert not found.no_longer_allowed


def test_condition_on_the_request_is_shown_as_conditional() -> None:
    """Whether it is allowed depends on the call."""
    old, new = bundle(ALICE_ONLY), bundle(ALICE_ONLY.replace(");", ") when { context.request.amount < 5 };"))
    (reach,) = diff(old, new).reach
    assert (reach.before, reach.after) == (Answer.ALLOWED, Answer.CONDITIONAL)
    assert diff(old, new).no_longer_allowed == (reach,)
    assert diff(new, old).newly_allowed[0].after is Answer.ALLOWED
    changed = diff(new, bundle(ALICE_ONLY.replace(");", ") when { context.request.amount < 6 };")))
    assert len(changed.other_conditions) == 1


def test_condition_on_entities_alone_is_decided() -> None:
    """Role membership is known, so nothing is left open."""
    scope = 'principal, action, resource == Service::"payments"'
    policies = f'@id("a") permit({scope}) when {{ principal in Role::"buyers" }};'
    found = diff(None, bundle(policies))
    assert {r.after for r in found.reach} == {Answer.ALLOWED}
    assert {r.caller for r in found.reach} == {workload("alice"), workload("bob")}


def test_forbid_added_to_a_conditional_permit_ends_it() -> None:
    """An unconditional forbid wins whatever the context."""
    conditional = ALICE_ONLY.replace(");", ") when { context.time.hour > 5 };")
    found = diff(
        bundle(conditional), bundle(conditional + '@id("stop") forbid(principal, action, resource);')
    )
    assert {(r.before, r.after) for r in found.reach} == {(Answer.CONDITIONAL, Answer.DENIED)}


def test_new_member_of_a_role_shows_as_setting_and_as_reach() -> None:
    """No policy changed, yet somebody gained a right."""
    found = diff(bundle(), bundle(settings=SETTINGS.replace("[alice,", "[alice, eve,")))
    assert [(s.name, "eve" in s.after) for s in found.settings] == [("Role buyers", True)]
    assert {r.caller for r in found.newly_allowed} == {workload("eve")}


def test_changed_level_lease_and_services_are_shown() -> None:
    """Lowering a level is the widest permit of all."""
    settings = (
        SETTINGS.replace("level: 4", "level: 3", 1)
        .replace("ttl_s: 30", "ttl_s: 40")
        .replace("level: 1", "level: 0")
    )
    found = diff(bundle(), bundle(settings=settings))
    assert {(s.name, s.before, s.after) for s in found.settings} == {
        ("level", "4", "3"),
        ("lease.ttl_s", "30", "40"),
        ("services.legacy.level", "1", "0"),
    }


def test_comparison_beyond_the_limit_says_that_it_is_incomplete(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reviewer must not take a part for the whole."""
    monkeypatch.setattr(limits, "MAX_DIFF_CALLS", 3)
    found = diff(None, bundle())
    assert found.truncated
    assert found.compared == 3


def test_namespace_bundle_is_compared_on_its_own_services() -> None:
    """The base decides with it."""
    base = bundle()
    store = read_bundle(build(namespace_folder()), role="store")
    found = diff(None, store, base=base)
    assert {(r.caller, r.service, r.method) for r in found.reach} == {
        (workload("carol"), "stock", "shop.Stock/Count")
    }
    with pytest.raises(InputError):
        diff(None, store)


def test_difference_is_json() -> None:
    """Programs read the same."""
    data = diff(None, bundle(ALICE_ONLY)).to_dict()
    assert json.loads(json.dumps(data))["newly_allowed"] == [
        {
            "caller": workload("alice"),
            "service": "payments",
            "method": "shop.Orders/Place",
            "before": "denied",
            "after": "allowed",
        }
    ]


def test_method_that_joins_a_risk_group_is_shown() -> None:
    """Policies on the group reach it from now on."""
    settings = SETTINGS.replace("risky: [", "risky: [shop.Stock/Take, ")
    names = {
        (s.name, "risky" in s.before, "risky" in s.after)
        for s in diff(bundle(), bundle(settings=settings)).settings
    }
    assert names == {("action shop.Stock/Take", False, True)}


def _renumbered() -> bytes:
    """Return the descriptors with `Order.amount` read from another field of the request."""
    files = FileDescriptorSet.FromString(descriptors())
    (shop,) = (file for file in files.file if file.package == "shop")
    (order,) = (message for message in shop.message_type if message.name == "Order")
    (amount,) = (field for field in order.field if field.name == "amount")
    amount.number = 500
    return files.SerializeToString()


def test_a_field_that_policies_read_from_other_bytes_is_shown() -> None:
    """With another field number `context.request.amount` is always 0, though no policy and no schema changes."""
    found = diff(
        bundle(), read_bundle(build({**folder(), "descriptors.binpb": _renumbered()}), role="targets")
    )
    (message,) = (setting for setting in found.settings if setting.name == "message shop.Order")
    assert "amount=7:int64" in message.before
    assert "amount=500:int64" in message.after
    assert any(setting.name == "file descriptors.binpb" for setting in found.settings)


def test_a_schema_that_is_shown_in_part_only_is_shown_as_a_changed_file() -> None:
    """An action declared in another layout than ours is still an action to Cedar."""
    plain = bundle()
    assert not any(s.name == "file schema.cedarschema" for s in diff(None, plain).settings)
    odd = plain.schema + '\naction\n  "hidden"\n;\n'
    changed = replace(plain, schema=odd)
    assert any(s.name == "file schema.cedarschema" for s in diff(plain, changed).settings)


def test_every_accepted_build_and_tpm_is_shown_by_its_value() -> None:
    """Who signs reference values must see whose machine and which boot they pin."""
    build_a = {"version": "1", "sha256": "0a" * 32}
    key = FakeTpm().reference(0).keys[0]

    def with_values(**more: object) -> Bundle:
        values = json.dumps({"distributions": [build_a], **more}).encode()
        return read_bundle(build({**folder(), "reference_values.json": values}), role="targets")

    first = {s.name: s.after for s in diff(bundle(), with_values()).settings}
    assert json.loads(first["reference_values.distributions"]) == [build_a]
    pinned = {"a": {"keys": [key], "pcrs": {"7": ["07" * 32]}}}
    assert {(s.name, s.before, s.after) for s in diff(with_values(), with_values(tpm=pinned)).settings} == {
        ("reference_values.tpm", "{}", ""),
        ("reference_values.tpm.a.keys", "", json.dumps([key])),
        ("reference_values.tpm.a.pcrs.7", "", json.dumps(["07" * 32])),
    }
