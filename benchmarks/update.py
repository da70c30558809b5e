"""Seconds of one update of DreamerV3, ours and that of others, in turns on one machine.

    python benchmarks/update.py --sizes S M V3-1m V3-12m --threads 1 2 --out results/update.csv
    python benchmarks/update.py --sizes S M --threads 1 2 --peers peers/bin/python --out results/update_peers.csv
    python benchmarks/update.py --sizes S --pixels --peers peers/bin/python --out results/update_pixels.csv
    python benchmarks/update.py --sizes S --busy --out results/update_busy.csv
    python benchmarks/update.py --device cuda --sizes V3-12m --compile off step update --precision bfloat16 \
        --out results/update_cuda_bfloat16.csv

An update is all of one: batch 16 x 64, model, 15 steps imagined from each of the 1,024 states, actor and critic, their
gradients, clipping, optimizer (see benchmarks/update_ours.py; the others: benchmarks/update_peers.py, which says how
their environment is made). Beside others the critic learns from imagined states alone, as theirs do. Everyone has a
process of their own and takes turns, ours one for each value of `--compile`, so that a machine that becomes slower
becomes so for all; `ratio` to the row of ours above is that of the medians of one turn, in the median. With
`--precision` the others stay in float32. `share` is the part of the machine's own matrix products, measured in between
on as many threads and in float32, that ours reaches. `parts` go to NAME_parts.csv. With `--busy` another process
multiplies matrices on one thread all the time.
"""

import argparse
import csv
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
OURS, PEERS = "worldmodel", ("torchrl", "sheeprl")
COLUMNS = [
    "size",
    "input",
    "gradient",
    "device",
    "threads",
    "compile",
    "precision",
    "busy",
    "who",
    "parameters",
    "gflop",
    "seconds",
    "least",
]
COLUMNS += ["most", "cpu_seconds", "ratio", "peak_gflops", "share", "peak_mb", "first_seconds"]


class Worker:
    """A process that makes updates when it is told to, and otherwise sleeps."""

    def __init__(self, who: str, command: list[str], threads: int) -> None:
        self.who = who
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        environment["PYTHONPATH"] = str(HERE.parent)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.told = self.hear()
        self.wall: list[list[float]] = []  # of each turn
        self.cpu: list[float] = []

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.who} ended before it answered: exit code {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, what: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self.hear()

    def turn(self, updates: int) -> None:
        taken = self.ask(f"update {updates}" if self.who == OURS else str(updates))
        self.wall.append(taken["wall"])
        self.cpu += taken["cpu"]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def workers(options: argparse.Namespace, size: str, threads: int) -> tuple[dict[str, Worker], list[Worker]]:
    """Ours by its `learner.compile`, and those of others where they have that size."""
    asked = ["--size", size, "--threads", str(threads), "--device", options.device]
    asked += ["--gradient", options.gradient, *(["--pixels"] if options.pixels else [])]
    command = [sys.executable, str(HERE / "update_ours.py"), *asked]
    command += ["--precision", options.precision, *(["--replay-value", "0"] if options.peers else [])]
    ours = {mode: Worker(OURS, [*command, "--compile", mode], threads) for mode in options.compile}
    if not options.peers:
        return ours, []
    theirs = [options.peers, str(HERE / "update_peers.py")]
    return ours, [Worker(name, [*theirs, name, *asked, "--cell", "gru"], threads) for name in PEERS]


def measured(options: argparse.Namespace, size: str, threads: int) -> list[dict[str, Any]]:
    """A row of ours in each way of compiling, and after each what others took in the same turns."""
    ours, others = workers(options, size, threads)
    first_of_ours, peaks = next(iter(ours.values())), []
    for _ in range(options.rounds):
        for worker in (*ours.values(), *others):
            worker.turn(options.updates)
        peaks.append(first_of_ours.ask("peak")["gflops"])
    common = {"size": size, "input": "pixels" if options.pixels else "vector", "gradient": options.gradient}
    common |= {
        "precision": options.precision,
        "device": device_name(options.device),
        "threads": threads,
        "busy": int(options.busy),
    }
    rows, peak = [], statistics.median(peaks)
    for mode, worker in ours.items():
        first = {**common, "compile": mode, **row(worker, worker), "peak_gflops": peak}
        first |= {"peak_mb": worker.ask("memory")["peak_mb"], "first_seconds": worker.told["first"]}
        if mode == "off":
            first["share"] = first["gflop"] / first["seconds"] / peak
        if mode == "off" and options.gradient == "score" and options.precision == "float32":
            first["parts"] = worker.ask(f"parts {options.updates}")
        plain = {**common, "compile": mode, "precision": "float32"}
        rows += [first, *({**plain, **row(other, worker)} for other in others)]
    for worker in (*ours.values(), *others):
        worker.close()
    return rows


def row(worker: Worker, ours: Worker) -> dict[str, Any]:
    """What one of them took."""
    turns, compared = ([statistics.median(turn) for turn in each.wall] for each in (worker, ours))
    ratios = [theirs / our for theirs, our in zip(turns, compared, strict=True)]
    told = {"who": worker.who, "parameters": worker.told["parameters"], "gflop": worker.told.get("gflop")}
    told |= {"seconds": statistics.median(turns), "least": min(turns), "most": max(turns)}
    return {**told, "cpu_seconds": statistics.median(worker.cpu), "ratio": statistics.median(ratios)}


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device.startswith("cuda") else device


def multiply() -> None:
    """Until it is ended."""
    torch.set_num_threads(1)
    left, right = torch.randn(2, 512, 512)
    while True:
        torch.mm(left, right)


def short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["S"], help="S, M, V3-1m, V3-12m; default: S")
    parser.add_argument("--pixels", action="store_true", help="64 x 64 in three colours instead of three numbers")
    parser.add_argument("--threads", nargs="+", type=int, default=[1], help="of torch; default: 1")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", nargs="+", default=["off"], help="values of learner.compile; default: off")
    parser.add_argument("--precision", default="float32", help="value of learner.precision; default: float32")
    parser.add_argument("--peers", metavar="PYTHON", help="the interpreter of an environment that has the others")
    parser.add_argument("--gradient", default="score", help="of the actor: score, or pathwise; default: score")
    parser.add_argument("--busy", action="store_true", help="with one other process that computes all the time")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each; default: %(default)s")
    parser.add_argument("--updates", type=int, default=3, help="updates in a turn; default: %(default)s")
    parser.add_argument("--out", type=Path, required=True, help="the CSV to write")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    other = multiprocessing.get_context("spawn").Process(target=multiply, daemon=True)
    if options.busy:
        other.start()
    parts_file = options.out.with_name(f"{options.out.stem}_parts.csv")
    with options.out.open("w", newline="") as file, parts_file.open("w", newline="") as below:
        table, parts = csv.DictWriter(file, COLUMNS, extrasaction="ignore"), csv.writer(below)
        table.writeheader()
        parts.writerow(("size", "input", "threads", "part", "seconds"))
        for size, threads in [(size, threads) for size in options.sizes for threads in options.threads]:
            rows = measured(options, size, threads)
            for each in rows:
                table.writerow({key: short(value) for key, value in each.items()})
                print(
                    "  ".join(f"{key} {short(each[key])}" for key in COLUMNS if each.get(key) is not None), flush=True
                )
                for part, seconds in each.get("parts", {}).items():
                    parts.writerow((size, each["input"], threads, part, short(seconds)))
            file.flush()
    if options.busy:
        other.terminate()


if __name__ == "__main__":
    main()
