"""One chain of executions as three nodes record it: alice calls shop, shop calls payments, payments calls ledger."""

from collections.abc import Mapping

from tests.support.records import callee_side, child, intent, outcome, refusal, workload
from trust.record import Intent, Link, Outcome

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

ROOT = intent(1, service="shop", callee=workload("shop"), method="shop.Shop/Order", traceparent=TRACE)
ROOT_AT_B = callee_side(ROOT, "b")
PAY = child(2, ROOT, node="b", caller=workload("shop"))
PAY_AT_C = callee_side(PAY, "c")
BOOK = child(
    3, PAY, node="c", caller=workload("payments"), service="ledger", method="shop.Ledger/Book", callee=""
)
DENIED = refusal(
    4,
    node="b",
    caller=workload("shop"),
    service="stock",
    callee="",
    method="shop.Stock/Take",
    root_id=ROOT.execution_id,
    parent_id=ROOT.execution_id,
    parent_permit_sha256=ROOT.permit_sha256,
    link=Link.VERIFIED,
)
TRACED = intent(
    5, node="c", caller=workload("batch"), service="ledger", traceparent=TRACE, link=Link.UNVERIFIED
)

# what each node's ledger holds, in order; BOOK has no outcome yet
LEDGERS: Mapping[str, list[Intent | Outcome]] = {
    "a": [ROOT, outcome(ROOT, duration_us=9_000)],
    "b": [
        ROOT_AT_B,
        PAY,
        DENIED,
        outcome(PAY, status="UNAVAILABLE", duration_us=5_250),
        outcome(ROOT_AT_B, duration_us=8_000),
    ],
    "c": [PAY_AT_C, BOOK, outcome(PAY_AT_C, status="UNAVAILABLE"), TRACED, outcome(TRACED)],
}
