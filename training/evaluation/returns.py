"""How far returns lie apart in an environment, and whether what a model imagines of them came true."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from worldmodel.training.evaluation.evaluation import Evaluation

TRUSTED = 0.1  # of the spread of returns: how far the imagined mean may be from the real one before a run warns
SURE = 2.0  # standard errors that a difference must exceed before a run warns
REMEDY = (
    "`worldmodel diagnose` on this run shows whether its rewards or its forecasts are wrong, and more steps "
    "(--resume with --training.steps) usually mend it"
)


@dataclass
class ReturnRange:
    """Returns from those of random actions to the best: the unit in which a difference of two returns is large."""

    total: float = 0.0  # of the episodes of random actions; of the first of all where none of those ended
    count: int = 0
    best: float | None = None  # mean return of an evaluation

    def ended(self, returns: Sequence[float], random: bool) -> None:
        """Count episodes that ended, of random actions or of others."""
        known = [each for each in returns if np.isfinite(each)]
        if random or not self.count:
            self.total, self.count = self.total + sum(known), self.count + len(known)

    def evaluated(self, mean: float) -> None:
        """Count an evaluation."""
        if np.isfinite(mean):
            self.best = mean if self.best is None else max(self.best, mean)

    def spread(self, mean: float) -> float | None:
        """From random actions to the best, the evaluation with this mean included; None where no episode has ended."""
        return (
            abs(max(mean, mean if self.best is None else self.best) - self.total / self.count) if self.count else None
        )


def promise(result: Evaluation) -> str:
    """One line for a person: whether what the model promised came true, and what to do where it did not."""
    if result.imagined is None or result.weighed is None or result.differences is None:
        return ""
    ends = sorted((float(np.mean(result.imagined)), float(np.mean(result.weighed))))
    apart = result.scale is not None and ends[1] - ends[0] > TRUSTED * result.scale
    shown = " to ".join(rounded(end) for end in ends) if apart else rounded(float(np.mean(result.imagined)))
    line = f"the model imagines {shown} for the same episodes"
    if result.gap is None:
        return line
    line += f", off by {result.gap:.0%} of {'their size' if result.spread is None else 'the way from random to best'}"
    if result.gap <= TRUSTED or abs(result.z) < SURE:
        return line
    what = "overestimates" if result.differences.mean() > 0 else "underestimates"
    return f"warning: {line}: it {what} them; {REMEDY}"


def rounded(number: float) -> str:
    """To one decimal, or to three digits if it is small: a return may be 3850.2 or 0.957."""
    return f"{number:.1f}" if abs(number) >= 10 else f"{number + 0.0:.3g}"  # never -0
