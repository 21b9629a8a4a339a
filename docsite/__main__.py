"""`python -m docsite [FOLDER]`: build the site into FOLDER (default: build/docs). `--update`: write docs/settings.md.

Fails if a link or an anchor of a page leads nowhere, or if a page would load something from another server.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from docsite.build import REPOSITORY, SiteError, build
from docsite.settings_page import PAGE, settings_page


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m docsite", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=REPOSITORY / "build" / "docs")
    parser.add_argument("--update", action="store_true", help="only write docs/settings.md from the code")
    arguments = parser.parse_args()
    if arguments.update:
        PAGE.write_text(settings_page())
        return 0
    try:
        pages = build(arguments.folder)
    except SiteError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{len(pages)} pages; start at {arguments.folder / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
