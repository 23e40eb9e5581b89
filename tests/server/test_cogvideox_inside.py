"""CogVideoX's weights in the nodes, to the last digit: positions, and LoRAs on a converted model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from helpers.inside import run_inside
from helpers.tiny_cogvideox import save_file_of, tiny_transformer
from torch import Tensor

from svimo_core.checkpoint import convert

LAYERS = {
    "transformer_blocks.0.norm1.linear": (384, 16),
    "transformer_blocks.1.norm2.linear": (384, 16),
    "transformer_blocks.1.attn1.to_q": (64, 64),
    "transformer_blocks.0.ff.net.2": (64, 256),
    "norm_out.linear": (128, 16),
}
"""Layers with a LoRA, and their sizes in CogVideoX."""
RANK, ALPHA, STRENGTH = 4, 2.0, 0.7


def test_rotary_positions_of_the_loader_are_those_of_diffusers(tmp_path: Path):
    tiny_transformer(use_learned_positional_embeddings=False).save_pretrained(tmp_path / "tiny")
    run_inside(
        """
        import folder_paths
        from diffusers import CogVideoXImageToVideoPipeline, CogVideoXTransformer3DModel
        from pack.nodes.load import SViMoDiffusionModelLoader
        from pack.svimo_core.model.mmdit import MMDiT

        folder_paths.add_model_folder_path("diffusion_models", args[0])
        reference = CogVideoXTransformer3DModel.from_pretrained(args[0] + "/tiny")
        pipe = CogVideoXImageToVideoPipeline(None, None, None, reference, None)

        def network(*choice):
            name = "tiny/diffusion_pytorch_model.safetensors"
            return SViMoDiffusionModelLoader.execute(name, "default", *choice).result[0].model.diffusion_model

        models = {"": network(), "as_trained": network("as_trained"), "diffusers": network("diffusers")}
        for native, (frames, height, width) in ((True, (3, 8, 12)), (False, (5, 10, 8)), (False, (1, 8, 20))):
            video, image = torch.randn(2, 1, 16, frames, height, width)
            text, timestep = torch.randn(1, 6, 24), torch.tensor([500])
            rotary = pipe._prepare_rotary_positional_embeddings(8 * height, 8 * width, frames, video.device)
            hidden = torch.cat([video, image], dim=1).transpose(1, 2)
            with torch.inference_mode():
                found = {key: MMDiT.forward(model, video, image, text, timestep)[0] for key, model in models.items()}
                expected = reference(hidden, text, timestep, image_rotary_emb=rotary, return_dict=False)[0]
            torch.testing.assert_close(found["diffusers"], expected.transpose(1, 2), rtol=1e-5, atol=1e-5)
            assert torch.equal(found[""], found["as_trained"]), "another default"
            assert native == torch.allclose(found["as_trained"], found["diffusers"], atol=1e-4), native
        try:
            network("rescaled")
        except ValueError as error:
            assert "rotary_positions is 'rescaled'" in str(error), error
        else:
            raise AssertionError("accepted")
        """,
        str(tmp_path),
    )


@pytest.fixture(scope="module")
def lora_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted model, the same with a LoRA merged before the conversion, and this LoRA under two namings; and LoRAs
    that do not fit."""
    folder = tmp_path_factory.mktemp("lora")
    model = tiny_transformer(use_learned_positional_embeddings=False)
    model.save_pretrained(folder / "plain")
    convert(folder / "plain", folder / "plain.safetensors")

    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / 8

    peft, kohya, weights = {}, {}, model.state_dict()
    for layer, (rows, columns) in (LAYERS | {"patch_embed.proj": (64, 32)}).items():
        kernel = (2, 2) if layer == "patch_embed.proj" else ()
        down, up, bias = (
            random(RANK, columns, *kernel),
            random(rows, RANK, *(1 for _ in kernel)),
            random(rows),
        )
        name = f"lora_unet_{layer.replace('.', '_')}"
        peft |= {f"transformer.{layer}.lora_A.weight": down, f"transformer.{layer}.lora_B.weight": up}
        kohya |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        for file, at in ((peft, f"transformer.{layer}"), (kohya, name)):
            file |= {f"{at}.alpha": torch.tensor(ALPHA), f"{at}.diff_b": bias}
        change = (up.flatten(1) @ down.flatten(1)).reshape(weights[f"{layer}.weight"].shape)
        weights[f"{layer}.weight"] += STRENGTH * ALPHA / RANK * change
        weights[f"{layer}.bias"] += STRENGTH * bias
    whole = random(384, 16)  # a difference that is no product
    peft["transformer.transformer_blocks.1.norm1.linear.diff"] = whole
    kohya["lora_unet_transformer_blocks_1_norm1_linear.diff"] = whole
    weights["transformer_blocks.1.norm1.linear.weight"] += STRENGTH * whole
    save_file_of(folder / "peft.safetensors", peft)
    save_file_of(folder / "kohya.safetensors", kohya)
    model.load_state_dict(weights)
    model.save_pretrained(folder / "merged")
    convert(folder / "merged", folder / "merged.safetensors")

    name = "lora_unet_transformer_blocks_0_norm1_linear"
    factors = {f"{name}.lora_down.weight": random(RANK, 16), f"{name}.lora_up.weight": random(384, RANK)}
    dora = factors | {f"{name}.dora_scale": random(384, 1)}
    save_file_of(folder / "dora.safetensors", dora)
    loha = {
        f"{name}.hada_w{i}_{x}": random(*((384, RANK) if x == "a" else (RANK, 16)))
        for i in (1, 2)
        for x in "ab"
    }
    save_file_of(folder / "loha.safetensors", loha)
    wider = {f"{name}.lora_down.weight": random(RANK, 16), f"{name}.lora_up.weight": random(390, RANK)}
    save_file_of(folder / "wider.safetensors", wider)
    return folder


def test_a_lora_on_a_converted_model_equals_converting_the_merged_weights(lora_files: Path):
    run_inside(
        """
        import comfy.sd, comfy.utils, folder_paths
        from pack.nodes.load import SViMoDiffusionModelLoader, SViMoLoraLoader

        for category in ("diffusion_models", "loras"):
            folder_paths.add_model_folder_path(category, args[0])

        def model(name):
            return SViMoDiffusionModelLoader.execute(name, "default").result[0]

        def with_core(model, name, strength):
            file = comfy.utils.load_torch_file(args[0] + "/" + name, safe_load=True)
            return comfy.sd.load_lora_for_models(model, None, file, strength, 0)[0]

        def with_ours(model, name, strength):
            return SViMoLoraLoader.execute(model, name, strength).result[0]

        plain, merged = model("plain.safetensors"), model("merged.safetensors").model.diffusion_model
        expected = merged.state_dict()
        original = {name: value.clone() for name, value in plain.model.diffusion_model.state_dict().items()}
        changed = {name for name in expected if not torch.equal(expected[name], original[name])}
        assert "patch_embed.motion_proj.weight" in changed and "patch_embed.motion_proj.bias" in changed, changed
        video, drawing, guidance = (torch.randn(1, 16, 3, 8, 12) for _ in range(3))
        given = [video, drawing], torch.tensor([500.0]), torch.randn(1, 6, 24)
        conds = dict(image=torch.randn(1, 16, 1, 8, 12), guidance=guidance)
        with torch.inference_mode():
            answers = merged(*given, **conds)
            for load, name in ((with_ours, "peft"), (with_ours, "kohya"), (with_core, "kohya")):
                patched = load(plain, name + ".safetensors", 0.7)
                patched.patch_model(patched.load_device)
                network = patched.model.diffusion_model
                for key, value in network.state_dict().items():
                    torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6, msg=lambda m: f"{key}: {m}")
                patched.unpatch_model(patched.offload_device)
                for key, value in network.state_dict().items():
                    assert torch.equal(value, original[key]), f"{key} stays patched"
                patched.patch_model(patched.load_device, lowvram_model_memory=1)  # patched at use, layer by layer
                for found, answer in zip(network(*given, **conds), answers):
                    torch.testing.assert_close(found, answer, rtol=1e-4, atol=1e-4)
                patched.unpatch_model(patched.offload_device)
        assert not plain.patches
        """,
        str(lora_files),
    )


def test_loras_that_do_not_fit_or_are_damaged_are_refused(lora_files: Path):
    """A damaged one in one sentence that names the file where our node reads it; core's loaders say their own of a
    file, and what they read our MODEL takes or refuses. `SVIMO_FUZZ` sets how many there are, five times."""
    told = run_inside(
        """
        import inspect, os
        from collections import Counter
        from pathlib import Path
        import comfy.lora, comfy.lora_convert, comfy.sd, comfy.utils, folder_paths
        import numpy as np
        from comfy.model_patcher import ModelPatcher
        from pack.nodes.load import SViMoDiffusionModelLoader, SViMoLoraLoader

        for category in ("diffusion_models", "loras"):
            folder_paths.add_model_folder_path(category, args[0])
        converted = SViMoDiffusionModelLoader.execute("plain.safetensors", "default").result[0]
        original = SViMoDiffusionModelLoader.execute("plain/diffusion_pytorch_model.safetensors", "default").result[0]
        refusals = (
            (converted, "dora.safetensors", "with a DoRA, which cannot be carried over"),
            (converted, "loha.safetensors", "with a LoHa, which cannot be carried over"),
            (converted, "wider.safetensors", "390 x 16 values of transformer_blocks.0.norm1.linear.weight"),
            (original, "wider.safetensors", "and this model has 384 x 16: it was trained for another model"),
        )
        if "disable_dynamic" in inspect.signature(ModelPatcher.clone).parameters:
            converted.is_dynamic = lambda: True  # for TorchCompileModel, core then makes another of its plain kind
            compiled = converted.clone(disable_dynamic=True)
            del converted.is_dynamic
            assert compiled.model is not converted.model
            refusals += ((compiled, *refusals[0][1:]),)
        for model, name, message in refusals:
            file = comfy.utils.load_torch_file(args[0] + "/" + name, safe_load=True)
            for load in (
                lambda: SViMoLoraLoader.execute(model, name, 1.0),
                lambda: comfy.sd.load_lora_for_models(model, None, file, 1.0, 0),
            ):
                try:
                    load()
                except ValueError as error:
                    assert message in str(error), error
                else:
                    raise AssertionError(name + " was accepted")
        for name in ("dora.safetensors", "loha.safetensors"):  # core applies them to CogVideoX itself
            assert SViMoLoraLoader.execute(original, name, 1.0).result[0].patches

        sys.path.append(args[1])
        from helpers.damage import damage

        outcomes, file = Counter(), Path(args[0], "hurt.safetensors")
        for seed in range(int(os.environ.get("SVIMO_FUZZ", "400")) // 5):
            rng, model = np.random.default_rng([seed, 23]), (converted, original)[seed % 2]
            sound = Path(args[0], ("peft", "kohya")[seed // 2 % 2] + ".safetensors")
            file.write_bytes(damage(rng, file.name, sound.read_bytes()))
            patched = []
            try:
                patched.append(SViMoLoraLoader.execute(model, file.name, 0.7).result[0])
            except (ValueError, OSError) as error:
                said = str(error)
                assert file.name in said and "\\n" not in said and len(said) < 700, (seed, error)
            outcomes["read" if patched else "refused"] += 1
            try:
                keys = comfy.lora.model_lora_keys_unet(model.model, {})
                read = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(str(file), safe_load=True))
                patches = comfy.lora.load_lora(read, keys)
            except Exception:  # core's own
                patches = None
            if patches is not None:
                clone = model.clone()
                try:
                    clone.add_patches(patches, 0.7)
                    patched.append(clone)
                except ValueError as error:
                    assert "\\n" not in str(error), (seed, error)
            for patcher in patched:
                patcher.patch_model(patcher.load_device)
                patcher.unpatch_model(patcher.offload_device)
        assert min(outcomes["read"], outcomes["refused"]) > 5, outcomes
        print(dict(outcomes))
        """,
        str(lora_files),
        str(Path(__file__).parents[1]),
    )
    sys.stdout.write(told)
