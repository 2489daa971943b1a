"""`egm alerts`: what fires, who takes care of it, and whether messages reach anybody."""

from typing import Annotated

import typer

from control_plane.cli.context import JsonFlag, MeshOption, open_mesh, run
from control_plane.cli.output import Exit, console, emit, table
from control_plane.cli.when import utc
from control_plane.edge.analytics_client import analytics as connect
from egm.v1 import analytics_pb2

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Alerts of this mesh: list, show, ack, test."
)
AlertId = Annotated[str, typer.Argument(metavar="ID", help="The id of an alert, from 'egm alerts list'.")]


@app.command("list")
def list_alerts(
    everything: Annotated[bool, typer.Option("--all", help="Also those that are resolved.")] = False,
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """List alerts. Exit 0: none is firing; 1: some are; 3: could not tell."""
    file, directory = open_mesh(mesh)

    async def ask() -> analytics_pb2.ListAlertsResponse:
        async with connect(file, directory) as client:
            return await client.alerts(everything=everything)

    answer = run(ask())
    firing = sum(alert.state == "firing" for alert in answer.alerts)
    data = {
        "firing": firing,
        "rules": answer.rules,
        "problems": list(answer.problems),
        "alerts": [alert_json(alert) for alert in answer.alerts],
    }
    emit(data, as_json=as_json, text=lambda: _print_list(answer, everything=everything))
    raise typer.Exit(Exit.NO if firing else Exit.YES)


@app.command()
def show(alert: AlertId, mesh: MeshOption = None, as_json: JsonFlag = False) -> None:
    """Show one alert, and what became of each message about it."""
    file, directory = open_mesh(mesh)

    async def ask() -> analytics_pb2.GetAlertResponse:
        async with connect(file, directory) as client:
            return await client.alert(alert)

    answer = run(ask())
    data = {
        "alert": alert_json(answer.alert),
        "deliveries": [_delivery_json(delivery) for delivery in answer.deliveries],
    }
    emit(data, as_json=as_json, text=lambda: _print_one(answer))


@app.command()
def ack(alert: AlertId, mesh: MeshOption = None, as_json: JsonFlag = False) -> None:
    """Say that you take care of an alert: it is not repeated until it ends. It goes on being enforced as before."""
    file, directory = open_mesh(mesh)

    async def ask() -> analytics_pb2.Alert:
        async with connect(file, directory) as client:
            return await client.ack(alert)

    acked = run(ask())
    emit(
        alert_json(acked),
        as_json=as_json,
        text=f"alert {acked.id} ({acked.rule}) acknowledged by {acked.acked_by}",
    )


@app.command()
def test(
    channel: Annotated[
        str,
        typer.Option(
            "--to", help="mqtt, or webhook:NAME of the control plane's configuration; default: all."
        ),
    ] = "",
    mesh: MeshOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Send a test message now. Exit 0: every channel took it; 1: one did not."""
    file, directory = open_mesh(mesh)

    async def ask() -> analytics_pb2.TestAlertResponse:
        async with connect(file, directory) as client:
            return await client.test(channel)

    answer = run(ask())
    failed = [delivery for delivery in answer.deliveries if delivery.error]
    data = {"ok": not failed, "deliveries": [_delivery_json(delivery) for delivery in answer.deliveries]}

    def text() -> None:
        for delivery in answer.deliveries:
            console.print(f"{delivery.channel:<24}{delivery.error or 'delivered'}", soft_wrap=True)

    emit(data, as_json=as_json, text=text)
    raise typer.Exit(Exit.NO if failed else Exit.YES)


def alert_json(alert: analytics_pb2.Alert) -> dict[str, object]:
    """Return an alert as JSON values."""
    return {
        "id": alert.id,
        "rule": alert.rule,
        "subject": alert.subject,
        "severity": alert.severity,
        "state": alert.state,
        "value": alert.value,
        "detail": alert.detail,
        "since_ms": alert.since_ms,
        "fired_ms": alert.fired_ms or None,
        "ended_ms": alert.ended_ms or None,
        "acked_by": alert.acked_by or None,
        "acked_ms": alert.acked_ms or None,
    }


def _delivery_json(delivery: analytics_pb2.AlertDelivery) -> dict[str, object]:
    return {
        "channel": delivery.channel,
        "state": delivery.state,
        "attempts": delivery.attempts,
        "error": delivery.error,
        "created_ms": delivery.created_ms,
    }


def _print_list(answer: analytics_pb2.ListAlertsResponse, *, everything: bool) -> None:
    if answer.alerts:
        table(
            ("state", "severity", "rule", "subject", "since (UTC)", "acknowledged", "id", "detail"),
            (
                (
                    alert.state,
                    alert.severity,
                    alert.rule,
                    alert.subject or "-",
                    utc(alert.since_ms),
                    alert.acked_by.rpartition("/")[2] or "-",
                    alert.id,
                    alert.detail,
                )
                for alert in answer.alerts
            ),
        )
    elif answer.rules or everything:
        console.print(f"nothing fires; {answer.rules} rules are in force")
    else:
        console.print(
            "nothing fires, and the policy has no rules: add alerts: to bundle.yaml (docs/observability.md)"
        )
    for problem in answer.problems:
        console.print(f"! {problem}", soft_wrap=True)


def _print_one(answer: analytics_pb2.GetAlertResponse) -> None:
    alert = answer.alert
    console.print(f"{alert.state} {alert.severity} alert {alert.id}: {alert.rule} {alert.subject}".rstrip())
    console.print(f"  {alert.detail}", soft_wrap=True)
    times = (("since", alert.since_ms), ("fired", alert.fired_ms), ("ended", alert.ended_ms))
    for name, ms in times:
        if ms:
            console.print(f"  {name:<14}{utc(ms)} UTC")
    if alert.acked_by:
        console.print(f"  acknowledged  {utc(alert.acked_ms)} UTC by {alert.acked_by}")
    if not answer.deliveries:
        console.print("  told nobody: its rule names no channel, or it is pending")
    for delivery in answer.deliveries:
        became = f"{delivery.state}, {delivery.attempts} attempts" + (
            f": {delivery.error}" if delivery.error else ""
        )
        console.print(
            f"  {utc(delivery.created_ms)}  {delivery.channel:<24}{became}",
            soft_wrap=True,
        )
