import numpy as np
import pytest
from helpers.moving_hands import hand_animation

from svimo_core.hand_rig import JOINT_PARENTS, TIPS, check_hand, fit_capsule_hand
from svimo_core.motion import HAND_NAMES


@pytest.mark.parametrize("side", HAND_NAMES)
def test_capsule_hand_follows_the_joints(side):
    joints = hand_animation(side, frames=33).joints
    hand = fit_capsule_hand(joints, side)
    np.testing.assert_allclose(hand.joints, joints, atol=1e-6)
    assert hand.residual_mm < 1e-3
    np.testing.assert_allclose(
        hand.global_rotations[:, 0] @ hand.rig.rest_joints[9] + hand.translations, joints[:, 9], atol=1e-6
    )


def test_bones_keep_their_length_when_the_joints_do_not():
    joints = hand_animation("right").joints
    noisy = joints + np.random.default_rng(0).normal(scale=0.003, size=joints.shape)
    hand = fit_capsule_hand(noisy, "right")
    parents = np.array(JOINT_PARENTS[1:])
    lengths = np.linalg.norm(hand.joints[:, 1:] - hand.joints[:, parents], axis=-1)
    assert lengths.std(axis=0).max() < 1e-9
    assert 1 < hand.residual_mm < 6
    tips = np.linalg.norm((hand.joints - noisy)[:, list(TIPS)], axis=-1)
    assert np.sqrt(np.mean(tips**2)) < 0.004  # errors do not add up along a finger


@pytest.mark.parametrize("side", HAND_NAMES)
def test_rest_pose_is_a_flat_hand_palm_down(side):
    rest = fit_capsule_hand(hand_animation(side).joints, side).rig.rest_joints
    assert (rest[0] == 0).all()
    thumb_side = 1 if side == "left" else -1
    assert rest[4, 0] * thumb_side > 0.03 > rest[20, 0] * thumb_side
    assert (rest[list(TIPS[1:]), 2] > 0.1).all()  # fingers point forward
    assert np.abs(rest[5:, 1]).max() < 0.02  # and lie flat


@pytest.mark.parametrize("side", HAND_NAMES)
def test_mesh_surrounds_the_skeleton(side):
    hand = fit_capsule_hand(hand_animation(side, frames=5).joints, side)
    rig, posed = hand.rig, hand.posed_vertices()
    np.testing.assert_allclose(rig.weights.sum(axis=1), 1, atol=1e-12)
    assert (rig.weights >= 0).all()
    a, b, c = (rig.vertices[rig.faces[:, i]] for i in range(3))
    edges = np.concatenate([rig.faces[:, [0, 1]], rig.faces[:, [1, 2]], rig.faces[:, [2, 0]]])
    assert len(np.unique(edges, axis=0)) == len(edges)  # neighbouring faces look the same way
    volume = np.einsum("fi,fi->", a, np.cross(b, c)) / 6
    assert 1e-4 < volume < 8e-4  # 100 to 800 ml, and positive: faces look outwards
    for frame in range(5):
        distance = np.linalg.norm(posed[frame][:, None] - hand.joints[frame], axis=-1).min(axis=0)
        assert distance.max() < 0.035  # skin around every joint
        assert distance[list(TIPS)].max() < 0.002  # and up to the fingertips


def test_one_frame_is_enough():
    joints = hand_animation("left", frames=3).joints[:1]
    np.testing.assert_allclose(fit_capsule_hand(joints, "left").joints, joints, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda j: j[:0], "at least one frame"),
        (lambda j: j[:, :20], "frames x 21 x 3"),
        (lambda j: np.where(np.arange(j.size).reshape(j.shape) == 3 * 63, np.nan, j), "first in frame 3"),
        (lambda j: j * np.nan, "absent from every frame"),
        (lambda j: j * 100, "in metres has 0.03 to 0.2"),
        (lambda j: j * 0.01, "in metres has 0.03 to 0.2"),
        (lambda j: j * 0, "hand is not missing"),
    ],
)
def test_what_cannot_be_a_hand_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        check_hand(change(hand_animation("left").joints), "left")


def test_a_finger_without_bones_is_refused():
    joints = hand_animation("right").joints
    joints[:, 19:21] = joints[:, 18:19]
    with pytest.raises(ValueError, match="right hand: pinky_pip and pinky_dip lie in one place"):
        fit_capsule_hand(joints, "right")
