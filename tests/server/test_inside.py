"""Memory management and T5 through ComfyUI, checked from the inside."""

from pathlib import Path

import pytest
from helpers.inside import run_inside

from dev.comfy import ROOT


def test_partly_loaded_model_gives_the_same_result(checkpoint_file):
    """With a budget of a tenth of its size most layers stay offloaded and are cast at use. Attention is core's."""
    run_inside(
        """
        import pack.nodes.backbone
        from pack.nodes.load import load_backbone, read_header

        cores, attended = pack.nodes.backbone.optimized_attention, []
        pack.nodes.backbone.optimized_attention = lambda *a, **k: attended.append(1) or cores(*a, **k)
        header = read_header(args[0])
        config = header.config
        shape = (1, *config.latent_shape(config.frames, config.height, config.width))
        streams, time = [torch.randn(shape), torch.randn(shape)], torch.tensor([500.0])
        text = torch.randn(1, config.backbone.text_length, config.backbone.text_dim)
        conds = dict(image=torch.randn(shape)[:, :, :1], guidance=torch.randn(shape))
        for dtype in (None, torch.bfloat16, torch.float8_e4m3fn):
            outputs = []
            for budget in (0, 0.1):
                patcher = load_backbone(header, dtype)
                stored = {weight.dtype for weight in patcher.model.diffusion_model.parameters()}
                assert stored == {dtype or torch.float32}, stored
                patcher.patch_model(patcher.load_device, lowvram_model_memory=int(budget * patcher.model_size()))
                casting = [m for m in patcher.model.modules() if getattr(m, "comfy_cast_weights", False)]
                leaves = [m for m in patcher.model.modules() if list(m.parameters(recurse=False))]
                assert all(hasattr(m, "comfy_cast_weights") for m in leaves), "a weight outside of operations"
                if budget:
                    assert len(casting) > len(leaves) / 2
                with torch.inference_mode():
                    outputs.append(patcher.model.diffusion_model(streams, time, text, **conds))
            for full, part in zip(*outputs):
                assert torch.isfinite(full).all()
                torch.testing.assert_close(full, part)
        assert len(attended) == 6 * config.backbone.num_layers
        # fp8 storage with bf16 compute, as on a GPU
        halves = [x.bfloat16() for x in streams]
        with torch.inference_mode():
            in_half = patcher.model.diffusion_model(
                halves, time, text.bfloat16(), **{name: x.bfloat16() for name, x in conds.items()}
            )
        for half, full in zip(in_half, outputs[0]):
            assert half.dtype == torch.bfloat16
            assert 0 < (half - full).norm() < 0.05 * full.norm()
        """,
        str(checkpoint_file),
    )


def test_every_vid_weight_can_be_cast(checkpoint_file):
    run_inside(
        """
        from pack.nodes.load import load_interaction, read_header

        vid = load_interaction(read_header(args[0])).patcher.model
        leaves = [m for m in vid.modules() if list(m.parameters(recurse=False))]
        assert leaves and all(hasattr(m, "comfy_cast_weights") for m in leaves)
        """,
        str(checkpoint_file),
    )


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float8_e4m3fn", "scaled"])
def test_t5_through_core_is_transformers_t5_on_226_tokens(stored: str, tmp_path: Path):
    """A T5 that core takes for T5-XXL: every type of core's CLIP loader gives the features that transformers gives for
    the same ids and weights, or our node says which type does."""
    run_inside(
        """
        import comfy.sd, comfy.text_encoders.sd3_clip, nodes
        from safetensors.torch import save_file
        from transformers import T5Config, T5EncoderModel
        from pack.nodes.clip import t5_type, tokenize_as_cogvideox
        from pack.nodes.condition import SViMoTextEncode

        # As deep as T5-XXL, and as wide in the one place by which this core knows it: the inner layer, or (older) the
        # outer. Tiny in all else.
        inner = torch.empty(10240, 16, device="meta")
        newer = comfy.sd.detect_te_model({"encoder.block.23.layer.1.DenseReluDense.wi_1.weight": inner})
        widths = {"d_model": 16, "d_ff": 10240} if newer == comfy.sd.TEModel.T5_XXL else {"d_model": 4096, "d_ff": 8}
        sizes = widths | {"d_kv": 4, "num_heads": 2, "vocab_size": 1600}
        hub = comfy.text_encoders.sd3_clip.T5XXLTokenizer().tokenizer  # that of CogVideoX's pipeline, too
        padded = {"padding": "max_length", "max_length": 226, "truncation": True, "return_tensors": "pt"}
        stored = args[1]
        # 1. weights
        scaled, dtype = stored == "scaled", getattr(torch, stored, torch.float8_e4m3fn)
        config = T5Config(**sizes, num_layers=24, feed_forward_proj="gated-gelu")
        theirs, saved, file = T5EncoderModel(config).eval(), {}, f"{args[0]}/{stored}.safetensors"
        with torch.inference_mode():
            for name, weight in theirs.named_parameters():
                matrix = weight.ndim == 2 and "shared" not in name and "relative" not in name
                torch.nn.init.normal_(weight, mean=float(weight.mean()), std=0.03 if matrix else 0.3)
                if scaled and matrix:  # one factor for each linear layer, the rest in float16
                    scale = weight.abs().max() / 448
                    saved[name] = (weight / scale).to(dtype)
                    saved[name.removesuffix("weight") + "scale_weight"] = scale
                    weight.copy_(saved[name].float() * scale)
                else:
                    saved[name] = weight.to(torch.float16 if scaled else dtype)
                    weight.copy_(saved[name].half() if stored == "float32" else saved[name])  # as core has it
        saved["encoder.embed_tokens.weight"] = saved["shared.weight"].clone()  # published files have it twice
        if scaled:
            saved["scaled_fp8"] = torch.zeros(0, dtype=dtype)
        save_file(saved, file)

        # 2. every type that the loader offers, in one of the forms
        types = nodes.CLIPLoader.INPUT_TYPES()["required"]["type"][0]
        assert {"sd3", "mochi", "wan", t5_type()} <= set(types), types
        types.remove("wan")  # its UMT5 has other weights
        own = {"cogvideox"} & set(types)  # core's own for CogVideoX, since 0.21
        assert own or t5_type() == "sd3"
        accepted = set()
        for type in types if stored == "bfloat16" else ["sd3", *own]:
            clip_type = getattr(comfy.sd.CLIPType, type.upper(), comfy.sd.CLIPType.STABLE_DIFFUSION)
            options = {"t5xxl_model_config": dict(sizes)}
            try:
                clip = comfy.sd.load_clip([file], clip_type=clip_type, model_options=options)
            except FileNotFoundError:  # some copies of ComfyUI lack its Llama's tokenizer, a large file
                assert type == "hidream", type
                continue
            try:
                tokenize_as_cogvideox(clip, "")
            except ValueError as error:
                assert f"type {t5_type()}" in str(error), error
                if type == "mochi":  # and rightly so
                    ids = hub("use the hand", **padded).input_ids
                    with torch.inference_mode():
                        found = clip.encode_from_tokens({"t5xxl": [[(int(i), 1.0) for i in ids[0]]]})
                        assert (found - theirs(input_ids=ids).last_hidden_state).abs().max() > 0.1
                continue
            accepted.add(type)
            for text in ("use the hand to open the water", "", "a very long story " * 80):
                ids = hub(text, **padded).input_ids
                tokens = tokenize_as_cogvideox(clip, text)["t5xxl"]
                assert [token for token, weight in tokens[0]] == ids[0].tolist(), type
                with torch.inference_mode():
                    found = SViMoTextEncode.execute(clip, text).result[0][0][0]
                    expected = theirs(input_ids=ids).last_hidden_state
                assert found.shape == (1, 226, sizes["d_model"]), (type, found.shape)
                torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3, msg=lambda m: f"{type}: {m}")
        assert accepted == own | ({"sd3", "pixart", "chroma"} if stored == "bfloat16" else {"sd3"}), accepted
        """,
        str(tmp_path),
        stored,
    )


def test_decoding_goes_on_in_tiles_when_memory_runs_out(checkpoint_file):
    """The whole clip fails as a full GPU makes it fail; tiles get through and the picture is nearly the same."""
    run_inside(
        """
        import comfy.model_management
        from pack.nodes.load import load_vae, read_header

        vae = load_vae(read_header(args[0]))
        network = vae.video_vae.model
        network.enable_tiling(32, 32, tile_overlap_factor_height=1 / 4, tile_overlap_factor_width=1 / 4)
        network.use_tiling = False
        latent = torch.randn(1, 16, 3, 8, 8)
        with torch.inference_mode():
            whole = vae.decode(latent)
            calls = []

            def full_gpu(module, inputs):
                calls.append(inputs[0].shape[-1])
                if inputs[0].shape[-1] > 4:
                    raise comfy.model_management.OOM_EXCEPTION("out of memory")

            network.decoder.register_forward_pre_hook(full_gpu)
            tiled = vae.decode(latent)
        assert calls[0] == 8 and len(calls) > 4 and max(calls[1:]) == 4, calls
        assert tiled.shape == whole.shape == (1, 9, 64, 64, 3), (tiled.shape, whole.shape)
        near = torch.corrcoef(torch.stack([tiled.flatten(), whole.flatten()]))[0, 1]
        assert near > 0.8, near  # group norm sees a tile in place of the frame
        assert not network.use_tiling
        """,
        str(checkpoint_file),
    )


def test_frames_that_stay_on_the_card():
    """As with --gpu-only. PyTorch's fake tensors know where they are; NumPy takes what is on the CPU alone."""
    run_inside(
        """
        import numpy as np
        from pathlib import Path
        from PIL import Image
        from torch._subclasses.fake_tensor import FakeTensorMode
        from pack.nodes.rig import SViMoOverlayMotion
        from pack.nodes.view import save_sheet
        from pack.svimo_core.motion import HandObjectMotion

        def numpy(tensor):
            assert tensor.device.type == "cpu", "NumPy was given what is on the card"
            return np.zeros(tensor.shape, np.uint8)

        motion = HandObjectMotion.load(args[0])
        with FakeTensorMode(allow_non_fake_inputs=True):
            frames = torch.empty(len(motion), 64, 96, 3, device="cuda")
            assert SViMoOverlayMotion.execute(frames, motion, 0.5).result[0].device.type == "cuda"
            torch.Tensor.numpy, Image.Image.save = numpy, lambda *_, **__: None
            assert save_sheet(Path("sheet.jpg"), frames)["columns"] == 5
        """,
        str(ROOT / "assets" / "motions" / "stir_cup.npz"),
    )
