"""Put the rows of a tournament into the package, and the picture of its round 2 that the README shows.

    superb-lite olympics --all --out tournament
    python data_scripts/publish_tournament.py tournament

What lies in superb_lite/published/ was made like this.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from superb_lite import ResultsTable
from superb_lite import published as package
from superb_lite.course.display import lighter
from superb_lite.files import write_atomically
from superb_lite.report import picture
from superb_lite.results import ResultsFile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tournament", type=Path, help="the folder that olympics wrote")
    parser.add_argument("--out", type=Path, default=Path(package.__file__).parent, help="[default: the package]")
    args = parser.parse_args()
    rows = args.tournament / "results.jsonl"
    scores = ResultsFile(rows).rows()
    if not any(score.round == 2 for score in scores):
        parser.error(f"{rows}: no rows of round 2; run superb-lite olympics --all --out {args.tournament} first")
    second = ResultsTable(score for score in scores if score.round == 2)
    write_atomically(args.out / "mini.png", lighter(picture(second)))
    write_atomically(args.out / "mini.jsonl", lambda path: shutil.copyfile(rows, path))
    print(f"{len(scores)} rows and a picture are in {args.out}")


if __name__ == "__main__":
    main()
