"""Hands out of MANO parameters as hand trackers and datasets write them.

Parameters alone are no joints: they need the user's own MANO files, and the conventions of whoever wrote them, which
the parameters do not say. :data:`LAYOUTS` has both what marks a source and what its own code does with the numbers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
from scipy.spatial.transform import Rotation

from ..mano import NUM_BETAS, WHERE_TO_GET, ManoModel, hand_joints, left_shape, with_left_shape
from ..mano.model import LEFT_SHAPES, NUM_JOINTS, POSE_SIZE
from ..motion import HAND_NAMES, JOINTS_PER_HAND
from .arrays import ALIASES, find_arrays
from .found import FoundMotion
from .orders import OPENPOSE
from .sides import sides_named

MEANS = ("auto", "flat", "relaxed")
"""What fingers of zeros are: a flat hand, or the file's mean pose, `hands_mean`, to which all others are added."""
MOST_TURN = 7.0
"""Radians, a little more than a whole turn."""
MIRROR = np.array([-1.0, 1.0, 1.0])
TURNS = np.array([1.0, -1.0, -1.0])
"""What the mirror does to a rotation vector."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way to write MANO parameters down. `{side}` in a name stands for left or right, `{s}` for l or r."""

    title: str
    source: str
    """Whose code says what the numbers mean."""
    pose: tuple[str, ...]
    """Names for the pose of the fingers, or, without an orient, of the wrist and the fingers."""
    orient: tuple[str, ...] = ()
    """Names for the rotation of the wrist."""
    transl: tuple[str, ...] = ()
    betas: tuple[str, ...] = ()
    present: tuple[str, ...] = ()
    """Names for whether the hand is there in a frame."""
    needs: tuple[str, ...] = ("pose", "transl", "betas")
    """What must be there for the layout to be recognised."""
    mean: str | None = None
    """ "flat" or "relaxed"; None where the source does not say."""
    left: str | None = None
    """The shape of the left hand that betas are for, "official" or "mended"; None for the file's own."""
    side: str | None = None
    """The hand, where there is only ever one."""
    components: bool = False
    """Fingers are coefficients of principal components, even if there are 45 of them."""
    packed: bool = False
    """The translation is the last three numbers of the pose, and zeros throughout mean no hand."""
    at_wrist: bool = False
    """The translation is where the wrist is, instead of added to a hand that turns about its own wrist."""
    detections: bool = False
    """One row per detected hand. Left ones were seen in a mirror, by a network that knows right hands alone."""
    axes: tuple[int, int, int] = (1, 1, 1)
    """Signs that turn the source's axes into a camera's: x right, y down, z forward."""
    world: bool = False
    """The motion stands in a studio and not before a camera."""


_HAMER = Layout(
    # models/mano_wrapper.py: smplx.MANOLayer adds no mean. demo.py: vertices' x times 2 * right - 1, then cam_t.
    # WiLoR-mini writes rotation vectors, and those of left hands unmirrored: times (1, -1, -1).
    title="HaMeR or WiLoR",
    source="geopavlakos/hamer, rolpotamias/WiLoR, warmshao/WiLoR-mini",
    orient=(
        "pred_mano_params_global_orient",
        "wilor_preds_global_orient",
        "mano_orient",
        "global_orient",
    ),
    pose=("pred_mano_params_hand_pose", "wilor_preds_hand_pose", "hand_pose"),
    betas=("pred_mano_params_betas", "wilor_preds_betas", "mano_shape", "betas"),
    transl=("pred_cam_t_full", "wilor_preds_pred_cam_t_full", "cam_t_full", "cam_t", "pred_cam_t"),
    needs=("orient", "pose"),
    mean="flat",
    detections=True,
)
LAYOUTS = (
    Layout(
        title="SViMo",
        source="svimo_core.mano.save_mano",
        orient=("{side}_global_orient",),
        pose=("{side}_hand_pose",),
        transl=("{side}_transl",),
        betas=("{side}_betas",),
        present=("{side}_present",),
        needs=("orient", "pose", "transl", "betas"),
        mean="flat",
    ),
    _HAMER,
    replace(_HAMER, orient=(), pose=("mano_pose", "pred_mano_pose"), needs=("pose",)),
    Layout(
        # dataset_utils/hand_pose_loader.py: manopth, flat by default, center_idx=0, hand_trans added; official files.
        title="TACO",
        source="leolyliu/TACO-Instructions",
        pose=("hand_pose", "{side}_hand_pose"),
        transl=("hand_trans", "{side}_hand_trans"),
        betas=("hand_shape", "{side}_hand_shape"),
        needs=("pose", "transl"),
        mean="flat",
        left="official",
        at_wrist=True,
        world=True,
    ),
    Layout(
        # dex_ycb_toolkit/layers/mano_layer.py: flat_hand_mean=False, ncomps=45, use_pca=True; issue 28 on left hands.
        # examples/visualize_pose.py: no hand where pose_m is zero throughout.
        title="DexYCB",
        source="NVlabs/dex-ycb-toolkit",
        pose=("pose_m",),
        betas=("betas", "mano_betas"),
        needs=("pose",),
        mean="relaxed",
        left="official",
        components=True,
        packed=True,
    ),
    Layout(
        # vis_HO3D.py: fullpose and flat_hand_mean=True, MANO_RIGHT; project_3D_points(is_OpenGL_coords=True).
        title="HO-3D",
        source="shreyashampali/ho3d",
        pose=("handPose",),
        transl=("handTrans",),
        betas=("handBeta",),
        needs=("pose", "transl"),
        mean="flat",
        side="right",
        axes=(1, -1, -1),
    ),
    Layout(
        # common/body_models.py: smplx.MANO, use_pca=False, flat_hand_mean=False, official files; data_doc.md: world.
        title="ARCTIC",
        source="zc-alexfan/arctic",
        orient=("{side}_rot", "rot_{s}"),
        pose=("{side}_pose", "pose_{s}"),
        transl=("{side}_trans", "trans_{s}"),
        betas=("{side}_shape", "shape_{s}"),
        needs=("orient", "pose", "transl", "betas"),
        mean="relaxed",
        left="official",
        world=True,
    ),
    Layout(
        # MANO_world_to_camera/convert.py: smplx's defaults, use_pca=False, left shapedirs mended; world coordinates.
        title="InterHand2.6M",
        source="facebookresearch/InterHand2.6M",
        pose=("{side}_pose",),
        transl=("{side}_trans",),
        betas=("{side}_shape",),
        mean="relaxed",
        left="mended",
        world=True,
    ),
    Layout(
        title="unknown",
        source="names alone",
        orient=(
            "{side}_rot",
            "{side}_orient",
            "{side}_global_orient",
            "{side}_root_orient",
            "{side}_global_rot",
        ),
        pose=("{side}_pose", "{side}_hand_pose", "{side}_fingers"),
        transl=("{side}_trans", "{side}_transl", "{side}_translation"),
        betas=("{side}_betas", "{side}_shape", "{side}_beta"),
        needs=("orient", "pose"),
    ),
    Layout(
        title="unknown",
        source="names alone",
        pose=("{side}_pose", "{side}_hand_pose", "{side}_fullpose"),
        transl=("{side}_trans", "{side}_transl", "{side}_translation"),
        betas=("{side}_betas", "{side}_shape", "{side}_beta"),
    ),
)
"""In the order in which they are tried."""

FIELDS = ("pose", "orient", "transl", "betas")
HAND_COLUMNS = ("right", "is_right")
LEFT_COLUMN = "left_shapedirs"
"""What save_mano calls the left hand's shape convention."""
DETECTION_COLUMNS = {
    "frame": ALIASES["frame"],
    "focal_length": (*ALIASES["focal_length"], "wilor_preds_scaled_focal_length"),
    "image_size": ALIASES["image_size"],
    "fps": ALIASES["fps"],
}
SIDE_COLUMNS = ("mano_side", "mano_sides", "side")


def has_parameters(arrays: Mapping[str, Any]) -> bool:
    """Whether arrays, by name and perhaps in dictionaries, hold MANO parameters of any known layout."""
    return _layout(_names(arrays)) is not None


def find_parameters(
    name: str,
    arrays: Mapping[str, Any],
    models: Mapping[str, ManoModel],
    *,
    mean: str = "auto",
    left: str = "auto",
) -> FoundMotion:
    """Joints of both hands from MANO parameters, in any layout of :data:`LAYOUTS`.

    Args:
        name: what to call the file in errors; "left" or "right" in it says which hand a file of one hand has.
        arrays: by name; dictionaries of arrays, and dictionaries with one entry per frame, are read as well.
        models: the user's MANO by side. Detections need the right one alone.
        mean: what fingers of zeros are, "flat" or "relaxed"; "auto" for the source's own convention. Rotation matrices
            are whole and have no mean.
        left: which left hand betas are for, "official" or "mended" (see :func:`svimo_core.mano.left_shape`); "auto"
            for the source's own convention.

    Returns:
        Hands, N x 2 x 21 x 3, metres, camera axes where the source has a camera; NaN where a hand is absent. Notes say
        which source was recognised and what was assumed.

    Raises:
        ValueError: no known layout, a missing model, or an array of the wrong shape.
    """
    for argument, value, choices in (
        ("mean", mean, MEANS),
        ("left", left, ("auto", *LEFT_SHAPES)),
    ):
        if value not in choices:
            raise ValueError(f"{argument} should be one of {', '.join(choices)}, got {value!r}")
    columns, notes = _columns(name, arrays)
    layout = _layout(columns)
    if layout is None:
        raise ValueError(
            f"{name} has {', '.join(sorted(columns)) or 'nothing'}; expected MANO parameters as one of "
            f"{', '.join(dict.fromkeys(known.title for known in LAYOUTS[:-2]))} writes them, or <side>_pose, "
            "<side>_trans and <side>_betas"
        )
    reader = _Reader(name, columns, layout, models, mean, left, [*_about(layout), *notes])
    if layout.detections:
        found = find_arrays(name, reader.detections())
        notes = (*reader.notes, *found.notes)
        return replace(found, order=OPENPOSE, metres_per_unit=1.0, notes=tuple(dict.fromkeys(notes)))
    return FoundMotion(
        name=name,
        hands=reader.hands() * layout.axes,
        fps=reader.single("fps"),
        order=OPENPOSE,
        metres_per_unit=1.0,
        seen_by_camera=not layout.world,
        notes=tuple(dict.fromkeys(reader.notes)),
    )


def _about(layout: Layout) -> Iterator[str]:
    """What a layout is and where its motion stands, in sentences."""
    if layout.title == "unknown":
        yield "MANO parameters of an unknown source, recognised by their names alone."
    else:
        yield f"MANO parameters in the layout of {layout.title}, read as {layout.source} does."
    if layout.world:
        yield f"{layout.title} writes positions in a studio's axes: no camera is at the origin."
    if layout.axes != (1, 1, 1):
        yield f"{layout.title} has OpenGL's axes: y and z were turned round."


# Names


def _frames(arrays: Mapping[str, Any]) -> tuple[list[str], list[dict[str, Any]], dict[str, Any]]:
    """What there is for each of some frames, with their numbers, and what there is for all of them."""
    numbered = [key for key, value in arrays.items() if str(key).isdecimal() and isinstance(value, Mapping)]
    frames = sorted(numbered, key=int)
    rest = {key: value for key, value in arrays.items() if key not in set(numbered)}
    return frames, [dict(_flat(arrays[frame])) for frame in frames], dict(_flat(rest))


def _names(arrays: Mapping[str, Any]) -> set[str]:
    """All names of arrays, without the numbers of frames and captures."""
    _, records, rest = _frames(arrays)
    return {re.sub(r"^(\d+_)+", "", key) for record in [*records, rest] for key in record}


def _columns(name: str, arrays: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Arrays in dictionaries -> arrays by name, and notes on the way."""
    captures = [
        key
        for key, inner in arrays.items()
        if str(key).isdecimal() and isinstance(inner, Mapping) and _frames(inner)[0]
    ]
    if captures:  # InterHand2.6M: captures of frames
        if len(arrays) > 1:
            raise ValueError(f"{name} has {len(arrays)} captures ({_some(arrays)}): give one of them alone")
        (arrays,) = arrays.values()
    frames, records, columns = _frames(arrays)
    if not frames:
        return columns, []
    for key in dict.fromkeys(key for record in records for key in record):
        values = [_array(name, key, record[key]) if key in record else None for record in records]
        shapes = {value.shape for value in values if value is not None}
        if len(shapes) > 1:
            raise ValueError(
                f"{name}: {key} should have one shape in all frames, got {_some(sorted(shapes))}"
            )
        blank = np.full(shapes.pop(), np.nan)
        columns[key] = np.stack([blank if value is None else value for value in values])
    return columns, [
        f"Frames {frames[0]} to {frames[-1]} were taken one after another, {len(frames)} in all."
    ]


def _flat(arrays: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """`a: {b: c}`, `a.b: c` and `a/b: c` -> `a_b`, c. What is None is not there."""
    for key, value in arrays.items():
        key = before + re.sub(r"[./]", "_", str(key))
        if isinstance(value, Mapping):
            yield from _flat(value, f"{key}_")
        elif value is not None:
            yield key, value


def _layout(columns: Collection[str]) -> Layout | None:
    """The first layout that these names are in."""
    for layout in LAYOUTS:
        found = any(
            all(_name(columns, getattr(layout, field), side) for field in layout.needs) for side in HAND_NAMES
        )
        if found and (not layout.detections or _name(columns, HAND_COLUMNS)):
            return layout
    return None


def _name(columns: Collection[str], names: tuple[str, ...], side: str = "") -> str | None:
    """The first of these names that is there."""
    return next((n for n in (n.format(side=side, s=side[:1]) for n in names) if n in columns), None)


def _array(name: str, key: str, value: Any) -> np.ndarray:
    """Numbers as float64."""
    try:
        array = np.asarray(value)
        if array.dtype.kind in "biuf":
            return array.astype(np.float64)
        got = str(array.dtype)
    except ValueError:  # a list of lists of different length
        got = "lists of different length"
    raise ValueError(f"{name}: {key} should hold numbers, got {got}")


def _some(values: Any) -> str:
    """The first few of many things."""
    values = [str(value) for value in values]
    return ", ".join(values[:3]) + (", ..." if len(values) > 3 else "")


# Numbers


class _Reader:
    """Turns the arrays of one file into joints, and notes what it decides."""

    def __init__(
        self,
        name: str,
        columns: Mapping[str, Any],
        layout: Layout,
        models: Mapping[str, ManoModel],
        mean: str,
        left: str,
        notes: list[str],
    ):
        self.name, self.columns, self.layout = name, columns, layout
        self.models, self.mean, self.left, self.notes = models, mean, left, notes

    def hands(self) -> np.ndarray:
        """N x 2 x 21 x 3 from arrays with one row per frame and hand."""
        by_side = {}
        for hand in self._sides():
            missing = [f for f in self.layout.needs if not _name(self.columns, getattr(self.layout, f), hand)]
            if "pose" in missing:
                continue
            if missing:
                wanted = " and ".join(getattr(self.layout, field)[0].format(side=hand) for field in missing)
                raise ValueError(
                    f"{self.name} lacks {wanted}, which {self.layout.title} has beside the other arrays of a hand"
                )
            by_side[hand] = self._joints(self._model(hand), hand)[0]
        lengths = {hand: len(joints) for hand, joints in by_side.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(
                f"{self.name}: both hands should have the same frames, got {lengths['left']} of the left and "
                f"{lengths['right']} of the right"
            )
        absent = np.full((max(lengths.values()), JOINTS_PER_HAND, 3), np.nan)
        for hand in HAND_NAMES:
            if hand not in by_side:
                self.notes.append(f"There is no {hand} hand.")
        return np.stack([by_side.get(hand, absent) for hand in HAND_NAMES], axis=1)

    def detections(self) -> dict[str, np.ndarray]:
        """The joints of arrays with one row per detected hand, as :func:`find_arrays` reads them."""
        rows = len(self._rows(_name(self.columns, self.layout.pose)))
        is_right = self._flags(_name(self.columns, HAND_COLUMNS), rows)
        joints, matrices = self._joints(self._model("right"), "", ~is_right)
        self.notes.append(
            "Left hands are mirrored right ones, as the network saw them."
            if matrices
            else "Rotation vectors of left hands are taken as a left hand's own, as WiLoR-mini writes them."
        )
        arrays = {
            "frame": np.arange(len(joints)),
            "is_right": is_right.astype(float),
            "pred_keypoints_3d": joints - joints[:, :1],
            "pred_cam_t_full": joints[:, 0],
        }
        found = {thing: _name(self.columns, names) for thing, names in DETECTION_COLUMNS.items()}
        if not found["frame"]:
            self.notes.append("Rows do not say their frame: each was taken as the next one.")
        return arrays | {thing: self._array(key) for thing, key in found.items() if key}

    def single(self, *names: str) -> float | None:
        """A number that holds for the whole clip, however often it is repeated."""
        key = _name(self.columns, names)
        if key is None:
            return None
        values = np.unique(self._array(key))
        if len(values) != 1 or not values[0] > 0:
            raise ValueError(
                f"{self.name}: {key} should be one positive number for the clip, got {_some(values)}"
            )
        return float(values[0])

    def _sides(self) -> tuple[str, ...]:
        """The hands that a file may have: both where names say which is which, else the one it is of."""
        layout = self.layout
        key = _name(self.columns, layout.pose, "left") or _name(self.columns, layout.pose, "right")
        if key not in layout.pose:
            return HAND_NAMES
        if layout.side:
            return (layout.side,)
        column = _name(self.columns, SIDE_COLUMNS)
        said = " ".join(np.ravel(self.columns[column]).astype(str)) if column else self.name
        sides = sides_named(said)
        if len(sides) == 1:
            return tuple(sides)
        self.notes.append("The file does not say which hand it is: taken for the right one.")
        return ("right",)

    def _model(self, side: str) -> ManoModel:
        """The model of one side, the left one with the shape that the betas are for."""
        if side not in self.models:
            raise ValueError(
                f"{self.name} has MANO parameters that need the {side} hand's model, MANO_{side.upper()}. "
                f"{WHERE_TO_GET}"
            )
        model = self.models[side]
        if side == "right":
            return model
        said = str(self.columns[LEFT_COLUMN]) if LEFT_COLUMN in self.columns else self.layout.left
        if said not in (None, *LEFT_SHAPES):
            raise ValueError(f'{self.name}: {LEFT_COLUMN} should be "official" or "mended", got {said!r}')
        right = self.models.get("right")
        has = left_shape(model, right)
        wanted = (said or has) if self.left == "auto" else self.left
        self.notes.append(
            f'Left betas are for the "{wanted}" shape of the left hand'
            f"{', as the model file has it' if not said and self.left == 'auto' else ''}."
        )
        return with_left_shape(model, wanted, right)

    def _joints(
        self, model: ManoModel, side: str, mirrored: np.ndarray | None = None
    ) -> tuple[np.ndarray, bool]:
        """Joints, N x 21 x 3, NaN where numbers are not finite, and whether the pose was in matrices.

        `mirrored` says of each row whether it is a right hand in a mirror.
        """
        # 1. Rows of numbers, and which of them have a hand
        layout = self.layout
        keys = {field: _name(self.columns, getattr(layout, field), side) for field in FIELDS}
        numbers = {"pose": self._rows(keys["pose"])}
        rows = len(numbers["pose"])
        present = np.ones(rows, bool)
        if layout.packed:
            present = (numbers["pose"] != 0).any(axis=1)
            numbers["pose"], numbers["transl"] = self._unpacked(keys["pose"], numbers["pose"])
        elif keys["transl"]:
            numbers["transl"] = self._rows(keys["transl"], rows, 3)
        else:
            self.notes.append("There is no translation: hands stay at the origin.")
        if keys["orient"]:
            numbers["orient"] = self._rows(keys["orient"], rows)
        if keys["betas"]:
            numbers["betas"] = self._betas(keys["betas"], rows)
        else:
            self.notes.append("There are no betas: hands have the mean shape.")
        if there := _name(self.columns, layout.present, side):
            present &= self._flags(there, rows)
        for values in numbers.values():
            present &= np.isfinite(values).all(axis=1)
        moves = [values for field, values in numbers.items() if field != "betas"]
        present &= np.any(
            [(values != 0).any(axis=1) for values in moves], axis=0
        )  # zeros throughout are no hand
        numbers = {field: np.where(present[:, None], values, 0) for field, values in numbers.items()}

        # 2. Rotations
        count = NUM_JOINTS - 1 if "orient" in numbers else NUM_JOINTS
        rotations, matrices = self._rotations(keys["pose"], numbers["pose"], count, model, mirrored)
        if "orient" in numbers:
            wrist, _ = self._rotations(keys["orient"], numbers["orient"], 1, model, mirrored)
            rotations = np.concatenate([wrist, rotations], axis=1)
        if matrices and self.mean == "relaxed":
            self.notes.append("Fingers are rotation matrices, which are whole: no mean pose was added.")
        self._check_rotations(keys["pose"], rotations, present)

        # 3. Joints
        betas = numbers.get("betas", np.zeros(NUM_BETAS))
        transl = numbers.get("transl", np.zeros((rows, 3)))
        joints = hand_joints(model, betas, rotations, np.zeros((rows, 3)))
        if layout.at_wrist:
            joints = joints - joints[:, :1]
        if mirrored is not None:
            joints[mirrored] *= MIRROR
        if keys["transl"] == "pred_cam_t":
            self.notes.append("pred_cam_t places a hand before its crop of the image: give pred_cam_t_full.")
            transl[mirrored] *= MIRROR  # the crop was mirrored too
        joints += transl[:, None]
        joints[~present] = np.nan
        return joints, matrices

    def _rotations(
        self, key: str, values: np.ndarray, count: int, model: ManoModel, mirrored: np.ndarray | None
    ) -> tuple[np.ndarray, bool]:
        """Rotations, N x count x 3 x 3, out of N x any number, and whether they were matrices.

        15 are of the fingers, 16 of wrist and fingers, 1 of the wrist; the kind shows in how many numbers there are.
        """
        rows, width = values.shape
        wrist, most = 3 * (count != NUM_JOINTS - 1), 3 * count
        if width == 9 * count:
            return values.reshape(rows, count, 3, 3), True
        components = count > 1 and wrist < width <= most and (self.layout.components or width < most)
        if width != most and not components:
            kinds = [f"{most} (rotation vectors)", f"{9 * count} (rotation matrices)"]
            if count > 1:
                kinds.append(
                    f"{wrist + 1} to {most} (principal components{' after the wrist' if wrist else ''})"
                )
            self._refuse(key, f"{', '.join(kinds[:-1])} or {kinds[-1]} numbers in a row")
        fingers = values[:, wrist:]
        if components:
            fingers = fingers @ self._components(key, model, width - wrist)
        vectors = np.concatenate([values[:, :wrist], fingers], axis=1).reshape(rows, count, 3)
        longest = float(np.linalg.norm(vectors, axis=-1).max(initial=0))
        if longest > MOST_TURN:
            self._refuse(
                key,
                f"rotation vectors in radians, none longer than a turn ({longest:.3g}: are they degrees?)",
            )
        if mirrored is not None:
            vectors = np.where(mirrored[:, None, None], vectors * TURNS, vectors)
        if count > 1 and self._is_relaxed(components):
            vectors[:, count - NUM_JOINTS + 1 :] += model.hands_mean.reshape(NUM_JOINTS - 1, 3)
        return Rotation.from_rotvec(vectors.reshape(-1, 3)).as_matrix().reshape(rows, count, 3, 3), False

    def _is_relaxed(self, components: bool) -> bool:
        """Whether the fingers' numbers are added to the mean pose."""
        mean = self.mean if self.mean != "auto" else self.layout.mean
        how = f"as {self.layout.title} has it" if self.mean == "auto" else "as asked for"
        if mean is None:
            mean = "relaxed" if components else "flat"
            other = "flat" if components else "relaxed"
            how = f"which is a guess: set mano_mean to {other} if fingers bend too {'much' if components else 'little'}"
        self.notes.append(f"Fingers of zeros are a {mean} hand, {how}.")
        return mean == "relaxed"

    def _components(self, key: str, model: ManoModel, count: int) -> np.ndarray:
        """The first principal components, count x 45."""
        have = 0 if model.hands_components is None else len(model.hands_components)
        if have < count:
            raise ValueError(
                f"{self.name}: {key} has {count} principal components, and the {model.side} hand's model has {have} "
                "(hands_components): use the official MANO file"
            )
        self.notes.append(
            f"{count} principal components of the {model.side} hand's model were taken for the fingers."
        )
        return model.hands_components[:count]

    def _unpacked(self, key: str, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pose and translation of rows that have both."""
        if not 6 < pose.shape[1] <= 6 + POSE_SIZE:
            self._refuse(key, f"{6 + POSE_SIZE} numbers in a row (wrist, fingers, translation)")
        return pose[:, :-3], pose[:, -3:]

    def _betas(self, key: str, rows: int) -> np.ndarray:
        """N x 10, from one row for the clip or a row for each frame."""
        betas = self._rows(key)
        if len(betas) not in (1, rows) or betas.shape[1] != NUM_BETAS:
            self._refuse(key, f"{NUM_BETAS} shape coefficients, or {rows} rows of them")
        return np.broadcast_to(betas, (rows, NUM_BETAS))

    def _rows(self, key: str, rows: int | None = None, width: int | None = None) -> np.ndarray:
        """An array as rows of numbers, N x any; one row may come without its axis."""
        values = self._array(key)
        if values.ndim == 0 or values.size == 0:
            self._refuse(key, "a row of numbers for each frame")
        values = values.reshape(1, -1) if values.ndim == 1 else values.reshape(len(values), -1)
        if (rows is not None and len(values) != rows) or (width is not None and values.shape[1] != width):
            self._refuse(key, f"{rows} rows{f' of {width}' if width else ''} as the pose has")
        return values

    def _flags(self, key: str, rows: int) -> np.ndarray:
        """Yes or no for each row."""
        flags = self._array(key).ravel()
        if len(flags) != rows or not np.isin(flags, (0, 1)).all():
            self._refuse(key, f"0 or 1 for each of {rows} rows")
        return flags == 1

    def _check_rotations(self, key: str, rotations: np.ndarray, present: np.ndarray) -> None:
        """Refuse matrices that are no rotations."""
        squares = rotations @ rotations.swapaxes(-1, -2)
        wrong = (np.abs(squares - np.eye(3)) > 0.01).any(axis=(1, 2, 3)) | (np.linalg.det(rotations) < 0).any(
            axis=1
        )
        if (wrong & present).any():
            raise ValueError(
                f"{self.name}: {key} should have orthonormal 3 x 3 matrices, got one that is no rotation in row "
                f"{int(np.argmax(wrong & present))}"
            )

    def _array(self, key: str) -> np.ndarray:
        return _array(self.name, key, self.columns[key])

    def _refuse(self, key: str, expected: str) -> NoReturn:
        got = " x ".join(map(str, self._array(key).shape)) or "one number"
        raise ValueError(f"{self.name}: {key} should have {expected}, got {got}")
