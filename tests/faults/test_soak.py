"""200,000 steps of collection and 20,000 updates: memory and open files stay what they were."""

import os
import resource
from pathlib import Path
from typing import Any

import pytest

from worldmodel.training import train
from worldmodel.training.loop import loop as loops

STEPS, UPDATES = 200_000, 20_000
WARM = STEPS // 4  # environment steps after which nothing may grow
CONFIG: dict[str, Any] = {
    "env": {"id": "Pendulum-v1", "num_envs": 8},
    "model": {"hidden": 16, "latent": {"size": 4}, "dynamics": {"rssm": {"deter": 16, "hidden": 16}}},
    "behaviour": {"actor_critic": {"hidden": 16, "starts": 16, "horizon": 5}},
    "replay": {"batch_size": 8, "window": 8, "capacity": 20_000},
    "training": {
        "steps": STEPS,
        "prefill": 200,
        "pretrain": 0,
        "replay_ratio": 64 * UPDATES / STEPS,
        "log_every": 1000,
    },
    "evaluation": {"every": 10_000, "episodes": 2, "final_episodes": 2},
    "logger": {"wandb": "disabled"},
}


def resident() -> int:
    """Bytes of this process that lie in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """(environment steps, resident bytes, open files) at each row of the log, while a run trains."""
    found: list[tuple[int, int, int]] = []
    log = loops.Loop.log

    def watched(loop: Any) -> None:
        log(loop)
        found.append((loop.steps, resident(), len(os.listdir("/proc/self/fd"))))

    monkeypatch.setattr(loops.Loop, "log", watched)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs /proc")
@pytest.mark.parametrize("disk", [False, True])
def test_a_long_run_grows_in_nothing(disk: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replay full after a tenth of it, checkpoints, evaluations and logs included."""
    found = measured(monkeypatch)
    run = train({**CONFIG, "replay": {**CONFIG["replay"], "disk": disk}}, run=tmp_path / "run")
    updates = run.behaviour.updates  # type: ignore[union-attr]
    warm = [(memory, files) for steps, memory, files in found if steps >= WARM]
    fifth = len(warm) // 5
    first, last = (sum(memory for memory, _ in part) / fifth for part in (warm[:fifth], warm[-fifth:]))
    print(
        f"\n{run.env_steps} steps, {updates} updates, replay {'on the disk' if disk else 'in memory'}: "
        f"{first / 2**20:.1f} MiB, then {last / 2**20:.1f} MiB ({last / first - 1:+.2%}), {warm[-1][1]} open files"
    )
    assert run.env_steps >= STEPS and updates >= UPDATES - 200
    assert last / first < 1.02
    assert len({files for _, files in warm}) == 1
