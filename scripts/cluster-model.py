#!/usr/bin/env python3
"""Predicts the time of a step on several ranks, by the model of docs/CLUSTER.md.

    scripts/cluster-model.py                      # 8 machines of 8 GPUs, with its assumptions
    scripts/cluster-model.py --ranks 2 --compute 1.9 --last-backward 0.6 --bandwidth 125e6 --delay 1e-3

Seconds, bytes, bytes a second. Needs nothing but Python.
"""

import argparse
import math

BUCKET = 25 * 2**20  # pirl-train/src/reduction.rs


def step(ranks, compute, last_backward, gradients, bandwidth, delay):
    """Seconds of a step, of its sums, and of those that nothing hides."""
    def sums(count, of):
        return 2 * (ranks - 1) / ranks * of / bandwidth + count * 2 * (ranks - 1) * delay

    buckets = max(1, math.ceil(gradients / BUCKET))
    ring = sums(buckets, gradients)
    last = sums(1, gradients - (buckets - 1) * BUCKET)
    exposed = max(last, ring - last_backward * (buckets - 1) / buckets) if ranks > 1 else 0.0
    return compute + exposed + 4 * delay, ring, exposed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--compute", type=float, default=0.10, help="a rank's own part of a step")
    parser.add_argument("--last-backward", type=float, default=0.02, help="of the last term of its last part")
    parser.add_argument("--gradients", type=float, default=94e6, help="of ResNet-50: 94e6")
    parser.add_argument("--bandwidth", type=float, default=12.5e9, help="of a rank's link")
    parser.add_argument("--delay", type=float, default=20e-6)
    a = parser.parse_args()
    total, ring, exposed = step(a.ranks, a.compute, a.last_backward, a.gradients, a.bandwidth, a.delay)
    print(
        f"assumed: {a.ranks} ranks, {1e3 * a.compute:.0f} ms of work each, of which the last backward pass"
        f" {1e3 * a.last_backward:.0f} ms,\n  {a.gradients / 1e6:.0f} MB of gradients,"
        f" {a.bandwidth / 1e9:.3f} GB/s and {1e6 * a.delay:.0f} us a message;"
        " a ring, whose messages meet no others"
    )
    print(
        f"a step: {1e3 * total:.1f} ms; sums {1e3 * ring:.1f} ms, of which {1e3 * exposed:.1f} ms in sight;"
        f" {100 * a.compute / total:.0f} % of what {a.ranks} ranks without a network would do"
    )


if __name__ == "__main__":
    main()
