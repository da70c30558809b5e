"""Errors that runs and fits have in common."""

import torch


def check_device(name: str, key: str = "training.device") -> None:
    """Refuse a device that torch cannot use on this machine.

    Args:
        key: the config key of the device, for the message.
    Raises:
        ValueError: if the device cannot be used. The message gives torch's reason.
    """
    try:
        torch.zeros(1, device=name).cpu()  # also fails for a device without memory, such as `meta`
    except (RuntimeError, AssertionError, ValueError) as error:  # for an unknown name, a missing build, no memory
        reason = str(error).splitlines()[0]
        raise ValueError(f"{key}: '{name}' cannot be used here ({reason}). Use cpu instead.") from error


def diverged(
    step: int, what: str, remedy: str = "learner.lr, or learning rate of the behaviour,"
) -> FloatingPointError:
    """Return the error of a run in which a number is no longer finite."""
    return FloatingPointError(
        f"training diverged by step {step}: {what} is not finite. Everything saved before is kept. Try a lower "
        f"{remedy} first."
    )
