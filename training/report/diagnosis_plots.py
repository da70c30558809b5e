"""Figures of a diagnosis. They need matplotlib: `pip install 'worldmodel[plot]'`."""

import math
import textwrap
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes

from worldmodel.diagnostics.collapse import ACTIVE_NATS, REPRESENTED, labelled
from worldmodel.diagnostics.emissions import emissions
from worldmodel.diagnostics.scores import inside
from worldmodel.training.report.diagnose import MODEL, Diagnosis
from worldmodel.training.report.diagnosis_report import called, scaled_rmse

SEQUENCES = 3  # examples
QUANTITIES = 5  # at most, in each example
COLOURS = {MODEL: "C0", "repeat last": "C1", "train mean": "0.55", "linear ARX": "C2"}
WIDE = 120  # characters in a title over two panels
CURVE = tuple(i / 20 for i in range(1, 20))  # levels of the calibration curve


def draw(diagnosis: Diagnosis, judged: dict[str, str], folder: Path) -> list[str]:
    """Write every figure into `folder` and return their names."""
    figures = {"latent": latent_figure}
    moving = [outlook for outlook in diagnosis.outlooks.values() if bool((outlook.scale > 0).any())]
    if moving:
        figures |= {"foresight": foresight_figure, "examples": examples_figure}
    if any(not outlook.discrete for outlook in moving):
        figures["calibration"] = calibration_figure
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in figures.items():
        figure = make(diagnosis, judged)
        figure.savefig(folder / f"{name}.png", dpi=110)
        plt.close(figure)
    return [f"{name}.png" for name in figures]


def foresight_figure(diagnosis: Diagnosis, judged: dict[str, str]) -> Any:
    """Draw the error of model and baselines against the horizon."""
    count = len(diagnosis.outlooks)
    figure, panels = plt.subplots(1, count, figsize=(5.5 * count, 3.8), squeeze=False, layout="constrained")
    steps = range(1, diagnosis.config.horizon + 1)
    for panel, (key, outlook) in zip(panels[0], diagnosis.outlooks.items(), strict=True):
        for name in outlook.scores:
            error = scaled_rmse(outlook, name).tolist()
            strong = name == MODEL
            label = "this model" if strong else f"{name} (baseline)"
            panel.plot(steps, error, color=COLOURS[name], label=label, linewidth=2.4 if strong else 1.4, marker=".")
        panel.set(title=called(diagnosis, key), xlabel="steps ahead, without observations", ylim=(0, None))
        panel.grid(alpha=0.3)
    panels[0, 0].set_ylabel("RMSE / standard deviation of the data")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    figure.suptitle("Error of forecasts (lower is better)", fontsize=12)
    return figure


def examples_figure(diagnosis: Diagnosis, judged: dict[str, str]) -> Any:
    """Draw recorded sequences, and what the model imagines after their context."""
    wanted = _quantities(diagnosis)
    chosen = torch.linspace(0, len(diagnosis.context.reward) - 1, SEQUENCES + 2).round().int().tolist()[1:-1]
    figure, panels = plt.subplots(
        len(wanted),
        SEQUENCES,
        figsize=(4.2 * SEQUENCES, 1.2 + 1.9 * len(wanted)),
        squeeze=False,
        sharex=True,
        sharey="row",
        layout="constrained",
    )
    before = emissions(diagnosis.subject.model, diagnosis.context)
    for row, (label, key, entry) in zip(panels, wanted, strict=True):
        row[0].set_ylabel(label)
        for panel, window in zip(row, chosen, strict=True):
            seen = before[key].numbers[window, :, entry].tolist()
            known = before[key].recorded[window].tolist()
            _example(
                panel, [x if k else math.nan for x, k in zip(seen, known, strict=True)], diagnosis, key, entry, window
            )
    for number, panel in enumerate(panels[0], 1):
        panel.set_title(f"sequence {number}", fontsize=10)
    for panel in panels[-1]:
        panel.set_xlabel("step (imagination begins after step 0)")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=9)
    figure.suptitle("Forecasts from the actions alone, and the recorded values", fontsize=12)
    return figure


def _quantities(diagnosis: Diagnosis) -> list[tuple[str, str, int]]:
    """Return (label, emission, entry) of the first few entries that vary."""
    found = []
    for key, outlook in diagnosis.outlooks.items():
        scales = labelled({key: outlook.scale}, diagnosis.collapse.names)
        found += [(label, key, entry) for entry, (label, scale) in enumerate(scales.items()) if scale > 0]
    return found[:QUANTITIES]


def _example(panel: Axes, seen: list[float], diagnosis: Diagnosis, key: str, entry: int, window: int) -> None:
    """Draw one quantity of one window. Time 0 is the last observed step."""
    forecast = diagnosis.outlooks[key].forecast
    context, horizon = diagnosis.config.context, diagnosis.config.horizon
    past, ahead = list(range(1 - context, 1)), list(range(1, horizon + 1))
    truth = seen + forecast.value[window, :, entry].tolist()
    samples = forecast.samples[:, window, :, entry]
    for level, shade in ((0.95, 0.18), (0.5, 0.4)):
        low, high = (samples.quantile(q, dim=0).tolist() for q in (0.5 - level / 2, 0.5 + level / 2))
        panel.fill_between(ahead, low, high, color="C0", alpha=shade, linewidth=0, label=f"{level:.0%} band")
    panel.plot(ahead, forecast.mean[window, :, entry].tolist(), color="C0", linewidth=1.8, label="imagined mean")
    panel.plot(past + ahead, truth, color="black", linewidth=1, marker=".", markersize=3, label="recorded")
    panel.axvspan(1 - context, 0, color="0.5", alpha=0.15, linewidth=0, label="observed by the model")
    panel.axvline(0, color="0.4", linewidth=0.8)
    panel.grid(alpha=0.2)


def calibration_figure(diagnosis: Diagnosis, judged: dict[str, str]) -> Any:
    """Draw the share of values inside the central intervals, one step ahead and at the end of the horizon."""
    figure, panel = plt.subplots(figsize=(6.6, 4.4), layout="constrained")
    panel.plot([0, 1], [0, 1], color="0.4", linestyle="--", label="calibrated")
    panel.fill_between([0, 1], [0, 1], 0, color="C3", alpha=0.06, linewidth=0)
    panel.text(0.96, 0.04, "overconfident", ha="right", color="C3")
    panel.text(0.04, 0.93, "underconfident", color="C2")
    continuous = {key: each for key, each in diagnosis.outlooks.items() if not each.discrete}
    for number, (key, outlook) in enumerate(continuous.items()):
        place = outlook.place[..., outlook.scale > 0]
        coverage = torch.stack([inside(place, level).float().mean((0, -1)) for level in CURVE])
        for step, style in ((0, "-"), (-1, ":")):
            label = f"{called(diagnosis, key)}, " + (
                f"{diagnosis.config.horizon} steps ahead" if step else "1 step ahead"
            )
            panel.plot(CURVE, coverage[:, step].tolist(), color=f"C{number}", linestyle=style, linewidth=2, label=label)
    panel.set(
        xlim=(0, 1),
        ylim=(0, 1),
        xlabel="level of the central interval of the forecast",
        ylabel="share of values inside",
    )
    panel.set_title("Calibration of the intervals", fontsize=12)
    panel.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def latent_figure(diagnosis: Diagnosis, judged: dict[str, str]) -> Any:
    """Draw the KL of each latent dimension, and how well the reconstruction explains each quantity."""
    found = diagnosis.collapse
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    nats = sorted(found.kl.tolist(), reverse=True)
    left.bar(range(1, len(nats) + 1), nats, color=["C0" if kl > ACTIVE_NATS else "0.7" for kl in nats])
    left.axhline(ACTIVE_NATS, color="C3", linestyle="--", linewidth=1, label=f"unused below {ACTIVE_NATS} nats")
    left.set(xlabel="latent dimension, sorted by KL", ylabel="KL(q || p), nats per step")
    left.set_yscale("symlog", linthresh=ACTIVE_NATS)
    left.set_title(f"Information in the latent dimensions: {sum(nats):.2f} nats in all", fontsize=11)
    left.legend(fontsize=9)
    shares = {name: r2 for name, r2 in labelled(found.explained, found.names).items() if math.isfinite(r2)}
    colours = ["C0" if r2 >= REPRESENTED else "C3" for r2 in shares.values()]
    right.barh(range(len(shares)), [max(r2, 0) for r2 in shares.values()], color=colours)
    right.set_yticks(range(len(shares)), [f"{name}  {r2:.2f}" for name, r2 in shares.items()])
    right.axvline(REPRESENTED, color="C3", linestyle="--", linewidth=1)
    right.invert_yaxis()
    right.set(
        xlim=(0, 1),
        xlabel="R²: share of variance that the reconstruction explains\n(left of the dashed line: not represented)",
    )
    right.set_title("What the reconstruction explains", fontsize=11)
    figure.suptitle(textwrap.fill(f"Latent state: {judged['latent']}", WIDE), fontsize=12)
    return figure
