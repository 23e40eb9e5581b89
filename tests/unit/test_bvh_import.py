"""Hands out of BVH files in the namings of many programs: bodies are built here, with their joints' places known."""

import codecs
import re
import time
from dataclasses import dataclass, field

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from svimo_core.importing.bvh import find_bvh, read_bvh
from svimo_core.importing.names import FINGERS, parse_joint_name

FRAMES = 3
BONES = {"thumb": (4.5, 3.4, 2.8)} | dict.fromkeys(FINGERS[1:], (4.2, 2.6, 2.1))
"""Of a finger, from its base to its tip."""
PALM = 6.0
"""Of the 9 from the wrist to a finger's base, where the palm has bones."""


@dataclass
class Joint:
    """A node of a skeleton; `ours` is the side and the place among the 21 joints."""

    name: str
    offset: tuple
    ours: tuple | None = None
    children: list["Joint"] = field(default_factory=list)
    moving: str = "Zrotation Xrotation Yrotation"

    def add(self, *args, **kwargs):
        self.children.append(Joint(*args, **kwargs))
        return self.children[-1]

    @property
    def is_end(self):
        return self.name == "End Site"


# Namings: the wrist's name, the fingers' names, and the names of each chain from base to tip. An asterisk marks a bone
# of the palm; four names have the tip as a joint (and an end site beyond), three leave it to the end site.


def naming(hand, joint, thumb="123", finger=None, fingers=FINGERS):
    def words(side):
        return {
            "side": side,
            "Side": side.capitalize(),
            "SIDE": side.upper(),
            "s": side[0],
            "S": side[0].upper(),
        }

    def names(side):
        chains = {}
        for ours, theirs in zip(FINGERS, fingers, strict=True):
            chains[ours] = [
                ("*" if n[:1] == "*" else "")
                + joint.format(
                    finger=theirs,
                    Finger=theirs.capitalize(),
                    FINGER=theirs.upper(),
                    n=n.lstrip("*"),
                    **words(side),
                )
                for n in (thumb if ours == "thumb" or finger is None else finger)
            ]
        return hand.format(**words(side)), chains

    return names


LITTLE = (*FINGERS[:4], "little")
MID = ("thumb", "index", "mid", "ring", "pinky")
PHALANGES = ["Proximal", "Intermediate", "Distal"]
MEDIAL = ["Proximal", "Medial", "Distal", "Tip"]
NAMINGS = {
    "mixamo": naming("mixamorig:{Side}Hand", "mixamorig:{Side}Hand{Finger}{n}", "1234"),
    "mixamo, underscore": naming("mixamorig1_{Side}Hand", "mixamorig1_{Side}Hand{Finger}{n}", "1234"),
    "motionbuilder": naming("{Side}Hand", "{Side}Hand{Finger}{n}", "123"),
    "upper case": naming("{SIDE}HAND", "{SIDE}HAND{FINGER}{n}", "123"),
    "lower case": naming("{side}hand", "{side}hand{finger}{n}", "123"),
    "cmu": naming("{S}Hand", "{S}{Finger}{n}", "123"),
    "rigify": naming("hand.{S}", "f_{finger}.{n}.{S}", ["01", "02", "03"]),
    "rigify, deform": naming("DEF-hand.{S}", "DEF-f_{finger}.{n}.{S}", ["01", "02", "03"]),
    "blender, copies": naming("hand.{S}", "{finger}.{S}{n}", ["", ".001", ".002"]),
    "unreal": naming("hand_{s}", "{finger}_{n}_{s}", ["01", "02", "03"]),
    "unreal 5": naming("hand_{s}", "{finger}_{n}_{s}", ["01", "02", "03"], ["*metacarpal", "01", "02", "03"]),
    "unity": naming("{Side}Hand", "{Side}{Finger}{n}", PHALANGES, fingers=LITTLE),
    "unity, words": naming("{Side} Hand", "{Side} {Finger} {n}", PHALANGES, fingers=LITTLE),
    "vrm 0": naming("{side}Hand", "{side}{Finger}{n}", PHALANGES, fingers=LITTLE),
    "vrm 1": naming(
        "{side}Hand", "{side}{Finger}{n}", ["Metacarpal", "Proximal", "Distal"], PHALANGES, fingers=LITTLE
    ),
    "vroid": naming("J_Bip_{S}_Hand", "J_Bip_{S}_{Finger}{n}", "123", fingers=LITTLE),
    "godot": naming("{Side}Hand", "{Side}{Finger}{n}", ["Metacarpal", "Proximal", "Distal", "Tip"], MEDIAL),
    "openxr": naming(
        "{side}/XR_HAND_JOINT_WRIST_EXT",
        "XR_HAND_JOINT_{FINGER}_{n}_EXT",
        ["METACARPAL", "PROXIMAL", "DISTAL", "TIP"],
        ["*METACARPAL", "PROXIMAL", "INTERMEDIATE", "DISTAL", "TIP"],
        fingers=LITTLE,
    ),
    "webxr": naming(
        "{side}-wrist",
        "{finger}-{n}",
        ["metacarpal", "phalanx-proximal", "phalanx-distal", "tip"],
        [
            "*finger-metacarpal",
            "finger-phalanx-proximal",
            "finger-phalanx-intermediate",
            "finger-phalanx-distal",
        ],
    ),
    "rokoko": naming(
        "{Side}Hand",
        "{Side}Finger{finger}{n}",
        ["Metacarpal", "Proximal", "Distal", "Tip"],
        ["*Metacarpal", *MEDIAL],
        fingers="12345",
    ),
    "rokoko, short": naming("{Side}Hand", "{Side}Finger{finger}{n}", MEDIAL, fingers="12345"),
    "xsens": naming(
        "{Side}Hand",
        "{Side}{Finger}{n}",
        ["MC", "PP", "DP"],
        ["*MC", "PP", "MP", "DP"],
        fingers=("first", "second", "third", "fourth", "fifth"),
    ),
    "biped": naming("Bip01 {S} Hand", "Bip01 {S} Finger{finger}{n}", ["", "1", "2"], fingers="01234"),
    "biped, nub": naming(
        "Bip01_{S}_Hand", "Bip01_{S}_Finger{finger}{n}", ["", "1", "2", "Nub"], fingers="01234"
    ),
    "makehuman": naming("wrist.{S}", "finger{finger}-{n}.{S}", "123", fingers="12345"),
    "thumb by name": naming(
        "wrist.{S}", "{finger}-{n}.{S}", "123", fingers=["thumb", *map("finger{}".format, "1234")]
    ),
    "smpl-x": naming("{side}_wrist", "{side}_{finger}{n}", "123"),
    "character creator": naming("CC_Base_{S}_Hand", "CC_Base_{S}_{Finger}{n}", "123", fingers=MID),
    "daz": naming("{s}Hand", "{s}{Finger}{n}", "123", fingers=MID),
    "daz, lower": naming("{s}hand", "{s}{finger}{n}", "123", fingers=MID),
    "daz 9": naming("{s}_hand", "{s}_{finger}{n}", "123", ["*metacarpal", "1", "2", "3"], fingers=MID),
    "auto-rig pro": naming("hand.{s}", "{finger}{n}.{s}", "123", ["*1_base", "1", "2", "3"]),
    "auto-rig pro, controls alone": naming("c_hand.{s}", "c_{finger}{n}.{s}", "123"),
    "arkit": naming(
        "{side}_hand_joint",
        "{side}_hand{Finger}{n}_joint",
        ["Start", "_1", "_2", "End"],
        ["*Start", "_1", "_2", "_3", "End"],
    ),
    "mediapipe": naming(
        "{S}_WRIST",
        "{S}_{FINGER}_{n}",
        ["CMC", "MCP", "IP", "TIP"],
        ["FINGER_MCP", "FINGER_PIP", "FINGER_DIP", "FINGER_TIP"],
    ),
    "counted from 0": naming("{side}_wrist", "{side}_{finger}_{n}", "012"),
    "counted from 0 to the tip": naming("{side}_wrist", "{side}_{finger}_{n}", "0123"),
    "counted from the palm": naming("b_{s}_wrist", "b_{s}_{finger}{n}", "123", ["*0", "1", "2", "3"]),
    "counted from the palm to the tip": naming(
        "{Side}Hand", "{Side}Hand{Finger}{n}", "1234", ["*1", *"2345"]
    ),
    "ours": naming("{side}_wrist", "{side}_{finger}_{n}", ["cmc", "mcp", "ip"], ["mcp", "pip", "dip"]),
}


def perception_neuron(side):
    wrist, chains = NAMINGS["motionbuilder"](side)
    for finger in FINGERS[1:]:
        chains[finger].insert(0, f"*{side.capitalize()}InHand{finger.capitalize()}")
    return wrist, chains


NAMINGS["perception neuron"] = perception_neuron
NAMINGS["blender, taken names"] = naming("{Side}Hand.001", "{Side}Hand{Finger}{n}.001", "123")


def add_hand(parent, names, side, *, ends=True):
    """A hand on a joint; ends=False leaves end sites of no length, as some programs write them."""
    x = 1 if side == "left" else -1
    wrist_name, chains = names(side)
    wrist = parent.add(wrist_name, (25 * x, 0, 0), (side, 0))
    for f, (finger, chain) in enumerate(chains.items()):
        at, place = wrist, 1 + 4 * f
        base = np.array((3.0, -1, 2) if finger == "thumb" else (9.0, 0, 3 - 1.5 * f))
        if chain[0].startswith("*"):
            at = wrist.add(chain[0][1:], tuple((base - (PALM, 0, 0)) * (x, 1, 1)))
            base, chain = np.array((PALM, 0, 0)), chain[1:]
        for offset, name in zip([base, *((b, 0.3, 0.2) for b in BONES[finger])], chain, strict=False):
            at = at.add(name, tuple(np.multiply(offset, (x, 1, 1))), (side, place))
            place += 1
        rest = BONES[finger][-1] if len(chain) == 3 and ends else 0
        at.add("End Site", (rest * x, 0.1 if rest else 0, 0), (side, place) if rest else None)
    return wrist


def body(names, sides=("left", "right"), **kwargs):
    """A body with hands, feet with toes, and the clutter that rigs have."""
    root = Joint("Hips", (0, 90, 0), moving="Xposition Yposition Zposition Yrotation Xrotation Zrotation")
    chest = root.add("Spine", (0, 40, 1))
    for side in sides:
        s = side[0]
        ankle = root.add(f"{side.capitalize()}Foot", (10, -80, 0))
        for name in ("LeftToeIndex", "LeftFootIndex2", "LeftToePinky3"):
            ankle = ankle.add(name.replace("Left", side.capitalize()), (0, -2, 4))
        root.add(f"ik_hand_root_{s}", (0, 0, 0)).add(f"ik_hand_{s}", (1, 0, 0))
        arm = chest.add(f"{side.capitalize()}ForeArm", (20, 0, 0))
        arm.add(f"hand_twist_01_{s}", (5, 0, 0))
        wrist = add_hand(arm, names, side, **kwargs)
        index = wrist.children[1]
        index.children.insert(0, Joint(f"{index.name}_twist", (2, 0, 0)))
        wrist.children.insert(0, Joint(f"hand_{s}_weapon", (8, 0, 0)))
        wrist.children[0].add(f"hand_{s}_weapon_index", (8, 0, 0)).add(f"weapon_index2_{s}", (2, 0, 0))
    return root


def bvh(*roots, seed=0, frames=FRAMES, rate=0.02):
    """The text of a BVH with random motion, and its hands: side -> frames x 21 x 3."""
    rng = np.random.default_rng(seed)
    lines, columns, hands = ["HIERARCHY"], [], {}

    def write(joint, depth, place, turn):
        tab = "\t" * depth
        head = "End Site" if joint.is_end else f"{'JOINT' if depth else 'ROOT'} {joint.name}"
        lines.extend([tab + head, tab + "{", f"{tab}\tOFFSET " + " ".join(f"{v:.6f}" for v in joint.offset)])
        offset = np.tile(joint.offset, (frames, 1)).astype(float)
        moving = [] if joint.is_end else joint.moving.split()
        local = Rotation.identity(frames)
        for channel in moving:
            axis = "XYZ".index(channel[0])
            if channel.endswith("position"):
                values = np.round(offset[:, axis] + rng.normal(size=frames) * 0.01, 6)
                offset[:, axis] = values
            else:
                values = np.round(rng.uniform(-40, 40, frames), 6)
                local = local * Rotation.from_euler(channel[0], values[:, None], degrees=True)
            columns.append(values)
        place = place + turn.apply(offset)
        if joint.ours:
            side, at = joint.ours
            hands.setdefault(side, np.full((frames, 21, 3), np.nan))[:, at] = place
        if moving:
            lines.append(f"{tab}\tCHANNELS {len(moving)} {' '.join(moving)}")
        for child in joint.children:
            write(child, depth + 1, place, turn * local)
        lines.append(tab + "}")

    for root in roots:
        write(root, 0, np.zeros((frames, 3)), Rotation.identity(frames))
    lines += ["MOTION", f"Frames: {frames}", f"Frame Time: {rate}"]
    lines += [" ".join(f"{value:.6f}" for value in row) for row in np.transpose(columns)]
    return "\n".join(lines) + "\n", hands


def check(found, hands):
    for i, side in enumerate(("left", "right")):
        if side in hands:
            np.testing.assert_allclose(found.hands[:, i], hands[side], atol=1e-6)
        else:
            assert np.isnan(found.hands[:, i]).all()


@pytest.fixture
def write(tmp_path):
    def write(text, name="m.bvh"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


MIXAMO, UNREAL, SMPLX = (NAMINGS[name] for name in ("mixamo", "unreal", "smpl-x"))


@pytest.fixture(scope="module")
def mixamo():
    return bvh(body(MIXAMO))


# Names and chains


@pytest.mark.parametrize("name", NAMINGS)
def test_hands_of_a_body_are_found_in_every_naming(write, name):
    text, hands = bvh(body(NAMINGS[name]))
    found = find_bvh([write(text)])
    assert set(hands) == {"left", "right"}
    check(found, hands)
    assert (found.fps, found.order, found.up, found.forward) == (50, "OpenPose", "+y", "-z")
    assert (found.seen_by_camera, found.metres_per_unit, found.name) == (False, None, "m.bvh")
    assert found.hands.dtype == np.float64
    assert all("bone of the palm" in note for note in found.notes)
    assert bool(found.notes) == name.startswith("counted from the palm")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["mixamo", "biped", "openxr", "daz"])
def test_one_hand_is_enough(write, name, side):
    text, hands = bvh(body(NAMINGS[name], sides=[side]))
    found = find_bvh([write(text)])
    check(found, hands)
    assert len(hands) == 1
    assert any(f"no {'right' if side == 'left' else 'left'} hand was found" in note for note in found.notes)


def test_one_file_per_hand(write):
    one, left = bvh(add_hand(Joint("", ()), SMPLX, "left"), seed=1)
    other, right = bvh(add_hand(Joint("", ()), UNREAL, "right"), seed=2)
    paths = [write(one, "l.bvh"), write(other, "r.bvh")]
    for order in (paths, paths[::-1]):
        found = find_bvh(order)
        check(found, left | right)
        assert found.name == " and ".join(path.name for path in order)
    both, hands = bvh(*(add_hand(Joint("", ()), SMPLX, side) for side in ("left", "right")))
    check(find_bvh([write(both)]), hands)  # two roots


def test_a_hand_without_a_side_has_that_of_its_file(write):
    text, hands = bvh(add_hand(Joint("", ()), lambda _: naming("wrist", "{finger}_{n}")("left"), "left"))
    found = find_bvh([write(text, "take 3 Left.bvh")])
    check(found, hands)
    assert "the left hand, by the file's name" in found.notes[0]
    with pytest.raises(ValueError, match=r"^m\.bvh: no name says which hand .*left or right"):
        find_bvh([write(text)])


def test_of_two_people_the_first_is_taken_and_said(write, mixamo):
    text, hands = mixamo
    joints, head = text.index("ROOT"), text.index("MOTION")
    second = text[joints:head].replace("mixamorig:", "second:")
    rows = [f"{row} {row}" if row[:1] in "-0123456789" else row for row in text[head:].splitlines() if row]
    found = find_bvh([write(text[:head] + second + "\n".join(rows) + "\n")])
    check(found, hands)
    assert_note(found, "fingers hang from mixamorig:LeftHand, second:LeftHand; the first of these was taken")


def test_a_hand_whose_wrist_has_another_name(write):
    text, hands = bvh(body(naming("{Side}Carpus", "{Side}{Finger}{n}")))
    found = find_bvh([write(text)])
    check(found, hands)
    assert "LeftCarpus, which all fingers hang from" in found.notes[0]
    text = text.replace("LeftCarpus", "LeftForeArmRoll")
    with pytest.raises(ValueError, match="the left hand lacks wrist; found were LeftThumb1"):
        find_bvh([write(text)])


def test_doubles_controls_and_ends_leave_the_chain_alone(write):
    root = body(MIXAMO)

    def clutter(joint):
        for child in list(joint.children):
            clutter(child)
        if joint.ours and joint.ours[1] % 4 in (1, 2) and joint.ours[1] > 4:
            joint.children.insert(0, Joint(f"{joint.name}_half", (1, 1, 1)))
            joint.add(joint.name.replace("mixamorig:", "mixamorig:c_"), (1, 1, 1)).add(
                "LeftHandIndex9", (1, 1, 1)
            )
        if joint.ours and joint.ours[1] in (8, 12):
            joint.children = []
            joint.add(f"{joint.name}_end", (3, 0, 0)).add("End Site", (1, 0, 0))

    clutter(root)
    text, hands = bvh(root)
    check(find_bvh([write(text.replace("LeftHandIndex9", "LeftHandProp"))]), hands)


def test_a_missing_tip_is_put_on_and_said(write):
    text, hands = bvh(body(UNREAL, ends=False))
    found = find_bvh([write(text)])
    tips = [4, 8, 12, 16, 20]
    for i, side in enumerate(("left", "right")):
        joints = found.hands[:, i]
        np.testing.assert_allclose(np.delete(joints, tips, 1), np.delete(hands[side], tips, 1), atol=1e-6)
        before, last = (np.linalg.norm(joints[:, 6 + k] - joints[:, 5 + k], axis=-1) for k in (1, 2))
        np.testing.assert_allclose(last, 0.8 * before)
        assert "index_tip" in found.notes[i]
        assert f"ends at the last joints of the {side} hand" in found.notes[i]
    # It bends with the last joint, as bones do.
    straight = (joints[:, 7] - joints[:, 6]) / before[:, None] * last[:, None]
    assert (np.linalg.norm(joints[:, 8] - joints[:, 7] - straight, axis=-1) > 0.1).all()


def test_names_that_are_no_joints_of_hands():
    for name in ("Hips", "LeftToeIndex", "LeftFootIndex1", "LeftUpLeg", "Spine", "LeftFingerBase"):
        assert not parse_joint_name(name).is_finger
    for name in ("ik_hand_l", "hand_l_weapon", "hand_twist_01_l", "c_index1.l", "__Thumb1_L"):
        assert parse_joint_name(name).helper


# What parsers bear with

HEAD = "Frame Time: 0.02\n"


def decimal_commas(text):
    head, rows = text.split("MOTION")
    return head.replace(".", ",").replace("mixamorig:", "m:") + "MOTION" + rows.replace(".", ",")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: codecs.BOM_UTF8 + text.encode(),
        lambda text: codecs.BOM_UTF16_LE + text.encode("utf-16-le"),
        lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
        decimal_commas,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\r"),
        lambda text: text.replace(" ", "\t"),
        lambda text: "\n\n" + text.replace("\n", "  \n\n"),
        lambda text: text.upper(),
        lambda text: text.lower(),
        lambda text: (
            text.replace("OFFSET", "Offset").replace("End Site", "end site").replace("rotation", "ROTATION")
        ),
        lambda text: re.sub(r"\n\t*{", "{", text),
        lambda text: text.replace("Frames: ", "Frames:").replace("Frame Time: ", "FrameTime:"),
    ],
    ids=("bom utf16le utf16be commas crlf cr tabs blank-lines upper lower mixed braces header".split()),
)
def test_the_same_file_in_other_dress(write, mixamo, change):
    text, hands = mixamo
    found = find_bvh([write(change(text))])
    check(found, hands)
    assert (found.fps, found.notes) == (50, ())


def test_separators_may_be_commas(write, mixamo):
    text, hands = mixamo
    head, rows = text.split(HEAD)
    check(find_bvh([write(head + HEAD + rows.replace(" ", ", "))]), hands)


@pytest.mark.parametrize(
    ("change", "frames", "note"),
    [
        (lambda t: t.replace("Frames: 3", "Frames: 5"), 3, "promises 5 frames, and 3 were found"),
        (lambda t: t.replace("Frames: 3", "Frames: 2"), 3, "promises 2 frames, and 3 were found"),
        (lambda t: t.replace("Frames: 3\n", ""), 3, "promises no frames, and 3 were found"),
        (lambda t: t.rstrip()[:-300], 2, "its last line has .* numbers and was left out"),
    ],
)
def test_what_is_whole_is_read(write, mixamo, change, frames, note):
    text, hands = mixamo
    found = find_bvh([write(change(text))])
    check(found, {side: joints[:frames] for side, joints in hands.items()})
    assert found.fps == 50
    with pytest.raises(AssertionError, match="no match"):
        assert_note(found, "nothing like it")
    assert_note(found, note)


def assert_note(found, pattern):
    assert any(re.search(pattern, note) for note in found.notes), f"no match in {found.notes}"
    assert all(note.endswith(".") for note in found.notes)


@pytest.mark.parametrize("said", ["0", "-0.02", "nan", "inf", "", "x", "0,0", "30", "1e-9"])
def test_a_frame_time_that_means_nothing(write, mixamo, said):
    text, hands = mixamo
    found = find_bvh([write(text.replace(HEAD, f"Frame Time: {said}\n"))])
    check(found, hands)
    assert found.fps is None
    assert_note(found, f"does not say its frame rate: its frame time is '{said}'")
    assert_note(find_bvh([write(text.replace(HEAD, ""))]), "it has no frame time")


@pytest.mark.parametrize(
    ("said", "fps"),
    [
        ("0.033333", 30),
        ("0,0416667", 24),
        ("0.033367", 30 / 1.001),
        ("0.0083333", 120),
        ("0.0225", 1 / 0.0225),
    ],
)
def test_a_rounded_frame_time_is_the_rate_that_was_rounded(write, mixamo, said, fps):
    """Or else frames would drift, and resampling to that very rate would lose the last one."""
    found = find_bvh([write(re.sub(r"Frame Time: .*", f"Frame Time: {said}", mixamo[0]))])
    assert found.fps == fps


def test_frames_may_break_over_lines(write, mixamo):
    text, hands = mixamo
    head, rows = text.split(HEAD)
    words = rows.split()
    wrapped = "\n".join(" ".join(words[i : i + 10]) for i in range(0, len(words), 10))
    check(find_bvh([write(head + HEAD + wrapped)]), hands)
    with pytest.raises(ValueError, match="frame 0 has 10 numbers and its skeleton"):
        find_bvh([write(head + HEAD + wrapped[:-100])])  # where a frame begins is anybody's guess
    short = "\n".join(
        " ".join(words[i : i + len(words) // 3 - 1]) for i in range(0, len(words), len(words) // 3)
    )
    with pytest.raises(ValueError, match=r"frame 0 has .* numbers and its skeleton"):
        find_bvh([write(head + HEAD + short)])


def test_channels_in_any_order_and_positions_anywhere(write):
    root = body(UNREAL)
    orders = [
        "Yrotation Zrotation Xrotation",
        "Zrotation Yposition Xrotation Xposition Zposition Yrotation",
        "Xrotation",
    ]

    def reorder(joint, depth=0):
        joint.moving = orders[depth % 3]
        for child in joint.children:
            reorder(child, depth + 1)

    reorder(root)
    text, hands = bvh(root)
    check(find_bvh([write(text)]), hands)
    scaled, _ = bvh(root)
    assert "CHANNELS 1 Xrotation" in scaled
    found = find_bvh([write(scaled.replace("CHANNELS 1 Xrotation", "CHANNELS 1 Xscale"))])
    assert_note(found, "scale, which was left out")


def test_positions_that_count_from_the_offsets(write):
    text, hands = bvh(body(UNREAL))
    lines, rows = [], []
    channels = 0
    for line in text.split("MOTION")[0].splitlines():
        if "CHANNELS 3" in line:
            line = line.replace("CHANNELS 3", "CHANNELS 6 Xposition Yposition Zposition")
            channels += 1
        lines.append(line)
    for row in text.split(HEAD)[1].splitlines():
        row = row.split()
        rows.append(
            row[:6] + [v for i in range(channels) for v in ["0", "0", "0", *row[6 + 3 * i : 9 + 3 * i]]]
        )
    head = "\n".join([*lines, "MOTION", "Frames: 3", HEAD])
    found = find_bvh([write(head + "\n".join(" ".join(row) for row in rows))])
    check(found, hands)
    assert_note(found, "positions of joints count from their offsets")


def test_end_site_without_offset(write):
    text, hands = bvh(body(MIXAMO))
    check(find_bvh([write(text.replace("\tOFFSET 0.000000 0.000000 0.000000\n", "\n"))]), hands)


def test_a_hand_that_is_not_finite_in_a_frame(write, mixamo):
    text, hands = mixamo
    head, rows = text.split(HEAD)
    rows = rows.splitlines()
    rows[1] = "inf " + rows[1].split(" ", 1)[1]
    found = find_bvh([write(head + HEAD + "\n".join(rows))])
    assert np.isnan(found.hands[1]).all()
    check_frames = {side: joints[[0, 2]] for side, joints in hands.items()}
    for i, side in enumerate(("left", "right")):
        np.testing.assert_allclose(found.hands[[0, 2], i], check_frames[side], atol=1e-6)
    assert_note(found, "not finite in 1 of 3 frames")
    rows = ["nan " + row.split(" ", 1)[1] for row in rows]
    with pytest.raises(ValueError, match="not finite in every frame"):
        find_bvh([write(head + HEAD + "\n".join(rows))])


def test_long_files_are_read_quickly(write):
    text, _ = bvh(body(MIXAMO), frames=40)
    head, rows = text.split(HEAD)
    path = write(head.replace("Frames: 40", "Frames: 1000") + HEAD + rows * 25)
    start = time.perf_counter()
    assert len(find_bvh([path]).hands) == 1000
    assert time.perf_counter() - start < 3  # 0.25 s when measured


# Errors


def without(text, *names):
    for name in names:
        text = text.replace(f"JOINT {name}\n", "JOINT unknown\n")
    return text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"m\.bvh is not a BVH file: expected HIERARCHY, but it is empty"),
        (b"Kaydara FBX Binary  \0", "not a BVH file: it is an FBX: export the motion as BVH"),
        (b"PK\x03\x04", "it is a zip archive: unpack it"),
        (b"<!DOCTYPE html>", "it is a web page or XML"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "Git LFS pointer in place of the file: run git lfs pull",
        ),
        (b'{"hands": 1}', r"expected HIERARCHY, but it begins with '\{\"hands\": 1\}'"),
        (b"HIERARCHY\nMOTION\nFrames: 0\n", "it has no joints"),
    ],
)
def test_other_files_are_refused_by_what_they_are(write, content, message):
    with pytest.raises(ValueError, match=message):
        find_bvh([write(content)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[: t.index("OFFSET") + 10], "it ends early, within the hierarchy"),
        (lambda t: t[:600], "it ends early, before the line MOTION"),
        (lambda t: t.split("MOTION")[0], "it ends early, before the line MOTION"),
        (lambda t: t.split(HEAD)[0] + HEAD, "header promises 3 frames of .* numbers, 0 numbers were found"),
        (lambda t: t.replace("MOTION", "}\n}\nMOTION"), "'}' stands outside of any joint"),
        (lambda t: t.replace("Zrotation", "Wrotation"), "unknown channel 'wrotation'"),
        (lambda t: t.replace("OFFSET", "OFSET"), "unexpected 'OFSET' in the hierarchy"),
        (lambda t: t.replace("OFFSET 25", "OFFSET x"), r"not a BVH file .*x"),
        (lambda t: t.replace("OFFSET 25.000000", "OFFSET inf"), "an OFFSET is not finite"),
        (lambda t: t.replace(HEAD, HEAD + "1 2 3\n"), "frame 0 has 3 numbers and its skeleton .* channels"),
        (lambda t: t.rstrip() + "x", "holds what is no number"),
    ],
)
def test_damage_is_one_clear_error(write, mixamo, change, message):
    with pytest.raises(ValueError, match=message) as error:
        find_bvh([write(change(mixamo[0]))])
    assert "m.bvh" in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_joints_are_named_and_so_are_those_found(write):
    text, _ = bvh(body(NAMINGS["motionbuilder"], sides=["left"]))
    for gone, lacks in {
        "LeftHandIndex1": "index_mcp",
        "LeftHandIndex2": "index_pip",
        "LeftHandIndex3": "index_dip",
        "LeftHandThumb1": "thumb_cmc",
        "LeftHandPinky2": "pinky_pip",
    }.items():
        with pytest.raises(
            ValueError, match=rf"^m\.bvh: the left hand lacks {lacks}; found were LeftHand, .*Ring3"
        ):
            find_bvh([write(without(text, gone))])
    with pytest.raises(ValueError, match="lacks ring_mcp, ring_pip, ring_dip; found were"):
        find_bvh([write(without(text, *(f"LeftHandRing{n}" for n in "123")))])
    text, _ = bvh(body(NAMINGS["vrm 1"], sides=["left"]))
    with pytest.raises(ValueError, match="lacks thumb_mcp, index_pip; found"):
        find_bvh([write(without(text, "leftThumbProximal", "leftIndexIntermediate"))])
    text, _ = bvh(body(MIXAMO, sides=["left"]))
    with pytest.raises(ValueError, match="lacks middle_pip; found"):
        find_bvh([write(without(text, "mixamorig:LeftHandMiddle2"))])


def test_a_body_without_fingers_says_so(write):
    arm = Joint("Hips", (0, 0, 0)).add("LeftForeArm", (1, 0, 0))
    arm.add("LeftHand", (1, 0, 0)).add("End Site", (1, 0, 0))
    with pytest.raises(ValueError, match=r"^m\.bvh has LeftHand but no finger joints: "):
        find_bvh([write(bvh(arm)[0])])
    arm.children = []
    with pytest.raises(
        ValueError, match=r"^m\.bvh has no joint named as part of a hand: .*, found LeftForeArm$"
    ):
        find_bvh([write(bvh(arm)[0])])


def test_files_that_do_not_belong_together(write):
    def hand(side, name, **kwargs):
        return write(bvh(add_hand(Joint("", ()), SMPLX, side), **kwargs)[0], name)

    left = hand("left", "l.bvh")
    with pytest.raises(ValueError, match=r"l\.bvh and r\.bvh have 3 and 4 frames: export both alike"):
        find_bvh([left, hand("right", "r.bvh", frames=4)])
    with pytest.raises(ValueError, match=r"l\.bvh and r\.bvh have different frame rates, 50 and 100"):
        find_bvh([left, hand("right", "r.bvh", rate=0.01)])
    with pytest.raises(ValueError, match=r"l\.bvh and l2\.bvh both have the left hand"):
        find_bvh([left, hand("left", "l2.bvh")])
    found = find_bvh([hand("right", "r.bvh", rate=0), left])
    assert found.fps == 50  # what one file says holds for both
    with pytest.raises(ValueError, match="no BVH file was given"):
        find_bvh([])
    with pytest.raises(FileNotFoundError, match="no BVH file at"):
        find_bvh([left.with_name("absent.bvh")])


def test_a_bvh_without_hands_is_still_a_bvh(write):
    text, _ = bvh(Joint("hip", (0, 1, 0)))
    file = read_bvh(write(text))
    assert (file.names, file.parents, len(file)) == (["hip"], [-1], 3)
    assert file.positions([0]).shape == (3, 1, 3)


def test_a_hostile_name_does_not_take_for_ever():
    assert parse_joint_name("mcpip" * 200 + "q").part is None
