"""TACO's reader against files in TACO's layout whose motion is known."""

import dataclasses
import io
import json
import pickle
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers.taco_writer import DOTS, SERIAL, Hostile, Truth, write_mano, write_sequence, write_video

from svimo_train.clips import ClipFolder
from svimo_train.data.taco import prepare as prepare_module
from svimo_train.data.taco.__main__ import main
from svimo_train.data.taco.crop import crop_around
from svimo_train.data.taco.hands import load_hands
from svimo_train.data.taco.layout import parse_sequence, read_view
from svimo_train.data.taco.pickles import read_pickle
from svimo_train.data.taco.prepare import prepare
from svimo_train.data.taco.settings import Settings
from svimo_train.data.taco.split import split_sequences
from svimo_train.data.taco.video import read_frames
from svimo_train.evaluate import main as evaluate

SETTINGS = Settings(frames=9, hop=4, width=144, height=96, points=32)
FOLDER, PRE_RELEASE = "(pour in some, cup, bowl)/20231031_001", "(hit, hammer, toy)/20230917_002"

# From TACO's data_lists/v1_overall_data_sequences.txt (Liu et al., CVPR 2024; CC BY 4.0).
LINES = """
(dust, roller, pan) 20230927_032
(dust, roller, pan) 20231019_072
(dust, roller, pan) 20231013_177
(dust, roller, pan) 20231013_211
(empty, kettle, plate) 20231031_062
(dust, brush, box) 20231005_213
(brush, roller, plate) 20231019_167
(dust, roller, bowl) 20231103_198
(pour in some, kettle, bowl) 20231031_049
(brush, brush, plate) 20231006_119
(put in, spatula, plate) 20231104_118
(brush, brush, toy) 20230919_038
(pour in some, teapot, cup) 20230917_041
(pour in some, teapot, plate) 20230917_044
""".strip().splitlines()


@dataclasses.dataclass
class World:
    source: Path
    mano: Path
    truths: dict[str, Truth]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> World:
    root = tmp_path_factory.mktemp("taco")
    mano = write_mano(root / "mano")
    truths = {
        FOLDER: write_sequence(root / "TACO", mano, FOLDER),
        PRE_RELEASE: write_sequence(root / "TACO", mano, PRE_RELEASE, seed=1, one_file_a_frame=True),
    }
    return World(root / "TACO", mano, truths)


@pytest.fixture
def world(written, tmp_path) -> World:
    """A copy to break."""
    shutil.copytree(written.source, tmp_path / "TACO")
    return dataclasses.replace(written, source=tmp_path / "TACO")


@pytest.fixture(scope="module")
def prepared(written, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("clips")
    report = prepare(
        written.source, out, written.mano, SETTINGS, views=["egocentric", "allocentric"], workers=1
    )
    assert report["left_out"] == []
    return out


def clips_of(out: Path):
    for part in ("train", "test"):
        folder = ClipFolder(out / part)
        for index in range(len(folder)):
            yield part, folder.names[index], folder.clip(index)


def truth_of(world: World, motion) -> Truth:
    return next(
        truth for folder, truth in world.truths.items() if folder.endswith(motion.metadata["sequence"])
    )


def test_clips_have_the_known_motion(written, prepared):
    found = set()
    for part, name, clip in clips_of(prepared):
        motion = clip.motion
        truth, view, first = (
            truth_of(written, motion),
            motion.metadata["view"],
            int(motion.metadata["first_frame"]),
        )
        frames = np.floor(first + 3.75 * np.arange(9) + 0.5).astype(int)
        matrices = truth.world_to_camera[view][frames]
        turn, shift = matrices[:, :3, :3], matrices[:, None, :3, 3]
        joints = truth.joints[frames].reshape(9, 42, 3) @ turn.swapaxes(1, 2) + shift
        assert np.abs(motion.hands.reshape(9, 42, 3) - joints).max() < 1e-3
        for role, (poses, half) in truth.boxes.items():
            place = poses[frames]
            world = (motion.objects[role] - shift) @ turn
            own = (world - place[:, None, :3, 3]) @ place[:, :3, :3]
            assert (
                np.abs(np.abs(own / half).max(axis=-1) - 1).max() < 1e-3 / half.min()
            )  # on the box's surface
            assert np.ptp(own, axis=0).max() < 1e-3  # the same spot in all frames
            assert motion.objects[role].shape == (9, 32, 3)
        assert motion.fps == 8
        found.add((part, motion.prompt, view, name))
    assert {entry[:3] for entry in found} == {
        (part, prompt, view)
        for part, prompt in (("train", "use cup to pour in some bowl"), ("test", "use hammer to hit toy"))
        for view in ("egocentric", SERIAL)
    }
    assert len(found) == 2 * 2 * 2  # (60 - 31 frames) in hops of 15


def test_pixels_lie_where_the_motion_says(prepared):
    for _, name, clip in clips_of(prepared):
        assert clip.video.shape == (9, 96, 144, 3)
        pixels = clip.motion.camera.project(clip.motion.hands[:, :, 0])
        for side, color in enumerate(DOTS.values()):
            channel = int(np.argmax(color))
            weight = np.clip(clip.video[..., channel] - clip.video.min(-1).astype(float) - 60, 0, None)
            rows, columns = np.mgrid[:96, :144] + 0.5
            seen = [
                [(weight[i] * axis).sum() / weight[i].sum() for axis in (columns, rows)] for i in range(9)
            ]
            inside = ((pixels[:, side] > 8) & (pixels[:, side] < (136, 88))).all(axis=1)
            assert inside.any()
            assert np.abs(np.array(seen) - pixels[:, side])[inside].max() < 0.5, name


def test_models_are_measured_on_the_held_out_clips(prepared, checkpoint_file, tmp_path):
    file = tmp_path / "scores.json"
    command = ["--checkpoint", str(checkpoint_file), "--steps", "1", "--json", str(file)]
    assert evaluate([*command, "--clips", str(prepared / "test"), "--count", "2"]) == 0
    scores = json.loads(file.read_text())
    assert scores["clips"] == 2
    # 3 cm and more: this model has learned nothing
    assert scores["truth"]["mpjpe_mm"] == 0 < 30 < scores["mpjpe_mm"]


def test_markers_are_removed_where_they_can_be(world, tmp_path):
    removed = world.source / "Marker_Removed_Allocentric_RGB_Videos" / FOLDER
    removed.mkdir(parents=True)
    shutil.copy(world.source / "Allocentric_RGB_Videos" / FOLDER / f"{SERIAL}.mp4", removed)
    videos = {}
    for markers in ("removed-first", "seen"):
        settings = dataclasses.replace(SETTINGS, markers=markers)
        prepare(world.source, tmp_path / markers, world.mano, settings, views=[SERIAL])
        videos[markers] = {
            (part, clip.motion.metadata["video"]) for part, _, clip in clips_of(tmp_path / markers)
        }
    seen = {(part, "Allocentric_RGB_Videos") for part in ("train", "test")}
    assert videos == {
        "removed-first": {
            ("train", removed.relative_to(world.source).parts[0]),
            ("test", "Allocentric_RGB_Videos"),
        },
        "seen": seen,
    }


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change(path: Path, **values) -> None:
    content = json.loads(path.read_text())
    content[SERIAL].update(values)
    path.write_text(json.dumps(content))


CALIBRATION = f"Allocentric_Camera_Parameters/{FOLDER}/calibration.json"
BROKEN = {
    "missing video": lambda at: (at / f"Allocentric_RGB_Videos/{FOLDER}/{SERIAL}.mp4").unlink(),
    "bad video": lambda at: truncate(at / f"Allocentric_RGB_Videos/{FOLDER}/{SERIAL}.mp4"),
    "video shorter than poses": lambda at: write_video(
        at / f"Allocentric_RGB_Videos/{FOLDER}/{SERIAL}.mp4", np.zeros((50, 376, 512, 3), np.uint8)
    ),
    "lengths differ": lambda at: write_video(
        at / f"Allocentric_RGB_Videos/{FOLDER}/{SERIAL}.mp4", np.zeros((70, 376, 512, 3), np.uint8)
    ),
    "missing calibration": lambda at: (at / CALIBRATION).unlink(),
    "bad calibration": lambda at: change(at / CALIBRATION, R=[1, 0, 0, 0, 1, 0, 0, 0, 2]),
    "bad calibration ": lambda at: change(at / CALIBRATION, imgSize=[4096, 2160]),
    "bad calibration  ": lambda at: truncate(at / CALIBRATION),
    "bad calibration   ": lambda at: change(at / CALIBRATION, K=[2000, 0, 5000, 0, 2000, 1500, 0, 0, 1]),
    "hands out of view": lambda at: change(at / CALIBRATION, T=[0.35, 0, 0.6]),
    "hands out of view ": lambda at: change(at / CALIBRATION, T=[0, 0, -2]),
    "missing hands": lambda at: (at / f"Hand_Poses/{FOLDER}/left_hand.pkl").unlink(),
    "bad hands": lambda at: truncate(at / f"Hand_Poses/{FOLDER}/right_hand.pkl"),
    "bad hands ": lambda at: (at / f"Hand_Poses/{FOLDER}/right_hand.pkl").write_bytes(
        pickle.dumps({"00001": {"hand_pose": torch.zeros(45), "hand_trans": torch.zeros(3)}})
    ),
    "missing object poses": lambda at: (at / f"Object_Poses/{FOLDER}/tool_017.npy").unlink(),
    "bad object poses": lambda at: truncate(at / f"Object_Poses/{FOLDER}/target_018.npy"),
    "missing mesh": lambda at: (at / f"Object_Poses/{FOLDER}/tool_017.npy").rename(
        at / f"Object_Poses/{FOLDER}/tool_099.npy"
    ),
    "bad mesh": lambda at: (
        (at / f"Object_Poses/{FOLDER}/tool_017.npy").rename(at / f"Object_Poses/{FOLDER}/tool_098.npy"),
        (at / "Object_Models/098_cm.obj").write_text("v 0 0 0\n"),
    ),
}


def record_of(world: World, out: Path, view: str) -> dict:
    for name in ("train", "records"):
        (out / name).mkdir()
    sequence = parse_sequence(FOLDER)
    return prepare_module.run_job(
        prepare_module.Job(world.source, out, world.mano, sequence, view, "train", SETTINGS)
    )


@pytest.mark.parametrize("reason", BROKEN)
def test_what_is_broken_is_left_out_and_reported(world, tmp_path, reason):
    BROKEN[reason](world.source)
    record = record_of(world, tmp_path, SERIAL)
    assert {entry["reason"] for entry in record["left_out"]} == {reason.strip()}
    assert record["clips"] == [] == list((tmp_path / "train").iterdir())
    assert all(entry["detail"] for entry in record["left_out"])


@pytest.mark.parametrize(
    ("matrices", "reason", "detail"),
    [
        (np.tile(np.eye(4), (50, 1, 1)), "lengths differ", "camera 50"),
        (np.zeros((60, 3, 4)), "bad calibration", "frames x 4 x 4"),
    ],
)
def test_a_moving_camera_has_a_matrix_for_each_frame(world, tmp_path, matrices, reason, detail):
    np.save(world.source / f"Egocentric_Camera_Parameters/{FOLDER}/egocentric_frame_extrinsic.npy", matrices)
    (entry,) = record_of(world, tmp_path, "egocentric")["left_out"]
    assert entry["reason"] == reason
    assert detail in entry["detail"]


def test_a_video_that_ends_early_is_noticed(written):
    path = written.source / f"Egocentric_RGB_Videos/{FOLDER}/color.mp4"
    with pytest.raises(ValueError, match=r"color\.mp4 ends before frame 60"):
        list(read_frames(path, [3, 60]))


def test_sequences_too_short_for_a_clip_are_left_out(written, tmp_path):
    settings = dataclasses.replace(SETTINGS, frames=17)
    report = prepare(written.source, tmp_path, written.mano, settings)
    assert report["reasons"] == {"too short": 2}
    assert report["left_out"][0]["detail"] == "60 frames, and a clip takes 61"
    assert settings.span == 61 == len(settings.windows(61)) * 61


def test_the_report_names_what_was_left_out(world, tmp_path):
    (world.source / f"Hand_Poses/{FOLDER}/left_hand_shape.pkl").unlink()
    listed = [FOLDER, PRE_RELEASE, "(cut, knife, pan)/20231020_252"]
    sequences = [parse_sequence(folder) for folder in listed]
    report = prepare(
        world.source, tmp_path / "out", world.mano, SETTINGS, sequences=sequences, leave_out=["20230917_002"]
    )
    assert report["reasons"] == {
        "missing hands": 1,
        "not in the source": 1,
        "on the list of those to leave out": 1,
    }
    assert json.loads((tmp_path / "out/report.json").read_text()) == report
    text = (tmp_path / "out/report.txt").read_text()
    assert "(pour in some, cup, bowl) 20231031_001 egocentric: missing hands." in text
    assert "1  not in the source" in text


def test_a_second_run_makes_only_what_is_missing(written, tmp_path, monkeypatch):
    prepare(written.source, tmp_path, written.mano, SETTINGS)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("t*/*.np?")}
    gone = next((tmp_path / "train").glob("*.npz"))
    gone.unlink()
    killed = gone.with_name("clip.npy.1234.partial")
    killed.touch()
    films, scenes = [], []
    film, read = prepare_module.film_clips, prepare_module.read_scene
    monkeypatch.setattr(
        prepare_module, "film_clips", lambda *args: films.append(list(args[1])) or film(*args)
    )
    monkeypatch.setattr(prepare_module, "read_scene", lambda *args: scenes.append(args[1]) or read(*args))
    report = prepare(written.source, tmp_path, written.mano, SETTINGS)
    assert films == [[gone.stem]]
    assert not killed.exists()
    assert scenes == [parse_sequence(FOLDER)]
    assert report["clips"] == {"train": 2, "test": 2}
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("t*/*.np?")}
    assert {path for path in before if before[path] != after[path]} == {gone, gone.with_suffix(".npy")}

    with pytest.raises(ValueError, match="hop 4"):
        prepare(written.source, tmp_path, written.mano, dataclasses.replace(SETTINGS, hop=5))
    with pytest.raises(ValueError, match="another split"):
        prepare(written.source, tmp_path, written.mano, SETTINGS, sequences=[parse_sequence(FOLDER)])


def test_a_run_that_is_killed_leaves_no_half_clip(written, tmp_path, monkeypatch):
    save = np.save

    def killed(file, array):
        save(file, array[: len(array) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare(written.source, tmp_path, written.mano, SETTINGS)
    assert not list(tmp_path.glob("t*/*"))
    monkeypatch.undo()
    assert prepare(written.source, tmp_path, written.mano, SETTINGS)["clips"] == {"train": 2, "test": 2}


def test_processes_make_the_same_clips(written, prepared, tmp_path):
    prepare(written.source, tmp_path, written.mano, SETTINGS, views=["egocentric"], workers=2)
    made = sorted(tmp_path.glob("t*/*.npy"))
    assert len(made) == 4
    for path in made:
        assert path.read_bytes() == (prepared / path.relative_to(tmp_path)).read_bytes()


def test_the_middle_of_the_first_pixel_is_half_a_pixel_from_the_corner(written):
    view = read_view(written.source, parse_sequence(FOLDER), SERIAL)
    assert (view.camera.cx, view.camera.cy) == (0.52 * 4096 + 0.5, 0.47 * 3008 + 0.5)


def test_a_mended_left_hand_is_taken_as_taco_took_it(written, tmp_path):
    official, mended = load_hands(written.mano), load_hands(write_mano(tmp_path / "mended", "mended"))
    assert np.array_equal(official["left"].shapedirs, mended["left"].shapedirs)


# Split


def test_split_is_reproducible_and_keeps_what_is_held_out():
    sequences = [parse_sequence(line) for line in LINES]
    split = split_sequences(sequences, test_share=0.3)
    assert [str(s) for s in split.held_out] == ["(brush, brush, toy) 20230919_038"]
    assert set(split.held_out) < set(split.test)
    assert sorted([*split.train, *split.test]) == sorted(sequences)
    assert split == split_sequences(reversed(sequences), test_share=0.3)
    drawn = {
        tuple(s.name for s in split_sequences(sequences, test_share=0.3, seed=seed).test) for seed in range(9)
    }
    assert len(drawn) > 1
    for seed in range(9):  # only one triplet has more than one sequence: half of it at most
        part = split_sequences(sequences, test_share=0.9, seed=seed)
        assert {s.triplet for s in part.test} == {("brush", "brush", "toy"), ("dust", "roller", "pan")}
        assert len(part.test) == 3


def test_split_gives_each_triplet_its_share_of_what_is_not_held_out():
    sizes = {"brush": 100, "cut": 40, "stir": 10, "hit": 30}
    sequences = [
        parse_sequence(f"({action}, knife, pan) {action}_{i}")
        for action, size in sizes.items()
        for i in range(size)
    ]
    split = split_sequences(sequences, test_share=0.3)
    counts = {action: sum(s.action == action for s in split.test) for action in sizes}
    assert sum(counts.values()) == 54
    assert counts.pop("hit") == len(split.held_out) == 30
    assert all(abs(count - sizes[action] * 24 / 150) < 1 for action, count in counts.items())


# Crop


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(500, 300), (800, 400)], (470, 230, 360, 240)),  # a fifth wider than the points, in their middle
        ([(0, 0), (300, 200)], (0, 0, 360, 240)),  # within the image
        ([(700, 500), (701, 501)], (550, 400, 300, 200)),  # no smaller than the clip
        ([(-600, 300), (600, 400)], (0, 110, 720, 480)),  # what the image does not have takes no room
        ([(-500, 300), (5000, 400)], (0, 0, 1500, 1000)),  # the largest there is
    ],
)
def test_crop(points, expected):
    box = crop_around(np.array(points), (1500, 1000), (300, 200))
    assert box == expected


# Pickles


@pytest.mark.parametrize("inside", [False, True])
def test_hostile_pickles_are_refused(tmp_path, capsys, inside):
    path = tmp_path / "left_hand.pkl"
    path.write_bytes(pickle.dumps({"00001": {"hand_pose": Hostile(inside)}}))
    with pytest.raises(ValueError, match=r"left_hand.pkl is not a readable pickle"):
        read_pickle(path)
    assert "run" not in capsys.readouterr().out


def test_pickles_reserve_no_more_memory_than_they_have_parts(tmp_path):
    path = tmp_path / "large.pkl"
    path.write_bytes(b"\x80\x02}r\xff\xff\xff\x0f.")
    with pytest.raises(ValueError, match="numbers its parts up to 268435455"):
        read_pickle(path)


class Pickled:
    """Pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_tensors_cannot_reach_beyond_their_storage(tmp_path):
    path = tmp_path / "beyond.pkl"
    numbers = torch.zeros(4).storage()
    for place in (
        (0, (5,), (1,)),
        (2, (3,), (1,)),
        (0, (2, 2), (3, 1)),
        (-1, (1,), (1,)),
        (0, (9**9,), (0,)),
    ):
        path.write_bytes(pickle.dumps(Pickled(torch._utils._rebuild_tensor_v2, numbers, *place, False, {})))
        with pytest.raises(ValueError, match="a tensor"):
            read_pickle(path)


def test_tensors_of_a_gpu_are_read_without_one(tmp_path):
    buffer = io.BytesIO()
    torch.save(torch.arange(3.0).storage(), buffer, _use_new_zipfile_serialization=False)
    here, there = (b"X" + len(word).to_bytes(4, "little") + word for word in (b"cpu", b"cuda:0"))
    assert buffer.getvalue().count(here) == 1
    storage = Pickled(torch.storage._load_from_bytes, buffer.getvalue().replace(here, there))
    path = tmp_path / "cuda.pkl"
    path.write_bytes(
        pickle.dumps(Pickled(torch._utils._rebuild_tensor_v2, storage, 0, (3,), (1,), False, {}))
    )
    assert read_pickle(path).tolist() == [0, 1, 2]


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_of_all_kinds_come_back(tmp_path, protocol):
    content = {
        "numpy": np.arange(6.0).reshape(2, 3).T,
        "part": torch.arange(12.0).reshape(3, 4)[1:, ::2],
        "parameter": torch.nn.Parameter(torch.ones(2, dtype=torch.float64)),
        "plain": [1, "two"],
    }
    path = tmp_path / "content.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    found = read_pickle(path)
    for name in ("numpy", "part", "parameter"):
        assert np.array_equal(
            found[name], np.asarray(content[name].detach() if name != "numpy" else content[name])
        )
    assert found["plain"] == [1, "two"]


# Command line


def test_command_line(written, tmp_path, capsys):
    out = str(tmp_path / "out")
    sizes = "--frames 9 --hop 4 --width 144 --height 96 --points 32 --workers 1 --hands-in-view 0.5".split()
    words = ["--held-out-actions", "pour in some", "--held-out-tools", "--held-out-targets"]
    main(["prepare", str(written.source), out, "--mano", str(written.mano), *sizes, *words])
    assert "pour in some" in (tmp_path / "out/split/held_out.txt").read_text()
    main(["look", out, "--count", "1"])
    sheets = sorted((tmp_path / "out/look").glob("*.png"))
    assert len(sheets) == 2
    rows = cv2.imread(str(sheets[0]))[22:]
    assert rows.shape == (2 * 96, 4 * 144, 3)
    assert (rows[:96] != rows[96:]).any(axis=-1).sum() > 500  # the motion is drawn on the second row
    (tmp_path / "list.txt").write_text("\n".join(LINES))
    main(["split", str(tmp_path / "list.txt"), str(tmp_path / "lists"), "--test-share", "0.3"])
    assert len((tmp_path / "lists/test.txt").read_text().splitlines()) == 3
    with pytest.raises(SystemExit, match="no MANO_LEFT"):
        main(["prepare", str(written.source), out, "--mano", out])
