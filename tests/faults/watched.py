"""The command line, with a byte in a file that says what it is doing: for the test that kills it.

python watched.py FILE train --resume RUN
"""

import mmap
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from worldmodel.training.cli import main
from worldmodel.training.loop import evaluations, loop
from worldmodel.training.loop.trainer import Trainer
from worldmodel.training.run.run import Run

PHASES = ("starting", "between", "collection", "update", "checkpoint", "evaluation")


def watch(file: Path, arguments: list[str]) -> int:
    """Run the command; while it does, the first byte of the file is a place in `PHASES`."""
    with file.open("r+b") as content:
        now = mmap.mmap(content.fileno(), 1)

    def during(phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*given: Any, **named: Any) -> Any:
            before, now[0] = now[0], PHASES.index(phase)
            try:
                return call(*given, **named)
            finally:
                now[0] = before

        return watched

    loop.Loop.run = during("between", loop.Loop.run)  # type: ignore[method-assign]
    Trainer.collect = during("collection", Trainer.collect)  # type: ignore[method-assign]
    Trainer.update = during("update", Trainer.update)  # type: ignore[method-assign]
    Run.save = during("checkpoint", Run.save)  # type: ignore[method-assign]
    Run.evaluate = during("evaluation", Run.evaluate)  # type: ignore[method-assign]
    evaluations.evaluate = during("evaluation", evaluations.evaluate)
    return main(arguments)


if __name__ == "__main__":
    sys.exit(watch(Path(sys.argv[1]), sys.argv[2:]))
