"""What a GPU would have to launch, and where it would have to wait, counted without one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

SYNCHRONISES = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim",
    "aten::unique_consecutive", "aten::bincount", "aten::equal", "aten::repeat_interleave.Tensor",
}  # fmt: skip
"""Operators whose result, or whose size, the host must know before it goes on."""


class Launches(TorchDispatchMode):
    """Counts the operators that are run inside; those that only look at memory in another way launch nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()
        self._is_paused = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Counts nothing in the block."""
        before, self._is_paused = self._is_paused, True
        yield
        self._is_paused = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = {each.untyped_storage().data_ptr() for each in pytree.tree_leaves((args, kwargs)) if _is_tensor(each)}
        found = func(*args, **kwargs)
        is_in_place = any(each.alias_info is not None and each.alias_info.is_write for each in func._schema.arguments)
        made = [each for each in pytree.tree_leaves(found) if _is_tensor(each)]
        is_new = any(each.untyped_storage().data_ptr() not in before for each in made) or not made
        if (is_in_place or is_new) and not self._is_paused:
            overload = func._schema.overload_name
            self.operators[f"{func._schema.name}.{overload}" if overload else func._schema.name] += 1
        return found

    @property
    def count(self) -> int:
        """Operators that launch something."""
        return self.operators.total()

    @property
    def waits(self) -> int:
        """Operators for which the host would wait."""
        return sum(
            count
            for name, count in self.operators.items()
            if name in SYNCHRONISES or name.split(".")[0] in SYNCHRONISES
        )


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)
