"""21 joints per hand -> MANO pose, shape and translation (Romero et al. 2017), with the user's own files.

MANO's files are licensed for research and cannot be shipped or downloaded for anyone; :func:`load_mano` reads
the ones a user has registered for. The code of smplx is under the same kind of licence, so it is imported only here
and only when a hand is fitted.
"""

from __future__ import annotations

import logging
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from .files import whole_file
from .hand_rig import HandAnimation, HandRig, check_hand, palm_alignment
from .motion import HAND_NAMES, JOINTS_PER_HAND

log = logging.getLogger(__name__)

TIP_VERTICES = (744, 320, 443, 554, 671)
"""Vertices at the tips of thumb, index, middle, ring and pinky, as smplx and HaMeR count them."""
FROM_MANO = np.array([0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20])
"""For each of the 21 joints in OpenPose order: its place in MANO's 16 joints followed by the five tips."""
NUM_JOINTS = 16
NUM_BETAS = 10

WHERE_TO_GET = (
    "MANO's files are free for research: register at https://mano.is.tue.mpg.de, download 'Models & Code', take "
    "MANO_LEFT.pkl and MANO_RIGHT.pkl (or .npz files with the same arrays) and put them in models/svimo/mano"
)

NO_SMPLX = (
    "MANO hands need smplx, which cannot be imported: pip install smplx (its licence, like MANO's, is non-commercial), "
    "or use capsule hands, which need neither"
)


@dataclass(frozen=True, kw_only=True)
class ManoModel:
    """The arrays of one MANO file, float64, metres; V = 778 vertices."""

    side: str
    v_template: np.ndarray
    """Mean hand, V x 3."""
    shapedirs: np.ndarray
    """Shape directions, V x 3 x 10."""
    posedirs: np.ndarray
    """Pose corrections, V x 3 x 135."""
    J_regressor: np.ndarray
    """Vertices to joints, 16 x V."""
    weights: np.ndarray
    """Skinning weights, V x 16."""
    parents: np.ndarray
    """Parent of each joint, 16; -1 at the wrist."""
    hands_mean: np.ndarray
    """Mean finger pose, 45: the relaxed hand."""
    faces: np.ndarray
    """Triangles, F x 3."""


# Reading


def load_mano(path: str | os.PathLike, side: str) -> ManoModel:
    """Read MANO_LEFT / MANO_RIGHT: an .npz, or the official .pkl without chumpy and without running its code.

    Args:
        path: the file.
        side: which hand it is, "left" or "right".

    Raises:
        FileNotFoundError: no such file; says where MANO comes from.
        ValueError: not a MANO file, damaged, or a pickle that asks for anything a MANO file has no use for.
    """
    path = Path(path)
    if side not in HAND_NAMES:
        raise ValueError(f'side must be "left" or "right", got {side!r}')
    if not path.is_file():
        raise FileNotFoundError(f"no MANO file at {path}. {WHERE_TO_GET}")
    if path.suffix.lower() == ".npz":
        arrays = _read_npz(path)
    elif path.suffix.lower() == ".pkl":
        arrays = _read_pickle(path)
    else:
        raise ValueError(f"{path.name}: MANO comes as .pkl or .npz. {WHERE_TO_GET}")

    vertices = 778
    shapes = {
        "v_template": (vertices, 3),
        "shapedirs": (vertices, 3, NUM_BETAS),
        "posedirs": (vertices, 3, 9 * (NUM_JOINTS - 1)),
        "J_regressor": (NUM_JOINTS, vertices),
        "weights": (vertices, NUM_JOINTS),
        "hands_mean": (3 * (NUM_JOINTS - 1),),
        "kintree_table": (2, NUM_JOINTS),
    }
    for name, shape in shapes.items():
        got = arrays[name].shape if name in arrays else None
        if got != shape:
            raise ValueError(
                f"{path.name} is not a MANO hand: {name} should be {shape}, got {got or 'nothing'}. "
                f"{WHERE_TO_GET}"
            )
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"{path.name} is damaged: {name} has values that are not finite")
    parents = arrays["kintree_table"][0].astype(np.int64)
    parents[0] = -1  # stored as 2^32 - 1
    faces = arrays.get("f", np.zeros((0, 3))).astype(np.int64)
    if (parents[1:] >= np.arange(1, NUM_JOINTS)).any() or (parents[1:] < 0).any():
        raise ValueError(f"{path.name} is damaged: a joint comes before its parent")
    if faces.ndim != 2 or faces.shape[1] != 3 or not len(faces) or faces.min() < 0 or faces.max() >= vertices:
        raise ValueError(f"{path.name} is damaged: its faces f do not index {vertices} vertices")
    fields = {name: arrays[name].astype(np.float64) for name in shapes if name != "kintree_table"}
    return ManoModel(side=side, parents=parents, faces=faces, **fields)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"{path.name} cannot be read as plain arrays: {error}") from error


def _read_pickle(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file:
            content = _InertUnpickler(file, encoding="latin1").load()
        if not isinstance(content, dict):
            raise ValueError("it holds no dictionary of arrays")
        needed = (
            "v_template",
            "shapedirs",
            "posedirs",
            "J_regressor",
            "weights",
            "hands_mean",
            "kintree_table",
            "f",
        )
        return {name: _evaluate(content[name]) for name in needed if name in content}
    except Exception as error:  # a hostile or damaged pickle can fail in any way; it is one error to the user
        raise ValueError(f"{path.name} is not a readable MANO pickle: {error}") from error


class _Record:
    """Stands for an object of a pickle: remembers how it would have been built and builds nothing."""

    global_name: str

    def __new__(cls, *args: Any, **kwargs: Any):
        record = super().__new__(cls)
        record.args, record.state = args, None
        return record

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


_PICKLED = {
    **{("numpy", name): f"numpy.{name}" for name in ("ndarray", "dtype")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): "array" for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): "buffer" for core in ("core", "_core")},
    **{("scipy.sparse." + module, "csc_matrix"): "sparse" for module in ("csc", "_csc")},
    ("chumpy.ch", "Ch"): "chumpy",
    ("chumpy.reordering", "Select"): "select",
    ("copy_reg", "_reconstructor"): "object",
    ("copyreg", "_reconstructor"): "object",
    ("__builtin__", "object"): "type",
    ("builtins", "object"): "type",
    ("_codecs", "encode"): "bytes",
}
"""Everything that a MANO pickle refers to, and what :func:`_evaluate` makes of it."""


class _InertUnpickler(pickle.Unpickler):
    """An unpickler that resolves no global to real code: the few names MANO uses become inert records."""

    def find_class(self, module: str, name: str) -> type:
        kind = _PICKLED.get((module, name))
        if kind is None:
            raise ValueError(
                f"it asks for {module}.{name}, which a MANO file has no use for; do not trust this file"
            )
        return type(name, (_Record,), {"global_name": kind})

    def persistent_load(self, pid: Any) -> Any:
        raise ValueError("it refers to data outside the file")


def _evaluate(value: Any) -> np.ndarray:
    """The plain numeric array that a pickled value stands for."""
    if not isinstance(value, _Record):
        return np.asarray(value)
    kind, state = value.global_name, value.state
    if kind == "object":  # protocol 0 and 1: _reconstructor(class, object, None), then the state
        kind = value.args[0].global_name
    if kind == "array":  # state: version, shape, dtype, Fortran order, raw bytes
        _, shape, dtype, fortran, raw = state
        return _numbers(raw, dtype, shape, "F" if fortran else "C")
    if kind == "buffer":  # pickle protocol 5
        return _numbers(*value.args)
    if kind == "sparse":  # compressed columns
        data, rows, starts = (_evaluate(state[key]) for key in ("data", "indices", "indptr"))
        shape = state["_shape"] if "_shape" in state else state["shape"]
        dense = np.zeros(shape)
        np.add.at(dense, (rows, np.repeat(np.arange(shape[1]), np.diff(starts))), data)
        return dense
    if kind == "chumpy":
        return _evaluate(state["x"])
    if kind == "select":
        return _evaluate(state["a"]).ravel()[_evaluate(state["idxs"])].reshape(state["preferred_shape"])
    raise ValueError(f"an entry is a {type(value).__name__} instead of numbers")


def _numbers(
    raw: Any, dtype: _Record, shape: tuple[int, ...], order: str, axes: tuple[int, ...] | None = None
) -> np.ndarray:
    """Raw bytes of a pickled array -> the array."""
    code, byte_order = dtype.args[0], dtype.state[1]
    if code not in ("f4", "f8", "i4", "i8", "u4", "u8"):
        raise ValueError(f"an array holds {code!r} instead of numbers")
    if isinstance(raw, _Record):  # Python 3 writes bytes as _codecs.encode(text, "latin1") up to protocol 2
        raw = raw.args[0]
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    flat = np.frombuffer(raw, np.dtype(code).newbyteorder(byte_order))
    if axes is not None:
        return flat.reshape(shape).transpose(axes)
    return flat.reshape(shape, order=order)


# Fitting


@dataclass(frozen=True, kw_only=True)
class ManoFit:
    """MANO parameters of one hand over time, as smplx takes them with use_pca=False, flat_hand_mean=True."""

    model: ManoModel
    betas: np.ndarray
    """Shape, 10: one for the whole clip, so bone lengths are constant."""
    global_orient: np.ndarray
    """Rotation vector of the wrist, N x 3, radians."""
    hand_pose: np.ndarray
    """Rotation vectors of the 15 finger joints in MANO's order, N x 45, radians."""
    transl: np.ndarray
    """N x 3, metres, camera space."""
    joints: np.ndarray
    """The fitted joints, N x 21 x 3, OpenPose order."""
    observed: np.ndarray
    """The joints that were fitted, N x 21 x 3."""

    @property
    def residual_mm(self) -> float:
        """Root mean square distance between fitted and observed joints, millimetres."""
        return float(np.sqrt(np.mean(np.sum((self.joints - self.observed) ** 2, axis=-1))) * 1000)

    def vertices(self) -> np.ndarray:
        """The exact MANO mesh in every frame, pose corrections included, N x 778 x 3."""
        with torch.inference_mode(False), torch.no_grad():
            layer = _Layer(self.model)
            pose = torch.from_numpy(np.concatenate([self.global_orient, self.hand_pose], axis=1))
            return layer(torch.from_numpy(self.betas), pose, torch.from_numpy(self.transl)).numpy()

    def animation(self) -> HandAnimation:
        """The fit as a skinned rig, whose mesh lacks MANO's pose corrections: skinning cannot express them."""
        model = self.model
        shaped = model.v_template + model.shapedirs @ self.betas
        joints = np.concatenate([model.J_regressor @ shaped, shaped[list(TIP_VERTICES)]])
        wrist = joints[0]
        weights = np.concatenate([model.weights, np.zeros((len(shaped), len(TIP_VERTICES)))], axis=1)
        rotations = np.tile(np.eye(3), (len(self.joints), JOINTS_PER_HAND, 1, 1))
        pose = np.concatenate([self.global_orient, self.hand_pose], axis=1).reshape(-1, 3)
        rotations[:, :NUM_JOINTS] = Rotation.from_rotvec(pose).as_matrix().reshape(-1, NUM_JOINTS, 3, 3)
        rig = HandRig(
            side=model.side,
            rest_joints=joints[FROM_MANO] - wrist,
            vertices=shaped - wrist,
            faces=model.faces,
            weights=weights[:, FROM_MANO],
        )
        return HandAnimation(
            rig=rig,
            rotations=rotations[:, FROM_MANO],
            translations=wrist + self.transl,
            observed=self.observed,
        )


def fit_mano(
    joints: np.ndarray,
    model: ManoModel,
    *,
    fps: float,
    smoothness: float = 1.0,
    steps: int = 40,
    device: str | torch.device = "cpu",
    on_progress: Callable[[int, int], None] | None = None,
) -> ManoFit:
    """Fit MANO to the joints of one hand: all frames at once, one shape for the clip.

    The most likely pose under independent Gaussians: a joint is observed to 4 mm; finger rotations stay within
    about 1 rad of the relaxed hand and accelerate by 30 rad/s^2, joints by 10 m/s^2; shape coefficients have unit
    variance (MANO's own scale). Joints leave the twist of a finger open: the terms on pose decide it.

    Args:
        joints: N x 21 x 3, OpenPose order, metres, camera space.
        model: the same side's MANO.
        fps: frames per second, which sets how much change between frames is plausible.
        smoothness: factor on the acceleration terms; 0 fits every frame alone.
        steps: rounds of L-BFGS (ten iterations each); it stops earlier when it has converged.
        device: where to compute; a hand is small, so the CPU is usually as fast.
        on_progress: called with (rounds done, rounds); raising from it cancels the fit.

    Raises:
        ValueError: see :func:`svimo_core.hand_rig.check_hand`.
        ImportError: smplx is not installed.
    """
    joints = check_hand(joints, model.side)
    template = np.concatenate([model.J_regressor @ model.v_template, model.v_template[list(TIP_VERTICES)]])[
        FROM_MANO
    ]
    orient = palm_alignment(template, joints)
    # Rotation happens about the template's wrist, which stays in place and is then translated.
    transl = joints[:, 0] - template[0]
    start = Rotation.from_matrix(orient).as_rotvec()

    # ComfyUI runs everything in inference mode, whose tensors can never carry gradients: leave it here.
    with torch.inference_mode(False), torch.enable_grad():
        tensor = lambda array: torch.from_numpy(np.array(array, dtype=np.float64)).to(device)  # noqa: E731
        layer = _Layer(_joints_only(model), device)
        observed, relaxed, start, transl = (
            tensor(joints),
            tensor(model.hands_mean),
            tensor(start),
            tensor(transl),
        )
        # Unknowns are scaled so that one unit of each moves a joint by centimetres.
        betas = torch.zeros(NUM_BETAS, dtype=torch.float64, device=device, requires_grad=True)
        turn = torch.zeros_like(start, requires_grad=True)
        shift = torch.zeros_like(start, requires_grad=True)
        fingers = relaxed.expand(len(joints), -1).clone().requires_grad_(True)

        def pose_and_place() -> tuple[torch.Tensor, torch.Tensor]:
            return torch.cat([start + turn, fingers], dim=1), transl + 0.05 * shift

        def loss_of(predicted: torch.Tensor) -> torch.Tensor:
            loss = (
                ((predicted - observed) / 0.004).square().sum()
                + betas.square().sum()
                + (fingers - relaxed).square().sum()
            )
            if len(joints) > 2:
                change = smoothness * fps**4  # second differences per frame^2 -> accelerations per second^2
                loss = loss + change * (fingers.diff(n=2, dim=0) / 30.0).square().sum()
                loss = loss + change * (predicted.diff(n=2, dim=0) / 10.0).square().sum()
            return loss

        def predict() -> torch.Tensor:
            pose, place = pose_and_place()
            return layer(betas, pose, place)[:, FROM_MANO]

        unknowns = [betas, turn, shift, fingers]
        optimizer = torch.optim.LBFGS(unknowns, max_iter=10, history_size=20, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = loss_of(predict())
            loss.backward()
            return loss

        previous = float("inf")
        for step in range(steps):
            loss = optimizer.step(closure).item()
            if on_progress is not None:
                on_progress(step + 1, steps)
            if previous - loss < 1e-4 * loss:
                break
            previous = loss

        with torch.no_grad():
            pose, place = (value.cpu().numpy() for value in pose_and_place())
            fitted = predict().cpu().numpy()
    fit = ManoFit(
        model=model,
        betas=betas.detach().cpu().numpy(),
        global_orient=pose[:, :3],
        hand_pose=pose[:, 3:],
        transl=place,
        joints=fitted,
        observed=joints,
    )
    log.info("MANO %s hand: %.1f mm residual over %d frames", model.side, fit.residual_mm, len(joints))
    return fit


def save_mano(path: str | os.PathLike, fits: dict[str, ManoFit], fps: float) -> Path:
    """Write MANO parameters to an .npz: `<side>_betas`, `_global_orient`, `_hand_pose`, `_transl`, and `fps`."""
    path = Path(path)
    arrays = {
        f"{side}_{name}": getattr(fit, name).astype(np.float32)
        for side, fit in fits.items()
        for name in ("betas", "global_orient", "hand_pose", "transl")
    }
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, fps=np.array(fps), **arrays)
    return path


class _Layer:
    """smplx's linear blend skinning with the arrays of one model on one device."""

    def __init__(self, model: ManoModel, device: str | torch.device = "cpu"):
        # Its licence is non-commercial: whoever does not use MANO may do without it.
        try:
            from smplx.lbs import lbs
        except ImportError as error:
            raise ImportError(f"{NO_SMPLX} ({error})") from error

        self.lbs = lbs
        tensor = lambda array: torch.from_numpy(np.array(array)).to(device)  # noqa: E731
        self.v_template = tensor(model.v_template)
        self.shapedirs = tensor(model.shapedirs)
        self.posedirs = tensor(model.posedirs.reshape(-1, model.posedirs.shape[-1]).T)
        self.J_regressor = tensor(model.J_regressor)
        self.parents = tensor(model.parents)
        self.weights = tensor(model.weights)

    def __call__(self, betas: torch.Tensor, pose: torch.Tensor, transl: torch.Tensor) -> torch.Tensor:
        """Vertices, N x V x 3, for one shape (10), poses (N x 48) and translations (N x 3)."""
        vertices, _ = self.lbs(
            betas.expand(len(pose), -1),
            pose,
            self.v_template,
            self.shapedirs,
            self.posedirs,
            self.J_regressor,
            self.parents,
            self.weights,
        )
        return vertices + transl[:, None]


def _joints_only(model: ManoModel) -> ManoModel:
    """The same hand with 21 "vertices", its 16 joints and five tips: exact for them, and 37 times less work.

    A joint is a fixed mixture of vertices, so it moves with shape as linearly as they do, and it follows its own
    rotation alone, without pose correction.
    """
    tips = list(TIP_VERTICES)
    regress = model.J_regressor
    return ManoModel(
        side=model.side,
        v_template=np.concatenate([regress @ model.v_template, model.v_template[tips]]),
        shapedirs=np.concatenate([np.einsum("jv,vcb->jcb", regress, model.shapedirs), model.shapedirs[tips]]),
        posedirs=np.concatenate([np.zeros((NUM_JOINTS, *model.posedirs.shape[1:])), model.posedirs[tips]]),
        J_regressor=np.eye(NUM_JOINTS, JOINTS_PER_HAND),
        weights=np.concatenate([np.eye(NUM_JOINTS), model.weights[tips]]),
        parents=model.parents,
        hands_mean=model.hands_mean,
        faces=np.zeros((0, 3), np.int64),
    )
