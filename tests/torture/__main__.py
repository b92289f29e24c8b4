"""The command line."""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from random import Random

from .jobs import JOBS
from .rig import Rig, can_mount


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m torture", description=sys.modules["torture"].__doc__)
    parser.add_argument("--seed", type=int, default=None, help="a new one each time unless given")
    parser.add_argument("--kills", type=int, default=16, help="of each job")
    parser.add_argument("--caps", type=int, default=100, help="runs with little memory, half of them with a cap")
    parser.add_argument("--disks", type=int, default=6, help="small disks for each job")
    parser.add_argument("--jobs", default=",".join(JOBS))
    options = parser.parse_args()
    names = options.jobs.split(",")
    if unknown := [name for name in names if name not in JOBS]:
        parser.error(f"unknown: {', '.join(unknown)}; known are {', '.join(JOBS)}")
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")  # which counts what killed processes had
    seed = Random().getrandbits(32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="torture-") as place:
        rig = Rig(Path(place), seed)
        for name in names:
            left = options.kills
            while left > 0:
                times = min(left, rig.rng.randrange(1, 5))
                rig.kill(name, times)
                left -= times
            if can_mount():
                for _ in range(options.disks):
                    rig.fill(name)
            print(f"{name}: {rig.kills} kills, {rig.disks} small disks, {len(rig.faults)} faults", flush=True)
        if not can_mount():
            print("small disks are left out: only root can mount them, in a name space of its own")
        for number in range(options.caps):
            if number % 2:
                rig.measure()
            else:
                rig.starve(rig.rng.choice([name for name in names if name != "download"] or names))
        print(f"{rig.kills} kills, {rig.disks} small disks, {rig.caps} caps of memory, {len(rig.faults)} faults")
    print("\n".join(f"{count:7d}  {end}" for end, count in sorted(rig.ends.items())))
    return 1 if rig.faults else 0


if __name__ == "__main__":
    sys.exit(main())
