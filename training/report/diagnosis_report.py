"""A diagnosis as verdicts, as tables and as JSON."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from worldmodel.diagnostics.actions import EARLY, LATE, SHUFFLED
from worldmodel.diagnostics.collapse import labelled
from worldmodel.diagnostics.scores import LEVELS, Calibration, Paired, calibration, inside, paired, skill
from worldmodel.training.fitting.scores import cell
from worldmodel.training.logging.lines import json_safe
from worldmodel.training.report.diagnose import FOLDS, MODEL, OVERLAP, Against, Diagnosis, Outlook

BEHIND = "More updates usually help. If they do not, the environment is as simple as that baseline."
NO_DYNAMICS = "the model has no dynamics, so it makes no forecasts"

JUDGED = 0.8
"""The central interval whose coverage decides whether a model is called over- or underconfident."""

OUTER = 0.95
"""The central interval that shows overconfidence best."""

TOLERANCE = 0.07
"""The largest difference between a coverage and its level that still counts as calibrated."""

TOO_NARROW = (
    "Too many values lie outside the intervals. More data, longer training windows and fewer updates widen the "
    "intervals."
)

TELLING = 0.3
"""The verdict is "undecided" if the sampling interval of the coverage is wider than this."""

LISTED = 16
"""A quantity with more entries than this has one row in a table, for all entries. The JSON has every entry."""

SURE = 2.0
"""Standard errors that a difference must exceed to decide a verdict."""

MATERIAL = 0.1
"""A model whose absolute skill is at most this counts as good as the baseline, even if the difference is certain."""


def verdicts(diagnosis: Diagnosis) -> dict[str, str]:
    """Return one line of text for each question."""
    lines = {
        "latent": diagnosis.collapse.verdict(diagnosis.probed),
        "actions": diagnosis.actions.verdict(),
        "open loop": open_loop_verdict(diagnosis),
        "calibration": calibration_verdict(diagnosis),
    }
    if diagnosis.against:
        lines["against"] = against_verdict(diagnosis.against)
    return lines


def scaled_rmse(outlook: Outlook, name: str) -> Tensor:
    """Return the RMSE (K,) over all entries of an emission, in standard deviations of the training data."""
    error = outlook.scores[name].rmse / outlook.scale
    return error[:, outlook.scale > 0].square().mean(1).sqrt()


def skills(outlook: Outlook) -> dict[str, Tensor]:
    """Return {baseline: skill (K,)}; see :func:`worldmodel.diagnostics.scores.skill`."""
    own = scaled_rmse(outlook, MODEL)
    return {name: skill(own, scaled_rmse(outlook, name)) for name in outlook.scores if name != MODEL}


def called(diagnosis: Diagnosis, key: str) -> str:
    """Return the name of an emission. If it has only one entry, return the name of the entry."""
    return next(iter(labelled({key: torch.zeros(1)}, diagnosis.collapse.names)))


def last_errors(outlook: Outlook, mean: Tensor) -> Tensor:
    """Return the RMS error (B,) of the last step of forecasts (B, K, W), in training standard deviations."""
    error = (outlook.forecast.value - mean)[:, -1] / outlook.scale
    return error[:, outlook.scale > 0].square().mean(1).sqrt()


def open_loop_verdict(diagnosis: Diagnosis) -> str:
    """Compare each emission at the last step of the horizon with the best baseline."""
    if not diagnosis.outlooks:
        return NO_DYNAMICS
    horizon, lines, behind = diagnosis.config.horizon, [], False
    for key, outlook in diagnosis.outlooks.items():
        known = {name: float(each[-1]) for name, each in skills(outlook).items() if not math.isnan(each[-1])}
        if not known:
            continue
        name, value = min(known.items(), key=lambda pair: pair[1])
        theirs, ours = (last_errors(outlook, mean) for mean in (outlook.means[name], outlook.forecast.mean))
        unsure = len(ours) < 2 or abs(float(paired(theirs, ours, OVERLAP).clearest)) < SURE
        clear = "better than every baseline" if value > 0 else f"worse than {name}"
        what = f"not clearly better or worse than {name}" if unsure else clear
        what = f"about as good as {name}" if abs(value) <= MATERIAL else what
        told = f"skill {value:+.2f} over {name}" if math.isfinite(value) else "whose error is 0"
        lines.append(f"{called(diagnosis, key)} is {what} ({told})")
        behind |= what.startswith("worse")
    ahead = f"{horizon} step{'s' * (horizon > 1)} ahead"
    return f"{ahead}: " + ("; ".join(lines) or "nothing varies") + (f". {BEHIND}" if behind else "")


def calibration_of(outlook: Outlook) -> Calibration:
    """Return the calibration of the forecasts of the model."""
    return calibration(outlook.forecast.samples, outlook.forecast.value, outlook.place)


def covered(diagnosis: Diagnosis, level: float) -> Tensor:
    """Return the share (B, K) of continuous, varying entries inside their interval of this level."""
    parts = []
    for outlook in diagnosis.outlooks.values():
        if not outlook.discrete:
            parts.append(inside(outlook.place, level)[..., outlook.scale > 0].float())
    return torch.cat(parts, -1).mean(-1) if parts else torch.full((1, diagnosis.config.horizon), math.nan)


def calibration_verdict(diagnosis: Diagnosis) -> str:
    """Judge the intervals one step ahead and at the end of the horizon. The two can be wrong in opposite ways."""
    if not diagnosis.outlooks:
        return NO_DYNAMICS
    found, lines, narrow = {level: covered(diagnosis, level) for level in (JUDGED, OUTER)}, [], False
    windows = len(found[JUDGED])
    for k in sorted({1, diagnosis.config.horizon}):
        shares = {level: float(inside[:, k - 1].mean()) for level, inside in found.items()}
        if math.isnan(shares[JUDGED]):
            return "nothing continuous varies"
        low, high = wilson(shares[JUDGED], windows / OVERLAP)
        word = calibration_word(shares, windows / OVERLAP)
        narrow |= word.endswith("overconfident")
        lines.append(
            f"{_judgement(word, k, windows)}: {shares[JUDGED]:.0%} of the values lie in the {JUDGED:.0%} intervals "
            f"({low:.0%} to {high:.0%} at this sample size), and {shares[OUTER]:.0%} in the {OUTER:.0%} intervals"
        )
    return ". ".join(lines) + (f". {TOO_NARROW}" if narrow else "")


def _judgement(word: str, k: int, windows: int) -> str:
    """Return the word of :func:`calibration_word` for the forecasts `k` steps ahead as a sentence."""
    ahead = f"{k} step{'s' * (k > 1)} ahead"
    if word == "undecided":
        return f"Calibration {ahead} is undecided, as {windows} windows are too few"
    return f"Forecasts {ahead} {word.replace('seems', 'seem') if word.startswith('seems') else f'are {word}'}"


def wilson(share: float, count: float, sure: float = SURE) -> tuple[float, float]:
    """Return the interval of `sure` standard errors around a share of `count` independent trials (Wilson 1927).

    It is not empty if all trials agree. Windows that share a step count as one trial, as do the entries of a window.
    """
    square = sure**2 / count
    middle = (share + square / 2) / (1 + square)
    half = (sure**2 * (share * (1 - share) + square / 4) / count) ** 0.5 / (1 + square)
    return middle - half, middle + half


def calibration_word(shares: Mapping[float, float], count: float) -> str:
    """Return the word for the coverage of intervals, {level: share}.

    The word begins with "seems" if only one standard error supports it, and not SURE of them. The outer intervals show
    best whether intervals are too narrow, as few values should lie outside; the inner ones show whether they are too
    wide.
    """
    inner = shares[JUDGED]
    for begin, sure in (("", SURE), ("seems ", 1.0)):
        if any(wilson(share, count, sure)[1] < level - TOLERANCE for level, share in shares.items()):
            return f"{begin}overconfident"
        if wilson(inner, count, sure)[0] > JUDGED + TOLERANCE:
            return f"{begin}underconfident"
    low, high = wilson(inner, count)
    return "calibrated" if abs(inner - JUDGED) <= TOLERANCE and high - low < TELLING else "undecided"


def against_verdict(against: Against) -> str:
    """Say which of two runs explains the data better, by the exact ELBO."""
    difference = against.difference
    mean, error = float(difference.mean), float(difference.error)
    unsure = abs(float(difference.clearest)) < 3
    word = "not clearly better or worse than" if unsure else "better than" if mean > 0 else "worse than"
    what = "the ELBO, with the gap between smoother and filter," if against.gap else "the ELBO"
    left = f" ({against.left_out} more are left out: one run was trained on them)" if against.left_out else ""
    on = f"on {against.sequences} sequences that neither run was trained on{left}"
    return f"{word} {against.folder}: {what} differs by {mean:+.3f} ± {error:.3f} nats per step, {on}"


def to_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return all results as numbers. Names contain the units. Lists run over the horizon, then over entries."""
    config, actions, names = diagnosis.config, diagnosis.actions, diagnosis.collapse.names
    return {
        "run": str(diagnosis.subject.folder),
        "env_steps": diagnosis.subject.env_steps,
        "data": diagnosis.recording.source,
        "seen": diagnosis.recording.seen,
        "context": config.context,
        "horizon": config.horizon,
        "samples": config.samples,
        "windows": len(diagnosis.context.reward),
        "names": {key: list(entries) for key, entries in names.items()},
        "verdicts": verdicts(diagnosis),
        "open_loop": {key: _outlook_json(each) for key, each in diagnosis.outlooks.items()},
        "collapse": {
            "kl_nats": plain(diagnosis.collapse.kl),
            "active_by_kl": plain(diagnosis.collapse.active_by_kl),
            "active_by_variance": plain(diagnosis.collapse.active_by_variance),
            "explained_variance": json_safe(labelled(diagnosis.collapse.explained, names)),
            "linear_r2": json_safe(labelled(diagnosis.probed, names)),
        },
        "actions": {
            "elbo_nats_per_step": {name: plain(value.mean()) for name, value in actions.elbo.items()},
            "elbo_loss": {name: _paired_json(actions.loss(name)) for name in (SHUFFLED, LATE, EARLY) if actions.elbo},
            "open_loop_nats_per_step": {name: plain(value.mean()) for name, value in actions.log_likelihood.items()},
        },
        "posterior_gap_nats_per_step": _paired_json(diagnosis.gap) if diagnosis.gap else None,
        "against": _against_json(diagnosis.against) if diagnosis.against else None,
    }


def _outlook_json(outlook: Outlook) -> dict[str, Any]:
    found: dict[str, Any] = {name: {k: plain(v) for k, v in s._asdict().items()} for name, s in outlook.scores.items()}
    found["scale"] = plain(outlook.scale)
    found["skill"] = {name: plain(value) for name, value in skills(outlook).items()}
    if not outlook.discrete:
        measured = calibration_of(outlook)
        coverage = zip(LEVELS, measured.coverage, strict=True)
        found["coverage"] = {f"{level:g}": plain(share) for level, share in coverage}
        found["error_mean"], found["error_std"] = plain(measured.error_mean), plain(measured.error_std)
        found["pit_counts"] = plain(measured.counts)
    return found


def _paired_json(difference: Paired) -> dict[str, Any]:
    return {"mean": plain(difference.mean), "standard_error": plain(difference.error)}


def _against_json(against: Against) -> dict[str, Any]:
    return {**_paired_json(against.difference), "sequences": against.sequences, "left_out": against.left_out}


def plain(tensor: Tensor) -> Any:
    """Return a tensor as a number or as nested lists of numbers."""
    return json_safe(tensor.tolist())


def show(diagnosis: Diagnosis, judged: dict[str, str], console: Console) -> None:
    """Print the verdicts, then the numbers behind them."""
    for name, line in judged.items():
        console.print(f"[bold]{name:>12}[/bold]  ", end="")
        console.print(line, markup=False, soft_wrap=True)
    steps = diagnosis.subject.env_steps
    trained = "" if steps is None else f"; the model was trained for {steps} environment steps"
    source = f"{diagnosis.recording.source}, {len(diagnosis.context.reward)} windows{trained}"
    console.print(f"\nmeasured on {source}", markup=False, soft_wrap=True)
    if diagnosis.recording.seen:
        console.print(
            f"{diagnosis.recording.seen}. Give a recording as DATA to measure on unseen data.",
            markup=False,
            soft_wrap=True,
        )
    if diagnosis.outlooks:
        console.print(forecast_table(diagnosis))
        console.print(coverage_table(diagnosis))
    console.print(latent_table(diagnosis))
    console.print(quantity_table(diagnosis))
    if diagnosis.actions.elbo:
        console.print(action_table(diagnosis))


def forecast_table(diagnosis: Diagnosis) -> Table:
    """Return a table of errors at three horizons, and of scores of the predicted distribution over all horizons."""
    horizon = diagnosis.config.horizon
    steps = sorted({1, (horizon + 1) // 2, horizon})
    table = Table(
        title="forecasts: RMSE k steps ahead, in training standard deviations",
        title_justify="left",
    )
    headings = [*(f"k={k}" for k in steps), "CRPS", "NLL, nats"]
    _columns(table, ["emission", "forecast"], headings)
    for key, outlook in diagnosis.outlooks.items():
        for name, result in outlook.scores.items():
            error = scaled_rmse(outlook, name)
            crps = (result.crps / outlook.scale)[:, outlook.scale > 0].mean()
            row = [*(error[k - 1] for k in steps), crps, result.nll.mean()]
            # Baselines have no density of classes, nor of values that they predict without error in the training part.
            cells = [cell(float(x)) for x in row]
            table.add_row(called(diagnosis, key) if name == MODEL else "", name, *cells)
        table.add_section()
    return table


def coverage_table(diagnosis: Diagnosis) -> Table:
    """Return a table of the coverage of intervals, one step ahead and at the end of the horizon."""
    table = Table(title="calibration: share of values inside the central intervals", title_justify="left")
    _columns(table, ["emission"], ["k", *(f"{level:.0%}" for level in LEVELS), "std of errors (ideal: 1)"])
    for key, outlook in diagnosis.outlooks.items():
        if outlook.discrete or not bool((outlook.scale > 0).any()):
            continue
        measured, varies = calibration_of(outlook), outlook.scale > 0
        for k in sorted({1, diagnosis.config.horizon}):
            shares = [f"{share:.0%}" for share in measured.coverage[:, k - 1, varies].mean(-1).tolist()]
            spread = float(measured.error_std[k - 1, varies].mean())
            table.add_row(called(diagnosis, key), str(k), *shares, cell(spread, 2))
    return table


def _columns(table: Table, names: list[str], numbers: list[str]) -> None:
    for name in names:
        table.add_column(name, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right")


def latent_table(diagnosis: Diagnosis) -> Table:
    """Return a table of the information in the latent variable."""
    found = diagnosis.collapse
    table = Table(title="latent variable", title_justify="left", show_header=False)
    table.add_row("KL, nats per step", cell(float(found.kl.sum()), 2))
    table.add_row("dimensions with a KL above 0.01 nats", f"{int(found.active_by_kl)} of {len(found.kl)}")
    table.add_row("dimensions whose mean varies", f"{int(found.active_by_variance)} of {len(found.variance)}")
    if diagnosis.gap:
        gap = f"{cell(float(diagnosis.gap.mean))} ± {cell(float(diagnosis.gap.error))}"
        table.add_row("log-likelihood minus ELBO, nats per step", gap)
    return table


def quantity_table(diagnosis: Diagnosis) -> Table:
    """Return a table of how well the heads and a linear map predict each quantity from the latent state."""
    explained, probed = diagnosis.collapse.explained, diagnosis.probed
    few = f"A linear map needs at least {FOLDS} sequences of {diagnosis.config.sequence} steps."
    title = "R² of quantities predicted from the latent state"
    table = Table(title=title, title_justify="left", caption=None if probed else few, caption_justify="left")
    _columns(table, ["quantity"], ["by the model's head", "by a linear map"])
    wide = {name for found in (explained, probed) for name, values in found.items() if len(values) > LISTED}
    heads, linear = (
        labelled({name: found[name] for name in found if name not in wide}, diagnosis.collapse.names)
        for found in (explained, probed)
    )
    for name in dict.fromkeys([*heads, *linear]):
        table.add_row(name, _r2(heads.get(name)), _r2(linear.get(name)))
    for name in sorted(wide):
        medians = (median(found[name]) if name in found else None for found in (explained, probed))
        table.add_row(f"{name} (median)", *map(_r2, medians))
    return table


def median(values: Tensor) -> float:
    """Return the median over the entries that vary; NaN if none does."""
    return float(values.nanquantile(0.5))


def _r2(value: float | None) -> str:
    return "" if value is None else "constant" if math.isnan(value) else cell(value)


def action_table(diagnosis: Diagnosis) -> Table:
    """Return a table of the loss with wrong actions."""
    actions = diagnosis.actions
    count = len(next(iter(actions.elbo.values())))
    table = Table(title=f"actions: nats per step over {count} sequences", title_justify="left")
    _columns(table, ["actions"], ["ELBO", "loss", "open loop", "loss"])
    for name, value in actions.elbo.items():
        row = [cell(float(value.mean())), _lost(actions.elbo, name)]
        if actions.log_likelihood:
            row += [cell(float(actions.log_likelihood[name].mean())), _lost(actions.log_likelihood, name)]
        table.add_row(name, *row)
    return table


def _lost(values: dict[str, Tensor], name: str) -> str:
    right = next(iter(values))
    if name == right:
        return ""
    difference = paired(values[right], values[name])
    return f"{cell(float(difference.mean))} ± {cell(float(difference.error))}"
