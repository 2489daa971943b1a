"""`egm policy`: the verbs for a policy folder, and the verbs that change what is in force."""

import typer

from control_plane.cli import policy_recommend, policy_release, policy_replay, policy_shadow, policy_source

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Write, test, propose, review, sign and publish policy.",
)
policy_source.register(app)
policy_recommend.register(app)
policy_release.register(app)
policy_replay.register(app)
app.add_typer(policy_shadow.app, name="shadow")
