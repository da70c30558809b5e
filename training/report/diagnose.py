"""`worldmodel diagnose`: measure a trained model on recorded data."""

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

MAX_WINDOWS = 256  # windows that forecasts are scored on, and sequences that tests compare
NUMBERS = 2**25  # sampled for all windows or sequences together: with many observed entries there are fewer windows
MIN_WINDOWS = 16  # at least
MAX_PICTURED = 64  # windows or sequences with images, whose decoding takes most of the time
FEW_SAMPLES = 8  # of the posterior with images, in the tests of the actions
CHUNK = 64  # windows imagined at a time, to limit the memory
TESTED = 8  # imagined steps of the sequences that tests compare
GAP_SAMPLES = 100  # of the importance-sampled log-likelihood
FOLDS = 5  # of the linear probe
OVERLAP = 4  # forecast windows that share a step
MODEL = "model"  # the name of the model among those of the baselines


@dataclass(frozen=True)
class DiagnoseConfig:
    """The lengths of the forecasts."""

    context: int = 8  # observed steps before the forecast
    horizon: int = 15  # imagined steps
    samples: int = 64  # latent paths of each window

    def __post_init__(self) -> None:
        if min(self.context, self.horizon) < 1 or self.samples < 2:
            raise ValueError(f"--context and --horizon must be at least 1, and --samples at least 2. Given: {self}")

    @property
    def window(self) -> int:
        """Steps of a forecast window."""
        return self.context + self.horizon

    @property
    def sequence(self) -> int:
        """Steps of the sequences that tests compare. They are short, so that many of them share no step."""
        return self.context + min(self.horizon, TESTED) + 2  # the first and the last step serve to shift the actions


def windows(streams: list[Batch], length: int, stride: int | None) -> Batch:
    """Return the windows of all streams, each inside one episode; see :func:`worldmodel.diagnostics.windows.cut`.

    Raises:
        ValueError: if no episode is long enough.
    """
    found = join([cut(stream, length, stride) for stream in streams], 0)
    if not len(found.reward):
        steps = sum(stream.reward.shape[1] for stream in streams)
        raise ValueError(
            f"No episode in these {steps} recorded steps is as long as a window of {length} steps. Lower --context or "
            "--horizon, or give a longer recording as DATA."
        )
    return found


def thinned(batch: Batch, count: int) -> Batch:
    """Return at most `count` windows, evenly spaced over all."""
    total = len(batch.reward)
    rows = torch.linspace(0, total - 1, min(count, total)).round().long()
    return each(batch, lambda leaf: leaf[rows.to(leaf.device)])


def affordable(numbers: int, pictured: bool) -> int:
    """Return the number of windows that can be compared, if so many numbers are sampled for each."""
    return min(max(NUMBERS // max(numbers, 1), MIN_WINDOWS), MAX_PICTURED if pictured else MAX_WINDOWS)


class Outlook(NamedTuple):
    """The forecasts of one emission by the model, and by the baselines."""

    forecast: Forecast
    place: Tensor  # (B, K, W): the probability integral transform of the recorded values
    scores: dict[str, Scores]  # of the model and every baseline; the NLL of a baseline is NaN where it has no density
    means: dict[str, Tensor]  # of the baselines (B, K, W)
    scale: Tensor  # (W,) standard deviation in the training part, as a unit of errors
    discrete: bool


class Against(NamedTuple):
    """The comparison with another run on the same data."""

    folder: str
    difference: Paired  # ELBO of this run minus that of the other, nats per step
    sequences: int  # compared sequences, which neither run was trained on
    left_out: int  # sequences that one of the runs was trained on
    gap: bool  # whether one run infers states from the future as well, and the other only from the past


class Diagnosis(NamedTuple):
    """All measurements of a model on a recording."""

    subject: Subject
    config: DiagnoseConfig
    recording: Recording
    context: Batch  # (B, C) of the forecast windows
    outlooks: dict[str, Outlook]
    collapse: Collapse
    actions: ActionTest
    gap: Paired | None  # log-likelihood minus ELBO in nats per step, due to an inexact posterior; None with images
    probed: dict[str, Tensor]  # {quantity: (W,)} R^2 of a linear map from the latent state; empty for few sequences
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
    """Measure the model of a run on its own replay or on a recording. Every call gives the same result.

    The model forecasts the reward and the observations other than images. For images, the result is the share of their
    variance that is reconstructed, and how well a linear map predicts known states from the latent state (see
    `env.record_state`).

    Args:
        run: the folder of a run of `train` or `fit`.
        data: a recording. By default the replay of the run, which the model was trained on, or the test data of a
            fit, which it was not trained on.
        against: another run folder. The ELBO of both is compared on data that neither run was trained on.
        device: by default the one that the run was trained on.
        states: columns or arrays of the data that a fit does not observe, to be predicted from its latent state.
        checkpoint: a checkpoint of `run`; see :meth:`worldmodel.training.run.run.Run.load`.
    Raises:
        ValueError: if a folder or file cannot be used, if the recording is too short, or if one of two runs was
            trained on all of it.
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
    """Forecast the windows `ahead` (B, C + K) by the model, and by baselines that are fitted to the training part."""
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
    """Return the open-loop forecasts of all windows, computed a few at a time."""
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
    """Return how well a linear map predicts all emissions and the known states from the latent state.

    In sequences that begin in the middle of an episode, the first `context` steps do not count.

    Raises:
        ValueError: if there are too few sequences and the user asked for states.
    """
    if len(batch.reward) < FOLDS:
        if asked:
            raise ValueError(
                f"--state needs {FOLDS} sequences of {batch.reward.shape[1]} steps, but there are {len(batch.reward)}. "
                "Lower --context or --horizon, or give a longer recording as DATA."
            )
        return {}
    known = {name: each.numbers for name, each in emissions(model, batch).items()}
    known |= {name: batch.obs[STATE + name] for name in states}
    return linear_probe(model, batch, known, FOLDS, context)


def _one_stream(streams: list[Batch]) -> Batch:
    """Concatenate all streams to one, (1, L, ...). The first step of each stream begins an episode."""
    return join([stream._replace(is_first=_begun(stream.is_first)) for stream in streams], 1)


def _begun(is_first: Tensor) -> Tensor:
    """Return the flags of a stream with that of its first step set."""
    is_first = is_first.clone()
    is_first[:, :1] = True
    return is_first


def names_of(specs: ObservationSpecs) -> dict[str, list[str]]:
    """Return the names of the entries of each vector."""
    return {key: spec.labels(key) for key, spec in specs.items() if not (spec.image or spec.classes)}


def _opponent(subject: Subject, against: str | Path) -> Subject:
    """Read another run with the same observations and actions, on the device of the first.

    Raises:
        ValueError: if its observations or actions differ.
    """
    other = open_subject(against, str(next(subject.model.parameters()).device))
    if (_plain(other.obs_specs), len(other.normalizer.loc)) != (_plain(subject.obs_specs), len(subject.normalizer.loc)):
        raise ValueError(f"{against} and {subject.folder} were trained on different observations or actions")
    return other


def _plain(specs: ObservationSpecs) -> ObservationSpecs:
    """Return the specs without names and offsets, on which the model does not depend."""
    return {key: replace(spec, names=(), offset=()) for key, spec in specs.items()}


def _unseen(subject: Subject, other: Subject, source: str, batch: Batch) -> Batch:
    """Return the sequences that neither run was trained on. On other data, the run that memorized them would win.

    Raises:
        ValueError: if fewer than two are left.
    """
    length, count = batch.reward.shape[1], len(batch.reward)
    ours = subject.learned_from(length)
    new = unseen({key: batch.obs[key] for key in subject.obs_specs}, ours)
    new &= unseen(_exchanged(subject, other, batch), other.learned_from(length))
    if int(new.sum()) < 2:
        raise ValueError(
            "--against compares runs on data that neither run was trained on. "
            f"Of the {count} sequences in {source}, one of the runs was trained on {count - int(new.sum())}. Give "
            f"another recording as DATA, for example: worldmodel collect {subject.folder}/config.yaml --steps 5000 "
            "--seed 1000 --out unseen.npz"
        )
    return each(batch, lambda leaf: leaf[new])


def _exchanged(subject: Subject, other: Subject, batch: Batch) -> dict[str, Tensor]:
    """Return the observations of a batch with the offsets of another run."""
    specs = other.obs_specs
    return {key: moved(batch.obs[key], spec.offset, specs[key].offset) for key, spec in subject.obs_specs.items()}


def _compare(subject: Subject, other: Subject, batch: Batch, count: int) -> Against:
    """Compare the ELBO of two runs on the sequences that are left of `count`."""
    recorded = moved(subject.normalizer.inverse(batch.prev_action), subject.control_offset, other.control_offset)
    theirs = batch._replace(obs=batch.obs | _exchanged(subject, other, batch), prev_action=other.normalizer(recorded))
    difference = compare(subject.model, other.model, batch, theirs)
    filters = (subject.model.dynamics.can_filter, other.model.dynamics.can_filter)
    kept = len(batch.reward)
    return Against(str(other.folder), difference, kept, count - kept, filters[0] != filters[1])
