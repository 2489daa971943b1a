"""Telling policies apart and refusing those that cannot be enforced."""

import cedarpy
import pytest

from tests.support.engines import bundle, default_schema
from trust.errors import EvidenceError, Reason
from trust.policy.rules import ANY, Rule, Scope, compile_rules, split

SCHEMA = cedarpy.Schema.from_str(default_schema())


def rules_of(text: str) -> list[Rule]:
    """Compile one source."""
    return compile_rules(bundle(text), SCHEMA)[0]


def refusal(text: str) -> str:
    """Return why a source is refused."""
    with pytest.raises(EvidenceError) as caught:
        rules_of(text)
    assert caught.value.reason == Reason.BUNDLE_POLICY_INVALID
    return caught.value.detail


def test_policies_are_split_where_cedar_splits_them() -> None:
    """Semicolons and quotes in strings and comments end nothing."""
    text = (
        '// one; "two\n@id("a;\\"b")\npermit(principal, action, resource); // tail; \n\n'
        '  @id("c") // ";\nforbid(principal, action, resource) when { "x;//y" == "z" };\r// end'
    )
    pieces = split(text, "f")
    assert [(p.line, p.text[:8]) for p in pieces] == [(2, '@id("a;\\'), (5, '@id("c")')]
    assert [rule.id for rule in rules_of(text)] == ['a;"b', "c"]


def test_an_unfinished_policy_is_refused_with_its_line() -> None:
    """The end of a file without `;` is not silently dropped."""
    assert refusal('@id("a") permit(principal, action, resource);\n@id("b")\npermit(').startswith(
        "policies/main.cedar:2: "
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("permit(principal, action, resource);", 'write @id("...")'),
        ('@id("") permit(principal, action, resource);', 'write @id("...")'),
        ('@id(" ") permit(principal, action, resource);', 'write @id("...")'),
        ('@id("a\\n") permit(principal, action, resource);', "printable"),
        (f'@id("{"x" * 201}") permit(principal, action, resource);', "200"),
        ('@id("a") permit(principal == ?principal, action, resource);', "template"),
        (
            '@id("a") permit(principal, action, resource); @id("a") forbid(principal, action, resource);',
            "already used",
        ),
        ('@id("a") permit(principal, action == Action::"no.Such/M", resource);', "unrecognized action"),
        ('@id("a") permit(principal, action, resource) when { context.nope };', "does not fit the schema"),
        ('@id("a") permit(principal is Ghost, action, resource);', "does not fit the schema"),
        *(
            (
                f'@id("a") @permit{value} {effect}(principal, action, resource);',
                '@permit("method"), on a permit',
            )
            for effect, value in (
                ("permit", '("Method")'),
                ("permit", '("each message")'),
                ("permit", '("")'),
                ("permit", ""),
                ("forbid", '("method")'),
            )
        ),
        ("permit(", "does not parse"),
        (";", "does not parse"),
    ],
)
def test_a_policy_that_cannot_be_enforced_refuses_the_bundle(text: str, expected: str) -> None:
    """Everything that could be misread later is refused at load, with what to do."""
    assert expected in refusal(text)


@pytest.mark.parametrize(
    "condition",
    [
        "(" * 5000 + "true" + ")" * 5000,
        "true" + " && true" * 5000,
        "context" + ".a" * 5000,
        "[" * 5000 + "]" * 5000,
    ],
    ids=["brackets", "operators", "attributes", "sets"],
)
def test_a_policy_that_would_overflow_the_native_parser_is_refused_before(condition: str) -> None:
    """It kills the process instead of raising, and a bundle must not be able to do that."""
    scope = "permit(principal, action, resource)"
    text = f'@id("ok") {scope};\n@id("deep") {scope}\nwhen {{ {condition} }};'
    assert refusal(text).startswith("policies/main.cedar:3: nested too deeply")


def test_the_right_policy_of_many_is_blamed() -> None:
    """Files are parsed in chunks; the message names the line all the same."""
    lines = [f'@id("p{i}") permit(principal, action, resource);' for i in range(100)]
    lines[70] = '@id("p70") permit(principal, action, resource) when { 1 };'
    assert refusal("\n".join(lines)).startswith("policies/main.cedar:71: ")
    lines[70] = '@id("p70") permit(principal action);'
    assert refusal("\n".join(lines)).startswith("policies/main.cedar:71: ")


def test_scopes_are_read_from_the_syntax_tree() -> None:
    """Every form of scope is kept exactly, or as one that matches everything."""
    rules = rules_of(
        '@id("1") permit(principal, action, resource);'
        '@id("2") permit(principal == Workload::"w", action == Action::"shop.Stock/Count", resource is Service);'
        '@id("3") permit(principal is Workload in Role::"r", action in [Action::"risky", Action::"any"], '
        'resource in ServiceGroup::"g");'
    )
    assert (rules[0].principal, rules[0].action, rules[0].resource) == (ANY, ANY, ANY)
    assert rules[1].principal == Scope(None, 'Workload::"w"', None)
    assert rules[1].action == Scope(None, 'Action::"shop.Stock/Count"', None)
    assert rules[1].resource == Scope("Service", None, None)
    assert rules[2].principal == Scope("Workload", None, ('Role::"r"',))
    assert rules[2].action == Scope(None, None, ('Action::"any"', 'Action::"risky"'))
    assert rules[2].resource == Scope(None, None, ('ServiceGroup::"g"',))


def test_obligations_are_the_known_annotations() -> None:
    """Other annotations are for people."""
    (rule,) = rules_of(
        '@id("a") @rate("5/s") @audit("payload") @owner("x") permit(principal, action, resource);'
    )
    assert rule.obligations == (("audit", "payload"), ("rate", "5/s"))


def test_the_method_alone_is_bound_only_where_a_policy_says_exactly_that() -> None:
    """Nothing else weakens what a permit binds."""
    rules = rules_of(
        '@id("a") permit(principal, action, resource);'
        '@id("b") @permit("method") permit(principal, action, resource);'
        '@id("c") @Permit("method") permit(principal, action, resource);'
        '@id("d") @owner("permit method") forbid(principal, action, resource);'
    )
    assert [rule.method_alone for rule in rules] == [False, True, False, False]
