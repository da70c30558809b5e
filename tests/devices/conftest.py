"""A device that every machine has: its tensors compute on the CPU, and refuse to meet those that say they lie there.

It stands for a GPU where there is none. A line that mixes tensors of two devices fails as on a real one, and so does
one that asks for double precision, which some devices lack. Unlike fake tensors it has numbers: whole runs can act,
learn, save, resume and be diagnosed on it, and what they compute can be compared with the CPU.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode  # as in torch's own notes on how to extend it

PLACE = torch.device("meta", 7)  # what torch itself takes the device to be: one that has no numbers and no driver
WIDE = (torch.float64, torch.complex128)
MOVE = nn.Module.to
BETWEEN = ("aten::_to_copy", "aten::copy_", "aten::_foreach_copy_")  # operators whose tensors may lie apart
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")


class There(Tensor):
    """A tensor on the device; its numbers are in `held`, a tensor of the CPU."""

    held: Tensor
    kind: str
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor, kind: str) -> "There":
        about = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, device=PLACE, **about)

    def __init__(self, held: Tensor, kind: str) -> None:
        self.held, self.kind = held, kind

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device(self.kind, 0)

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        return False

    def new_tensor(self, data: Any) -> Tensor:  # type: ignore[override]
        return torch.tensor(data, dtype=self.dtype).to(self.device)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"There({self.held}, {self.kind})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} of a tensor on a pretended device, after that has gone")


class Operators(TorchDispatchMode):
    """Every operator: on the device if its tensors lie there, on the CPU if they lie there, and an error otherwise."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        there: list[There] = []
        here: list[Tensor] = []
        plain = [self._held(each, there, here) for each in args]
        named = {name: self._held(each, there, here) for name, each in (kwargs or {}).items()}
        asked, name = named.get("device"), func.name().partition(".")[0]
        if there and here and name not in BETWEEN:
            self._check(func, name, args, here)
        result = func(*plain, **(named | {"device": "cpu"} if asked == PLACE else named))
        stays = isinstance(args[0], There) if name == "aten::copy_" else bool(there)
        return self._given(result, stays if asked is None else asked == PLACE, there)

    def _held(self, value: Any, there: list[There], here: list[Tensor]) -> Any:
        """What the CPU computes with in place of an argument; its tensors are added to those of their place."""
        if isinstance(value, There):
            there.append(value)
            return value.held
        if isinstance(value, Tensor):
            here.append(value)
        return [self._held(each, there, here) for each in value] if isinstance(value, list | tuple) else value

    def _check(self, func: Any, name: str, args: Any, here: list[Tensor]) -> None:
        """Refuse tensors of two devices, but for what torch allows: single numbers, and indices, of the CPU."""
        if name in INDEXING and isinstance(args[0], There):
            return
        shapes = [tuple(each.shape) for each in here if each.dim() or torch.Tag.pointwise not in func.tags]
        if shapes:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, {self.kind}; {func} has {shapes} on cpu"
            )

    def _given(self, result: Any, on_device: bool, given: list[There]) -> Any:
        """What an operator returns; where it has changed a tensor in place, that one."""
        if isinstance(result, list | tuple):
            return type(result)(self._given(each, on_device, given) for each in result)
        if not isinstance(result, Tensor) or not on_device:
            return result
        for each in given:
            if each.held is result:
                return each
        if result.dtype in WIDE:
            raise TypeError(f"Cannot convert a tensor to {result.dtype}: {self.kind} does not support it")
        return There(result, self.kind)


class Names(TorchFunctionMode):
    """Calls that name the device, before torch looks for a driver of it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.names = (kind, f"{kind}:0")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        named = [each for each in (*args, *kwargs.values()) if type(each) in (str, torch.device)]
        if func is not torch.device and any(str(each) in self.names for each in named):
            args = tuple(self._known(each) for each in args)
            kwargs = {name: self._known(each) for name, each in kwargs.items()}
            if func in (torch.tensor, torch.as_tensor):
                return func(*args, **(kwargs | {"device": "cpu"})).to(PLACE)
        return args[0] if func is torch.Tensor.pin_memory else func(*args, **kwargs)

    def _known(self, value: Any) -> Any:
        return PLACE if type(value) in (str, torch.device) and str(value) in self.names else value


def moved_whole(module: nn.Module, *to: Any, **named: Any) -> nn.Module:
    """`Module.to`, by which a module keeps its parameters, in a way that torch knows for tensors of other classes."""
    if all(isinstance(each, There) for each in (*module.parameters(), *module.buffers())):
        return module
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return MOVE(module, *to, **named)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


@contextmanager
def pretend(kind: str) -> Iterator[str]:
    """In here `kind` is a device of this machine, and the only one of its kind; gives its name."""
    with Names(kind), Operators(kind), pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "to", moved_whole)
        # The device draws from the generator of the CPU.
        patch.setattr(torch.cuda, "get_rng_state", lambda *where: torch.get_rng_state())
        patch.setattr(torch.cuda, "set_rng_state", lambda *state: None)
        patch.setattr(torch.cuda, "manual_seed", lambda seed: None)
        patch.setattr(torch.cuda, "is_available", lambda: True)
        yield kind


@pytest.fixture
def pretended() -> Callable[[str], AbstractContextManager[str]]:
    """A device of a kind, "cuda" or "mps", for as long as a context lasts."""
    return pretend


@pytest.fixture
def gpu() -> Iterator[str]:
    """A pretended one of the commonest kind, for the whole test."""
    with pretend("cuda") as name:
        yield name


@pytest.fixture
def on_device() -> Callable[[Any, str], Any]:
    """Nested named tuples and mappings of tensors, moved."""

    def moved(tree: Any, device: str) -> Any:
        if isinstance(tree, Tensor):
            return tree.to(device)
        if isinstance(tree, dict):
            return {name: moved(each, device) for name, each in tree.items()}
        return type(tree)(*(moved(each, device) for each in tree)) if isinstance(tree, tuple) else tree

    return moved
