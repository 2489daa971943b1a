"""Settings of all tests: Hypothesis does not judge by the clock, which on a shared machine says nothing of the code."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support import cpu_cost

settings.register_profile("egm", deadline=None)
settings.load_profile("egm")

# For the processes that tests start (and the workers of xdist), see there.
LEAN = str(Path(__file__).parent / "support" / "lean")
if LEAN not in (found := os.environ.get("PYTHONPATH", "").split(os.pathsep)):
    os.environ["PYTHONPATH"] = os.pathsep.join([LEAN, *filter(None, found)])

# Compiled modules are kept even where the environment says otherwise: a run starts some hundred processes, and each
# would compile the product anew, as would each worker all tests. `.gitignore` names them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def pytest_configure(config: pytest.Config) -> None:
    """Measure what tests cost, where the environment asks for it."""
    if (plugin := cpu_cost.plugin_of(dict(os.environ))) is not None:
        config.pluginmanager.register(plugin, "egm-cpu-cost")
