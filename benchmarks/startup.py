"""How long does a user wait for nothing? `import hdet_ray` and `hdet --help`, against the same without us.

Each side is a fresh process, the two in turn. What counts is the median of the differences within a pair:
at most 50 ms for the import beside a bare interpreter (`import_added_ms`), at most 100 ms for the help
beside a bare Typer app of two commands (`help_added_ms`).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from typing import Any

from benchmarks.measure import interleaved, print_table, summary, write_result

BARE_TYPER = """
import typer

app = typer.Typer()

@app.command()
def one(name: str = "a") -> None:
    "The first command."

@app.command()
def two(name: str = "b") -> None:
    "The second command."

app(["--help"])
"""
HELP = "from hdet_ray.cli.main import app; app(['--help'])"


def main() -> None:
    """Measure both, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer pairs")
    pairs = 9 if parser.parse_args().quick else 41
    imports = compare("pass", "import hdet_ray", pairs)
    helps = compare(BARE_TYPER, HELP, pairs)
    print_table(
        "start-up in ms",
        ["", "without", "with us", "added", "p10", "p90"],
        [[name, *_row(result)] for name, result in (("import hdet_ray", imports), ("hdet --help", helps))],
    )
    payload = {
        "import_added_ms": imports["added_ms"]["median"],
        "help_added_ms": helps["added_ms"]["median"],
        "bounds_ms": {"import_added_ms": 50, "help_added_ms": 100},
        "import": imports,
        "help": helps,
    }
    print(f"wrote {write_result('startup', payload)}")


def compare(bare: str, ours: str, pairs: int) -> dict[str, Any]:
    """Milliseconds of two programs, and of the difference within a pair."""
    seconds = interleaved({"bare": lambda: run(bare), "ours": lambda: run(ours)}, pairs)
    added = [1000 * (b - a) for a, b in zip(seconds["bare"], seconds["ours"], strict=True)]
    return {
        "bare_ms": summary([1000 * s for s in seconds["bare"]]),
        "ours_ms": summary([1000 * s for s in seconds["ours"]]),
        "added_ms": summary(added),
    }


def run(program: str) -> None:
    """Run a program in a fresh interpreter."""
    subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL, check=True)


def _row(result: dict[str, Any]) -> list[float]:
    added = result["added_ms"]
    return [
        result["bare_ms"]["median"],
        result["ours_ms"]["median"],
        added["median"],
        added["p10"],
        added["p90"],
    ]


if __name__ == "__main__":
    main()
