import dataclasses
import itertools

import cv2
import numpy as np
import pytest

from svimo_core.motion import HAND_BONES, HandObjectMotion
from svimo_train.data.actions import TEMPO, Style, tool_path
from svimo_train.data.hands import (
    DIGIT_RADII,
    FLEXION_LIMITS,
    RELAXED,
    HandPlacement,
    hand_joints,
    skin,
    skin_faces,
)
from svimo_train.data.raster import coverage, draw_meshes
from svimo_train.data.scene import Change, Scene, make_scene
from svimo_train.data.shapes import surface_points
from svimo_train.data.synthetic import (
    VARIED_TARGET,
    VARIED_TOOL,
    VARIED_VESSEL,
    generate_clip,
    generate_motion,
    main,
)
from svimo_train.data.targets import TARGETS
from svimo_train.data.tools import TOOLS, stretched
from svimo_train.data.words import HELD_OUT, HELD_OUT_SHARE, TEST_SHARE, TRIPLETS, Triplet, triplet_weights

SMALL = dict(frames=5, height=48, width=72)


def one_scene(triplet: Triplet, seed: int = 0, frames: int = 17, change: Change | None = None):
    rngs = np.random.default_rng(seed).spawn(3)
    return make_scene(triplet, *rngs, time=np.arange(frames) / 8, fps=8.0, change=change)


def one_of_each(position: int) -> list[Triplet]:
    """The first triplet of every tool (0), action (1) or target (2)."""
    found = {}
    for triplet in TRIPLETS:
        found.setdefault(triplet[position], triplet)
    return list(found.values())


# --- clips ---


def test_a_seed_names_one_clip():
    first, again, other = generate_clip(3, **SMALL), generate_clip(3, **SMALL), generate_clip(4, **SMALL)
    assert first.video.shape == (5, 48, 72, 3)
    assert first.video.dtype == np.uint8
    np.testing.assert_array_equal(first.video, again.video)
    np.testing.assert_array_equal(first.motion.hands, again.motion.hands)
    assert not np.array_equal(first.motion.hands, other.motion.hands)
    assert not np.array_equal(first.motion.hands, generate_motion(3, "test", **SMALL).hands)
    # whoever has trained on seeds finds the same clips again
    cells = cv2.resize(first.video[2], (6, 4), interpolation=cv2.INTER_AREA).mean(axis=-1)
    expected = [
        [113, 118, 121, 123, 123, 122],
        [178, 149, 154, 101, 157, 170],
        [183, 94, 94, 91, 149, 173],
        [94, 135, 184, 102, 68, 99],
    ]
    np.testing.assert_allclose(cells, expected, atol=1.5)


def test_a_clip_looks_the_same_at_another_size():
    small, large = (
        generate_clip(5, frames=3, height=48, width=72),
        generate_clip(5, frames=3, height=192, width=288),
    )
    np.testing.assert_allclose(small.motion.hands, large.motion.hands, atol=1e-6)
    shrunk = np.stack([cv2.resize(frame, (72, 48), interpolation=cv2.INTER_AREA) for frame in large.video])
    assert np.abs(shrunk.astype(float) - small.video).mean() < 4


def test_a_motion_without_its_video_is_the_same():
    clip, motion = generate_clip(8, **SMALL), generate_motion(8, **SMALL)
    np.testing.assert_array_equal(clip.motion.objects["tool"], motion.objects["tool"])
    assert (
        motion.prompt
        == clip.triplet.prompt
        == f"use {clip.triplet.tool} to {clip.triplet.action} {clip.triplet.target}"
    )
    assert list(motion.objects) == ["tool", "target"]
    assert motion.objects["target"].shape == (5, 128, 3)


@pytest.mark.parametrize(
    "pair", [("spoon", "pan", "stir", "scrape", "hit"), ("knife", "board", "cut", "scrape")]
)
def test_the_first_frame_does_not_tell_the_action(pair):
    tool, target, *actions = pair
    clips = [generate_clip(1, triplet=Triplet(tool, action, target), **SMALL) for action in actions]
    for clip in clips[1:]:
        np.testing.assert_array_equal(clip.video[0], clips[0].video[0])
        np.testing.assert_allclose(clip.motion.hands[0], clips[0].motion.hands[0], atol=1e-9)
        assert np.abs(clip.motion.hands[-1] - clips[0].motion.hands[-1]).max() > 0.01


def test_the_video_shows_the_motion():
    """What moves in the picture is where the moving points project to."""
    clip = generate_clip(2, frames=2, height=96, width=144, fps=2.0)
    changed = np.abs(np.diff(clip.video.astype(int), axis=0)).sum((0, -1)) > 40
    near = cv2.dilate(changed.astype(np.uint8), np.ones((5, 5))) > 0
    points = np.concatenate([clip.motion.hands[1, 1], clip.motion.objects["tool"][1]])
    column, row = np.floor(clip.motion.camera.project(points)).astype(int).T
    inside = (row >= 0) & (row < 96) & (column >= 0) & (column < 144)
    assert near[row[inside], column[inside]].mean() > 0.9 > 0.5 > changed.mean()


def test_the_whole_of_the_first_frame_is_in_view():
    for seed in range(12):
        motion = generate_motion(seed, "test", **SMALL)
        points = np.concatenate(
            [motion.hands[0].reshape(-1, 3), *(cloud[0] for cloud in motion.objects.values())]
        )
        pixels = motion.camera.project(points)
        assert (pixels >= 0).all()
        assert (pixels <= (72, 48)).all()
        assert np.ptp(pixels[:, 0]) > 0.7 * 72


def test_varied_clips_have_things_and_motions_without_words():
    """A made-up word in the prompt stands for a tool or target of another shape, or for another motion; what keeps its
    word is as it was."""
    made_up, changes = set(), {"tool": [], "target": []}
    for seed in range(40):
        plain, varied = (generate_motion(seed, varied=v, **SMALL) for v in (False, True))
        _, tool, _, action, target = varied.prompt.split()
        new = {
            p: w
            for p, w in zip(Triplet._fields, (tool, action, target), strict=True)
            if w != plain.metadata[p]
        }
        assert new
        assert not {*TOOLS, *TARGETS, *TEMPO} & set(new.values())
        assert varied.metadata == plain.metadata
        made_up |= set(new.items())
        for name in ("tool", "target"):
            # extents along the cloud's own axes, whatever the view
            extents = [
                np.linalg.svd(cloud - cloud.mean(axis=0), compute_uv=False)
                for cloud in (motion.objects[name][0] for motion in (varied, plain))
            ]
            if name in new:
                changes[name].append(extents[0] / extents[1])
            else:
                np.testing.assert_allclose(*extents, rtol=1e-3)
        if new.keys() == {"action"}:  # which the first frame does not tell
            np.testing.assert_allclose(varied.hands[0], plain.hands[0], atol=1e-6)
            assert np.abs(varied.hands[-1] - plain.hands[-1]).max() > 0.01
    assert {part for part, _ in made_up} == set(Triplet._fields)
    assert len({word for _, word in made_up}) == len(made_up) > 40
    (low, high), (flat, tall) = VARIED_TARGET
    factors = np.median(changes["target"], axis=1)
    assert low * flat < factors.min() < 0.95
    assert 1.3 < factors.max() < high * tall
    lengths = np.array(changes["tool"])[:, 0]
    assert lengths.min() < 0.9 < 1.15 < lengths.max()
    assert max(np.ptp(change) for change in changes["tool"]) > 0.1  # another shape, not only another size


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (dict(split="validation"), "split must be one of train, test"),
        (dict(triplet=Triplet("spade", "stir", "cup")), "unknown words"),
        (dict(frames=0), "frames=0"),
    ],
)
def test_bad_arguments_are_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        generate_motion(0, **arguments)


def test_the_command_writes_clips_and_a_sheet(tmp_path):
    main(["--out", str(tmp_path), "--count", "2", "--seed", "7", "--split", "test", "--frames", "5"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("sheet.png", "test_000007.mp4", "test_000007.npz", "test_000008.mp4", "test_000008.npz")
    ]
    motion = HandObjectMotion.load(tmp_path / "test_000007.npz")
    np.testing.assert_array_equal(motion.hands, generate_motion(7, "test", frames=5).hands)
    video = cv2.VideoCapture(str(tmp_path / "test_000007.mp4"))
    read, frame = video.read()
    assert read
    assert np.abs(frame[..., ::-1].astype(int) - generate_clip(7, "test", frames=5).video[0]).mean() < 12


# --- words ---


def test_held_out_words_are_only_tested():
    train, test = triplet_weights("train"), triplet_weights("test")
    assert not any(HELD_OUT & set(triplet) for triplet in train)
    assert {word for triplet in test for word in triplet} >= HELD_OUT
    assert sum(train.values()) == pytest.approx(1)
    assert sum(test.values()) == pytest.approx(1)
    held_out = sum(weight for triplet, weight in test.items() if HELD_OUT & set(triplet))
    assert held_out == pytest.approx(HELD_OUT_SHARE / TEST_SHARE)


def test_enough_of_everything():
    for position, least in ((0, 6), (1, 6), (2, 6)):
        assert len({triplet[position] for triplet in triplet_weights("train")}) >= least
    assert Triplet("spoon", "stir", "cup") in triplet_weights("train")


# --- hands ---


@pytest.mark.parametrize(
    ("triplet", "change"),
    [
        (triplet, Change(target=(across, across * up)))
        for triplet in one_of_each(2)
        for across in (VARIED_TARGET[0][0], 1.0, VARIED_TARGET[0][1])
        for up in (VARIED_TARGET[1][0], 1.0, VARIED_TARGET[1][1])
        if not (triplet.target == "box" and across > 1)  # too wide for fingers
    ]
    + [
        (triplet, Change(tool=(along, across), action=action))
        for triplet in one_of_each(0)
        for limits in [VARIED_VESSEL if triplet.action == "pour" else VARIED_TOOL]
        for along in (limits[0][0], 1.0, limits[0][1])
        for across in (limits[1][0], 1.0, limits[1][1])
        for action in (False, True)
    ],
    ids=str,
)
def test_hands_touch_what_they_hold(triplet, change):
    scene = one_scene(triplet, change=change)
    joints = scene.joints()[-1]
    for hand, distance, rotation, position in (
        (0, scene.target.distance, scene.target_rotation, scene.target_position),
        (1, scene.tool.distance, scene.tool_rotation, scene.tool_position),
    ):
        local = (joints[hand] - position[-1]) @ rotation[-1]
        clearance = distance(local[1:].reshape(5, 4, 3)) - DIGIT_RADII * scene.hand_length
        assert np.median(clearance[:, 3]) < 0.006  # most fingertips lie on it
        assert clearance[:, 3].max() < 0.02
        assert clearance[1:, 1:].min() > -0.007  # and no finger goes through it


@pytest.mark.parametrize("triplet", one_of_each(1), ids=str)
def test_hands_keep_their_bones_and_joint_limits(triplet):
    scene = one_scene(triplet)
    joints = scene.joints()
    length = np.linalg.norm(np.diff(joints[:, :, HAND_BONES], axis=3), axis=-1)[..., 0]
    np.testing.assert_allclose(
        length[:, :, 6:], np.broadcast_to(length[:1, :1, 6:], length[:, :, 6:].shape), rtol=1e-6
    )
    for pose in scene.poses:
        assert (pose.flexion >= 0).all()
        assert (pose.flexion <= FLEXION_LIMITS + 1e-9).all()
    middle_finger = np.linalg.norm(
        hand_joints(dataclasses.replace(RELAXED, flexion=np.zeros((5, 3))), 0.18)[12]
    )
    assert middle_finger == pytest.approx(0.18, rel=0.02)


def test_hands_mirror_each_other():
    """A left hand in mirrored axes is the mirror image of the right hand, inside out for neither."""
    pose = RELAXED.blend(RELAXED, np.zeros(1))
    surfaces = {}
    for left in (True, False):
        axes = np.diag([-1.0 if left else 1.0, 1, 1])[None]
        place = HandPlacement(wrist=np.zeros((1, 3)), axes=axes)
        vertices, normals = skin(pose, place, np.array([[0, -0.3, 0]]), 0.18)
        faces = skin_faces(left)
        a, b, c = (vertices[0][faces[:, i]] for i in range(3))
        outward = (np.cross(b - a, c - a) * normals[0][faces].sum(1)).sum(1)
        assert (outward > 0).all()
        surfaces[left] = vertices[0]
    np.testing.assert_allclose(surfaces[True] * (-1, 1, 1), surfaces[False], atol=1e-9)


# --- things ---


@pytest.mark.parametrize("build", [*TOOLS.values(), *TARGETS.values()], ids=[*TOOLS, *TARGETS])
def test_things_are_whole(build):
    mesh = build(np.random.default_rng(0)).mesh
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    assert ((np.cross(b - a, c - a) * mesh.normals[mesh.faces].sum(1)).sum(1) > -1e-12).all()
    np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=1), 1, atol=1e-6)
    assert 0 <= mesh.colors.min() <= mesh.colors.max() <= 1
    points = surface_points(mesh, 128)
    assert np.ptp(points, axis=0).max() > 0.85 * np.ptp(mesh.vertices, axis=0).max()


@pytest.mark.parametrize("name", TOOLS)
def test_a_stretched_tool_keeps_its_handle(name):
    tool = TOOLS[name](np.random.default_rng(0))
    other = stretched(tool, 1.3, 0.8)
    grown = np.ptp(other.mesh.vertices, axis=0) / np.ptp(tool.mesh.vertices, axis=0)
    if tool.upright:
        np.testing.assert_allclose(grown, (1.3, 0.8, 0.8))
        return
    handle = tool.mesh.vertices[:, 0] <= 0.05
    np.testing.assert_array_equal(other.mesh.vertices[handle], tool.mesh.vertices[handle])
    assert other.work[0] - 0.05 == pytest.approx(1.3 * (tool.work[0] - 0.05))
    assert other.mesh.vertices[:, 0].max() - 0.05 == pytest.approx(
        1.3 * (tool.mesh.vertices[:, 0].max() - 0.05)
    )


@pytest.mark.parametrize("triplet", one_of_each(0) + one_of_each(2), ids=str)
def test_motions_without_a_word_stay_about_the_target(triplet):
    ways = []
    for seed in range(6):
        scene = one_scene(triplet, seed, 33, Change(action=True))
        place = np.einsum("fij,j->fi", scene.tool_rotation, scene.tool.work) + scene.tool_position
        place = (place - scene.target_position)[12:] @ scene.target_rotation[0]  # it has come in by then
        target = scene.target
        assert place[:, 2].min() > target.surface
        assert place[:, 2].max() < target.rim + (0.3 if scene.tool.upright else 0.09)
        if not scene.tool.upright:
            assert np.hypot(*place[:, :2].T).max() < max(*target.reach, 0.02)
        # no deeper in the table than the motion that has a word
        assert lowest(scene) > min(lowest(one_scene(triplet, seed, 33)), 0) - 0.03
        ways.append(place - place.mean(axis=0))
    spread = [np.linalg.norm(a - b, axis=1).mean() for a, b in itertools.pairwise(ways)]
    assert np.mean(spread) > 0.008


def lowest(scene: Scene) -> float:
    """Height of the lowest point of the tool in all frames, metres."""
    heights = (scene.tool.mesh.vertices @ scene.tool_rotation.transpose(0, 2, 1))[..., 2]
    return (heights + scene.tool_position[:, 2:]).min()


def test_surface_points_keep_their_index():
    """Over time a point stays on its spot of a rigid thing, and in another clip it lies on the corresponding spot."""
    motion = generate_motion(0, **SMALL)
    for cloud in motion.objects.values():
        gaps = np.linalg.norm(cloud[:, :, None] - cloud[:, None], axis=-1)
        np.testing.assert_allclose(gaps, np.broadcast_to(gaps[:1], gaps.shape), atol=1e-5)
    spoons = [surface_points(TOOLS["spoon"](np.random.default_rng(seed)).mesh, 128) for seed in range(2)]
    same = np.linalg.norm(spoons[0] - spoons[1], axis=1).mean()
    assert same < 0.25 * np.linalg.norm(spoons[0] - spoons[1][::-1], axis=1).mean()


# --- actions: the working point in the target's axes, seen at 200 frames per second ---


def work(action: str, tool: str, target: str, seconds: float = 4.0):
    rng = np.random.default_rng(1)
    tool, target, style = TOOLS[tool](rng), TARGETS[target](rng), Style.draw(rng, seconds)
    time = np.arange(style.start + style.approach + 1e-9, seconds, 0.005)
    path = tool_path(action, tool, target, style, time)
    return path, target, time, style


def contact(path, target, within=0.004):
    return np.abs(path.point[:, 2] - target.surface) < within


def test_stirring_circles_in_a_container():
    path, target, time, style = work("stir", "spoon", "cup")
    assert contact(path, target).all()
    radius = np.hypot(path.point[:, 0], path.point[:, 1])
    assert radius.min() > 0.01
    assert radius.max() < target.reach[0]
    turns = np.ptp(np.unwrap(np.arctan2(path.point[:, 1], path.point[:, 0]))) / (2 * np.pi)
    assert turns == pytest.approx(TEMPO["stir"] * style.tempo * np.ptp(time), rel=0.01)


def test_scraping_pulls_towards_the_person_and_lifts_to_return():
    path, target, _, _ = work("scrape", "spatula", "plate")
    velocity = np.gradient(path.point[:, 1])
    touching = contact(path, target)
    assert 0.5 < touching.mean() < 0.7
    assert (velocity[touching & (np.abs(velocity) > 1e-5)] < 0).mean() > 0.95
    assert (velocity[~contact(path, target, 0.01)] > 0).mean() > 0.95


def test_brushing_stays_on_the_surface_both_ways():
    path, target, _, _ = work("brush", "brush", "board")
    assert contact(path, target).all()
    assert np.mean(np.gradient(path.point[:, 0]) > 0) == pytest.approx(0.5, abs=0.1)
    assert np.ptp(path.point[:, 0]) > 0.08


def test_hitting_strikes_from_a_height():
    path, target, time, style = work("hit", "hammer", "box")
    height = path.point[:, 2] - target.surface
    blows = np.flatnonzero(np.diff(contact(path, target).astype(int)) == 1)
    assert len(blows) == pytest.approx(TEMPO["hit"] * style.tempo * np.ptp(time), abs=1)
    assert height.max() > 0.07
    assert height.min() > -0.002


def test_pouring_tilts_over_the_target():
    path, target, _, _ = work("pour", "jug", "bowl")
    running = path.flow > 0.9
    assert 0.3 < running.mean() < 0.8
    assert np.hypot(*path.point[running, :2].T).max() < target.reach[0]
    assert (path.point[:, 2] > target.rim).all()
    assert (path.rotation[running, 2, 0] < 0.6).all()  # the jug's axis, from upright


def test_cutting_saws_into_what_can_be_cut():
    path, target, _, _ = work("cut", "knife", "loaf")
    depth = target.surface - path.point[:, 2]
    assert depth.max() == pytest.approx(target.cut_depth, abs=0.003)
    path, target, _, _ = work("cut", "knife", "board")
    assert (target.surface - path.point[:, 2]).max() < 0.001
    assert contact(path, target).mean() > 0.6


def test_dipping_goes_in_and_out():
    path, target, _, _ = work("dip", "brush", "cup")
    assert path.point[:, 2].min() < target.surface + 0.006
    assert path.point[:, 2].max() > target.rim + 0.02


# --- drawing ---


def test_the_nearest_triangle_wins_and_edges_are_smooth():
    square = np.array(
        [[0, 0], [0, 8], [8, 8], [8, 0]], dtype=float
    )  # counter-clockwise on a screen with y down
    points = np.concatenate([square, square * 0.5 + 0.25])[None]
    depths = np.array([[2.0] * 4 + [1.0] * 4])
    faces = np.array([[4, 5, 6], [4, 6, 7], [0, 1, 2], [0, 2, 3]])
    colors = np.array([[[1.0, 0, 0]] * 4 + [[0, 1.0, 0]] * 4])
    background = np.full((1, 8, 10, 3), 100, np.uint8)
    frame = draw_meshes(points, depths, faces, colors, background, 4)[0]
    assert frame[0, 9].tolist() == [100, 100, 100]
    assert frame[2, 2].tolist()[1:] == [255, 0]
    assert frame[6, 6, 0] > 150 > frame[6, 6, 1]
    edge = frame[2, 0]  # the green square covers three quarters of this pixel
    assert edge[1] == pytest.approx(0.75 * 255, abs=4)
    behind = draw_meshes(points, depths[:, ::-1], faces, colors, background, 4)[0]
    assert behind[2, 2, 1] == 0


def test_only_the_side_that_faces_the_viewer_is_drawn():
    triangle = np.array([[[1.0, 1.0], [1.0, 7.0], [7.0, 7.0]]])
    assert coverage(triangle, np.array([[0, 1, 2]]), 8, 8).sum() / 255 == pytest.approx(18, abs=3)
    assert coverage(triangle, np.array([[2, 1, 0]]), 8, 8).sum() == 0
