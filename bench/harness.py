"""What the benchmarks share beside :mod:`tfq.timing`: the machine's noise, and tables."""

from tfq.tables import align
from tfq.timing import interleave, paired_ratio


def self_ratio(call, **options):
    """:func:`paired_ratio` of a function against itself: what this machine cannot tell apart."""
    timings = interleave({"first": call, "second": call}, **options)
    return paired_ratio(timings["first"], timings["second"])


def print_table(header, rows):
    """Print rows of strings under a header."""
    print(align([header, *rows]))
