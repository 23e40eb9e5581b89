"""A custom node that only the test server has: what a faulty pack upstream of ours could send."""

import torch
from comfy_api.latest import ComfyExtension, io


class BrokenImage(io.ComfyNode):
    """An image with a pixel that is not a number."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestBrokenImage",
            inputs=[io.Int.Input("batch", default=1), io.Int.Input("variant", default=0)],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, batch, variant):
        image = torch.full((batch, 40, 60, 3), 0.5)
        if batch == 1:
            image[0, 3, 4] = float("nan")
        return io.NodeOutput(image)


class Extension(ComfyExtension):
    async def get_node_list(self):
        return [BrokenImage]


async def comfy_entrypoint():
    return Extension()
