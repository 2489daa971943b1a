"""Settings of all tests: Hypothesis does not judge by the clock, which on a shared machine says nothing of the code."""

import os
from pathlib import Path

from hypothesis import settings

settings.register_profile("egm", deadline=None)
settings.load_profile("egm")

# For the processes that tests start (and the workers of xdist), see there.
LEAN = str(Path(__file__).parent / "support" / "lean")
if LEAN not in (found := os.environ.get("PYTHONPATH", "").split(os.pathsep)):
    os.environ["PYTHONPATH"] = os.pathsep.join([LEAN, *filter(None, found)])
