"""`worldmodel diagnose` as a person or a script uses it."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from worldmodel.training import fit, train
from worldmodel.training.cli import main
from worldmodel.training.fitting.fit_run import MODEL_PATH, SPECS_PATH
from worldmodel.training.fitting.scores import cell
from worldmodel.training.report.diagnose import DiagnoseConfig, diagnose
from worldmodel.training.report.diagnosis_report import (
    calibration_word,
    open_loop_verdict,
    quantity_table,
    to_json,
    verdicts,
    wilson,
)
from worldmodel.training.report.subject import open_subject
from worldmodel.training.run.run import Run

TINY: dict[str, Any] = {
    "env": {"id": "worldmodel/Counter-v0", "kwargs": {"length": 20, "continuous": True}},
    "model": {"hidden": 8, "latent": {"size": 4}, "dynamics": {"rssm": {"deter": 8, "hidden": 8}}},
    "behaviour": {"actor_critic": {"hidden": 8, "starts": 4, "horizon": 2}},
    "replay": {"batch_size": 2, "window": 4},
    "training": {"steps": 320, "prefill": 310, "pretrain": 1, "replay_ratio": 1},
    "evaluation": {"every": 1000, "episodes": 1, "final_episodes": 1},
    "logger": {"wandb": "disabled"},
}
SMALL = ["--context", "2", "--horizon", "3", "--samples", "4"]
PAIRS = list(zip(SMALL[::2], SMALL[1::2], strict=True))
FIGURES = {"foresight.png", "examples.png", "latent.png", "calibration.png"}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY))
    return str(file)


@pytest.fixture(scope="module")
def finished(config: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", config, "--run", str(folder)]) == 0
    return folder


def test_diagnose_writes_numbers_that_agree_with_what_it_prints(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as where it is not installed
    monkeypatch.delitem(
        sys.modules, "worldmodel.training.report.diagnosis_plots", raising=False
    )  # nor has been imported
    assert main(["diagnose", str(finished), *SMALL, "--json"]) == 0
    *shown, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert found == json.loads((finished / "media" / "diagnosis.json").read_text())
    assert {"latent", "actions", "open loop", "calibration"} == found["verdicts"].keys()
    assert shown[0].split(maxsplit=1) == ["latent", found["verdicts"]["latent"]]
    assert "trained on these steps" in found["seen"] and found["horizon"] == 3
    model, arx = found["open_loop"]["observation"]["model"], found["open_loop"]["observation"]["linear ARX"]
    assert len(model["nll"]) == 3 and len(model["rmse"][0]) == 2
    assert max(map(max, arx["rmse"])) < 1  # it counts, and shows the action: both are linear
    assert found["actions"]["elbo_loss"].keys() >= {"of another sequence"}
    assert any("No figures" in line and "worldmodel[plot]" in line for line in shown)


def test_diagnose_repeats_itself_and_leaves_the_random_state(finished: Path) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    results = [diagnose(finished, config=DiagnoseConfig(2, 3, 4)) for _ in range(2)]
    assert torch.equal(before, torch.random.get_rng_state())
    first, again = (each.outlooks["observation"].forecast for each in results)
    assert torch.equal(first.samples, again.samples)


def test_diagnose_draws_figures_of_another_recording(
    config: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    data = tmp_path / "data.npz"
    assert main(["collect", config, "--steps", "330", "--out", str(data), "--env.num_envs", "3"]) == 0
    assert main(["diagnose", str(finished), str(data), *SMALL, "--against", str(finished)]) == 0
    out = capsys.readouterr().out
    assert str(data) in out and "trained on these" not in out
    assert f"not clearly better or worse than {finished}" in out
    assert {file.name for file in (finished / "media").glob("*.png")} == FIGURES


def test_the_recent_part_is_held_out(finished: Path) -> None:
    stream = Run.load(finished).replay.stream(0)
    recording = open_subject(finished).read()
    assert "trained on these" in recording.seen
    length = stream.reward.shape[1]
    assert recording.train[0].reward.shape[1] == int(0.8 * length)
    assert recording.held[0].obs["observation"].tolist() == stream.obs["observation"][:, int(0.8 * length) :].tolist()


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y_t = 0.5 y_{t-1} + u_{t-1} + noise as a CSV, with a column of v_t = y_t - y_{t-1} beside it."""
    rng = np.random.default_rng(0)
    u, y = rng.normal(size=400), np.zeros(400)
    for t in range(1, 400):
        y[t] = 0.5 * y[t - 1] + u[t - 1] + 0.1 * rng.normal()
    file = tmp_path_factory.mktemp("system") / "system.csv"
    rows = zip(y, u, np.diff(y, prepend=0), 3 - y, strict=True)
    file.write_text("y,u,v,mirror\n" + "\n".join(",".join(map(str, row)) for row in rows))
    return file


def fitted(system: Path, folder: Path, **changes: Any) -> Path:
    settings = {
        "data": {"observations": ["y"], "controls": ["u"], "split": {"train": 0.6, "validation": 0.1, "test": 0.3}},
        "model": {"hidden": 8, "latent": {"size": 2}, "dynamics": {"name": "dkf", "dkf": {"hidden": 8}}},
        "fit": {"updates": 2, "batch_size": 2},
        "logger": {"wandb": "disabled"},
    }
    fit({**settings, **changes}, {**settings["data"], "file": str(system), **changes.get("data", {})}, run=folder)
    return folder


def diagnosed(folder: Path, *arguments: str) -> dict[str, Any]:
    assert main(["diagnose", str(folder), *arguments, *SMALL]) == 0
    return json.loads((folder / "media" / "diagnosis.json").read_text())


def test_a_fit_is_diagnosed_on_its_test_data(system: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fitted(system, tmp_path / "run")
    found = diagnosed(folder)
    out = capsys.readouterr().out
    assert "measured on the test data of" in out and "trained on these" not in out
    assert found["seen"] == ""
    assert max(map(max, found["open_loop"]["observation"]["linear ARX"]["rmse"])) < 0.2  # the linear baseline finds it
    assert "fitted to a part of these" in diagnosed(folder, str(system))["seen"]
    assert "measured on the test data" not in capsys.readouterr().out


def test_a_state_that_is_not_observed_is_read_off_the_latent(system: Path, tmp_path: Path) -> None:
    learns = {"fit": {"updates": 250, "batch_size": 8, "evaluate_every": 50}, "learner": {"lr": 1e-2}}
    folder = fitted(system, tmp_path / "run", **learns, objective={"free_nats": 0})
    found = diagnosed(folder, "--state", "v,mirror")["collapse"]
    assert found["linear_r2"].keys() == {"y", "v", "mirror"} and "v" not in found["explained_variance"]
    assert found["linear_r2"]["mirror"] == pytest.approx(found["linear_r2"]["y"], abs=1e-3)
    assert found["linear_r2"]["v"] < 0.5 < found["linear_r2"]["mirror"]
    assert diagnosed(folder, str(system), "--state", "mirror")["collapse"]["linear_r2"]["mirror"] > 0.5


def test_another_run_is_compared_in_its_own_units(system: Path, tmp_path: Path) -> None:
    """The same model, fitted where the controls had half the spread, explains the same rows in other units."""
    folder = fitted(system, tmp_path / "run")
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    specs = json.loads((other / SPECS_PATH).read_text())
    specs["control"] = {"loc": [0.25], "scale": [specs["control"]["scale"][0] / 2]}
    (other / SPECS_PATH).write_text(json.dumps(specs))
    weights = load_file(other / MODEL_PATH)
    old = json.loads((folder / SPECS_PATH).read_text())["control"]
    for name, value in weights.items():  # the first layers over [z, u] take the new units
        if name in ("dynamics.linear.weight", "dynamics.hidden.0.weight"):
            bias = weights[name.replace("weight", "bias")]
            bias += value[:, -1] * (0.25 - old["loc"][0]) / old["scale"][0]
            value[:, -1] /= 2
    save_file(weights, other / MODEL_PATH)
    difference = diagnosed(folder, "--against", str(other))["against"]
    assert abs(difference["mean"]) < 0.05
    assert diagnosed(other, "--against", str(folder))["against"]["mean"] == pytest.approx(0, abs=0.05)


def test_runs_are_compared_on_what_neither_has_learned_from(
    config: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each knows its own rows, under whatever name: those of its replay."""
    other, copy, fresh = tmp_path / "other", tmp_path / "copy.npz", tmp_path / "fresh.npz"
    assert main(["train", config, "--seed", "1", "--run", str(other)]) == 0
    shutil.copy(other / "replay/replay.npz", copy)
    assert main(["collect", config, "--steps", "330", "--seed", "7", "--out", str(fresh)]) == 0
    capsys.readouterr()
    for data in ([], [str(other)], [str(copy)]):
        assert main(["diagnose", str(finished), *data, "--against", str(other), *SMALL]) == 2
        said = capsys.readouterr().err
        assert (
            "--against compares runs on data that neither run was trained on" in said and "worldmodel collect" in said
        )
    found = diagnose(finished, fresh, DiagnoseConfig(2, 3, 4), against=other)
    assert found.against is not None and found.against.left_out == 0 < found.against.sequences


def test_a_fit_is_compared_without_the_rows_that_the_other_was_fitted_to(system: Path, tmp_path: Path) -> None:
    """Of 400 rows the first is tested on the last 120, of which the other has learned 40 and 40 in two parts.

    Each of these holds five windows of seven steps; one that lies over a border is of no part.
    """
    one = fitted(system, tmp_path / "one")
    other = fitted(system, tmp_path / "other", data={"split": {"train": 0.8, "validation": 0.1, "test": 0.1}})
    found = diagnose(one, config=DiagnoseConfig(2, 3, 4), against=other)
    assert found.against is not None
    windows = 120 // 7  # end to end
    assert (found.against.sequences, found.against.left_out) == (windows - 10, 10)
    assert f"on {windows - 10} sequences that neither run was trained on" in verdicts(found)["against"]
    same = diagnose(one, config=DiagnoseConfig(2, 3, 4), against=one).against
    assert same is not None and (same.sequences, same.left_out) == (windows, 0)
    whole = {"split": {"train": 0.9, "validation": 0.1, "test": 0}}
    with pytest.raises(ValueError, match=r"Of the 57 sequences in .*system.csv, one of the runs was trained on"):
        diagnose(one, system, DiagnoseConfig(2, 3, 4), against=fitted(system, tmp_path / "all", data=whole))


def test_a_member_without_dynamics_is_diagnosed_without_forecasts(
    system: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = diagnosed(fitted(system, tmp_path / "run", model={"hidden": 8, "dynamics": {"name": "vae"}}))
    assert found["open_loop"] == {} and "no dynamics" in found["verdicts"]["open loop"]
    assert found["verdicts"]["actions"].startswith(("the model ignores", "undecided"))
    assert "forecasts: RMSE" not in capsys.readouterr().out


def test_validation_data_are_not_called_unseen(system: Path, tmp_path: Path) -> None:
    split = {"train": 0.7, "validation": 0.3, "test": 0}
    assert "were chosen on these rows" in diagnosed(fitted(system, tmp_path / "run", data={"split": split}))["seen"]
    same = {"split": {"validation": 0, "test": 0}, "validation": {"observations": ["y"], "controls": ["u"]}}
    assert "fitted to the same rows" in diagnosed(fitted(system, tmp_path / "same", data=same))["seen"]


def test_calibration_is_judged_within_its_sampling_error() -> None:
    def word(share: float, count: float, outer: float = 0.95) -> str:
        return calibration_word({0.8: share, 0.95: outer}, count)

    assert [word(share, 400) for share in (0.6, 0.78, 0.95)] == ["overconfident", "calibrated", "underconfident"]
    assert [word(share, 1) for share in (0.5, 0.8, 1.0)] == ["undecided"] * 3
    assert word(0.45, 4, outer=0.58) == "seems overconfident"  # of 16 windows that overlap
    assert word(0.45, 8, outer=0.58) == "overconfident"  # though 80 % are within two standard errors of what 45 % say
    assert wilson(0.45, 8)[1] > 0.73 and word(0.45, 8) == "seems overconfident"
    # Wilson's interval solves (share - p)^2 = SURE^2 p (1 - p) / count
    low, high = wilson(0.7, 30)
    for p in (low, high):
        assert (0.7 - p) ** 2 == pytest.approx(4 * p * (1 - p) / 30)


def test_intervals_that_are_too_narrow_are_told_of_few_windows(finished: Path) -> None:
    """Of 17 windows that overlap, 58 % of the values lie in the 95 % intervals of the last step, 45 % in the inner."""
    found = diagnose(finished, config=DiagnoseConfig(2, 3, 4))
    outlook = found.outlooks["observation"]
    calm = torch.linspace(0.001, 0.999, 17).view(17, 1, 1)  # spread evenly, as of a calibrated forecast
    edge = torch.cat([torch.full((7, 1, 1), 0.999), torch.full((2, 1, 1), 0.05), torch.full((8, 1, 1), 0.5)])
    place = torch.cat([calm, edge], 1).expand(17, 2, 2)
    one = found._replace(config=DiagnoseConfig(2, 2, 4), outlooks={"observation": outlook._replace(place=place)})
    said = verdicts(one)["calibration"]
    assert said.startswith("Calibration 1 step ahead is undecided, as 17 windows are too few: ")
    assert "Forecasts 2 steps ahead seem overconfident: 47% of the values lie in the 80% intervals (" in said
    assert "at this sample size), and 59% in the 95% intervals. Too many" in said
    assert said.endswith("widen the intervals.")


def test_a_baseline_without_error_in_training_has_no_density(tmp_path: Path) -> None:
    """A column that is 0.1 in the training part, and 1.1 from then on: no Gaussian of no error explains that."""
    file = tmp_path / "switch.csv"
    rng = np.random.default_rng(0)
    rows = [f"{rng.normal():.3f},{rng.normal():.3f},{0.1 + (i > 300)}" for i in range(400)]
    file.write_text("y,u,v\n" + "\n".join(rows))
    folder = fitted(file, tmp_path / "run", data={"observations": ["v"]})
    found = diagnose(folder, config=DiagnoseConfig(2, 3, 4)).outlooks["observation"]
    assert found.scale.tolist() == [0.0]
    assert all(bool(score.nll.isnan().all()) == (name != "model") for name, score in found.scores.items())


def test_cells_keep_to_their_columns() -> None:
    assert [cell(x) for x in (222222188544.0, -1.5, float("nan"), 999999.0)] == ["2.22e+11", "-1.500", "", "999999.000"]
    assert cell(-123456.789, 4, ",") == "-123,456.7890" and cell(float("inf")) == "inf"


def test_where_much_is_observed_fewer_windows_are_compared(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that samples x windows x steps x numbers, two observed and the reward, stay within what memory holds."""
    config = DiagnoseConfig(context=3, horizon=4, samples=60)
    monkeypatch.setattr("worldmodel.training.report.diagnose.MIN_WINDOWS", 2)
    monkeypatch.setattr("worldmodel.training.report.diagnose.NUMBERS", 60 * config.sequence * (2 + 1) * 5)
    found = diagnose(finished, config=config)
    assert config.sequence == 9 and config.window == 7
    assert {len(outlook.place) for outlook in found.outlooks.values()} == {5 * 9 // 7}
    assert len(found.actions.elbo["recorded"]) == 5
    monkeypatch.setattr("worldmodel.training.report.diagnose.NUMBERS", 1)
    assert len(diagnose(finished, config=config).context.reward) == 2


def test_of_a_quantity_with_many_entries_a_table_shows_the_median(finished: Path) -> None:
    """Of what varies, by head and by map side by side."""
    found = diagnose(finished, config=DiagnoseConfig(2, 3, 4))
    many = torch.cat([torch.linspace(0, 1, 31), torch.full((9,), torch.nan)])
    probed = {"reward": torch.tensor([0.25]), "observation": many, "state": torch.full((20,), torch.nan)}
    explained = {"reward": torch.tensor([0.75]), "observation": many - 1}
    table = quantity_table(found._replace(probed=probed, collapse=found.collapse._replace(explained=explained)))
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    assert rows == [
        ("reward", "0.750", "0.250"),
        ("observation (median)", "-0.500", "0.500"),
        ("state (median)", "", "constant"),
    ]


def test_the_model_of_another_checkpoint_is_diagnosed(config: str, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "run"
    assert main(["train", config, "--run", str(folder), "--evaluation.every", "316"]) == 0
    found = []
    for checkpoint in ("1", "2", "latest"):
        assert main(["diagnose", str(folder), *SMALL, "--checkpoint", checkpoint, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert found[0]["collapse"] != found[1]["collapse"] == found[2]["collapse"]
    assert [each["env_steps"] for each in found] == [316, 320, 320]
    assert found[0]["seen"].startswith("The model was trained on the first 316 environment steps, ")
    assert found[1]["seen"].startswith("The model was trained on these steps, ")
    assert main(["diagnose", str(folder), "--checkpoint", "9"]) == 2
    assert "9" in capsys.readouterr().err


def test_the_mean_reward_is_one_of_steps_that_bring_a_reward(finished: Path) -> None:
    """A reset brings none: its row holds 0."""
    found = diagnose(finished, config=DiagnoseConfig(2, 3, 4))
    rows = found.recording.train[0]
    brought = rows.reward[~rows.is_first]
    assert len(brought) < rows.reward.numel() and brought.mean() != rows.reward.mean()
    outlook = found.outlooks["reward"]
    torch.testing.assert_close(outlook.means["train mean"][0, 0, 0], brought.mean())
    torch.testing.assert_close(outlook.scale[0], brought.std(correction=0))


def test_a_baseline_without_error_is_not_beaten(finished: Path) -> None:
    found = diagnose(finished, config=DiagnoseConfig(2, 3, 4))
    outlook = found.outlooks["observation"]
    name, exact = "repeat last", outlook.forecast.value
    perfect = outlook.scores[name]._replace(rmse=torch.zeros_like(outlook.scores[name].rmse))
    outlook = outlook._replace(scores={**outlook.scores, name: perfect}, means={**outlook.means, name: exact})
    line = verdicts(found._replace(outlooks={"observation": outlook}))["open loop"]
    assert "is worse than repeat last (whose error is 0)" in line


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (1.04, "reward is about as good as linear ARX (skill -0.04 over linear ARX)"),
        (0.96, "reward is about as good as linear ARX (skill +0.04 over linear ARX)"),
        (1.5, "reward is worse than linear ARX (skill -0.50 over linear ARX). More updates usually help."),
        (0.5, "reward is better than every baseline (skill +0.50 over linear ARX)"),
    ],
)
def test_a_model_is_warned_of_where_a_baseline_is_better_by_a_share_that_matters(
    finished: Path, ratio: float, said: str
) -> None:
    """However sure the difference is: all windows agree in it."""
    found = diagnose(finished, config=DiagnoseConfig(2, 3, 4))
    outlook = found.outlooks["reward"]
    value, scale = outlook.forecast.value, outlook.scale
    means = {name: value + size * scale for name, size in (("linear ARX", 0.1), ("train mean", 1.0))}
    scores = {name: outlook.scores[name]._replace(rmse=(means[name] - value)[0]) for name in means}
    own = value + ratio * 0.1 * scale
    scores["model"] = outlook.scores["model"]._replace(rmse=(own - value)[0])
    outlook = outlook._replace(scores=scores, means=means, forecast=outlook.forecast._replace(mean=own))
    assert said in open_loop_verdict(found._replace(outlooks={"reward": outlook}))


def test_a_report_agrees_with_itself(system: Path, tmp_path: Path) -> None:
    """Ties among few samples are broken once."""
    found = diagnose(fitted(system, tmp_path / "run"), config=DiagnoseConfig(2, 3, 2))
    assert verdicts(found) == verdicts(found) and to_json(found) == to_json(found)


@pytest.mark.parametrize(
    ("states", "message"), [("speed", "no column 'speed'"), ("v,v", "named twice: v, v"), ("v", "needs 5 sequences")]
)
def test_states_that_cannot_be_read_off(
    system: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], states: str, message: str
) -> None:
    folder = fitted(system, tmp_path / "run")
    size = ["--context", "20", "--horizon", "20"] if "needs" in message else SMALL
    assert main(["diagnose", str(folder), "--state", states, *size]) == 2
    assert message in capsys.readouterr().err


def test_constant_data_are_not_called_healthy(tmp_path: Path) -> None:
    file = tmp_path / "still.csv"
    file.write_text("y,u,v,mirror\n" + "1,0,0,0\n" * 400)
    found = diagnosed(fitted(file, tmp_path / "run"))["verdicts"]
    assert found["latent"] == "nothing varies" and "nothing varies" in found["open loop"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--horizon", "40"], "Lower --context or --horizon"),
        (["--context", "0"], "at least 1"),
        (["--samples", "1"], "at least 2"),
        (["missing.npz"], "missing.npz"),
        (["--against", "nowhere"], "nowhere holds no run"),
        (["--state", "speed"], "Here, env.record_state chooses the states"),
    ],
)
def test_diagnose_says_what_is_wrong(
    finished: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    small = [option for pair in PAIRS if pair[0] not in arguments for option in pair]
    assert main(["diagnose", str(finished), *arguments, *small]) == 2
    assert message in capsys.readouterr().err


def test_diagnose_refuses_a_recording_of_another_environment(
    config: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "other.npz"
    assert main(["collect", config, "--steps", "20", "--out", str(data), "--env.kwargs.continuous", "false"]) == 0
    assert main(["diagnose", str(finished), str(data), *SMALL]) == 2
    assert "other.npz" in capsys.readouterr().err


def test_diagnose_reads_the_recorded_state_off_the_latent_one(tmp_path: Path) -> None:
    env = {"env": {"id": "Pendulum-v1", "record_state": True}}
    run = train({**TINY, **env}, run=tmp_path / "run")
    assert list(run.obs_specs) == ["observation"]  # the state is for diagnosis alone
    run.agent.predict(np.zeros(3, np.float32))
    own = diagnose(run.folder, config=DiagnoseConfig(2, 3, 4))
    assert own.probed["simulator"].shape == (2,)
    assert float(own.probed["simulator"][1]) == pytest.approx(float(own.probed["observation"][2]))  # the velocity
    file = str(tmp_path / "more.npz")
    assert main(["collect", str(run.folder / "config.yaml"), "--steps", "200", "--out", file]) == 0
    other = diagnose(run.folder, file, DiagnoseConfig(2, 3, 4))
    assert other.probed["simulator"].shape == (2,)
    size = {"hidden": 8, "latent": {"size": 2}}
    settings = {"data": {"window": 4}, "model": size, "fit": {"updates": 2}, "logger": {"wandb": "disabled"}}
    fitted = fit(settings, file, run=tmp_path / "fit")
    assert list(fitted.obs_specs) == ["observation"]
    known = diagnose(fitted.folder, file, DiagnoseConfig(2, 3, 4), states=["simulator"]).probed
    assert known["simulator"].shape == (2,)


def test_a_model_of_whole_sequences_is_judged_from_their_beginning(system: Path, tmp_path: Path) -> None:
    """It has never begun in the middle of one: there it would seem to know nothing."""
    parts = {}
    for name in ("x", "u"):
        parts[name] = np.random.default_rng(0).normal(size=(20, 30, 1))
    file = tmp_path / "sequences.npz"
    np.savez(file, **parts)
    for window in (None, 8):
        data = {"observations": ["x"], "controls": ["u"], "window": window}
        folder = fitted(file, tmp_path / str(window), data=data)
        found = diagnose(folder, config=DiagnoseConfig(2, 3, 4))
        sequences = int(found.recording.held[0].is_first.sum())
        begins = found.context.is_first[:, 0]
        assert sequences == int(begins.sum()) > 1
        assert (len(begins) == sequences) == (window is None)


def test_a_recording_with_a_hole_is_refused(finished: Path, config: str, tmp_path: Path) -> None:
    file = tmp_path / "hole.npz"
    assert main(["collect", config, "--steps", "100", "--out", str(file)]) == 0
    with np.load(file) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays["obs/observation"][0, 7, 1] = np.nan
    np.savez(file, **arrays)
    with pytest.raises(ValueError, match=r"hole.npz, stream 1, 'obs/observation', row 8, column 2: nan"):
        diagnose(finished, file, DiagnoseConfig(2, 3, 4))


def test_a_smoother_and_a_filter_have_a_gap(system: Path, tmp_path: Path) -> None:
    folder = fitted(system, tmp_path / "filter")
    smoother = {"name": "dkf", "dkf": {"hidden": 8, "posterior": "smoother"}}
    model = {"hidden": 8, "latent": {"size": 2}, "dynamics": smoother}
    other = fitted(system, tmp_path / "smoother", model=model)
    lines = verdicts(diagnose(folder, config=DiagnoseConfig(2, 3, 4), against=other))
    assert "gap between smoother and filter" in lines["against"]
    lines = verdicts(diagnose(folder, config=DiagnoseConfig(2, 3, 4), against=folder))
    assert "gap between smoother and filter" not in lines["against"]
