"""The trained score: it learns what the heuristic cannot know, and a file that cannot be used is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from api.routing.__main__ import main
from api.routing.classifier import Classifier
from api.routing.complexity import Heuristic, Mode, indicators, level
from api.routing.complexity_loader import load_complexity
from api.routing.embedding import DIMENSIONS, Embedding
from api.routing.errors import RoutingModelError
from api.routing.fit import FitError, calibration_error, operating_point, targets
from api.routing.regression import calibration, fit_logistic, probabilities
from shared.domain.request import GenerateRequest
from tests.unit.api.routing.examples import labelled, write_lines

SIMPLE = GenerateRequest(prompt="What is the population of Quito?")
COMPLEX = GenerateRequest(prompt="Which assumptions about recursion follow from theory?")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("routing")
    output = folder / "model.json"
    assert main(["fit", str(write_lines(folder / "train.jsonl", labelled())), "--output", str(output)]) == 0
    return output


@pytest.fixture(scope="module")
def classifier(model: Path) -> Classifier:
    return Classifier.read(model)


def test_it_learns_what_the_heuristic_cannot_know(classifier: Classifier) -> None:
    assert indicators(SIMPLE) == indicators(COMPLEX)
    assert classifier.score(SIMPLE) < 0.3
    assert classifier.score(COMPLEX) > 0.7
    assert level(classifier, classifier.score(SIMPLE), Mode.COST, 2) == 0
    assert level(classifier, classifier.score(COMPLEX), Mode.COST, 2) == 1


@pytest.mark.parametrize("mode", Mode)
def test_thresholds_ascend(classifier: Classifier, mode: Mode) -> None:
    for levels in range(1, 6):
        cuts = classifier.thresholds(mode, levels)
        assert len(cuts) == levels - 1
        assert list(cuts) == sorted(cuts)


@pytest.mark.parametrize(
    "request_",
    [
        GenerateRequest(prompt=""),
        GenerateRequest(prompt=[1, 2, 3]),
        GenerateRequest(prompt="\ud83d" * 1000),
        GenerateRequest(prompt="😀" * 100_000),
        GenerateRequest(messages=[]),
    ],
    ids=range(5),
)
def test_any_request_has_a_score(classifier: Classifier, request_: GenerateRequest) -> None:
    assert 0 <= classifier.score(request_) <= 1


def test_the_report_and_that_training_is_reproducible(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "model.json"
    output.write_text("an earlier one")
    assert main(["fit", str(write_lines(tmp_path / "t.jsonl", labelled())), "--output", str(output)]) == 0
    assert json.loads(output.read_text())["weights"] == pytest.approx(
        json.loads(model.read_text())["weights"], abs=1e-4
    )
    printed = capsys.readouterr().out
    for words in (
        "51 examples of 50 different tasks, 60.8 % of them complex",
        "1 tasks have different labels",
        "accuracy",
        "Brier score",
        "calibration error",
        "balanced  95.0 %",
        "quality: no request goes to the first model",
        f"Wrote {output} ({output.stat().st_size:,} bytes)",
        "HEADRACE_ROUTING_MODEL",
    ):
        assert words in printed


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "at least 10 different simple requests"),
        (labelled()[:25], "at least 10 different complex requests (label at least 0.5) are needed"),
        ([{"prompt": "Hi", "label": at % 2} for at in range(100)], "there are 1"),
        # Labels that have nothing to do with the requests.
        ([line | {"label": at % 2} for at, line in enumerate(labelled())], "the labels cannot be predicted"),
    ],
    ids=["none", "few", "the same", "unrelated"],
)
def test_examples_of_which_nothing_can_be_learned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: list[dict[str, Any]], words: str
) -> None:
    output = tmp_path / "model.json"
    assert main(["fit", str(write_lines(tmp_path / "train.jsonl", lines)), "--output", str(output)]) == 1
    assert words in capsys.readouterr().err
    assert not output.exists()


def test_a_file_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examples = write_lines(tmp_path / "train.jsonl", labelled())
    for output in (tmp_path, tmp_path / "none" / "model.json", Path("/proc/model.json")):
        assert main(["fit", str(examples), "--output", str(output)]) == 1
        assert f"cannot write {output}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "options",
    [["--levels", "small"], ["--levels", "a,a"], ["--levels", "a,,b"], ["--quality", "95"], ["--quality", "high"]],
    ids=" ".join,
)
def test_wrong_options(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["fit", "train.jsonl", "--output", "model.json", *options])
    assert "must be" in capsys.readouterr().err


def changed(**values: Any) -> Callable[[str], str]:
    return lambda text: json.dumps(json.loads(text) | values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: "", "Invalid JSON"),
        (lambda text: text[: len(text) // 2], "Invalid JSON"),
        (lambda text: text + " " * (2 << 20), "it is too large"),
        (lambda text: "[]", "Input should be an object"),
        (changed(format=2), "format: Input should be 1"),
        (changed(embedding="other/1"), "it was trained with the embedding 'other/1'"),
        (changed(fingerprint=[0.0] * 8), "another version of the embedding"),
        (changed(fingerprint=[0.1]), "another version of the embedding"),
        (changed(weights=[0.5] * DIMENSIONS), "weights: there must be 266, not 256"),
        (changed(bias="high"), "bias: Input should be a valid number"),
        (lambda text: text.replace('"bias":', '"bias":NaN,"ignored":'), "bias: "),
        (changed(thresholds={"cost": {"low": 0.2, "high": 0.4}}), "thresholds: balanced is missing"),
        (changed(thresholds={mode: {"low": 0.4, "high": 0.2} for mode in Mode}), "low is greater than high"),
        (changed(thresholds={mode: {"low": 0.4, "high": 1.2} for mode in Mode}), "less than or equal to 1"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, model: Path, change: Callable[[str], str], words: str) -> None:
    path = tmp_path / "model.json"
    path.write_text(change(model.read_text()))
    with pytest.raises(RoutingModelError) as caught:
        load_complexity(path)
    message = str(caught.value)
    assert message.startswith(f"HEADRACE_ROUTING_MODEL: {path} is not a usable routing model: ")
    assert words in message
    assert message.endswith("train it again with `python -m api.routing fit`")


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RoutingModelError, match=r"No such file or directory; correct the path, .* or unset"):
        load_complexity(tmp_path / "none.json")
    with pytest.raises(RoutingModelError, match="Is a directory"):
        load_complexity(tmp_path)


def test_without_a_model_nothing_of_it_is_loaded() -> None:
    assert isinstance(load_complexity(None), Heuristic)
    script = "import sys; from api.routing.complexity_loader import *; load_complexity(None); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert {"api.routing.complexity"} <= set(loaded)
    assert not {"numpy", "wordllama", "safetensors", "api.routing.classifier"} & set(loaded)


def test_the_embedding_uses_only_the_files_of_its_package() -> None:
    """The package could download files; it is not even imported."""
    script = """
import socket, sys
def refuse(*_): raise AssertionError("network access")
socket.socket.connect = socket.getaddrinfo = refuse
from api.routing.embedding import Embedding
print(len(Embedding().vector("Hello")))
assert not {"wordllama", "requests", "huggingface_hub"} & set(sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == [str(DIMENSIONS)]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RoutingModelError, match="the Python package wordllama is not installed"):
        load_complexity(model)


def test_similar_texts_have_similar_embeddings() -> None:
    vectors = Embedding()
    cat, kitten, tax = (vectors.vector(text) for text in ("the cat sleeps", "a kitten is asleep", "tax law reform"))
    assert np.linalg.norm(cat) == pytest.approx(1, abs=1e-5)
    assert cat @ kitten > cat @ tax
    assert not vectors.vector("").any()


def test_the_regression_finds_the_coefficients_and_is_calibrated() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(4000, 3))
    x[:, 2] = 5.0  # a constant column
    y = (random.random(4000) < probabilities(0.5 + x[:, 0] - 2 * x[:, 1])).astype(float)
    fitted = fit_logistic(x, y, penalty=0.1)
    assert fitted.weights == pytest.approx([1, -2, 0], abs=0.2)
    slope, offset = calibration(3 * fitted.logits(x), y)
    assert (slope, offset) == pytest.approx((1 / 3, 0), abs=0.05)
    assert calibration_error(probabilities(fitted.logits(x)), y) < 0.03
    assert calibration_error(probabilities(5 * fitted.logits(x)), y) > 0.05


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_labels_that_are_all_the_same_or_separable_are_fitted(share: float) -> None:
    x = np.linspace(-1, 1, 50)[:, None]
    assert probabilities(fit_logistic(x, np.full(50, share), 1.0).logits(x)) == pytest.approx(share, abs=1e-3)
    assert fit_logistic(x, (x[:, 0] > 0).astype(float), 0.01).weights[0] > 1


def test_a_threshold_keeps_the_quality_with_confidence() -> None:
    random = np.random.default_rng(1)
    p = random.random(5000)
    y = (random.random(5000) < p).astype(float)
    for target in (0.8, 0.9, 0.95, 0.99):
        point = operating_point(p, y, target)
        sent = p < point.threshold
        assert point.to_first == pytest.approx(sent.mean())
        assert point.quality == pytest.approx(1 - y[sent].sum() / len(y))
        assert target <= point.at_least < point.quality
        # Of calibrated scores below t, t²/2 of all requests are missed.
        assert point.threshold == pytest.approx((2 * (1 - target)) ** 0.5, abs=0.05)
    assert operating_point(p[:50], y[:50], 0.99).to_first == 0
    assert operating_point(p, np.zeros(5000), 0.95).to_first == 1
    assert operating_point(np.full(5000, 0.5), y, 0.95).to_first == 0


def test_modes_allow_more_or_fewer_errors() -> None:
    assert list(targets(0.95).values()) == pytest.approx([0.9, 0.95, 0.99])
    assert list(targets(0.5).values()) == pytest.approx([0, 0.5, 0.9])


def test_errors_of_fitting_are_errors_of_routing() -> None:
    assert issubclass(FitError, RoutingModelError)
