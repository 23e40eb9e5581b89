"""ComfyUI-SViMo: hand-object interaction video and 3D motion, generated together (arXiv 2506.02444)."""

WEB_DIRECTORY = "./js"


async def comfy_entrypoint():
    """ComfyUI's V3 entry point. The nodes are imported here so that the package itself needs no ComfyUI."""
    from .nodes import SViMoExtension

    return SViMoExtension()


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
