"""A static embedding of texts: the mean of the vectors of their tokens, without a neural network.

The vectors and the tokenizer are files of the package `wordllama`. They are read directly: the package's own loader
looks for its tokenizer in a wrong folder, and would then download it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from tokenizers import Tokenizer

from api.routing.errors import RoutingModelError

Vector = npt.NDArray[np.float32]

NAME = "wordllama/l2_supercat_256"
DIMENSIONS = 256
_PACKAGE = "wordllama"
_WEIGHTS = "weights/l2_supercat_256.safetensors"
_TOKENIZER = "tokenizers/l2_supercat_tokenizer_config.json"
# Bytes of a text that are read. A rare character is a token per byte, so a bound in characters would not bound the
# time.
_BYTES = 600
# The vector of this text shows whether another installation has the same vectors and the same tokenizer.
_PROBE = "Compare 12 résumés, 三つの計画 and def main(): step by step."
_PROBE_VALUES = 8


class Embedding:
    """The embedding. 18 MB of files, which take a fraction of a second to read; safe to use from several threads."""

    def __init__(self) -> None:
        """Read the files.

        Raises:
            RoutingModelError: the package is not installed, or is not the expected one.
        """
        spec = importlib.util.find_spec(_PACKAGE)  # does not import it
        if spec is None or not spec.submodule_search_locations:
            raise RoutingModelError(
                f"the Python package {_PACKAGE} is not installed, which the classifier of HEADRACE_ROUTING_MODEL needs;"
                " it is available for Linux on x86-64 with Python 3.11 to 3.13"
            )
        folder = Path(spec.submodule_search_locations[0])
        try:
            with safe_open(folder / _WEIGHTS, framework="np") as file:
                self._vectors: npt.NDArray[np.float16] = file.get_tensor("embedding.weight")
            self._tokenizer = Tokenizer.from_file(str(folder / _TOKENIZER))
        except Exception as error:  # tokenizers raises nothing more specific
            raise RoutingModelError(f"cannot read the files of the Python package {_PACKAGE}: {error}") from error

    def vector(self, text: str) -> Vector:
        """The embedding of a text, of length 1; zeros for an empty text. Only both ends of a long text are read."""
        clipped = _clip(text)
        ids = self._tokenizer.encode(clipped, add_special_tokens=False).ids if clipped else []
        if not ids:
            return np.zeros(DIMENSIONS, dtype=np.float32)
        different, counts = np.unique(ids, return_counts=True)  # a token that repeats is read once
        total: Vector = counts.astype(np.float32) @ self._vectors[different].astype(np.float32)
        length = float(np.linalg.norm(total))
        return total / length if length else total

    def fingerprint(self) -> list[float]:
        """A few numbers that are the same for all installations with the same vectors and tokenizer."""
        return [round(float(value), 4) for value in self.vector(_PROBE)[:_PROBE_VALUES]]


def _clip(text: str) -> str:
    """The text; of a long one, its beginning and its end. Characters that are not Unicode are replaced."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) > _BYTES:
        encoded = encoded[: _BYTES // 2] + b"\n" + encoded[-_BYTES // 2 :]
    return encoded.decode("utf-8", "ignore")
