"""Names for calls that nothing tells from ordinary ones: methods of a service's own packages, and a caller.

A sidecar that knew the assessor by its reserved method and its callers' names could behave for it alone. These names
are drawn anew for every call, look like any other, and nobody has a method of that name: where such a call reaches the
service after all, the service knows no such method.
"""

import secrets
from collections.abc import Collection, Sequence
from typing import Final

_VERBS: Final = (
    "Get",
    "List",
    "Update",
    "Create",
    "Cancel",
    "Reserve",
    "Confirm",
    "Export",
    "Merge",
    "Close",
)
_KINDS: Final = (
    *(
        "Pending",
        "Partial",
        "Regional",
        "Archived",
        "Scheduled",
        "Seasonal",
        "Preferred",
        "Internal",
        "Recurring",
    ),
    *(
        "Returned",
        "Bundled",
        "Deferred",
        "Verified",
        "Expired",
        "Shared",
        "Draft",
        "Monthly",
        "Split",
        "Local",
    ),
)
_THINGS: Final = (
    *(
        "Order",
        "Invoice",
        "Refund",
        "Quote",
        "Shipment",
        "Account",
        "Discount",
        "Address",
        "Receipt",
        "Payout",
    ),
    *(
        "Voucher",
        "Allowance",
        "Contract",
        "Rate",
        "Balance",
        "Reminder",
        "Forecast",
        "Catalog",
        "Ticket",
        "Batch",
    ),
)
_PARTS: Final = (
    "Summary",
    "History",
    "Allocations",
    "Entries",
    "Preview",
    "Notes",
    "Totals",
    "Lines",
    "Window",
)
_ROLES: Final = ("worker", "export", "sync", "batch", "reports", "gateway", "backfill", "scheduler", "mailer")


def method(grpc_services: Sequence[str], known: Collection[str] = ()) -> str:
    """Return `package.Service/Method` that looks like any other, and is none of `known`.

    `grpc_services`: full names, as policy knows them; without any a plausible one is made up.
    """
    while True:
        made_up = f"{secrets.choice(_THINGS).lower()}s.v1.{secrets.choice(_THINGS)}Service"
        service = secrets.choice(list(grpc_services)) if grpc_services else made_up
        words = (_VERBS, _KINDS, _THINGS, _KINDS, _PARTS)
        drawn = f"{service}/{''.join(secrets.choice(one) for one in words)}"
        if drawn not in known:
            return drawn


def workload(taken: Collection[str] = ()) -> str:
    """Return a workload's name that looks like any other, and is none of `taken`."""
    while True:
        drawn = f"{secrets.choice(_THINGS).lower()}-{secrets.choice(_ROLES)}-{secrets.randbelow(90) + 10}"
        if drawn not in taken:
            return drawn
