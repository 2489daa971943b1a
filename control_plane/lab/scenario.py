"""What a scenario file may say (`egm lab run FILE`): a mesh, and steps that break it and say what must hold."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from control_plane.lab.network import Fault
from control_plane.lab.plan import GRACE_S, LEASE_S, LINKS, LabPlan, Node, Service, parse_duration_ms
from trust.errors import InputError, MeshError, Reason
from trust.policy.problems import Problem
from trust.policy.yaml_text import Document, parse_yaml

SHIPPED: Final = Path(__file__).parent / "scenarios"
SUFFIX: Final = ".yaml"
MAX_SCENARIO_BYTES: Final = 1024 * 1024


def _seconds(value: float | str) -> float:
    try:
        return parse_duration_ms(value) / 1000
    except InputError as error:
        raise ValueError(error.detail) from None


Seconds = Annotated[float | str, AfterValidator(_seconds)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class ServiceText(_Strict):
    """One service of a node; without anything: the sample service."""

    address: str | None = None
    command: tuple[str, ...] = ()
    environment: dict[str, str] = Field(default_factory=dict)
    grpc_services: tuple[str, ...] = ()


class NodeText(_Strict):
    """One node."""

    services: dict[str, ServiceText | None] = Field(default_factory=dict)
    workloads: tuple[str, ...] = ()


class MeshText(_Strict):
    """The mesh of a scenario."""

    nodes: tuple[str, ...] | dict[str, NodeText]
    policy: Path | None = None
    descriptors: Path | None = None
    level: int | None = None
    lease_s: int = LEASE_S
    grace_s: int = GRACE_S
    witnesses: tuple[str, ...] | None = None
    attestation_s: int | None = None
    trust_domain: str = "mesh.local"
    network: str = LINKS
    seed: int = 0


class Expected(_Strict):
    """How a call must end."""

    ok: bool = True
    code: str | None = None
    reason: str | None = None
    reply: dict[str, Any] | None = None
    # a refusal for this reason is as good: which comes first is a matter of time
    or_reason: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _a_reason_is_a_refusal(cls, data: Any) -> Any:
        if (
            isinstance(data, dict)
            and "ok" not in data
            and ("reason" in data or data.get("code", "OK") != "OK")
        ):
            return {**data, "ok": False}
        return data


class CallStep(_Strict):
    """One call, or one of a load."""

    source: str = Field(alias="from")
    to: str | None = None
    method: str
    request: dict[str, Any] = Field(default_factory=dict)
    timeout: Seconds = 10.0
    within: Seconds | None = None
    twin: bool = False
    expect: Expected = Expected()


class PartitionStep(_Strict):
    """A cut between groups."""

    groups: tuple[tuple[str, ...], ...]
    one_way: bool = False
    reset: bool = False

    @model_validator(mode="before")
    @classmethod
    def _a_list_is_the_groups(cls, data: Any) -> Any:
        return {"groups": data} if isinstance(data, list) else data


class FaultStep(_Strict):
    """A fault on one link."""

    source: str = Field(alias="from")
    to: str
    one_way: bool = False
    drop: bool = False
    reset: bool = False
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    bytes_per_s: int | None = None

    @model_validator(mode="after")
    def _is_a_fault(self) -> "FaultStep":
        try:
            Fault(**self.fields())
        except InputError as error:
            raise ValueError(error.detail) from None
        return self

    def fields(self) -> dict[str, Any]:
        """Return the arguments of `Fault`."""
        return self.model_dump(exclude={"source", "to", "one_way"})


class WaitStep(_Strict):
    """Wait until nodes are so."""

    until: str | dict[str, Any]
    within: Seconds = 30.0


class PublishStep(_Strict):
    """A policy change, signed by the quorum."""

    policy: Path | None = None
    files: dict[str, str | None] = Field(default_factory=dict)
    level: int | None = None
    witnesses: tuple[str, ...] | None = None


class LoadStep(_Strict):
    """Calls that go on until `stop_load`."""

    calls: tuple[CallStep, ...] = Field(min_length=1)
    workers: int = Field(default=1, ge=1, le=64)
    pause: Seconds = 0.02

    @model_validator(mode="after")
    def _each_has_one_end(self) -> "LoadStep":
        if any(one.expect.or_reason is not None for one in self.calls):
            raise ValueError("or_reason is for single calls: in a load every refusal is counted")
        return self


class StopLoadStep(_Strict):
    """What must have come of the load; a wrong answer always fails."""

    answered_at_least: int = 1


class Step(_Strict):
    """One step: exactly one of these keys."""

    say: str | None = None
    call: CallStep | None = None
    partition: PartitionStep | None = None
    isolate: tuple[str, ...] | None = None
    fault: FaultStep | None = None
    heal: bool | None = None
    kill: str | None = None
    stop: str | None = None
    start: str | None = None
    restart: str | None = None
    pause: str | None = None
    resume: str | None = None
    skew: dict[str, Seconds] | None = None
    snapshot: str | None = None
    lie: dict[str, str] | None = None
    publish: PublishStep | None = None
    wait: WaitStep | None = None
    load: LoadStep | None = None
    stop_load: StopLoadStep | None = None
    sleep: Seconds | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_key(cls, data: Any) -> Any:
        if isinstance(data, str):
            data = {data: None}
        if not isinstance(data, dict) or len(data) != 1:
            raise ValueError(f"a step is one of: {', '.join(cls.model_fields)}")
        (name,) = data
        empty: dict[str, Any] = {"heal": True, "stop_load": {}, "publish": {}}
        return data if data[name] is not None else {name: empty.get(name)}

    @model_validator(mode="after")
    def _not_empty(self) -> "Step":
        if not self.model_fields_set or getattr(self, self.kind) is None:
            raise ValueError(
                f"this step says nothing; a step is one of: {', '.join(type(self).model_fields)}"
            )
        return self

    @property
    def kind(self) -> str:
        """Which step it is."""
        return next(iter(self.model_fields_set))


class ScenarioText(_Strict):
    """A scenario file."""

    name: str
    description: str = ""
    mesh: MeshText
    steps: tuple[Step, ...] = Field(min_length=1)


class Scenario:
    """A scenario that was read, and where its steps are."""

    def __init__(self, text: ScenarioText, document: Document, base: Path) -> None:
        self.name, self.description, self.steps = text.name, text.description, text.steps
        self._document, self._base = document, base
        self.plan = self._plan(text.mesh)

    def place(self, number: int) -> str:
        """Return "FILE:LINE" of a step (0-based)."""
        return f"{self._document.file}:{self._document.line(('steps', number))}"

    def policy(self, step: PublishStep) -> Path | Mapping[str, str | None] | None:
        """Return what a publish step publishes."""
        return self._base / step.policy if step.policy is not None else step.files or None

    def _plan(self, mesh: MeshText) -> LabPlan:
        if isinstance(mesh.nodes, tuple):
            nodes = {name: Node({name: Service()}) for name in mesh.nodes}
        else:
            nodes = {
                name: Node(
                    {s: Service(**(text or ServiceText()).model_dump()) for s, text in node.services.items()},
                    node.workloads,
                )
                for name, node in mesh.nodes.items()
            }
        return LabPlan(
            nodes,
            None if mesh.policy is None else self._base / mesh.policy,
            level=mesh.level,
            descriptors=None if mesh.descriptors is None else (self._base / mesh.descriptors).read_bytes(),
            lease_s=mesh.lease_s,
            grace_s=mesh.grace_s,
            trust_domain=mesh.trust_domain,
            network=mesh.network,
            seed=mesh.seed,
            witnesses=mesh.witnesses,
            attestation_s=mesh.attestation_s,
        )


def parse_scenario(file: str, data: bytes, *, base: Path) -> Scenario:
    """Read a scenario.

    Args:
        file: its name, for messages.
        data: YAML.
        base: what paths in it are relative to.

    Raises:
        InputError: INPUT_INVALID, "FILE:LINE: what is wrong" for every mistake.
    """
    if len(data) > MAX_SCENARIO_BYTES:
        raise InputError(Reason.INPUT_INVALID, f"{file} is larger than {MAX_SCENARIO_BYTES} bytes")
    document = parse_yaml(file, data)
    if isinstance(document, Problem):
        raise InputError(Reason.INPUT_INVALID, f"{file}:{document.line}: {document.message}; {document.hint}")
    try:
        text = ScenarioText.model_validate(document.value)
    except ValidationError as error:
        lines = [_mistake(document, found) for found in error.errors()]
        raise InputError(Reason.INPUT_INVALID, "\n".join(dict.fromkeys(lines))) from None
    try:
        return Scenario(text, document, base)
    except OSError as error:
        raise InputError(
            Reason.INPUT_INVALID, f"{file}:{document.line(('mesh',))}: {error.filename}: {error.strerror}"
        ) from None
    except MeshError as error:
        raise InputError(
            Reason.INPUT_INVALID, f"{file}:{document.line(('mesh', 'nodes'))}: {error.detail}"
        ) from None


def find_scenario(name: str) -> Path:
    """Return the file of a scenario: a path, or the name of one that is shipped.

    Raises:
        InputError: NOT_FOUND, naming those that are shipped.
    """
    path, shipped = Path(name), SHIPPED / f"{name}{SUFFIX}"
    if path.is_file():
        return path
    if "/" not in name and shipped.is_file():
        return shipped
    raise InputError(
        Reason.NOT_FOUND, f"{name} is neither a file nor one of: {', '.join(shipped_scenarios())}"
    )


def load_scenario(path: Path) -> Scenario:
    """Read the scenario at `path`. Raises InputError INPUT_INVALID."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(Reason.INPUT_INVALID, f"{path}: {error.strerror}") from None
    return parse_scenario(str(path), data, base=path.parent)


def shipped_scenarios() -> tuple[str, ...]:
    """Return the names of the scenarios that come with egm."""
    return tuple(sorted(path.stem for path in SHIPPED.glob(f"*{SUFFIX}")))


def _mistake(document: Document, found: Mapping[str, Any]) -> str:
    place = [
        part for part in found["loc"] if part not in {"str", "tuple[str, ...]", "NodeText", "ServiceText"}
    ]
    if found["type"] == "extra_forbidden":
        what = f"{place[-1]!r} means nothing here"
    elif found["type"] == "missing":
        what, place = f"{place[-1]!r} is missing", place[:-1]
    else:
        what = str(found["msg"]).removeprefix("Value error, ")
    where = ".".join(str(part) for part in place)
    return (
        f"{document.file}:{document.line(place)}: {where}: {what}" if where else f"{document.file}:1: {what}"
    )
