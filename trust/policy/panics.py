"""Whether an exception is a panic of native code: a bug in Cedar, not a wish to end this process.

PyO3 raises a Rust panic as `pyo3_runtime.PanicException`, which derives from BaseException so that `except Exception`
lets it pass. Unlike KeyboardInterrupt, SystemExit and CancelledError it must be answered like any other failure.
"""

from typing import Final

_MODULE: Final = "pyo3_runtime"  # cannot be imported: the class is made at run time, by each native module
_NAME: Final = "PanicException"


def is_panic(error: BaseException) -> bool:
    """Whether native code panicked."""
    return any((kind.__module__, kind.__name__) == (_MODULE, _NAME) for kind in type(error).__mro__)
