"""The collector is left as it was found."""

import gc

import pytest

from sidecar.edge.collector import young_only


def test_full_collections_come_back_whatever_happens() -> None:
    """A policy that does not compile must not switch the collector off for good."""
    before = gc.get_threshold()
    with pytest.raises(ValueError, match="no policy"), young_only():
        assert gc.isenabled()
        assert gc.get_threshold()[:2] == before[:2]
        assert gc.get_threshold()[2] > 10**6
        raise ValueError("no policy")
    assert gc.get_threshold() == before
