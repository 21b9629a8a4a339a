"""LoRA adapters: models of their own name whose weights are a small change to those of another model, their base.

An adapter's jobs lie on the queue of its base, and the base's workers run them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

# The files that decide what an adapter generates, as PEFT saves them. The weights are in one of the last three.
CONFIG_FILE = "adapter_config.json"
TEMPLATE_FILE = "chat_template.jinja"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt")
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Adapter:
    """What makes a model an adapter.

    `base`: the name of its base model. `source`: a folder or a Hugging Face id, as in models.yaml. `folder` has the
    files, and `content` is a hash of them; both are None if they are not on this machine.
    """

    base: str
    source: str
    folder: Path | None = None
    content: str | None = None

    @classmethod
    def of(cls, base: str, source: str) -> Adapter:
        """The adapter of an entry, with its files if they are in a folder of this machine.

        Raises:
            OSError: a file cannot be read.
        """
        folder = Path(source).expanduser()
        return cls(base, source).at(folder) if folder.is_dir() else cls(base, source)

    def at(self, folder: Path) -> Adapter:
        """The adapter with its files in this folder.

        Raises:
            OSError: a file cannot be read.
        """
        return replace(self, folder=folder, content=content_of(folder))

    @property
    def identity(self) -> str:
        """What distinguishes it from other adapters of its base: its content, if it is known here."""
        return self.content or self.source

    @property
    def template(self) -> Path | None:
        """Its own chat template; None if it has none."""
        file = None if self.folder is None else self.folder / TEMPLATE_FILE
        return file if file is not None and file.is_file() else None

    @property
    def may_be_hub_id(self) -> bool:
        """Whether the source has the form of a Hugging Face id, `owner/name`."""
        return self.source.count("/") == 1 and not self.source.startswith((".", "/", "~"))


def content_of(folder: Path) -> str:
    """A hash of an adapter's files. It is read again only if a file's size or time of change differs.

    Raises:
        OSError: a file cannot be read.
    """
    return _content(folder, signature(folder))


def signature(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """The sizes and times of change of an adapter's files."""
    found = []
    for name in (CONFIG_FILE, TEMPLATE_FILE, *WEIGHT_FILES):
        if (file := folder / name).is_file():
            status = file.stat()
            found.append((name, status.st_size, status.st_mtime_ns))
    return tuple(found)


@lru_cache(maxsize=1024)
def _content(folder: Path, files: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for name, size, _ in files:
        digest.update(f"{name}:{size}\n".encode())
        with (folder / name).open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
    return digest.hexdigest()[:16]
