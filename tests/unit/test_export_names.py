"""Bone names of other programs, and both hands in one BVH."""

import dataclasses

import numpy as np
import pytest
from helpers.moving_hands import motion as moving_motion
from helpers.read_glb import Glb

from svimo_core.export.bvh import write_bvh, write_hands_bvh
from svimo_core.export.glb import write_glb
from svimo_core.export.names import NAMINGS, bone_names
from svimo_core.hand_rig import TIPS
from svimo_core.importing.bvh import read_bvh
from svimo_core.motion import HAND_NAMES, JOINT_NAMES
from svimo_core.rigged import RiggedMotion, rig_motion

CENTIMETRES_Y_UP = np.array([100, -100, -100])

# Of the right hand, as the programs' own files have them: the wrist, the thumb, and the little finger.
KNOWN = {
    "svimo": "right_wrist right_thumb_cmc right_thumb_mcp right_thumb_ip right_thumb_tip "
    "right_pinky_mcp right_pinky_pip right_pinky_dip right_pinky_tip",
    "mixamo": "mixamorig:RightHand mixamorig:RightHandThumb1 mixamorig:RightHandThumb2 mixamorig:RightHandThumb3 "
    "mixamorig:RightHandThumb4 mixamorig:RightHandPinky1 mixamorig:RightHandPinky2 mixamorig:RightHandPinky3 "
    "mixamorig:RightHandPinky4",
    "unreal": "hand_r thumb_01_r thumb_02_r thumb_03_r thumb_03_r_end pinky_01_r pinky_02_r pinky_03_r pinky_03_r_end",
    "vrm": "rightHand rightThumbMetacarpal rightThumbProximal rightThumbDistal rightThumbDistal_end "
    "rightLittleProximal rightLittleIntermediate rightLittleDistal rightLittleDistal_end",
    "rigify": "hand.R thumb.01.R thumb.02.R thumb.03.R thumb.03.R_end f_pinky.01.R f_pinky.02.R f_pinky.03.R "
    "f_pinky.03.R_end",
}


@pytest.fixture(scope="module")
def rigged() -> RiggedMotion:
    """Six frames; the left hand is absent from two in the middle."""
    motion = moving_motion(frames=6)
    hands = motion.hands.copy()
    hands[2:4, 0] = np.nan
    return rig_motion(dataclasses.replace(motion, hands=hands))


@pytest.mark.parametrize("naming", NAMINGS)
def test_names_are_those_of_the_program_and_of_one_joint_each(naming):
    right = bone_names(naming, "right")
    assert right[:5] + right[17:] == KNOWN[naming].split()
    assert len({*bone_names(naming, "left"), *right}) == 42


def test_own_names_are_the_documented_joints():
    assert bone_names("svimo", "left") == [f"left_{name}" for name in JOINT_NAMES]


def test_an_unknown_naming_is_one_clear_error(tmp_path, rigged):
    message = "bone names are one of svimo, mixamo, unreal, vrm, rigify, got 'maya'"
    for write in (
        lambda path: write_glb(path, rigged, naming="maya"),
        lambda path: write_bvh(path, rigged.hands[0], 8, naming="maya"),
        lambda path: write_hands_bvh(path, rigged.hands, 8, naming="maya"),
    ):
        with pytest.raises(ValueError, match=message):
            write(tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("naming", NAMINGS)
def test_a_glb_differs_in_the_names_of_its_joints_alone(tmp_path, rigged, naming):
    own, named = (Glb(write_glb(tmp_path / n, rigged, naming=n)) for n in (NAMINGS[0], naming))
    assert named.binary == own.binary
    for hand, skin in zip(rigged.hands, named.json["skins"], strict=True):
        names = bone_names(naming, hand.rig.side)
        assert [named.json["nodes"][joint]["name"] for joint in skin["joints"]] == names
    every = [node["name"] for node in named.json["nodes"]]
    assert len(set(every)) == len(every)
    for document in (own, named):
        for node in document.json["nodes"]:
            del node["name"]
    assert named.json == own.json


@pytest.mark.parametrize("naming", NAMINGS)
def test_one_bvh_holds_both_hands(tmp_path, rigged, naming):
    path = write_hands_bvh(tmp_path / "hands.bvh", rigged.hands, rigged.fps, naming=naming)
    bvh = read_bvh(path)
    assert (bvh.names[0], bvh.parents.count(-1), bvh.fps) == ("hands", 1, rigged.fps)
    np.testing.assert_array_equal(bvh.positions([0])[:, 0], 0)
    for hand in rigged.hands:
        alone = read_bvh(write_bvh(tmp_path / "one.bvh", hand, rigged.fps, naming=naming))
        names = bone_names(naming, hand.rig.side)
        for joint, name in enumerate(names):
            name = f"{names[joint - 1]}_end" if joint in TIPS else name
            expected = hand.joints[:, joint] * CENTIMETRES_Y_UP
            for one in (alone, bvh):
                np.testing.assert_allclose(one.positions([one.names.index(name)])[:, 0], expected, atol=2e-4)
        assert bvh.parents[bvh.names.index(names[0])] == 0


def test_wrists_below_a_root_have_no_offset(tmp_path, rigged):
    """Readers differ in whether a position replaces the offset or adds to it; over zero they agree."""
    text = write_hands_bvh(tmp_path / "hands.bvh", rigged.hands, 8).read_text()
    assert (text.count("ROOT"), text.count("{")) == (1, text.count("}"))
    lines = text.splitlines()
    for side in HAND_NAMES:
        wrist = lines.index(f"\tJOINT {side}_wrist")
        assert not np.array(lines[wrist + 2].split()[1:], float).any()
        assert lines[wrist + 3].split()[:5] == ["CHANNELS", "6", "Xposition", "Yposition", "Zposition"]


def test_one_hand_alone_may_stand_below_the_root(tmp_path, rigged):
    bvh = read_bvh(write_hands_bvh(tmp_path / "hands.bvh", rigged.hands[1:], 8))
    assert len(bvh.names) == 22
    np.testing.assert_allclose(
        bvh.positions([1])[:, 0], rigged.hands[1].translations * CENTIMETRES_Y_UP, atol=1e-4
    )


def test_bvh_goes_on_where_a_hand_is_absent(tmp_path, rigged):
    left = rigged.hands[0]
    assert not left.present.all()
    bvh = read_bvh(write_hands_bvh(tmp_path / "hands.bvh", rigged.hands, 8))
    wrist = bvh.positions([bvh.names.index("left_wrist")])[:, 0]
    np.testing.assert_allclose(wrist[2], wrist[1] + (wrist[4] - wrist[1]) / 3, atol=0.2)
