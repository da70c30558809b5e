"""Numbers far from zero keep the digits that single precision lacks, or a person is told that they do not."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from worldmodel.digits import Range
from worldmodel.specs import ObservationSpec
from worldmodel.training import FitRun, Run, fit, train
from worldmodel.training.cli import main
from worldmodel.training.config.config import load_config
from worldmodel.training.config.data_config import DataConfig
from worldmodel.training.config.schema import merge
from worldmodel.training.data.dataset import matching
from worldmodel.training.data.dataset_io import read
from worldmodel.training.loop.trainer import Trainer
from worldmodel.training.report.diagnose import DiagnoseConfig, diagnose
from worldmodel.training.report.diagnosis_report import to_json

NORTH, SINCE_1970 = 5_334_012.5, 1_796_000_000.0  # metres of a map's grid, and seconds
TINY: dict[str, Any] = {
    "data": {"observations": ["y"], "controls": ["u"], "window": 5},
    "model": {"hidden": 4, "latent": {"size": 2}, "dynamics": {"name": "dkf", "dkf": {"hidden": 4}}},
    "fit": {"updates": 20, "batch_size": 4, "evaluate_every": 10},
    "logger": {"wandb": "disabled"},
}
CHOICE: dict[str, Any] = {
    "env": {"id": "worldmodel.envs.testing.probes:worldmodel/Choice-v0"},
    "model": {"hidden": 8, "latent": {"size": 4}, "dynamics": {"rssm": {"deter": 8, "hidden": 8}}},
    "behaviour": {"actor_critic": {"hidden": 8, "starts": 4, "horizon": 2}},
    "replay": {"batch_size": 2, "window": 4},
    "logger": {"wandb": "disabled"},
}


def system(length: int) -> tuple[np.ndarray, np.ndarray]:
    """y_t = 0.5 y_{t-1} + u_{t-1} + 0.1 e_t from y_1 = 0, with random u_t: (length,) each."""
    rng = np.random.default_rng(0)
    u, y = rng.normal(size=length), np.zeros(length)
    for t in range(1, length):
        y[t] = 0.5 * y[t - 1] + u[t - 1] + 0.1 * rng.normal()
    return y, u


def test_what_single_precision_blurs_is_the_range_that_holds_few_of_its_steps() -> None:
    seen = Range.of([np.array([[NORTH, SINCE_1970, 48.137, 1.0, 0.0, 7.0]])])
    seen.see(np.array([[NORTH + 3, SINCE_1970 + 600, 48.139, 1 + 2e-16, 1e-9, 7.0]]))
    assert seen.step[:2].tolist() == [0.5, 128]
    assert seen.coarse.tolist() == [True, True, True, False, False, False]
    assert seen.offset == (NORTH + 1.5, SINCE_1970 + 300, pytest.approx(48.138), 0, 0, 0)
    assert Range.of([np.array([[0.0, 5e6], [1.0, 5.1e6]])]).offset == ()  # 200,000 steps


def write(folder: Path, kind: str, far: bool) -> Path:
    """The same random walk with a control at 0, or far from it."""
    y, u = system(200)
    y, u = (NORTH + y, SINCE_1970 + u) if far else (y, u)
    file = folder / f"{'far' if far else 'near'}.{kind}"
    if kind == "csv":
        file.write_text("y,u\n" + "\n".join(f"{a!r},{b!r}" for a, b in zip(y.tolist(), u.tolist(), strict=True)))
    else:
        np.savez(file, y=y[:, None], u=u[:, None])
    return file


@pytest.mark.parametrize("kind", ["csv", "npz"])
def test_the_digits_of_a_recording_far_from_zero_are_kept(tmp_path: Path, kind: str) -> None:
    y, u = system(200)
    data = read(DataConfig(str(write(tmp_path, kind, True)), ["y"], ["u"]))
    ((key, spec),) = data.obs_specs.items()
    rows = data.everything()
    np.testing.assert_allclose(rows.obs[key][0, :, 0].double() + spec.offset[0] - NORTH, y, atol=1e-6)
    np.testing.assert_allclose(
        rows.prev_action[0, 1:, 0].double() + data.control_offset[0] - SINCE_1970, u[:-1], atol=1e-6
    )
    assert spec.labels("y") == [f"y {-spec.offset[0]:+.10g}"]
    near = read(DataConfig(str(write(tmp_path, kind, False)), ["y"], ["u"]))
    assert near.obs_specs[key].offset == near.control_offset == ()


def test_the_digits_of_a_minari_dataset_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    y, u = system(200)
    rows = {"observations": NORTH + y[:, None], "actions": np.clip(u[:-1, None], -1, 1), "rewards": np.zeros(199)}
    episode = SimpleNamespace(**rows, terminations=np.zeros(199, bool))
    box = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    kept = SimpleNamespace(
        observation_space=box, action_space=spaces.Box(-1, 1, (1,)), iterate_episodes=lambda: [episode]
    )
    monkeypatch.setitem(sys.modules, "minari", SimpleNamespace(load_dataset=lambda name: kept))
    data = read(DataConfig("minari:map/walk-v0"))
    spec = data.obs_specs["observation"]
    assert spec.offset == pytest.approx((NORTH + (y.min() + y.max()) / 2,))
    found = data.everything().obs["observation"][0, :, 0].double() + spec.offset[0] - NORTH
    np.testing.assert_allclose(found, y, atol=1e-6)


def test_other_data_are_seen_from_the_offset_of_the_training_data(tmp_path: Path) -> None:
    data = read(DataConfig(str(write(tmp_path, "csv", True)), ["y"], ["u"]))
    specs = {"observation": ObservationSpec((1,), offset=(NORTH,))}
    seen = matching(data, specs, 1, "data.test", (SINCE_1970,)).everything()
    y, u = system(200)
    np.testing.assert_allclose(seen.obs["observation"][0, :, 0], y, atol=1e-6)
    np.testing.assert_allclose(seen.prev_action[0, :, 0], np.concatenate([[0], u[:-1]]), atol=1e-6)


def test_a_series_is_fitted_as_well_far_from_zero_as_at_zero(tmp_path: Path) -> None:
    """In steps of half a metre and of two minutes the ELBO of the same weights was lower by more than a nat."""
    runs = {far: fit(TINY, write(tmp_path, "csv", far), run=tmp_path / f"run{far}") for far in (False, True)}
    for part, found in runs[False].results.items():
        assert runs[True].results[part]["elbo"] == pytest.approx(found["elbo"], abs=1e-3)
    run = FitRun.load(tmp_path / "runTrue")
    assert run.obs_specs == runs[True].obs_specs and run.control_offset == runs[True].control_offset != ()
    for part, data in run.parts().items():
        assert run.score(data).elbo == pytest.approx(run.results[part]["elbo"], abs=1e-5)
    whole = run.read(str(tmp_path / "far.csv")).everything()
    assert whole.obs["observation"].abs().max() < 10 and whole.prev_action.abs().max() < 10
    header, *rows = (tmp_path / "far.csv").read_text().splitlines()
    (tmp_path / "later.csv").write_text("\n".join([header, *rows[50:]]))
    other = fit(TINY, tmp_path / "later.csv", run=tmp_path / "other")
    assert other.obs_specs["observation"].offset != run.obs_specs["observation"].offset
    found = diagnose(tmp_path / "runTrue", config=DiagnoseConfig(2, 3, 4), against=tmp_path / "other")
    assert found.against is not None and abs(float(found.against.difference.mean)) < 1
    (name,) = to_json(found)["collapse"]["explained_variance"]
    assert name == run.obs_specs["observation"].labels("observation")[0] and name.startswith("y -5334012")


@pytest.mark.parametrize(
    ("centre", "unit", "reward", "said"),
    [
        (SINCE_1970, 40.0, 1.0, ["observation 'observation' lies between 1795999960 and 1796000040", "steps of 128"]),
        (NORTH, 1.5, 1.0, ["observation 'observation' lies between 5334011 and 5334014", "steps of 0.5"]),
        (0.0, 1.0, 1.0, []),
        (48.137, 0.1, 1e-6, []),
    ],
)
def test_a_run_says_which_digits_of_an_environment_are_lost(
    tmp_path: Path, centre: float, unit: float, reward: float, said: list[str]
) -> None:
    kwargs = {"centre": centre, "unit": unit, "reward": reward}
    trainer = Trainer(Run.create(tmp_path / "run", load_config(CHOICE | {"env": CHOICE["env"] | {"kwargs": kwargs}})))
    trainer.prefill(40)
    warnings = trainer.normalization.pop_warnings()
    assert len(warnings) == bool(said) and all(part in line for part in said for line in warnings)
    assert all("gymnasium.wrappers.TransformObservation" in line and "\n" not in line for line in warnings)
    trainer.normalization.fit(keep=True)
    assert not trainer.normalization.pop_warnings()  # told before


@pytest.mark.parametrize(
    ("output", "reward", "said"),
    [
        ("twohot", 1e-4, "value of reward so far is 0.0001, too small for a two-hot output"),
        ("twohot", 1e9, "too large for a two-hot output"),
        ("symlog", 1e-4, "too small for a symlog output"),
        ("symlog", 1e9, ""),
        ("normal", 1e-4, ""),
    ],
)
def test_a_run_says_which_rewards_an_output_without_units_cannot_tell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str, reward: float, said: str
) -> None:
    changes = {
        "env": {"kwargs": {"reward": reward}},
        "model": {"reward_output": output},
        "training": {"steps": 20, "prefill": 10, "pretrain": 0, "replay_ratio": 1},
        "evaluation": {"final_episodes": 1},
    }
    train(merge(CHOICE, changes), run=tmp_path / "run")
    told = [line for line in capsys.readouterr().err.splitlines() if "model.reward_output" in line]
    assert len(told) == bool(said) and all(said in line and "model.reward_output" in line for line in told)


def test_the_names_of_columns_stand_in_every_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    y, u = system(400)
    file = tmp_path / "tank.csv"
    rows = [f"{a},{-a},{b}" for a, b in zip(y, u, strict=True)]
    file.write_text("\n".join(["level,pressure,valve", *rows]))
    config = merge(TINY, {"data": {"observations": ["level", "pressure"], "controls": ["valve"]}})
    fit(config, file, run=tmp_path / "run")
    assert main(["diagnose", str(tmp_path / "run"), "--context", "2", "--horizon", "3", "--samples", "4"]) == 0
    told = capsys.readouterr().out
    found = json.loads((tmp_path / "run/media/diagnosis.json").read_text())
    assert list(found["collapse"]["explained_variance"]) == ["level", "pressure"]
    assert found["names"] == {"observation": ["level", "pressure"]}
    assert "level" in told and "pressure" in told and "observation[" not in told + json.dumps(found)


def test_the_largest_number_needs_no_offset() -> None:
    seen = Range(3)
    seen.see(np.array([[0.0, -3.4e38, 5.3e6], [np.finfo(np.float32).max, 3.4e38, 5.3e6 + 1]]))
    assert seen.coarse.tolist() == [False, False, True]
    assert seen.step[2] == 0.5
