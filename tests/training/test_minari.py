"""Datasets as Minari gives them, without Minari."""

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from worldmodel.training.config.data_config import DataConfig
from worldmodel.training.data.dataset_io import read


class Held:
    """What Minari gives of a dataset with an observation that no model takes."""

    action_space = spaces.Discrete(2, start=1)

    def __init__(self, observation_space: spaces.Space[Any]) -> None:
        self.observation_space = observation_space

    def iterate_episodes(self) -> Any:
        obs = {"mission": ["go"] * 4, "x": np.arange(4.0)[:, None], "n": np.arange(4)}
        whole: Any = obs if isinstance(self.observation_space, spaces.Dict) else tuple(obs.values())
        rewards, ends = np.array([[1.0], [2.0], [3.0]]), np.array([[False], [False], [True]])
        yield SimpleNamespace(observations=whole, actions=np.array([1, 2, 1]), rewards=rewards, terminations=ends)


@pytest.mark.parametrize("tuples", [False, True])
def test_minari_observations_that_are_not_chosen_are_of_no_interest(
    tuples: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And rewards and ends may be columns: an array that holds one number is that number."""
    inner = {"mission": spaces.Text(9), "x": spaces.Box(-9, 9, (1,)), "n": spaces.Discrete(4)}
    space: Any = spaces.Tuple(tuple(inner.values())) if tuples else spaces.Dict(inner)
    monkeypatch.setattr(
        "worldmodel.training.data.minari_data.import_minari",
        lambda: SimpleNamespace(load_dataset=lambda name: Held(space)),
    )
    mission, x, n = ("0", "1", "2") if tuples else ("mission", "x", "n")
    dataset = read(DataConfig("minari:a/b-v0", observations=[n, x]))
    assert list(dataset.obs_specs) == [n, x] and dataset.rows.obs[x][0, :, 0].tolist() == [0, 1, 2, 3]
    assert dataset.rows.reward[0].tolist() == [0, 1, 2, 3]
    assert dataset.rows.is_terminal[0].tolist() == [False, False, False, True]
    others = re.escape(str(sorted([n, x])))
    unsupported = rf"the space of the observation '{mission}', Text.*, is not supported\."
    said = rf"{unsupported} .* data.observations, for example {others}"
    for chosen in (None, [mission, x]):
        with pytest.raises(ValueError, match=said):
            read(DataConfig("minari:a/b-v0", observations=chosen))


def test_actions_that_no_model_takes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(spaces.Dict(x=spaces.Box(-9, 9, (1,))))
    held.action_space = spaces.Text(3)  # type: ignore[assignment]
    monkeypatch.setattr(
        "worldmodel.training.data.minari_data.import_minari", lambda: SimpleNamespace(load_dataset=lambda name: held)
    )
    with pytest.raises(ValueError, match=r"minari:a/b-v0: the action space Text.* Convert the dataset"):
        read(DataConfig("minari:a/b-v0"))
