"""Frames on their way into the VAE, and the memory that it needs."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from svimo_core.config import COGVIDEOX_5B_I2V, TINY
from svimo_core.model.vae import VideoVAE, build_vae


class Peak(TorchDispatchMode):
    """Bytes of all tensors that are made in its block, at most at once."""

    def __init__(self):
        super().__init__()
        self.alive: dict[int, int] = {}
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.alive:
                    self.alive[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.alive.pop, storage._cdata, None)
        self.bytes = max(self.bytes, sum(self.alive.values()))
        return made


def meta_vae(config) -> VideoVAE:
    with torch.device("meta"):
        return VideoVAE(build_vae(config.vae).to(torch.bfloat16).eval(), config.vae)


@pytest.mark.parametrize(
    ("frames", "height", "width", "tiled"),
    [
        (1, 416, 624, False),
        (9, 416, 624, False),
        (17, 416, 624, False),
        (49, 416, 624, False),
        (49, 416, 624, True),
        (97, 480, 720, False),
    ],
)
@torch.no_grad()
def test_memory_of_the_published_network(frames: int, height: int, width: int, tiled: bool):
    """No less than what is in use at once, and little more."""
    vae = meta_vae(COGVIDEOX_5B_I2V)
    shape = vae.config.latent_shape(frames, height, width)
    with Peak() as encoding:
        vae.encode(torch.empty(1, frames, height, width, 3, dtype=torch.uint8, device="meta"), tiled=tiled)
    with Peak() as decoding:
        vae.decode(torch.empty(1, *shape, dtype=torch.bfloat16, device="meta"), tiled=tiled)
    for peak, estimate in (
        (encoding, vae.encode_memory(frames, height, width, tiled)),
        (decoding, vae.decode_memory(frames, height, width, tiled)),
    ):
        assert peak.bytes <= estimate <= 1.25 * peak.bytes, (peak.bytes / 1e9, estimate / 1e9)


def test_memory_at_the_papers_size():
    """The numbers that docstrings and documents name."""
    vae = meta_vae(COGVIDEOX_5B_I2V)
    assert round(vae.encode_memory(49, 416, 624) / 1e9, 1) == 5.8
    assert round(vae.decode_memory(49, 416, 624) / 1e9, 1) == 13.0


@torch.no_grad()
def test_frames_of_bytes_are_those_of_numbers():
    torch.manual_seed(0)
    vae = VideoVAE(build_vae(TINY.vae).eval(), TINY.vae)
    frames = torch.randint(256, (2, 9, 16, 16, 3), dtype=torch.uint8)
    assert torch.equal(vae.encode(frames), vae.encode(frames.float() / 255))


@torch.no_grad()
def test_half_precision_begins_behind_the_pixels():
    """Mid grey is 0 to the network: rounded to bfloat16 before that, it is up to half a shade off."""
    vae = VideoVAE(build_vae(TINY.vae).eval().to(torch.bfloat16), TINY.vae)
    seen = []
    vae.model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    shades = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16, 1).expand(-1, -1, -1, -1, 3)
    for frames in (shades, shades.float() / 255):
        vae.encode(frames)
        expected = (shades[0, 0, ..., 0].double() / 127.5 - 1).to(torch.bfloat16)
        assert torch.equal(seen.pop()[0, 0, 0], expected)
