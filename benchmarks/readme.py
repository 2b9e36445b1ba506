"""Write what a benchmark measured against others, and where its chart is, into README.md, between its two markers.

scratchlm bench --thorough --out benchmarks/results
python benchmarks/readme.py
"""

from pathlib import Path

from scratchlm.bench.report import table
from scratchlm.files import read_json, replace_file

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "results.json"
CHART = "![our time over theirs](benchmarks/results/ratios.svg)"
BEGIN, END = "<!-- what follows is written by benchmarks/readme.py -->\n", "<!-- and ends here -->\n"


def with_tables(page, results):
    """The page with the chart and the tables of these results between its markers."""
    before, _, rest = page.partition(BEGIN)
    _, found, after = rest.partition(END)
    assert found, f"the page needs these two lines, in this order:\n{BEGIN}{END}"
    shown = [row for row in results["rows"] if row["contest"] or row["asked"]]
    return f"{before}{BEGIN}\n{CHART}\n\n{table(shown)}\n{END}{after}"


def main():
    page = ROOT / "README.md"
    replace_file(page, with_tables(page.read_text(encoding="utf-8"), read_json(RESULTS)).encode())


if __name__ == "__main__":
    main()
