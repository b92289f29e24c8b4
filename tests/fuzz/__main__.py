"""The command line of the fuzzer."""

import argparse
import itertools
import sys
from pathlib import Path
from random import Random

from .targets import GROUPS
from .watch import Watch


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=sys.modules["fuzz"].__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None, help="a new one each time unless given")
    parser.add_argument(
        "--targets", default="all", help="; ".join(f"{group}, or {', '.join(names)}" for group, names in GROUPS.items())
    )
    parser.add_argument("--inputs", type=int, default=None, help="of all targets; until the time ends unless given")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"))
    options = parser.parse_args()
    known = {name: (name,) for names in GROUPS.values() for name in names} | GROUPS
    known["all"] = tuple(name for names in GROUPS.values() for name in names)
    if unknown := [word for word in options.targets.split(",") if word not in known]:
        parser.error(f"unknown: {', '.join(unknown)}")
    names = [name for word in options.targets.split(",") for name in known[word]]
    seed = Random().getrandbits(32) if options.seed is None else options.seed
    watch = Watch(seed, options.out, 60 * options.minutes)
    # A target that is listed twice has twice as many inputs, of numbers of its own.
    counted = (
        (name, i * names.count(name) + names[:at].count(name))
        for i in itertools.count(options.first)
        for at, name in enumerate(names)
    )
    print(f"seed {seed}, {', '.join(dict.fromkeys(names))}; findings go to {options.out}", flush=True)
    watch.run(itertools.islice(counted, options.inputs))
    print(watch.summary())
    return 1 if watch.findings else 0


if __name__ == "__main__":
    sys.exit(main())
