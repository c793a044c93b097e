"""Line charts as SVG files, and tables on the terminal, with nothing but the standard library and rich."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from rich.console import Console
from rich.table import Table

WIDTH, HEIGHT = 860, 460
LEFT, RIGHT, TOP, BOTTOM = 70, 240, 44, 52
# Distinguishable also with colour-blind eyes (Okabe and Ito 2008).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555", "#b8a800")
DASHES = ("", "7 4", "2 3")
FONT = 'font-family="Helvetica, Arial, sans-serif"'


@dataclass(frozen=True, slots=True)
class Line:
    """One curve: its name in the legend and its points (x, y)."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class _Axis:
    """Maps values from low..high to pixels from begin..end, with a tick at each multiple of step."""

    low: float
    high: float
    step: float
    begin: float
    end: float

    def at(self, value: float) -> float:
        return self.begin + (value - self.low) / (self.high - self.low) * (self.end - self.begin)

    def ticks(self) -> list[float]:
        first, last = math.ceil(self.low / self.step - 1e-9), math.floor(self.high / self.step + 1e-9)
        return [number * self.step for number in range(first, last + 1)]


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table whose columns but the first are figures."""
    table = Table()
    for index, name in enumerate(head):
        table.add_column(name, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=None if Console().is_terminal else 120).print(table)


def save_lines(path: str, lines: Sequence[Line], *, title: str, x: str, y: str) -> None:
    """Draws curves with axes and a legend into an SVG file, and says where; points must be finite."""
    xs = [point[0] for line in lines for point in line.points]
    ys = [point[1] for line in lines for point in line.points]
    across = _axis(xs, begin=LEFT, end=WIDTH - RIGHT)
    up = _axis(ys, begin=HEIGHT - BOTTOM, end=TOP)
    parts = [*_frame(across, up, title=title, x=x, y=y)]
    for index, line in enumerate(lines):
        parts += _curve(line, index, across=across, up=up)
    body = "\n".join(parts)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" {FONT} font-size="13">'
    text = f"{head}\n{body}\n</svg>\n"
    Path(path).write_text(text)
    print(f"plot saved as {path}")


def _axis(values: Sequence[float], *, begin: float, end: float) -> _Axis:
    low, high = min(values), max(values)
    span = (high - low) or abs(high) or 1.0
    rough = span / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    return _Axis(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step or step, step, begin, end)


def _frame(across: _Axis, up: _Axis, *, title: str, x: str, y: str) -> list[str]:
    parts = [
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="24" font-size="16" font-weight="bold">{escape(title)}</text>',
    ]
    for value in up.ticks():
        at = up.at(value)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{_short(value)}</text>')
    for value in across.ticks():
        at = across.at(value)
        parts.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM + 5}" stroke="#333"/>'
        )
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{_short(value)}</text>')
    middle, side = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    corners = f"{LEFT},{TOP} {LEFT},{HEIGHT - BOTTOM} {WIDTH - RIGHT},{HEIGHT - BOTTOM}"
    return [
        *parts,
        f'<polyline points="{corners}" fill="none" stroke="#333"/>',
        f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">{escape(x)}</text>',
        f'<text transform="translate(18 {side}) rotate(-90)" text-anchor="middle">{escape(y)}</text>',
    ]


def _curve(line: Line, index: int, *, across: _Axis, up: _Axis) -> list[str]:
    colour, dash = COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)]
    stroke = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"'
    points = " ".join(f"{across.at(at):.1f},{up.at(value):.1f}" for at, value in line.points)
    height = TOP + 12 + 22 * index
    return [
        f'<polyline points="{points}" fill="none" stroke-linejoin="round" {stroke}/>',
        f'<line x1="{WIDTH - RIGHT + 16}" x2="{WIDTH - RIGHT + 42}" y1="{height}" y2="{height}" {stroke}/>',
        f'<text x="{WIDTH - RIGHT + 50}" y="{height + 4}">{escape(line.name)}</text>',
    ]


def _short(value: float) -> str:
    return f"{value:.6g}"
