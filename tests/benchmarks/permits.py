"""What a permit costs: minting and verifying, with the Ed25519 operation by itself beside each.

    python -m tests.benchmarks.permits

"accept" is what the callee's sidecar does for a call: all of verify, and spending the permit in a replay cache that
already holds 100,000. "replay" is the refusal of a permit that was used. Times are CPU of the thread per call, in
microseconds; the operation by itself was measured in turns with the whole.
"""

import gc
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from sidecar.core.call import Attempt, Direction
from sidecar.core.endorsements import Endorsements
from sidecar.core.permits import Verifier
from sidecar.core.replay import ReplayCache
from tests.support.permits import ALICE, CERTIFICATE, NOW_MS, PAY, PAYMENTS, REQUEST, Signing, claims, token
from trust.ed25519 import Signer, is_signature
from trust.edge.ids import ExecutionIds
from trust.errors import StateError
from trust.permit import mint, verify
from trust.policy.types import Authn

ROUNDS = 5_000
SPENT = 100_000


def _ids(count: int) -> list[bytes]:
    return [os.urandom(16) for _ in range(count)]


def _timed(step: Callable[[int], object], number: int) -> float:
    started = time.thread_time_ns()
    step(number)
    return (time.thread_time_ns() - started) / 1000


def row_of(
    name: str, rounds: int, step: Callable[[int], object], signature: Callable[[int], object]
) -> dict[str, Any]:
    """Measure one step, and in turns with it the signature in it; return medians and their difference."""
    whole, alone = [], []
    for number in range(rounds):
        whole.append(_timed(step, number))
        alone.append(_timed(signature, number))
    total, ed25519 = statistics.median(whole), statistics.median(alone)
    return {
        "step": name,
        "median_us": round(total, 1),
        "p99_us": round(sorted(whole)[len(whole) * 99 // 100], 1),
        "ed25519_us": round(ed25519, 1),
        "overhead_us": round(total - ed25519, 1),
    }


def _verifier(signing: Signing) -> Verifier:
    replay = ReplayCache(boot_ms=0, remember=lambda _ms: None)
    for number, one in enumerate(_ids(SPENT)):
        replay.spend(one.hex(), iat_ms=NOW_MS - 1000, exp_ms=NOW_MS + number % 30_000, now_ms=NOW_MS)
    endorsements = Endorsements(lambda: b"", "mesh.local")
    endorsements.hold(signing.public)
    return Verifier(endorsements, replay)


def run(rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """Measure and return one row per step."""
    signing = Signing()
    public, signer = signing.private.public_key(), Signer(signing.private)
    drawn = ExecutionIds(now_ms=lambda: NOW_MS)
    permits = [token(signing, execution_id=one, root_id=one) for one in (drawn.new() for _ in range(rounds))]
    signed = [text.rpartition(".")[0].encode() for text in permits]
    signatures = [signing.private.sign(one) for one in signed]
    told, known = claims(), {signing.kid: signing.public}
    attempt = Attempt(Direction.INBOUND, "payments", PAY, ALICE, Authn.MTLS)
    verifier = _verifier(signing)

    def check(text: str) -> object:
        return verify(
            text,
            key_of=known.__getitem__,
            caller=ALICE,
            audience=PAYMENTS,
            method=PAY,
            request_sha256=REQUEST,
            client_cert_sha256=CERTIFICATE,
            now_ms=NOW_MS,
        )

    def accept(text: str) -> object:
        return verifier.accept(
            text,
            None,
            attempt,
            audience=PAYMENTS,
            request_sha256=REQUEST,
            client_cert_sha256=CERTIFICATE,
            now_ms=NOW_MS,
        )

    def replay(text: str) -> None:
        try:
            accept(text)
        except StateError:
            return
        raise AssertionError("a permit was accepted twice")

    def mint_one(number: int) -> object:
        return mint(told, signer.sign, kid)

    def sign_one(number: int) -> object:
        return signer.sign(signed[number])

    def check_one(number: int) -> object:
        return is_signature(signatures[number], signed[number], public)

    kid = signing.kid
    gc.collect()
    gc.disable()
    try:
        return [
            row_of("mint", rounds, mint_one, sign_one),
            row_of("verify", rounds, lambda number: check(permits[number]), check_one),
            row_of("accept", rounds, lambda number: accept(permits[number]), check_one),
            row_of("replay", rounds, lambda number: replay(permits[number]), check_one),
        ]
    finally:
        gc.enable()


def main() -> int:
    """Print the table."""
    rows = run()
    names = list(rows[0])
    lines = ["  ".join(name.rjust(12) for name in names)]
    lines += ["  ".join(str(row[name]).rjust(12) for name in names) for row in rows]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
