"""Read recorded sequences in any of the supported formats, and divide them into parts."""

from pathlib import Path

import numpy as np

from worldmodel.replay.archive import all_rows
from worldmodel.replay.disk import MANIFEST, Disk, read_manifest
from worldmodel.replay.storage import row_bytes
from worldmodel.training.config.data_config import DATA_PARTS, MINARI, DataConfig
from worldmodel.training.data.dataset import Dataset, matching
from worldmodel.training.data.recordings import read_recording
from worldmodel.training.data.split import split
from worldmodel.training.run.folder import REPLAY_FILE, REPLAY_FOLDER
from worldmodel.validation import check_memory

COPIES_IN_MEMORY = 4  # copies of the rows that exist at once while they are turned into a dataset


def read(source: DataConfig) -> Dataset:
    """Read the sequences of `source.file`.

    It is a CSV file, an .npz file (a recording or named arrays), a run folder, or `minari:DATASET_ID`.

    Raises:
        ValueError: if the data cannot be used. The message names the file and the place in it.
    """
    if source.file is None:
        raise ValueError("data.file is missing. Name a file to learn from.")
    if source.sequence is not None and not source.file.lower().endswith(".csv"):
        raise ValueError(
            f"{source.file}: data.sequence works only with a CSV file. Leave it out. In an .npz file, the array "
            "`lengths` divides the rows into sequences."
        )
    if source.file.startswith(MINARI):
        from worldmodel.training.data.minari_data import read_minari

        return read_minari(source.file.removeprefix(MINARI), source)
    file = rows_of(Path(source.file))
    if file.is_dir():
        return read_recording(file, read_rows(file), source)
    if not file.is_file():
        raise ValueError(f"There is no file at {file}.")
    if file.suffix.lower() == ".npz":
        from worldmodel.training.data.npz_data import read_npz

        return read_npz(file, source)
    if file.suffix.lower() == ".csv":
        from worldmodel.training.data.csv_data import read_csv

        return read_csv(file, source)
    raise ValueError(f"{file}: sequences can be read from .csv, .npz, a run folder or {MINARI}DATASET_ID.")


def rows_of(file: Path) -> Path:
    """Return the place of the recorded steps in a run folder: the folder of its replay, or its archive.

    The path of a file is returned unchanged.

    Raises:
        ValueError: if `file` is a folder that holds no recorded steps.
    """
    if (file / REPLAY_FOLDER / MANIFEST).is_file():
        return file / REPLAY_FOLDER
    if not file.is_dir():
        return file
    if not (file / REPLAY_FILE).is_file():
        raise ValueError(f"{file}: this folder has no {REPLAY_FILE}. Give a run folder, or a file in it.")
    return file / REPLAY_FILE


def read_rows(folder: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a replay on the disk, in the form of an archive.

    Raises:
        ValueError: if it is damaged.
    """
    columns, num_envs, _ = read_manifest(folder)
    disk = Disk.open(folder, columns, num_envs)
    rows = num_envs * int(disk.stored.max(initial=0))
    check_memory(COPIES_IN_MEMORY * rows * row_bytes(columns), f"the rows of {folder}", "give a shorter recording")
    return all_rows(disk)


def read_parts(config: DataConfig) -> dict[str, Dataset]:
    """Read the training, validation and, if there is one, test data. Their values are not normalized.

    Raises:
        ValueError: for the reasons given at :func:`read` and :func:`split`, if the parts do not fit each other, or if a
            training sequence is shorter than the window.
    """
    everything = read(config)
    if config.rewards and not everything.from_env:
        raise ValueError(
            f"data.rewards: {everything.names[0]} has no rewards. Only recordings have them. Set data.rewards to false."
        )
    parts = divided(everything, config)
    for part in (part for part in DATA_PARTS if getattr(config, part, None) is not None):
        found = read(config.source(part))
        if config.rewards and not found.from_env:
            raise ValueError(f"data.{part}: {found.names[0]} has no rewards, but data.rewards needs them.")
        offset = everything.control_offset
        parts[part] = matching(found, everything.obs_specs, everything.control_width, f"data.{part}", offset)
    parts["train"] = long_enough(parts["train"], config)
    return {part: parts[part] for part in DATA_PARTS if part in parts}


def divided(everything: Dataset, config: DataConfig) -> dict[str, Dataset]:
    """Divide the file into the parts that have a share of it, which are those without their own source."""
    shares = {part: getattr(config.split, part) for part in DATA_PARTS if getattr(config, part, None) is None}
    return split(everything, shares, config.split.seed)


def long_enough(train: Dataset, config: DataConfig) -> Dataset:
    """Return the training sequences that are at least as long as a window.

    Raises:
        ValueError: if a sequence is too short and may not be dropped. The message names the first one.
    """
    window = 1 if config.window is None else config.window
    keep = [index for index, length in enumerate(train.lengths) if length >= window]
    if len(keep) == len(train):
        return train
    if config.drop_short and keep:
        return train.chosen(keep)
    short = next(index for index, length in enumerate(train.lengths) if length < window)
    remedy = (
        f"Set data.window to {train.lengths.max()} or less."
        if config.drop_short
        else (
            f"Set data.window to {train.lengths.min()} or less, or to null for whole sequences, or set "
            "data.drop_short to true."
        )
    )
    raise ValueError(
        f"{train.names[short]}: this sequence of {train.lengths[short]} steps is shorter than the window of {window}, "
        f"as are {len(train) - len(keep)} of {len(train)} training sequences. {remedy}"
    )
