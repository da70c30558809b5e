"""Recorded pictures are pictures to whoever reads them, and nothing else is taken for one."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from worldmodel.replay.replay import SequenceReplay
from worldmodel.specs import ActionSpec, ObservationSpec
from worldmodel.training import fit, train
from worldmodel.training.cli import main
from worldmodel.training.config.data_config import DataConfig
from worldmodel.training.data.dataset import matching
from worldmodel.training.data.dataset_io import read
from worldmodel.training.fitting.fit_run import FitRun


def recording(file: Path | str) -> DataConfig:
    return DataConfig(str(file))


def changed(file: Path, to: Path, **arrays: np.ndarray | None) -> Path:
    """A copy of a recording with other arrays, or without one that is None."""
    with np.load(file) as saved:
        np.savez(to, **{name: array for name, array in {**dict(saved), **arrays}.items() if array is not None})
    return to


@pytest.fixture(scope="module")
def filmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pendulum in pictures."""
    folder = tmp_path_factory.mktemp("filmed")
    (folder / "config.yaml").write_text("env: {id: Pendulum-v1, pixels: true, image_size: 16, time_limit: 8}")
    assert main(["collect", str(folder / "config.yaml"), "--steps", "24", "--out", str(folder / "data.npz")]) == 0
    return folder / "data.npz"


def test_recorded_pictures_are_pictures(filmed: Path, tmp_path: Path) -> None:
    """In the file as anyone would store them, in a dataset as a model takes them, and a fit learns from them."""
    with np.load(filmed) as saved:
        pictures = saved["obs/observation"]
    assert pictures.shape == (1, 28, 16, 16, 3) and pictures.dtype == np.uint8 and pictures[0, 0].std() > 0
    data = read(recording(filmed))
    assert data.obs_specs == {"observation": ObservationSpec((16, 16, 3), image=True)}
    assert data.lengths.tolist() == [9, 9, 9] and data.rows.obs["observation"].dtype == torch.uint8
    assert np.array_equal(data.rows.obs["observation"][0].reshape(27, 16, 16, 3), pictures[0, :27])
    fitted = fit(
        {"data": {"window": 4}, "model": {"image_depth": 2}, "fit": {"updates": 1}}, filmed, run=tmp_path / "f"
    )
    assert fitted.model.image_keys == ["observation"] and np.isfinite(fitted.results["test"]["elbo"])
    assert FitRun.load(tmp_path / "f").obs_specs == data.obs_specs


def test_a_replay_on_the_disk_says_what_is_a_picture(tmp_path: Path) -> None:
    environment = {"id": "Pendulum-v1", "pixels": True, "image_size": 16, "time_limit": 8}
    training = {"steps": 16, "prefill": 16, "pretrain": 0}
    config = {"env": environment, "training": training, "replay": {"disk": True, "window": 4}}
    run = train({**config, "evaluation": {"episodes": 1, "final_episodes": 1}}, run=tmp_path / "run")
    data = read(recording(run.folder))
    assert data.obs_specs == run.obs_specs
    assert torch.equal(data.rows.obs["observation"], run.replay.everything().obs["observation"][:, : sum(data.lengths)])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda film: film[..., :2],
            "(1, 28, 16, 16, 2) and the type uint8. Images must have the shape (num_envs, steps, H, W, C)",
        ),
        (lambda film: film.transpose(0, 1, 4, 2, 3), "(1, 28, 3, 16, 16) and the type uint8. Images must"),
        (lambda film: film[..., 0], "(1, 28, 16, 16) and the type uint8. Images must"),
        (lambda film: film / np.float32(255), "(1, 28, 16, 16, 3) and the type float32. Images must"),
    ],
)
def test_what_is_no_picture(change: Any, said: str, filmed: Path, tmp_path: Path) -> None:
    with np.load(filmed) as saved:
        other = change(saved["obs/observation"])
    with pytest.raises(ValueError, match=re.escape(said)):
        read(recording(changed(filmed, tmp_path / "data.npz", **{"obs/observation": other})))


def test_pictures_of_another_shape_or_name_are_none_of_the_same_thing(filmed: Path, tmp_path: Path) -> None:
    data = read(recording(filmed))
    with np.load(filmed) as saved:
        film = saved["obs/observation"]
    wide = changed(filmed, tmp_path / "wide.npz", **{"obs/observation": film.reshape(1, 28, 8, 32, 3)})
    renamed = changed(filmed, tmp_path / "named.npz", **{"obs/observation": None, "obs/camera": film})
    for file, theirs in (
        (wide, "'observation' (images of 8 x 32 x 3)"),
        (renamed, "'camera' (images of 16 x 16 x 3)"),
    ):
        ours = "the training data observes 'observation' (images of 16 x 16 x 3)"
        said = f"observes {theirs}, but {ours}. Record it from the same"
        with pytest.raises(ValueError, match=re.escape(said)):
            matching(read(recording(file)), data.obs_specs, data.control_width, "data.test")
    assert matching(data, data.obs_specs, data.control_width, "data.test").obs_specs == data.obs_specs


def test_what_nothing_can_learn_from_is_not_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("env: {id: Pendulum-v1, pixels: true, image_size: 50}")
    assert main(["collect", str(tmp_path / "config.yaml"), "--steps", "5", "--out", str(tmp_path / "data.npz")]) == 2
    assert "50 x 50 pixels cannot be halved" in capsys.readouterr().err and not (tmp_path / "data.npz").exists()


def test_pictures_of_an_earlier_version(filmed: Path, tmp_path: Path) -> None:
    """Were flat: a model of the environment takes them, and without one nobody knows how wide they are."""
    with np.load(filmed) as saved:
        flat = saved["obs/observation"].reshape(1, 28, 768)
    file = changed(filmed, tmp_path / "flat.npz", **{"obs/observation": flat})
    with pytest.raises(ValueError, match=r"768 pixels per row, but not the width and height .* Record it again"):
        read(recording(file))
    again = SequenceReplay(read(recording(filmed)).obs_specs, ActionSpec((1,), low=(-2.0,), high=(2.0,)), 1, 28)
    again.load(file)
    assert np.array_equal(again.obs["observation"], flat)


def test_pictures_go_to_minari_and_back(filmed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    minari = pytest.importorskip("minari", reason="the optional package minari is not installed")
    assert main(["export", str(filmed), "minari:film/random-v0"]) == 0
    dataset = minari.load_dataset("film/random-v0")
    assert dataset.observation_space == spaces.Box(0, 255, (16, 16, 3), np.uint8)
    assert dataset[0].observations.shape == (9, 16, 16, 3)
    there, here = read(recording("minari:film/random-v0")), read(recording(filmed))
    assert there.obs_specs == here.obs_specs
    assert torch.equal(there.rows.obs["observation"], here.rows.obs["observation"])
