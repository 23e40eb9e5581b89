"""Joints in named arrays, as hand trackers and data sets save them: .npz, .npy, and JSON of the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from ..motion import HAND_NAMES, Camera
from .found import FoundMotion
from .orders import JOINT_COUNTS

EXPECTED = (
    "expected `hands` (frames x 2 x 21 x 3, left then right), or `left` or `right` or both (frames x 21 x 3 each), or "
    "one row per detection: `frame`, `is_right`, `pred_keypoints_3d` (rows x 21 x 3) and `pred_cam_t_full` (rows x 3)"
)
IMAGE = (624, 416)
"""Width and height in pixels of a motion from elsewhere that does not say."""
MAX_FRAMES = 200_000
"""Of detections: a frame number beyond is a mistake, not two hours of video."""
MAX_PIXELS = 100_000
LISTED = 24
"""Names of arrays that an error lists at most."""

ALIASES = {
    "hands": ("hands", "joints", "hand_joints", "joints_3d", "joints3d", "landmarks_3d", "world_landmarks", "xyz"),
    "keypoints": ("pred_keypoints_3d", "keypoints_3d", "joints_3d", "keypoints", "joints", "landmarks_3d"),
    "left": ("left", "left_hand", "left_joints", "joints_left", "left_keypoints", "left_keypoints_3d", "lhand"),
    "right": ("right", "right_hand", "right_joints", "joints_right", "right_keypoints", "right_keypoints_3d", "rhand"),
    "frame": ("frame", "frame_id", "frame_idx", "frame_index", "frame_number", "img_idx"),
    "frame_count": ("frame_count",),
    "is_right": ("is_right", "right", "handedness"),
    "place": ("pred_cam_t_full", "cam_t_full", "cam_t"),
    "fps": ("fps", "frame_rate", "framerate"),
    "focal_length": ("focal_length", "scaled_focal_length"),
    "image_size": ("image_size", "img_size"),
    "intrinsics": ("intrinsics", "camera_matrix", "cam_intrinsics", "K"),
    "object_names": ("object_names",),
    "prompt": ("prompt",),
}  # fmt: skip
"""What is looked for, and the names under which it comes: HaMeR's and WiLoR's own among them; the first one counts."""


class Arrays:
    """Named arrays of a file, asked for by what they are; it keeps the names of those that nobody asked for."""

    def __init__(self, name: str, arrays: Mapping[str, np.ndarray]):
        self.name = name
        self.arrays = arrays
        self.used: set[str] = set()

    def find(self, thing: str) -> str | None:
        """The name under which a thing is there."""
        return next((key for key in ALIASES[thing] if key in self.arrays), None)

    def numbers(self, thing: str) -> np.ndarray | None:
        """A thing as float64; None where it is not there.

        Raises:
            ValueError: no numbers.
        """
        key = self.find(thing)
        return None if key is None else self.numbers_of(key)

    def numbers_of(self, key: str) -> np.ndarray:
        """The array of this very name as float64."""
        self.used.add(key)
        array = np.asarray(self.arrays[key])
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{self.name}: {key} holds {array.dtype} instead of numbers")
        return array.astype(np.float64)

    def single(self, thing: str) -> float | None:
        """A number that holds for the whole clip, however often it is repeated."""
        values = self.numbers(thing)
        if values is None:
            return None
        values = np.unique(values)
        if len(values) != 1 or not 0 < values[0] < np.inf:
            raise ValueError(
                f"{self.name}: {self.find(thing)} must be one positive number for the whole clip, got {values[:5]}"
            )
        return float(values[0])

    def text(self, thing: str) -> str:
        """A text, empty where it is not there."""
        key = self.find(thing)
        if key is None or np.asarray(self.arrays[key]).dtype.kind != "U":
            return ""
        self.used.add(key)
        return str(self.arrays[key])

    @property
    def unused(self) -> list[str]:
        """Names of arrays that were not asked for."""
        return sorted(set(self.arrays) - self.used)


def find_arrays(name: str, arrays: Mapping[str, np.ndarray]) -> FoundMotion:
    """Hands and objects in any of the expected layouts (see :data:`EXPECTED` and :data:`ALIASES`).

    Args:
        name: what to call the file in errors.
        arrays: by name.

    Raises:
        ValueError: none of these layouts, or arrays that do not fit together.
    """
    source = Arrays(name, arrays)
    camera, notes = _camera(source)
    origins, kind = None, {}
    if source.find("frame") and source.find("keypoints") and _flags(source) is not None:
        hands, origins, more = _detections(source, camera)
    else:
        hands, kind, more = _hands(source)
    notes += more
    objects = _objects(source, len(hands))
    fps, prompt = source.single("fps"), source.text("prompt")
    if source.unused:
        notes.append(f"Not used: {', '.join(source.unused)}.")
    return FoundMotion(
        name=name,
        hands=hands,
        origins=origins,
        objects=objects,
        fps=fps,
        camera=camera,
        prompt=prompt,
        notes=tuple(notes),
        **kind,
    )


def _hands(source: Arrays) -> tuple[np.ndarray, dict[str, bool], list[str]]:
    """Joints, N x 2 x J x 3, of whole clips, NaN where a hand is absent, and what of :class:`FoundMotion` they are."""
    name = source.name
    if source.find("keypoints") and _flags(source) is not None:
        raise ValueError(
            f"{name}: rows of detections need `frame`, the number of the frame of each; {EXPECTED}"
        )
    sides = {side: _joints(source.numbers(side)) for side in HAND_NAMES if source.find(side)}
    together = None if sides else source.numbers("hands")
    flat = False
    if together is not None:
        together = _joints(together)
        flat = together.ndim == 3 and together.shape[1] in {2 * count for count in JOINT_COUNTS.values()}
        if flat:
            together = together.reshape(len(together), 2, -1, 3)
        if together.shape[:1] == (2,) and together.ndim == 3 and together.shape[1] in JOINT_COUNTS.values():
            raise ValueError(
                f"{name}: {together.shape} may be two hands in one frame or one hand in two: name arrays left and right"
            )
        if together.ndim == 3 and together.shape[1] in JOINT_COUNTS.values():
            hands, notes = without_lost(np.stack([np.full_like(together, np.nan), together], axis=1))
            return hands, {"sideless": True}, notes
    elif sides:
        shapes = [joints.shape for joints in sides.values()]
        if len(set(shapes)) > 1:
            raise ValueError(
                f"{name}: left and right must have the same shape, got {shapes[0]} and {shapes[1]}"
            )
        absent = np.full_like(next(iter(sides.values())), np.nan)
        together = np.stack([sides.get(side, absent) for side in HAND_NAMES], axis=1)
    else:
        names = sorted(source.arrays)
        more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        raise ValueError(f"{name} has {', '.join(names[:LISTED]) or 'nothing'}{more}; {EXPECTED}")
    wrong = together.ndim != 4 or together.shape[1] != 2 or together.shape[3] != 3 or not len(together)
    if wrong or together.shape[2] not in JOINT_COUNTS.values():
        raise ValueError(f"{name}: its joints have shape {together.shape}; {EXPECTED}")
    hands, notes = without_lost(together)
    return hands, {"flat": flat}, notes


def _joints(array: np.ndarray) -> np.ndarray:
    """Joints however they are packed: frames x 63 or 126 numbers, rows x 1 x 21 x 3, one frame without its axis."""
    array = np.atleast_1d(array)
    if array.ndim == 1 or (
        array.ndim == 2 and array.shape[1] == 3 and array.shape[0] in JOINT_COUNTS.values()
    ):
        array = array[None]
    if array.ndim == 2 and array.shape[1] % 3 == 0:
        array = array.reshape(len(array), array.shape[1] // 3, 3)
    if array.ndim == 4 and array.shape[1] == 1:
        array = array[:, 0]
    return array


def without_lost(hands: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Hands (N x 2 x J x 3) with NaN throughout where a tracker lost one: where any number is not finite, or all joints
    are in one place; and a sentence on how many were given partly."""
    hands = np.array(hands, dtype=np.float64)
    finite = np.isfinite(hands)
    lost = ~finite.all(axis=(2, 3))
    partly = int((lost & finite.any(axis=(2, 3))).sum())
    hands[lost | (hands == hands[:, :, :1]).all(axis=(2, 3))] = np.nan
    notes = (
        [f"{partly} hands with joints missing among others count as absent in their frames."]
        if partly
        else []
    )
    return hands, notes


def _flags(source: Arrays) -> np.ndarray | None:
    """Which detections are of right hands, 0 or 1 each; None where there are none."""
    key = source.find("is_right")
    if key is None:
        return None
    column = np.asarray(source.arrays[key])
    if column.dtype.kind == "U":
        source.used.add(key)
        sides = np.char.lower(column.ravel())
        return np.where(
            np.isin(sides, ("right", "r")), 1.0, np.where(np.isin(sides, ("left", "l")), 0.0, np.nan)
        )
    return None if column.ndim > 2 else source.numbers("is_right").ravel()


def _detections(source: Arrays, camera: Camera | None) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """One row per detected hand -> joints, N x 2 x J x 3, and what they are relative to, N x 2 x 3."""
    name = source.name
    keypoints = _joints(source.numbers("keypoints"))
    frame, is_right = source.numbers("frame").ravel(), _flags(source)
    place = source.numbers("place")
    place = np.zeros((len(frame), 3)) if place is None else place.reshape(len(np.atleast_1d(place)), -1)
    rows, notes = len(frame), []
    joints = keypoints.shape[1] if keypoints.ndim == 3 else 0
    shapes = (keypoints.shape, is_right.shape, place.shape)
    if shapes != ((rows, joints, 3), (rows,), (rows, 3)) or joints not in JOINT_COUNTS.values():
        raise ValueError(f"{name}: rows of different number or shape; {EXPECTED}")
    if not rows or not np.isin(is_right, (0, 1)).all():
        raise ValueError(f"{name}: is_right must be 0 or 1 (or left or right) for each detection; {EXPECTED}")
    if not (np.abs(frame) < 2**53).all() or np.ptp(frame) >= MAX_FRAMES or (frame != np.round(frame)).any():
        raise ValueError(
            f"{name}: frame must count in whole numbers, at most {MAX_FRAMES:,} of them; {EXPECTED}"
        )
    count = source.single("frame_count")
    if count and count > MAX_FRAMES:
        raise ValueError(f"{name}: frame_count is {count:g}, and at most {MAX_FRAMES:,} are read")
    first = int(frame.min())
    if count and (first < 0 or frame.max() - min(first, 1) >= count):
        raise ValueError(
            f"{name}: frame counts from {first} to {frame.max():g}, and frame_count says that there are {count:g}"
        )
    if count:
        first = int(frame.max() == count)  # which counting from 0 does not reach
    if first:
        notes.append(f"Frames are numbered from {first}, where the motion starts.")
    frame, is_right = frame.astype(np.int64) - first, is_right.astype(int)
    pairs, counts = np.unique(np.stack([frame, is_right]), axis=1, return_counts=True)
    if counts.max() > 1:
        number, side = pairs[:, np.argmax(counts > 1)]
        raise ValueError(
            f"{name} has {counts.max()} detections of the {HAND_NAMES[side]} hand in frame {number + first}: keep the "
            "best"
        )
    focal_length = source.single("focal_length")
    if focal_length is not None:
        if camera is None:
            raise ValueError(f"{name} has focal_length without image_size (width, height), both in pixels")
        # Trackers that see only a crop assume a lens of many thousand pixels, which puts hands many metres away.
        # At this distance they look the same through the motion's own camera.
        nearer = camera.fx / focal_length
        place = place * (1, 1, nearer)
        if abs(nearer - 1) > 0.01:
            notes.append(
                f"The tracker's lens of {focal_length:.0f} pixels became {camera.fx:.0f}, which brings hands "
                f"{1 / nearer:.1f} times nearer."
            )
    hands = np.full((max(frame.max() + 1, int(count or 0)), 2, joints, 3), np.nan)
    origins = np.full((len(hands), 2, 3), np.nan)
    hands[frame, is_right] = keypoints + place[:, None]
    origins[frame, is_right] = place
    hands, more = without_lost(hands)
    return hands, origins, notes + more


def _camera(source: Arrays) -> tuple[Camera | None, list[str]]:
    """The camera that arrays describe."""
    size = source.numbers("image_size")
    intrinsics = source.numbers("intrinsics")
    if size is None:
        if intrinsics is None:
            return None, []
        return None, [
            f"{source.find('intrinsics')} is not used, as image_size (width, height in pixels) is not there."
        ]
    sizes = np.unique(np.atleast_2d(size), axis=0)
    if sizes.shape != (1, 2) or not ((sizes >= 1) & (sizes < MAX_PIXELS)).all():
        raise ValueError(
            f"{source.name}: {source.find('image_size')} must be one width and height for the whole clip, got "
            f"{sizes[:3].tolist()}"
        )
    width, height = (int(side) for side in sizes[0])
    if intrinsics is None:
        return Camera.from_fov(width, height), []
    matrix = intrinsics.shape[-2:] == (3, 3)
    lens = np.unique(
        np.atleast_2d(intrinsics[..., (0, 1, 0, 1), (0, 1, 2, 2)] if matrix else intrinsics), axis=0
    )
    if lens.shape != (1, 4):
        raise ValueError(
            f"{source.name}: {source.find('intrinsics')} must be fx, fy, cx, cy, or a 3 x 3 matrix, the same for the "
            f"whole clip, got {intrinsics.shape}"
        )
    fx, fy, cx, cy = lens[0]
    return Camera(fx=fx, fy=fy, cx=cx, cy=cy, width=width, height=height), []


def _objects(source: Arrays, frames: int) -> dict[str, np.ndarray]:
    """Point clouds as our own files have them, with or without our mark."""
    key = source.find("object_names")
    if key is None:
        return {}
    source.used.add(key)
    names: Iterable = np.asarray(source.arrays[key]).ravel()
    keys = {str(name): f"object_{i}" for i, name in enumerate(names)}
    missing = [key for key in keys.values() if key not in source.arrays]
    if missing:
        raise ValueError(
            f"{source.name}: object_names names {list(keys)}, and {', '.join(missing)} is not there"
        )
    objects = {name: source.numbers_of(key) for name, key in keys.items()}
    for name, points in objects.items():
        if points.ndim != 3 or points.shape[0] != frames or points.shape[2] != 3:
            raise ValueError(
                f"{source.name}: object {name} must be {frames} frames x points x 3, got {points.shape}"
            )
    return objects


def has_detected_joints(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether a file of detections has joints themselves, whatever else it has."""
    source = Arrays("", arrays)
    return bool(source.find("keypoints") and source.find("frame") and source.find("is_right"))
