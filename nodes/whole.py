"""Networks of other libraries (diffusers, transformers) under core's memory management.

Their layers are plain torch.nn: they cannot be cast or fetched where they are used, as core's own layers can. So such a
network is used whole, on its own device, whatever ComfyUI was told about its memory.
"""

from __future__ import annotations

import comfy.model_management
import comfy.model_patcher
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn


class WholeNetwork(nn.Module):
    """What such a patcher holds: core writes `device` on it, which both libraries define as read-only."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network


def whole_patcher(
    network: nn.Module, load_device: torch.device, offload_device: torch.device
) -> ModelPatcher:
    """The patcher of such a network, of the kind that core uses for its own: main.py exchanges it at the start."""
    kind = getattr(comfy.model_patcher, "CoreModelPatcher", ModelPatcher)  # absent in 0.8
    return kind(WholeNetwork(network), load_device=load_device, offload_device=offload_device)


def load_whole(patcher: ModelPatcher, memory_required: float = 0) -> None:
    """Bring all weights to their device, with room for so many bytes of activations."""
    comfy.model_management.load_models_gpu([patcher], memory_required=memory_required, force_full_load=True)
    make_whole(patcher)


def make_whole(patcher: ModelPatcher) -> None:
    """Bring what is still elsewhere to the device of a patcher that is loaded: --novram leaves what cannot be cast at
    use where it is, and it would compute on the CPU, hundreds of times slower."""
    if any(weight.device.type != patcher.load_device.type for weight in patcher.model.parameters()):
        patcher.partially_load(patcher.load_device, extra_memory=1e32)
