"""Archives for tests: valid ones, and ones that `write_bundle` would never write."""

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from typing import Literal

from trust.bundle import MANIFEST

MESH_JSON = b'{"trust_domain": "mesh.local"}'
BASE_FILES: Mapping[str, bytes] = {
    "schema.cedarschema": b"entity Workload;\n",
    "entities.json": b"[]\n",
    "mesh.json": MESH_JSON,
    "policies/main.cedar": b'@id("p1")\npermit(principal, action, resource);\n',
    "tests/main.yaml": b"[]\n",
}


def manifest_bytes(files: Mapping[str, bytes], /, **override: object) -> bytes:
    """Return manifest.json for `files`, with any field replaced by `override`."""
    value: dict[str, object] = {
        "format": 1,
        "name": "test",
        "namespace": None,
        "description": "",
        "files": {path: hashlib.sha256(data).hexdigest() for path, data in files.items()},
    }
    value.update(override)
    return json.dumps(value).encode()


def tar_of(
    members: list[tuple[tarfile.TarInfo, bytes]], *, format: Literal[0, 1, 2] = tarfile.USTAR_FORMAT
) -> bytes:
    """Return an uncompressed tar of exactly these members, ended by two zero blocks."""
    out = io.BytesIO()
    for info, data in members:
        if info.isreg():
            info.size = len(data)
        out.write(info.tobuf(format, "utf-8", "surrogateescape"))
        out.write(data + bytes(-len(data) % 512))
    out.write(bytes(1024))
    return out.getvalue()


def archive_of(files: Mapping[str, bytes], *, manifest: bytes | None = None) -> bytes:
    """Return an archive of `files` in sorted order, with a matching manifest unless one is given."""
    content = {**files, MANIFEST: manifest_bytes(files) if manifest is None else manifest}
    return gzip.compress(
        tar_of([(tarfile.TarInfo(path), content[path]) for path in sorted(content)]), mtime=0
    )
