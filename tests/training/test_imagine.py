"""Videos can be read back, show what they say, and a run's own are made of what it recorded."""

import json
import re
from pathlib import Path
from typing import Any

import cv2
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from worldmodel.diagnostics.collapse import r2, r2_of_images
from worldmodel.diagnostics.emissions import images, without_images
from worldmodel.diagnostics.open_loop import foretold, last
from worldmodel.diagnostics.windows import crop
from worldmodel.envs import make
from worldmodel.envs.rendering.images import drawn
from worldmodel.learning.bounds import repeated
from worldmodel.networks.images import pixels
from worldmodel.specs import ObservationSpec
from worldmodel.training import fit, train
from worldmodel.training.cli import main
from worldmodel.training.evaluation.evaluation import evaluation_seeds
from worldmodel.training.report.diagnose import DiagnoseConfig, diagnose
from worldmodel.training.report.imagine import (
    FILMED,
    ImagineConfig,
    OpenLoop,
    compared,
    dreamt,
    fitted_sequences,
    imagine,
    lived,
    open_loop,
    pictures,
    sequences,
    strip,
)
from worldmodel.training.report.video import BAR, IMAGINED, SEEN, check_webm, tiled, write_gif, write_webm

TINY: dict[str, Any] = {
    "env": {"id": "Pendulum-v1", "time_limit": 30, "pixels": True, "image_size": 32, "record_state": True},
    "model": {"hidden": 8, "image_depth": 2, "latent": {"size": 4}, "dynamics": {"rssm": {"deter": 8, "hidden": 8}}},
    "behaviour": {"actor_critic": {"hidden": 8, "starts": 4, "horizon": 2}},
    "replay": {"batch_size": 2, "window": 4},
    "training": {"steps": 300, "prefill": 270, "pretrain": 1, "replay_ratio": 1},
    "evaluation": {"every": 1000, "final_episodes": 1},
    "logger": {"wandb": "disabled"},
}
IMAGE = ObservationSpec((16, 16, 3), image=True)


def film(path: Path) -> list[np.ndarray]:
    capture, frames = cv2.VideoCapture(str(path)), []
    while True:
        more, frame = capture.read()
        if not more:
            return frames
        frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))


@pytest.mark.parametrize("write", [write_webm, write_gif])
def test_a_film_is_read_back_in_its_colours(write: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nearly: both lose a little. Odd sides, which VP9 cannot have, are made even."""
    colours = [(200, 30, 40), (30, 190, 60), (20, 40, 220)]
    frames = [np.broadcast_to(np.array(colour, np.uint8), (33, 47, 3)) for colour in colours for _ in range(4)]
    path = tmp_path / "deep" / f"film.{write.__name__.removeprefix('write_')}"
    write(path, frames)
    seen = film(path)
    assert len(seen) == len(frames) and capfd.readouterr().err == ""
    assert seen[0].shape == ((34, 48, 3) if write is write_webm else (33, 47, 3))
    for frame, colour in zip(seen[1::4], colours, strict=True):
        np.testing.assert_allclose(frame.mean((0, 1)), colour, atol=25)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with pytest.raises(ValueError, match="there are no frames to show"):
        write(path, [])


def test_what_cannot_be_written_is_said_before_it_is_played(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check_webm()
    with pytest.raises(ValueError, match="must have the same size"):
        write_webm(tmp_path / "film.webm", [np.zeros((16, side, 3), np.uint8) for side in (16, 18)])
    monkeypatch.setattr(cv2.VideoWriter, "isOpened", lambda self: False)
    with pytest.raises(ValueError, match="cannot write VP9"):
        check_webm()


def test_a_comparison_shows_truth_model_error_and_what_was_seen() -> None:
    truth = np.zeros((2, 4, IMAGE.width))
    truth[1] = 1.0
    model = truth.copy()
    model[1, 3] = 0.0
    frames = compared(IMAGE, OpenLoop(truth, model, 2))
    assert len(frames) == 4
    height = 96 + BAR + 2
    assert frames[0].shape == (3 * height, 2 * (96 + 2), 3)
    for step, colour in enumerate([SEEN, SEEN, IMAGINED, IMAGINED]):
        assert tuple(frames[step][0, 0]) == SEEN and tuple(frames[step][height, 0]) == colour
    centre = [tuple(int(v) for v in frames[3][row * height + 50, 98 + 50]) for row in range(3)]
    assert centre == [(255, 255, 255), (0, 0, 0), (0, 0, 0)]  # an error of -1; none is the middle grey
    assert tuple(frames[0][2 * height + 50, 150]) == (128, 128, 128)
    assert strip(IMAGE, OpenLoop(truth, model, 2)).shape == (3 * height, 4 * 98, 3)


def test_vectors_are_charts_that_grow() -> None:
    values = np.arange(5.0)[:, None]
    frames = pictures(ObservationSpec((1,)), values, values.min(0), values.max(0))
    ink = [int((frame < 200).any(-1).sum()) for frame in frames]
    assert ink == sorted(ink) and ink[-1] > ink[1] > 0


def test_tiles_are_apart() -> None:
    black = np.zeros((4, 6, 3), np.uint8)
    whole = tiled([[black, black], [black, black]])
    assert whole.shape == (12, 16, 3) and (whole[4:6] == 255).all() and (whole[:, 6:8] == 255).all()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train(TINY, run=tmp_path_factory.mktemp("pixels") / "run")


def test_a_run_from_pixels_learns_records_bytes_and_makes_its_videos(run: Any, capsys: Any) -> None:
    assert run.replay.obs["observation"].dtype == np.uint8
    assert main(["imagine", str(run.folder), "--context", "3", "--horizon", "12", "--count", "2"]) == 0
    names = {"open_loop.webm", "open_loop.gif", "open_loop.png", "dream.webm", "world.webm"}
    assert {file.name for file in (run.folder / "media").iterdir()} == names
    assert [Path(line).name for line in capsys.readouterr().out.splitlines()] == [
        *("open_loop.png", "open_loop.gif", "open_loop.webm", "dream.webm", "world.webm")
    ]
    media = run.folder / "media"
    assert [len(film(media / f"{name}.webm")) for name in ("open_loop", "dream", "world")] == [15, 13, 13]
    assert main(["imagine", str(run.folder), "--horizon", "60"]) == 2
    said = capsys.readouterr().err
    assert "the replay holds at most 31 steps of one episode, but 65 are needed. Lower --context or --horizon" in said
    assert "--start" not in said
    assert main(["imagine", str(run.folder), "--context", "31"]) == 2
    assert "holds at most 31 steps of one episode, but 32 are needed" in capsys.readouterr().err


class Drawn(gym.Env[Any, Any]):
    """Draws what it is given at each step, raises it if it is an error."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    drawings: list[Any]

    def __init__(self, render_mode: str | None = None) -> None:
        self.observation_space, self.action_space = spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (1,))
        self.render_mode, self.time = render_mode, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        return np.full(2, self.time / 20, np.float32), 0.0, False, self.time == 20, {}

    def render(self) -> Any:
        drawn = self.drawings[self.time % len(self.drawings)]
        if isinstance(drawn, Exception):
            raise drawn
        return drawn


DRAWN: dict[str, Any] = {
    "env": {"id": "test-imagine/Drawn-v0"},
    "model": {"hidden": 8, "latent": {"size": 4}, "dynamics": {"rssm": {"deter": 8, "hidden": 8}}},
    "behaviour": {"actor_critic": {"hidden": 8, "starts": 4, "horizon": 2}},
    "replay": {"batch_size": 2, "window": 4},
    "training": {"steps": 50, "prefill": 40, "pretrain": 1, "replay_ratio": 1},
    "evaluation": {"every": 45, "episodes": 1, "final_episodes": 1, "videos": True},
    "logger": {"wandb": "disabled"},
}
GREY = np.full((40, 60), 120, np.uint8)


@pytest.fixture
def drawings() -> list[Any]:
    gym.register("test-imagine/Drawn-v0", Drawn, disable_env_checker=True)
    Drawn.drawings = []
    return Drawn.drawings


@pytest.mark.filterwarnings("ignore:.*Overriding environment")
def test_a_world_that_cannot_be_filmed_is_left_out_and_training_goes_on(
    drawings: list[Any], tmp_path: Path, capsys: Any
) -> None:
    drawings += [GREY, RuntimeError("lost the context")]
    folder = train(DRAWN, run=tmp_path / "run").folder
    told = r" steps: world.webm was not made, because .*RuntimeError: lost the context"
    assert len(re.findall(told, capsys.readouterr().err)) == 2
    for steps in ("0000045", "0000050"):
        assert sorted(file.stem for file in (folder / "media" / steps).glob("*.webm")) == ["dream", "open_loop"]
    for shown, said in (([None], "must render an array"), ([GREY[None]], "an image .H, W, C. has 1, 3 or 4 channels")):
        drawings[:] = shown
        assert main(["imagine", str(folder), "--count", "1"]) == 0
        printed = capsys.readouterr()
        assert len(printed.out.splitlines()) == 4 and re.search(said, printed.err)


@pytest.mark.filterwarnings("ignore:.*Overriding environment")
def test_a_world_is_filmed_grey_or_small_or_of_many_sizes(drawings: list[Any], tmp_path: Path) -> None:
    """In the size of the first picture, from the fifth on."""
    drawings += [GREY, np.full((20, 90, 4), 120, np.uint8), np.full((7, 3, 1), 120 / 255)]
    run = train(DRAWN, run=tmp_path / "run")
    imagine(run, ImagineConfig(count=1), tmp_path)
    frames = film(tmp_path / "world.webm")
    assert len(frames) == 21 - 4 and {frame.shape for frame in frames} == {(194, 290, 3)}
    np.testing.assert_allclose([frame[4:-8, 4:-8].mean() for frame in frames], 120, atol=6)


def test_where_episodes_are_short_less_is_foretold_and_as_much_is_dreamt(run: Any, tmp_path: Path) -> None:
    """Of 31 time steps each, unless it is said how much; the world is shown from the fifth on."""
    imagine(run, ImagineConfig(count=1), tmp_path)
    assert [len(film(tmp_path / f"{name}.webm")) for name in ("open_loop", "dream", "world")] == [31, 46, 27]
    assert sequences(run, ImagineConfig(3, start=26)).reward.shape == (1, 5)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four episodes of 31 rows, of another seed than the run's."""
    folder = tmp_path_factory.mktemp("recording")
    (folder / "config.yaml").write_text(json.dumps({"env": TINY["env"] | {"record_state": False}}))
    file = folder / "data.npz"
    assert main(["collect", str(folder / "config.yaml"), "--steps", "120", "--seed", "7", "--out", str(file)]) == 0
    return file


def test_forecasts_of_a_recording_that_the_model_never_saw(
    run: Any, recording: Path, capsys: Any, tmp_path: Path
) -> None:
    with np.load(recording) as saved:
        rows = {frame.tobytes() for frame in saved["obs/observation"][0]}
    config = ImagineConfig(context=3, horizon=7, count=9)
    theirs, own = (sequences(run, config, data).obs["observation"] for data in (recording, None))
    assert theirs.shape == own.shape == (9, 10, 32 * 32 * 3)
    assert all(frame.numpy().tobytes() in rows for frame in theirs.flatten(0, 1))
    # Two angles may give the same picture, but not ten in a row.
    assert not any(all(frame.numpy().tobytes() in rows for frame in sequence) for sequence in own)
    for disk in (False, True):  # the steps of another run
        again = train({**TINY, "replay": {**TINY["replay"], "disk": disk}}, run=tmp_path / f"again {disk}", seed=9)
        (own,) = again.replay.everything().obs["observation"]
        rows = {frame.numpy().tobytes() for frame in own}
        theirs = sequences(run, config, again.folder).obs["observation"]
        assert all(frame.numpy().tobytes() in rows for frame in theirs.flatten(0, 1))
    assert main(["imagine", str(run.folder), str(tmp_path), "--horizon", "6"]) == 2
    assert f"{tmp_path}: this folder has no replay/replay.npz" in capsys.readouterr().err
    assert main(["imagine", str(run.folder), str(recording), "--horizon", "60"]) == 2
    assert f"{recording} holds at most " in capsys.readouterr().err


def test_a_fit_foretells_what_it_was_tested_on(recording: Path, tmp_path: Path, capsys: Any) -> None:
    split = {"train": 0.5, "validation": 0.25, "test": 0.25}
    changes = {"data": {"window": 4, "split": split}, "model": TINY["model"], "fit": {"updates": 1, "batch_size": 2}}
    fitted = fit(changes | {"logger": TINY["logger"]}, recording, run=tmp_path / "run")
    tested = fitted.parts()["test"].everything()
    for start, data in ((0, None), (21, None), (31, recording)):
        rows = tested if data is None else fitted.read(str(data)).everything()
        chosen = fitted_sequences(fitted, ImagineConfig(context=3, horizon=7, start=start), data)
        assert torch.equal(chosen.obs["observation"], rows.obs["observation"][:, start : start + 10])
        assert torch.equal(chosen.prev_action, rows.prev_action[:, start : start + 10])
    assert len(fitted_sequences(fitted, ImagineConfig(context=3, horizon=7, count=64)).reward) == 31 - 9
    for horizon, frames in ([], 31), (["--horizon", "12"], 17):
        assert main(["imagine", str(fitted.folder), *horizon]) == 0
        assert len(film(fitted.folder / "media" / "open_loop.webm")) == frames
    assert {file.suffix for file in (fitted.folder / "media").glob("open_loop.*")} == {".webm", ".gif", ".png"}
    capsys.readouterr()
    for arguments, said in (
        (["--horizon", "27"], "at most 31 steps of one episode, but 32 are needed. Lower --context or --horizon"),
        (
            ["--start", "22", "--context", "3", "--horizon", "7"],
            "at most 9 steps of one episode from step 22 on, but 10 are needed",
        ),
        (["--start", "99"], "holds the steps 0 to 30, so --start cannot be 99"),
        (["--checkpoint", "3"], "A fit keeps only its best weights, so there is no checkpoint 3"),
    ):
        assert main(["imagine", str(fitted.folder), *arguments]) == 2
        assert said in capsys.readouterr().err
    assert main(["play", str(fitted.folder)]) == 2
    assert "A fit has no agent and no environment. `worldmodel imagine`" in capsys.readouterr().err


def test_the_context_is_reconstructed_and_the_rest_foretold_without_looking(run: Any) -> None:
    config = ImagineConfig(context=4, horizon=6, count=3)
    windows = sequences(run, config)
    assert windows.reward.shape == (3, 10) and not windows.is_first[:, 1:].any()
    torch.manual_seed(0)
    found = open_loop(run, windows, 4)["observation"]
    recorded = windows.obs["observation"]
    np.testing.assert_allclose(found.truth, recorded.numpy() / 255)
    blinded = windows._replace(obs={"observation": recorded.clone()})
    blinded.obs["observation"][:, 4:] = 0
    torch.manual_seed(0)
    np.testing.assert_array_equal(open_loop(run, blinded, 4)["observation"].model, found.model)
    changed = windows._replace(prev_action=windows.prev_action.clone())
    changed.prev_action[:, 6:] *= -1
    torch.manual_seed(0)
    other = open_loop(run, changed, 4)["observation"].model
    np.testing.assert_array_equal(other[:, :6], found.model[:, :6])
    assert not np.array_equal(other[:, 6:], found.model[:, 6:])


def test_a_forecast_goes_on_from_the_state_that_is_shown(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing ever changes, all of the forecast looks like the last step of the context: both are one path."""
    monkeypatch.setattr(run.model, "imagine", lambda state, control, sample=True: state)
    found = open_loop(run, sequences(run, ImagineConfig(context=4, horizon=6, count=3)), 4)["observation"].model
    assert found[:, 3].std() > 0
    np.testing.assert_allclose(found[:, 4:], np.repeat(found[:, 3:4], 6, 1), atol=1e-6)


def test_a_dream_begins_where_it_is_told_and_repeats(run: Any) -> None:
    windows = sequences(run, ImagineConfig(context=4, horizon=6, count=3))
    latent = last(run.model.observe(crop(windows, 0, 4)).states)
    begin = run.agent.initial(3)._replace(latent=latent)
    films = []
    for _ in range(2):
        torch.manual_seed(1)
        films.append(dreamt(run, begin, 5)["observation"])
    assert films[0].shape == (3, 6, 32 * 32 * 3)
    np.testing.assert_array_equal(films[0], films[1])
    with torch.no_grad():
        first = run.model.predict(run.model.feature(latent)).obs["observation"]
    np.testing.assert_allclose(films[0][:, 0], first.numpy(), atol=1e-6)


def test_world_and_dream_begin_from_the_same_state(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the agent once it has seen the context of each real episode, with its decision there."""
    begun: list[Any] = []

    def noted(run: Any, begin: Any, steps: int) -> Any:
        begun.append(begin)
        return dreamt(run, begin, steps)

    monkeypatch.setattr("worldmodel.training.report.imagine.dreamt", noted)
    imagine(run, ImagineConfig(context=3, horizon=7, count=2), tmp_path)
    assert [len(film(tmp_path / f"{name}.webm")) for name in ("dream", "world")] == [8, 8]
    assert len(begun) == 2
    for seed, begin in zip(evaluation_seeds(2, FILMED), begun, strict=True):
        env = make(run.config.env, draw=True)
        observation, _ = env.reset(seed=seed)
        state = None
        for step in range(3):
            action, state = run.agent.predict(observation, state, np.array([step == 0]), True)
            frame = drawn(env)
            observation, *_ = env.step(action)
        env.close()
        assert state is not None
        for one, other in zip((*state.latent, state.control), (*begin.latent, begin.control), strict=True):
            torch.testing.assert_close(one, other)
        (episode,) = lived(run, [seed], 7, 3)
        side = episode.frames[0].shape[:2]
        shown = cv2.resize(frame, side[::-1], interpolation=cv2.INTER_AREA)
        np.testing.assert_array_equal(episode.frames[0], shown)
    (short,) = lived(run, [3], 7, 99)  # it ends after 30 steps, while it is seen
    assert len(short.frames) == 2


def test_making_videos_leaves_the_random_numbers_alone(run: Any) -> None:
    torch.manual_seed(3)
    imagine(run, ImagineConfig(context=2, horizon=3, count=1))
    drawn = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(2))
    with pytest.raises(ValueError, match="must be at least 1"):
        ImagineConfig(count=0)
    with pytest.raises(ValueError, match="count must be at most 64, but it is 65"):
        ImagineConfig(count=65)


def test_a_sequence_begins_where_it_is_asked_to(run: Any) -> None:
    windows = sequences(run, ImagineConfig(3, 4, start=5))
    stream = run.replay.stream(0)
    torch.testing.assert_close(windows.obs["observation"], stream.obs["observation"][:, 5:12])
    with pytest.raises(
        ValueError, match=r"at most 5 steps of one episode from step 26 on, but 7 are .* another --start"
    ):
        sequences(run, ImagineConfig(3, 4, start=26))  # of 31 time steps each
    last = len(run.replay) - 2
    with pytest.raises(ValueError, match=f"at most 1 steps of one episode from step {last} on"):
        sequences(run, ImagineConfig(3, 4, start=last))


def test_evaluations_are_filmed_and_the_films_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into the run's folder, and by their paths into the folder that Weights & Biases will upload."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = {
        **TINY,
        "env": {"id": "Pendulum-v1", "time_limit": 60},
        "training": {"steps": 130, "prefill": 120, "pretrain": 1, "replay_ratio": 1},
        "evaluation": {"every": 130, "episodes": 1, "final_episodes": 1, "videos": True},
        "logger": {"wandb": "offline"},
    }
    run = train(config, run=tmp_path / "run")
    names = ["dream.webm", "open_loop.gif", "open_loop.png", "open_loop.webm", "world.webm"]
    assert sorted(file.name for file in (run.folder / "media/0000130").iterdir()) == names
    logged = [file.name for file in run.folder.glob("wandb/offline-run-*/files/media/videos/media/*.webm")]
    assert sorted({name.split("_0")[0].split("_1")[0] for name in logged}) == ["dream", "open_loop", "world"]


def test_images_are_diagnosed_by_what_can_be_said_of_them(run: Any, capsys: Any) -> None:
    """Their share of explained variance, the reward, and what a linear map reads of the vectors they replace."""
    assert main(["diagnose", str(run.folder), "--context", "2", "--horizon", "3", "--samples", "4"]) == 0
    assert "simulator[1]" in capsys.readouterr().out
    found = diagnose(run.folder, config=DiagnoseConfig(2, 3, 4))
    assert list(found.outlooks) == ["reward"] and found.gap is None
    assert found.collapse.explained["observation"].shape == (1,)
    assert found.probed["observation"].shape == (3,) and found.probed["simulator"].shape == (2,)


def test_copies_for_samples_leave_images_out_and_change_nothing(run: Any) -> None:
    windows = sequences(run, ImagineConfig(3, 4, 2))
    embedding = run.model.encoder(crop(windows, 0, 3).obs)
    torch.manual_seed(0)
    whole = foretold(run.model, repeated(windows, 2), 3)[1]
    torch.manual_seed(0)
    bare = foretold(run.model, repeated(without_images(run.model, windows), 2), 3, embedding.repeat_interleave(2, 0))
    torch.testing.assert_close(bare[1], whole)


def test_explained_variance_of_images_is_that_of_all_pixels_together(run: Any) -> None:
    image = torch.randint(0, 256, (7, 32 * 32 * 3), dtype=torch.uint8)
    (head,) = images(run.model).values()
    feature = torch.randn(7, run.model.feature_size)
    whole = r2(pixels(image), head.mean(feature), pooled=True)
    torch.testing.assert_close(r2_of_images(head, feature, image, chunk=3), whole)


def test_what_the_model_does_not_decode_is_left_out_and_named(tmp_path: Path, capsys: Any) -> None:
    """The world can still be shown; forecasts and dreams of images cannot."""
    changes = {**TINY, "model": {**TINY["model"], "images": "redundancy"}}
    run = train(changes, run=tmp_path / "run")
    assert main(["imagine", str(run.folder), "--context", "3", "--horizon", "12", "--count", "2"]) == 0
    said = capsys.readouterr()
    assert [Path(line).name for line in said.out.splitlines()][-1:] == ["world.webm"]
    assert [file.name for file in (run.folder / "media").iterdir()] == ["world.webm"]
    assert "do not show observation:" in said.err and "Train a model with model.images: reconstruction" in said.err
