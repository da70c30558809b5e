"""`worldmodel diagnose`: what a trained model believes about recorded data, measured and judged."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from worldmodel.diagnostics.actions import ActionTest, action_test
from worldmodel.diagnostics.baselines import by_name, fit_baselines, moments, series
from worldmodel.diagnostics.collapse import Collapse, collapse
from worldmodel.diagnostics.emissions import emissions, has_density, is_discrete, without_images
from worldmodel.diagnostics.evidence import compare, posterior_gap
from worldmodel.diagnostics.open_loop import Forecast, open_loop, scores
from worldmodel.diagnostics.probe import linear_probe
from worldmodel.diagnostics.scores import Paired, Scores, gaussian_scores, pit
from worldmodel.diagnostics.windows import crop, cut, each
from worldmodel.kernels.memory import room_for_tensors
from worldmodel.learning.bounds import AT_A_TIME
from worldmodel.model import WorldModel
from worldmodel.specs import STATE, ObservationSpecs
from worldmodel.training.data.dataset import moved
from worldmodel.training.data.overlap import unseen
from worldmodel.training.report.subject import Recording, Subject, open_subject
from worldmodel.training.run.process import left_as_found
from worldmodel.types import Batch, join

MAX_WINDOWS = 256  # that forecasts are scored on, and sequences that tests compare
NUMBERS = 2**25  # sampled of all windows, or sequences: where much is observed at a step there are fewer of them
MIN_WINDOWS = 16  # all the same
MAX_PICTURED = 64  # of either, where each step is an image: decoding them takes most of the time
FEW_SAMPLES = 8  # of the posterior then, in the tests of the controls
CHUNK = 64  # windows imagined at a time, for memory
TESTED = 8  # imagined steps of the sequences that tests compare
GAP_SAMPLES = 100  # of the importance-sampled log-likelihood
FOLDS = 5  # of the linear probe
OVERLAP = 4  # forecast windows that share a step
MODEL = "model"  # beside the names of the baselines


@dataclass(frozen=True)
class DiagnoseConfig:
    """What is forecast from what."""

    context: int = 8  # steps that are seen before the forecast begins
    horizon: int = 15  # steps that are imagined
    samples: int = 64  # latent paths of each window

    def __post_init__(self) -> None:
        if min(self.context, self.horizon) < 1 or self.samples < 2:
            raise ValueError(f"context and horizon must be at least 1, samples at least 2: {self}")

    @property
    def window(self) -> int:
        return self.context + self.horizon

    @property
    def sequence(self) -> int:
        """Steps of the sequences that tests compare: short, so that there are many which share no step."""
        return self.context + min(self.horizon, TESTED) + 2  # the two ends serve to shift the controls


def windows(streams: list[Batch], length: int, stride: int | None) -> Batch:
    """Windows of all streams, each inside one episode; see :func:`worldmodel.diagnostics.windows.cut`.

    Raises:
        ValueError: if no episode is long enough.
    """
    found = join([cut(stream, length, stride) for stream in streams], 0)
    if not len(found.reward):
        steps = sum(stream.reward.shape[1] for stream in streams)
        raise ValueError(
            f"no episode in these {steps} recorded steps holds a window of {length}: lower --context or --horizon, "
            "or give a longer recording as DATA"
        )
    return found


def thinned(batch: Batch, count: int) -> Batch:
    """At most `count` windows, evenly spaced over all."""
    total = len(batch.reward)
    rows = torch.linspace(0, total - 1, min(count, total)).round().long()
    return each(batch, lambda leaf: leaf[rows.to(leaf.device)])


def affordable(numbers: int, pictured: bool) -> int:
    """How many windows can be compared, so many numbers being sampled of each."""
    return min(max(NUMBERS // max(numbers, 1), MIN_WINDOWS), MAX_PICTURED if pictured else MAX_WINDOWS)


class Outlook(NamedTuple):
    """The forecasts of one emission, and those of the baselines beside them."""

    forecast: Forecast
    place: Tensor  # (B, K, W): the probability integral transform of what was recorded
    scores: dict[
        str, Scores
    ]  # of the model and of every baseline; NLL of Gaussians where there is one and it compares, else NaN
    means: dict[str, Tensor]  # of the baselines (B, K, W)
    scale: Tensor  # (W,) standard deviation in the training part: errors in this unit compare
    discrete: bool


class Against(NamedTuple):
    """Another run on the same data."""

    folder: str
    difference: Paired  # the ELBO of this run less that of the other, nats per step
    sequences: int  # compared: those that neither has learned from
    left_out: int  # that one of them has
    gap: bool  # whether one of the two sees the future and the other filters


class Diagnosis(NamedTuple):
    """Everything measured; tensors where the report reads numbers."""

    subject: Subject
    config: DiagnoseConfig
    recording: Recording  # what it was measured on
    context: Batch  # (B, C) of the forecast windows
    outlooks: dict[str, Outlook]
    collapse: Collapse
    actions: ActionTest
    gap: Paired | None  # log-likelihood less ELBO in nats per step: what an inexact posterior costs; None with images
    probed: dict[str, Tensor]  # {quantity: (W,)} R^2 of a linear map from the latent state; empty with few sequences
    against: Against | None


@torch.no_grad()
def diagnose(
    run: str | Path,
    data: str | Path | None = None,
    config: DiagnoseConfig | None = None,
    against: str | Path | None = None,
    device: str | None = None,
    states: Sequence[str] = (),
    checkpoint: str = "latest",
) -> Diagnosis:
    """Measure the model of a run on its own replay, or on a recording. The same every time it is called.

    Forecasts are of the reward and of what is observed beside images; of images it says how much of their variance is
    reconstructed, and which known states a linear map reads off the latent one: see `env.record_state`.

    Args:
        run: the folder of a `train` or of a `fit`.
        data: a recording. By default that of the run itself: the replay, which the model has been trained on, or
            the test data of a fit, which it has not.
        against: another run folder, whose ELBO is compared on what neither of the two has learned from.
        device: by default the one it was trained on.
        states: columns or arrays of the data that a fit does not observe, to be read off its latent state.
        checkpoint: of `run`; see :meth:`worldmodel.training.run.run.Run.load`.
    Raises:
        ValueError: if a folder or file cannot be used, the recording is too short, or one of two runs has learned from
            all of it.
    """
    config = config or DiagnoseConfig()
    subject = open_subject(run, device, checkpoint)
    other = None if against is None else _opponent(subject, against)
    recording = subject.read(None if data is None else Path(data), states)
    with left_as_found(), room_for_tensors():
        torch.set_num_threads(subject.threads)
        torch.manual_seed(0)
        return _measured(subject, other, recording, config, states)


def _measured(
    subject: Subject, other: Subject | None, recording: Recording, config: DiagnoseConfig, states: Sequence[str]
) -> Diagnosis:
    """See :func:`diagnose`."""
    stride = None if recording.whole else max(config.window // OVERLAP, 1)
    pictured = bool(subject.model.image_keys)
    samples = FEW_SAMPLES if pictured else config.samples
    width = sum(each.numbers.shape[-1] for each in emissions(subject.model, crop(recording.held[0], 0, 1)).values())
    most = affordable(max(samples, AT_A_TIME) * config.sequence * width, pictured)
    disjoint = thinned(windows(recording.held, config.sequence, stride and config.sequence), most)
    compared = None if other is None else _unseen(subject, other, recording.source, disjoint)
    most = affordable(config.samples * config.window * width, pictured)
    ahead = thinned(windows(recording.held, config.window, stride), most)
    return Diagnosis(
        subject,
        config,
        recording,
        crop(ahead, 0, config.context),
        outlooks(subject.model, recording, ahead, config) if subject.model.dynamics.can_imagine else {},
        collapse(subject.model, disjoint)._replace(names=names_of(subject.obs_specs)),
        action_test(subject.model, disjoint, config.context, samples),
        None if subject.model.image_keys else posterior_gap(subject.model, disjoint, GAP_SAMPLES),
        probed(subject.model, disjoint, recording.states, bool(states), 0 if recording.whole else config.context),
        None if other is None or compared is None else _compare(subject, other, compared, len(disjoint.reward)),
    )


def outlooks(model: WorldModel, recording: Recording, ahead: Batch, config: DiagnoseConfig) -> dict[str, Outlook]:
    """Forecasts of the windows `ahead` (B, C + K) by the model and by baselines fitted to the training part."""
    small = [without_images(model, stream) for stream in recording.train]
    sample = thinned(windows(small, config.window, max(config.window // OVERLAP, 1)), 4 * MAX_WINDOWS)
    train = _one_stream(small)
    baselines = fit_baselines(model, train, sample, config.context)
    data = series(model, ahead)
    means = {name: by_name(model, ahead, each.predict(data, config.context)) for name, each in baselines.items()}
    stds = {name: by_name(model, ahead, each.std) for name, each in baselines.items()}
    exact = {name: by_name(model, ahead, each.exact) for name, each in baselines.items()}
    scale = by_name(model, ahead, moments(model, train)[1])
    forecasts = forecast_all(model, ahead, config)
    found = {}
    for key, emission in emissions(model, ahead).items():
        judged = {MODEL: scores(forecasts[key])}
        for name in baselines:
            gaussian = gaussian_scores(means[name][key], stds[name][key], forecasts[key].value)
            unlike = not has_density(emission.head) or bool(exact[name][key].any())
            judged[name] = gaussian._replace(nll=gaussian.nll * torch.nan) if unlike else gaussian
        own = {name: mean[key] for name, mean in means.items()}
        place = pit(forecasts[key].samples, forecasts[key].value)
        found[key] = Outlook(forecasts[key], place, judged, own, scale[key], is_discrete(emission.head))
    return found


def forecast_all(model: WorldModel, ahead: Batch, config: DiagnoseConfig) -> dict[str, Forecast]:
    """Open-loop forecasts of all windows, a few at a time."""
    parts = [
        open_loop(model, each(ahead, lambda leaf, i=i: leaf[i : i + CHUNK]), config.context, config.samples)  # type: ignore[misc]
        for i in range(0, len(ahead.reward), CHUNK)
    ]
    whole = {}
    for key in parts[0]:
        mean, samples, log_prob, value = zip(*(part[key] for part in parts), strict=True)
        whole[key] = Forecast(torch.cat(mean), torch.cat(samples, 1), torch.cat(log_prob), torch.cat(value))
    return whole


def probed(model: WorldModel, batch: Batch, states: Sequence[str], asked: bool, context: int = 0) -> dict[str, Tensor]:
    """What a linear map reads off the latent state: everything that is emitted, and the known states.

    Sequences that begin in the middle of an episode count once `context` steps have been seen.

    Raises:
        ValueError: with too few sequences, if the states were asked for.
    """
    if len(batch.reward) < FOLDS:
        if asked:
            raise ValueError(
                f"--state needs {FOLDS} sequences of {batch.reward.shape[1]} steps, here are {len(batch.reward)}: "
                "lower --context or --horizon, or give a longer recording as DATA"
            )
        return {}
    known = {name: each.numbers for name, each in emissions(model, batch).items()}
    known |= {name: batch.obs[STATE + name] for name in states}
    return linear_probe(model, batch, known, FOLDS, context)


def _one_stream(streams: list[Batch]) -> Batch:
    """All streams one after the other, (1, L, ...); where one begins there is a border."""
    return join([stream._replace(is_first=_begun(stream.is_first)) for stream in streams], 1)


def _begun(is_first: Tensor) -> Tensor:
    is_first = is_first.clone()
    is_first[:, :1] = True
    return is_first


def names_of(specs: ObservationSpecs) -> dict[str, list[str]]:
    """What the entries of each vector are called."""
    return {key: spec.labels(key) for key, spec in specs.items() if not (spec.image or spec.classes)}


def _opponent(subject: Subject, against: str | Path) -> Subject:
    """Another run of the same observations and actions, on the device of the first, wherever it was trained."""
    other = open_subject(against, str(next(subject.model.parameters()).device))
    if (_plain(other.obs_specs), len(other.units.loc)) != (_plain(subject.obs_specs), len(subject.units.loc)):
        raise ValueError(f"{against} was trained on other observations or actions than {subject.folder}")
    return other


def _plain(specs: ObservationSpecs) -> ObservationSpecs:
    """Without what is no matter of the model: names, and offsets that can be exchanged."""
    return {key: replace(spec, names=(), offset=()) for key, spec in specs.items()}


def _unseen(subject: Subject, other: Subject, source: str, batch: Batch) -> Batch:
    """The sequences that neither run has learned from: on its own data the winner is who has learned them by heart.

    Raises:
        ValueError: if fewer than two are left.
    """
    length, count = batch.reward.shape[1], len(batch.reward)
    ours = subject.learned_from(length)
    new = unseen({key: batch.obs[key] for key in subject.obs_specs}, ours)
    new &= unseen(_exchanged(subject, other, batch), other.learned_from(length))
    if int(new.sum()) < 2:
        raise ValueError(
            f"--against compares on data that neither run has learned from, and of the {count} sequences in "
            f"{source} one of the two knows {count - int(new.sum())}: give another recording as DATA, of a `train` for "
            f"example worldmodel collect {subject.folder}/config.yaml --steps 5000 --seed 1000 --out unseen.npz"
        )
    return each(batch, lambda leaf: leaf[new])


def _exchanged(subject: Subject, other: Subject, batch: Batch) -> dict[str, Tensor]:
    """The observations of a batch with the offsets of another run."""
    specs = other.obs_specs
    return {key: moved(batch.obs[key], spec.offset, specs[key].offset) for key, spec in subject.obs_specs.items()}


def _compare(subject: Subject, other: Subject, batch: Batch, count: int) -> Against:
    recorded = moved(subject.units.inverse(batch.prev_action), subject.control_offset, other.control_offset)
    theirs = batch._replace(obs=batch.obs | _exchanged(subject, other, batch), prev_action=other.units(recorded))
    difference = compare(subject.model, other.model, batch, theirs)
    filters = (subject.model.dynamics.can_filter, other.model.dynamics.can_filter)
    kept = len(batch.reward)
    return Against(str(other.folder), difference, kept, count - kept, filters[0] != filters[1])
