"""Constants that depend on sizes and a device alone: made once, not at every call."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Generic, TypeVar

import torch

Made = TypeVar("Made")


class OnceForEach(Generic[Made]):
    """Tensors that depend on sizes and a device alone (positions, angles, fixed noise): made once for each, the last
    few of which are kept.

    They are ordinary tensors even if first asked for in inference mode, so that training can use them, too.
    """

    KEPT = 4

    def __init__(self, make: Callable[..., Made]):
        self.make = make
        self.made: dict[tuple, Made] = {}

    def __call__(self, *key) -> Made:
        if key not in self.made:
            while len(self.made) >= self.KEPT:
                del self.made[next(iter(self.made))]
            with torch.inference_mode(False), torch.no_grad():
                self.made[key] = self.make(*key)
        return self.made[key]

    def __deepcopy__(self, memo: dict) -> OnceForEach[Made]:
        return OnceForEach(
            deepcopy(self.make, memo)
        )  # a method of the copy, which need not keep the original
