"""docs/benchmarks.md has the tables that the benchmarks write, and saving one leaves the rest of the page alone."""

from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.__main__ import LONGER, NAMES
from benchmarks.measurements import row

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"


@pytest.mark.parametrize("name", [*NAMES, *LONGER])
def test_every_benchmark_has_its_place_on_the_page(name: str) -> None:
    page = PAGE.read_text()
    assert page.count(f"<!-- begin {name} -->\n") == page.count(f"<!-- end {name} -->") == 1
    assert f"benchmarks {name}`" in page or "make bench-peers" in page


def test_saving_replaces_one_table_and_writes_its_plot(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text("before\n<!-- begin a -->\nold\n<!-- end a -->\nbetween\n<!-- begin b -->\nkept\n<!-- end b -->\n")
    rows = [row("reading <all>", "s", [1.0, 2.0, 4.0], of=0.5, ratio_of="half"), row("memory", "MiB", [210.4])]
    report.save("a", rows, load="0.10", docs=tmp_path)
    saved = page.read_text()
    assert saved.startswith("before\n<!-- begin a -->\n| measured |")
    assert "| reading <all> | s | 2 | 1 | 4 | 4.00 | half |\n| memory | MiB | 210 | 210 | 210 |  |  |\n" in saved
    assert "load before the first benchmark of the run: 0.10" in saved
    assert saved.endswith("<!-- end a -->\nbetween\n<!-- begin b -->\nkept\n<!-- end b -->\n")
    plot = (tmp_path / "plots" / "a.svg").read_text()
    assert "reading &lt;all&gt;" in plot
    assert "memory" not in plot


def test_a_page_without_a_place_for_a_benchmark_is_refused(tmp_path: Path) -> None:
    (tmp_path / "benchmarks.md").write_text("<!-- begin a -->\nnever ended")
    for name in ("a", "b"):
        with pytest.raises(ValueError, match=f"<!-- end {name} -->"):
            report.save(name, [], load="0.10", docs=tmp_path)
    assert (tmp_path / "benchmarks.md").read_text() == "<!-- begin a -->\nnever ended"
