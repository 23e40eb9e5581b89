"""A graph of core's own nodes around the model, in a real server: what an artist wires who never saw our sampler."""

import io
import shutil

import torch
from PIL import Image
from safetensors.torch import save_file

NAME = "svimo-tiny.safetensors"
SIZE = {"width": 0, "height": 0, "frames": 0, "noise_augmentation": 0.02}
LOOP = {
    "enabled": True,
    "start_percent": 0.2,
    "end_percent": 1.0,
    "every": 1,
    "iterations": 1,
    "strength": 1.0,
}


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def start(loader: tuple[str, int] = ("load", 0)) -> dict:
    """Checkpoint, conditions, and the model with the loop."""
    return {
        "load": node("SViMoCheckpointLoader", ckpt_name=NAME),
        "image": node("LoadImage", image="stir_cup.png"),
        "yes": node("CLIPTextEncode", clip=["load", 3], text="use spoon to stir cup"),
        "no": node("CLIPTextEncode", clip=["load", 3], text=""),
        "start": node(
            "SViMoImageEncode",
            positive=["yes", 0],
            negative=["no", 0],
            vae=["load", 2],
            image=["image", 0],
            **SIZE,
        ),
        "loop": node(
            "SViMoFeedbackLoop", model=list(loader), interaction=["load", 1], vae=["load", 2], **LOOP
        ),
    }


def ksampler(model: list, latent: list | None = None, **changes) -> dict:
    values = dict(seed=5, steps=3, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=1.0) | changes
    return node(
        "KSampler",
        model=model,
        positive=["start", 0],
        negative=["start", 1],
        latent_image=latent or ["start", 2],
        **values,
    )


def pixels(client, result, name: str) -> list[bytes]:
    """Of the frames that a node showed, without the metadata of their files."""
    files = (client.download(file) for file in result.files(name))
    return [Image.open(io.BytesIO(file)).tobytes() for file in files]


def shown(latent: list) -> dict:
    return node("PreviewImage", images=["decode " + latent[0], 0])


def test_what_core_does_with_a_model_it_does_with_ours(server, client, tmp_path):
    """KSampler, cfg, a patched schedule, LazyCache, a LoRA, core's VAE Decode on the joint latent, batches, latents and
    models saved and loaded again."""
    base = server.base_directory
    (base / "models" / "loras").mkdir(exist_ok=True)
    layer = "diffusion_model.transformer_blocks.0.attn1.to_v"
    lora = {f"{layer}.lora_A.weight": torch.ones(1, 192), f"{layer}.lora_B.weight": torch.ones(192, 1) / 20}
    save_file(lora, base / "models" / "loras" / "ours.safetensors")

    # 1. every way at once
    graph = start()
    graph |= {
        "ms": node("ModelSamplingDiscrete", model=["loop", 0], sampling="v_prediction", zsnr=True),
        "lazy": node(
            "LazyCache",
            model=["loop", 0],
            reuse_threshold=0.2,
            start_percent=0.1,
            end_percent=0.95,
            verbose=False,
        ),
        "lora": node(
            "LoraLoaderModelOnly", model=["loop", 0], lora_name="ours.safetensors", strength_model=1.0
        ),
        "grow": node("SViMoGrowingCFG", model=["loop", 0], cfg_schedule="dynamic"),
        "twice": node("RepeatLatentBatch", samples=["start", 2], amount=2),
        "plain": ksampler(["loop", 0]),
        "other": ksampler(["loop", 0], sampler_name="dpmpp_2m", scheduler="karras"),
        "guided": ksampler(["grow", 0], cfg=3.0),
        "with ms": ksampler(["ms", 0]),
        "with lazy": ksampler(["lazy", 0]),
        "with lora": ksampler(["lora", 0]),
        "batch": ksampler(["loop", 0], ["twice", 0]),
        "motion": node("SViMoDecodeMotion", interaction=["load", 1], latent=["plain", 0], refine=False),
        "saved motion": node(
            "SViMoSaveMotion", motion=["motion", 0], filename_prefix="core/motion", format="npz"
        ),
        "split": node("SViMoSplitLatent", latent=["plain", 0]),
        "latent 0": node("SaveLatent", samples=["split", 0], filename_prefix="core/video"),
        "latent 1": node("SaveLatent", samples=["split", 1], filename_prefix="core/drawing"),
        "save": node("ModelSave", model=["lora", 0], filename_prefix="core/model"),
    }
    sampled = [name for name, content in graph.items() if content["class_type"] == "KSampler"]
    for name in sampled:
        graph[f"decode {name}"] = node("VAEDecode", samples=[name, 0], vae=["load", 2])
        graph[f"show {name}"] = shown([name])
    result = client.run(graph)
    frames = {name: pixels(client, result, f"show {name}") for name in sampled}
    assert {name: len(found) for name, found in frames.items()} == dict.fromkeys(sampled, 9) | {"batch": 18}
    assert len({frames[name][4] for name in ("plain", "other", "guided", "with lora")}) == 4
    assert frames["with ms"] == frames["plain"]
    assert len(result.previews) >= 3 * len(sampled) - 3
    assert result.files("saved motion")

    # 2. what was saved is loaded again
    shutil.copy(
        next((base / "output" / "core").glob("model_*.safetensors")),
        base / "models" / "svimo" / "saved.safetensors",
    )
    for name in ("video", "drawing"):
        shutil.copy(
            next((base / "output" / "core").glob(f"{name}_*.latent")), base / "input" / f"{name}.latent"
        )
    graph = start(("again", 0)) | {
        "again": node("SViMoDiffusionModelLoader", model_name="saved.safetensors", weight_dtype="default"),
        "with lora": ksampler(["loop", 0]),
        "video": node("LoadLatent", latent="video.latent"),
        "drawing": node("LoadLatent", latent="drawing.latent"),
        "plain": node("SViMoJoinLatents", video=["video", 0], rendered_motion=["drawing", 0]),
    }
    for name in ("with lora", "plain"):
        graph[f"decode {name}"] = node("VAEDecode", samples=[name, 0], vae=["load", 2])
        graph[f"show {name}"] = shown([name])
    again = client.run(graph)
    assert pixels(client, again, "show plain") == frames["plain"]
    assert len(again.files("show with lora")) == 9


def test_core_guider_and_custom_sampler(client):
    """SamplerCustomAdvanced with CFGGuider and BasicScheduler gives KSampler's bytes."""
    graph = start() | {
        "noise": node("RandomNoise", noise_seed=5),
        "guider": node("CFGGuider", model=["loop", 0], positive=["start", 0], negative=["start", 1], cfg=2.0),
        "euler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("BasicScheduler", model=["loop", 0], scheduler="simple", steps=3, denoise=1.0),
        "custom": node(
            "SamplerCustomAdvanced",
            noise=["noise", 0],
            guider=["guider", 0],
            sampler=["euler", 0],
            sigmas=["sigmas", 0],
            latent_image=["start", 2],
        ),
        "k": ksampler(["loop", 0], cfg=2.0),
    }
    for name in ("custom", "k"):
        graph[f"decode {name}"] = node("VAEDecode", samples=[name, 0], vae=["load", 2])
        graph[f"show {name}"] = shown([name])
    result = client.run(graph)
    custom, ours = ([client.download(f) for f in result.files(f"show {name}")] for name in ("custom", "k"))
    assert custom == ours
    assert len(custom) == 9
