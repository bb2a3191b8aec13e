"""``python tests/bpf/fuzz_policy.py SECONDS``: the kernel against the reference evaluator.

Ends with 0 if they agreed on everything; else with 1, and prints the smallest case it finds.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from bpf_support.comparison import Difference, compare_round, replay, shrink
from bpf_support.world import World
from zgate_bpf.errors import BpfError
from zgate_bpf.kernel_policy import KernelPolicy

PACKETS = 2_000


def fuzz(world, seconds, seed):
    end = time.monotonic() + seconds
    number = pairs = 0
    while not number or time.monotonic() < end:
        try:
            taken, _ = compare_round(world, seed, number, PACKETS)
        except Difference as found:
            print(f"difference in round {number} of seed {seed}, after {pairs} pairs; shrinking")
            print(shrink(found, lambda steps: replay(world, steps)))
            return 1
        number, pairs = number + 1, pairs + taken
    print(f"{pairs} (policy, packet) pairs, {2 * number} policies, seed {seed}: no difference")
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    try:
        with KernelPolicy(max_clients=1024, max_flows=65_536) as kernel:
            return fuzz(World(kernel, 0), arguments.seconds, arguments.seed)
    except BpfError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
