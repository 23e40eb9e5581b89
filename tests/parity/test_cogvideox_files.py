"""CogVideoX-5b-I2V in every form it is passed around in loads exactly; everything else is refused by name."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel as Transformer
from helpers.tiny_cogvideox import (
    PUBLISHED_TABLE,
    SCHEDULER,
    TRANSFORMER,
    comfyui_keys,
    fp8,
    save_file_of,
    save_pipeline,
    tiny_transformer,
    tiny_vae,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from svimo_core.checkpoint import convert, describe, load_part, main, read_header
from svimo_core.config import COGVIDEOX_5B_I2V, ScheduleConfig
from svimo_core.model.mmdit import MMDiT, extend_with_motion


@pytest.fixture(scope="module")
def transformer() -> Transformer:
    return tiny_transformer(**PUBLISHED_TABLE)


@pytest.fixture(scope="module")
def weights(transformer: Transformer) -> dict[str, Tensor]:
    return transformer.state_dict()


def ours(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Diffusers' weights under our names: only the position table has another one."""
    state = dict(state)
    state["patch_embed.position_table.weight"] = state.pop("patch_embed.pos_embedding")[0]
    return state


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name


# ---- forms


def sharded_folder(tmp: Path, transformer: Transformer) -> Path:
    transformer.save_pretrained(tmp / "transformer", max_shard_size="100KB")
    assert len(list((tmp / "transformer").glob("*.safetensors"))) > 2
    return tmp / "transformer"


def whole_folder(tmp: Path, transformer: Transformer) -> Path:
    transformer.save_pretrained(tmp / "transformer")
    return tmp / "transformer"


def one_of_the_shards(tmp: Path, transformer: Transformer) -> Path:
    return sorted(sharded_folder(tmp, transformer).glob("*.safetensors"))[1]


def shard_without_index(tmp: Path, transformer: Transformer) -> Path:
    shard = one_of_the_shards(tmp, transformer)
    next(shard.parent.glob("*.index.json")).unlink()
    return shard


def index_file(tmp: Path, transformer: Transformer) -> Path:
    return next(sharded_folder(tmp, transformer).glob("*.index.json"))


def pipeline(tmp: Path, transformer: Transformer) -> Path:
    return save_pipeline(tmp / "CogVideoX-5b-I2V", transformer, tiny_vae(), "1MB")


def diffusers_file(tmp: Path, transformer: Transformer) -> Path:
    return save_file_of(tmp / "CogVideoX_1_0_5b_I2V_bf16.safetensors", transformer.state_dict())


def comfyui_file(tmp: Path, transformer: Transformer) -> Path:
    return save_file_of(tmp / "cogvideox.safetensors", comfyui_keys(transformer.state_dict()))


def comfyui_saved_model(tmp: Path, transformer: Transformer) -> Path:
    state = comfyui_keys(transformer.state_dict(), "model.diffusion_model.")
    return save_file_of(tmp / "cogvideox.safetensors", state)


def comfyui_checkpoint(tmp: Path, transformer: Transformer) -> Path:
    state = comfyui_keys(transformer.state_dict(), "model.diffusion_model.")
    state |= {f"vae.{name}": value for name, value in tiny_vae().state_dict().items()}
    state["text_encoders.t5xxl.transformer.shared.weight"] = torch.zeros(2, 2)
    return save_file_of(tmp / "cogvideox.safetensors", state)


FORMS = [
    sharded_folder,
    whole_folder,
    one_of_the_shards,
    shard_without_index,
    index_file,
    pipeline,
    diffusers_file,
    comfyui_file,
    comfyui_saved_model,
    comfyui_checkpoint,
]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_loads_every_weight_exactly(
    form, tmp_path: Path, transformer: Transformer, weights: dict[str, Tensor]
):
    header = read_header(form(tmp_path, transformer))
    assert_same(load_part(header, "backbone").state_dict(), ours(weights))
    assert header.config.backbone.position_table == (13, 30, 45)
    assert "CogVideoX image-to-video" in describe(header)


def test_config_is_read_from_shapes_and_config_json(tmp_path: Path):
    header = read_header(save_pipeline(tmp_path / "pipe", tiny_transformer(norm_eps=2e-5), tiny_vae()))
    backbone = header.config.backbone
    assert (backbone.num_layers, backbone.num_heads, backbone.head_dim) == (2, 2, 32)
    assert (backbone.text_length, backbone.text_dim, backbone.time_embed_dim) == (6, 24, 16)
    assert (backbone.position_table, backbone.norm_eps) == ((3, 4, 6), 2e-5)
    assert (backbone.motion, backbone.image_padding, backbone.rotary_grid) == (False, "zero", None)
    assert header.config.vae.block_out_channels == (8, 8, 16, 16)
    assert (header.config.vae.layers_per_block, header.config.vae.norm_groups) == (1, 4)
    assert (header.config.frames, header.config.height, header.config.width) == (9, 64, 96)
    assert header.config.schedule == ScheduleConfig()
    tableless = tiny_transformer(use_learned_positional_embeddings=False)
    header = read_header(whole_folder(tmp_path, tableless))
    assert (header.config.frames, header.config.height, header.config.width) == (9, 64, 96)


@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "vae."])
def test_vae_files(prefix: str, tmp_path: Path):
    vae = tiny_vae(block_out_channels=(32, 32, 64, 64), norm_num_groups=32)
    state = {prefix + name: value for name, value in vae.state_dict().items()}
    header = read_header(save_file_of(tmp_path / "cogvideox_vae_bf16.safetensors", state))
    assert header.parts == ("vae",)
    assert_same(load_part(header, "vae").state_dict(), vae.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_stored_type_is_kept_or_cast(dtype: torch.dtype, tmp_path: Path, weights: dict[str, Tensor]):
    stored = {name: value.to(dtype) for name, value in weights.items()}
    header = read_header(save_file_of(tmp_path / "x.safetensors", stored))
    assert header.part_dtype("backbone") == dtype
    assert_same(load_part(header, "backbone").state_dict(), ours(stored))
    cast = {name: value.to(torch.float32) for name, value in stored.items()}
    assert_same(load_part(header, "backbone", torch.float32).state_dict(), ours(cast))


def test_fp8_is_kept(tmp_path: Path, weights: dict[str, Tensor]):
    header = read_header(save_file_of(tmp_path / "x.safetensors", fp8(weights)))
    loaded = load_part(header, "backbone").state_dict()
    assert_same(loaded, ours(fp8(weights)))
    assert loaded["transformer_blocks.0.ff.net.2.weight"].dtype == torch.float8_e4m3fn


@pytest.mark.parametrize("form", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("naming", ["diffusers", "comfyui"])
def test_fp8_scales_are_multiplied_in(form: str, naming: str, tmp_path: Path, weights: dict[str, Tensor]):
    stored = fp8(weights, form)
    state = comfyui_keys(stored) if naming == "comfyui" else stored
    header = read_header(save_file_of(tmp_path / "x.safetensors", state))
    assert header.part_dtype("backbone") == torch.bfloat16
    expected = {
        name: (value.float() * stored[name.removesuffix("weight") + form]).bfloat16()
        if value.dtype == torch.float8_e4m3fn
        else value
        for name, value in stored.items()
        if name in weights
    }
    loaded = load_part(header, "backbone").state_dict()
    assert_same(loaded, ours(expected))
    largest = weights["transformer_blocks.0.ff.net.2.weight"].abs().max()
    error = (
        loaded["transformer_blocks.0.ff.net.2.weight"] - weights["transformer_blocks.0.ff.net.2.weight"]
    ).abs()
    assert error.max() < largest / 16


# ---- refusals


def text_to_video(tmp: Path) -> Path:
    return whole_folder(tmp, tiny_transformer(in_channels=16))


def published_2b(tmp: Path) -> Path:
    with torch.device("meta"):
        model = Transformer(num_layers=1, num_attention_heads=30, max_text_seq_length=1, text_embed_dim=8)
    shapes = {
        name: torch.zeros(value.shape, dtype=torch.float8_e4m3fn)
        for name, value in model.state_dict().items()
    }
    shapes["patch_embed.proj.weight"] = torch.zeros(1920, 32, 2, 2, dtype=torch.bfloat16)
    return save_file_of(tmp / "cogvideox-2b-img2vid.safetensors", shapes)


def version_1_5(tmp: Path) -> Path:
    changes = {
        "patch_size_t": 2,
        "ofs_embed_dim": 16,
        "patch_bias": False,
        "use_learned_positional_embeddings": False,
    }
    return whole_folder(tmp, tiny_transformer(**changes))


def version_1_5_file(tmp: Path) -> Path:
    changes = {
        "patch_size_t": 2,
        "ofs_embed_dim": 16,
        "patch_bias": False,
        "use_learned_positional_embeddings": False,
    }
    return save_file_of(tmp / "x.safetensors", comfyui_keys(tiny_transformer(**changes).state_dict()))


def fun_inpainting(tmp: Path) -> Path:
    return whole_folder(tmp, tiny_transformer(in_channels=33))


def other_activation(tmp: Path) -> Path:
    return whole_folder(tmp, tiny_transformer(activation_fn="gelu"))


def other_scheduler(tmp: Path) -> Path:
    folder = save_pipeline(tmp / "pipe", tiny_transformer(), tiny_vae())
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(SCHEDULER | {"prediction_type": "epsilon"}), encoding="utf-8")
    return folder


def vae_of_2b(tmp: Path) -> Path:
    tiny_vae(scaling_factor=1.15258426).save_pretrained(tmp / "vae")
    return tmp / "vae"


def vae_of_1_5(tmp: Path) -> Path:
    tiny_vae(invert_scale_latents=True).save_pretrained(tmp / "vae")
    return tmp / "vae"


def gguf_blocks_in_safetensors(tmp: Path) -> Path:
    state = tiny_transformer(**PUBLISHED_TABLE).state_dict()
    state["transformer_blocks.0.attn1.to_q.weight"] = torch.zeros(72, dtype=torch.uint8)
    return save_file_of(tmp / "CogVideoX_5b_I2V_GGUF_Q4_0.safetensors", state)


def small_position_table(tmp: Path) -> Path:
    return save_file_of(tmp / "x.safetensors", tiny_transformer().state_dict())


def lora(tmp: Path) -> Path:
    name = "transformer.transformer_blocks.0.attn1.to_q.lora_{}.weight"
    return save_file_of(tmp / "x.safetensors", {name.format(x): torch.zeros(2, 2) for x in "AB"})


def kohya_lora(tmp: Path) -> Path:
    name = "lora_unet_transformer_blocks_0_attn1_to_q.lora_{}.weight"
    return save_file_of(tmp / "x.safetensors", {name.format(x): torch.zeros(2, 2) for x in ("up", "down")})


def t5(tmp: Path) -> Path:
    config = T5Config(vocab_size=8, d_model=8, d_ff=8, d_kv=4, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(tmp / "text_encoder")
    return tmp / "text_encoder"


def wan(tmp: Path) -> Path:
    return save_file_of(tmp / "wan.safetensors", {"blocks.0.self_attn.q.weight": torch.zeros(2, 2)})


def anything(tmp: Path) -> Path:
    return save_file_of(tmp / "x.safetensors", {"linear.weight": torch.zeros(2, 3)})


def stripped_metadata(tmp: Path) -> Path:
    with torch.device("meta"):
        model = MMDiT(COGVIDEOX_5B_I2V.backbone)
    names = [f"backbone.{name}" for name in model.state_dict()]
    return save_file_of(tmp / "x.safetensors", {name: torch.zeros(1) for name in names})


def pickle(tmp: Path) -> Path:
    torch.save({"weight": torch.zeros(1)}, tmp / "x.safetensors")
    return tmp / "x.safetensors"


def folder_of_pickles(tmp: Path) -> Path:
    torch.save({"weight": torch.zeros(1)}, tmp / "diffusion_pytorch_model.bin")
    return tmp


def gguf(tmp: Path) -> Path:
    (tmp / "x.gguf").write_bytes(b"GGUF" + bytes(64))
    return tmp / "x.gguf"


def lfs_pointer(tmp: Path) -> Path:
    (tmp / "x.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    return tmp / "x.safetensors"


def truncated(tmp: Path) -> Path:
    file = diffusers_file(tmp, tiny_transformer())
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size - 1)
    return file


def truncated_in_the_header(tmp: Path) -> Path:
    file = diffusers_file(tmp, tiny_transformer())
    with file.open("r+b") as opened:
        opened.truncate(100)
    return file


def empty_file(tmp: Path) -> Path:
    (tmp / "x.safetensors").touch()
    return tmp / "x.safetensors"


def missing_shard(tmp: Path) -> Path:
    one_of_the_shards(tmp, tiny_transformer(**PUBLISHED_TABLE)).unlink()
    return tmp / "transformer"


def missing_block(tmp: Path) -> Path:
    folder = whole_folder(tmp, tiny_transformer())
    state = load_file(folder / "diffusion_pytorch_model.safetensors")
    kept = {name: value for name, value in state.items() if "transformer_blocks.1." not in name}
    save_file(kept, folder / "diffusion_pytorch_model.safetensors")
    return folder


def several_models(tmp: Path) -> Path:
    anything(tmp)
    shutil.copy(tmp / "x.safetensors", tmp / "y.safetensors")
    return tmp


REFUSALS = {
    text_to_video: "text-to-video transformer CogVideoX-5b.*Choose CogVideoX-5b-I2V",
    published_2b: "CogVideoX-2b transformer.*Choose CogVideoX-5b-I2V",
    version_1_5: "CogVideoX 1.5.*Choose CogVideoX-5b-I2V",
    version_1_5_file: "CogVideoX 1.5.*Choose CogVideoX-5b-I2V",
    fun_inpainting: "33 input channels, such as CogVideoX-Fun",
    other_activation: "activation_fn is 'gelu'",
    other_scheduler: "noise schedule that is not CogVideoX's .prediction_type is 'epsilon'",
    vae_of_2b: "scaling factor 1.15",
    vae_of_1_5: "VAE of CogVideoX 1.5",
    gguf_blocks_in_safetensors: "quantised in a form.*use the bf16, fp16 or fp8 file",
    small_position_table: "position table of 78 tokens.*use the diffusers folder",
    lora: "a LoRA .2 tensors.*LoRA loader",
    kohya_lora: "a LoRA .2 tensors.*LoRA loader",
    t5: "T5 text encoder: load it with ComfyUI's CLIP loader",
    wan: "a Wan transformer",
    anything: r"does not know .1 tensors, 0.0 M parameters, F32, such as linear.weight",
    stripped_metadata: "SViMo transformer that lost its metadata",
    pickle: "PyTorch pickle.*ask for a .safetensors",
    folder_of_pickles: "PyTorch pickles.*download the .safetensors",
    gguf: "GGUF file.*use a .safetensors",
    lfs_pointer: "Git LFS pointer.*download the file itself",
    truncated: "damaged: its header announces.*again",
    truncated_in_the_header: "not a complete safetensors file.*again",
    empty_file: "not a complete safetensors file",
    missing_shard: "lacks diffusion_pytorch_model-00002-of-0000.*download them all",
    missing_block: "1 transformer blocks of 2: download it again",
    several_models: "folder with 2 .safetensors files",
}


@pytest.mark.parametrize("make", REFUSALS)
def test_everything_else_is_refused_by_name(make, tmp_path: Path, capsys: pytest.CaptureFixture):
    path = make(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=re.compile(REFUSALS[make], re.DOTALL)):
        read_header(path)
    assert main(["inspect", str(path)]) == 1
    assert re.search(REFUSALS[make], capsys.readouterr().err, re.DOTALL)


def test_no_position_table_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    header = read_header(whole_folder(tmp_path, tiny_transformer(use_learned_positional_embeddings=False)))
    assert header.config.backbone.position_table is None
    assert "no position table" in caplog.text


def test_a_foreign_weight_is_refused(tmp_path: Path, weights: dict[str, Tensor]):
    state = weights | {"transformer_blocks.0.attn1.to_x.weight": torch.zeros(1)}
    header = read_header(save_file_of(tmp_path / "x.safetensors", state))
    with pytest.raises(ValueError, match=r"has an unknown transformer_blocks\.0\.attn1\.to_x\.weight"):
        load_part(header, "backbone")


# ---- full size


@pytest.mark.skipif(sys.platform == "win32", reason="needs sparse files")
def test_full_size_file_opens_as_published(tmp_path: Path):
    with torch.device("meta"):
        published = Transformer(
            **TRANSFORMER
            | PUBLISHED_TABLE
            | {
                "num_attention_heads": 48,
                "attention_head_dim": 64,
                "time_embed_dim": 512,
                "text_embed_dim": 4096,
            }
            | {"num_layers": 42}
        )
    header, end = {}, 0
    for name, value in published.state_dict().items():
        begin, end = end, end + 2 * value.numel()
        header[name] = {"dtype": "BF16", "shape": list(value.shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    file = tmp_path / "CogVideoX_1_0_5b_I2V_bf16.safetensors"
    with file.open("wb") as opened:  # a hole where the data would be
        opened.write(struct.pack("<Q", len(encoded)) + encoded)
        opened.truncate(8 + len(encoded) + end)

    opened = read_header(file)
    expected = COGVIDEOX_5B_I2V.backbone
    found = opened.config.backbone
    assert (found.num_layers, found.num_heads, found.head_dim, found.dim) == (42, 48, 64, expected.dim)
    assert found.position_table == (13, 30, 45)
    assert (opened.config.frames, opened.config.height, opened.config.width) == (49, 480, 720)
    assert sum(tensor.numel for tensor in opened.tensors.values()) == 5_570_479_680 + 54_607_872

    with torch.device("meta"):
        video_only = MMDiT(found)
        started = dict(extend_with_motion(video_only.state_dict().items(), expected))
        complete = MMDiT(expected).state_dict() | {"patch_embed.position_table.weight": None}
    assert {name: tensor.shape for name, tensor in opened.part_tensors("backbone").items()} == {
        name: tuple(value.shape) for name, value in video_only.state_dict().items()
    }
    assert started.keys() == complete.keys()
    assert sum(value.numel() for value in started.values()) == 6_022_619_712


MEMORY = """
import sys, torch
from svimo_core import weights
from svimo_core.checkpoint import convert, load_part, read_header

def peak():
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))

weights.PAGES_HELD = 2**23
torch.ones(1024, 1024, dtype=torch.bfloat16).float().sum()
before = peak()
convert(sys.argv[1], sys.argv[2])
converted = peak() - before
module = load_part(read_header(sys.argv[1]), "backbone")
for value in module.state_dict().values():
    value.view(torch.uint8).flatten()[::1024].sum()  # touch every page
print(converted, peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_of_loading_and_converting(tmp_path: Path):
    with torch.device("meta"):
        model = Transformer(**TRANSFORMER | {"num_attention_heads": 16, "num_layers": 9})
    state = {
        name: torch.zeros(value.shape, dtype=torch.bfloat16) for name, value in model.state_dict().items()
    }
    (tmp_path / "transformer").mkdir()
    model.save_config(tmp_path / "transformer")
    file = save_file_of(tmp_path / "transformer" / "diffusion_pytorch_model.safetensors", state)
    command = [sys.executable, "-c", MEMORY, str(file), str(tmp_path / "svimo.safetensors")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    converted, loaded = map(int, result.stdout.split())
    size = file.stat().st_size
    assert size > 5e7
    assert converted < 4e7  # the pages held and some copies of one tensor: nothing that grows with the file
    assert 0.9 * size < loaded < 1.2 * size


# ---- converting


def test_convert_starts_a_svimo_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture):
    source = save_pipeline(tmp_path / "pipe", tiny_transformer().bfloat16(), tiny_vae().bfloat16(), "100KB")
    assert main(["convert", str(source), str(tmp_path / "svimo.safetensors")]) == 0
    assert "SViMo checkpoint" in capsys.readouterr().out
    header = read_header(tmp_path / "svimo.safetensors")
    assert header.parts == ("backbone", "vae")
    assert header.config.backbone.motion
    assert header.config.backbone.image_padding == "repeat"
    assert (header.config.frames, header.config.height, header.config.width) == (49, 416, 624)
    hashes = {key: value for key, value in header.provenance.items() if key.startswith("sha256 of ")}
    assert len(hashes) == len(list(source.glob("*/*.safetensors")))
    content = (source / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert hashes["sha256 of vae/diffusion_pytorch_model.safetensors"] == hashlib.sha256(content).hexdigest()

    video_only = load_part(read_header(source), "backbone").state_dict()
    joint = load_part(header, "backbone").state_dict()
    assert_same(joint, dict(extend_with_motion(video_only.items(), header.config.backbone)))
    kernel = joint["patch_embed.motion_proj.weight"]
    assert torch.equal(kernel[:, :16], video_only["patch_embed.proj.weight"][:, :16])
    assert not kernel[:, 16:].any()
    modulation = joint["transformer_blocks.1.norm2.linear.weight"].unflatten(0, (3, -1))
    assert torch.equal(modulation[:2].flatten(0, 1), video_only["transformer_blocks.1.norm2.linear.weight"])
    assert torch.equal(modulation[2], modulation[0])
    assert_same(load_part(header, "vae").state_dict(), load_part(read_header(source), "vae").state_dict())


@pytest.mark.parametrize("scales", [None, "scale_weight"])
def test_convert_writes_fp8_as_bfloat16(scales: str | None, tmp_path: Path):
    model = tiny_transformer()
    model.save_config(tmp_path)
    source = save_file_of(tmp_path / "diffusion_pytorch_model.safetensors", fp8(model.state_dict(), scales))
    stored = read_header(source)
    assert stored.part_dtype("backbone") == (torch.bfloat16 if scales else torch.float8_e4m3fn)
    header = read_header(convert(source, tmp_path / "svimo.safetensors"))
    assert {tensor.dtype for tensor in header.tensors.values()} == {"BF16"}
    loaded = load_part(stored, "backbone", torch.bfloat16).state_dict()
    expected = dict(extend_with_motion(loaded.items(), header.config.backbone))
    assert_same(load_part(header, "backbone").state_dict(), expected)


def test_convert_refuses_weights_it_does_not_know(tmp_path: Path, weights: dict[str, Tensor]):
    state = weights | {"transformer_blocks.0.attn1.to_x.weight": torch.zeros(1)}
    source = save_file_of(tmp_path / "x.safetensors", state)
    with pytest.raises(
        ValueError, match=r"has an unknown backbone.transformer_blocks\.0\.attn1\.to_x\.weight"
    ):
        convert(source, tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == [source]


def test_convert_refuses_what_has_no_transformer_or_has_motion_already(
    tmp_path: Path, transformer: Transformer
):
    tiny_vae().save_pretrained(tmp_path / "vae")
    with pytest.raises(ValueError, match="starts from the transformer"):
        convert(tmp_path / "vae", tmp_path / "out.safetensors")
    converted = convert(diffusers_file(tmp_path, transformer), tmp_path / "out.safetensors")
    with pytest.raises(ValueError, match="is a SViMo checkpoint with backbone: convert starts"):
        convert(converted, tmp_path / "again.safetensors")


def test_a_stopped_conversion_leaves_nothing(tmp_path: Path, transformer: Transformer):
    source = diffusers_file(tmp_path, transformer)

    def stop_late(done: int, total: int) -> None:
        if done > 0.9 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out.safetensors", on_progress=stop_late)
    assert list(tmp_path.iterdir()) == [source]


KILLED = """
import sys, time
from svimo_core.checkpoint import convert

def stall(done, total):
    if done > 0.9 * total:
        print("late", flush=True)
        time.sleep(60)

convert(sys.argv[1], sys.argv[2], on_progress=stall)
"""


def test_a_killed_conversion_leaves_no_file_that_looks_whole(tmp_path: Path, transformer: Transformer):
    source, target = diffusers_file(tmp_path, transformer), tmp_path / "out.safetensors"
    command = [sys.executable, "-c", KILLED, str(source), str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline().strip() == b"late"
        process.kill()
    assert not target.exists()
    for leftover in set(tmp_path.iterdir()) - {source}:
        assert leftover.suffix == ".partial"
    convert(source, target)
    assert read_header(target).parts == ("backbone",)
