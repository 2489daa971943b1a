"""Generate proto/gen/egm from proto/egm, or with --check say whether it is current."""

import argparse
import filecmp
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

HERE = Path(__file__).resolve().parent
GENERATED = HERE / "gen"


def generate(out: Path) -> None:
    """Write the modules and their stubs below `out`; directory equals package."""
    sources = sorted(str(path.relative_to(HERE)) for path in (HERE / "egm").rglob("*.proto"))
    arguments = ["protoc", f"-I{HERE}", f"--python_out={out}", f"--grpc_python_out={out}"]
    arguments += [f"--mypy_out={out}", f"--mypy_grpc_out={out}", *sources]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed; see above")
    for package in {path.parent for path in out.rglob("*_pb2.py")} | {out / "egm", out / "egm" / "sample"}:
        (package / "__init__.py").touch()
        (package / "py.typed").touch()


def differences(left: Path, right: Path) -> list[str]:
    """Return the relative paths that differ between two generated trees."""
    names = {path.relative_to(root) for root in (left, right) for path in root.rglob("*") if path.is_file()}
    wanted = sorted(name for name in names if "__pycache__" not in name.parts)
    return [
        str(name)
        for name in wanted
        if not (left / name).is_file()
        or not (right / name).is_file()
        or not filecmp.cmp(left / name, right / name, shallow=False)
    ]


def main() -> int:
    """Generate, or compare what is committed with what the sources give now."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 if proto/gen is not current")
    if not parser.parse_args().check:
        GENERATED.mkdir(exist_ok=True)
        generate(GENERATED)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        stale = differences(GENERATED, Path(scratch))
    for name in stale:
        sys.stderr.write(f"not current: proto/gen/{name} (run 'make gen')\n")
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
