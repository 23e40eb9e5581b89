"""LoRAs on a MODEL, whichever loader brings them: ours, core's, or another pack's."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.weight_adapter.base import WeightAdapterBase
from comfy.weight_adapter.lora import LoRAAdapter
from torch import Tensor

from ..svimo_core.config import BackboneConfig
from ..svimo_core.model.mmdit import extend_with_motion

PREFIX = "diffusion_model."

Patches = dict[Any, Any]
"""Core's form: the weight's name, or a tuple that begins with it, to a WeightAdapterBase, to a tuple such as
("diff", (tensor,)), or to a list, which is another model's whole weight."""


class LoraChecks:
    """What the patcher of a MODEL adds to core's: a LoRA trained for CogVideoX reaches the drawing's stream as
    CogVideoX's weights do in a conversion; one that does not fit is refused, where core would only write into its
    log."""

    def add_patches(self, patches: Patches, strength_patch: float = 1.0, strength_model: float = 1.0) -> list:
        """As ModelPatcher has it.

        Raises:
            ValueError: a LoRA that is damaged, for another model, or of a kind that cannot reach the drawing's stream.
        """
        if not patches:
            raise ValueError(
                "this LoRA has no layer that core's loader knows in this model. If it was trained for CogVideoX-I2V (its "
                "names begin with transformer.), use Load SViMo LoRA; otherwise it is for another model"
            )
        weights = self.model.state_dict()
        for key, patch in patches.items():
            if key in weights:
                check_form(key, patch, weights[key])
        if self.model.config.backbone.motion:
            patches = with_motion(patches, self.model.config.backbone)
        for key, patch in patches.items():
            if isinstance(patch, LoRAAdapter) and key in weights:
                check_shape(key, patch, weights[key])
        return super().add_patches(patches, strength_patch, strength_model)

    def clone(self, *args: Any, **options: Any) -> ModelPatcher:
        """As ModelPatcher has it. One without dynamic VRAM, as TorchCompileModel asks for it, is of core's plain kind
        there: it keeps these checks, too."""
        made = super().clone(*args, **options)
        if not isinstance(made, LoraChecks):
            made.__class__ = with_checks(type(made))
        return made


@cache
def with_checks(kind: type[ModelPatcher]) -> type[ModelPatcher]:
    """A kind of patcher that checks the LoRAs it is given."""
    return type(f"SViMo{kind.__name__}", (LoraChecks, kind), {})


def with_motion(patches: Patches, config: BackboneConfig) -> Patches:
    """Patches of CogVideoX's weights for a model with a motion stream; those made for SViMo stay as they are.

    Raises:
        ValueError: another kind than a plain LoRA on a weight that conversion extends.
    """
    extended = {}
    for key, patch in patches.items():
        name = key.removeprefix(PREFIX) if isinstance(key, str) else ""
        modulation = ".norm1.linear." in name or ".norm2.linear." in name
        patchify = name.startswith("patch_embed.proj.") and key.replace("proj", "motion_proj") not in patches
        if not (modulation or patchify) or isinstance(patch, list):
            extended[key] = patch
            continue
        tensor, rebuilt = _part_to_extend(name, patch)
        if modulation and len(tensor) != 6 * config.dim:
            extended[key] = patch
            continue
        for extended_name, value in extend_with_motion([(name, tensor)], config):
            extended[PREFIX + extended_name] = rebuilt(value)
    return extended


def _part_to_extend(name: str, patch: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """The tensor of a patch to which can be done what conversion does to the weight, and the patch with another one.

    Of a LoRA's product, the first factor has the rows, and the second the input channels.
    """
    if isinstance(patch, LoRAAdapter) and patch.weights[4] is None:
        weights, i = patch.weights, int(name == "patch_embed.proj.weight")
        return weights[i], lambda value: LoRAAdapter(
            patch.loaded_keys, (*weights[:i], value, *weights[i + 1 :])
        )
    if isinstance(patch, WeightAdapterBase):
        kind = "DoRA" if isinstance(patch, LoRAAdapter) else type(patch).__name__.removesuffix("Adapter")
        raise ValueError(
            f"this file changes {name} with a {kind}, which cannot be carried over to SViMo's motion stream. "
            "Choose a plain LoRA, or merge the file into CogVideoX-5b-I2V with its trainer and convert the result"
        )
    kind, (tensor, *rest) = patch
    return tensor, lambda value: (kind, (value, *rest))


def check_form(key: str, patch: Any, weight: Tensor) -> None:
    """Refuse a patch whose tensors are no matrices, or do not fit each other, as damage leaves them.

    Raises:
        ValueError: it is damaged.
    """
    if isinstance(patch, LoRAAdapter):
        up, down, _, mid, _, _ = tensors = patch.weights
        matrices = min(up.ndim, down.ndim) > 1 and min(up.numel(), down.numel()) > 0
        sound = matrices and (mid is not None or up.shape[1] == len(down))
    elif isinstance(patch, tuple) and patch[0] == "diff":
        tensors = patch[1]
        sound = tensors[0].ndim == weight.ndim
    else:
        return
    if not sound:
        shapes = " and ".join(str(tuple(t.shape)) for t in tensors if isinstance(t, Tensor))
        raise ValueError(
            f"this LoRA changes {key.removeprefix(PREFIX)} by tensors of {shapes}, which make no change of a weight of "
            f"{tuple(weight.shape)}: it is damaged. Download it again"
        )


def check_shape(key: str, patch: LoRAAdapter, weight: Tensor) -> None:
    """Refuse a LoRA of another shape than its weight.

    Raises:
        ValueError: it was trained for another model.
    """
    up, down, _, mid, _, reshape = patch.weights
    found = len(up), down[0].numel()
    expected = len(weight), weight[0].numel()
    if mid is None and reshape is None and found != expected:
        raise ValueError(
            f"this LoRA changes {found[0]} x {found[1]} values of {key.removeprefix(PREFIX)}, and this model has "
            f"{expected[0]} x {expected[1]}: it was trained for another model. Choose one for CogVideoX-5b-I2V"
        )
