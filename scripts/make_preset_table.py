"""Writes the table of presets into every page that has a place for it; `--check` only compares.

The place is between two comments of which the first is `<!-- presets -->` and the second `<!-- /presets -->`. What the
table says is what `fl_protocol.presets` derives, and what tests/api/test_presets.py holds a real server to.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fl_protocol.presets import EXPANSIONS, Row, matrix

CHECKOUT: Final = Path(__file__).resolve().parent.parent
_PLACE: Final = re.compile(r"(<!-- presets -->\n).*?(<!-- /presets -->\n)", re.DOTALL)
_COLUMNS: Final = (
    "preset", "`secure_aggregation`", "`privacy`", "a single update", "ledger", "`identity_trust`",
    "what it promises, and what it does not",
)  # fmt: skip


def main() -> None:
    """Writes every page, or says which ones differ."""
    stale = []
    for page in pages():
        text = page.read_text()
        written = with_table(text)
        if text == written:
            continue
        stale.append(page.name)
        if "--check" not in sys.argv[1:]:
            page.write_text(written)
    if stale and "--check" in sys.argv[1:]:
        sys.exit(
            f"the table of presets is not what the code says ({', '.join(stale)}): run scripts/make_preset_table.py"
        )


def pages() -> list[Path]:
    """Lists the pages with a place for the table."""
    found = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").rglob("*.md"))]
    return [page for page in found if _PLACE.search(page.read_text())]


def with_table(text: str) -> str:
    """Gives a page's text with the table as it should be."""
    head = (_joined(_COLUMNS), _joined(("---",) * len(_COLUMNS)))
    table = "\n".join((*head, *map(_line, matrix())))
    return _PLACE.sub(lambda place: f"{place[1]}{table}\n{place[2]}", text)


def _line(row: Row) -> str:
    parts = EXPANSIONS[row.preset]
    cells = (
        f"`{row.preset}`",
        f"`{parts['secure_aggregation']['kind']}`",
        f"`{parts['privacy']['kind']}`",
        "is taken" if row.takes_single_updates else "is refused",
        "yes" if row.has_ledger else "-",
        f"`{row.identity_trust}`" if row.identity_trust else "-",
        " ".join(row.sentences),
    )
    return _joined(cells)


def _joined(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
