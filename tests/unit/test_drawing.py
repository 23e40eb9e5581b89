"""The loop's quick way: drawing with tensors, and the drawing encoder in place of the VAE."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import HEIGHT, WIDTH, moving_motion
from einops import rearrange
from safetensors import safe_open
from torch.utils.flop_counter import FlopCounterMode

from svimo_core.checkpoint import load_part, read_header, save_checkpoint
from svimo_core.config import COGVIDEOX_5B_I2V, TINY, ClipSize
from svimo_core.model.drawing import DrawingEncoder
from svimo_core.motion import HAND_BONES, HandObjectMotion
from svimo_core.rasterize import JOINT_BEFORE_BONES, NUM_JOINTS, Rasterizer
from svimo_core.render import HAND_COLORS, JOINT_COLOR, NEAR, OBJECT_COLORS, render_motion
from svimo_core.sampling.guidance import FeedbackOptions
from svimo_core.sampling.painter import QuickPainter, as_known, quickly_encoded
from svimo_core.sampling.pipeline import SViMo, generate
from svimo_core.sampling.reader import MeanReading, Reading
from svimo_train.data.synthetic import generate_motion
from svimo_train.data.wild import MOST_OBJECTS, wild_motion
from svimo_train.drawing import CAMERA, DrawingPool, through_camera
from svimo_train.plan import PeakMemory
from svimo_train.settings import DrawingObjective, Phase, Shape, TrainConfig
from svimo_train.trainer import CHECKPOINT, STATE, load_vae, train

BUNDLED = Path(__file__).resolve().parents[2] / "assets" / "models" / "svimo-tiny.safetensors"


# --- drawing ---


def drawn_both_ways(motion: HandObjectMotion, pixel: int) -> tuple[torch.Tensor, torch.Tensor]:
    """By tensors and by OpenCV, N 3 h w each, at a fraction of the motion's size."""
    camera = motion.camera
    metres = torch.from_numpy(through_camera(motion, CAMERA))[None]
    clouds = tuple(cloud.shape[1] for cloud in motion.objects.values())
    quick = Rasterizer(CAMERA, (camera.height, camera.width), pixel)(metres, clouds)[0]
    exact = torch.from_numpy(render_motion(motion, camera.width, camera.height)).float() / 255
    return quick, F.avg_pool2d(rearrange(exact, "n h w c -> n c h w"), pixel)


@pytest.mark.parametrize(
    ("width", "height", "pixel", "tolerance"), [(96, 64, 2, 0.04), (624, 416, 2, 0.02), (368, 240, 2, 0.03)]
)
def test_drawing_agrees_with_opencv(width, height, pixel, tolerance):
    """Squared difference in parts of what is drawn."""
    for seed in range(4):
        for motion in (
            generate_motion(seed, frames=3, height=height, width=width),
            wild_motion(seed, 3, height, width, 8.0, 128),
        ):
            quick, exact = drawn_both_ways(motion, pixel)
            assert (quick - exact).square().sum() < tolerance * exact.square().sum() + 1e-6
            # and is neither larger nor moved: one pixel aside fits several times worse
            if exact.square().sum() > 10:
                assert quick.sum() / exact.sum() == pytest.approx(1, abs=0.03)
                aside = (quick.roll(1, dims=-1) - exact).square().sum()
                assert aside > 3 * (quick - exact).square().sum()


SIDE = 624
MIDDLE = SIDE / 2


def hand_far_away() -> torch.Tensor:
    """Joints (42, 3) behind the camera, which nothing draws."""
    return torch.tensor([0.0, 0.0, -1.0]).repeat(NUM_JOINTS, 1)


def draw(joints: torch.Tensor, *clouds: torch.Tensor, size=(SIDE, SIDE)) -> torch.Tensor:
    """One frame at full size, 3 H W, as whole numbers."""
    metres = torch.cat([joints, *clouds])[None, None]
    drawn = Rasterizer((1.0, 1.0, 0.5, 0.5), size)(metres, tuple(len(cloud) for cloud in clouds))
    return (255 * drawn[0, 0]).round()


def color_at(drawn: torch.Tensor, x: float, y: float) -> tuple[float, ...]:
    return tuple(drawn[:, int(y), int(x)].tolist())


def test_the_nearest_wins():
    near, far = torch.tensor([[0.0, 0.0, 0.5]]), torch.tensor([[0.0, 0.0, 0.6]])
    assert color_at(draw(hand_far_away(), near, far), MIDDLE, MIDDLE) == OBJECT_COLORS[0]
    assert color_at(draw(hand_far_away(), far, near), MIDDLE, MIDDLE) == OBJECT_COLORS[1]
    assert (
        color_at(draw(hand_far_away(), far, far, far, far, near), MIDDLE, MIDDLE) == OBJECT_COLORS[0]
    )  # in turn


def test_millimetres_count_near_and_far():
    for depth, apart in ((0.5, 0.0005), (3.0, 0.001), (20.0, 1.0)):
        near, far = torch.tensor([[0.0, 0.0, depth]]), torch.tensor([[0.0, 0.0, depth + apart]])
        assert color_at(draw(hand_far_away(), far, near), MIDDLE, MIDDLE) == OBJECT_COLORS[1]


def test_tall_pictures_and_far_scenes_lie_where_opencv_has_them():
    tall = Rasterizer((1.0, 1 / 16, 0.5, 0.5), (256, 16), 2)
    metres = torch.cat([hand_far_away(), torch.tensor([[0.0, 3.0, 0.5]])])[None, None]
    assert tall(metres, (1,))[0, 0].sum(dim=(0, 2)).argmax() == pytest.approx(112, abs=1)
    motion = generate_motion(1, frames=2, height=64, width=96)
    quick, exact = drawn_both_ways(
        replace(
            motion,
            hands=motion.hands * 1000,
            objects={name: cloud * 1000 for name, cloud in motion.objects.items()},
        ),
        2,
    )
    assert (quick - exact).square().sum() < 0.1 * exact.square().sum()


def test_a_joint_lies_on_its_bones_and_a_bone_at_the_mean_of_its_ends():
    joints = hand_far_away()
    joints[5], joints[6] = torch.tensor([-0.1, 0.0, 0.5]), torch.tensor([0.1, 0.0, 0.7])  # left index finger
    drawn = draw(joints)
    assert color_at(drawn, MIDDLE - 0.2 * SIDE, MIDDLE) == JOINT_COLOR
    assert color_at(drawn, MIDDLE + 5, MIDDLE) == HAND_COLORS[0]
    flat = hand_far_away()
    flat[5], flat[6] = torch.tensor([-0.1, 0.0, 0.5]), torch.tensor([0.1, 0.0, 0.5])
    assert color_at(draw(flat), MIDDLE + 0.2 * SIDE, MIDDLE) == JOINT_COLOR
    between = torch.tensor([[0.0, 0.0, 0.59]])
    assert color_at(draw(joints, between), MIDDLE, MIDDLE) == OBJECT_COLORS[0]
    assert color_at(draw(joints, between + torch.tensor([0, 0, 0.02])), MIDDLE, MIDDLE) == HAND_COLORS[0]


@pytest.mark.parametrize(
    "end", [(0.1, 0.02), (-0.1, 0.02), (0.02, 0.1), (0.02, -0.1), (0.1, 0.1), (0.0, 0.0)]
)
def test_a_bone_goes_from_joint_to_joint_in_every_direction(end):
    """Also one without length, which is no more than its joints."""
    joints = hand_far_away()
    joints[26] = torch.tensor([0.0, 0.0, 0.5])
    joints[27] = torch.tensor([*end, 0.5])
    drawn = draw(joints)
    for share in (0.3, 0.5, 0.7):
        x, y = (MIDDLE + share * 2 * SIDE * e for e in end)
        assert max(color_at(drawn, x, y)) == 255
    rows, columns = drawn.sum(dim=0).nonzero().unbind(dim=1)
    for found, e in ((columns, end[0]), (rows, end[1])):
        low, high = sorted((MIDDLE, MIDDLE + 2 * SIDE * e))
        assert found.min() >= low - 5
        assert found.max() <= high + 5


@pytest.mark.parametrize("focal", [1.0, 2.0])
def test_each_spot_has_the_nearest_of_what_covers_it(focal):
    """As asked of every spot and everything, one by one; also where most lies beside the picture."""
    motion = generate_motion(5, frames=1)
    metres = torch.from_numpy(through_camera(motion, CAMERA))
    metres[0, 3, 2] = -0.01  # its bones are not seen either
    metres[0, 30] = metres[0, 29]  # a bone without length
    fx, fy, cx, cy = CAMERA
    camera = focal * fx, focal * fy, cx, cy
    draw = Rasterizer(camera, (64, 96), 2)
    height, width = draw.grid
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    lens = torch.tensor([camera[0] * width, camera[1] * height])
    middle = torch.tensor([camera[2] * width, camera[3] * height]) + draw.offset
    places = metres[0, :, :2] * lens / metres[0, :, 2:] + middle
    seen = []  # depth, colour, covered
    for i, (place, depth) in enumerate(zip(places, metres[0, :, 2], strict=True)):
        radius = draw.joint if i < NUM_JOINTS else draw.point
        color = JOINT_COLOR if i < NUM_JOINTS else OBJECT_COLORS[(i - NUM_JOINTS) // 128]
        covered = (x - place[0]) ** 2 + (y - place[1]) ** 2 <= radius**2
        seen.append((depth - JOINT_BEFORE_BONES * (i < NUM_JOINTS), color, covered & (depth > NEAR)))
    for hand, color in enumerate(HAND_COLORS):
        for bone in HAND_BONES:
            start, end = (21 * hand + joint for joint in bone)
            way = places[end] - places[start]
            away = torch.stack([x, y], dim=-1) - places[start]
            share = ((away @ way) / way.square().sum().clamp(min=1e-12)).clamp(0, 1)
            covered = (away - share[..., None] * way).norm(dim=-1) <= draw.bone
            depth = metres[0, [start, end], 2]
            seen.append((depth.mean(), color, covered & (depth.min() > NEAR)))
    expected = torch.zeros(height, width, 3)
    for _, color, covered in sorted(seen, key=lambda x: -x[0]):
        expected[covered] = torch.tensor(color).float()
    expected = F.avg_pool2d(expected.permute(2, 0, 1), draw.fine) / 255
    assert expected.mean() > 0.02
    torch.testing.assert_close(draw(metres[None], (128, 128))[0, 0], expected)


def test_what_is_behind_or_beside_is_not_drawn():
    joints = hand_far_away()
    joints[0] = torch.tensor([50.0, 0.0, 0.5])
    joints[1] = torch.tensor([0.0, -1e6, 0.5])
    cloud = torch.tensor(
        [[0.0, 0.0, 0.0], [0.0, 0.0, -0.5], [3.0, 3.0, 0.5], [-0.8, 0.0, 0.5], [0.0, 0.0, 1e9]]
    )
    drawn = draw(joints, cloud)
    middle = slice(int(MIDDLE) - 8, int(MIDDLE) + 8)
    assert drawn[:, middle, middle].any()
    drawn[:, middle, middle] = 0  # the last of the cloud is as far as anything
    assert not drawn.any()


def test_a_number_that_is_not_finite_spoils_its_own_frame():
    metres = torch.rand(2, 3, NUM_JOINTS + 4, 3) + 0.5
    metres[1, 2, 7, 0] = torch.nan
    metres[0, 0, 50 - 8, 2] = torch.inf
    drawn = Rasterizer(CAMERA, (32, 48), 2)(metres, (4,))
    spoilt = [[bool(frame.isnan().all()) for frame in clip] for clip in drawn]
    assert spoilt == [[True, False, False], [False, False, True]]
    assert drawn[0, 1:].isfinite().all()


def test_frames_are_drawn_each_for_itself(monkeypatch):
    """In a batch, alone, and in parts, which large clips are drawn in."""
    metres = torch.from_numpy(through_camera(generate_motion(3, frames=6), CAMERA))
    draw = Rasterizer(CAMERA, (64, 96), 2)
    whole = draw(metres.unflatten(0, (2, 3)), (128, 128))
    assert whole.std() > 0.05
    one = draw(metres[None, 4:5], (128, 128))
    assert torch.equal(one[0, 0], whole[1, 1])
    monkeypatch.setattr("svimo_core.rasterize.SPOTS_AT_ONCE", 1)
    assert torch.equal(draw(metres.unflatten(0, (2, 3)), (128, 128)), whole)


# --- the encoder ---


def test_encoder_hears_no_later_frames(parts, config):
    drawing = torch.rand(2, 17, 3, 16, 24)
    later = drawing.clone()
    later[:, 9:] = 0
    with torch.inference_mode():
        one, other = (parts["drawing_encoder"](x) for x in (drawing, later))
    assert one.shape == (2, *config.vae.latent_shape(17, 32, 48))
    assert torch.equal(one[:, :, :3], other[:, :, :3])
    assert not torch.allclose(one[:, :, 3], other[:, :, 3])
    still = torch.rand(1, 1, 3, 16, 24)
    with torch.inference_mode():
        assert parts["drawing_encoder"](still).shape == (1, *config.vae.latent_shape(1, 32, 48))


@pytest.mark.parametrize(
    ("preset", "size"),
    [
        (TINY, ClipSize(9, 64, 96)),
        (COGVIDEOX_5B_I2V, ClipSize(49, 240, 368)),
        (COGVIDEOX_5B_I2V, ClipSize(49, 416, 624)),
    ],
    ids=["tiny", "5b at 240 x 368", "5b at 416 x 624"],
)
def test_shapes_memory_and_operations(preset, size, normalizer):
    """At full size on the meta device: a thousandth of the MM-DiT's 618 or 131 TFLOP, and less memory than is asked
    for, which is less than 1 GB."""
    with torch.device("meta"):
        encoder = DrawingEncoder(preset.drawing, preset.vae)
    painter = QuickPainter(encoder, normalizer, size.width, size.height)
    reading = Reading(
        torch.zeros(1, size.frames, 42, 3, device="meta"),
        torch.zeros(1, size.frames, preset.interaction.num_points, 3, device="meta"),
    )
    with PeakMemory() as memory, FlopCounterMode(display=False) as operations, torch.no_grad():
        latent = painter(reading)
    assert latent.shape == (1, *preset.vae.latent_shape(*size))
    assert 0.3 * painter.memory(size.frames) < memory.peak < painter.memory(size.frames) < 1e9
    if preset is COGVIDEOX_5B_I2V:
        forward = 618e12 if size.height == 416 else 131e12
        assert 1e-4 * forward < operations.get_total_flops() < 2e-3 * forward


# --- the quick painter ---


def test_quick_painter_draws_readings_as_the_normalizer_says(model, config):
    painter = model.painter(ClipSize(config.frames, config.height, config.width))
    assert isinstance(painter, QuickPainter)
    motion = moving_motion()
    motion = replace(motion, objects={name: cloud[:, :6] for name, cloud in motion.objects.items()})
    fx, fy, cx, cy = model.normalizer.camera
    w, h = motion.camera.width, motion.camera.height
    motion = replace(motion, camera=replace(motion.camera, fx=fx * w, fy=fy * h, cx=cx * w, cy=cy * h))
    reading = Reading(*(x[None].float() for x in model.normalizer.normalize(motion, 6)))
    with torch.inference_mode():
        latent = painter(reading)
        given = quickly_encoded(model.drawing_encoder, motion, w, h)
        torch.testing.assert_close(given, latent, atol=1e-4, rtol=1e-4)
        moved = painter(Reading(reading.hands + 0.3, reading.points))
        spoilt = painter(Reading(reading.hands * torch.nan, reading.points))
    assert latent.shape == (1, *config.latent_shape(config.frames, config.height, config.width))
    assert not torch.allclose(moved, latent, atol=1e-2)
    assert spoilt.isnan().any()


def test_the_loop_uses_the_drawing_encoder_unless_told_otherwise(model, config, monkeypatch):
    encoded = []
    encode = type(model.vae).encode
    monkeypatch.setattr(
        type(model.vae), "encode", lambda *args, **kw: encoded.append(1) or encode(*args, **kw)
    )
    image = torch.rand(config.height, config.width, 3, generator=torch.Generator().manual_seed(0))

    def run(model: SViMo, exact: bool) -> torch.Tensor:
        options = FeedbackOptions(start=0, exact=exact)
        return generate(model, image, "use spoon to stir cup", steps=3, options=options).video

    quick = run(model, exact=False)
    assert len(encoded) == 1  # the image
    exact = run(model, exact=True)
    assert len(encoded) == 1 + 1 + 3
    without = run(replace(model, drawing_encoder=None), exact=False)
    assert torch.equal(without, exact)
    assert not torch.allclose(quick, exact, atol=1e-4)


def test_reading_can_be_stopped_before_it_is_drawn(model, config):
    def stop():
        raise InterruptedError

    painter = QuickPainter(model.drawing_encoder, model.normalizer, config.width, config.height, on_work=stop)
    with pytest.raises(InterruptedError):
        painter(Reading(torch.zeros(1, 9, 42, 3), torch.zeros(1, 9, 12, 3)))


# --- what ships ---


@pytest.fixture(scope="module")
def bundled() -> SViMo:
    return SViMo.load(BUNDLED)


def test_the_bundled_encoder_agrees_with_its_vae(bundled):
    """On motions it never saw, in parts of the latents' variance around each channel's mean; and its own drawing makes
    less of a difference than its error."""
    errors = []
    with torch.inference_mode():
        for make in (generate_motion, wild_motion):
            quick, exact, given = [], [], []
            for seed in range(2000, 2012):
                shape = dict(frames=9, height=64, width=96, fps=8.0, points=128, split="test")
                motion = make(seed, **shape)
                frames = torch.from_numpy(render_motion(motion, 96, 64))
                exact.append(bundled.vae.encode(frames[None])[0])
                quick.append(quickly_encoded(bundled.drawing_encoder, motion, 96, 64)[0])
                pixels = F.avg_pool2d(rearrange(frames.float() / 255, "n h w c -> n c h w"), 2)
                given.append(bundled.drawing_encoder(pixels[None])[0])
            quick, exact, given = (torch.stack(x) for x in (quick, exact, given))
            spread = exact.var(dim=(0, 2, 3, 4)).mean()
            errors.append([(F.mse_loss(*pair) / spread).item() for pair in ((quick, exact), (quick, given))])
    for error, of_drawing in errors:
        assert error < 0.025
        assert of_drawing < error / 2


LOOPS = {
    "svimo-tiny": (  # one level of patches
        [[-0.26398, -0.24172, -0.27904], [0.20084, -0.08013, 0.16409]],
        [[1.00906, 0.24934, -0.67972], [0.41259, -0.14621, 0.27084]],
        [-0.21845, 0.34886, 0.1825],
        [[0.5473, 0.61818, 1.4081], [0.67885, 1.0738, 1.93496]],
        [[0.22273, 0.80971, 1.64563], [0.50237, 0.18725, 1.47456]],
        [1.52467, 1.57674, 2.11889, 1.64084],
        1.05397,
    ),
    "svimo-tiny-any": (  # three levels; of readings, numbers of version 0.2 before there were patches
        [[-0.04229, 0.01173, -0.09383], [0.30811, 0.24885, -0.11613]],
        [[0.94391, 0.30237, -1.253], [0.27484, 0.07834, -0.00062]],
        [-0.2562, -0.12809, -0.27875],
        [[-0.33693, -0.97215, 0.14247], [-0.24489, -0.6412, 0.03696]],
        [[0.11883, 1.14393, -0.80816], [-0.22393, -0.58104, -0.79036]],
        [1.21091, 1.50421, 1.38014, 1.37813],
        1.04894,
    ),
}


@torch.inference_mode()
@pytest.mark.parametrize("name", LOOPS)
def test_a_bundled_models_loop_computes_what_it_always_did(name):
    """Two readings, their mean, that held against an image, and the latent of its drawing."""
    model = SViMo.load(BUNDLED.with_stem(name))
    shape = 1, *model.config.latent_shape(9, 64, 96)
    ramp = torch.arange(torch.Size(shape).numel())
    latents = [(pace * ramp).sin().view(shape) for pace in (0.7, 1.9, 3.1)]
    reader, mean = model.reader(), MeanReading()
    first = reader.read(*latents[:2])
    mean.add(first, 0.75)
    mean.add(reader.read(*latents[1:]), 0.25)
    aligned = reader.align(reader.look(latents[2][:, :, 0]), mean.value)
    drawn = model.painter(ClipSize(9, 64, 96))(aligned)
    found = (
        (first.hands[0, [0, 8], 7], 1e-4),
        (first.points[0, -1, [0, 200]], 1e-4),
        (mean.value.hands[0, 3, 30], 1e-4),
        (aligned.hands[0, [0, 8], 20], 3e-4),
        (aligned.points[0, 5, [3, 255]], 3e-4),
        (drawn[0, 5, 2, 4, 2:6], 0.02),  # a spot may be another
        (drawn.abs().mean(), 1e-3),
    )
    for (value, atol), expected in zip(found, LOOPS[name], strict=True):
        torch.testing.assert_close(value, torch.tensor(expected), atol=atol, rtol=1e-4)


# --- its training ---


@pytest.fixture
def settings(tmp_path, checkpoint_file, config) -> TrainConfig:
    shape = Shape(frames=config.frames, height=config.height, width=config.width, batch_size=4)
    return TrainConfig(
        stage="drawing",
        clips=tmp_path / "drawings",
        output=tmp_path / "run",
        init=checkpoint_file,
        phases=(Phase(steps=40, shapes=(shape,)),),
        learning_rate=1e-2,
        clip_norm=1.0,
        warmup_steps=0,
        save_every=20,
        sheet_every=40,
        drawing=DrawingObjective(motions=8),
    )


def test_it_learns_and_says_how_far_off_it_is(settings, config, parts, monkeypatch):
    monkeypatch.setattr("svimo_train.drawing.HELD_OUT", 2)
    header = read_header(train(settings))
    assert header.parts[-1] == "drawing_encoder"
    with safe_open(settings.output / STATE, framework="pt") as state:  # other parts rest in their file
        assert json.loads(state.metadata()["notes"])["given"].keys() == {"vae", "drawing_encoder"}
    before, after = parts["backbone"].state_dict(), load_part(header, "backbone").state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "drawing: 40 steps, 160 samples" in header.provenance["drawing_encoder"]
    assert "latent_error" in header.provenance["drawing_encoder"]
    assert (settings.output / "sheet-0000040.png").stat().st_size > 1000
    losses = [line.split('"loss": ')[1].split(",")[0] for line in (settings.output / "log.jsonl").open()]
    assert float(losses[-1]) < 0.5 * float(losses[0])
    further = replace(
        settings,
        init=settings.output / CHECKPOINT,
        output=settings.output / "further",
        learning_rate=0.0,
        sheet_every=0,
    )
    again = read_header(train(replace(further, phases=(Phase(steps=1, shapes=settings.phases[0].shapes),))))
    before, after = (load_part(x, "drawing_encoder").state_dict() for x in (header, again))
    assert all(torch.equal(before[name], after[name]) for name in before)  # goes on from what there was


def test_a_run_that_stopped_goes_on_the_same(settings, monkeypatch):
    monkeypatch.setattr("svimo_train.drawing.HELD_OUT", 1)
    shape = settings.phases[0].shapes[0]
    settings = replace(settings, sheet_every=0, save_every=2)
    train(replace(settings, phases=(Phase(steps=4, shapes=(shape,)),), output=settings.output / "whole"))
    for steps in (2, 4):
        parted = replace(
            settings, phases=(Phase(steps=steps, shapes=(shape,)),), output=settings.output / "parted"
        )
        train(parted)
    for name in (STATE, CHECKPOINT):
        whole, parted = (read_weights(settings.output / run / name) for run in ("whole", "parted"))
        assert all(torch.equal(whole[key], parted[key]) for key in whole)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def test_it_needs_no_more_than_a_vae(settings, config, parts, tmp_path, monkeypatch):
    """Such as CogVideoX's; nothing else is made up for the file."""
    monkeypatch.setattr("svimo_train.drawing.HELD_OUT", 1)
    alone = save_checkpoint(
        tmp_path / "vae.safetensors", replace(config, drawing=None), {"vae": parts["vae"]}
    )
    shape = settings.phases[0].shapes[0]
    header = read_header(train(replace(settings, init=alone, phases=(Phase(steps=1, shapes=(shape,)),))))
    assert header.parts == ("vae", "drawing_encoder")
    assert header.config.drawing == TINY.drawing  # of the preset that the run names
    without = save_checkpoint(tmp_path / "text.safetensors", config, {"text_encoder": parts["text_encoder"]})
    for init in (without, None):
        with pytest.raises(ValueError, match="learns from a trained VAE"):
            train(replace(settings, init=init))


def test_a_damaged_latent_is_made_anew(settings, caplog):
    pool = DrawingPool(settings.clips, 8, load_vae(settings))
    shape = settings.phases[0].shapes[0]
    metres, latent = pool.latent(3, shape)
    (file,) = settings.clips.rglob("*.npz")
    whole = file.read_bytes()
    for spoil in (
        lambda: file.write_bytes(whole[:100]),
        lambda: file.write_bytes(b""),
        lambda: np.savez(file, metres=metres.numpy(), latent=latent.numpy()[:, :2]),
        lambda: np.savez(file, metres=metres.numpy(), latent=latent.numpy() * np.nan),
    ):
        caplog.clear()
        spoil()
        again = pool.latent(3, shape)
        assert "made anew" in caplog.text
        assert torch.equal(again[0], metres)
        assert torch.equal(again[1], latent)
    config = pool.config
    fewer = replace(config, interaction=replace(config.interaction, points_per_object=4, align_points=2))
    model = load_vae(settings)
    model.config = fewer
    assert DrawingPool(settings.clips, 8, model).latent(3, shape)[0].shape[1] <= metres.shape[1]
    assert len(list(settings.clips.rglob("train-000003.npz"))) == 2  # apart from those with more points
    assert not torch.equal(pool.latent(3, shape, "test")[1], latent)


# --- random motions ---


def test_random_motions_are_wild_and_repeat():
    make = dict(frames=9, height=64, width=96, fps=8.0, points=16)
    motions = [wild_motion(seed, **make) for seed in range(60)]
    again = wild_motion(17, **make)
    assert np.array_equal(again.hands, motions[17].hands)
    assert all(m.hands.dtype == np.float32 and np.isfinite(m.hands).all() for m in motions)
    assert {len(m.objects) for m in motions} == set(range(MOST_OBJECTS + 1))
    assert not np.array_equal(wild_motion(17, **make, split="test").hands, again.hands)
    gone = [(m.hands[..., 2] < 0).all(axis=(0, 2)).sum() for m in motions]
    assert set(gone) >= {0, 1}
    assert sum(np.allclose(m.hands[0], m.hands[-1]) for m in motions) > 1  # some are still
    depth = [np.median(m.hands[..., 2][m.hands[..., 2] > 0]) for m in motions if (m.hands[..., 2] > 0).any()]
    assert max(depth) > 2 * min(depth)


def test_another_camera_sees_the_same():
    motion = next(m for m in (wild_motion(s, 9, 64, 96, 8.0, 16) for s in range(9)) if m.camera.cx != 48)
    moved = torch.from_numpy(through_camera(motion, CAMERA))
    fx, fy, cx, cy = CAMERA
    u, v = (
        96 * (fx * moved[..., 0] / moved[..., 2] + cx),
        64 * (fy * moved[..., 1] / moved[..., 2] + cy),
    )
    joints = motion.hands.reshape(9, 42, 3)
    expected = motion.camera.project(joints)
    np.testing.assert_allclose(torch.stack([u, v], dim=-1)[:, :42].numpy(), expected, rtol=1e-3, atol=1e-2)


# --- motions that are given ---


def test_a_given_motion_is_drawn_as_the_model_knows_drawings(motion, config):
    """Objects in the colours and with as many points, whatever their order and whether both are there."""
    known, notes = as_known(motion, config.interaction, WIDTH, HEIGHT)
    points = config.interaction.points_per_object
    assert {name: cloud.shape[1] for name, cloud in known.objects.items()} == {
        "tool": points,
        "target": points,
    }
    assert notes == [
        f"Note: of {x}'s 10 points 6 are drawn, as this model knows objects." for x in motion.objects
    ]
    drawn = render_motion(known, WIDTH, HEIGHT)
    turned = replace(motion, objects=dict(reversed(motion.objects.items())))
    assert np.array_equal(
        render_motion(as_known(turned, config.interaction, WIDTH, HEIGHT)[0], WIDTH, HEIGHT), drawn
    )

    named = replace(motion, objects={"pan": motion.objects["tool"], "target": motion.objects["target"]})
    known, notes = as_known(named, config.interaction, WIDTH, HEIGHT)
    assert list(known.objects) == ["pan", "target"]
    assert notes[0] == "Note: pan is drawn as this model's tool."
    assert np.array_equal(render_motion(known, WIDTH, HEIGHT), drawn)

    alone = replace(motion, objects={"target": motion.objects["target"]})
    known, notes = as_known(alone, config.interaction, WIDTH, HEIGHT)
    assert notes[0] == "Note: there is no tool; this model has learned from motions that have one."
    apart = np.abs(render_motion(known, WIDTH, HEIGHT).astype(int)[..., None, :] - OBJECT_COLORS).sum(axis=-1)
    assert apart[..., 1].min() < 90 < apart[..., 0].min()


def test_what_is_odd_about_a_given_motion_is_noted(motion, config):
    hands, far = motion.hands.copy(), motion.objects["tool"] + np.float32([9, 0, 0])
    hands[2:5, 1, 4, 2] = -0.1  # one joint
    hands[7:, 0] = np.nan
    odd = replace(
        motion, hands=hands, objects={**motion.objects, "lid": motion.objects["tool"][:, :2], "tool": far}
    )
    _, notes = as_known(odd, config.interaction, WIDTH, HEIGHT)
    for words in (
        "the right hand is behind the camera, at least in part, in 3 of 9 frames, first in frame 2",
        "the left hand is absent in 2 of 9 frames, first in frame 7",
        "tool is outside of the picture in all 9 frames",
        "lid is drawn in a colour that this model has not learned: it knows 2 objects, tool and target",
        "lid has 2 points, and this model has learned from 6",
    ):
        assert any(words in note for note in notes), words
    assert len(notes) == 7
