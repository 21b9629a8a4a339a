"""Small byte-level tokenizers, as most models have one, with chat templates."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import NFC, Normalizer
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence
from tokenizers.trainers import BpeTrainer

# As ChatML, with the definitions of tools, indented, before the messages.
TEMPLATE = (
    "{% if tools %}{% for tool in tools %}{{ tool | tojson(indent=2) }}\n{% endfor %}{% endif %}"
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
_SPLITS_DIGITS = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
KINDS: dict[str, tuple[Normalizer | None, PreTokenizer]] = {
    "words": (None, ByteLevel(add_prefix_space=False)),
    "digits": (None, _SPLITS_DIGITS),
    "sentences": (None, ByteLevel(add_prefix_space=False, use_regex=False)),  # tokens of several words
    "prefixed": (None, ByteLevel(add_prefix_space=True)),
    "normalized": (NFC(), ByteLevel(add_prefix_space=False)),
}


def tokenizer_folder(folder: Path, kind: str = "words", template: str = TEMPLATE) -> Path:
    """Write the files of a tokenizer that knows a few words."""
    normalizer, pre_tokenizer = KINDS[kind]
    tokenizer = Tokenizer(BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = BpeTrainer(initial_alphabet=ByteLevel.alphabet(), vocab_size=400, show_progress=False)
    tokenizer.train_from_iterator(["the river mill wheel 水车 café ======== 1234"] * 5, trainer)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in ("<|start|>", "<|end|>", "<|end|>!")])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder


def exact_count(folder: Path, text: str) -> int:
    """The tokens of a text, encoded as a whole."""
    return len(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids)
