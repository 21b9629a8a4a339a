"""The scripts and styles of the console, compressed once."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from shared.domain.errors import NotFound

FOLDER = Path(__file__).parent / "static"
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_FOR_EVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class Asset:
    """A file: its content type, its bytes, and the same compressed."""

    content_type: str
    content: bytes
    compressed: bytes


class Assets:
    """All files of a folder by their path in it. `version` identifies their content, and is a part of their address.

    So browsers keep them for ever, and load the new ones after an upgrade. Modules import each other by relative
    addresses, which are below the same version.
    """

    def __init__(self, folder: Path) -> None:
        digest = hashlib.sha256()
        self.files: dict[str, Asset] = {}
        for file in sorted(folder.rglob("*")):
            if file.suffix in _TYPES:
                content = file.read_bytes()
                name = file.relative_to(folder).as_posix()
                digest.update(f"{name}\n{len(content)}\n".encode() + content)
                content_type = f"{_TYPES[file.suffix]}; charset=utf-8"
                self.files[name] = Asset(content_type, content, gzip.compress(content, 9, mtime=0))
        self.version = digest.hexdigest()[:12]

    def response(self, request: Request, version: str, name: str) -> Response:
        """The response with a file.

        Raises:
            NotFound: there is no such file.
        """
        asset = self.files.get(name)
        if asset is None:
            raise NotFound(f"There is no file {name!r}.")
        # During an upgrade, a page of another version may ask this process: its browser must not keep the answer.
        headers = {"Cache-Control": _FOR_EVER if version == self.version else "no-store", "Vary": "Accept-Encoding"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["Content-Encoding"] = "gzip"
            return Response(asset.compressed, headers=headers, media_type=asset.content_type)
        return Response(asset.content, headers=headers, media_type=asset.content_type)


ASSETS = Assets(FOLDER)
