"""SViMo as a plain PyTorch library: synchronized video-motion diffusion for hand-object interaction.

Start with :mod:`svimo_core.sampling.pipeline`, which shows the whole method in one screen. Modules import only from the
rows above them: config, motion, render, schedule, model, checkpoint, sampling. Nothing in here knows about ComfyUI.
"""
