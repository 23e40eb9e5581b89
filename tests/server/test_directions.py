"""Video to motion, motion to video, clips that go on: their nodes from the inside, with real networks."""

from dataclasses import replace

import pytest
import torch
from helpers.inside import run_inside

from svimo_core.checkpoint import save_checkpoint

GRAPH = """
from dataclasses import replace
import comfy.model_management
import comfy.utils
import nodes
import numpy as np
from pack.nodes import condition, decode, directions, sample
from pack.nodes.latents import JointLatent, streams_of
from pack.nodes.load import load_interaction, load_text_encoder, load_vae, read_header
from pack.nodes.backbone import load_backbone
from pack.svimo_core.clean import trim

comfy.utils.PROGRESS_BAR_ENABLED = False
torch.inference_mode().__enter__()
header = read_header(args[0])
model, vid, vae, clip = load_backbone(header), load_interaction(header), load_vae(header), load_text_encoder(header)
positive, negative = (condition.SViMoTextEncode.execute(clip, text).result[0] for text in ("use spoon to stir cup", ""))
told = model, positive, negative, vae
generator = torch.Generator().manual_seed(0)
looped = sample.SViMoFeedbackLoop.execute(
    model, vid, vae, enabled=True, start_percent=0.0, end_percent=1.0, every=1, iterations=1, strength=1.0
).result[0]

def made(positive, negative, latent, seed=1):
    settings = seed, 2, 1.0, "constant", "ddim", 1.0, False
    out = sample.SViMoSampler.execute(looped, positive, negative, latent, *settings).result[0]
    motion = decode.SViMoDecodeMotion.execute(vid, out, False).result[0]
    images = decode.SViMoDecodeVideo.execute(vae, out, False).result[0]
    return out, motion, images

def refused(call, *words):
    try:
        call()
    except ValueError as error:
        assert all(word in str(error) for word in words), error
    else:
        raise AssertionError("not refused: " + " ".join(words))

image = torch.rand(1, 40, 60, 3, generator=generator)
start = condition.SViMoImageEncode.execute(positive, negative, vae, image, 0, 0, 0, 0.02, model).result
"""


@pytest.fixture(scope="module")
def able(tmp_path_factory, config, parts, normalizer):
    """A model of random weights that says it was trained for every direction."""
    path = tmp_path_factory.mktemp("able") / "able.safetensors"
    config = replace(config, backbone=replace(config.backbone, any_to_any=True))
    return str(save_checkpoint(path, config, parts, normalizer, torch.zeros(17, 3), {"source": "seeds"}))


def test_video_to_motion_sees_every_frame_of_a_long_video(able):
    run_inside(
        GRAPH
        + """
images = torch.rand(61, 50, 64, 3, generator=generator)  # 24 frames a second, of which the model sees each third
lists = directions.SViMoVideoToMotion.execute(*told, images, 24.0, 3).result
seen = lists[3]
assert seen.shape == (21, 32, 48, 3)
assert torch.equal(seen[1], directions.fit_frames(images, [3], header.config)[0])
starts = [latent["svimo_window"].first_frame for latent in lists[2]]
assert starts == [0, 6, 12] and all(len(x) == 3 for x in lists[:3])
motions = []
for positives, negatives, latent in zip(*lists[:3]):
    out, motion, _ = made(positives, negatives, latent)
    assert torch.equal(out["samples"].unbind()[0], latent["samples"].unbind()[0])
    assert out["samples"].unbind()[1].abs().sum() > 0
    assert torch.equal(positives[0][1]["concat_latent_image"], negatives[0][1]["concat_latent_image"])
    motions.append(motion)
joined, nothing = directions.SViMoJoinClips.execute(motions[::-1]).result
assert len(joined) == 21 and type(nothing).__name__ == "ExecutionBlocker" and joined.fps == 8
assert np.array_equal(joined.hands[:6], motions[0].hands[:6])
assert np.array_equal(joined.hands[15:], motions[2].hands[3:])
between = joined.hands[7]
assert np.allclose(between, 0.5 * motions[0].hands[7] + 0.5 * motions[1].hands[1], atol=1e-6)

seeing = directions.SViMoVideoToMotion.execute
refused(lambda: seeing(*told, images[:9], 24.0, 0), "too short", "9 frames at 24", "at least 25 frames")
assert len(seeing(*told, images[:25], 24.0, 0).result[0]) == 1
refused(lambda: seeing(*told, images[:24], 24.0, 0), "at least 25 frames")
refused(lambda: seeing(*told, images, 24.0, 9), "overlap must be below", "9 frames")
refused(lambda: seeing(*told, images[:1], 24.0, 0), "too short")
for fps in (0.0, float("nan"), float("inf")):  # a linked value is held to no limit
    refused(lambda: seeing(*told, images, fps, 0), "fps must be", "above 0")

# windows are encoded together where they are small; progress goes on, and both parts of the work can be cancelled
at_once, directions.ENCODED_AT_ONCE = directions.ENCODED_AT_ONCE, 0
alone = seeing(*told, images, 24.0, 3).result
directions.ENCODED_AT_ONCE = at_once
for one, other in zip(alone[2], lists[2], strict=True):
    assert torch.allclose(one["samples"].unbind()[0], other["samples"].unbind()[0], atol=1e-5)
for one, other in zip(alone[0], lists[0], strict=True):
    assert torch.allclose(one[0][1]["concat_latent_image"], other[0][1]["concat_latent_image"], atol=1e-5)
heard = []
comfy.utils.PROGRESS_THROTTLE_MIN_INTERVAL = comfy.utils.PROGRESS_THROTTLE_MIN_PERCENT = 0  # of later cores
comfy.utils.set_progress_bar_global_hook(lambda done, total, *_, **__: heard.append((done, total)))
seeing(*told, images, 24.0, 3)
assert heard == sorted(heard) and heard[-1] == (48, 48) and len(heard) > 20
for at in (5, 21):
    heard.clear()

    def cancel(done, total, *_, **__):
        heard.append(done)
        comfy.model_management.interrupt_current_processing(done == at)

    comfy.utils.set_progress_bar_global_hook(cancel)
    try:
        seeing(*told, images, 24.0, 3)
    except comfy.model_management.InterruptProcessingException:
        assert heard[-1] == at
    else:
        raise AssertionError("not cancelled")
comfy.utils.set_progress_bar_global_hook(None)

# core's way to work on one stream loses nothing, and puts no two lengths together
longer = condition.SViMoImageEncode.execute(positive, negative, vae, image, 0, 0, 17, 0.02, model).result[2]
other_half = decode.SViMoSplitLatent.execute(longer).result[1]
joining = decode.SViMoJoinLatents.execute
refused(
    lambda: joining(decode.SViMoSplitLatent.execute(lists[2][1]).result[0], other_half),
    "one length and size", "3 latent frames", "5 latent frames",
)
split = decode.SViMoSplitLatent.execute(lists[2][1]).result
again = decode.SViMoJoinLatents.execute(*split).result[0]
assert again["svimo_window"] == lists[2][1]["svimo_window"]
for one, other in zip(again["noise_mask"].unbind(), lists[2][1]["noise_mask"].unbind(), strict=True):
    assert torch.equal(one, other)
joining = directions.SViMoJoinClips.execute
refused(lambda: joining([motions[0]] * 2), "begin at frames 0, 0", "not a motion from a file")
refused(lambda: joining([motions[0], motions[2]]), "a gap of 3 frames")
refused(lambda: joining([motions[0]], [seen]), "images has 21 frames and its motion 9")
refused(lambda: seeing(model, [], negative, vae, images, 24.0, 0), "positive is empty")
sampling = sample.SViMoSampler.execute
first = model, lists[0][0], lists[1][0]
half = 1, 2, 1.0, "constant", "ddim", 0.5, False
refused(lambda: sampling(*first, lists[2][0], *half), "empty beside its given frames", "denoise 1")
ksampler = nodes.KSampler().sample
core = 1, 4, 1.0, "euler", "simple", *first[1:]
refused(lambda: ksampler(model, *core, lists[2][0], 0.5), "empty beside its given frames", "denoise 1")
assert sampling(*first, out, *half).result[0]["samples"].unbind()[1].abs().sum() > 0  # one that is there is refined
both = lists[2][0] | {"noise_mask": JointLatent([x * 0 for x in lists[2][0]["noise_mask"].unbind()])}
refused(lambda: ksampler(model, *core, both, 1.0), "nothing to make")

single = replace(header.config, backbone=replace(header.config.backbone, any_to_any=False))
before, model.model.config = model.model.config, single
refused(lambda: seeing(*told, images, 24.0, 0), "one direction only", "Load one that was")
settings = 1, 2, 1.0, "constant", "ddim", 1.0, False
refused(lambda: sampling(model, lists[0][0], lists[1][0], lists[2][0], *settings), "one direction only")
""",
        able,
    )


def test_motion_to_video_and_clips_that_go_on(able):
    run_inside(
        GRAPH
        + """
_, motion, video = made(*start)
long = motion.take(np.minimum(np.arange(20), 8))

# a motion is drawn, kept, and guides
*given, whole = directions.SViMoMotionToVideo.execute(*told, image, long).result
assert len(whole) == 20
out, _, shown = made(*given)
assert torch.equal(out["samples"].unbind()[1], given[2]["samples"].unbind()[1])
assert torch.equal(given[0][0][1]["svimo_guidance"], given[2]["samples"].unbind()[1])
# seen through the camera of an image of another shape, it lies where the image shows it once that is cropped
wide = replace(motion, camera=motion.camera.resized(96, 64).cropped(128, 64))
assert (wide.camera.fx, wide.camera.width, wide.camera.cx) != (wide.camera.fy, 96, 64)
told_wide = directions.SViMoMotionToVideo.execute(*told, image, replace(wide, camera=wide.camera)).result[2]
square = replace(motion, camera=wide.camera.cropped(48, 32))
told_square = directions.SViMoMotionToVideo.execute(*told, image, square).result[2]
assert torch.equal(told_wide["samples"].unbind()[1], told_square["samples"].unbind()[1])
*quick, _ = directions.SViMoMotionToVideo.execute(*told, image, long, vid).result
assert 0 < (quick[2]["samples"].unbind()[1] - given[2]["samples"].unbind()[1]).abs().max()
behind = motion.hands.copy()
behind[..., 2] = 0.5
behind[4:, 1, :3, 2] = -0.2
noted = directions.SViMoMotionToVideo.execute(*told, image, replace(motion, hands=behind))
assert "the right hand is behind the camera, at least in part, in 5 of 9 frames" in noted.ui["text"][0]
animating = directions.SViMoMotionToVideo.execute
refused(lambda: animating(*told, image, trim(motion, 0, 4)), "too short", "5 frames at 8", "at least 9")
refused(lambda: animating(*told, torch.cat([image] * 2), long), "one reference image")

# a clip goes on from its last five frames, three times
clip, images = motion, video
for round in range(3):
    given = directions.SViMoExtendClip.execute(*told, images, clip).result
    latent = given[2]
    assert latent["svimo_window"] == (len(images) - 5, True)
    out, window, more = made(*given)
    for found, kept in zip(out["samples"].unbind(), latent["samples"].unbind(), strict=True):
        assert torch.equal(found[:, :, :2], kept[:, :, :2]) and not torch.equal(found[:, :, 2:], kept[:, :, 2:])
    before = clip
    clip, images = directions.SViMoJoinClips.execute([window], [more], [clip], [images]).result
    assert len(clip) == len(images) == 13 + 4 * round
    assert np.array_equal(clip.hands[: len(before) - 5], before.hands[: len(before) - 5])
    # the window follows: where both show it, its hands are on average where the clip has them
    apart = clip.hands[-4:] - window.hands[-4:]
    assert np.allclose(apart, apart[:1, :, :1], atol=1e-5)
refused(lambda: directions.SViMoJoinClips.execute([window], [more]), "begins at frame 12", "motion_before")

# variants of a clip are a batch, of which one has its motion at a time
variants = nodes.RepeatLatentBatch().repeat(latent, 2)[0]
settings = 1, 2, 1.0, "constant", "ddim", 1.0, False
variants = sample.SViMoSampler.execute(looped, *given[:2], variants, *settings).result[0]
assert len(decode.SViMoDecodeVideo.execute(vae, variants, False).result[0]) == 18
reading = decode.SViMoDecodeMotion.execute
refused(lambda: reading(vid, variants, False), "a batch of 2 clips", "LatentFromBatch")
(one,) = nodes.LatentFromBatch().frombatch(variants, 1, 1)
assert reading(vid, one, False).result[0].metadata == latent["svimo_window"].metadata()

# to another clip, and along a motion that goes ahead
extending = directions.SViMoExtendClip.execute
given = extending(*told, images, clip, None, video, motion).result
assert [m[0, 0, :, 0, 0].tolist() for m in given[2]["noise_mask"].unbind()] == [[0, 1, 0]] * 2
assert given[2]["svimo_window"].first_frame == len(images) - 1
_, window, more = made(*given)
joined, shown = directions.SViMoJoinClips.execute([window], [more], [clip], [images]).result
assert len(joined) == len(shown) == len(images) + 8
ahead = clip.take(np.minimum(np.arange(len(clip) + 4), len(clip) - 1))
refused(lambda: extending(*told, images, ahead, None, video, motion), "as long as the images, or leave them out")
given = extending(*told, images, ahead).result
assert [m[0, 0, :, 0, 0].tolist() for m in given[2]["noise_mask"].unbind()] == [[0, 0, 1], [0, 0, 0]]
refused(lambda: extending(*told, images, trim(ahead, 0, len(clip))), "1 frames ahead", "4 or none")
refused(lambda: extending(*told, images[:3], clip), "at least 5 images")
refused(lambda: extending(*told, images, clip, None, video), "needs both")
refused(lambda: extending(*told, images, replace(clip, fps=24.0)), "24 frames a second", "Clean Motion")
""",
        able,
    )
