"""`worldmodel imagine`: videos of forecasts beside the truth, of imagined episodes, and of real ones."""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from worldmodel.agents import AgentState
from worldmodel.diagnostics.open_loop import foretold, last
from worldmodel.diagnostics.windows import crop, each
from worldmodel.envs import make
from worldmodel.envs.contract.faults import described
from worldmodel.envs.rendering.charts import chart
from worldmodel.envs.rendering.images import drawn
from worldmodel.envs.rendering.screen import SIDE, picture
from worldmodel.envs.wrappers.episodes import evaluation_seeds
from worldmodel.replay.replay import Places
from worldmodel.specs import ObservationSpec
from worldmodel.training.fitting.fit_run import FitRun
from worldmodel.training.logging.logger import MEDIA_FOLDER
from worldmodel.training.report.subject import replay_of
from worldmodel.training.report.video import IMAGINED, SEEN, marked, tiled, write_gif, write_png, write_webm
from worldmodel.training.run.run import Run
from worldmodel.types import Batch
from worldmodel.validation import HORIZON as FARTHEST
from worldmodel.validation import at_most

STRIP = 10  # moments in a strip
COLUMNS = 64  # at most in a video: none can be wider than 65,535 pixels
HORIZON = 45  # imagined steps by default
WORLD = "world.webm"
FILMED = 4  # stream of evaluation seeds


@dataclass
class ImagineConfig:
    """What to show.

    Raises:
        ValueError: if a number is below 1 or too large.
    """

    context: int = 5  # observed steps before the forecast
    horizon: int | None = None  # imagined steps; None: 45, or as many as the longest episode allows
    count: int = 4  # sequences side by side
    seed: int = 0  # of the choice of sequences and of the imagination
    start: int | None = None  # show the one sequence that begins at this recorded step; 0 is the oldest

    def __post_init__(self) -> None:
        if min(self.context, self.count, 1 if self.horizon is None else self.horizon) < 1:
            raise ValueError(f"--context, --horizon and --count must be at least 1. Given: {self}")
        at_most(self, context=FARTHEST, horizon=FARTHEST, count=COLUMNS)

    def length(self, longest: int, where: str) -> int:
        """Return the number of steps of a recorded sequence, context and forecast.

        Args:
            longest: steps of the longest sequence there is.
            where: name of the recording, for the message.
        Raises:
            ValueError: if no sequence is as long.
        """
        if self.horizon is not None:
            length = self.context + self.horizon
        else:
            length = max(min(self.context + HORIZON, longest), self.context + 1)
        if length > longest:
            other = "" if self.start is None else f" from step {self.start} on"
            raise ValueError(
                f"{where} holds at most {longest} steps of one episode{other}, but {length} are needed. Lower "
                f"--context or --horizon{', or choose another --start' if other else ''}."
            )
        return length

    @property
    def dreamt(self) -> int:
        """Steps of imagined and real episodes, which need no records."""
        return HORIZON if self.horizon is None else self.horizon


class OpenLoop(NamedTuple):
    """A forecast of one observation key and the truth: values (N, T, width) as recorded, images in [0, 1]."""

    truth: np.ndarray
    model: np.ndarray  # the reconstruction of the context, then the forecast
    context: int


@torch.no_grad()
def open_loop(run: Run | FitRun, windows: Batch, context: int) -> dict[str, OpenLoop]:
    """Infer a state from the first steps of windows (N, T, ...), then imagine the rest with the recorded actions."""
    states, ahead = foretold(run.model, windows, context)
    features = torch.cat([run.model.feature(states), ahead], 1)
    shown = run.model.predict(features).obs
    return {
        key: OpenLoop(_numbers(windows.obs[key], spec), _means(shown[key], spec), context)
        for key, spec in run.obs_specs.items()
        if key in shown
    }


def _numbers(values: Tensor, spec: ObservationSpec) -> np.ndarray:
    """Return recorded values as an array, images in [0, 1]."""
    return values.cpu().numpy() / (255 if spec.image else 1)


def _means(means: Tensor, spec: ObservationSpec) -> np.ndarray:
    """Return predicted means as an array; for discrete variables, the likeliest value."""
    if spec.binary:
        return (means > 0.5).float().cpu().numpy()
    if spec.classes:
        return torch.stack([part.argmax(-1) for part in means.split(list(spec.classes), -1)], -1).cpu().numpy()
    return means.cpu().numpy()


def pictures(spec: ObservationSpec, values: np.ndarray, low: np.ndarray, high: np.ndarray) -> list[np.ndarray]:
    """Return values (T, width) of one key as T pictures: the images themselves, or a chart that grows.

    Args:
        low, high: the edges (width,) of a chart.
    """
    if spec.image:
        return [picture(frame.reshape(spec.shape)) for frame in values]
    known = np.tril(np.ones((len(values), len(values)), bool))[..., None]
    return [chart(np.where(now, values, np.nan), low, high, spec.names) for now in known]


def compared(spec: ObservationSpec, found: OpenLoop) -> list[np.ndarray]:
    """Return T frames with a column for each sequence and the rows truth, model and error.

    The colour of a bar over each picture shows whether the step was observed or imagined.
    """
    truth, model = found.truth, found.model
    error = (model - truth + 1) / 2 if spec.image else model - truth
    ends = truth.min((0, 1)), truth.max((0, 1))
    spread = np.abs(error).max((0, 1))
    rows = []
    for values, edges in ((truth, ends), (model, ends), (error, (-spread, spread))):
        rows.append([pictures(spec, sequence, *edges) for sequence in values])
    frames = []
    for step in range(truth.shape[1]):
        colour = SEEN if step < found.context else IMAGINED
        top, *rest = [[column[step] for column in row] for row in rows]
        frames.append(
            tiled([[marked(each, SEEN) for each in top], *([marked(each, colour) for each in row] for row in rest)])
        )
    return frames


def strip(spec: ObservationSpec, found: OpenLoop, which: int = 0) -> np.ndarray:
    """Return one sequence as a picture: steps from left to right, and the rows truth, model and error."""
    one = OpenLoop(found.truth[which : which + 1], found.model[which : which + 1], found.context)
    moments = np.linspace(0, found.truth.shape[1] - 1, min(STRIP, found.truth.shape[1])).round().astype(int)
    frames = compared(spec, one)
    return np.concatenate([frames[moment] for moment in moments], 1)


@torch.no_grad()
def dreamt(run: Run, begin: AgentState, steps: int) -> dict[str, np.ndarray]:
    """Imagine how the behaviour of the run continues from N states. Return {key: values (N, T + 1, width)}."""
    model, now = run.model, begin
    features = [model.feature(now.latent)]
    for _ in range(steps):
        latent = model.imagine(now.latent, now.control)
        features.append(model.feature(latent))
        now = AgentState(latent, *run.behaviour.act(model, latent, now.memory, True))
    shown = model.predict(torch.stack(features, 1)).obs
    return {key: _means(shown[key], spec) for key, spec in run.obs_specs.items() if key in shown}


class Lived(NamedTuple):
    """A real episode of the agent. It begins with the step after which an imagined episode begins as well."""

    frames: list[np.ndarray]  # as the environment renders them
    begin: AgentState  # at the first frame


def lived(run: Run, seeds: Sequence[int], steps: int, context: int = 1) -> list[Lived]:
    """Play real episodes and return their frames, at most so many steps after the first `context` steps.

    An episode that ends within the context is shown from its last decision on.

    Raises:
        EnvironmentFault: if the environment renders no picture. Errors of the environment pass through.
    """
    episodes = list[Lived]()
    for seed in seeds:
        with closing(make(run.config.env, draw=True)) as env:
            observation, _ = env.reset(seed=seed)
            frames, states, over = [_shown(env, episodes[0].frames[0] if episodes else None)], list[AgentState](), False
            while not over and len(frames) < context + steps:
                first = np.array([len(frames) == 1])
                action, state = run.agent.predict(observation, states[-1] if states else None, first, True)
                states.append(state)
                observation, _, terminated, truncated, _ = env.step(action)
                over = terminated or truncated
                frames.append(_shown(env, frames[0]))
        begin = min(context, len(states)) - 1
        episodes.append(Lived(frames[begin:], states[begin]))
    return episodes


def _shown(env: gym.Env[Any, Any], like: np.ndarray | None) -> np.ndarray:
    """Return what an environment renders, in RGB, with the size of `like`, or as high as a row of images."""
    frame = drawn(env)
    frame = np.repeat(frame, 3, -1) if frame.shape[-1] == 1 else frame[..., :3]
    height, width = (2 * SIDE, round(frame.shape[1] * 2 * SIDE / frame.shape[0])) if like is None else like.shape[:2]
    return cv2.resize(np.ascontiguousarray(frame), (max(width, 1), height), interpolation=cv2.INTER_AREA)


def imagine(
    run: Run | FitRun,
    config: ImagineConfig,
    media: Path | None = None,
    data: Path | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Write the videos and the strip of a run into a folder, by default its `media/`. Return their paths.

    `open_loop` shows truth, model and error of recorded sequences; the model observes only their first steps.
    `world` shows real episodes of the agent from the end of the context on, and `dream` shows how the model imagines
    them from there. If the environment fails or renders nothing, there is no `world`, and `dream` begins from the
    recorded sequences. Observations other than images are shown as charts. Observations without a decoder are left
    out. A fit has no behaviour and no environment, so it has only `open_loop`.

    Args:
        data: a recording with the sequences; by default the replay of the run, or the test data of a fit.
        note: shows a line to the user.
    Raises:
        ValueError: if the recording cannot be read, or holds no sequence that is long enough.
    """
    media = media or run.folder / MEDIA_FOLDER
    device = next(run.model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed)
        if isinstance(run, FitRun):
            return _film_forecasts(run, fitted_sequences(run, config, data), config.context, media)
        windows = sequences(run, config, data)
        written = _film_forecasts(run, windows, config.context, media)
        world = _world(run, config, note)
        begins = [episode.begin for episode in world] or [_recorded(run, windows, config.context)]
        written += _film_dreams(run, begins, config, media)
        return written + _film_world(world, media)


def _film_forecasts(run: Run | FitRun, windows: Batch, context: int, media: Path) -> list[Path]:
    """Write the videos and strips of forecasts; return their paths."""
    written = []
    for key, found in open_loop(run, windows, context).items():
        name = "open_loop" if len(run.obs_specs) == 1 else f"open_loop_{safe(key)}"
        frames = compared(run.obs_specs[key], found)
        write_png(media / f"{name}.png", strip(run.obs_specs[key], found))
        write_gif(media / f"{name}.gif", frames)
        write_webm(media / f"{name}.webm", frames)  # last, as the codec may be missing
        written += [media / f"{name}.{kind}" for kind in ("png", "gif", "webm")]
    return written


@torch.no_grad()
def _recorded(run: Run, windows: Batch, context: int) -> AgentState:
    """Return the state of the agent after the context of recorded sequences."""
    latent = last(run.model.observe(crop(windows, 0, context)).states)
    return AgentState(latent, *run.behaviour.act(run.model, latent, run.behaviour.initial(len(windows.reward)), True))


def _film_dreams(run: Run, begins: Sequence[AgentState], config: ImagineConfig, media: Path) -> list[Path]:
    """Write the videos of imagined episodes; return their paths."""
    dreams = [dreamt(run, begin, config.dreamt) for begin in begins]
    written = []
    for key in dreams[0]:
        values = np.concatenate([dream[key] for dream in dreams])
        name = "dream" if len(run.obs_specs) == 1 else f"dream_{safe(key)}"
        spec = run.obs_specs[key]
        columns = [pictures(spec, each, values.min((0, 1)), values.max((0, 1))) for each in values]
        frames = [tiled([[marked(each, IMAGINED) for each in now]]) for now in zip(*columns, strict=True)]
        write_webm(media / f"{name}.webm", frames)
        written.append(media / f"{name}.webm")
    return written


def _world(run: Run, config: ImagineConfig, note: Callable[[str], None]) -> list[Lived]:
    """Play real episodes; return none if the environment cannot be filmed."""
    try:
        seeds = evaluation_seeds(config.count, FILMED, run.config.env.evaluation_seeds)
        return lived(run, seeds, config.dreamt, config.context)
    except Exception as error:  # a simulator, a driver or a window system may raise anything
        note(f"{WORLD} was not made, because {run.config.env.id} cannot be filmed here ({described(error)})")
        return []


def _film_world(world: Sequence[Lived], media: Path) -> list[Path]:
    """Write the video of real episodes; return its path."""
    if not world:
        return []
    longest = max(len(episode.frames) for episode in world)
    shown = [[*frames, *[frames[-1]] * (longest - len(frames))] for frames, _ in world]
    write_webm(media / WORLD, [tiled([list(now)]) for now in zip(*shown, strict=True)])
    return [media / WORLD]


def sequences(run: Run, config: ImagineConfig, data: Path | None = None) -> Batch:
    """Return windows (N, context + horizon, ...), each inside one episode, from the replay of the run or a recording.

    Raises:
        ValueError: if there is no such window, or not at the given start.
    """
    replay, where = (run.replay, "the replay") if data is None else (replay_of(data, run), str(data))
    if config.start is not None:
        rest = replay.rest_of_episode(config.start)
        length = config.length(rest.env.shape[1], where)
        return replay.gather(Places(*(field[:, :length] for field in rest)), run.agent.device)
    episodes = replay.episodes()
    windows = replay.within_episodes(config.length(int((episodes[:, 2] - episodes[:, 1]).max(initial=0)), where))
    some = torch.randperm(len(windows.env))[: config.count].numpy()
    return replay.gather(Places(*(field[some] for field in windows)), run.agent.device)


def fitted_sequences(run: FitRun, config: ImagineConfig, data: Path | None = None) -> Batch:
    """Return windows as :func:`sequences` does, from the test data of a fit or from another file.

    Raises:
        ValueError: if there is no such window, or not at the given start.
    """
    if data is None:
        parts = run.parts()
        dataset = parts.get("test", parts["validation"])
    else:
        dataset = run.read(str(data))
    rows = dataset.everything(run.config.fit.device)
    sequence = rows.is_first[0].cumsum(0)
    if config.start is None:
        longest = int(sequence.bincount().max())
    elif 0 <= config.start < len(sequence):
        longest = int((sequence[config.start :] == sequence[config.start]).sum())
    else:
        raise ValueError(
            f"{data or dataset.names[0]} holds the steps 0 to {len(sequence) - 1}, so --start cannot be {config.start}"
        )
    length = config.length(longest, str(data or dataset.names[0]))
    starts = (sequence[: len(sequence) - length + 1] == sequence[length - 1 :]).nonzero().flatten()
    if config.start is not None:
        starts = starts[starts == config.start]
    some = starts[torch.randperm(len(starts))[: config.count]]
    index = some[:, None] + torch.arange(length, device=some.device)
    return each(rows, lambda leaf: leaf[0, index])


def safe(key: str) -> str:
    """Return an observation key as a part of a file name."""
    return "".join(letter if letter.isalnum() else "_" for letter in key)
