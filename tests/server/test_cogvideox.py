"""CogVideoX's own files in the graph: the two workflows that bring their own weights, at a tiny size.

Only T5-XXL is exchanged, which has no tiny form that core's loader would know: the small text encoder of a SViMo
checkpoint stands in, and the tiny CogVideoX is made for its features.
"""

import io
import itertools
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from helpers.tiny_cogvideox import save_file_of, tiny_transformer, tiny_vae
from PIL import Image

from dev.comfy import ComfyError, api_workflow
from svimo_core.checkpoint import PARTS, init_part, save_checkpoint
from svimo_core.config import TINY
from svimo_core.normalization import MotionNormalizer
from svimo_train.data.synthetic import generate_motion

SIZE = {"width": 96, "height": 64, "frames": 9}
TEXT = TINY.text
LAYERS = (
    "transformer_blocks.0.attn1.to_q",
    "transformer_blocks.1.ff.net.2",
    "transformer_blocks.0.attn1.to_out.0",
)
RANK, STRENGTH = 4, 0.7
seeds = itertools.count(9000)


@pytest.fixture(scope="module")
def transformer():
    return tiny_transformer(
        text_embed_dim=TEXT.dim, use_learned_positional_embeddings=False, max_text_seq_length=226
    )


@pytest.fixture(scope="module")
def lora():
    """Factors (down, up) by layer."""
    generator = torch.Generator().manual_seed(0)
    sizes = {"to_q": (64, 64), "net.2": (256, 64), "to_out.0": (64, 64)}
    factors = {}
    for layer in LAYERS:
        inputs, outputs = next(size for end, size in sizes.items() if layer.endswith(end))
        factors[layer] = (
            torch.randn(RANK, inputs, generator=generator) / 4,
            torch.randn(outputs, RANK, generator=generator) / 4,
        )
    return factors


@pytest.fixture(scope="module")
def files(server, transformer, lora):
    """What a user would have, where the workflows look for it; and the text encoder that stands in."""
    models = server.base_directory / "models"
    for folder in ("diffusion_models", "vae", "loras", "svimo"):
        (models / folder).mkdir(exist_ok=True)
    vae = tiny_vae(
        block_out_channels=(32, 32, 32, 32), norm_num_groups=32
    )  # a file alone is read as the published VAE
    save_file_of(models / "diffusion_models" / "cogvideox-5b-i2v.safetensors", transformer.state_dict())
    save_file_of(models / "vae" / "cogvideox-vae.safetensors", vae.state_dict())
    merged = {name: value.clone() for name, value in transformer.state_dict().items()}
    peft, kohya = {}, {}
    for layer, (down, up) in lora.items():
        merged[f"{layer}.weight"] += STRENGTH * up @ down
        peft |= {f"transformer.{layer}.lora_A.weight": down, f"transformer.{layer}.lora_B.weight": up}
        name = f"lora_unet_{layer.replace('.', '_')}"
        kohya |= {
            f"{name}.lora_down.weight": down,
            f"{name}.lora_up.weight": up,
            f"{name}.alpha": torch.tensor(float(RANK)),
        }
    save_file_of(models / "diffusion_models" / "merged.safetensors", merged)
    save_file_of(models / "loras" / "peft.safetensors", peft)
    save_file_of(models / "loras" / "kohya.safetensors", kohya)
    save_file_of(
        models / "loras" / "foreign.safetensors", {"lora_unet_wheels.lora_down.weight": torch.zeros(1, 1)}
    )
    config = replace(TINY, text=replace(TEXT, text_length=226))
    parts = {part: init_part(config, part, seed=1) for part in PARTS}
    normalizer = MotionNormalizer.fit([generate_motion(0)], config.interaction.object_names)
    save_checkpoint(models / "svimo" / "text.safetensors", config, parts, normalizer)
    return models


def node(workflow, class_type) -> str:
    (found,) = (name for name, content in workflow.items() if content["class_type"] == class_type)
    return found


def prepared(name: str, **sampler_inputs) -> dict:
    """A workflow with the stand-in text encoder, at a small size and few steps."""
    workflow = api_workflow(name)
    clip = node(workflow, "CLIPLoader")
    workflow[clip] = {"class_type": "SViMoCheckpointLoader", "inputs": {"ckpt_name": "text.safetensors"}}
    for content in workflow.values():
        if content["class_type"] == "SViMoTextEncode":
            content["inputs"]["clip"] = [clip, 3]
    workflow[node(workflow, "SViMoImageEncode")]["inputs"].update(SIZE)
    workflow[node(workflow, "SViMoSampler")]["inputs"].update(
        {"steps": 2, "seed": next(seeds)} | sampler_inputs
    )
    return workflow


def frames_of(client, workflow) -> np.ndarray:
    """Frames without loss."""
    decode = node(workflow, "SViMoDecodeVideo")
    workflow["frames"] = {"class_type": "PreviewImage", "inputs": {"images": [decode, 0]}}
    result = client.run(workflow)
    images = [Image.open(io.BytesIO(client.download(file))) for file in result.files("frames")]
    return np.stack([np.asarray(image, dtype=int) for image in images])


def test_cogvideox_makes_a_video(client, files):
    workflow = prepared("video_from_cogvideox")
    result = client.run(workflow)
    (file,) = result.files(node(workflow, "SaveVideo"))
    with av.open(io.BytesIO(client.download(file))) as video:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])
    assert frames.shape == (9, 64, 96, 3)
    assert frames.std() > 1


def test_conversion_and_what_comes_of_it(client, files):
    target = files / "svimo" / "svimo-from-cogvideox.safetensors"
    target.unlink(missing_ok=True)
    convert = {
        "convert": {
            "class_type": "SViMoConvertCogVideoX",
            "inputs": {"model_name": "cogvideox-5b-i2v.safetensors", "filename": "svimo-from-cogvideox"},
        }
    }
    told = client.run(convert).outputs["convert"]["text"][0]
    assert "sha256" in told
    assert target.is_file()
    assert [path.name for path in target.parent.glob("*.partial")] == []

    workflow = prepared("svimo_from_converted_checkpoint")
    vae = node(workflow, "SViMoVAELoader")
    workflow[vae]["inputs"]["vae_name"] = "cogvideox-vae.safetensors"  # the tiny transformer came without one
    result = client.run(workflow)
    videos = [name for name, content in workflow.items() if content["class_type"] == "SaveVideo"]
    assert len(videos) == 2
    for name in videos:
        assert result.files(name)

    convert["convert"]["inputs"]["filename"] = "../elsewhere"
    with pytest.raises(ComfyError, match="no new plain name"):
        client.run(convert)


@pytest.mark.parametrize("loader", ["SViMoLoraLoader", "LoraLoaderModelOnly"])
def test_a_lora_equals_the_merged_weights(client, files, loader):
    seed = next(seeds)
    plain = frames_of(client, prepared("video_from_cogvideox", seed=seed))
    workflow = prepared("video_from_cogvideox", seed=seed)
    workflow[node(workflow, "SViMoDiffusionModelLoader")]["inputs"]["model_name"] = "merged.safetensors"
    merged = frames_of(client, workflow)
    assert np.abs(plain - merged).max() > 8

    workflow = prepared("video_from_cogvideox", seed=seed)
    sampler = workflow[node(workflow, "SViMoSampler")]["inputs"]
    if loader == "SViMoLoraLoader":
        inputs = {"lora_name": "peft.safetensors", "strength": STRENGTH}
    else:
        inputs = {"lora_name": "kohya.safetensors", "strength_model": STRENGTH}
    workflow["lora"] = {"class_type": loader, "inputs": {"model": sampler["model"], **inputs}}
    sampler["model"] = ["lora", 0]
    assert np.abs(frames_of(client, workflow) - merged).max() <= 1


def test_rotary_positions_are_optional_and_change_other_sizes(client, files):
    """Workflows from before the choice go on as they were; the published size is far from this one."""
    seed, made = next(seeds), {}
    for choice in (None, "as_trained", "diffusers"):
        workflow = prepared("video_from_cogvideox", seed=seed)
        loader = workflow[node(workflow, "SViMoDiffusionModelLoader")]["inputs"]
        loader.pop("rotary_positions", None)
        loader |= {"rotary_positions": choice} if choice else {}
        made[choice] = frames_of(client, workflow)
    assert np.array_equal(made[None], made["as_trained"])
    assert np.abs(made["diffusers"] - made["as_trained"]).max() > 2


def test_fp8_storage_is_close_to_the_original(client, files):
    seed = next(seeds)
    plain = frames_of(client, prepared("video_from_cogvideox", seed=seed))
    workflow = prepared("video_from_cogvideox", seed=seed)
    workflow[node(workflow, "SViMoDiffusionModelLoader")]["inputs"]["weight_dtype"] = "fp8_e4m3fn"
    stored = frames_of(client, workflow)
    assert 0 < np.abs(stored - plain).mean() < 0.25 * np.abs(plain - plain.mean()).mean()


def test_trouble_with_foreign_files(client, files):
    workflow = prepared("video_from_cogvideox")
    sampler = workflow[node(workflow, "SViMoSampler")]["inputs"]
    workflow["lora"] = {
        "class_type": "SViMoLoraLoader",
        "inputs": {"model": sampler["model"], "lora_name": "foreign.safetensors", "strength": 1.0},
    }
    sampler["model"] = ["lora", 0]
    with pytest.raises(ComfyError, match=r"foreign\.safetensors fits no layer"):
        client.run(workflow)
    torn = (files / "loras" / "peft.safetensors").read_bytes()[:-7]
    (files / "loras" / "foreign.safetensors").write_bytes(torn)
    with pytest.raises(ComfyError, match=r"foreign\.safetensors is not a LoRA that can be read"):
        client.run(workflow)
    lora = workflow["lora"]["inputs"]
    workflow["lora"] = {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"model": lora["model"], "lora_name": "foreign.safetensors", "strength_model": 1.0},
    }
    with pytest.raises(ComfyError, match="incomplete metadata"):
        client.run(workflow)

    text_to_video = tiny_transformer(in_channels=16, use_learned_positional_embeddings=False)
    save_file_of(files / "diffusion_models" / "t2v.safetensors", text_to_video.state_dict())
    workflow = prepared("video_from_cogvideox")
    workflow[node(workflow, "SViMoDiffusionModelLoader")]["inputs"]["model_name"] = "t2v.safetensors"
    with pytest.raises(ComfyError, match=r"t2v\.safetensors is the text-to-video"):
        client.run(workflow)


def test_a_video_only_model_wants_no_feedback(client, files):
    workflow = prepared("video_from_cogvideox")
    clip = node(workflow, "SViMoCheckpointLoader")
    workflow["feedback"] = {
        "class_type": "SViMoFeedback",
        "inputs": {
            "interaction": [clip, 1],
            "vae": [node(workflow, "SViMoVAELoader"), 0],
            "enabled": True,
            "start_percent": 0.2,
            "end_percent": 1.0,
            "every": 1,
            "iterations": 1,
            "strength": 1.0,
        },
    }
    workflow[node(workflow, "SViMoSampler")]["inputs"]["feedback"] = ["feedback", 0]
    with pytest.raises(ComfyError, match="video only"):
        client.run(workflow)
