"""Whole runs on a device, and every way between devices: acting, saving, loading, resuming, diagnosing."""

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch

from worldmodel.agents.build import BehaviourConfig
from worldmodel.envs import ImaginedVectorEnv, ReplayedStarts, make
from worldmodel.training import FitRun, Run, WorldModelAgent, fit, train
from worldmodel.training.config.config import load_config
from worldmodel.training.config.schema import load_yaml, merge
from worldmodel.training.loop.collect import collect
from worldmodel.training.loop.faults import write_report
from worldmodel.training.loop.trainer import Trainer
from worldmodel.training.report.diagnose import DiagnoseConfig, diagnose
from worldmodel.training.report.diagnosis_report import to_json
from worldmodel.training.report.imagine import ImagineConfig, imagine
from worldmodel.training.report.play import play
from worldmodel.training.start import resume

Pretended = Callable[[str], AbstractContextManager[str]]

HOME = Path(__file__).resolve().parents[2] / "configs"
PRESETS = sorted(file.relative_to(HOME).with_suffix("").as_posix() for file in HOME.rglob("*.yaml"))
BEHAVIOURS = get_args(get_type_hints(BehaviourConfig)["name"])
CLOCKS = ("seconds", "time/fps", "time_elapsed", "time/evaluation_seconds")
SIZES: dict[str, Any] = {
    "model": {
        "hidden": 8,
        "image_depth": 2,
        "latent": {"size": 4, "groups": 2, "classes": 4},
        "dynamics": {"rssm": {"deter": 8, "hidden": 8}, "dkf": {"hidden": 8}},
    },
    "learner": {"warmup": 0},
    "logger": {"wandb": "disabled"},
}
SMALL = merge(
    SIZES,
    {
        "env": {"id": "Pendulum-v1", "time_limit": 10},
        "behaviour": {
            "actor_critic": {"hidden": 8, "horizon": 2},
            "planner": {
                "horizon": 2,
                "proposals": 0,
                **{name: {"iterations": 1, "candidates": 4, "elites": 2} for name in ("cem", "icem", "mppi")},
            },
            "exploration": {"ensemble": {"hidden": 4}},
            "sb3": {"envs": 2, "horizon": 4, "steps": 8, "every": 1},
        },
        "replay": {"batch_size": 2, "window": 4, "capacity": 200},
        "training": {"steps": 28, "prefill": 24, "pretrain": 2, "replay_ratio": 1, "log_every": 10, "threads": 1},
        "evaluation": {"every": 26, "episodes": 1, "final_episodes": 1},
    },
)
COUNTER = {"env": {"id": "worldmodel/Counter-v0", "kwargs": {"length": 10, "continuous": True}, "time_limit": None}}
TINY = merge(SMALL, COUNTER)
FEW = {"behaviour": {"actor_critic": {"starts": 4}}}
PPO = {"algorithm": "PPO", "settings": {"n_steps": 4, "batch_size": 8, "n_epochs": 1}}


def _of_its_own(preset: str) -> Any:
    """A preset in a folder is another in other sizes, or for other environments: among the slow tests."""
    return pytest.param(preset, marks=[pytest.mark.slow] if "/" in preset else [])


def rows(folder: Path) -> list[dict[str, float]]:
    """The metrics of a run, but for what a clock says."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.endswith(CLOCKS)} for line in lines]


def assert_alike(one: Path, other: Path) -> None:
    """Of two run folders: the same metrics, up to rounding."""
    for row, again in zip(rows(one), rows(other), strict=True):
        assert row.keys() == again.keys()
        for name, value in row.items():
            assert again[name] == pytest.approx(value, rel=1e-2, abs=1e-2, nan_ok=True), name


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_a_run_on_a_device_is_that_on_the_cpu(behaviour: str, pretended: Pretended, tmp_path: Path) -> None:
    kind = "mps" if behaviour in ("actor_critic", "sb3") else "cuda"  # where dreams for SB3 are seeded once more
    config = merge(TINY, {"behaviour": {"name": behaviour, "sb3": PPO, **FEW["behaviour"]}})
    train(config, run=tmp_path / "cpu")
    with pretended(kind):
        made = train(merge(config, {"training": {"device": kind}}), run=tmp_path / kind)
        assert made.agent.device == torch.device(kind, 0)
        assert {parameter.device for parameter in made.behaviour.parameters()} <= {torch.device(kind, 0)}
    assert_alike(tmp_path / "cpu", tmp_path / kind)


@pytest.mark.parametrize("preset", [_of_its_own(preset) for preset in PRESETS])
def test_a_preset_learns_on_a_device(preset: str, gpu: str, tmp_path: Path) -> None:
    whole = load_yaml(HOME / f"{preset}.yaml")
    if "data" in whole:
        recorded = tmp_path / "data.npz"
        np.savez(recorded, keys=np.random.default_rng(0).integers(2, size=(8, 6, 3)))
        data = {"file": str(recorded), "observations": ["keys"], "split": {"train": 0.5, "validation": 0.5}}
        data |= {"controls": [], "rewards": False, "validation": None, "test": None, "window": 4}
        config = merge(merge(whole, SIZES), {"data": data, "fit": {"device": gpu, "updates": 1, "samples": 0}})
        assert fit(config, run=tmp_path / "run").results["validation"]["elbo"] < 0
        return
    pictures = {"pixels": True, "image_size": 32} if whole.get("env", {}).get("pixels") else {}
    short = {"n_steps": 4, "batch_size": 8} if preset.startswith("sb3_ppo") else {}
    changes = {"env": pictures, "behaviour": {"sb3": {"settings": short}}, "training": {"device": gpu}}
    made = Trainer(Run.create(tmp_path / "run", load_config(whole, **merge(SMALL, changes))))
    made.prefill(24)
    metrics, skipped = made.update()
    assert not skipped and all(value.isfinite().all() for value in metrics.values())
    made.collect(made.run.behaviour)


@pytest.mark.parametrize("preset", [None, pytest.param("dreamer_v3", marks=pytest.mark.slow)])
def test_a_run_goes_on_elsewhere_as_if_it_had_stayed(preset: str | None, pretended: Pretended, tmp_path: Path) -> None:
    """From the CPU to a device and back, with an optimizer of torch and with our own, whose moments go with it."""
    base = {} if preset is None else load_yaml(HOME / f"{preset}.yaml")
    for folder, places in {"stays": ("cpu", "cpu"), "moves": ("cuda", "cpu")}.items():
        train(merge(base, TINY if base else merge(TINY, FEW)), run=tmp_path / folder)
        for steps, place in zip((32, 36), places, strict=True):
            with pretended("cuda"):
                run = resume(tmp_path / folder, steps, place)
                assert run.agent.device.type == place
    assert_alike(tmp_path / "stays", tmp_path / "moves")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two finished runs, the second of which was trained on a device."""
    folder = tmp_path_factory.mktemp("finished")
    longer = merge(merge(TINY, FEW), {"training": {"prefill": 100, "steps": 101}, "evaluation": {"every": 1000}})
    train(longer, run=folder / "here")
    saved = (folder / "here" / "config.yaml").read_text()
    shutil.copytree(folder / "here", folder / "there")
    (folder / "there" / "config.yaml").write_text(saved.replace("device: cpu", "device: cuda"))
    return {"here": folder / "here", "there": folder / "there"}


def test_runs_of_two_devices_are_compared(finished: dict[str, Path], gpu: str, tmp_path: Path) -> None:
    """The same weights, so that nothing can differ but the samples; on a recording that neither has seen."""
    config, recording = DiagnoseConfig(2, 3, 2), tmp_path / "unseen.npz"
    collect(load_config(merge(TINY, FEW), seed=7), 100, recording)
    for one, other, place, asked in (
        ("here", "there", "cpu", None),
        ("there", "here", gpu, None),
        ("here", "here", gpu, gpu),
    ):
        found = diagnose(finished[one], recording, config, finished[other], device=asked)
        assert found.against is not None and abs(found.against.difference.mean.item()) < 1
        assert found.context.reward.device.type == place
        assert json.loads(json.dumps(to_json(found)))["horizon"] == 3


def test_what_looks_at_a_run_of_a_device(finished: dict[str, Path], gpu: str, tmp_path: Path) -> None:
    run = Run.load(finished["there"])
    assert run.agent.device.type == gpu
    assert run.evaluate(2).mean == Run.load(finished["there"], "cpu").evaluate(2).mean
    assert all(file.is_file() for file in imagine(run, ImagineConfig(context=2, horizon=3, count=2), tmp_path))
    assert play(run, "pd n", start=3).is_file()
    env = make(run.config.env)
    begin = ReplayedStarts(run.model, run.replay, 4)
    dream = ImaginedVectorEnv(run.model, env.action_space, begin, 2, 3)
    observation, _ = dream.reset(seed=0)
    assert np.isfinite(observation["observation"] if isinstance(observation, dict) else observation).all()
    dream.step(dream.action_space.sample())
    made = Trainer(run)
    made.prefill(8)
    made.update()
    assert write_report(tmp_path / "fault", made.updater) == "and the repeated update is finite"


def test_an_agent_is_saved_and_loaded_elsewhere(gpu: str, tmp_path: Path) -> None:
    agent = WorldModelAgent(merge(merge(TINY, FEW), {"training": {"device": gpu}}), run=tmp_path / "run")
    agent.learn(28)
    agent.save(tmp_path / "agent")
    observation = np.zeros((1, *agent.observation_space.shape), np.float32)
    answers = []
    for place in ("cpu", gpu):
        loaded = WorldModelAgent.load(tmp_path / "agent", device=place)
        assert loaded.device.type == place
        answers.append(loaded.predict(observation, deterministic=True)[0])
    np.testing.assert_allclose(*answers, rtol=1e-4)


def test_a_fit_on_a_device_is_that_on_the_cpu(pretended: Pretended, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = "\n".join(f"{y},{u}" for y, u in rng.normal(3, 2, (100, 2)))
    (tmp_path / "data.csv").write_text(f"y,u\n{rows}")
    data = {"file": str(tmp_path / "data.csv"), "observations": ["y"], "controls": ["u"], "window": 8}
    data["split"] = {"train": 0.5, "validation": 0.25, "test": 0.25}
    config = merge(SIZES, {"data": data, "fit": {"updates": 1, "samples": 2}})
    expected = fit(config, run=tmp_path / "cpu").results
    with pretended("cuda") as device:
        found = fit(merge(config, {"fit": {"device": device}}), run=tmp_path / device)
        for part, scores in expected.items():
            assert found.results[part] == pytest.approx(scores, rel=1e-3)
        compared = diagnose(tmp_path / device, config=DiagnoseConfig(2, 3, 2), against=tmp_path / "cpu").against
        assert compared is not None and abs(compared.difference.mean.item()) < 0.1  # the same model, in the same units
        assert imagine(FitRun.load(tmp_path / device), ImagineConfig(context=2, horizon=3, count=2))
