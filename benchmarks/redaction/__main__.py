"""`python -m benchmarks.redaction`: measure redaction on generated texts. `--update`: also write docs/privacy.md."""

from __future__ import annotations

import argparse

from benchmarks.redaction.score import score, summary, table
from benchmarks.redaction.texts import generate
from launcher.settings import REPOSITORY
from shared.privacy.redaction import Redactor

COUNT = 10_000
PAGE = REPOSITORY / "docs" / "privacy.md"
BEGIN, END = "<!-- figures of the redaction: begin -->", "<!-- figures of the redaction: end -->"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.redaction", description=__doc__)
    parser.add_argument("--count", type=int, default=COUNT, help="number of texts (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the texts (default: %(default)s)")
    parser.add_argument("--faults", type=int, default=0, metavar="N", help="print N texts with faults")
    parser.add_argument("--update", action="store_true", help="write the figures to docs/privacy.md")
    arguments = parser.parse_args()
    scores = score(Redactor(), generate(arguments.count, arguments.seed))
    figures = "\n".join((*summary(scores), "", table(scores)))
    print(figures)
    print(f"\n{scores.cpu_s * 1000:,.0f} ms of CPU time: {scores.cpu_s / scores.texts * 1e6:,.0f} us a text")
    for labelled, redacted in scores.faults[: arguments.faults]:
        print(f"\n{labelled.values}\n{labelled.text}\n-> {redacted}")
    if arguments.update:
        page = PAGE.read_text()
        before, _, rest = page.partition(BEGIN)
        _, _, after = rest.partition(END)
        PAGE.write_text(f"{before}{BEGIN}\n{figures}\n{END}{after}")


if __name__ == "__main__":
    main()
