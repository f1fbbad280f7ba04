"""Timing of alternatives against each other, for machines that are not quiet.

The alternatives take turns (A B A B ...), so that a slow minute of the machine hits all of them,
and each timed call follows an untimed one of the same alternative, so that none runs on caches and
buffers the other left. A comparison is the median of the per-round ratios, with an interval.

Example
-------
>>> timings = interleave({"a": lambda: sum(range(100)), "b": lambda: sum(range(1000))}, rounds=5)
>>> ratio = paired_ratio(timings["b"], timings["a"])
>>> ratio.low <= ratio.median <= ratio.high
True
"""

import dataclasses
import random
import statistics
import time


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of each timed call of one alternative, in the order of the rounds."""

    seconds: tuple

    @property
    def median(self):
        """Median in seconds."""
        return statistics.median(self.seconds)

    @property
    def best(self):
        """Smallest of all in seconds."""
        return min(self.seconds)

    @property
    def quartiles(self):
        """Lower and upper quartile in seconds; the only call twice if there was one."""
        if len(self.seconds) < 2:
            return self.seconds * 2
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high

    @property
    def iqr(self):
        """Distance of the quartiles in seconds."""
        low, high = self.quartiles
        return high - low

    def to_dict(self):
        """Median, best and interquartile range in milliseconds, and the number of calls."""
        return {
            "median_ms": self.median * 1e3,
            "best_ms": self.best * 1e3,
            "iqr_ms": self.iqr * 1e3,
            "calls": len(self.seconds),
        }


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A median ratio and the bounds of its 95 % bootstrap interval."""

    median: float
    low: float
    high: float

    def __str__(self):
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def timed(call):
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleave(alternatives, *, rounds=None, seconds=2.0, min_rounds=7, max_rounds=200, untimed=1):
    """Time alternatives in turns.

    Parameters
    ----------
    alternatives : dict of str to callable
        Functions without arguments that return when their work is done.
    rounds : int, optional
        Timed calls of each; default as many as fit into `seconds`.
    seconds : float
        Time to spend on all of them, untimed calls included.
    min_rounds, max_rounds : int
        Bounds of the rounds chosen from `seconds`.
    untimed : int
        Calls of the same alternative before each timed one.

    Returns
    -------
    dict of str to Timing
    """
    first_round = sum(timed(call) for call in alternatives.values())  # also warms up
    if rounds is None:
        again = sum(timed(call) for call in alternatives.values())
        per_round = min(first_round, again) * (1 + untimed)
        rounds = max(min_rounds, min(max_rounds, int(seconds / max(per_round, 1e-9))))
    collected = {name: [] for name in alternatives}
    for _ in range(rounds):
        for name, call in alternatives.items():
            for _ in range(untimed):
                call()
            collected[name].append(timed(call))
    return {name: Timing(tuple(values)) for name, values in collected.items()}


def paired_ratio(numerator, denominator, *, resamples=1000, seed=0):
    """Median over rounds of the ratio of two interleaved timings.

    Parameters
    ----------
    numerator, denominator : Timing
        Of one :func:`interleave`. Above 1 means the denominator is faster.
    resamples : int
        Bootstrap samples of the 95 % interval.
    seed : int

    Returns
    -------
    Ratio
    """
    ratios = [a / b for a, b in zip(numerator.seconds, denominator.seconds, strict=True)]
    generator = random.Random(seed)
    medians = sorted(
        statistics.median(generator.choices(ratios, k=len(ratios))) for _ in range(resamples)
    )
    low, high = medians[int(0.025 * resamples)], medians[int(0.975 * resamples) - 1]
    return Ratio(statistics.median(ratios), low, high)
