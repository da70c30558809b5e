"""Compare imagined with real returns, relative to the range of returns in the environment."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from worldmodel.training.evaluation.evaluation import Evaluation

TOLERATED_GAP = 0.1  # a run warns if imagined and real mean differ by more than this share of the spread of returns
MIN_STANDARD_ERRORS = 2.0  # a run warns only if the difference exceeds this number of standard errors
DIAGNOSE_REMEDY = (
    "Run `worldmodel diagnose` to see whether its rewards or its forecasts are wrong. More steps "
    "(--resume with --training.steps) usually help."
)


@dataclass
class ReturnRange:
    """The range of returns from random actions to the best evaluation. It is the scale for differences of returns."""

    total: float = 0.0  # sum of the returns of episodes with random actions; if none ended, the first other episodes
    count: int = 0  # number of these episodes
    best: float | None = None  # highest mean return of an evaluation

    def ended(self, returns: Sequence[float], random: bool) -> None:
        """Add the returns of episodes that have ended.

        Args:
            random: whether the actions were random.
        """
        known = [each for each in returns if np.isfinite(each)]
        if random or not self.count:
            self.total, self.count = self.total + sum(known), self.count + len(known)

    def evaluated(self, mean: float) -> None:
        """Add the mean return of an evaluation."""
        if np.isfinite(mean):
            self.best = mean if self.best is None else max(self.best, mean)

    def spread(self, mean: float) -> float | None:
        """Return the distance from random actions to the best mean, or None if no episode has ended.

        Args:
            mean: the mean return of the latest evaluation, which counts as well.
        """
        return (
            abs(max(mean, mean if self.best is None else self.best) - self.total / self.count) if self.count else None
        )


def promise(result: Evaluation) -> str:
    """Return a line that compares the imagined with the real returns. It is a warning if they differ too much."""
    if result.imagined is None or result.weighed is None or result.differences is None:
        return ""
    ends = sorted((float(np.mean(result.imagined)), float(np.mean(result.weighed))))
    apart = result.scale is not None and ends[1] - ends[0] > TOLERATED_GAP * result.scale
    shown = " to ".join(rounded(end) for end in ends) if apart else rounded(float(np.mean(result.imagined)))
    line = f"The model imagines a return of {shown} for the same episodes."
    if result.gap is None:
        return line
    unit = "the size of the returns" if result.spread is None else "the range from random to best"
    line += f" It differs from the real return by {result.gap:.0%} of {unit}."
    if result.gap <= TOLERATED_GAP or abs(result.z) < MIN_STANDARD_ERRORS:
        return line
    what = "overestimates" if result.differences.mean() > 0 else "underestimates"
    return f"warning: {line} The model {what} the return. {DIAGNOSE_REMEDY}"


def rounded(number: float) -> str:
    """Return a number with one decimal, or with three digits if it is below 10, such as 3850.2 or 0.957."""
    return f"{number:.1f}" if abs(number) >= 10 else f"{number + 0.0:.3g}"  # adding 0.0 turns -0 into 0
