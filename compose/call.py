"""Calls a service as the workload of this container: call.py SERVICE [METHOD] [JSON]. Exit 0 answered, 1 refused."""

import asyncio
import json
import sys

from control_plane.lab.calls import Caller, Messages

PORTS = {"a": 5101, "b": 5102, "c": 5103}  # as setup.py gives them


async def main(service: str, method: str = "egm.sample.v1.Accounts/GetBalance", request: str = "{}") -> int:
    """Make one call; print how it ended."""
    caller = Caller(Messages(None))
    try:
        outcome = await caller.call(f"127.0.0.1:{PORTS[service]}", method, json.loads(request), timeout_s=5)
    finally:
        await caller.close()
    print(outcome)
    return 0 if outcome.ok else 1


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in PORTS:
        sys.exit(__doc__)
    sys.exit(asyncio.run(main(*sys.argv[1:])))
