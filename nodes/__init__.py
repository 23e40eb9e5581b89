"""ComfyUI nodes: thin adapters that read inputs, call `svimo_core`, and wrap outputs."""

from comfy_api.latest import ComfyExtension, io

from . import condition, decode, directions, load, motion, objects, rig, sample, save, view

NODES: list[type[io.ComfyNode]] = [
    *load.NODES,
    *condition.NODES,
    *sample.NODES,
    *decode.NODES,
    *directions.NODES,
    *motion.NODES,
    *objects.NODES,
    *save.NODES,
    *rig.NODES,
    *view.NODES,
]


class SViMoExtension(ComfyExtension):
    """Everything the pack adds to ComfyUI."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The nodes, in the order of a workflow."""
        return NODES
