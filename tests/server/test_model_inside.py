"""MODEL under core's samplers, caches, patches and memory management, checked from the inside."""

from pathlib import Path

import pytest
from helpers.inside import run_inside
from helpers.tiny_cogvideox import (
    comfyui_keys,
    fp8,
    save_file_of,
    save_pipeline,
    tiny_transformer,
    tiny_vae,
)

from dev.comfy import ROOT, find_comfyui

BUNDLED = ROOT / "assets" / "models" / "svimo-tiny.safetensors"
COMFYUI = find_comfyui()
HAS_DYNAMIC_VRAM = (COMFYUI / "comfy" / "memory_management.py").is_file()
HAS_CORES_COGVIDEOX = (COMFYUI / "comfy" / "ldm" / "cogvideo").is_dir()
HAS_TWO_STREAM_WINDOWS = "map_context_window" in (COMFYUI / "comfy" / "context_windows.py").read_text()
HAS_TWO_STREAM_CACHE = "_extract_tensor" in (COMFYUI / "comfy_extras" / "nodes_easycache.py").read_text()

GRAPH = """
import comfy.model_management, comfy.ops, comfy.sample, comfy.samplers, comfy.utils, folder_paths, nodes
from pack.nodes import condition, decode, sample
from pack.nodes.backbone import SViMoModel, backbone_of, dtypes_of, load_backbone
from pack.nodes.latents import READING, streams_of
from pack.nodes.load import load_interaction, load_text_encoder, load_vae, read_header

comfy.utils.PROGRESS_BAR_ENABLED = False
torch.inference_mode().__enter__()

def parts_of(path):
    header = read_header(path)
    return load_backbone(header), load_interaction(header), load_vae(header), load_text_encoder(header)

def conditions(clip, vae, frames=0, model=None):
    image = torch.rand(1, 40, 60, 3, generator=torch.Generator().manual_seed(0))
    prompts = [condition.SViMoTextEncode.execute(clip, text).result[0] for text in ("use spoon to stir cup", "")]
    return condition.SViMoImageEncode.execute(*prompts, vae, image, 0, 0, frames, 0.02, model).result

def loop(model, vid, vae, enabled=True, start=0.2, **options):
    options = dict(every=1, iterations=1, strength=1.0) | options
    execute = sample.SViMoFeedbackLoop.execute
    return execute(model, vid, vae, enabled=enabled, start_percent=start, end_percent=1.0, **options).result[0]

def sampled(
    model, positive, negative, latent, seed=3, steps=4, cfg=1.0, schedule="constant", solver="ddim", denoise=1.0
):
    return sample.SViMoSampler.execute(
        model, positive, negative, latent, seed, steps, cfg, schedule, solver, denoise, False
    ).result[0]

def ksampled(
    model, positive, negative, latent, seed=3, steps=4, cfg=1.0, sampler="euler", scheduler="simple", denoise=1.0
):
    return nodes.common_ksampler(
        model, seed, steps, cfg, sampler, scheduler, positive, negative, latent, denoise=denoise
    )[0]

def difference(a, b):
    return max(float((x - y).norm() / y.norm()) for x, y in zip(streams_of(a), streams_of(b), strict=True))

def refused(work, *parts, kind=ValueError):
    try:
        work()
    except kind as error:
        assert all(part in str(error) for part in parts), error
    else:
        raise AssertionError("accepted")

model, vid, vae, clip = parts_of(args[0])
positive, negative, latent = conditions(clip, vae)
graph = positive, negative, latent
"""


@pytest.mark.parametrize("way", ["open", "exact", "quick"])
def test_cores_euler_is_the_librarys_ddim(way: str):
    """From the same noise, with the loop open and closed and classifier-free guidance constant and growing; and so is
    the reading (which tests/unit/test_sampler.py knows to be held against the image either way).

    With the model that ships, as what random weights read is all over the place. OpenCV's drawings round to a sixteenth
    of a pixel, and a spot of the quick ones is covered or not: the last bits of a float can move either.
    """
    run_inside(
        GRAPH
        + """
from pack.svimo_core.config import ClipSize
from pack.svimo_core.sampling.guidance import FeedbackOptions
from pack.svimo_core.sampling.pipeline import SViMo

closed, exact = args[1] != "open", args[1] == "exact"
core, size = SViMo.load(args[0]), ClipSize(9, 64, 96)
image = positive[0][1]["concat_latent_image"][:, :, 0] * vae.scale
for steps, cfg, schedule in (
    (10, 1.0, "constant"), (10, 3.0, "constant"), (7, 2.0, "dynamic"), (5, 2.0, "dynamic_diffusers")
):
    looped = loop(model, vid, vae, closed, exact_drawing=exact)
    made = sampled(looped, *graph, steps=steps, cfg=cfg, schedule=schedule)
    expected, reading, report = core.denoise(
        image, positive[0][0], negative[0][0], size, torch.Generator().manual_seed(3), steps, cfg,
        schedule, "ddim", FeedbackOptions(enabled=closed, exact=exact),
    )
    assert (report.feedback_passes > 0) == closed
    for found, latents in zip(streams_of(made), expected, strict=True):
        relative = (found * vae.scale - latents).norm() / latents.norm()
        strong = closed and cfg == 3  # where an edge that moves counts four times
        limit = 1e-3 if args[1] == "quick" else 2e-4 if strong else 1e-4
        assert relative < limit, (steps, cfg, schedule, float(relative))
    for found, expected in zip(made[READING].reading, reading, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-3)
""",
        str(BUNDLED),
        way,
    )


def test_what_is_known_is_the_librarys(checkpoint_file: Path):
    """Through core's noise mask, which a LATENT carries: as the library has it, with the loop closed; under other
    samplers what is known comes out as it went in."""
    run_inside(
        GRAPH
        + """
from dataclasses import replace
from comfy.nested_tensor import NestedTensor
from pack.nodes.latents import packed
from pack.svimo_core.config import ClipSize
from pack.svimo_core.sampling.guidance import FeedbackOptions
from pack.svimo_core.sampling.latents import JointLatents, Known, known_frames
from pack.svimo_core.sampling.pipeline import SViMo

model.model.config = replace(config := model.model.config, backbone=replace(config.backbone, any_to_any=True))
core, size = SViMo.load(args[0]), ClipSize(9, 64, 96)
image = positive[0][1]["concat_latent_image"][:, :, 0] * vae.scale
given = streams_of(sampled(model, *graph, seed=8))
video, drawing, start, ends = (True, False), (False, True), (False, False, 1), (False, False, 1, 1)
for which in (video, start, drawing, ends):
    frames = known_frames(3, *which)
    masks = [(~frames)[:, i, None, :, None, None].float() for i in (0, 1)]
    latent = graph[2] | {"samples": packed(given), "noise_mask": NestedTensor(masks)}
    inputs = positive, negative, latent
    if which == drawing:
        drawn = {"svimo_guidance": given.drawing}
        inputs = *([[prompt[0][0], prompt[0][1] | drawn]] for prompt in (positive, negative)), latent
    looped = loop(model, vid, vae, exact_drawing=False)
    made = sampled(looped, *inputs, steps=5, cfg=2.0)
    known = Known(JointLatents(*(x * vae.scale for x in given)), frames)
    expected, reading, _ = core.denoise(
        image, positive[0][0], negative[0][0], size, torch.Generator().manual_seed(3), 5, 2.0,
        "constant", "ddim", FeedbackOptions(), known=known,
    )
    for stream, (found, latents, before) in enumerate(zip(streams_of(made), expected, given, strict=True)):
        assert (found * vae.scale - latents).norm() / latents.norm() < 1e-3, (frames, stream)
        assert torch.equal(found[:, :, frames[0, stream]], before[:, :, frames[0, stream]])
    for found, wanted in zip(made[READING].reading, reading, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=2e-3)
    for name in ("dpmpp_2m_sde", "uni_pc", "heun"):
        made = streams_of(ksampled(looped, *inputs, sampler=name, steps=3))
        for stream, (found, before) in enumerate(zip(made, given, strict=True)):
            assert torch.isfinite(found).all()
            assert torch.equal(found[:, :, frames[0, stream]], before[:, :, frames[0, stream]])
""",
        str(BUNDLED),
    )


def test_any_of_cores_samplers_and_schedulers(checkpoint_file: Path):
    """With the loop closed, also those that call the model twice a step; a run's bytes are its seed's."""
    run_inside(
        GRAPH
        + """
closed = loop(model, vid, vae, start=0.0)
assert difference(ksampled(closed, *graph), sampled(closed, *graph)) < 1e-5
assert difference(ksampled(loop(model, vid, vae, False), *graph), ksampled(closed, *graph)) > 1e-3
# dpm_adaptive takes as many steps as it likes
samplers = [name for name in comfy.samplers.SAMPLER_NAMES if name != "dpm_adaptive"]
for name in samplers:
    in_loop = closed if name in ("euler_ancestral", "heun", "dpm_2", "dpmpp_2m_sde", "uni_pc") else model
    made = streams_of(ksampled(in_loop, *graph, sampler=name, steps=3))
    assert all(x.shape == (1, 16, 3, 4, 6) and torch.isfinite(x).all() for x in made), name
for name in comfy.samplers.SCHEDULER_NAMES:
    made = streams_of(ksampled(model, *graph, scheduler=name, steps=3))
    assert all(torch.isfinite(x).all() for x in made), name
for sampler in ("euler", "dpmpp_2m_sde"):
    first, second = (streams_of(ksampled(closed, *graph, sampler=sampler)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))
few = 50, 1.0, "constant", "dpmpp_2m_sde", 0.01, False  # there are 10 timesteps in a hundredth of the schedule
low = sample.SViMoSampler.execute(model, positive, negative, ksampled(model, *graph), 3, *few)
assert low.ui["svimo"][0]["steps"] == 10
low = low.result[0]
assert all(torch.isfinite(x).all() for x in streams_of(low))
""",
        str(checkpoint_file),
    )


def test_calls_of_the_network_and_copies_to_the_host(checkpoint_file: Path):
    """One call a step at cfg 1, growing cfg calls twice from its second step on, heun twice a step; VID reads after
    each call, looks at the image once a run, and only the step's noise level is asked of the device."""
    run_inside(
        GRAPH
        + """
from torch.utils._python_dispatch import TorchDispatchMode

calls, reads = [], []
network = model.model.diffusion_model
network.time_embedding.register_forward_hook(lambda module, inputs, out: calls.append(len(out)))
vid.patcher.model.reader.register_forward_hook(lambda *_: reads.append(1))
looks, holds = [], []
alignment = vid.patcher.model.alignment
alignment.stem.register_forward_hook(lambda *_: looks.append(1))  # of find
alignment.compare.register_forward_hook(lambda *_: holds.append(1))

def counted(run):
    calls.clear(), reads.clear()
    run()
    return list(calls), len(reads)

opened, closed = loop(model, vid, vae, False), loop(model, vid, vae, start=0.0)
assert counted(lambda: sampled(opened, *graph)) == ([1] * 4, 4)
assert counted(lambda: sampled(closed, *graph)) == ([1] * 4, 5)  # the first guidance is read off noise
assert (len(looks), len(holds)) == (2, 1 + 5)  # a run each; at its end, and before each guidance
assert counted(lambda: sampled(loop(model, vid, vae, start=0.0, iterations=3), *graph)) == ([1] * 12, 13)
assert len(looks) == 3
assert counted(lambda: ksampled(opened, *graph, sampler="heun")) == ([1] * 7, 7)
looks.clear()
ksampled(closed, *graph, sampler="heun")
assert len(looks) == 1
found, _ = counted(lambda: sampled(opened, *graph, cfg=3.0, schedule="dynamic"))
assert found[0] == 1 and sum(found) == 7, found
found, _ = counted(lambda: sampled(model, *graph, cfg=3.0))
assert sum(found) == 8, found

class HostReads(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))

def host_reads(model, steps):
    with HostReads() as mode:
        sampled(model, *graph, steps=steps)
    return mode.count

for looped in (opened, closed):
    bare = host_reads(looped, 4)  # each step the loop's, and k-diffusion's own
    assert (host_reads(looped, 8) - bare) / 4 <= 2 + 1e-9, (bare, host_reads(looped, 8))
""",
        str(checkpoint_file),
    )


def test_a_given_motion_guides_while_it_holds(checkpoint_file: Path):
    """As prompts for parts of the schedule, of which core uses whichever holds; the loop has the rest."""
    run_inside(
        GRAPH
        + """
import numpy as np
from pack.svimo_core.motion import Camera, HandObjectMotion

cloud = np.random.default_rng(0).normal(scale=0.05, size=(9, 6, 3)) + (0, 0, 0.5)
motion = HandObjectMotion(
    hands=np.random.default_rng(1).normal(scale=0.05, size=(9, 2, 21, 3)) + (0, 0, 0.5),
    objects={"tool": cloud, "target": cloud}, camera=Camera.from_fov(48, 32), fps=8,
)
seen = []
network = model.model.diffusion_model
before = network._forward
network._forward = lambda *a, **k: seen.append(k["guidance"].clone()) or before(*a, **k)

def guided(start, end, with_loop):
    seen.clear()
    encode = condition.SViMoMotionEncode.execute
    prompts = encode(positive, negative, vae, motion, latent, 1.0, start, end).result
    sampled(loop(model, vid, vae, start=0.0) if with_loop else model, *prompts, latent)
    return list(seen)

given = guided(0.0, 1.0, False)
assert len(given) == 4 and all(torch.equal(g, given[0]) for g in given) and given[0].any()
part = guided(0.25, 0.75, False)
assert [bool(g.any()) for g in part] == [False, True, True, False]
assert torch.equal(part[1], given[0])
mixed = guided(0.25, 0.75, True)
assert torch.equal(mixed[1], given[0]) and torch.equal(mixed[2], given[0])
assert all(g.any() and not torch.equal(g, given[0]) for g in (mixed[0], mixed[3]))

from pack.svimo_core.sampling.painter import quickly_encoded
encode = condition.SViMoMotionEncode.execute
[[_, extras]] = encode(positive, negative, vae, motion, latent, 0.5, 0.0, 1.0, vid).result[0]
quick = quickly_encoded(vid.drawing.patcher.model, motion, 48, 32)
torch.testing.assert_close(extras["svimo_guidance"], 0.5 * quick / vae.scale)
from dataclasses import replace
without = replace(vid, drawing=None)
refused(lambda: encode(positive, negative, vae, motion, latent, 1.0, 0.0, 1.0, without), "has no drawing encoder")
odd = replace(vid, vae_config=replace(vid.vae_config, scaling_factor=1.5))
for work in (
    lambda: encode(positive, negative, vae, motion, latent, 1.0, 0.0, 1.0, odd), lambda: loop(model, odd, vae)
):
    refused(work, "belongs to another VAE")
loop(model, odd, vae, exact_drawing=True)
quick, exact, bare = (
    sampled(loop(model, handle, vae, exact_drawing=exact), *graph)
    for handle, exact in ((vid, False), (vid, True), (without, False))
)
assert difference(bare, exact) == 0 and difference(quick, exact) > 1e-4
""",
        str(checkpoint_file),
    )


def test_prompts_for_parts_of_the_schedule_keep_to_them(checkpoint_file: Path):
    """Under a given motion; and what the loop drew before does not linger where another prompt's motion guides."""
    run_inside(
        GRAPH
        + """
import node_helpers
from pack.nodes.backbone import GUIDANCE

given = torch.ones(1, 16, 3, 4, 6)
early = node_helpers.conditioning_set_values(positive, {"start_percent": 0.0, "end_percent": 0.5})
late = node_helpers.conditioning_set_values(positive, {"start_percent": 0.5, "end_percent": 1.0})
made = condition.guided(early + late, given, 0.25, 0.75)
ranges = sorted((e["start_percent"], e["end_percent"], GUIDANCE in e) for _, e in made)
assert ranges == [(0.0, 0.25, False), (0.25, 0.5, True), (0.5, 0.75, True), (0.75, 1.0, False)], ranges
twice = condition.guided(condition.guided(positive, given, 0.0, 0.5), 2 * given, 0.5, 1.0)
ranges = sorted((e["start_percent"], e["end_percent"], float(e[GUIDANCE].max())) for _, e in twice)
assert ranges == [(0.0, 0.5, 1.0), (0.5, 1.0, 2.0)], ranges

seen = []
network = model.model.diffusion_model
before = network._forward
network._forward = lambda *a, **k: seen.append(k["guidance"].flatten(1).norm(dim=1).tolist()) or before(*a, **k)
mixed = condition.guided(positive, given, 0.5, 1.0)
sampled(loop(model, vid, vae, start=0.0), mixed, negative, latent, cfg=3.0)
assert all(norms[0] == norms[1] > 0 for norms in seen[:2]), seen  # the loop guides both
assert all(min(norms) == 0 < max(norms) for norms in seen[2:]), seen  # the motion guides one, nothing the other
zeros = torch.zeros(3)
guider = comfy.samplers.CFGGuider(loop(model, vid, vae, start=0.0))
guider.set_conds(positive, negative)
refused(
    lambda: guider.sample(comfy.sample.prepare_noise(latent["samples"], 1), latent["samples"],
                          comfy.samplers.sampler_object("euler"), zeros, disable_pbar=True),
    "not finite",
)
""",
        str(checkpoint_file),
    )


def test_a_video_only_model_samples(tmp_path: Path):
    """CogVideoX under core's sampler and ours."""
    save_pipeline(tmp_path / "pipe", tiny_transformer(), tiny_vae())
    run_inside(
        """
        import comfy.utils, nodes
        from pack.nodes import condition, sample
        from pack.nodes.load import load_backbone, load_vae, read_header

        comfy.utils.PROGRESS_BAR_ENABLED = False
        torch.inference_mode().__enter__()
        header = read_header(args[0])
        model, vae = load_backbone(header), load_vae(header)
        prompts = [[torch.randn(1, 6, 24), {}]], [[torch.zeros(1, 6, 24), {}]]
        given = vae, torch.rand(1, 40, 60, 3), 96, 64, 9, 0.02, model
        graph = condition.SViMoImageEncode.execute(*prompts, *given).result
        assert graph[2]["samples"].shape == (1, 16, 3, 8, 12)
        ours = sample.SViMoSampler.execute(model, *graph, 3, 4, 2.0, "dynamic", "ddim", 1.0, False).result[0]["samples"]
        grown = sample.SViMoGrowingCFG.execute(model, "dynamic").result[0]
        cores = nodes.common_ksampler(grown, 3, 4, 2.0, "euler", "simple", *graph)[0]["samples"]
        assert ours.shape == (1, 16, 3, 8, 12) and torch.isfinite(ours).all()
        torch.testing.assert_close(cores, ours, rtol=1e-2, atol=1e-2)
        """,
        str(tmp_path / "pipe"),
    )


def test_readings_travel_beside_the_streams_and_are_never_stale(checkpoint_file: Path):
    run_inside(
        GRAPH
        + """
def read(latent, refine=False):
    return decode.SViMoDecodeMotion.execute(vid, latent, refine).result[0].hands

closed = loop(model, vid, vae)
made = sampled(closed, *graph)
mean, finished = read(made), read(made, refine=True)
assert abs(mean - finished).max() > 1e-4
# held against the first frame, which shows the reference image
streams, reader = [x * vae.scale for x in streams_of(made)], vid.reader()
raw = reader.read(*streams)
for reading, equal in ((raw, False), (reader.align(reader.look(streams[0][:, :, 0]), raw), True)):
    by_hand = reader.to_motions(reading, 48, 32, 8.0)[0].hands
    assert (abs(by_hand - finished).max() < 1e-5) == equal, equal
plain = ksampled(closed, *graph)
assert READING not in plain
assert abs(read(plain) - finished).max() < 1e-5
# core's nodes keep foreign keys while they change the samples
multiplied = made | {"samples": made["samples"] * 0.5}
assert abs(read(multiplied) - read({"samples": multiplied["samples"]})).max() == 0
again = ksampled(closed, positive, negative, made, seed=4, denoise=0.5)
assert READING in again and abs(read(again) - read({"samples": again["samples"]})).max() == 0
# through the disk and back: split, and joined again
split = decode.SViMoSplitLatent.execute(made).result
joined = decode.SViMoJoinLatents.execute(*split).result[0]
assert abs(read(joined) - finished).max() == 0
assert read(made).shape == (9, 2, 21, 3) and abs(read(made) - mean).max() == 0
repeated = nodes.RepeatLatentBatch().repeat(made, 2)[0]
assert [x.shape[0] for x in streams_of(repeated)] == [2, 2]
refused(lambda: read(repeated), "batch of 2 clips")
batch = sampled(closed, positive, negative, nodes.RepeatLatentBatch().repeat(latent, 2)[0])
assert [x.shape[0] for x in streams_of(batch)] == [2, 2]
for work in (
    lambda: nodes.LatentFlip().flip(made, "x-axis: vertically"),
    lambda: nodes.LatentRotate().rotate(made, "90 degrees"),
    lambda: nodes.LatentUpscale().upscale(made, "bilinear", 64, 64, "disabled"),
    lambda: nodes.SaveLatent().save(made),
):
    refused(work, "SViMo Split Latent", kind=(AttributeError, TypeError))
frames = vae.decode(made["samples"])
assert torch.equal(frames, decode.SViMoDecodeVideo.execute(vae, made, False).result[0][None])
""",
        str(checkpoint_file),
    )


@pytest.mark.skipif(not HAS_TWO_STREAM_CACHE, reason="this ComfyUI's EasyCache knows one stream")
def test_easycache_skips_calls(checkpoint_file: Path):
    run_inside(
        GRAPH
        + """
from comfy_extras.nodes_easycache import EasyCacheNode

calls = []
model.model.diffusion_model.time_embedding.register_forward_hook(lambda *_: calls.append(1))
cached = EasyCacheNode.execute(model, 0.8, 0.1, 0.95, False).result[0]
made = sampled(loop(cached, vid, vae), *graph, steps=12)
assert 3 <= len(calls) < 12, len(calls)
calls.clear()
assert difference(made, sampled(loop(model, vid, vae), *graph, steps=12)) < 1.0
assert len(calls) == 12
""",
        str(checkpoint_file),
    )


@pytest.mark.skipif(HAS_TWO_STREAM_CACHE, reason="this ComfyUI's EasyCache knows two streams")
def test_easycache_of_one_stream_is_refused(checkpoint_file: Path):
    run_inside(
        GRAPH
        + """
from comfy_extras.nodes_easycache import EasyCacheNode

cached = EasyCacheNode.execute(model, 0.8, 0.1, 0.95, False).result[0]
refused(lambda: sampled(cached, *graph), "one stream only", "fewer steps")
""",
        str(checkpoint_file),
    )


def test_lazycache_compile_attention_blocks_and_schedule(checkpoint_file: Path):
    """What core patches into a model acts on ours."""
    run_inside(
        GRAPH
        + """
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_easycache import LazyCacheNode
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

calls = []
model.model.diffusion_model.time_embedding.register_forward_hook(lambda *_: calls.append(1))
plain = sampled(loop(model, vid, vae), *graph, steps=12)
assert len(calls) == 12
calls.clear()
lazy = LazyCacheNode.execute(model, 0.8, 0.1, 0.95, False).result[0]
sampled(loop(lazy, vid, vae), *graph, steps=12)
assert 3 <= len(calls) < 12, len(calls)

compiled = model.clone()
set_torch_compile_wrapper(model=compiled, backend="eager")
assert difference(sampled(loop(compiled, vid, vae), *graph, steps=12), plain) < 1e-4

attended = []
def override(function, q, *others, **options):
    attended.append(q.shape)
    return function(q, *others, **options)
overridden = model.clone()
overridden.model_options["transformer_options"]["optimized_attention_override"] = override
sampled(overridden, *graph)
assert len(attended) == 4 * 2, len(attended)

seen = []
def replacement(arguments, extra):
    seen.append(sorted(arguments))
    out = extra["original_block"](arguments)
    return {"txt": out["txt"], "img": out["img"].flip(1)}
replaced = model.clone()
replaced.set_model_patch_replace(replacement, "dit", "double_block", 1)
assert difference(sampled(replaced, *graph), sampled(model, *graph)) > 1e-3
assert len(seen) == 4 and {"txt", "img", "transformer_options"} <= set(seen[0])

patch = ModelSamplingDiscrete().patch(model, "v_prediction", True)[0]
assert difference(sampled(loop(patch, vid, vae), *graph), sampled(loop(model, vid, vae), *graph)) < 1e-3
patch = ModelSamplingDiscrete().patch(model, "v_prediction", False)[0]
assert all(torch.isfinite(x).all() for x in streams_of(sampled(loop(patch, vid, vae), *graph)))
""",
        str(checkpoint_file),
    )


@pytest.mark.skipif(not HAS_TWO_STREAM_WINDOWS, reason="this ComfyUI's context windows know one stream")
def test_context_windows_carry_a_clip_beyond_its_trained_length(checkpoint_file: Path):
    run_inside(
        GRAPH
        + """
from comfy_extras.nodes_context_windows import ContextWindowsManualNode

lengths, guides = [], []
network = model.model.diffusion_model
before = network._forward
def seen(x, *a, **k):
    lengths.append([s.shape[2] for s in x])
    guides.append(k["guidance"].shape[2])
    return before(x, *a, **k)
network._forward = seen
long = conditions(clip, vae, frames=25)
windows = ContextWindowsManualNode.execute(model, 3, 1, "standard_static", 1, False, "pyramid", 2, False).result[0]
made = sampled(loop(windows, vid, vae, start=0.0), *long, steps=2)
assert [x.shape[2] for x in streams_of(made)] == [7, 7]
assert len(lengths) == 2 * 3 and {length[1] for length in lengths} == {3}, lengths
assert {length[0] for length in lengths} == {3, 4}, lengths  # core puts a frame before windows, and takes it off again
assert all(torch.isfinite(x).all() for x in streams_of(made))

# what is known of the whole is known in each window
from dataclasses import replace
from pack.nodes.latents import JointLatent
from pack.svimo_core.sampling.latents import known_frames

model.model.config = replace(config := model.model.config, backbone=replace(config.backbone, any_to_any=True))
frames = known_frames(7, True, False, first=2, last=1)
masks = [(~frames)[:, i, None, :, None, None].float() for i in (0, 1)]
given = {"samples": made["samples"], "noise_mask": JointLatent(masks)}
again = streams_of(sampled(loop(windows, vid, vae, start=0.0), long[0], long[1], given, seed=9, steps=2, cfg=2.0))
for stream, (found, kept) in enumerate(zip(again, streams_of(made), strict=True)):
    known = frames[0, stream]
    assert torch.equal(found[:, :, known], kept[:, :, known]) and torch.isfinite(found).all()
    assert known.all() or not torch.equal(found[:, :, ~known], kept[:, :, ~known])
""",
        str(checkpoint_file),
    )


def test_masks_ranges_and_several_prompts(checkpoint_file: Path):
    run_inside(
        GRAPH
        + """
import node_helpers

first = sampled(model, *graph)
masked = first | {"noise_mask": torch.cat([torch.zeros(1, 1, 32, 24), torch.ones(1, 1, 32, 24)], dim=-1)}
made = streams_of(sampled(model, positive, negative, masked, seed=9))
assert torch.equal(made.video[..., :2], streams_of(first).video[..., :2])
assert not torch.allclose(made.video[..., 4:], streams_of(first).video[..., 4:], atol=1e-2)

other = condition.SViMoTextEncode.execute(clip, "use brush to hit pan").result[0]
other = node_helpers.conditioning_set_values(other, {"concat_latent_image": positive[0][1]["concat_latent_image"]})
early = node_helpers.conditioning_set_values(positive, {"start_percent": 0.0, "end_percent": 0.5})
late = node_helpers.conditioning_set_values(other, {"start_percent": 0.5, "end_percent": 1.0})
ranged, both = sampled(model, early + late, negative, latent), sampled(model, positive + other, negative, latent)
for made in (ranged, both):
    assert difference(made, first) > 1e-4 and difference(made, sampled(model, other, negative, latent)) > 1e-4
assert difference(ranged, both) > 1e-4
""",
        str(checkpoint_file),
    )


def test_modelsave_is_read_back(checkpoint_file: Path, tmp_path: Path):
    """With a LoRA baked in, as core's Save Model does it."""
    run_inside(
        GRAPH
        + """
import comfy.sd
from pack.nodes.load import load_backbone, read_header

name = "diffusion_model.transformer_blocks.0.attn1.to_q"
lora = {f"{name}.lora_A.weight": torch.randn(2, 32), f"{name}.lora_B.weight": torch.randn(32, 2)}
patched, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
assert difference(sampled(patched, *graph), sampled(model, *graph)) > 1e-4
refused(
    lambda: comfy.sd.load_lora_for_models(
        model, None, {key.replace("diffusion_model", "transformer"): value for key, value in lora.items()}, 1.0, 0.0
    ),
    "Load SViMo LoRA",
)
for number, saved in enumerate((model, patched)):
    path = f"{args[1]}/saved{number}.safetensors"
    comfy.sd.save_checkpoint(path, saved, metadata={})
    header = read_header(path)
    assert header.parts == ("backbone",), header.parts
    again = load_backbone(header)
    assert again.model.config == model.model.config
    assert difference(sampled(again, *graph), sampled(saved, *graph)) < 1e-3
""",
        str(checkpoint_file),
        str(tmp_path),
    )


def test_what_does_not_fit_is_refused_by_name(checkpoint_file: Path):
    run_inside(
        GRAPH
        + f"""
cores = {HAS_CORES_COGVIDEOX}
import dataclasses
import node_helpers

video_only = {{"samples": streams_of(latent).video}}
refused(lambda: ksampled(model, positive, negative, video_only), "video and drawing together", "SViMo Image Encode")
assert len(streams_of(sampled(model, positive, negative, video_only)).drawing) == 1  # our sampler adds the drawing
bare = [[positive[0][0], {{}}]]
refused(lambda: sampled(model, bare, negative, latent), "no reference image", "SViMo Image Encode")
wrong = [[torch.randn(1, 3, 16), positive[0][1]]]
refused(lambda: sampled(model, wrong, negative, latent), "3 tokens x 16", "8 x 16")
small = node_helpers.conditioning_set_values(positive, {{"concat_latent_image": torch.zeros(1, 16, 1, 2, 2)}})
refused(lambda: sampled(model, small, negative, latent), "2 x 2 latent cells")
odd = {{"samples": torch.zeros(1, 16, 2, 4, 6)}}
refused(lambda: sampled(model, positive, negative, odd), "frames must be 8k + 1")
refused(lambda: sampled(model, positive, negative, {{"samples": torch.zeros(1, 4, 64, 64)}}), "SViMo Image Encode")
area = node_helpers.conditioning_set_values(positive, {{"area": (4, 6, 0, 0), "strength": 1.0}})
refused(lambda: ksampled(model, area, negative, latent), "a part of the picture")
refused(lambda: ksampled(loop(model, vid, vae), [], negative, latent), "positive prompt")
other = dataclasses.replace(vae.config, vae=dataclasses.replace(vae.config.vae, scaling_factor=1.15))
vae.config, kept = other, vae.config
refused(lambda: loop(model, vid, vae), "scaled by 1.15", "scaled by 0.7")
vae.config = kept
eight = node_helpers.conditioning_set_values(positive, {{"concat_latent_image": torch.zeros(1, 8, 1, 4, 6)}})
refused(lambda: ksampled(model, eight, negative, latent), "16 channels")
refused(lambda: nodes.LatentCrop().crop(sampled(model, *graph), 32, 32, 0, 0), "SViMo Split Latent", kind=TypeError)
if cores:
    import comfy.ldm.cogvideo.model, comfy.model_base, comfy.supported_models
    sizes = dict(num_attention_heads=1, attention_head_dim=64, in_channels=32, num_layers=1, text_embed_dim=16)
    sizes |= dict(use_rotary_positional_embeddings=True)
    config = comfy.supported_models.CogVideoX_I2V({{"image_model": "cogvideox", **sizes}})
    config.set_inference_dtype(torch.float32, None)
    foreign = comfy.model_patcher.ModelPatcher(config.get_model({{}}), torch.device("cpu"), torch.device("cpu"))
    refused(lambda: loop(foreign, vid, vae), "ComfyUI's own CogVideoX", "Load SViMo Diffusion Model")
    refused(lambda: sampled(foreign, *graph), "ComfyUI's own CogVideoX")
broken = node_helpers.conditioning_set_values(
    positive, {{"concat_latent_image": torch.full_like(positive[0][1]["concat_latent_image"], float("nan"))}}
)
refused(lambda: sampled(model, broken, negative, latent), "not finite", "weight_dtype")
refused(lambda: sampled(loop(model, vid, vae, start=0.0), broken, negative, latent), "not finite", "weight_dtype")
""",
        str(checkpoint_file),
    )


TYPES = """
import json
from safetensors import safe_open
from safetensors.torch import save_file

def rewritten(target, change):
    with safe_open(args[0], framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    save_file({k: v.contiguous() for k, v in change(tensors).items()}, target, metadata)
    return target
"""


def test_every_type_of_weights_loads_and_computes_in_the_type_of_its_input(
    checkpoint_file: Path, tmp_path: Path
):
    """One type, several in one file (core keeps CogVideoX's patch embedding in float32), and fp8 by choice."""
    run_inside(
        GRAPH
        + TYPES
        + """
expected = sampled(loop(model, vid, vae), *graph)

def cast(dtype, keep=()):
    def change(tensors):
        return {
            k: v if not v.is_floating_point() or any(part in k for part in keep) else v.to(dtype)
            for k, v in tensors.items()
        }
    return change

def mixed(tensors):
    return {k: v if k.startswith(("backbone.patch_embed", "vae", "text", "interaction.stem")) else v.bfloat16()
            for k, v in tensors.items()}

names = {}
for name, change, tolerance in (
    ("bf16", cast(torch.bfloat16, ("vae.", "text_encoder.")), 0.2),
    ("fp16", cast(torch.float16, ("vae.", "text_encoder.")), 0.1),
    ("mixed", mixed, 0.2),
):
    parts = parts_of(rewritten(f"{args[1]}/{name}.safetensors", change))
    stored = {w.dtype for w in parts[0].model.diffusion_model.parameters()}
    assert parts[0].model.compute_dtype == torch.float32, (name, parts[0].model.compute_dtype)
    assert len(stored) == (2 if name == "mixed" else 1), stored
    made = sampled(loop(parts[0], parts[1], vae), *graph)
    assert 0 < difference(made, expected) < tolerance, (name, difference(made, expected))
    # as on a card that computes in bf16: each layer in the type of its input
    for half in (torch.bfloat16, torch.float16):
        x = [torch.randn(1, 16, 3, 4, 6).to(half) for _ in range(2)]
        text, still = positive[0][0].to(half), torch.randn(1, 16, 1, 4, 6).to(half)
        network = load_backbone(read_header(f"{args[1]}/{name}.safetensors"), disable_dynamic=True)
        network.model.diffusion_model.to(torch.device("cpu"))
        for module in network.model.modules():
            if hasattr(module, "comfy_cast_weights"):
                module.comfy_cast_weights = True
        conds = dict(image=still, guidance=torch.zeros_like(x[1]))
        out = network.model.diffusion_model(x, torch.tensor([500.0]), text, **conds)
        assert all(o.dtype == half and torch.isfinite(o).all() for o in out)

fp8 = load_backbone(read_header(args[0]), torch.float8_e4m3fn)
assert {w.dtype for w in fp8.model.diffusion_model.parameters()} == {torch.float8_e4m3fn}
assert 0 < difference(sampled(fp8, *graph), sampled(model, *graph)) < 0.9
""",
        str(checkpoint_file),
        str(tmp_path),
    )


def test_half_precision_of_a_card_does_not_overflow(checkpoint_file: Path, tmp_path: Path):
    """On a card that would compute in fp16, fp16 weights compute in bf16, or in float32 where there is none."""
    run_inside(
        GRAPH
        + TYPES
        + """
halved = rewritten(f"{args[1]}/half.safetensors", lambda tensors: {k: v.half() for k, v in tensors.items()})
header = read_header(halved)
card = torch.device("cuda")
manage = comfy.model_management
for has_bf16, expected in ((True, torch.bfloat16), (False, torch.float32)):
    manage.should_use_fp16 = lambda *a, **k: True
    manage.should_use_bf16 = lambda *a, has_bf16=has_bf16, **k: has_bf16
    for part in ("backbone", "interaction"):
        assert dtypes_of(header, part, None, card)[1] == expected, (has_bf16, part)
    assert dtypes_of(header, "backbone", torch.float8_e4m3fn, card)[1] == expected
""",
        str(checkpoint_file),
        str(tmp_path),
    )


DYNAMIC = """
import comfy.model_patcher
if has_dynamic_vram:  # core's own flag: Linear and Embedding are then born without their weights
    import comfy.memory_management
    comfy.memory_management.aimdo_enabled = True
else:  # as newer cores' are
    import comfy.ops
    class Late:
        def __init__(self, *sizes, bias=True, **others):
            torch.nn.Module.__init__(self)
            self.in_features, self.out_features, self.weight, self.bias, self.has_bias = *sizes, None, None, bias
        def _load_from_state_dict(self, state_dict, prefix, *others):
            self.weight = torch.nn.Parameter(state_dict[prefix + "weight"], requires_grad=False)
            self.bias = torch.nn.Parameter(state_dict[prefix + "bias"], requires_grad=False)
    class LateOps(comfy.ops.manual_cast):
        class Linear(Late, comfy.ops.manual_cast.Linear):
            pass
    comfy.ops.pick_operations = lambda *a, **k: LateOps
"""


def test_everything_loads_under_dynamic_vram(checkpoint_file: Path, tmp_path: Path):
    """Whole checkpoint, backbone alone, VID, VAE, LoRA: layers are born without weights, nothing is asked of them
    before they are loaded, and a run gives the same bytes."""
    run_inside(
        GRAPH
        + f"has_dynamic_vram = {HAS_DYNAMIC_VRAM}"
        + """
expected = sampled(loop(model, vid, vae), *graph)
name = "diffusion_model.transformer_blocks.0.attn1.to_q"
lora = {f"{name}.lora_A.weight": torch.randn(2, 32), f"{name}.lora_B.weight": torch.randn(32, 2)}
patched = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0]
expected_patched = sampled(patched, *graph)
"""
        + DYNAMIC
        + """
from pack.nodes.load import SViMoCheckpointLoader, SViMoDiffusionModelLoader, SViMoInteractionLoader, SViMoVAELoader

folder_paths.add_model_folder_path("svimo", args[1])
model, vid, vae, clip = SViMoCheckpointLoader.execute("dynamic.safetensors").result
born = type(model.model.diffusion_model.proj_out)(4, 4)
assert born.weight is None, "the flag does nothing here"
graph = conditions(clip, vae)
for mine, theirs in zip(streams_of(sampled(loop(model, vid, vae), *graph)), streams_of(expected)):
    assert torch.equal(mine, theirs)
patched = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0]
assert difference(sampled(patched, *graph), expected_patched) < 1e-6
alone = SViMoDiffusionModelLoader.execute("dynamic.safetensors", "bf16").result[0]
vid, vae = (kind.execute("dynamic.safetensors").result[0] for kind in (SViMoInteractionLoader, SViMoVAELoader))
assert 0 < difference(sampled(loop(alone, vid, vae), *graph), expected) < 0.2
""",
        str(checkpoint_file),
        str(folder_with(checkpoint_file, tmp_path)),
    )


def folder_with(checkpoint: Path, folder: Path) -> Path:
    (folder / "dynamic.safetensors").write_bytes(checkpoint.read_bytes())
    return folder


def test_a_file_that_was_written_anew_is_loaded_anew(checkpoint_file: Path, tmp_path: Path):
    run_inside(
        """
        import os, folder_paths
        from pack.nodes import load

        folder_paths.add_model_folder_path("svimo", args[0])
        for category in ("vae", "diffusion_models", "loras"):
            folder_paths.add_model_folder_path(category, args[0])
        for node, name in (
            (load.SViMoCheckpointLoader, "ckpt_name"),
            (load.SViMoDiffusionModelLoader, "model_name"),
            (load.SViMoInteractionLoader, "model_name"),
            (load.SViMoVAELoader, "vae_name"),
            (load.SViMoLoraLoader, "lora_name"),
        ):
            values = {name: "dynamic.safetensors"}
            before = node.fingerprint_inputs(**values)
            assert before and before == node.fingerprint_inputs(**values)
            path = f"{args[0]}/dynamic.safetensors"
            os.utime(path, ns=(1, before[0][0] + 10**9))
            assert node.fingerprint_inputs(**values) != before
            assert node.fingerprint_inputs(**{name: "gone.safetensors"}) == []
        try:
            load.SViMoConvertCogVideoX.execute("dynamic.safetensors", " ")
        except ValueError as error:
            assert "no new plain name" in str(error), error
        else:
            raise AssertionError("accepted")
        """,
        str(folder_with(checkpoint_file, tmp_path)),
    )


def test_the_loop_runs_on_what_core_loads_with_the_model(checkpoint_file: Path):
    """Select Model Device and Select VAE Device of several GPUs put copies of the models in the place of those that the
    nodes were given, which stay unloaded."""
    run_inside(
        GRAPH
        + """
import copy
from pack.nodes.loop import LOOP

for exact in (False, True):
    looped = loop(model, vid, vae, start=0.0, exact_drawing=exact)
    expected = sampled(looped, *graph)
    moved, others = looped.clone(), (load_interaction(header := read_header(args[0])), load_vae(header))
    encoder = others[1].patcher if exact else others[0].drawing.patcher
    moved.set_additional_models(LOOP, [others[0].patcher, encoder])
    left = [patcher.model for patcher in (vid.patcher, vae.patcher if exact else vid.drawing.patcher)]
    before = [copy.deepcopy(network.state_dict()) for network in left]
    for network in left:
        for weight in network.parameters():
            weight.data.fill_(float("nan"))
    made = sampled(moved, *graph)
    assert torch.equal(made[READING].reading.hands, expected[READING].reading.hands), exact
    assert difference(made, expected) == 0, exact
    for network, weights in zip(left, before):
        network.load_state_dict(weights)

images = vae.decode(streams_of(expected).video)
moved = copy.copy(vae)  # as Select VAE Device has it
moved.patcher = load_vae(header).patcher
for weight in vae.patcher.model.parameters():
    weight.data.fill_(float("nan"))
assert torch.equal(moved.decode(streams_of(expected).video), images)
""",
        str(checkpoint_file),
    )


def test_the_loops_memory_is_planned_for(checkpoint_file: Path):
    """VID and what encodes drawings, the drawing encoder or the VAE, are among what core loads for MODEL, with room to
    encode a clip, and the weights' sizes are seen."""
    run_inside(
        GRAPH
        + """
asked = []
before = comfy.model_management.load_models_gpu
def record(models, memory_required=0, **others):
    asked.append((list(models), memory_required))
    return before(models, memory_required=memory_required, **others)
comfy.model_management.load_models_gpu = record
needed = []
for exact, encoder, room in (
    (True, vae, vae.memory_for_encode(9, 32, 48)),
    (False, vid.drawing, vid.drawing.painter(vid.normalizer, 48, 32).memory(9)),
):
    closed = loop(model, vid, vae, exact_drawing=exact)
    asked.clear()
    ksampled(closed, *graph)
    (models, asked_for), *others = asked
    held = {id(patcher.model) for patcher in models}
    assert {id(p.model) for p in (model, vid.patcher, encoder.patcher)} == held, len(held)
    assert asked_for >= room > 0
    assert not others, "models were loaded again during the run"
    needed.append(asked_for)
needed = min(needed)
asked.clear()
ksampled(model, *graph)
(models, without), = asked
assert len(models) == 1 and 0 < without < needed
full = closed.model.memory_required([2, 1, 2 * 16 * 13 * 52 * 78])
assert full == 16 * 2 * (8 + 2 * 13 * 26 * 39) * 32 * 4, full
""",
        str(checkpoint_file),
    )


def test_cogvideox_loads_under_dynamic_vram(tmp_path: Path):
    """Its position table, too, which is an embedding. With core's keys and diffusers', and fp8 with scales."""
    tiny_transformer().save_pretrained(tmp_path / "tiny")
    plain = tiny_transformer(use_learned_positional_embeddings=False).state_dict()
    save_file_of(tmp_path / "core.safetensors", comfyui_keys(plain))
    save_file_of(tmp_path / "fp8.safetensors", fp8(plain, "scale_weight"))
    run_inside(
        f"has_dynamic_vram = {HAS_DYNAMIC_VRAM}"
        + """
from pack.nodes.backbone import load_backbone
from pack.svimo_core.checkpoint import read_header

video, image = torch.randn(1, 16, 3, 8, 12), torch.randn(1, 16, 1, 8, 12)
text, time = torch.randn(1, 6, 24), torch.tensor([500.0])

def velocities(path):
    with torch.inference_mode():
        return load_backbone(read_header(path)).model.diffusion_model(video, time, text, image=image)

paths = f"{args[0]}/tiny", f"{args[0]}/core.safetensors", f"{args[0]}/fp8.safetensors"
expected = [velocities(path) for path in paths]
"""
        + DYNAMIC
        + """
for path, before in zip(paths, expected):
    assert torch.equal(velocities(path), before), path
""",
        str(tmp_path),
    )
