from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from svimo_core.checkpoint import init_part
from svimo_core.model.alignment import ImageAlignment
from svimo_core.model.interaction import InteractionModel, pool
from svimo_core.model.layers import cell_coordinates, scaled_dot_product_attention
from svimo_core.model.mmdit import MMDiT, SeparateMMDiT, extend_with_motion
from svimo_core.model.text import hand_object_prompt
from svimo_core.model.vae import VideoVAE, build_vae, fit_preview
from svimo_core.sampling.pipeline import SViMo, encode_image
from svimo_train.data.synthetic import generate_clip

ROOT = Path(__file__).resolve().parents[2]


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def latents(config):
    shape = (2, *config.latent_shape(config.frames, config.height, config.width))
    return {name: noise(*shape, seed=i) for i, name in enumerate(("video", "image", "drawing", "guidance"))}


# MM-DiT


@torch.no_grad()
def test_streams_see_each_other_and_their_conditions(model, latents, config):
    network, time = model.backbone, torch.tensor([500, 20])
    text = noise(2, config.backbone.text_length, config.backbone.text_dim)

    def run(**changed):
        values = {**latents, "text": text, **changed}
        return network(
            values["video"], values["image"], values["text"], time, values["drawing"], values["guidance"]
        )

    video, drawing = run()
    assert video.shape == drawing.shape == latents["video"].shape
    for name in ("video", "image", "drawing", "guidance", "text"):
        changed = run(**{name: noise(*(text if name == "text" else latents[name]).shape, seed=9)})
        assert not torch.allclose(video, changed[0])
        assert not torch.allclose(drawing, changed[1])


@torch.no_grad()
@pytest.mark.parametrize("separate", [False, True])
def test_blocks_can_be_run_in_another_way(config, latents, separate):
    """As ComfyUI's block patches do; what they return goes on."""
    torch.manual_seed(0)
    network = (SeparateMMDiT if separate else MMDiT)(config.backbone)
    text = noise(2, config.backbone.text_length, config.backbone.text_dim)
    inputs = latents["video"], latents["image"], text, torch.tensor([900, 1])
    streams = dict(drawing=latents["drawing"], guidance=latents["guidance"])
    layers, seen = config.backbone.num_layers, []

    def double_last(index, block, tokens):
        seen.append((index, len(tokens)))
        tokens = block(tokens)
        return [2 * stream for stream in tokens] if index == layers - 1 else tokens

    plain = network(*inputs, **streams)
    passed_on = network(*inputs, **streams, run_block=lambda index, block, tokens: block(tokens))
    skipped = network(*inputs, **streams, run_block=lambda index, block, tokens: tokens)
    doubled = network(*inputs, **streams, run_block=double_last)
    for one, same, other, scaled in zip(plain, passed_on, skipped, doubled, strict=True):
        assert torch.equal(one, same)
        assert not torch.allclose(one, other, atol=1e-4)
        torch.testing.assert_close(
            scaled, one, atol=1e-3, rtol=1e-3
        )  # the last layer norm takes a factor out
        assert not torch.equal(scaled, one)
    assert seen == ([(0, 2), (1, 2)] * 2 if separate else [(0, 3), (1, 3)])

    def stop(index, block, tokens):
        seen.append(index)
        if index == 1:
            raise InterruptedError
        return block(tokens)

    seen.clear()
    with pytest.raises(InterruptedError):
        network(*inputs, **streams, run_block=stop)
    assert seen == [0, 1]


@torch.no_grad()
@pytest.mark.parametrize("separate", [False, True])
def test_attention_hears_its_options(config, latents, separate):
    """As ComfyUI's attention functions need `transformer_options`; without any there are none."""
    heard = []

    def attention(q, k, v, **options):
        heard.append(options)
        return scaled_dot_product_attention(q, k, options.get("sign", 1) * v)

    torch.manual_seed(0)
    network = (SeparateMMDiT if separate else MMDiT)(config.backbone, attention=attention)
    text = noise(2, config.backbone.text_length, config.backbone.text_dim)
    inputs = latents["video"], latents["image"], text, torch.tensor([900, 1]), latents["drawing"]
    calls = config.backbone.num_layers * (2 if separate else 1)
    plain = network(*inputs, latents["guidance"])
    assert heard == [{}] * calls
    heard.clear()
    options = {"sign": -1, "patches": object()}
    changed = network(*inputs, latents["guidance"], attention_options=options)
    assert heard == [options] * calls
    for one, other in zip(plain, changed, strict=True):
        assert not torch.allclose(one, other, atol=1e-4)
    heard.clear()
    network(*inputs, latents["guidance"], run_block=lambda _, block, x: block(x), attention_options=options)
    assert heard == [options] * calls


class Unloaded:
    """Leaves that take the place of `torch.nn`'s while their weights are elsewhere, as ComfyUI has them whose memory
    is managed: there is nothing to touch."""


def _unloaded(leaf: type) -> type:
    def __init__(self, *args, **options):
        super(made, self).__init__(*args, **options)
        self.weight = None
        if hasattr(self, "bias"):
            self.bias = None

    made = type(leaf.__name__, (leaf,), {"__init__": __init__})
    return made


for _leaf in ("Linear", "LayerNorm", "GroupNorm", "Conv1d", "Conv2d", "Conv3d", "Embedding"):
    setattr(Unloaded, _leaf, _unloaded(getattr(torch.nn, _leaf)))


def test_networks_can_be_built_before_they_have_weights(config):
    table = replace(config.backbone, position_table=(3, 2, 3))
    networks = [
        MMDiT(table, Unloaded),
        SeparateMMDiT(config.backbone, Unloaded),
        InteractionModel(config.interaction, Unloaded),
        ImageAlignment(config.interaction, Unloaded),
    ]
    for network in networks:
        assert list(network.parameters()) == []
        assert sum(hasattr(module, "weight") for module in network.modules()) > 10


def test_drawn_weights_are_a_seeds_and_correct_nothing_at_first(config):
    alignment = init_part(config, "interaction", 3).alignment
    assert not any(last.weight.any() or last.bias.any() for last in (alignment.shift, alignment.joint))
    assert alignment.hidden.weight.any()
    again, other = (init_part(config, "interaction", seed).state_dict() for seed in (3, 4))
    state = init_part(config, "interaction", 3).state_dict()
    assert all(torch.equal(state[key], again[key]) for key in state)
    assert any(not torch.equal(state[key], other[key]) for key in state)


def test_image_condition_repeats_or_pads(model, config):
    image = noise(1, 16, 4, 6)
    repeated = model.backbone.image_condition(image, 3)
    assert torch.equal(repeated[:, :, 2], image)
    padded = MMDiT(replace(config.backbone, image_padding="zero")).image_condition(image, 3)
    assert torch.equal(padded[:, :, 0], image)
    assert padded[:, :, 1:].abs().max() == 0


@torch.no_grad()
def test_untrained_guidance_changes_nothing_after_init_from_video(config, latents):
    torch.manual_seed(0)
    video_only = MMDiT(replace(config.backbone, motion=False))
    network = MMDiT(config.backbone)
    network.load_state_dict(
        dict(extend_with_motion(video_only.state_dict().items(), config.backbone)), strict=True
    )
    text, time = noise(2, config.backbone.text_length, config.backbone.text_dim), torch.tensor([5, 900])
    run = [
        network(latents["video"], latents["image"], text, time, latents["drawing"], guidance)
        for guidance in (latents["guidance"], torch.zeros_like(latents["guidance"]))
    ]
    torch.testing.assert_close(run[0], run[1], rtol=0, atol=0)
    # Motion rows copy the video ones: a motion stream fed like a video without an image answers like one.
    alone = network(
        latents["video"], torch.zeros_like(latents["video"]), text, time, latents["video"], latents["image"]
    )
    torch.testing.assert_close(alone[0], alone[1])


# VID


@pytest.fixture(params=["levels", "one level of patches"])
def vid(request, model, config) -> InteractionModel:
    """In both forms that presets have."""
    if request.param == "levels":
        return model.interaction
    torch.manual_seed(0)
    one = dict(patch=2, pyramid_channels=(8,), denoiser_channels=(16,), read_grid=(2, 3), read_blocks=1)
    return InteractionModel(replace(config.interaction, **one)).eval()


@torch.no_grad()
def test_vid_reads_both_latents_its_motion_and_the_time(vid, latents, config):
    hands, points = noise(2, config.frames, 42, 3), noise(2, config.frames, config.interaction.num_points, 3)

    def run(hands=hands, points=points, video=latents["video"], drawing=latents["drawing"], time=(500, 20)):
        return vid(hands, points, video, drawing, torch.tensor(time))

    out = run()
    assert out[0].shape == hands.shape
    assert out[1].shape == points.shape
    changes = [
        {"hands": noise(*hands.shape, seed=5)},
        {"points": noise(*points.shape, seed=5)},
        {"video": latents["image"]},
        {"drawing": latents["image"]},
        {"time": (1, 999)},
    ]
    for change in changes:
        other = run(**change)
        assert not torch.allclose(out[0], other[0])
        assert not torch.allclose(out[1], other[1])


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 5, 17, 49])
def test_vid_takes_any_length(vid, config, frames):
    z = noise(1, 16, (frames - 1) // 4 + 1, 4, 6)
    hands, points = noise(1, frames, 42, 3), noise(1, frames, config.interaction.num_points, 3)
    assert vid(hands, points, z, z, torch.tensor([3]))[0].shape == hands.shape


def test_every_cell_of_a_patch_is_read(vid, config):
    """And every weight counts."""
    latents = [noise(1, 16, 3, 4, 6, seed=i).requires_grad_() for i in range(2)]
    hands, points = noise(1, config.frames, 42, 3), noise(1, config.frames, config.interaction.num_points, 3)
    weights = {n: p for n, p in vid.named_parameters() if not n.startswith("alignment.")}
    for weight in weights.values():
        weight.requires_grad_(True)
    out = vid(hands, points, *latents, torch.tensor([700]))
    out = sum((x * noise(*x.shape, seed=7)).sum() for x in out)
    of_latents, of_weights = (
        torch.autograd.grad(out, inputs, retain_graph=True) for inputs in (latents, list(weights.values()))
    )
    assert all((gradient.abs().sum(dim=1) > 0).all() for gradient in of_latents)
    assert [n for n, g in zip(weights, of_weights, strict=True) if not g.any()] == []


@pytest.mark.parametrize("stream", ["video", "drawing"])
def test_a_frame_reads_the_places_of_its_own_latent_frame_and_the_first(config, stream):
    torch.manual_seed(0)
    reader = InteractionModel(config.interaction).reader
    latents = {
        name: noise(1, 16, 3, 8, 12, seed=i).requires_grad_() for i, name in enumerate(("video", "drawing"))
    }
    where = cell_coordinates(8, 12, torch.device("cpu"))
    out = reader(*latents.values(), where)
    for frame, latent_frame in zip(range(9), (0, 1, 1, 1, 1, 2, 2, 2, 2), strict=True):
        (gradient,) = torch.autograd.grad(out[0, :, frame].sum(), latents[stream], retain_graph=True)
        heard = gradient[0].abs().amax(dim=(0, 2, 3)) > 0
        assert heard.tolist() == [i in (0, latent_frame) for i in range(3)]
    mirrored = reader(*(x.flip(-1) for x in latents.values()), where)
    assert not torch.allclose(out, mirrored, atol=1e-4)  # where it is matters


@torch.no_grad()
def test_what_is_read_is_the_first_estimate(config):
    """Without the denoiser's last layer the output is the reading alone; noise and time no longer matter."""
    network = InteractionModel(config.interaction)
    network.norm_out.weight.zero_()
    network.norm_out.bias.zero_()
    z = noise(1, *config.latent_shape(config.frames, config.height, config.width))
    motion = [noise(1, config.frames, count, 3) for count in (42, config.interaction.num_points)]
    out = network(*motion, z, -z, torch.tensor([7]))[0]
    assert torch.equal(out, network(*(-x for x in motion), z, -z, torch.tensor([900]))[0])
    where = cell_coordinates(*z.shape[-2:], z.device)
    read = network.proj_out(network.reader(z, -z, where))
    torch.testing.assert_close(out[0].flatten(1).T, read[0, : out[0, 0].numel()])


@torch.no_grad()
def test_vid_can_tell_places_apart_and_leave_noise_out(config):
    places = cell_coordinates(8, 12, torch.device("cpu")).flatten(1).T
    assert torch.cdist(places, places).add(torch.eye(len(places))).min() > 0.1
    network = InteractionModel(config.interaction)
    network.trust.weight.zero_()
    network.trust.bias.zero_()
    z = noise(1, *config.latent_shape(config.frames, config.height, config.width))
    motion = [noise(1, config.frames, count, 3) for count in (42, config.interaction.num_points)]
    outs = [network(*(sign * x for x in motion), z, z, torch.tensor([7]))[0] for sign in (1, -1)]
    assert torch.equal(*outs)


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (3, 5), (8, 12), (5, 7), (9, 13), (16, 5)])
@pytest.mark.parametrize("size", [(8, 12), (9, 13), (7, 30)])
def test_pooling_equals_pytorchs(size, grid):
    """Whether the grid divides the size or not, or is even finer; values and gradients."""
    x, of_output = noise(2, 3, *size).double(), noise(2, 3, *grid, seed=1).double()
    found, expected = (x.clone().requires_grad_() for _ in range(2))
    made, truth = pool(found, grid), F.adaptive_avg_pool2d(expected, grid)
    torch.testing.assert_close(made, truth, atol=1e-12, rtol=0)
    made.backward(of_output)
    truth.backward(of_output)
    torch.testing.assert_close(found.grad, expected.grad, atol=1e-12, rtol=0)
    assert pool(x.bfloat16(), grid).dtype == torch.bfloat16
    single = pool(x.float(), grid)
    torch.testing.assert_close(single.double(), truth.detach(), atol=1e-6, rtol=0)


def test_every_vid_weight_learns(config):
    torch.manual_seed(0)
    network = InteractionModel(config.interaction)
    z = noise(1, *config.latent_shape(config.frames, config.height, config.width))
    hands, points = noise(1, config.frames, 42, 3), noise(1, config.frames, config.interaction.num_points, 3)
    out = network(hands, points, z, 2 * z, torch.tensor([7]))
    (out[0].square().sum() + out[1].square().sum()).backward()
    alignment = network.alignment
    for last in (alignment.shift, alignment.joint):
        torch.nn.init.normal_(last.weight)
    moves = alignment(alignment.find(z[:, :, 0]), hands, points, noise(1, 42 + points.shape[2], 2))
    (moves[0].square().sum() + moves[1].square().sum()).backward()
    # The last level's cross-stream mix feeds only the fused features, which every level does.
    idle = [
        name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()
    ]
    assert idle == []


# Alignment


@torch.no_grad()
def test_where_an_image_shows_something_is_finer_than_its_cells(config):
    """With maps by hand: every place looks at one cell and says the way from there."""
    alignment = InteractionModel(config.interaction).alignment
    looked, across, down = torch.zeros(3, 48, 8, 12)
    looked[:, 2, 5] = 100.0
    across[:, 2, 5], down[:, 2, 5] = 0.25, -1.5
    maps = torch.cat([looked, across, down])[None]
    alignment.maps.register_forward_hook(lambda *_: maps)
    found = alignment.find(noise(1, 16, 8, 12))
    assert found.shape == (1, 48, 2)
    torch.testing.assert_close(found[0, 7], torch.tensor([(5.75 / 12) * 2 - 1, (1.0 / 8) * 2 - 1]))
    halved = alignment.bfloat16().find(noise(1, 16, 8, 12).bfloat16())
    torch.testing.assert_close(halved, found)  # places are exact whatever the network's type


@torch.no_grad()
def test_alignment_moves_bodies_as_a_whole_and_joints_a_little(config):
    alignment = init_part(config, "interaction", 0).alignment
    size = config.interaction.num_points
    hands, points, found = noise(2, 9, 42, 3), noise(2, 9, size, 3, seed=1), noise(2, 48, 2, seed=2)
    places = noise(2, 42 + size, 2, seed=3)
    assert not any(move.any() for move in alignment(found, hands, points, places))  # untrained
    torch.nn.init.normal_(alignment.shift.weight)
    of_hands, of_points = alignment(found, hands, points, places)
    assert of_hands.shape == hands.shape
    assert of_points.shape == points.shape
    for bodies in (of_hands.unflatten(2, (2, 21)), of_points.unflatten(2, (2, -1))):
        assert torch.equal(bodies, bodies[:, :, :, :1].expand_as(bodies))
        assert not torch.allclose(bodies[:, :, 0], bodies[:, :, 1], atol=1e-4)
        assert not torch.allclose(bodies[:, 0], bodies[:, 1], atol=1e-4)  # frame by frame
        assert not torch.allclose(bodies[0], bodies[1], atol=1e-4)
    torch.nn.init.normal_(alignment.joint.weight)
    apart = places.clone()
    apart[:, 3] = 1 - apart[:, 3]
    alignment.shift.weight.zero_()
    alone = [alignment(found, hands, points, x)[0] for x in (places, apart)]
    moved = (alone[0] - alone[1]).abs().amax(dim=(0, 1, 3)) > 1e-6
    assert moved.nonzero().flatten().tolist() == [3]
    assert torch.equal(alone[0][:, :1].expand_as(hands), alone[0])


@torch.no_grad()
def test_alignment_looks_for_points_evenly_among_each_object(config):
    alignment = InteractionModel(config.interaction).alignment
    numbers = torch.arange(config.interaction.num_points).float()
    assert alignment.chosen(numbers[None, None, :, None])[0, 0, :, 0].tolist() == [0, 2, 5, 6, 8, 11]
    places = torch.arange(42.0 + len(numbers))[None, :, None].expand(-1, -1, 2)
    expected = [*range(42), 42, 44, 47, 48, 50, 53]
    assert alignment.chosen_places(places)[0, :, 1].tolist() == expected


@torch.no_grad()
def test_the_shipped_alignment_finds_joints():
    """In clips that it has never seen, within a pixel of 96 x 64 on average (measured: 0.75); a mean pose is 12 off."""
    model = SViMo.load(ROOT / "assets" / "models" / "svimo-tiny.safetensors")
    config = model.config
    size = dict(frames=1, height=config.height, width=config.width, fps=config.fps)
    errors, of_mean = [], []
    for seed in range(500, 508):
        clip = generate_clip(seed, "test", **size)
        latent = encode_image(
            model.vae.encode, torch.from_numpy(clip.video[0]) / 255, config.width, config.height, 0
        )
        found = model.interaction.alignment.find(latent.float())[0, :42]
        hands, points = model.normalizer.normalize(clip.motion, config.interaction.points_per_object)
        for places, kept in (
            (found, errors),
            (model.normalizer.project(0 * hands, 0 * points)[0, :42], of_mean),
        ):
            apart = places - model.normalizer.project(hands, points)[0, :42]
            kept.append((apart * torch.tensor([config.width / 2, config.height / 2])).norm(dim=-1).mean())
    assert np.mean(errors) < 1
    assert np.mean(of_mean) > 8


# VAE


@torch.no_grad()
def test_vae_shapes_and_sampling(model, config):
    frames = torch.rand(1, config.frames, config.height, config.width, 3)
    mean = model.vae.encode(frames)
    assert mean.shape == (1, *config.latent_shape(config.frames, config.height, config.width))
    torch.testing.assert_close(model.vae.encode(frames), mean, rtol=0, atol=0)
    drawn = [model.vae.encode(frames, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    decoded = model.vae.decode(mean)
    assert decoded.shape == frames.shape
    assert decoded.min() >= 0
    assert decoded.max() <= 1


@torch.no_grad()
def test_clips_that_the_vae_cannot_decode_are_refused(model):
    with pytest.raises(ValueError, match="has 2 frames"):
        model.vae.decode(noise(1, 16, 2, 4, 6))
    for latent_frames in (1, 3, 5):
        assert model.vae.decode(noise(1, 16, latent_frames, 4, 6)).shape[1] == 4 * (latent_frames - 1) + 1


@torch.no_grad()
def test_vae_work_can_be_stopped_and_leaves_the_model_as_it_was(model, config):
    frames = torch.rand(1, config.frames, config.height, config.width, 3)
    calls = []

    def stop():
        calls.append(1)
        raise InterruptedError

    for work in (
        lambda: model.vae.encode(frames, on_work=stop),
        lambda: model.vae.decode(model.vae.encode(frames), True, stop),
    ):
        with pytest.raises(InterruptedError):
            work()
    assert len(calls) == 2
    assert not model.vae.model.use_tiling
    assert not any(module._forward_pre_hooks for module in model.vae.model.modules())


@torch.no_grad()
def test_preview_matrix_is_a_better_guess_than_the_mean_colour(config):
    torch.manual_seed(0)
    vae = VideoVAE(build_vae(config.vae), config.vae)
    coarse = torch.rand(24, 3, 2, 3)
    images = torch.nn.functional.interpolate(coarse, size=(32, 48), mode="bilinear").movedim(1, -1)[:, None]
    vae.preview_matrix = fit_preview(vae, images)
    seen = torch.stack([vae.preview(latent[:, 0]) for latent in vae.encode(images)])
    assert seen.shape == (24, 4, 6, 3)
    small = torch.nn.functional.interpolate(images[:, 0].movedim(-1, 1), size=(4, 6), mode="area").movedim(
        1, -1
    )
    assert (seen - small).square().mean() < 0.95 * small.var()  # an untrained VAE keeps little of a colour


# Text


@torch.no_grad()
def test_prompts_have_a_fixed_length_and_differ(model, config):
    features = model.text_encoder.encode(
        ["use spoon to stir cup", "use spoon to hit cup", "", "w\u00f6rds " * 99]
    )
    assert features.shape == (4, config.text.text_length, config.text.dim)
    assert not torch.allclose(features[0], features[1])
    ids = model.text_encoder.tokenize(["use spoon to stir cup", ""])
    assert ids[1].tolist() == [1] + [0] * (config.text.text_length - 1)
    assert model.text_encoder.tokenizer.decode(ids[0].tolist()).strip() == "use spoon to stir cup"


def test_hand_object_prompt():
    assert hand_object_prompt(" spoon ", "stir", "cup") == "use spoon to stir cup"
    with pytest.raises(ValueError, match="action is empty"):
        hand_object_prompt("spoon", " ", "cup")
