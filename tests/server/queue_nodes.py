"""Custom nodes that only test servers have: jobs that take their time, hang, or fail."""

import builtins
import time

import comfy.model_management
import torch
from comfy.utils import ProgressBar
from comfy_api.latest import ComfyExtension, io


class Slow(io.ComfyNode):
    """An image that takes `steps` tenths of a second, with progress."""

    @classmethod
    def define_schema(cls):
        inputs = [io.Int.Input("seed", min=0, max=1000), io.Int.Input("steps", default=1, min=1, max=600)]
        return io.Schema(node_id="TestSlow", inputs=inputs, outputs=[io.Image.Output()])

    @classmethod
    def execute(cls, seed, steps):
        progress = ProgressBar(steps)
        for _ in range(steps):
            time.sleep(0.1)
            comfy.model_management.throw_exception_if_processing_interrupted()
            progress.update(1)
        return io.NodeOutput(torch.full((1, 48, 64, 3), (seed % 10) / 10))


class Silent(io.ComfyNode):
    """An image after `seconds` without any progress; `deaf` ones cannot be interrupted."""

    @classmethod
    def define_schema(cls):
        inputs = [io.Float.Input("seconds"), io.Boolean.Input("deaf"), io.Int.Input("seed", default=0)]
        return io.Schema(node_id="TestSilent", inputs=inputs, outputs=[io.Image.Output()])

    @classmethod
    def execute(cls, seconds, deaf, seed):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.05)
            if not deaf:
                comfy.model_management.throw_exception_if_processing_interrupted()
        return io.NodeOutput(torch.zeros(1, 48, 64, 3))


class Fail(io.ComfyNode):
    """Fails as often as it is told to, then gives an image."""

    @classmethod
    def define_schema(cls):
        inputs = [io.String.Input("message"), io.Int.Input("times"), io.Int.Input("seed", default=0)]
        inputs.append(io.Combo.Input("error", ["RuntimeError", "ValueError"]))
        return io.Schema(node_id="TestFail", inputs=inputs, outputs=[io.Image.Output()])

    @classmethod
    def execute(cls, message, times, seed, error):
        FAILURES[seed] = FAILURES.get(seed, 0) + 1
        if FAILURES[seed] <= times:
            raise getattr(builtins, error)(message)
        return io.NodeOutput(torch.ones(1, 48, 64, 3))


FAILURES: dict[int, int] = {}


class Extension(ComfyExtension):
    async def get_node_list(self):
        return [Slow, Silent, Fail]


async def comfy_entrypoint():
    return Extension()
