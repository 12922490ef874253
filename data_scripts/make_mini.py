"""Make the mini corpus, or unlabelled speech like it.

    python data_scripts/make_mini.py corpus --out my_mini --seed 7      # a new corpus of the same kind
    python data_scripts/make_mini.py corpus --out my_mini --sets emotions commands
    python data_scripts/make_mini.py unlabelled --out speech --hours 4  # speech for phase 1

Needs espeak-ng: pip install "superb-lite[make]". The speech that ships with superb_lite was made by the first
command with the default seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from superb_lite.corpora import _make as make
from superb_lite.corpora._orders import SETS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("corpus", "unlabelled"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=make.SEED)
    parser.add_argument("--sets", nargs="+", choices=tuple(SETS), default=tuple(SETS), help="of the corpus")
    parser.add_argument("--hours", type=float, default=4.0, help="of unlabelled speech")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    if args.what == "corpus":
        made = make.write_mini(args.out, sets=args.sets, seed=args.seed, workers=args.workers)
        for name, (clips, seconds) in made.items():
            print(f"{name}: {clips} clips, {seconds / 60:.1f} minutes")
    else:
        folder = make.write_unlabelled(args.out, args.hours, seed=args.seed, workers=args.workers, progress=print)
        print(f"unlabelled speech is in {folder}")


if __name__ == "__main__":
    main()
