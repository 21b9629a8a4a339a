"""Sets, reference metrics, and the picture of a comparison."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import orjson
import pytest

from api.evals.chart import svg
from api.evals.reference import METRICS, contains, exact, f1
from api.evals.sets import SetError, SetItem, read_set
from api.evals.statistics import Difference
from api.quality.intervals import Interval


def write(folder: Path, *lines: object) -> Path:
    path = folder / "set.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else orjson.dumps(line) for line in lines) + b"\n")
    return path


ASKED = {"role": "user", "content": "What is the capital of France?"}


def test_a_set_is_read(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Look"}, {"type": "text", "text": "here"}]
    call = {"id": "c", "type": "function", "function": {"name": "find", "arguments": '{"x": 1}'}}
    exported = {
        "messages": [ASKED, {"role": "assistant", "content": None, "tool_calls": [call]}],
        "model": "large",
        "metadata": {"job_id": "job_1", "headrace": {"redaction_level": "redacted"}},
    }
    path = write(
        tmp_path,
        {"id": "a", "messages": [ASKED], "expected": "Paris"},
        b"",
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]},
        exported,
    )
    found = read_set(path)
    assert found.items == (
        SetItem("a", (("user", ASKED["content"]),), expected="Paris"),
        SetItem("line-3", (("system", "Be brief."), ("user", "Look\nhere"))),
        SetItem("job_1", (("user", ASKED["content"]),), '[calls find: {"x": 1}]', "large"),
    )
    assert not found.has_expected
    assert len(read_set(path, limit=1).items) == 1
    assert read_set(path, limit=1).has_expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "line 1: is not JSON"),
        ([], "must be an object"),
        ({}, "`messages` must be a list"),
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "needs a `role`"),
        ({"messages": [{"role": "user"}]}, "needs a `content`"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "before the answer"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "images or files"),
        ({"messages": [ASKED], "expected": 3}, "`expected` must be a text"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, line: object, message: str) -> None:
    with pytest.raises(SetError, match="line 1") as caught:
        read_set(write(tmp_path, line))
    assert message in str(caught.value)


def test_a_mark_at_the_beginning_of_the_file_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path, b"\xef\xbb\xbf" + orjson.dumps({"id": "a", "messages": [ASKED]}), {"messages": [ASKED]})
    assert [item.id for item in read_set(path).items] == ["a", "line-2"]


def test_other_errors(tmp_path: Path) -> None:
    with pytest.raises(SetError, match="line 2: the id 'a' is already that of line 1"):
        read_set(write(tmp_path, {"id": "a", "messages": [ASKED]}, {"id": "a", "messages": [ASKED]}))
    with pytest.raises(SetError, match="has no items"):
        read_set(write(tmp_path, b""))
    with pytest.raises(SetError, match="cannot be read"):
        read_set(tmp_path / "missing")


def test_reference_metrics() -> None:
    assert exact("paris!", "Paris") == 1
    assert exact("It is Paris.", "Paris") == 0
    assert contains("It is Paris.", "Paris") == 1
    assert contains("It is Parisian.", "Paris") == 0
    assert contains("New old York", "New York") == 0
    assert f1("It is Paris.", "Paris") == pytest.approx(0.5)
    assert f1("", "") == 1
    assert f1("", "Paris") == 0
    assert contains("anything", "") == 0
    for metric in METRICS.values():
        assert metric("Straße 7, Ｐａｒｉｓ", "STRASSE 7 paris") == 1, "case and forms of characters mean nothing"


def test_chinese_and_japanese_words_are_characters() -> None:
    assert f1("法国的首都是巴黎", "巴黎") == pytest.approx(2 * 2 / (8 + 2))
    assert contains("答えはパリです。", "パリ") == 1
    assert contains("首都是巴黎", "黎巴") == 0
    assert exact("巴黎。", "巴黎") == 1


def test_an_expected_answer_without_words() -> None:
    assert [metric("\U0001f44e", "\U0001f44d") for metric in METRICS.values()] == [0, 0, 0]
    assert [metric(" \U0001f44d", "\U0001f44d ") for metric in METRICS.values()] == [1, 1, 1]
    assert contains("a + b", "+") == 1


def test_repeated_items_are_counted(tmp_path: Path) -> None:
    other = {"role": "user", "content": "And of Italy?"}
    lines = [{"id": str(number), "messages": messages} for number, messages in enumerate([[ASKED], [ASKED], [other]])]
    assert read_set(write(tmp_path, *lines)).repeated == 1


def test_a_picture_is_svg_with_names_escaped() -> None:
    difference = Difference(200, -0.1, Interval(-0.2, -0.01), 0.02)
    text = svg("Is <b> worse?", difference, a="a&b", b="<b>" * 20, what="preference", shares=(90, 40, 70))
    root = ElementTree.fromstring(text)  # noqa: S314  # our own
    titles = [one.text for one in root.iter("{http://www.w3.org/2000/svg}title")]
    assert titles[0] == "Is <b> worse?"
    assert "a&b: 90" in titles
    lines = {one.get("class"): one for one in root.iter("{http://www.w3.org/2000/svg}line")}
    zero, shown = float(lines["zero"].get("x1", "")), lines["range"]
    assert float(shown.get("x1", "")) < float(shown.get("x2", "")) < zero, "worse is on the left of no difference"
    assert "range" not in svg("x", Difference(1, 0.5), a="a", b="b", what="w").split("</style>")[1]
    ElementTree.fromstring(svg("x", Difference(0), a="a", b="b", what="w"))  # noqa: S314
