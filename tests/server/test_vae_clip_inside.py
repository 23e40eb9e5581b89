"""VAE and CLIP among core's nodes and under core's memory management, checked from the inside."""

from pathlib import Path

import pytest
from helpers.inside import run_inside

from dev.comfy import find_comfyui

CORE_HAS_COGVIDEOX = (find_comfyui() / "comfy" / "ldm" / "cogvideo").is_dir()

LOADED = """
import comfy.model_management, comfy.model_patcher, comfy.sd, folder_paths, nodes
from pack.nodes.load import load_backbone, load_text_encoder, load_vae, read_header

header = read_header(args[0])

def refused(work, *parts, kind=ValueError):
    try:
        work()
    except kind as error:
        assert all(part in str(error) for part in parts), error
    else:
        raise AssertionError("accepted")
"""


def test_what_does_not_fit_is_encoded_and_decoded_in_tiles(checkpoint_file: Path):
    """On both errors by which torch says so. Anything else comes through, at once and as it was."""
    run_inside(
        LOADED
        + """
vae = load_vae(header)
network = vae.video_vae.model
network.enable_tiling(32, 32, tile_overlap_factor_height=1 / 4, tile_overlap_factor_width=1 / 4)
network.use_tiling = False
frames = torch.randint(256, (1, 1, 64, 64, 3), dtype=torch.uint8)
images = frames[0] / 255
latents = torch.randn(1, 16, 1, 8, 8)
works = (
    (network.encoder, 64, lambda tiled: vae.encode_scaled(frames, tiled)),
    (network.encoder, 64, lambda tiled: vae.encode_tiled(images) if tiled else vae.encode(images)),
    (network.decoder, 8, lambda tiled: vae.decode_scaled(latents, tiled)),
    (network.decoder, 8, lambda tiled: vae.decode_tiled(latents) if tiled else vae.decode(latents)),
)
def full(width, error, calls):
    def hook(module, inputs):
        calls.append(inputs[0].shape[-1])
        if inputs[0].shape[-1] == width:
            raise error
    return hook

errors = [comfy.model_management.OOM_EXCEPTION("out of memory")]
if hasattr(torch, "AcceleratorError"):
    errors.append(torch.AcceleratorError("CUDA error: out of memory"))
with torch.inference_mode():
    for part, width, work in works:
        whole, tiled = work(False), work(True)
        assert whole.shape == tiled.shape and not torch.equal(whole, tiled)
        for error in errors:
            calls = []
            hook = part.register_forward_pre_hook(full(width, error, calls))
            assert torch.equal(work(False), tiled)
            assert calls[0] == width and len(calls) > 4 and max(calls[1:]) < width, calls
            refused(lambda: part(torch.empty(1, 1, 1, 1, width)), kind=type(error))
            hook.remove()
        for error in (RuntimeError("a shape is wrong"), comfy.model_management.InterruptProcessingException()):
            calls = []
            hook = part.register_forward_pre_hook(full(width, error, calls))
            refused(lambda: work(False), str(error), kind=type(error))
            assert calls == [width]
            hook.remove()
        assert not network.use_tiling
""",
        str(checkpoint_file),
    )


def test_each_piece_asks_for_a_cancel_and_waits_for_nothing(checkpoint_file: Path):
    run_inside(
        LOADED
        + """
vae, asked = load_vae(header), []
comfy.model_management.throw_exception_if_processing_interrupted = lambda: asked.append(1)
torch.cuda.current_stream = None  # a call would fail
comfy.model_management.get_torch_device = lambda: torch.device("cuda")
with torch.inference_mode():
    vae.encode_scaled(torch.zeros(1, 9, 16, 16, 3, dtype=torch.uint8))
    blocks = [m for m in vae.video_vae.model.encoder.modules() if type(m).__name__ == "CogVideoXResnetBlock3D"]
    assert len(asked) == len(blocks) > 4, (len(asked), len(blocks))
""",
        str(checkpoint_file),
    )


def test_whole_on_their_device_whatever_the_flags(checkpoint_file: Path):
    """A device that only counts (meta) stands for the GPU; novram leaves layers that cannot be cast where they are."""
    run_inside(
        LOADED
        + """
management = comfy.model_management
gpu = torch.device("meta")
management.vae_device = management.text_encoder_device = lambda: gpu
management.vae_dtype = lambda *_: torch.float32
management.get_free_memory = lambda *_, torch_free_too=False: (2**40, 0) if torch_free_too else 2**40
management.get_total_memory = lambda *_, **__: 2**41
for state in ("NO_VRAM", "LOW_VRAM", "NORMAL_VRAM", "HIGH_VRAM"):
    management.vram_state = management.VRAMState[state]
    vae, clip = load_vae(header), load_text_encoder(header)
    for patcher, load in ((vae.patcher, lambda: vae._load(1)), (clip.patcher, clip.load_model)):
        assert {weight.device.type for weight in patcher.model.parameters()} == {"cpu"}
        load()
        assert {weight.device for weight in patcher.model.parameters()} == {gpu}, state
    management.current_loaded_models.clear()
""",
        str(checkpoint_file),
    )


def test_cores_kind_of_patcher_is_asked_for_when_a_model_is_built(checkpoint_file: Path):
    """main.py exchanges it for the one of dynamic VRAM, after the packs may have been imported."""
    run_inside(
        LOADED
        + """
class Exchanged(comfy.model_patcher.ModelPatcher):
    pass

frames = torch.zeros(1, 9, 16, 16, 3, dtype=torch.uint8)
def results():
    vae, clip = load_vae(header), load_text_encoder(header)
    with torch.inference_mode():
        found = vae.encode_scaled(frames), vae.decode(torch.zeros(1, 16, 1, 4, 4)), clip.encode("use hand to stir")
    return found, {type(vae.patcher), type(clip.patcher)}

usual, kinds = results()
assert kinds == {comfy.model_patcher.ModelPatcher}, kinds
if hasattr(comfy.model_patcher, "CoreModelPatcher"):
    comfy.memory_management.aimdo_enabled = True
    for kind in (comfy.model_patcher.ModelPatcherDynamic, Exchanged):
        comfy.model_patcher.CoreModelPatcher = kind
        found, kinds = results()
        assert kinds == {Exchanged if kind is Exchanged else comfy.model_patcher.ModelPatcher}, kinds
        for a, b in zip(found, usual):
            assert torch.equal(a, b)
""",
        str(checkpoint_file),
    )


def test_cores_clip_nodes(checkpoint_file: Path, tmp_path: Path):
    """Each works or says in a sentence why it cannot."""
    run_inside(
        LOADED
        + """
from safetensors.torch import save_file
import comfy_extras.nodes_model_merging as merging

clip, model = load_text_encoder(header), load_backbone(header)
with torch.inference_mode():
    [[plain, extras]] = nodes.CLIPTextEncode().encode(clip, "use hand to stir")[0]
    assert plain.shape == (1, header.config.text.text_length, header.config.text.dim)
    assert extras["pooled_output"] is None
    features, pooled = clip.encode_from_tokens(clip.tokenize("use hand to stir"), return_pooled=True)
    assert torch.equal(features, plain) and pooled is None

    # a LoRA on model and CLIP: what fits the model is applied, and the CLIP is a copy that can be patched
    layer = "transformer_blocks_0_attn1_to_q"
    dim = header.config.backbone.dim
    lora = {f"lora_unet_{layer}.lora_down.weight": torch.randn(2, dim),
            f"lora_unet_{layer}.lora_up.weight": torch.randn(dim, 2)}
    name = "encoder.block.0.layer.0.SelfAttention.q"
    shape = clip.text_encoder.model.get_submodule(name).weight.shape
    lora |= {f"text_encoders.network.{name}.lora_down.weight": torch.randn(2, shape[1]),
             f"text_encoders.network.{name}.lora_up.weight": torch.randn(shape[0], 2)}
    save_file(lora, args[1] + "/both.safetensors")
    folder_paths.add_model_folder_path("loras", args[1])
    with_lora, patched = nodes.LoraLoader().load_lora(model, clip, "both.safetensors", 1.0, 1.0)
    assert len(with_lora.patches) == 1 and len(patched.patcher.patches) == 1 and not clip.patcher.patches
    assert not torch.equal(patched.encode("use hand to stir"), plain)
    assert torch.equal(clip.encode("use hand to stir"), plain)

    [last] = nodes.CLIPSetLastLayer().set_last_layer(clip, -1)
    assert torch.equal(last.encode("use hand to stir"), plain)
refused(lambda: nodes.CLIPSetLastLayer().set_last_layer(clip, -2), "not layer -2: set stop_at_clip_layer to -1")
refused(lambda: clip.set_tokenizer_option("t5xxl_min_length", 9), "takes no t5xxl_min_length", "leave the node")
refused(lambda: merging.CLIPSave().save(clip, "clip"), "cannot be saved by core", "copy the SViMo checkpoint")
refused(lambda: clip.encode_from_tokens({"l": []}), "tokens of another one (l)")
refused(lambda: clip.generate([]), "no 'generate'", "core's CLIP loader", kind=AttributeError)
assert not hasattr(clip, "generate")
""",
        str(checkpoint_file),
        str(tmp_path),
    )


def test_cores_vae_nodes(checkpoint_file: Path, tmp_path: Path):
    run_inside(
        LOADED
        + """
import dataclasses, safetensors.torch
import comfy_extras.nodes_model_merging as merging
from pack.nodes.vae import SViMoVAE, VideoVAE, svimo_vae
from pack.svimo_core.config import COGVIDEOX_5B_I2V
from pack.svimo_core.model.vae import build_vae

vae = load_vae(header)
images = torch.rand(9, 37, 53, 4)  # no multiples of 8, and with an alpha channel
with torch.inference_mode():
    cut = nodes.VAEEncode().encode(vae, images)[0]["samples"]
    assert cut.shape == (1, 16, 3, 4, 6)
    assert torch.equal(cut, vae.encode(images[:, 2:34, 2:50, :3]))  # as core cuts
    both = vae.encode(torch.stack([images, images.flip(0)]))
    torch.testing.assert_close(both[:1], cut, rtol=1e-4, atol=1e-4)
    tiled = nodes.VAEEncodeTiled().encode(vae, images, 512, 64)[0]["samples"]
    assert torch.equal(tiled, cut)  # smaller than a tile
    painted = nodes.VAEEncodeForInpaint().encode(vae, images, torch.ones(9, 37, 53), 6)[0]
    assert painted["samples"].shape == cut.shape and painted["noise_mask"].shape[-2:] == (32, 48)
    assert nodes.VAEDecode().decode(vae, {"samples": cut})[0].shape == (9, 32, 48, 3)
    assert nodes.VAEDecodeTiled().decode(vae, {"samples": cut}, 512)[0].shape == (9, 32, 48, 3)
refused(lambda: vae.encode(images[:4]), "8k + 1", "got 4", "ImageFromBatch")
refused(lambda: vae.encode(images[:, :7]), "at least 8 x 8 pixels, got 53 x 7")
refused(lambda: vae.encode(images[..., :1]), "with 1 channels")
refused(lambda: vae.decode(torch.zeros(1, 4, 8, 8)), "16 channels", "got 1 x 4 x 8 x 8")
refused(lambda: vae.memory_used_encode, "no 'memory_used_encode'", "Load VAE", kind=AttributeError)
assert not hasattr(vae, "handles_tiling")

# saving: only weights whose sizes a loader knows
folder_paths.set_output_directory(args[1])
merging.args.disable_metadata = True
refused(lambda: merging.VAESave().save(vae, "small"), "another size than CogVideoX's", "copy the SViMo checkpoint")
network = build_vae(COGVIDEOX_5B_I2V.vae).half()
merging.VAESave().save(SViMoVAE.of_svimo(network, COGVIDEOX_5B_I2V, None), "published")
again = read_header(args[1] + "/published_00001_.safetensors")
assert again.config.vae == COGVIDEOX_5B_I2V.vae
for name, weight in load_vae(again).get_sd().items():
    assert torch.equal(weight, network.state_dict()[name].float()), name
""",
        str(checkpoint_file),
        str(tmp_path),
    )


def test_other_vaes_are_refused_by_name(checkpoint_file: Path):
    run_inside(
        LOADED
        + """
import comfy.taesd.taesd
from pack.nodes.vae import svimo_vae

images = comfy.sd.VAE(sd=comfy.taesd.taesd.TAESD(latent_channels=16).state_dict())
refused(lambda: svimo_vae(images), "is a TAESD of another", "core's Load VAE with CogVideoX's VAE")
refused(lambda: svimo_vae(None), "NoneType")
""",
        str(checkpoint_file),
    )


@pytest.mark.skipif(not CORE_HAS_COGVIDEOX, reason="ComfyUI before 0.21 has no CogVideoX")
def test_cores_own_cogvideox_vae_in_place_of_ours(checkpoint_file: Path):
    """The same latents and frames as diffusers' network of these weights, through every node that takes a VAE."""
    run_inside(
        LOADED
        + """
from dataclasses import replace
import numpy as np
from pack.nodes.condition import SViMoImageEncode, SViMoMotionEncode
from pack.nodes.decode import SViMoDecodeVideo
from pack.nodes.sample import SViMoFeedback
from pack.nodes.backbone import GUIDANCE, IMAGE_LATENT
from pack.nodes.vae import SViMoVAE, svimo_vae
from pack.svimo_core.config import COGVIDEOX_5B_I2V
from pack.svimo_core.model.vae import build_vae
from pack.svimo_core.motion import Camera, HandObjectMotion

network = build_vae(COGVIDEOX_5B_I2V.vae).eval()
for weight in network.parameters():
    torch.nn.init.normal_(weight, mean=float(weight.mean()), std=float(weight.std(correction=0)))
core = comfy.sd.VAE(sd={k: v.clone() for k, v in network.state_dict().items()}, dtype=torch.float32)
theirs, ours = svimo_vae(core), SViMoVAE.of_svimo(network, COGVIDEOX_5B_I2V, None)
frames = torch.randint(256, (1, 17, 16, 16, 3), dtype=torch.uint8)
with torch.inference_mode():
    latents = ours.encode_scaled(frames)
    torch.testing.assert_close(theirs.encode_scaled(frames), latents, rtol=1e-4, atol=1e-4)
    alone = core.encode(frames[0] / 255.0) * 0.7  # core's own loop, which is why ours is used
    assert (alone - latents).abs().mean() > 0.05 * latents.std()
    torch.testing.assert_close(theirs.decode_scaled(latents), ours.decode_scaled(latents), rtol=1e-4, atol=1e-4)
    large, calls = torch.randint(256, (1, 1, 64, 64, 3), dtype=torch.uint8), []
    def full(module, inputs):
        calls.append(inputs[0].shape[-1])
        if inputs[0].shape[-1] == 64:
            raise comfy.model_management.OOM_EXCEPTION("out of memory")
    quarters = dict(tile_overlap_factor_height=1 / 4, tile_overlap_factor_width=1 / 4)
    theirs.video_vae.model.enable_tiling(32, 32, **quarters)
    theirs.video_vae.model.use_tiling = False
    hook = core.first_stage_model.encoder.register_forward_pre_hook(full)
    assert theirs.encode_scaled(large).shape == (1, 16, 1, 8, 8)
    assert calls[0] == 64 and max(calls[1:]) == 32, calls
    hook.remove()
    assert core.first_stage_model.encoder is theirs.video_vae.model.encoder
    assert not hasattr(core.first_stage_model, "use_tiling")  # nothing is written on core's network

    text = [[torch.zeros(1, 8, 16), {}]]
    image = torch.rand(1, 40, 40, 3)
    refused(lambda: SViMoImageEncode.execute(text, text, core, image, 16, 16, 0, 0.02), "set width, height and frames")
    found, expected = (
        SViMoImageEncode.execute(text, text, vae, image, 16, 16, 17, 0.02).result for vae in (core, ours)
    )
    torch.testing.assert_close(found[0][0][1][IMAGE_LATENT], expected[0][0][1][IMAGE_LATENT], rtol=1e-4, atol=1e-4)
    assert found[2]["samples"].shape == (1, 16, 5, 2, 2)
    rng = np.random.default_rng(0)
    motion = HandObjectMotion(
        hands=np.tile(rng.normal(scale=0.03, size=(1, 2, 21, 3)) + (0, 0, 0.5), (17, 1, 1, 1)), objects={},
        camera=Camera.from_fov(16, 16), fps=8, prompt="",
    )
    drawn, decoded = [], []
    for vae in (core, ours):
        [[_, extras]], _ = SViMoMotionEncode.execute(text, text, vae, motion, found[2], 1.0, 0.0, 1.0).result
        drawn.append(extras[GUIDANCE])
        decoded.append(SViMoDecodeVideo.execute(vae, {"samples": latents / 0.7}, False).result[0])
    torch.testing.assert_close(*drawn, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(*decoded, rtol=1e-4, atol=1e-4)
    assert decoded[0].shape == (17, 16, 16, 3)
    handle = SViMoFeedback.execute(None, core, start_percent=0.2, end_percent=1.0).result[0]
    assert handle.vae.video_vae.model.encoder is core.first_stage_model.encoder
""",
        str(checkpoint_file),
    )
