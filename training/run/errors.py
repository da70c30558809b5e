"""Errors that runs and fits share."""

import torch


def check_device(name: str, key: str = "training.device") -> None:
    """Refuse a device that torch cannot use here.

    Args:
        key: of the config, for the message.
    Raises:
        ValueError: with torch's reason.
    """
    try:
        torch.zeros(1, device=name).cpu()  # what a device without memory, as `meta`, cannot give back
    except (RuntimeError, AssertionError, ValueError) as error:  # for an unknown name, a missing build, no memory
        reason = str(error).splitlines()[0]
        raise ValueError(f"{key}: '{name}' cannot be used here ({reason}); cpu always can") from error


def diverged(
    step: int, what: str, remedy: str = "learner.lr, or learning rate of the behaviour,"
) -> FloatingPointError:
    """The error of a run whose numbers have left the finite ones."""
    return FloatingPointError(
        f"training diverged by step {step}: {what} is not finite. What was saved before stays; a lower {remedy} is "
        "the first thing to try"
    )
