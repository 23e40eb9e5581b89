"""Memory management and T5 through ComfyUI, checked from the inside."""

from helpers.inside import run_inside


def test_partly_loaded_model_gives_the_same_result(checkpoint_file):
    """With a budget of a tenth of its size most layers stay offloaded and are cast at use."""
    run_inside(
        """
        from pack.nodes.load import load_backbone, read_header

        header = read_header(args[0])
        config = header.config
        shape = (1, *config.latent_shape(config.frames, config.height, config.width))
        inputs = [torch.randn(shape), torch.randn(shape)]
        text = torch.randn(1, config.backbone.text_length, config.backbone.text_dim)
        motion = [torch.randn(shape), torch.randn(shape)]
        for dtype in (None, torch.bfloat16, torch.float8_e4m3fn):
            outputs = []
            for budget in (0, 0.1):
                patcher = load_backbone(header, dtype)
                stored = {weight.dtype for weight in patcher.model.parameters()}
                assert stored == {dtype or torch.float32}, stored
                patcher.patch_model(patcher.load_device, lowvram_model_memory=int(budget * patcher.model_size()))
                casting = [m for m in patcher.model.modules() if getattr(m, "comfy_cast_weights", False)]
                leaves = [m for m in patcher.model.modules() if list(m.parameters(recurse=False))]
                assert all(hasattr(m, "comfy_cast_weights") for m in leaves), "a weight outside of operations"
                if budget:
                    assert len(casting) > len(leaves) / 2
                with torch.inference_mode():
                    outputs.append(patcher.model.diffusion_model(*inputs, text, torch.tensor([500]), *motion))
            for full, part in zip(*outputs):
                assert torch.isfinite(full).all()
                torch.testing.assert_close(full, part)
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


def test_t5_through_core_is_transformers_t5_on_226_tokens():
    """Core's T5 code at a small size, through our tokens, against transformers on the same weights and ids."""
    run_inside(
        """
        import json, tempfile
        import comfy.text_encoders.t5, comfy.text_encoders.sd3_clip, comfy.sd1_clip
        from transformers import T5Config, T5EncoderModel
        from pack.nodes.condition import tokenize_as_cogvideox

        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 32128}
        with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
            json.dump(sizes | {
                "dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": True, "model_type": "t5", "output_past": True,
                "layer_norm_epsilon": 1e-6, "relative_attention_num_buckets": 32, "decoder_start_token_id": 0,
            }, file)
        theirs = T5EncoderModel(T5Config(**sizes, feed_forward_proj="gated-gelu", dropout_rate=0.0)).eval()
        for weight in theirs.parameters():
            torch.nn.init.normal_(weight, mean=float(weight.detach().mean()), std=0.3)
        ours = comfy.sd1_clip.SDClipModel(
            textmodel_json_config=file.name, special_tokens={"end": 1, "pad": 0}, dtype=torch.float32,
            model_class=comfy.text_encoders.t5.T5, layer="last",
        )
        weights = {k: v for k, v in theirs.state_dict().items() if k != "encoder.embed_tokens.weight"}
        missing, unexpected = ours.transformer.load_state_dict(weights, strict=False)
        assert not missing and not unexpected, (missing, unexpected)

        class Clip:
            options = {}
            tokenizer = comfy.text_encoders.sd3_clip.T5XXLTokenizer()

            def clone(self):
                return self

            def set_tokenizer_option(self, name, value):
                self.options = {**self.options, name: value}

            def tokenize(self, text):
                return {"t5xxl": self.tokenizer.tokenize_with_weights(text, tokenizer_options=self.options)}

        hub = Clip.tokenizer.tokenizer  # the T5 tokenizer that CogVideoX's pipeline uses, too
        for text in ("use spoon to stir cup", "", "a very long story " * 80):
            tokens = tokenize_as_cogvideox(Clip(), text)["t5xxl"]
            ids = [token for token, weight in tokens[0]]
            expected = hub(text, padding="max_length", max_length=226, truncation=True, return_tensors="pt").input_ids
            assert ids == expected[0].tolist(), (ids[-5:], expected[0, -5:])
            with torch.inference_mode():
                found = ours.encode_token_weights(tokens)[0]
                reference = theirs(input_ids=expected).last_hidden_state
            assert found.shape == (1, 226, 32)
            torch.testing.assert_close(found, reference, rtol=1e-4, atol=1e-4)
        """
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
