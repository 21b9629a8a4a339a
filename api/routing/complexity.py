"""The complexity of a request: a score, and the cut points between the levels of a route.

The shipped score is a heuristic. `python -m api.routing fit` trains a classifier on labelled requests instead.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from typing import Protocol

from api.routing.request_text import RequestText
from api.routing.vocabulary import CODE, DEMANDING, MAKING, SUBSTANTIAL, Terms
from shared.config.models.routes import Mode as Mode
from shared.domain.request import GenerateRequest


class Complexity(Protocol):
    """Judges requests. Takes less than 2 ms of CPU, whatever the request's length, and never waits."""

    def score(self, request: GenerateRequest) -> float:
        """The complexity of a request, from 0 (simple) to 1."""
        ...

    def thresholds(self, mode: Mode, levels: int) -> tuple[float, ...]:
        """The scores from which on each level after the first serves a request: `levels - 1` ascending values."""
        ...


def level(complexity: Complexity, score: float, mode: Mode, levels: int) -> int:
    """The level for a score, from 0 (the cheapest) to `levels - 1`."""
    return bisect_right(complexity.thresholds(mode, levels), score)


def spread(low: float, high: float, levels: int) -> tuple[float, ...]:
    """Cut points between this number of levels.

    Below `low` is the first level, from `high` on the last one, and the others share what is between. Two levels are
    separated at `low`: what is not simple needs the better model.
    """
    cuts = levels - 1
    if cuts <= 1:
        return (low,) * cuts
    return tuple(low + (high - low) * cut / (cuts - 1) for cut in range(cuts))


# Cut points of the heuristic. Balanced: a short question is simple; a summary or an explanation is not; a task that
# needs several steps of reasoning, code or a long text is complex.
_CUTS = {Mode.COST: (0.55, 0.85), Mode.BALANCED: (0.37, 0.70), Mode.QUALITY: (0.20, 0.42)}

_EFFORT = {"none": -0.4, "minimal": -0.4, "low": -0.4, "medium": 0.4, "high": 1.2, "xhigh": 1.2, "max": 1.2}
# Chinese, Japanese and Korean: a character has as much meaning as three Latin ones.
_DENSE = re.compile(r"[぀-ヿ㐀-鿿가-힯豈-﫿]")
_CODE_LINE = re.compile(r"```|[;{}]\n|\n(?:def|class|import|function|SELECT|public|const|let) ")
_LIST_ITEM = re.compile(r"\n *(?:[-*•]|\d{1,2}[.)]) ")
_QUESTION = re.compile(r"[?？؟]")
_FORMULA = re.compile(r"[∑∏∫√∂∇≤≥≠≈∀∃∈]|\\(?:frac|int|sum|sqrt|begin)|\$\$")

# A task, and the latest messages together, are short up to this number of characters.
_SHORT_TASK = 150
_SHORT_CONVERSATION = 2000
_LONG_ANSWER_TOKENS, _SHORT_ANSWER_TOKENS = 2000, 16


class Heuristic:
    """Judges by length, structure, options, and words of several languages, without training."""

    def score(self, request: GenerateRequest) -> float:
        """The complexity of a request, from 0 (simple) to 1."""
        return 1 - 2 ** -max(0.0, sum(indicators(request)))

    def thresholds(self, mode: Mode, levels: int) -> tuple[float, ...]:
        """As in `Complexity`."""
        return spread(*_CUTS[mode], levels)


# The number of indicators. Classifiers are trained on them: after a change, increase `api.routing.classifier.FORMAT`.
INDICATORS = 10


def indicators(request: GenerateRequest) -> tuple[float, ...]:
    """Points for each indicator of complexity: words, structure, length, options. More points are more complex."""
    text = RequestText.of(request)
    return (*_word_points(text.task), *_structure_points(text.task), *_length_points(text), *_option_points(request))


def _word_points(task: str) -> tuple[float, float]:
    terms = Terms(task)
    demanding = DEMANDING.count(terms)
    if CODE.count(terms, 1) and MAKING.count(terms, 1):
        demanding += 1
    substantial = SUBSTANTIAL.count(terms)
    return _first_and_more(demanding, 1.8, 0.4), _first_and_more(substantial, 0.8, 0.3)


def _first_and_more(count: int, first: float, more: float) -> float:
    return first + more * min(2, count - 1) if count else 0.0


def _structure_points(task: str) -> tuple[float, float, float, float]:
    return (
        0.6 if _CODE_LINE.search(task) else 0.0,
        0.3 if len(_LIST_ITEM.findall(task)) > 2 else 0.0,
        0.3 if len(_QUESTION.findall(task)) > 1 else 0.0,
        0.8 if _FORMULA.search(task) else 0.0,
    )


def _length_points(text: RequestText) -> tuple[float, float]:
    dense = len(_DENSE.findall(text.task)) / len(text.task) if text.task else 0.0
    latin = 1 + 2 * dense
    return (
        min(2.5, 0.35 * math.log2(max(1.0, text.task_size * latin / _SHORT_TASK))),
        min(1.5, 0.2 * math.log2(max(1.0, text.size * latin / _SHORT_CONVERSATION))),
    )


def _option_points(request: GenerateRequest) -> tuple[float, float]:
    """Points for the reasoning and the form that the request demands of the answer."""
    sampling, chat = request.sampling, request.chat
    effort = _EFFORT.get(chat.reasoning_effort or "", 0.0) if chat is not None else 0.0
    if sampling.thinking_token_budget:
        effort += 0.6
    form = 0.3 if chat is not None and chat.tools else 0.0
    form += 0.2 if request.structured_outputs is not None else 0.0
    if (limit := sampling.max_tokens) is not None:
        form += 0.4 if limit > _LONG_ANSWER_TOKENS else -0.4 if limit <= _SHORT_ANSWER_TOKENS else 0.0
    return effort, form
