"""Whether an evidence file's records are those of signed trees, and say nothing that contradicts itself (integrity)."""

from trust.checkpoint import open_checkpoint
from trust.errors import MeshError
from trust.evidence import Content
from trust.evidence_case import Case
from trust.evidence_report import Section
from trust.execution import id_text
from trust.lineage import Seen, build_tree
from trust.merkle import leaf_hash, root_from_inclusion
from trust.note import Verifier
from trust.record import Intent, Outcome, Record, parse_record, record_digest


def check_nodes(case: Case) -> None:
    """Integrity: each checkpoint is signed by the key that the file names, under the node's own name."""
    named = {record.node for record in case.evidence.records}
    for number, node in enumerate(case.evidence.nodes):
        where = f"nodes[{number}]"
        if node.name not in named:
            case.wrong(Section.INTEGRITY, f"{where}.name", "no record is of this node")
        try:
            log = Verifier.parse(node.key)
        except MeshError as error:
            case.wrong(Section.INTEGRITY, f"{where}.key", error)
            continue
        if log.name.rpartition("/node/")[2] != node.name:
            case.wrong(Section.INTEGRITY, f"{where}.key", f"it is the key of {log.name}, not of {node.name}")
        try:
            case.checkpoints[node.name] = open_checkpoint(node.checkpoint, log).checkpoint
        except MeshError as error:
            case.wrong(Section.INTEGRITY, f"{where}.checkpoint", error)


def check_records(case: Case) -> None:
    """Integrity: each record is well-formed, its node's, and in the tree of its node's checkpoint."""
    for number, part in enumerate(case.evidence.records):
        where = f"records[{number}]"
        try:
            record = parse_record(part.record)
        except MeshError as error:
            case.wrong(Section.INTEGRITY, f"{where}.record", error)
            continue
        case.records[part.node, part.index] = record
        if record.node != part.node:
            case.wrong(Section.INTEGRITY, f"{where}.node", f"the record is of node {record.node}")
        checkpoint = case.checkpoints.get(part.node)
        if checkpoint is None:
            case.wrong(Section.INTEGRITY, f"{where}.node", f"there is no good checkpoint of node {part.node}")
            continue
        try:
            leaf = leaf_hash(record_digest(part.record))
            root = root_from_inclusion(leaf, part.index, checkpoint.size, part.proof)
        except MeshError as error:
            case.wrong(Section.INTEGRITY, f"{where}.proof", error)
            continue
        if root != checkpoint.root:
            what = f"record {part.index} of {part.node} with its proof does not lead to the signed root"
            case.wrong(Section.INTEGRITY, where, what)


def check_contents(case: Case) -> None:
    """Integrity: the table of contents is that of the records, and two sides of a call do not contradict each other."""
    used: set[tuple[str, int]] = set()
    seen: dict[str, list[Seen]] = {}
    for number, content in enumerate(case.evidence.contents):
        where = f"contents[{number}]"
        intent = case.records.get((content.node, content.intent))
        outcome = None if content.outcome is None else case.records.get((content.node, content.outcome))
        used |= {(content.node, i) for i in (content.intent, content.outcome) if i is not None}
        if not isinstance(intent, Intent) or not _is_of(content, intent):
            what = "there is no such intent of this execution, node and side among the records"
            case.wrong(Section.INTEGRITY, f"{where}.intent", what)
            continue
        if content.outcome is None:
            if intent.allowed:
                case.open(Section.INTEGRITY, f"{where}.outcome", "how it ended: the file has no outcome")
        elif not isinstance(outcome, Outcome) or not _is_of(content, outcome):
            what = "there is no such outcome of this execution, node and side among the records"
            case.wrong(Section.INTEGRITY, f"{where}.outcome", what)
            continue
        seen.setdefault(content.execution, []).append(
            Seen(intent, outcome if isinstance(outcome, Outcome) else None)
        )
    for number, part in enumerate(case.evidence.records):
        if (part.node, part.index) not in used:
            case.wrong(Section.INTEGRITY, f"records[{number}]", "the contents do not list it")
    for execution, sides in seen.items():
        for hop in build_tree(sides, sides[0].intent.execution_id).hops:
            for problem in hop.problems:
                case.wrong(Section.INTEGRITY, f"execution {execution}", problem)


def _is_of(content: Content, record: Record) -> bool:
    return (id_text(record.execution_id), record.side) == (content.execution, content.side)
