"""kill -9 at a hundred random moments, and the same end as of a run that nobody killed."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from worldmodel.training.config.schema import dump_yaml, merge
from worldmodel.training.logging.logger import REPOSITORY

WATCHED = Path(__file__).with_name("watched.py")
PHASES = ("starting", "between", "collection", "update", "checkpoint", "evaluation")  # as in watched.py
KILLS = 100
CONFIG: dict[str, Any] = {
    "seed": 4,
    "env": {"id": "Pendulum-v1", "time_limit": 30, "num_envs": 2},
    "model": {"hidden": 8, "latent": {"size": 4}, "dynamics": {"rssm": {"deter": 8, "hidden": 8}}},
    "behaviour": {"actor_critic": {"hidden": 8, "starts": 4, "horizon": 2}},
    "replay": {"batch_size": 2, "window": 4},
    "training": {"steps": 400, "prefill": 20, "pretrain": 2, "replay_ratio": 3, "log_every": 10},
    "evaluation": {"every": 40, "episodes": 2, "final_episodes": 2},
    "logger": {"wandb": "disabled"},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "memory": {},
    "disk": {"replay": {"disk": True, "online": True, "context": True}},
    "ring": {"replay": {"capacity": 100}},
}


class Run:
    """A run in a folder, trained by processes of its own.

    Args:
        phase: the file in which they say what they are doing.
    """

    def __init__(self, folder: Path, config: Path, phase: Path) -> None:
        self.folder, self.config, self.phase = folder, config, phase

    def start(self) -> subprocess.Popen[bytes]:
        """Begin it, or go on with it."""
        self.phase.write_bytes(b"\0")
        begun = (self.folder / "config.yaml").is_file()
        what = ["--resume", str(self.folder)] if begun else [str(self.config), "--run", str(self.folder)]
        environ = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(WATCHED), str(self.phase), "train", *what]
        with self.folder.with_suffix(".log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environ)

    def ended(self, process: "subprocess.Popen[bytes]") -> None:
        """Let it end by itself: well, or with the word that it had, if it was killed after its last checkpoint."""
        log = self.folder.with_suffix(".log")
        assert process.wait() == 0 or "has taken 400 steps" in log.read_text().splitlines()[-1], log.read_text()

    def doing(self) -> str:
        return PHASES[self.phase.read_bytes()[0]]

    def kill(self, chance: random.Random) -> str | None:
        """Go on until a random moment, in one of the phases or at any time; what was killed, None if it ended first."""
        wanted = chance.choice((None, None, *PHASES))
        with self.start() as process:
            until = time.monotonic() + chance.uniform(0, 8)
            while process.poll() is None and (time.monotonic() < until if wanted is None else self.doing() != wanted):
                if wanted is None:
                    time.sleep(0.001)
            if wanted is not None:  # the next of its moments in some of these, or the very first
                time.sleep(chance.choice((0, chance.uniform(0, 0.003), chance.uniform(0, 2))))
            if process.poll() is not None:
                self.ended(process)
                return None
            doing = self.doing()
            process.send_signal(signal.SIGKILL)
            process.wait()
        return doing


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_a_hundred_kills(tmp_path: Path, assert_same_run: Callable[[Path, Path], None]) -> None:
    """Ten kills at most to a run, by turns with a replay in memory, on the disk, and full; 100 of 100 end the same."""
    chance, killed, runs = random.Random(0), Counter[str](), 0
    whole = {}
    for name, changes in VARIANTS.items():
        config = tmp_path / f"{name}.yaml"
        config.write_text(dump_yaml(merge(CONFIG, changes)))
        whole[name] = Run(tmp_path / f"whole-{name}", config, tmp_path / "phase")
        assert whole[name].start().wait() == 0, whole[name].folder.with_suffix(".log").read_text()
    while killed.total() < KILLS:
        name = list(VARIANTS)[runs % len(VARIANTS)]
        run = Run(tmp_path / f"{name}-{runs}", whole[name].config, tmp_path / "phase")
        ended = False
        for _ in range(min(10, KILLS - killed.total())):
            doing = run.kill(chance)
            ended = doing is None
            if doing is None:
                break
            killed[doing] += 1
        if not ended:
            run.ended(run.start())
        assert_same_run(whole[name].folder, run.folder)
        runs += 1
    print(f"\n{killed.total()} kills in {runs} runs, all of which ended the same: {dict(killed)}")
    assert killed.total() == KILLS and all(killed[phase] for phase in PHASES if phase != "between"), killed
