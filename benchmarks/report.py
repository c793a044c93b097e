"""Writes a benchmark's rows into docs/benchmarks.md, between its markers, with bars of its ratios."""

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final

from benchmarks.measurements import Row

_DOCS: Final = Path(__file__).parents[1] / "docs"
_LABELS, _BARS, _LINE = 430, 300, 22


def figure(value: float) -> str:
    """Gives a number with the digits that mean something."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def save(name: str, rows: Sequence[Row], *, load: str, docs: Path = _DOCS) -> None:
    """Replaces what is between `<!-- begin NAME -->` and `<!-- end NAME -->`; ValueError where the page lacks these.

    `load` is what the machine had to do before any benchmark ran, so that a reader knows how quiet it was.
    """
    page = docs / "benchmarks.md"
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    before, found, rest = page.read_text().partition(begin)
    _, ended, after = rest.partition(end)
    if not found or not ended:
        raise ValueError(f"{page} lacks {begin.strip()} or {end}")
    parts = [_table(rows), f"{os.cpu_count()} cores, load before the first benchmark of the run: {load}."]
    if compared := [row for row in rows if row.ratio is not None]:
        Path(docs, "plots").mkdir(exist_ok=True)
        Path(docs, "plots", f"{name}.svg").write_text(_bars(compared))
        parts.append(f"![The ratios of {name}](plots/{name}.svg)")
    page.write_text(before + begin + "\n\n".join(parts) + f"\n{end}{after}")


def _table(rows: Sequence[Row]) -> str:
    lines = ["| measured | unit | median | low | high | ratio | of what |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        figures = " | ".join(figure(value) for value in (row.median, row.low, row.high))
        lines.append(f"| {row.name} | {row.unit} | {figures} | {ratio} | {row.ratio_of} |")
    return "\n".join(lines)


def _bars(rows: Sequence[Row]) -> str:
    most = max((row.ratio or 0.0 for row in rows), default=1.0)
    width, height = _LABELS + _BARS + 70, _LINE * len(rows) + 6
    size = f'width="{width}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        f'<rect {size} fill="white"/>',
    ]
    for place, row in enumerate(rows):
        top, ratio = _LINE * place + 4, row.ratio or 0.0
        length = max(1.0, _BARS * ratio / most)
        parts.append(
            f'<text x="{_LABELS - 6}" y="{top + 13}" text-anchor="end">{escape(row.name)}</text>'
            f'<rect x="{_LABELS}" y="{top}" width="{length:.1f}" height="{_LINE - 6}" fill="#3b6ea5"/>'
            f'<text x="{_LABELS + length + 5:.1f}" y="{top + 13}">{ratio:.2f}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])
