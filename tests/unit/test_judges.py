import dataclasses

import numpy as np
import pytest
import torch

from svimo_core.motion import HandObjectMotion
from svimo_core.weights import open_weights
from svimo_train.clips import Clip, write_clip
from svimo_train.data.synthetic import generate_motion
from svimo_train.data.words import Triplet
from svimo_train.judge_training import main, train_judges
from svimo_train.judges import CODE, FEATURES, NOTHING, Judges, motion_features
from svimo_train.metrics import frechet_distance


@pytest.fixture(scope="module")
def judges() -> Judges:
    return Judges.load()


@pytest.fixture(scope="module")
def motions() -> list[HandObjectMotion]:
    return [generate_motion(10_000 + seed, "test") for seed in range(48)]


def changed(motion: HandObjectMotion, function) -> HandObjectMotion:
    objects = {name: function(cloud) for name, cloud in motion.objects.items()}
    return dataclasses.replace(motion, hands=function(motion.hands), objects=objects)


def frozen(motion: HandObjectMotion) -> HandObjectMotion:
    return changed(motion, lambda points: np.repeat(points[:1], len(points), axis=0))


def jittered(motion: HandObjectMotion, metres: float) -> HandObjectMotion:
    rng = np.random.default_rng(0)
    return changed(motion, lambda points: points + metres * rng.standard_normal(points.shape))


def test_features_ignore_place_point_order_and_frame_rate():
    motion = generate_motion(0, frames=9)
    features = motion_features(motion)
    assert features.shape == (9, FEATURES)
    moved = changed(motion, lambda points: points + (0.1, -0.2, 0.3))
    np.testing.assert_allclose(motion_features(moved), features, atol=1e-5)
    shuffled = dataclasses.replace(
        motion, objects={name: cloud[:, ::-1] for name, cloud in motion.objects.items()}
    )
    np.testing.assert_allclose(motion_features(shuffled), features, atol=1e-5)
    every_second = changed(motion, lambda points: points[::2])
    half_rate = motion_features(dataclasses.replace(every_second, fps=4.0))
    assert half_rate.shape == features.shape
    np.testing.assert_allclose(half_rate[::2], features[::2], atol=1e-6)
    np.testing.assert_allclose(half_rate[1], (features[0] + features[2]) / 2, atol=1e-6)


def test_features_need_a_tool_a_target_and_time():
    motion = generate_motion(0, frames=9)
    with pytest.raises(ValueError, match="tool"):
        motion_features(dataclasses.replace(motion, objects={"target": motion.objects["target"]}))
    with pytest.raises(ValueError, match="at least"):
        motion_features(dataclasses.replace(changed(motion, lambda points: points[:2]), fps=8.0))


def test_the_shipped_classifier_knows_actions_it_was_not_trained_on_clips_of(judges, motions):
    asked = [motion.metadata["action"] for motion in motions]
    assert judges.obedience(motions, asked) > 0.95
    assert judges.obedience([jittered(motion, 0.004) for motion in motions], asked) > 0.9
    assert judges.obedience(motions, asked[1:] + asked[:1]) < 0.5
    with pytest.raises(ValueError, match="does not know juggle"):
        judges.obedience(motions[:1], ["juggle"])


def test_the_classifier_sees_what_is_done_and_not_what_is_held(judges):
    words = [("spoon", "pan"), ("knife", "board"), ("jug", "bowl"), ("hammer", "box")]
    for action in ("stir", "scrape", "pour", "hit", "brush", "cut", "dip"):
        motions = [
            generate_motion(77, "test", triplet=Triplet(tool, action, target)) for tool, target in words
        ]
        assert judges.classify(motions).count(action) >= 3
    assert judges.classify([frozen(motion) for motion in motions]) == [NOTHING] * len(words)


def test_codes_tell_worse_motions_from_better_ones(judges, motions):
    codes = judges.codes(motions)
    assert codes.shape == (48, CODE)
    other = judges.codes([generate_motion(20_000 + seed, "test") for seed in range(48)])
    alike = frechet_distance(codes, other)
    rough, rougher = (judges.codes([jittered(motion, by) for motion in motions]) for by in (0.01, 0.03))
    still = judges.codes([frozen(motion) for motion in motions])
    assert alike < frechet_distance(rougher, other)
    assert frechet_distance(rough, codes) < frechet_distance(rougher, codes)
    assert 1.5 * alike < frechet_distance(still, other)


def test_training_learns_and_saving_keeps_what_was_learned(tmp_path, motions):
    judges = train_judges(clips=48, steps=60)
    asked = [motion.metadata["action"] for motion in motions]
    assert judges.obedience(motions, asked) > 0.4  # of eight classes
    judges.save(tmp_path / "judges.safetensors", {"training": "a test"})
    again = Judges.load(tmp_path / "judges.safetensors")
    assert again.classify(motions) == judges.classify(motions)
    np.testing.assert_allclose(
        again.codes(motions), judges.codes(motions), atol=0.05
    )  # stored in half precision


def test_a_folder_of_clips_gives_an_autoencoder_for_clips_like_them(tmp_path, motions, capsys):
    """Trained on motions alone, and held against what it does not know."""
    folder, file = tmp_path / "clips", tmp_path / "judges.safetensors"
    folder.mkdir()
    image = np.zeros((1, 8, 12, 3), np.uint8)
    for seed in range(60):
        write_clip(folder, f"clip-{seed}", Clip(image, generate_motion(seed, frames=9)))
    command = ["--clips", str(folder), "--frames", "9", "--steps", "120", "--out", str(file)]
    assert main(command) == 0
    notes = open_weights(file)[1]
    assert 0 < float(notes["error_train"]) < float(notes["error_kept_out"]) < 0.9
    assert "9 frames of clips in clips, 120 steps" in notes["training"]
    judges = Judges.load(file)
    assert (judges.classifier, judges.actions) == (None, ())
    codes, known = (
        judges.codes(motions),
        judges.codes([generate_motion(seed, frames=9) for seed in range(48)]),
    )
    still = judges.codes([frozen(motion) for motion in motions])
    rough = judges.codes([jittered(motion, 0.03) for motion in motions])
    assert frechet_distance(codes, known) < frechet_distance(still, known)
    assert frechet_distance(codes, known) < frechet_distance(rough, known)

    assert main([*command, "--frames", "17"]) == 1
    told = capsys.readouterr().err
    assert "60 clips of" in told
    assert "clip-0: clip" in told
    assert "... and 40 more" in told
    for path in list(folder.glob("*.npz"))[19:]:
        path.unlink()
    assert main(command) == 1
    assert "needs at least 20 clips" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--clips", str(folder)])


def test_a_foreign_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="does not hold motion judges"):
        Judges.load(tmp_path / "other.safetensors")
