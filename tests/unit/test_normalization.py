import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from svimo_core.motion import HandObjectMotion
from svimo_core.normalization import MotionNormalizer


def test_round_trip_through_normalised_space(normalizer, motion):
    hands, points = normalizer.normalize(motion, points_per_object=10)
    back = normalizer.to_motion(hands, points, motion.camera.width, motion.camera.height, motion.fps)
    np.testing.assert_allclose(back.hands, motion.hands, atol=1e-6)
    for name in motion.objects:
        np.testing.assert_allclose(back.objects[name], motion.objects[name], atol=1e-6)
    assert back.camera.fx == pytest.approx(motion.camera.fx)


def test_normalised_motion_has_zero_mean_and_unit_spread(normalizer, motion):
    fitted = MotionNormalizer.fit([motion], ("tool",))
    hands, points = fitted.normalize(motion, points_per_object=10)
    assert hands.mean(dim=0).abs().max() < 1e-3
    assert points.mean().abs() < 1e-3
    assert points.std() == pytest.approx(1, abs=0.1)


def test_clouds_are_thinned_or_repeated_to_size(normalizer, motion):
    assert normalizer.normalize(motion, 4)[1].shape == (len(motion), 8, 3)
    assert normalizer.normalize(motion, 30)[1].shape == (len(motion), 60, 3)


def test_projection_is_that_of_the_motions_camera(normalizer, motion):
    hands, points = normalizer.normalize(motion, points_per_object=10)
    places = normalizer.project(hands, points)
    seen = normalizer.to_motion(hands, points, 200, 100, motion.fps)
    everything = [seen.hands.reshape(len(seen), 42, 3), *seen.objects.values()]
    pixels = seen.camera.project(np.concatenate(everything, axis=1))
    np.testing.assert_allclose((places.numpy() + 1) * (100, 50), pixels, atol=1e-3)
    behind = normalizer.normalize(replace(motion, hands=-motion.hands), points_per_object=10)
    assert torch.isfinite(normalizer.project(*behind)).all()


def test_motion_moves_by_metres(normalizer, motion):
    hands, points = normalizer.normalize(motion, points_per_object=10)
    by = torch.tensor([0.01, -0.02, 0.03])
    moved = normalizer.move(hands, points, by.expand_as(hands), by.expand_as(points))
    for after, before in zip(
        normalizer.denormalize(*moved), normalizer.denormalize(hands, points), strict=True
    ):
        torch.testing.assert_close(after - before, by.expand_as(after), atol=1e-5, rtol=0)


def test_plain_form_survives_json(normalizer):
    back = MotionNormalizer.from_dict(json.loads(json.dumps(normalizer.to_dict())))
    torch.testing.assert_close(back.hands_std, normalizer.hands_std)
    assert back.object_names == ("tool", "target")
    assert back.camera == pytest.approx(normalizer.camera)


def test_missing_objects_are_named(normalizer, motion):
    bare = HandObjectMotion(hands=motion.hands, objects={}, camera=motion.camera, fps=8)
    with pytest.raises(ValueError, match=r"lacks .*tool"):
        normalizer.normalize(bare, 4)
    with pytest.raises(ValueError, match="lacks"):
        MotionNormalizer.fit([bare], ("tool",))
    with pytest.raises(ValueError, match="at least one clip"):
        MotionNormalizer.fit([], ("tool",))
