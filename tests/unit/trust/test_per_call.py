"""Values that are made with every call behave as frozen ones do, whatever their making costs."""

import dataclasses

import pytest

from trust.per_call import per_call


@per_call(kw_only=True)
class Fast:
    name: str
    parts: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    name: str
    parts: tuple[int, ...] = ()


def test_values_hash_compare_and_show_as_frozen_ones_do() -> None:
    """A record, a decision or a call may be a key of a dict, in a set, and in a log."""
    one, other = Fast(name="a", parts=(1,)), Frozen(name="a", parts=(1,))
    assert one == Fast(name="a", parts=(1,)) != Fast(name="b", parts=(1,))
    assert hash(one) == hash(other)
    assert repr(one) == repr(other).replace("Frozen", "Fast")
    assert dataclasses.replace(one, name="b") == Fast(name="b", parts=(1,))


def test_a_misspelt_field_cannot_be_set() -> None:
    """Slots keep a value to its fields; the type checker keeps the fields as they are."""
    with pytest.raises(AttributeError):
        Fast(name="a").nmae = "b"  # type: ignore[attr-defined]
