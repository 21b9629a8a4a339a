"""Agreement and comparisons. Pure functions of numbers; they import NumPy and SciPy when they are first used."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from typing import Any

from api.quality.intervals import Interval

# The resamples of a bootstrap and of a permutation test; a p value is known to about a hundredth.
RESAMPLES = 9999
KAPPA_RESAMPLES = 1000
SEED = 0
# Up to so many items, the interval of a comparison is accelerated.
MOST_ACCELERATED = 2000
# More differences than these, of at most so many values, are drawn by value: those of judges have some tens.
MOST_VALUES = 100
# With fewer pairs than this, neither an interval nor a test says much, whatever it says.
FEW = 20


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two raters agree on `n` answers, beyond chance.

    `observed` is the share of equal scores. `kappa`: Cohen's, 1 for perfect agreement and 0 for that of chance; with
    quadratic weights on a scale of more than two points. It is None without answers, and if both raters gave all of
    them the same single score: chance alone would do so.
    """

    n: int
    observed: float | None = None
    kappa: float | None = None
    interval: Interval | None = None


def cohens_kappa(table: Mapping[tuple[int, int], int], scores: Sequence[int]) -> float | None:
    """Cohen's kappa of two raters. `table`: how often the first gave one score and the second another, of `scores`, the
    scale from worst to best.

    A disagreement weighs the square of its distance on the scale, in shares of the scale's length. On a scale of two
    points that is the unweighted kappa.
    """
    n = sum(table.values())
    if not n:
        return None
    low, length = scores[0], max(1, scores[-1] - scores[0])
    rows, columns = Counter[int](), Counter[int]()
    for (first, second), count in table.items():
        rows[first] += count
        columns[second] += count

    def weight(first: int, second: int) -> float:
        return (((first - low) - (second - low)) / length) ** 2

    observed = sum(weight(*pair) * count for pair, count in table.items()) / n
    expected = sum(weight(a, b) * rows[a] * columns[b] for a, b in product(rows, columns)) / n**2
    return None if expected == 0 else 1 - observed / expected


def agreement(answers: Sequence[Sequence[tuple[int, int]]], scores: Sequence[int], seed: int = SEED) -> Agreement:
    """The agreement of two raters. `answers`: of each answer, the scores that both have given; several pairs if several
    people stand for a rater.

    The interval is that of a bootstrap of answers, because the pairs of one answer depend on each other.
    """
    # Answers with the same pairs are interchangeable.
    kinds = Counter(tuple(sorted(pairs)) for pairs in answers if pairs)
    table = Counter(pair for pairs in answers for pair in pairs)
    n = kinds.total()
    if not n:
        return Agreement(0)
    kappa = cohens_kappa(table, scores)
    interval = None
    if kappa is not None and n > 1:
        import numpy as np

        cells, order = sorted(table), sorted(kinds)
        # How often an answer of each kind has each pair.
        contents: Any = np.array([[kind.count(cell) for cell in cells] for kind in order])
        shares: Any = np.array([kinds[kind] for kind in order]) / n
        drawn: Any = np.random.default_rng(seed).multinomial(n, shares, size=KAPPA_RESAMPLES) @ contents
        resampled = (cohens_kappa(dict(zip(cells, map(int, counts), strict=True)), scores) for counts in drawn)
        # Resamples in which all scores are the same have no kappa.
        defined = [value for value in resampled if value is not None]
        if len(defined) > KAPPA_RESAMPLES / 2:
            low, high = np.quantile(defined, (0.025, 0.975))
            interval = Interval(min(float(low), kappa), max(float(high), kappa))
    equal = sum(count for (first, second), count in table.items() if first == second)
    return Agreement(n, equal / table.total(), kappa, interval)


class Conclusion(StrEnum):
    """Whether the second of two models is worse than the first."""

    WORSE = "worse"
    BETTER = "better"
    NO_DIFFERENCE = "no_difference_shown"
    TOO_FEW = "too_few"


@dataclass(frozen=True, slots=True)
class Difference:
    """The mean by which the second of two models is better than the first, on `n` items; negative: it is worse.

    `p`: how likely a difference of this size would be if there were none. Without at least two items, there are
    neither an interval nor p.
    """

    n: int
    mean: float | None = None
    interval: Interval | None = None
    p: float | None = None

    @property
    def conclusion(self) -> Conclusion:
        """What the interval says, at 95 %."""
        if self.interval is None or self.n < FEW:
            return Conclusion.TOO_FEW
        if self.interval.high < 0:
            return Conclusion.WORSE
        return Conclusion.BETTER if self.interval.low > 0 else Conclusion.NO_DIFFERENCE


def paired_difference(differences: Sequence[float], seed: int = SEED) -> Difference:
    """The mean of differences of pairs, one for each item, with the interval of a paired bootstrap and the p of a test
    that flips their signs at random.

    The bootstrap is bias-corrected and accelerated (BCa) where that is defined, else by percentiles: the differences of
    judges have few values, and may all be equal.

    Raises:
        ValueError: a difference is not a finite number.
    """
    if not all(map(math.isfinite, differences)):
        raise ValueError("a difference is not a finite number")
    n = len(differences)
    if n < 2:
        return Difference(n, differences[0] if n else None)
    if n > MOST_ACCELERATED and len(counts := Counter(differences)) <= MOST_VALUES:
        return difference_by_counts(counts, seed)
    import numpy as np
    from scipy import stats

    values: Any = np.asarray(differences, dtype=float)
    mean = float(values.mean())
    # Each resample of equal values is the same: the test still says what chance would make of it.
    interval = Interval(mean, mean) if np.ptp(values) == 0 else _bootstrapped(values, mean, seed)
    test: Any = stats.permutation_test(
        (values,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=200,
        rng=np.random.default_rng(seed),
    )
    return Difference(n, mean, interval, float(test.pvalue))


def difference_by_counts(counts: Mapping[float, int], seed: int = SEED) -> Difference:
    """`paired_difference` of many differences of few values, given as how often each value occurs.

    What a resample is made of is drawn by value, so that time and memory do not depend on the number of differences.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    n = sum(counts.values())
    total = math.fsum(value * count for value, count in counts.items())
    low, high = np.quantile(_resampled_means(counts, rng), (0.025, 0.975))
    sizes = Counter[float]()
    for value, count in counts.items():
        sizes[abs(value)] += count
    distances: Any = np.array(sorted(sizes))
    numbers: Any = np.array([sizes[distance] for distance in sorted(sizes)])
    # For each distance from 0, the number of positive differences if the signs are random.
    positive = rng.binomial(numbers, 0.5, size=(RESAMPLES, len(numbers)))
    sums = np.abs((2 * positive - numbers) @ distances)
    as_large = int(np.count_nonzero(sums >= abs(total) * (1 - 1e-12)))
    mean = total / n
    return Difference(
        n, mean, Interval(min(float(low), mean), max(float(high), mean)), (as_large + 1) / (RESAMPLES + 1)
    )


def _bootstrapped(values: Any, mean: float, seed: int) -> Interval:
    import numpy as np
    from scipy import stats

    # The acceleration needs a resample without each item; for many items, percentiles are about the same.
    for method in ("BCa", "percentile") if len(values) <= MOST_ACCELERATED else ("percentile",):
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values for which it is not defined, which the result says as well
            found: Any = stats.bootstrap(
                (values,), np.mean, n_resamples=RESAMPLES, batch=200, method=method, rng=np.random.default_rng(seed)
            ).confidence_interval
        low, high = float(found.low), float(found.high)
        if math.isfinite(low) and math.isfinite(high):
            return Interval(min(low, mean), max(high, mean))
    raise AssertionError("percentiles are always defined")


def unpaired_difference(first: Mapping[float, int], second: Mapping[float, int], seed: int = SEED) -> Difference:
    """The difference of the means of scores of different items, given as how often each score was given.

    `n` is the smaller number of scores. The interval is that of a bootstrap of both, and p that of Welch's test; if all
    scores of each model are equal, that of a permutation test.
    """
    sizes = sum(first.values()), sum(second.values())
    if min(sizes) < 1:
        return Difference(min(sizes))
    means = [sum(score * count for score, count in counts.items()) / sum(counts.values()) for counts in (first, second)]
    mean = means[1] - means[0]
    if min(sizes) < 2:
        return Difference(min(sizes), mean)
    import numpy as np
    from scipy import stats

    rng = np.random.default_rng(seed)
    drawn = [_resampled_means(counts, rng) for counts in (first, second)]
    low, high = np.quantile(drawn[1] - drawn[0], (0.025, 0.975))
    deviations = [
        math.sqrt(sum(count * (score - own) ** 2 for score, count in counts.items()) / (size - 1))
        for counts, own, size in zip((first, second), means, sizes, strict=True)
    ]
    if any(deviations):
        test: Any = stats.ttest_ind_from_stats(
            means[0], deviations[0], sizes[0], means[1], deviations[1], sizes[1], equal_var=False
        )
        p = float(test.pvalue)
    else:
        p = 1.0 if mean == 0 else _p_of_separation(*sizes)
    return Difference(min(sizes), mean, Interval(min(float(low), mean), max(float(high), mean)), p)


def _p_of_separation(first: int, second: int) -> float:
    """The p of a permutation test of scores that are all equal in each of two groups, and differ between them.

    No division of all scores into groups of these sizes has a larger difference, and only one has this one, or two if
    the groups are of the same size.
    """
    divisions = math.lgamma(first + second + 1) - math.lgamma(first + 1) - math.lgamma(second + 1)
    return math.exp(-divisions) * (2 if first == second else 1)


def _resampled_means(counts: Mapping[float, int], rng: Any) -> Any:
    import numpy as np

    values: Any = np.array(sorted(counts), dtype=float)
    weights: Any = np.array([counts[value] for value in sorted(counts)], dtype=float)
    n = int(weights.sum())
    return rng.multinomial(n, weights / n, size=RESAMPLES) @ values / n


@dataclass(frozen=True, slots=True)
class Pairwise:
    """A comparison of the answers of two models to the same items, each judged in both orders.

    `scores`: by item, how far the first model's answer is better, as in `judgements.score`, when it was shown first and
    when it was shown second. `swapped`: items on which the judge has preferred a different model in each order, or one
    in one order and neither in the other.
    """

    difference: Difference
    swapped: int
    wins: tuple[int, int]
    ties: int

    @classmethod
    def of(cls, scores: Mapping[Any, tuple[float, float]]) -> Pairwise:
        """Compare the models."""
        # The preference for the second model, from -1 to 1: the mean of both orders.
        preferences = [1 - (one + other) for one, other in scores.values()]
        return cls(
            paired_difference(preferences),
            sum(one != other for one, other in scores.values()),
            (sum(value < 0 for value in preferences), sum(value > 0 for value in preferences)),
            sum(value == 0 for value in preferences),
        )
