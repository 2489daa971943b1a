"""Decisions: what is allowed, what is refused and why, and what may be reused."""

import asyncio
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from tests.support import engines
from tests.support.engines import DEFAULT_ENTITIES, bundle, call, engine, entity, order, workload
from trust import limits
from trust.errors import EvidenceError, Reason
from trust.policy.context import build_context
from trust.policy.engine import Engine
from trust.policy.schema import generate_schema
from trust.policy.types import Authn, Call, Verdict

NOW_MS = 1_795_392_000_000  # Monday 2026-11-23 00:00 UTC
PLACE = 'action == Action::"shop.Orders/Place"'
SMALL = f'@id("small") permit(principal in Role::"buyers", {PLACE}, resource) when {{ context.request.amount < 100 }};'
PLAIN = '@id("plain") permit(principal in Role::"staff", action, resource);'


def decide(policies: str, question: Call, **more: Any) -> Verdict:
    """Decide with a fresh engine, and check that the unsliced decision is the same."""
    fresh = engine(policies, **more)
    verdict = fresh.decide(question, now_ms=NOW_MS)
    assert verdict == fresh.decide_unsliced(question, now_ms=NOW_MS)
    return verdict


def test_a_permitted_call_is_allowed_with_its_policy() -> None:
    """The verdict names what determined it."""
    verdict = decide(SMALL, call(request=order(amount=99)))
    assert verdict == Verdict(True, Reason.ALLOWED, ("small",))


def test_without_a_permit_the_call_is_denied() -> None:
    """Default deny: nothing said is no."""
    assert decide(SMALL, call(request=order(amount=100))).reason == Reason.NO_POLICY_PERMITS
    assert decide(SMALL, call("bob", request=order())).reason == Reason.NO_POLICY_PERMITS
    assert decide("", call()).reason == Reason.NO_POLICY_PERMITS


def test_a_forbid_wins_over_every_permit() -> None:
    """The reason is the forbid, not the missing permit."""
    verdict = decide(PLAIN + '@id("no") forbid(principal, action in Action::"risky", resource);', call())
    assert (verdict.reason, verdict.policies) == (Reason.POLICY_DENIED, ("no",))


def test_a_forbid_that_fails_to_evaluate_denies() -> None:
    """Cedar skips it and says Allow; the answer must be no."""
    text = PLAIN + (
        f'@id("broken") forbid(principal, {PLACE}, resource) '
        "when { context.request.amount * 9223372036854775807 > 5 };"
    )
    verdict = decide(text, call(request=order(amount=4)))
    assert (verdict.allowed, verdict.reason) == (False, Reason.POLICY_ERROR)
    assert verdict.errors == ("broken",)
    assert verdict.policies == ("plain",)
    assert "broken" in verdict.detail


def test_a_request_that_policies_read_must_be_readable() -> None:
    """Bytes that are no such message, and values that Cedar cannot hold, are refused with the field."""
    assert decide(SMALL, call(request=b"\xff")).reason == Reason.REQUEST_UNREPRESENTABLE
    text = f'@id("a") permit(principal, {PLACE}, resource) when {{ context.request.u64 < 5 }};'
    verdict = decide(text, call(request=order(u64=2**63)))
    assert verdict.reason == Reason.REQUEST_UNREPRESENTABLE
    assert "request.u64" in verdict.detail


def test_leaving_the_request_out_does_not_dodge_a_forbid() -> None:
    """`context has request` is true of every unary call, so a missing message refuses it."""
    text = PLAIN + (
        '@id("cap") forbid(principal, action in [Action::"shop.Orders/Place"], resource) '
        "when { context has request && context.request.amount > 100 };"
    )
    assert decide(text, call(request=None)).reason == Reason.REQUEST_UNREPRESENTABLE
    assert decide(text, call(request=order(amount=101))).policies == ("cap",)
    assert decide(text, call(request=order(amount=100))).allowed


def test_a_request_that_no_policy_reads_is_not_decoded() -> None:
    """Garbage is the callee's business when nobody made it the policy's."""
    fresh = engine(PLAIN)
    assert fresh.decide(call(request=b"\xff"), now_ms=NOW_MS).allowed
    assert not fresh.reads_request(workload("alice"), "shop.Orders/Place", "payments")
    reading = engine(SMALL)
    assert reading.reads_request(workload("alice"), "shop.Orders/Place", "payments")
    assert not reading.reads_request(workload("bob"), "shop.Orders/Place", "payments")


def test_a_client_streaming_call_has_no_request_to_read() -> None:
    """Its messages come after it was decided."""
    text = '@id("a") permit(principal, action in Action::"shop.Orders", resource) unless { context has request };'
    assert decide(text, call(method="shop.Orders/Upload", request=order())).allowed
    assert not decide(text, call(method="shop.Orders/Place", request=order())).allowed


def test_the_context_tells_caller_node_time_and_signed_metadata() -> None:
    """Every part of the context is what docs/architecture.md says."""
    text = """@id("a") permit(principal, action, resource) when {
        context.caller == {authn: "jwt-svid", trust_domain: "mesh.local"} && context.node == {name: "node-a", level: 3}
        && context.time.now == datetime("2026-11-23") && context.time.hour == 0 && context.time.weekday == 1
        && context.metadata has tenant && context.metadata.tenant == "t" && !(context.metadata has "x-env") };"""
    assert decide(text, call(authn=Authn.JWT_SVID, level=3, metadata={"tenant": "t"})).allowed


def test_metadata_keys_that_nobody_signed_are_not_shown() -> None:
    """A caller cannot add attributes to the context."""
    shown = build_context(
        None,
        call(metadata={"tenant": "t", "unsigned": "x"}),
        NOW_MS,
        metadata_keys=frozenset({"tenant", "x-env"}),
        request=None,
    )
    assert shown["metadata"] == {"tenant": "t"}


def test_metadata_longer_than_the_limit_is_refused_not_cut() -> None:
    """A cut value could pass a comparison that the whole would not."""
    text = '@id("a") permit(principal, action, resource) when { context.metadata has tenant };'
    long = "x" * (limits.MAX_METADATA_VALUE_BYTES + 1)
    assert decide(text, call(metadata={"tenant": long})).reason == Reason.REQUEST_UNREPRESENTABLE
    assert decide(text, call(metadata={"tenant": long[1:]})).allowed


def test_what_policies_read_of_a_request_is_bounded() -> None:
    """A caller cannot make the policies work on megabytes."""
    text = f'@id("a") permit(principal, {PLACE}, resource) when {{ context.request.currency == "x" }};'
    verdict = engine(text).decide(
        call(request=order(currency="x" * limits.MAX_REQUEST_JSON_BYTES)), now_ms=NOW_MS
    )
    assert verdict.reason == Reason.REQUEST_UNREPRESENTABLE


def test_obligations_come_from_the_permits_that_determined_it() -> None:
    """A permit that did not match binds nobody, nor does anything of a denied call."""
    text = (
        '@id("a") @rate("5/s") @audit("payload") permit(principal, action, resource);'
        '@id("b") @lease("30s") permit(principal == Workload::"nobody", action, resource);'
        '@id("c") @audit("headers") permit(principal, action, resource);'
    )
    expected = (("audit", "headers"), ("audit", "payload"), ("rate", "5/s"))
    assert decide(text, call()).obligations == expected
    assert (
        decide(text + '@id("d") @lease("1s") forbid(principal, action, resource);', call()).obligations == ()
    )


def test_the_method_alone_is_enough_only_when_every_determining_permit_says_so() -> None:
    """The strictest of several decides, whatever else is in the bundle; nothing denied says so."""
    alone = '@id("a") @permit("method") permit(principal, action, resource);'
    assert decide(alone, call()).method_alone
    assert decide(alone + alone.replace('"a"', '"b"'), call()).method_alone
    strict = '@id("c") permit(principal, action, resource);'
    assert not decide(alone + strict, call()).method_alone
    of_others = '@id("d") permit(principal == Workload::"nobody", action, resource);'
    assert decide(alone + of_others, call()).method_alone
    verdict = decide(alone + '@id("e") forbid(principal, action, resource);', call())
    assert (verdict.allowed, verdict.method_alone) == (False, False)
    assert not decide(strict, call()).method_alone


def test_a_verdict_is_reused_only_for_calls_that_agree_on_everything_read() -> None:
    """The same engine is asked in turn; no answer leaks from one question to another."""
    fresh = engine(
        SMALL
        + '@id("local") forbid(principal, action, resource) when { context.caller.authn == "loopback" };'
    )
    for _ in range(2):
        assert fresh.decide(call(request=order(amount=1)), now_ms=NOW_MS).allowed
        assert not fresh.decide(call(request=order(amount=100)), now_ms=NOW_MS).allowed
        assert not fresh.decide(call(request=order(amount=1), authn=Authn.LOOPBACK), now_ms=NOW_MS).allowed
        assert not fresh.decide(call("bob", request=order(amount=1)), now_ms=NOW_MS).allowed


def test_time_is_never_remembered() -> None:
    """A permit until noon ends at noon."""
    fresh = engine(
        '@id("now") permit(principal, action == Action::"shop.Stock/Count", resource) '
        'when { context.time.now < datetime("2026-11-24") };'
        '@id("hour") permit(principal, action == Action::"shop.Stock/Take", resource) when { context.time.hour < 12 };'
    )
    for method, step_ms in (("shop.Stock/Count", 24 * 3_600_000), ("shop.Stock/Take", 12 * 3_600_000)):
        question = call(method=method)
        assert fresh.decide(question, now_ms=NOW_MS).allowed
        assert fresh.decide(question, now_ms=NOW_MS + step_ms - 1).allowed
        assert not fresh.decide(question, now_ms=NOW_MS + step_ms).allowed


def test_a_failure_inside_is_a_deny_and_no_exception() -> None:
    """`decide` is total, whatever is thrown at it."""
    fresh = engine(
        '@id("a") permit(principal, action, resource) when { context.time.now > datetime("2020-01-01") };'
    )
    verdict = fresh.decide(call(), now_ms=10**30)
    assert (verdict.allowed, verdict.reason) == (False, Reason.POLICY_ERROR)
    odd = Call("\ud800", "x\n/y", "\ud800", Authn.MTLS, "n", 4)
    assert not fresh.decide(odd, now_ms=NOW_MS).allowed


def test_a_method_without_descriptor_is_in_the_group_of_its_service() -> None:
    """`bare.Service` is listed without a descriptor: its group covers whatever it has."""
    text = '@id("g") permit(principal, action in Action::"bare.Service", resource);'
    assert decide(text, call(method="bare.Service/Whatever")).allowed
    assert not decide(text, call(method="other.Service/Whatever")).allowed
    assert not decide(text, call(method="bare.Service")).allowed
    any_text = '@id("g") permit(principal, action in Action::"any", resource);'
    assert decide(any_text, call(method="bare.Service/Whatever")).allowed


def test_a_method_of_a_service_that_nobody_declared_is_in_no_group() -> None:
    """Only a policy that leaves the action open covers it; `any` means every declared service."""
    method = "other.Service/Whatever"
    assert not decide(
        '@id("g") permit(principal, action in Action::"any", resource);', call(method=method)
    ).allowed
    assert decide('@id("g") permit(principal, action, resource);', call(method=method)).allowed


def test_of_a_service_whose_methods_are_spelled_out_others_are_in_no_group() -> None:
    """Listing some methods means those; listing the service as well means all."""
    schema = generate_schema(None, grpc_services=["part.Service/One", "part.Service"])
    text = '@id("g") permit(principal, action in Action::"part.Service", resource);'
    for services, expected in (((), False), (("part.Service",), True)):
        fresh = engine(text, schema=schema, files=None, services={"payments": {"grpc_services": services}})
        assert fresh.decide(call(method="part.Service/One"), now_ms=NOW_MS).allowed
        assert fresh.decide(call(method="part.Service/Two"), now_ms=NOW_MS).allowed is expected


def test_a_method_that_the_descriptor_denies_is_in_no_group() -> None:
    """The signed descriptor lists the methods of shop.Orders; another one is not covered by its group."""
    for group in ("shop.Orders", "any"):
        text = f'@id("g") permit(principal, action in Action::"{group}", resource);'
        assert not decide(text, call(method="shop.Orders/Hidden")).allowed
    assert not decide(
        '@id("g") permit(principal, action in Action::"risky", resource);', call(method="risky/x")
    ).allowed


def test_made_up_methods_share_one_cache_entry() -> None:
    """A caller that invents names must not push out what others use."""
    fresh = engine(SMALL)
    for number in range(50):
        fresh.explain(workload("alice"), f"made.Up/M{number}", "payments")
    assert len(fresh._prepared) == 1


def test_governs_tells_whether_any_policy_speaks_of_a_method() -> None:
    """Level 3 enforces where a policy exists."""
    fresh = engine(f'@id("a") permit(principal == Workload::"x", {PLACE}, resource == Service::"payments");')
    assert fresh.governs("shop.Orders/Place", "payments")
    assert fresh.governs("shop.Orders/Place", "payments")
    assert not fresh.governs("shop.Orders/Place", "stock")
    assert not fresh.governs("shop.Orders/Watch", "payments")


def test_what_the_engine_knows_of_methods_and_policies() -> None:
    """Doors and people ask these."""
    fresh = engine(SMALL + "\n" + PLAIN)
    assert fresh.is_unary("shop.Orders/Place") is True
    assert fresh.is_unary("shop.Orders/Watch") is False
    assert fresh.is_unary("bare.Service/X") is None
    assert fresh.policy_ids() == ("plain", "small")
    assert fresh.source("plain") == "policies/main.cedar:2"
    assert fresh.source("none") is None
    assert fresh.text("plain") == PLAIN
    assert fresh.text("none") is None
    assert [r.id for r in fresh.explain(workload("bob"), "shop.Orders/Place", "payments")] == ["plain"]


# namespaces

STORE = '@id("count") permit(principal, action == Action::"shop.Stock/Count", resource == Service::"stock");'


def build(
    base: str = PLAIN,
    own: str = STORE,
    *,
    entities: Iterable[Mapping[str, Any]] | str = (),
    **more: Any,
) -> Engine:
    """Build a base and the namespace `store`, whose only service is `stock`."""
    return Engine.build(bundle(base), {"store": bundle(own, namespace="store", entities=entities, **more)})


def refused(reason: Reason, **more: Any) -> str:
    """Return why the namespace is refused."""
    with pytest.raises(EvidenceError) as caught:
        build(**more)
    assert caught.value.reason == reason
    return caught.value.detail


def test_a_namespace_speaks_of_its_own_services() -> None:
    """Its policies decide together with the base's; ids say whose they are."""
    both = build(PLAIN + '@id("no") forbid(principal == Workload::"x", action, resource);')
    stranger = call("stranger", "shop.Stock/Count", "stock")
    assert both.decide(stranger, now_ms=NOW_MS).policies == ("store:count",)
    assert both.decide_unsliced(stranger, now_ms=NOW_MS).policies == ("store:count",)
    assert not both.decide(call("stranger", "shop.Stock/Count", "payments"), now_ms=NOW_MS).allowed
    assert both.decide(call("alice", "shop.Stock/Count", "stock"), now_ms=NOW_MS).policies == (
        "plain",
        "store:count",
    )


def test_a_forbid_of_the_base_holds_in_the_namespace() -> None:
    """What the base forbids cannot be permitted below it."""
    both = build('@id("no") forbid(principal, action, resource == Service::"stock");')
    verdict = both.decide(call("alice", "shop.Stock/Count", "stock"), now_ms=NOW_MS)
    assert (verdict.reason, verdict.policies) == (Reason.POLICY_DENIED, ("no",))


@pytest.mark.parametrize(
    "scope",
    [
        "principal, action, resource",
        "principal, action, resource is Service",
        'principal, action, resource == Service::"payments"',
        'principal, action, resource in ServiceGroup::"money"',
        'principal, action, resource is Service in ServiceGroup::"money"',
    ],
)
def test_a_policy_of_a_namespace_must_name_its_own_service(scope: str) -> None:
    """The condition does not count: `when { resource == ... }` proves nothing to a reader of scopes."""
    own = f'@id("wide") permit({scope}) when {{ resource == Service::"stock" }};'
    assert "policies/main.cedar:1" in refused(Reason.BUNDLE_OUT_OF_NAMESPACE, own=own)


def test_in_its_own_service_is_inside_the_namespace() -> None:
    """`in` and `is in` name the service as surely as `==`."""
    own = (
        '@id("a") permit(principal, action, resource in Service::"stock");'
        '@id("b") permit(principal, action, resource is Service in Service::"stock");'
    )
    verdict = build(own=own).decide(call("stranger", "shop.Stock/Count", "stock"), now_ms=NOW_MS)
    assert verdict.policies == ("store:a", "store:b")


def test_a_namespace_must_be_the_one_it_was_made_for() -> None:
    """Neither another's bundle nor one with mesh.json is taken."""
    refused(Reason.BUNDLE_OUT_OF_NAMESPACE, mesh=True)
    with pytest.raises(EvidenceError) as caught:
        Engine.build(bundle(PLAIN), {"store": bundle(STORE, namespace="other", entities=())})
    assert caught.value.reason == Reason.BUNDLE_OUT_OF_NAMESPACE


def test_the_base_must_be_a_base() -> None:
    """Without mesh.json there is no level to enforce."""
    for wrong in (bundle(PLAIN, mesh=False, namespace=None), bundle(PLAIN, namespace="store", mesh=True)):
        with pytest.raises(EvidenceError) as caught:
            Engine.build(wrong, {})
        assert caught.value.reason == Reason.BUNDLE_MALFORMED


@pytest.mark.parametrize(
    ("added", "word"),
    [
        (entity("Workload", workload("mallory"), [("Role", "staff")]), "may not join"),
        (entity("Workload", workload("mallory"), [("Role", "ghost")]), "may not join"),
        (entity("Workload", workload("alice"), [("Role", "mine")]), "define it"),
        (entity("Workload", workload("alice"), [("Role", "ghost")]), "may not join"),
        (entity("Workload", workload("bob"), [("Role", "buyers")]), "may not join"),
        (entity("Service", "payments"), "differs"),
        (entity("Role", "mine", [("Role", "buyers")]), "may not join"),
        (entity("Role", "ghost"), "another name"),
        (entity("Service", "elsewhere"), "not a service of this namespace"),
        (entity("Service", "stock", [("ServiceGroup", "money")]), "may not join"),
    ],
)
def test_a_namespace_cannot_give_anyone_what_the_base_gives(added: Mapping[str, Any], word: str) -> None:
    """Joining a base role, or one that base policies only mention, would be a permission or an exemption."""
    base = PLAIN + '@id("ghosts") permit(principal in Role::"ghost", action, resource);'
    assert word in refused(Reason.BUNDLE_OUT_OF_NAMESPACE, base=base, entities=[added])


def test_a_namespace_cannot_give_attributes() -> None:
    """A policy of the base may read `principal.clearance`; only the base's approvers say what it is."""
    plain, rich = "entity Workload in [Role];", "entity Workload in [Role] { clearance?: Long };"
    assert plain in engines.default_schema()
    detail = refused(
        Reason.BUNDLE_OUT_OF_NAMESPACE,
        schema=engines.default_schema().replace(plain, rich),
        entities=[entity("Workload", workload("mallory"), clearance=9)],
    )
    assert "has attributes" in detail


def test_a_namespace_may_have_roles_of_its_own() -> None:
    """They hold for its services and nowhere else."""
    own = '@id("clerks") permit(principal in Role::"clerks", action, resource == Service::"stock");'
    added = [entity("Role", "clerks"), entity("Workload", workload("carol"), [("Role", "clerks")])]
    both = build(own=own, entities=[*added, *DEFAULT_ENTITIES[:2]])
    assert both.decide(call("carol", "shop.Stock/Count", "stock"), now_ms=NOW_MS).allowed
    assert not both.decide(call("carol", "shop.Stock/Count", "payments"), now_ms=NOW_MS).allowed


CLERKS = '@id("clerks") permit(principal in Role::"clerks", action, resource == Service::"stock");'


def test_a_namespace_may_give_a_workload_of_the_base_a_role_of_its_own() -> None:
    """The ordinary case: alice is a buyer by the base and a clerk in the store; she stays both, and only there."""
    above = entity("Role", "office")
    own_entities = [
        above,
        entity("Role", "clerks", [("Role", "office")]),
        entity("Workload", workload("bob"), [("Role", "clerks")]),
    ]
    own = CLERKS.replace('Role::"clerks"', 'Role::"office"')
    base = (
        '@id("staff") permit(principal in Role::"staff", action == Action::"shop.Stock/Take", resource);'
        '@id("no") forbid(principal in Role::"buyers", action, resource == Service::"stock");'
    )
    both = build(base, own, entities=own_entities)
    for decide in (both.decide, both.decide_unsliced):
        assert decide(call("bob", "shop.Stock/Count", "stock"), now_ms=NOW_MS).policies == ("store:clerks",)
        assert decide(call("bob", "shop.Stock/Take", "stock"), now_ms=NOW_MS).policies == (
            "staff",
            "store:clerks",
        )
        assert decide(call("bob", "shop.Stock/Take", "payments"), now_ms=NOW_MS).policies == ("staff",)
        assert not decide(call("bob", "shop.Stock/Count", "payments"), now_ms=NOW_MS).allowed
        assert not decide(call("alice", "shop.Stock/Count", "stock"), now_ms=NOW_MS).allowed
    joined = [entity("Role", "clerks"), entity("Workload", workload("alice"), [("Role", "clerks")])]
    verdict = build(base, CLERKS, entities=joined).decide(
        call("alice", "shop.Stock/Count", "stock"), now_ms=NOW_MS
    )
    assert (verdict.reason, verdict.policies) == (Reason.POLICY_DENIED, ("no",))  # still a buyer


def test_roles_that_one_namespace_gives_do_not_count_in_another() -> None:
    """Two namespaces use one name for two roles; each holds for its own services alone."""
    services = {"payments": {"namespace": "pay"}, "stock": {"namespace": "store"}}
    joined = [entity("Role", "clerks"), entity("Workload", workload("bob"), [("Role", "clerks")])]
    both = Engine.build(
        bundle('@id("none") forbid(principal == Workload::"x", action, resource);', services=services),
        {
            "pay": bundle(CLERKS.replace("stock", "payments"), namespace="pay", entities=joined[:1]),
            "store": bundle(CLERKS, namespace="store", entities=joined),
        },
    )
    assert both.decide(call("bob", "shop.Stock/Count", "stock"), now_ms=NOW_MS).allowed
    assert not both.decide(call("bob", "shop.Stock/Count", "payments"), now_ms=NOW_MS).allowed


def test_attributes_of_a_workload_of_the_base_stay_when_a_namespace_gives_it_a_role() -> None:
    """A forbid of the base on `principal.clearance` must hold for whoever became a clerk; no other value is taken."""
    plain, rich = (
        "entity Workload in [Role];",
        "entity Workload in [Role] { clearance?: Long, boss?: Workload };",
    )
    schema = engines.default_schema().replace(plain, rich)
    boss = {"__entity": {"type": "Workload", "id": workload("alice")}}
    base = bundle(
        '@id("low") forbid(principal, action, resource) when { principal has clearance && principal.clearance < 2 };',
        schema=schema,
        entities=[*DEFAULT_ENTITIES[:3], entity("Workload", workload("bob"), clearance=1, boss=boss)],
    )

    def with_clerk(**attributes: Any) -> Engine:
        clerk = entity("Workload", workload("bob"), [("Role", "clerks")], **attributes)
        own = bundle(CLERKS, namespace="store", schema=schema, entities=[entity("Role", "clerks"), clerk])
        return Engine.build(base, {"store": own})

    for engine_of in (with_clerk(), with_clerk(clearance=1, boss=boss)):
        verdict = engine_of.decide(call("bob", "shop.Stock/Count", "stock"), now_ms=NOW_MS)
        assert (verdict.reason, verdict.policies) == (Reason.POLICY_DENIED, ("low",))
    with pytest.raises(EvidenceError, match="differs") as caught:
        with_clerk(clearance=9)
    assert caught.value.reason == Reason.BUNDLE_OUT_OF_NAMESPACE


def test_a_namespace_cannot_put_a_method_into_a_group_of_the_base() -> None:
    """Else a permit on the base's group would cover methods that its approvers never saw."""
    schema = generate_schema(None, grpc_services=["mine.Own/Do"], action_groups={"risky": ["mine.Own/Do"]})
    own = '@id("a") permit(principal, action == Action::"mine.Own/Do", resource == Service::"stock");'
    assert "risky" in refused(Reason.BUNDLE_OUT_OF_NAMESPACE, own=own, schema=schema, files=None)
    schema = generate_schema(None, grpc_services=["mine.Own/Do"], action_groups={"safe": ["mine.Own/Do"]})
    assert (
        build(own=own, schema=schema, files=None)
        .decide(call("x", "mine.Own/Do", "stock"), now_ms=NOW_MS)
        .allowed
    )


def test_a_namespace_cannot_redescribe_a_service_of_the_base() -> None:
    """The base's forbid on amount must read the amount, whatever the namespace says field 7 is."""
    proto = engines.RICH_PROTO.replace("int64 amount = 7", "int64 amount = 97")
    files = engines.descriptors(proto)
    base = PLAIN + f'@id("cap") forbid(principal, {PLACE}, resource) when {{ context.request.amount > 100 }};'
    both = build(base, files=files, schema=generate_schema(files))
    verdict = both.decide(
        call("alice", "shop.Orders/Place", "stock", request=order(amount=101)), now_ms=NOW_MS
    )
    assert verdict.policies == ("cap",)


def test_ids_must_differ_across_bundles() -> None:
    """A report that names a policy must name one."""
    base = '@id("store:count") permit(principal, action, resource);'
    assert "store:count" in refused(Reason.BUNDLE_POLICY_INVALID, base=base)


@pytest.mark.parametrize(
    ("more", "reason", "word"),
    [
        ({"schema": "entity ("}, Reason.BUNDLE_POLICY_INVALID, "schema"),
        ({"entities": "{"}, Reason.BUNDLE_MALFORMED, "entities.json"),
        ({"entities": [entity("Ghost", "x")]}, Reason.BUNDLE_MALFORMED, "entities.json"),
        ({"entities": [entity("Role", "x", shoe=1)]}, Reason.BUNDLE_MALFORMED, "entities.json"),
        ({"files": b"\xff"}, Reason.BUNDLE_MALFORMED, "descriptors.binpb"),
    ],
)
def test_a_bundle_with_a_broken_part_is_refused(more: dict[str, Any], reason: Reason, word: str) -> None:
    """Every part is checked at load, and the message names it."""
    with pytest.raises(EvidenceError) as caught:
        engine(PLAIN, **more)
    assert caught.value.reason == reason
    assert word in caught.value.detail


def test_large_requests_are_decided_without_being_kept() -> None:
    """Callers choose the text that a verdict is kept under: 16,384 requests of a megabyte must not fill the memory."""
    made = engine(
        '@id("a")\npermit(principal, action, resource)\n'
        'when { context has request && context.request has note && context.request.note == "x" };\n'
    )
    large = call(request=order(note="y" * limits.MAX_CACHED_KEY_CHARS))
    assert made.decide(large, now_ms=0) == made.decide_unsliced(large, now_ms=0)
    assert len(made._verdicts) == 0
    made.decide(call(request=order(note="x")), now_ms=0)
    assert len(made._verdicts) == 1


def test_long_made_up_methods_are_not_kept() -> None:
    """A path of many kilobytes is no cache entry either."""
    open_to_all = engine('@id("a")\npermit(principal, action, resource);\n')
    odd = call(method="x.Y/" + "z" * limits.MAX_CACHED_KEY_CHARS)
    assert open_to_all.decide(odd, now_ms=0).allowed
    assert len(open_to_all._verdicts) == 0


def _chain(length: int) -> str:
    role = [{"type": "Role", "id": f"r{number}"} for number in range(length + 1)]
    return json.dumps(
        [{"uid": role[i], "attrs": {}, "parents": [{"__entity": role[i + 1]}]} for i in range(length)]
    )


def test_a_long_chain_of_roles_is_refused_before_cedar_closes_it() -> None:
    """A megabyte of nested roles has ancestors by the hundred million: no proposal may end the control plane."""
    made = bundle('@id("a")\npermit(principal, action, resource);')
    with pytest.raises(EvidenceError) as caught:
        Engine.build(replace(made, entities=_chain(20_000)), {})
    assert caught.value.reason is Reason.BUNDLE_TOO_LARGE
    Engine.build(replace(made, entities=_chain(50)), {})


def test_roles_in_a_circle_are_still_refused_by_cedar() -> None:
    """Counting ancestors ends on a circle."""
    one, two = {"type": "Role", "id": "a"}, {"type": "Role", "id": "b"}
    circle = [
        {"uid": one, "attrs": {}, "parents": [two]},
        {"uid": two, "attrs": {}, "parents": [one]},
    ]
    made = replace(bundle('@id("a")\npermit(principal, action, resource);'), entities=json.dumps(circle))
    with pytest.raises(EvidenceError) as caught:
        Engine.build(made, {})
    assert caught.value.reason is Reason.BUNDLE_MALFORMED


# panics of native code


class _Raised:
    """Stands in for a part of the engine, and fails."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __call__(self, *_: object, **__: object) -> Any:
        raise self._error


def panic() -> BaseException:
    """Return an exception like the one that PyO3 makes of a Rust panic."""
    kind = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})
    error: BaseException = kind("index out of bounds")
    return error


def test_a_panic_of_cedar_denies_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no Exception; a caller who finds one must get a refusal and not end the sidecar."""
    engine_of = engines.engine(PLAIN)
    monkeypatch.setattr("trust.policy.engine.evaluate", _Raised(panic()))
    for decide in (engine_of.decide, engine_of.decide_unsliced):
        assert decide(call(), now_ms=NOW_MS).reason == Reason.POLICY_ERROR


def test_a_bundle_on_which_cedar_panics_is_not_enforced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy before it stays in force."""
    monkeypatch.setattr("trust.policy.engine.compile_rules", _Raised(panic()))
    with pytest.raises(EvidenceError, match="index out of bounds") as caught:
        engines.engine(PLAIN)
    assert caught.value.reason == Reason.BUNDLE_POLICY_INVALID


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(2), asyncio.CancelledError()])
def test_what_ends_a_task_or_the_process_is_not_taken_for_a_failure(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop must stop."""
    engine_of = engines.engine(PLAIN)
    monkeypatch.setattr("trust.policy.engine.evaluate", _Raised(error))
    with pytest.raises(type(error)):
        engine_of.decide(call(), now_ms=NOW_MS)
    monkeypatch.setattr("trust.policy.engine.compile_rules", _Raised(error))
    with pytest.raises(type(error)):
        engines.engine(PLAIN)
