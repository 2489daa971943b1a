"""Settings of all tests: Hypothesis does not judge by the clock, which on a shared machine says nothing of the code."""

from hypothesis import settings

settings.register_profile("egm", deadline=None)
settings.load_profile("egm")
