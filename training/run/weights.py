"""Weights on disk, as safetensors. A file is replaced in one step, and reading it executes no code."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn


def write_bytes_atomic(path: Path, content: bytes) -> None:
    """Write a file so that a reader finds either the old or the new content, even after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")  # in the same folder, since a rename across disks is not atomic
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:  # the disk may be full: free the space that the partial file takes
        partial.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Wait until the file names in a folder have reached the disk, on systems that support this."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_new_text(path: Path, text: str) -> None:
    """Create a new file with all of its content, or not at all. If two processes try, one succeeds.

    Raises:
        FileExistsError: if the file exists.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    write_text_atomic(partial, text)
    try:
        os.link(partial, path)
    except FileExistsError:
        raise
    except OSError:  # a disk without hard links
        with path.open("x") as file:
            file.write(text)
    finally:
        partial.unlink()


def write_text_atomic(path: Path, text: str) -> None:
    """Write UTF-8 text with :func:`write_bytes_atomic`."""
    write_bytes_atomic(path, text.encode())


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors, atomically."""
    # Clone: safetensors refuses tensors that share memory, such as tied parameters and views.
    own = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    write_bytes_atomic(path, save(own))


def load_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Read back what :func:`save_tensors` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a safetensors file. No code in it is executed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        return load_file(path, device=str(device))
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file, or incomplete: {error}") from error


def save_module(path: Path, module: nn.Module) -> None:
    """Write the parameters and buffers of `module`, atomically."""
    save_tensors(path, module.state_dict())


def load_module(path: Path, module: nn.Module) -> None:
    """Copy saved weights into `module`, which may be on any device.

    Raises:
        ValueError: if names or shapes differ. `module` is then unchanged.
    """
    saved = {_current_name(name): tensor for name, tensor in load_tensors(path).items()}
    misfits = _misfits(saved, module.state_dict())
    if misfits:
        shown = "\n  ".join(misfits[:10] + ([f"... and {len(misfits) - 10} more"] if len(misfits) > 10 else []))
        raise ValueError(f"{path}: these weights do not fit this {type(module).__name__}:\n  {shown}")
    module.load_state_dict(saved)


def _current_name(saved: str) -> str:
    """Translate a name of weights that were saved before normalizers were called so."""
    return saved.replace("encoder.units.", "encoder.entrances.").replace(".units.", ".normalizer.")


def _misfits(saved: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> list[str]:
    wrong = [
        f"{name}: shape {tuple(saved[name].shape)} in the file, {tuple(tensor.shape)} in the module"
        for name, tensor in ours.items()
        if name in saved and saved[name].shape != tensor.shape
    ]
    missing = [f"{name}: missing in the file" for name in ours if name not in saved]
    unexpected = [f"{name}: in the file, but not in the module" for name in saved if name not in ours]
    return wrong + missing + unexpected
