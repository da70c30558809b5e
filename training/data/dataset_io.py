"""Reading recorded sequences, whatever they are stored in, and dividing them into parts."""

from pathlib import Path

import numpy as np

from worldmodel.replay.archive import all_rows
from worldmodel.replay.disk import MANIFEST, Disk, read_manifest
from worldmodel.replay.storage import row_bytes
from worldmodel.training.config.data_config import MINARI, PARTS, DataConfig
from worldmodel.training.data.dataset import Dataset, matching
from worldmodel.training.data.recordings import read_recording
from worldmodel.training.data.split import split
from worldmodel.validation import check_memory

ROWS, REPLAY = Path("replay"), Path("replay/replay.npz")  # in a run folder: a replay on the disk, or one in memory
COPIES = 4  # of rows that are in the memory at once while they become a dataset


def read(source: DataConfig) -> Dataset:
    """The sequences of `source.file`: a CSV, an .npz (ours or arrays by name), a run folder, `minari:DATASET_ID`.

    Raises:
        ValueError: naming the file and the place in it, for anything that cannot be learned from.
    """
    if source.file is None:
        raise ValueError("data.file: name a file to learn from")
    if source.sequence is not None and not source.file.lower().endswith(".csv"):
        raise ValueError(f"{source.file}: data.sequence is a column of a CSV: leave it out; .npz has `lengths`")
    if source.file.startswith(MINARI):
        from worldmodel.training.data.minari_data import read_minari

        return read_minari(source.file.removeprefix(MINARI), source)
    file = rows_of(Path(source.file))
    if file.is_dir():
        return read_recording(file, read_rows(file), source)
    if not file.is_file():
        raise ValueError(f"no file at {file}")
    if file.suffix.lower() == ".npz":
        from worldmodel.training.data.npz_data import read_npz

        return read_npz(file, source)
    if file.suffix.lower() == ".csv":
        from worldmodel.training.data.csv_data import read_csv

        return read_csv(file, source)
    raise ValueError(f"{file}: sequences are read from .csv, .npz, a run folder or {MINARI}DATASET_ID")


def rows_of(file: Path) -> Path:
    """Where the recorded steps of a run folder are, the folder of a replay on the disk or an archive; a file itself.

    Raises:
        ValueError: if it is another folder.
    """
    if (file / ROWS / MANIFEST).is_file():
        return file / ROWS
    if not file.is_dir():
        return file
    if not (file / REPLAY).is_file():
        raise ValueError(f"{file}: a folder without {REPLAY}: give a run folder, or a file in it")
    return file / REPLAY


def read_rows(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a replay on the disk, as an archive of it would hold them.

    Raises:
        ValueError: if it is damaged.
    """
    columns, num_envs, _ = read_manifest(folder)
    disk = Disk.open(folder, columns, num_envs)
    rows = num_envs * int(disk.stored.max(initial=0))
    check_memory(COPIES * rows * row_bytes(columns), f"the rows of {folder}", "give a shorter recording")
    return all_rows(disk)


def read_parts(config: DataConfig) -> dict[str, Dataset]:
    """Training, validation and, where there is one, test data, in units as they were recorded.

    Raises:
        ValueError: as :func:`read` and :func:`split` say, if parts do not fit each other, or a training sequence is
            shorter than the window.
    """
    everything = read(config)
    if config.rewards and not everything.from_env:
        raise ValueError(f"data.rewards: {everything.names[0]} holds no rewards, only recordings do")
    parts = divided(everything, config)
    for part in (part for part in PARTS if getattr(config, part, None) is not None):
        found = read(config.source(part))
        if config.rewards and not found.from_env:
            raise ValueError(f"data.{part}: {found.names[0]} holds no rewards, which data.rewards asks for")
        offset = everything.control_offset
        parts[part] = matching(found, everything.obs_specs, everything.control_width, f"data.{part}", offset)
    parts["train"] = long_enough(parts["train"], config)
    return {part: parts[part] for part in PARTS if part in parts}


def divided(everything: Dataset, config: DataConfig) -> dict[str, Dataset]:
    """The parts that have a share of the file, not a source of their own."""
    shares = {part: getattr(config.split, part) for part in PARTS if getattr(config, part, None) is None}
    return split(everything, shares, config.split.seed)


def long_enough(train: Dataset, config: DataConfig) -> Dataset:
    """The training sequences that a window fits into.

    Raises:
        ValueError: naming the first that is too short, unless it may be dropped.
    """
    window = 1 if config.window is None else config.window
    keep = [index for index, length in enumerate(train.lengths) if length >= window]
    if len(keep) == len(train):
        return train
    if config.drop_short and keep:
        return train.chosen(keep)
    short = next(index for index, length in enumerate(train.lengths) if length < window)
    remedy = (
        f"set data.window to {train.lengths.max()} or less"
        if config.drop_short
        else (
            f"set data.window to {train.lengths.min()} or less, to null for whole sequences, or data.drop_short to true"
        )
    )
    raise ValueError(
        f"{train.names[short]}: a sequence of {train.lengths[short]} steps is shorter than the window of {window} "
        f"({len(train) - len(keep)} of {len(train)} training sequences are): {remedy}"
    )
