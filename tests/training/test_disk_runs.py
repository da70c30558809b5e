"""A run with its replay on the disk is the same run, in less memory, and its rows survive it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from worldmodel.networks.images import ENOUGH
from worldmodel.replay.disk import Disk
from worldmodel.replay.replay import SequenceReplay
from worldmodel.training import Run, WorldModelAgent, train
from worldmodel.training.cli import main
from worldmodel.training.config.config import ConfigError, byte_count, load_config
from worldmodel.training.config.data_config import DataConfig
from worldmodel.training.config.schema import merge, to_mapping
from worldmodel.training.data.dataset_io import read
from worldmodel.training.loop import normalization
from worldmodel.training.loop import trainer as trainers
from worldmodel.training.loop.trainer import Trainer
from worldmodel.training.run.checkpoint import find
from worldmodel.types import Batch

TINY: dict[str, Any] = {
    "env": {"id": "Pendulum-v1", "time_limit": 20, "num_envs": 2},
    "model": {"hidden": 8, "image_depth": 2, "latent": {"size": 4}, "dynamics": {"rssm": {"deter": 8, "hidden": 8}}},
    "behaviour": {"actor_critic": {"hidden": 8, "starts": 4, "horizon": 2}},
    "replay": {"batch_size": 2, "window": 4, "capacity": 60, "context": True, "online": True},
    "training": {"steps": 80, "prefill": 20, "pretrain": 1, "replay_ratio": 4, "log_every": 10},
    "evaluation": {"every": 40, "episodes": 1, "final_episodes": 1},
    "logger": {"wandb": "disabled"},
}
DISK = merge(TINY, {"replay": {"disk": True}})


def same(a: Batch, b: Batch) -> bool:
    leaves = [*zip(a[1:], b[1:], strict=True), *((a.obs[key], b.obs[key]) for key in a.obs)]
    return a.obs.keys() == b.obs.keys() and all(torch.equal(x, y) for x, y in leaves)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(DISK, run=tmp_path_factory.mktemp("runs") / "disk").folder


def test_a_run_is_the_same_with_its_replay_on_the_disk(folder: Path, tmp_path: Path) -> None:
    """Bit for bit: what was learned, and what is there afterwards. The rings have been full for some time."""
    memory = train(TINY, run=tmp_path / "memory")
    for name in ("model", "behaviour"):
        ours, theirs = (
            load_file(find(one / "checkpoint")[0].folder / f"{name}.safetensors") for one in (folder, memory.folder)
        )
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    loaded = Run.load(folder)
    assert same(loaded.replay.everything(), memory.replay.everything()) and len(loaded.replay) == 60
    assert memory.replay.written[0] > 30
    held = {file.name for file in (folder / "replay").iterdir()}
    columns = {"obs%2Fobservation", "prev_action", "reward", "is_first", "is_last", "is_terminal"}
    assert held == {"replay.json", "counters", "lock", *(f"{name}.raw" for name in columns)}


def test_who_only_looks_changes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def times() -> dict[Path, int]:
        return {file: file.stat().st_mtime_ns for file in (folder / "replay").rglob("*")}

    before = times()
    assert main(["evaluate", str(folder), "--episodes", "1"]) == 0
    assert main(["imagine", str(folder), "--context", "2", "--horizon", "3", "--count", "2"]) == 0
    assert times() == before
    assert "return" in capsys.readouterr().out


def test_a_model_is_fitted_to_what_was_kept_as_to_an_archive_of_it(folder: Path, tmp_path: Path) -> None:
    run = Run.load(folder)
    run.replay.save(tmp_path / "all.npz")
    ours, archive = (read(DataConfig(file=str(source))) for source in (folder, tmp_path / "all.npz"))
    assert same(ours.rows, archive.rows) and ours.lengths.tolist() == archive.lengths.tolist()
    assert ours.rows.reward.shape[1] > 50


def test_nothing_is_written_before_a_run_begins(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", load_config(DISK))
    trainer = Trainer(run)
    assert len(run.replay) == 2 and not (tmp_path / "run").exists()
    run.begin()
    assert len(run.replay) == 2 and isinstance(run.replay.storage, Disk)
    trainer.prefill(10)
    again = SequenceReplay(run.obs_specs, run.action_spec, 2, 60)
    again.open(tmp_path / "run" / "replay")
    assert same(again.everything(), run.replay.everything()) and len(again) == 12


def test_an_agent_of_another_library_keeps_its_rows_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    agent = WorldModelAgent(DISK)
    agent.get_env()
    assert list(tmp_path.iterdir()) == []
    agent.learn(30)
    agent.save("agent")
    agent.save_replay_buffer("buffer")
    again = WorldModelAgent.load("agent")
    again.load_replay_buffer("buffer")
    assert same(again.replay_buffer.everything(), agent.replay_buffer.everything())
    again.learn(10)
    assert isinstance(again.replay_buffer.storage, Disk) and again.run.folder != agent.run.folder
    assert len(Run.load(again.run.folder).replay) == len(again.replay_buffer) > len(agent.replay_buffer)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_a_killed_run_leaves_every_row_that_it_recorded(tmp_path: Path) -> None:
    """What it recorded after its last save too, which a replay in memory loses."""
    folder, done = tmp_path / "run", merge(DISK, {"training": {"steps": 100_000}, "replay": {"capacity": 100_000}})
    command = f"from worldmodel.training import train; train({done!r}, run={str(folder)!r})"
    with subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.DEVNULL) as process:
        until = time.monotonic() + 120
        while not (folder / "checkpoint/00001").is_dir() and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(0.5)
        os.kill(process.pid, signal.SIGKILL)
    run = Run.load(folder)
    stream = run.replay.stream(0)
    assert len(run.replay) > run.env_steps >= 40
    assert torch.isfinite(stream.obs["observation"]).all()
    assert torch.allclose(stream.obs["observation"][..., :2].norm(dim=-1), torch.ones(1), atol=1e-4)  # cos and sin
    assert stream.is_first[0, ::21].all() and int(stream.is_first.sum()) == -(-stream.is_first.shape[1] // 21)


# -------------------------------------------------------------------------------------------------- units


def pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **replay: Any) -> tuple[Trainer, Callable[[], int]]:
    """A trainer of a run from pixels, and how many pictures have been read at a time, at most."""
    env = {"env": {"pixels": True, "image_size": 32}, "replay": replay}
    run = Run.create(tmp_path / "run", load_config(merge(DISK, env)))
    trainer = Trainer(run)
    run.begin()
    most, take = 0, Disk.take

    def watched(self: Disk, name: str, env: np.ndarray, slot: np.ndarray) -> np.ndarray:
        nonlocal most
        most = max(most, slot.size if name == "obs/observation" else 0)
        return take(self, name, env, slot)

    monkeypatch.setattr(Disk, "take", watched)
    return trainer, lambda: most


def test_units_of_images_come_from_some_pictures_and_are_what_all_would_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainers, "ENOUGH", 20)
    monkeypatch.setattr("worldmodel.networks.images.ENOUGH", 20)
    trainer, most = pixels(tmp_path, monkeypatch)
    trainer.prefill(58)
    assert most() == 20  # every third of 60
    model, other = trainer.run.model, Run.create(tmp_path / "other", load_config(to_mapping(trainer.config))).model
    other.fit_normalizers(trainer.run.replay.everything())
    for name, value in other.state_dict().items():
        if "normalizer" in name or "entrances" in name:
            assert torch.equal(model.state_dict()[name], value), name
    assert model.encoder.entrances[0].normalizer.taken and model.reward.output.normalizer.scale != 1  # type: ignore[union-attr]


def test_when_the_recording_has_doubled_no_picture_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, most = pixels(tmp_path, monkeypatch)
    trainer.prefill(20)
    assert most() == len(trainer.run.replay) == 22 < ENOUGH  # of so few all are taken
    for _ in range(5):
        trainer.collect(trainer.run.behaviour)
    before = trainer.run.model.state_dict()
    before = {name: value.clone() for name, value in before.items() if "normalizer" in name or "entrances" in name}
    monkeypatch.setattr(Disk, "take", _without_pictures(Disk.take))
    trainer.envs.recorder.steps = 40
    trainer.refit_normalizers(38)
    after = trainer.run.model.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert changed and all(name.startswith("reward.") for name in changed)


def _without_pictures(take: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    def refusing(self: Disk, name: str, env: np.ndarray, slot: np.ndarray) -> np.ndarray:
        assert name != "obs/observation"
        return take(self, name, env, slot)

    return refusing


def test_units_of_vectors_are_taken_from_everything_that_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.create(tmp_path / "run", load_config(TINY))
    trainer = Trainer(run)
    trainer.prefill(40)
    rows, sizes = run.replay.everything(), []
    monkeypatch.setattr(run.model, "fit_normalizers", lambda batch, keep: sizes.append(batch))
    trainer.normalization.fit(True)
    assert same(sizes[0], rows)
    monkeypatch.setattr(normalization, "ROOM", -(-len(run.replay) * run.replay.row_bytes // 3))
    trainer.normalization.fit(True)
    assert torch.equal(sizes[1].reward, rows.reward[:, ::3])


# ----------------------------------------------------------------------------------------------- capacity


@pytest.mark.parametrize(
    ("said", "meant"),
    [(8000, 8000), ("8000", 8000), ("8GB", 8 * 10**9), ("1.5 MiB", 3 * 2**19), ("2kB", 2000), ("1e3 KiB", 1024_000)],
)
def test_bytes(said: int | str, meant: int) -> None:
    assert byte_count(said) == meant
    assert load_config(merge(TINY, {"replay": {"capacity_bytes": said}})).replay.max_bytes == meant


@pytest.mark.parametrize(("wrong", "said"), [("8G", "Write 8000"), ("much", "'much'"), (-1, "-1"), (0, "at least 1")])
def test_no_bytes(wrong: int | str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"replay.*{said}"):
        load_config(merge(TINY, {"replay": {"capacity_bytes": wrong}}))


def test_the_capacity_of_a_run_in_bytes(tmp_path: Path) -> None:
    row = 3 * 4 + 4 + 4 + 3
    config = load_config(merge(TINY, {"replay": {"capacity_bytes": 20 * row}}))
    assert Run.create(tmp_path / "run", config).replay.length == 10
    config.replay.capacity_bytes = 6 * row
    with pytest.raises(ValueError, match=rf"3 steps of each of 2 .* window of 4. .*capacity_bytes.* {8 * row}"):
        Run.create(tmp_path / "run", config)


def test_a_disk_without_room_is_found_before_anything_is_written(tmp_path: Path) -> None:
    config = load_config(merge(DISK, {"replay": {"capacity": 10**9 // 2, "disk": True}, "env": {"pixels": True}}))
    with pytest.raises(ValueError, match=r"GB free\. Lower replay\.capacity"):
        Run.create(tmp_path / "run", config)
    assert not (tmp_path / "run").exists()
