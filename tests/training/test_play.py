"""A dream is played by keys, as an environment is by actions."""

import io
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from worldmodel.specs import ActionSpec
from worldmodel.training import train
from worldmodel.training.cli import main
from worldmodel.training.report.keyboard import Keyboard, blocks
from worldmodel.training.report.play import Dream, play, state_at
from worldmodel.training.report.video import BAR

TINY: dict[str, Any] = {
    "model": {"hidden": 8, "latent": {"size": 4}, "dynamics": {"rssm": {"deter": 8, "hidden": 8}}},
    "behaviour": {"actor_critic": {"hidden": 8, "starts": 4, "horizon": 2}},
    "replay": {"batch_size": 2, "window": 4},
    "training": {"steps": 60, "prefill": 50, "pretrain": 1, "replay_ratio": 1},
    "evaluation": {"every": 1000, "final_episodes": 1},
    "logger": {"wandb": "disabled"},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    endless = {**TINY, "env": {"id": "Pendulum-v1"}, "model": {**TINY["model"], "continuation": False}}
    return train(endless, run=tmp_path_factory.mktemp("played") / "run")


def test_keys_of_a_continuous_action_reach_its_bounds_for_one_step() -> None:
    keyboard = Keyboard(ActionSpec((2,), low=(-2.0, 0.0), high=(2.0, 1.0)))
    actions = [keyboard.action(key) for key in "adsw "]
    np.testing.assert_allclose(actions, [[-2, 0], [2, 0], [0, 0], [0, 1], [0, 0]])
    assert keyboard.action("1") is None


def test_each_key_is_one_choice_and_space_repeats_it() -> None:
    keyboard = Keyboard(ActionSpec((), classes=(3,), start=(-1,)))
    assert [int(keyboard.action(key)) for key in "2 0"] == [1, 1, -1]
    assert keyboard.action("3") is None  # there is no such choice
    assert keyboard.help().startswith("0 to 2: take action -1 to 1. Space: repeat")
    many = Keyboard(ActionSpec((), classes=(18,)))
    assert int(many.action(many.keys[17])) == 17 and not set(many.keys) & set("npq ")


def test_pairs_of_keys_count_several_choices_within_their_range() -> None:
    keyboard = Keyboard(ActionSpec((2,), classes=(3, 2)))
    assert [keyboard.action(key).tolist() for key in "dddwa s"] == [
        [1, 0],
        [2, 0],
        [2, 0],
        [2, 1],
        [1, 1],
        [1, 1],
        [1, 0],
    ]
    with pytest.raises(ValueError, match="not enough keys for actions of 9 entries"):
        Keyboard(ActionSpec((9,), low=(-1.0,) * 9, high=(1.0,) * 9))
    with pytest.raises(ValueError, match="1 entries of 40 values"):
        Keyboard(ActionSpec((), classes=(40,)))


def test_a_picture_becomes_half_blocks_of_its_colours() -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    picture[:2], picture[2:] = (10, 20, 30), (40, 50, 60)
    (line,) = blocks(picture, columns=2).split("\n")
    assert line.count("▀") == 2 and line.count("38;2;10;20;30") == 2 and line.count("48;2;40;50;60") == 2


def test_what_is_played_is_what_the_model_imagines(run: Any, tmp_path: Path) -> None:
    """The film has a frame for the start and for every step; keys without a meaning pass; the agent can be asked."""
    seen: list[tuple[int, float]] = []
    path = play(run, "dd?p n aq dd", seed=3, show=lambda dream, keys: seen.append((dream.step, dream.reward)))
    assert path == run.folder / "media" / "play.webm"
    assert [step for step, _ in seen] == [0, 1, 2, 3, 4, 0, 1, 2]
    film, frames = cv2.VideoCapture(str(path)), 0
    while film.read()[0]:
        frames += 1
    assert frames == 8
    dream = Dream(run, 3)
    dream.act(np.array([2.0], np.float32))
    assert dream.reward == pytest.approx(seen[1][1])
    assert dream.frames[0].shape == dream.frames[1].shape and dream.frames[0].shape[0] > BAR


def test_it_repeats_itself_and_leaves_the_random_state(run: Any) -> None:
    def rewards(keys: str, seed: int) -> list[float]:
        found: list[float] = []
        play(run, keys, seed, lambda dream, _: found.append(dream.total))
        return found

    torch.manual_seed(0)
    first = rewards("aad", 1)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))
    assert rewards("aad", 1) == first and rewards("aad", 2) != first and rewards("ddd", 1) != first


def test_keys_are_piped_to_the_command(run: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("ad\nq\n"))
    assert main(["play", str(run.folder)]) == 0
    keys, first, second, path = capsys.readouterr().out.splitlines()
    assert (
        "a: move entry 0 down. d: move it up. Space: take a step with no action." in keys
        and first.startswith("step    1  reward")
        and second.startswith("step    2")
    )
    assert path.endswith("play.webm")


def test_it_begins_at_a_recorded_step(run: Any) -> None:
    """In the state inferred of that step and those before it, again and again."""

    def states(step: int) -> tuple[Any, Any, Any]:
        torch.manual_seed(0)
        dream = Dream(run, 0, start=step)
        first = dream.env.many.state
        dream.act(np.array([2.0], np.float32))
        dream.anew()
        torch.manual_seed(0)
        return first, dream.env.many.state, state_at(run, step)

    for first, again, inferred in (states(7), states(40)):
        for one, two, three in zip(first, again, inferred, strict=True):
            assert torch.equal(one, three) and torch.equal(two, three)
    assert not torch.equal(states(7)[0].deter, states(40)[0].deter)
    with pytest.raises(ValueError, match="holds the steps 0 to"):
        Dream(run, 0, start=10_000)


def test_a_recorded_step_of_a_later_stream_has_its_own_past(tmp_path: Path) -> None:
    run = train({**TINY, "env": {"id": "Pendulum-v1", "num_envs": 2}}, run=tmp_path / "run")
    first = int(run.replay.storage.stored[0])  # of the second stream
    for step, seen in ((first - 1, 4), (first, 1), (first + 1, 2), (first + 5, 4)):
        assert run.replay.history(step, 4).slot.shape == (1, seen)
        state_at(run, step)
    assert (run.replay.history(first, 4).env == 1).all()


def test_a_model_that_decodes_nothing_cannot_be_seen(tmp_path: Path, capsys: Any) -> None:
    changes = {
        "env": {"id": "Pendulum-v1", "pixels": True, "image_size": 32},
        "model": {**TINY["model"], "image_depth": 2, "images": "redundancy"},
    }
    folder = train({**TINY, **changes}, run=tmp_path / "run").folder
    assert main(["play", str(folder)]) == 2
    assert "nothing to see. Train a model with model.images: reconstruction" in capsys.readouterr().err


def test_a_film_is_left_whatever_ends_the_game(run: Any) -> None:
    def keys() -> Any:
        yield from "ad"
        raise KeyboardInterrupt

    (run.folder / "media" / "play.webm").unlink(missing_ok=True)
    with pytest.raises(KeyboardInterrupt):
        play(run, keys(), show=lambda dream, _: None)
    assert (run.folder / "media" / "play.webm").stat().st_size > 0


def test_an_episode_that_has_ended_is_begun_anew(tmp_path: Path) -> None:
    run = train({**TINY, "env": {"id": "CartPole-v1"}}, run=tmp_path / "run")
    with torch.no_grad():  # as if every step ended it
        for parameter in run.model.cont.parameters():
            parameter.zero_()
        run.model.cont.last.bias.fill_(-50.0)
    seen: list[tuple[int, bool]] = []
    play(run, "1010", show=lambda dream, _: seen.append((dream.step, dream.over)))
    assert seen == [(0, False), (1, True), (0, False), (1, True), (0, False)]
