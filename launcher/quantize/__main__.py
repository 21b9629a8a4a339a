"""Quantize a model to 4 or 8 bits, by rounding to nearest.

The result is a folder that vLLM serves, on a CPU and on a GPU: name it as `model` in models.yaml.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launcher.bundled_model import prepare
from launcher.errors import LaunchError
from launcher.parts import load_models
from launcher.progress import Progress
from launcher.quantize import checkpoint
from launcher.quantize.formats import GROUP_SIZES, EightBits, FourBits
from launcher.settings import load_settings
from shared.config.bundled_model import BUNDLED_PREFIX
from shared.config.models.vllm import VllmModel


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m launcher.quantize", description=__doc__)
    parser.add_argument("model", metavar="MODEL", help="a name in models.yaml, bundled:NAME, or a model's folder")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="a new or empty folder")
    parser.add_argument(
        "--bits",
        type=int,
        choices=(4, 8),
        default=4,
        help="4: weights only; 8: the activations too, while the model runs (default: 4)",
    )
    parser.add_argument(
        "--group-size",
        type=int,
        choices=sorted(GROUP_SIZES),
        default=64,
        help="with 4 bits, weights that share a scale: fewer are more accurate and take more room (default: 64)",
    )
    chosen = parser.parse_args(arguments)
    progress = Progress(sys.stderr)
    try:
        source = checkpoint.read(folder_of(chosen.model))
        began = time.monotonic()
        report = checkpoint.write(
            source,
            chosen.output.expanduser().absolute(),
            FourBits(chosen.group_size) if chosen.bits == 4 else EightBits(),
            lambda done, of: progress.show(f"  {done} of {of} layers"),
        )
    except LaunchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        progress.say("Ended; nothing was written.")
        return 130
    progress.show("")
    print(
        f"{report.layers} layers in {time.monotonic() - began:.0f} s: {report.before / 1e6:.0f} MB before,"
        f" {report.after / 1e6:.0f} MB after ({report.before / report.after:.1f} times smaller)\n"
        f"error of the weights: {report.error:.1%} (root mean square, relative);"
        f" most in {report.worst_layer}: {report.worst_error:.1%}\n"
        f"To serve it, set in models.yaml:  model: {chosen.output}"
    )
    return 0


def folder_of(name: str) -> Path:
    """The folder of a model, given by its name in models.yaml, as bundled:NAME or as a path.

    Raises:
        LaunchError: there is no such model on this machine.
    """
    if name.startswith(BUNDLED_PREFIX):
        return prepare(name.removeprefix(BUNDLED_PREFIX))
    if (folder := Path(name).expanduser()).is_dir():
        return folder.absolute()
    file = load_settings().models
    models = load_models(file).models
    if (model := models.get(name)) is None:
        local = ", ".join(other for other, spec in models.items() if isinstance(spec, VllmModel))
        raise LaunchError(f"{name} is neither a folder nor a model of {file} that runs in vLLM ({local or 'none'}).")
    if not isinstance(model, VllmModel):
        raise LaunchError(f"{file}: {name} runs in the engine {model.engine}; only models of vLLM can be quantized.")
    if model.bundled_model is not None:
        return prepare(model.bundled_model)
    if model.folder is None:
        raise LaunchError(f"{model.model} is not on this machine; download it, and name its folder.")
    return model.folder


if __name__ == "__main__":
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sig, signal.default_int_handler)  # so that an unfinished copy is removed
    sys.exit(main())
