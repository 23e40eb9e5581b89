import contextlib
import os
import pickle
import struct
import subprocess
import sys
import textwrap
import tracemalloc
import types
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import smplx
import torch
from helpers.moving_hands import hand_animation
from helpers.synthetic_mano import mano_arrays
from scipy import sparse
from scipy.sparse import csc_matrix
from smplx.utils import Struct

from dev.comfy import ROOT
from svimo_core.mano import (
    FROM_MANO,
    TIP_VERTICES,
    fit_mano,
    left_shape,
    load_mano,
    save_mano,
    with_left_shape,
)
from svimo_core.mano import fit as fit_module
from svimo_core.motion import HAND_NAMES


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mano")
    for side in HAND_NAMES:
        np.savez(folder / f"MANO_{side.upper()}.npz", **mano_arrays(side))
    return {side: load_mano(folder / f"MANO_{side.upper()}.npz", side) for side in HAND_NAMES}


def acceleration(joints):
    return np.sqrt(np.mean(np.diff(joints, n=2, axis=0) ** 2))


def bone_spread(joints):
    """How much any bone changes its length. The last ones end on the skin, which MANO's pose corrections move."""
    lengths = np.linalg.norm(np.diff(joints[:, 1:].reshape(-1, 5, 4, 3)[:, :, :3], axis=2), axis=-1)
    return lengths.std(axis=0).max()


# Fitting


@pytest.mark.parametrize("side", HAND_NAMES)
def test_fit_recovers_the_joints(models, side):
    joints = hand_animation(side, frames=17).joints
    fit = fit_mano(joints, models[side], fps=8)
    assert fit.residual_mm < 0.5
    np.testing.assert_allclose(fit.joints, joints, atol=0.002)
    assert bone_spread(fit.joints) < 1e-9


def test_fit_finds_the_shape_of_a_larger_hand(models):
    joints = hand_animation("right", frames=9).joints
    wrist = joints[:, :1]
    larger = fit_mano(wrist + 1.12 * (joints - wrist), models["right"], fps=8)
    assert larger.residual_mm < 1.5
    assert larger.betas[0] > 1.2  # the synthetic model's first shape is size, 6 % each


def test_fit_is_smoother_and_truer_than_noisy_joints(models):
    truth = hand_animation("left", frames=45).joints
    noisy = truth + np.random.default_rng(0).normal(scale=0.003, size=truth.shape)
    fit = fit_mano(noisy, models["left"], fps=30)
    assert acceleration(fit.joints) < acceleration(noisy) / 4
    assert np.mean((fit.joints - truth) ** 2) < np.mean((noisy - truth) ** 2) / 4
    frame_by_frame = fit_mano(noisy, models["left"], fps=30, smoothness=0)
    assert acceleration(frame_by_frame.joints) > 1.5 * acceleration(fit.joints)


def test_parameters_mean_what_smplx_means(models):
    fit = fit_mano(hand_animation("right", frames=5).joints, models["right"], fps=8)
    arrays = mano_arrays("right")
    arrays["f"] = arrays["f"].astype(np.int64)
    layer = smplx.MANO(
        "", data_struct=Struct(**arrays), use_pca=False, flat_hand_mean=True, dtype=torch.float64
    )
    tensor = torch.from_numpy
    output = layer(
        betas=tensor(np.tile(fit.betas, (5, 1))),
        global_orient=tensor(fit.global_orient),
        hand_pose=tensor(fit.hand_pose),
        transl=tensor(fit.transl),
    )
    np.testing.assert_allclose(fit.vertices(), output.vertices.detach().numpy(), atol=1e-7)
    joints = np.concatenate([output.joints.detach().numpy(), fit.vertices()[:, list(TIP_VERTICES)]], axis=1)
    np.testing.assert_allclose(fit.joints, joints[:, FROM_MANO], atol=1e-7)


def test_rig_of_a_fit_has_its_joints_and_nearly_its_mesh(models):
    fit = fit_mano(hand_animation("left", frames=9).joints, models["left"], fps=8)
    hand = fit.animation()
    moving = [j for j in range(21) if j not in (4, 8, 12, 16, 20)]
    np.testing.assert_allclose(hand.joints[:, moving], fit.joints[:, moving], atol=1e-9)
    assert np.abs(hand.joints - fit.joints).max() < 0.003  # tips carry pose corrections
    assert np.abs(hand.posed_vertices() - fit.vertices()).max() < 0.003
    np.testing.assert_allclose(hand.rig.weights.sum(axis=1), 1, atol=1e-12)


def test_fit_works_in_comfyui_inference_mode_and_for_one_frame(models):
    with torch.inference_mode():
        fit = fit_mano(hand_animation("right", frames=3).joints[:1], models["right"], fps=8)
        assert fit.residual_mm < 1
        assert fit.vertices().shape == (1, 778, 3)


def test_fit_reports_progress_and_can_be_cancelled(models):
    joints = hand_animation("right", frames=5).joints
    seen = []
    fit_mano(
        joints, models["right"], fps=8, steps=3, on_progress=lambda done, total: seen.append((done, total))
    )
    assert seen == sorted(seen)
    assert {(0, 3), (1, 3), (2, 3), (3, 3)} == set(seen)

    def stop(done, total):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        fit_mano(joints, models["right"], fps=8, on_progress=stop)


def test_absent_frames_are_carried_over(models):
    truth = hand_animation("right", frames=30).joints
    joints = truth.copy()
    joints[:3], joints[10:13], joints[27:] = np.nan, np.nan, np.nan
    fit = fit_mano(joints, models["right"], fps=30)
    assert fit.present.tolist() == [3 <= i < 10 or 13 <= i < 27 for i in range(30)]
    np.testing.assert_array_equal(fit.observed, joints)
    assert fit.residual_mm < 1
    assert np.abs(fit.joints[10:13] - truth[10:13]).max() < 0.004
    assert acceleration(fit.joints[3:27]) < 1.5 * acceleration(truth[3:27])
    for held, edge in ((slice(0, 3), 3), (slice(27, 30), 26)):
        np.testing.assert_array_equal(fit.joints[held], np.tile(fit.joints[edge], (3, 1, 1)))
    assert len(fit.animation()) == 30
    alone = fit_mano(joints, models["right"], fps=30, smoothness=0)
    assert np.isfinite(alone.joints).all()
    for only in ([5], [5, 6]):
        few = np.full_like(truth, np.nan)
        few[only] = truth[only]
        fit = fit_mano(few, models["right"], fps=30)
        assert fit.residual_mm < 1
        np.testing.assert_array_equal(fit.joints[0], fit.joints[5])


def test_an_absent_hand_is_not_observed_on_the_straight_line(models):
    """Thrown up and caught: across the gap it goes on as smoothly as it came, and not from edge to edge."""
    seconds = np.arange(30) / 30
    truth = np.repeat(hand_animation("right", frames=2).joints[:1], 30, axis=0)
    truth[..., 1] += 3 * (seconds[:, None] - 0.5) ** 2
    joints = truth.copy()
    joints[9:21] = np.nan
    edges = joints[[8, 21]].mean(axis=0)
    fitted = fit_mano(joints, models["right"], fps=30).joints[14]
    line = np.abs(edges - truth[14])[:, 1].mean()
    assert line > 0.1
    assert np.abs(fitted - truth[14])[:, 1].mean() < 0.2 * line


def test_a_hand_that_is_never_there_or_half_there_is_one_clear_error(models):
    joints = hand_animation("right", frames=5).joints
    with pytest.raises(ValueError, match="right hand: absent in all 5 frames"):
        fit_mano(np.full_like(joints, np.nan), models["right"], fps=8)
    joints[0], joints[3, 7] = np.nan, np.nan
    with pytest.raises(ValueError, match=r"not finite .*first in frame 3"):
        fit_mano(joints, models["right"], fps=8)


@pytest.mark.parametrize("unit", [1.0, 0.0])
def test_derivatives_are_those_of_the_joints(models, unit):
    """Against differences, in a pose and shape far from rest, and in the flat hand, whose rotations have no axis."""
    rng = np.random.default_rng(0)
    problem = fit_module._Problem(
        hand_animation("right", frames=3).joints, np.ones(3, bool), models["right"], 30, 1.0
    )
    state = problem.start.moved(rng.normal(size=(3, fit_module.FRAME_SIZE)), rng.normal(size=10))
    state = replace(state, fingers=state.fingers * unit)
    by_frame, by_betas = fit_module._derivatives(problem.hand, state)
    for step in range(fit_module.FRAME_SIZE + 10):
        frames, betas = np.zeros((3, fit_module.FRAME_SIZE)), np.zeros(10)
        (frames if step < fit_module.FRAME_SIZE else betas)[..., step % fit_module.FRAME_SIZE] = 1e-6
        there, back = (problem.predict(state.moved(sign * frames, sign * betas)) for sign in (1, -1))
        expected = np.concatenate([by_frame, by_betas], axis=2)[..., step]
        np.testing.assert_allclose((there - back).reshape(3, -1) / 2e-6, expected, atol=1e-7)


def test_a_step_solves_the_whole_system(models):
    """Blocks and band against the same system as one dense matrix."""
    joints = hand_animation("right", frames=4).joints
    problem = fit_module._Problem(joints, np.array([1, 1, 0, 1], bool), models["right"], 8, 1.0)
    state = problem.start
    predicted = problem.predict(state)
    equations = problem.normal_equations(state, predicted, lambda: None)
    frames, betas = equations.solve(1e-9)
    size = frames.size
    dense = np.zeros((size + 10, size + 10))
    for offset, block in enumerate(equations.blocks):
        for i in range(4 - offset):
            below, at = ((i + offset) * 51, i * 51)
            dense[below : below + 51, at : at + 51] = block[i]
            dense[at : at + 51, below : below + 51] = block[i].T
    dense[:size, size:] = equations.across.reshape(size, 10)
    dense[size:, :size] = dense[:size, size:].T
    dense[size:, size:] = equations.betas
    down = np.concatenate([equations.down.ravel(), equations.down_betas])
    np.testing.assert_allclose(
        dense @ np.concatenate([frames.ravel(), betas]), down, atol=1e-3 * np.abs(down).max()
    )
    # and down is where the loss falls
    step = 1e-7 / np.abs(equations.down).max()
    moved = [
        state.moved(sign * step * equations.down, sign * step * equations.down_betas) for sign in (1, -1)
    ]
    falls = np.subtract(*(problem.loss(there, problem.predict(there)) for there in moved)) / (2 * step)
    np.testing.assert_allclose(falls, -2 * (down @ down), rtol=1e-5)


# The left hand's shape


def test_the_left_hands_shape_is_told_apart_and_turned_round(tmp_path, models):
    np.savez(tmp_path / "left.npz", **mano_arrays("left", left_shape="official"))
    official, mended, right = load_mano(tmp_path / "left.npz", "left"), models["left"], models["right"]
    for other in (right, None):
        assert left_shape(official, other) == "official"
        assert left_shape(mended, other) == "mended"
        np.testing.assert_array_equal(with_left_shape(official, "mended", other).shapedirs, mended.shapedirs)
        np.testing.assert_array_equal(
            with_left_shape(mended, "official", other).shapedirs, official.shapedirs
        )
        assert with_left_shape(official, "official", other) is official
    with pytest.raises(
        ValueError, match="expected a left hand, and a right one to compare it with, got right"
    ):
        left_shape(right)
    with pytest.raises(ValueError, match='is "official" or "mended", got'):
        with_left_shape(official, "wrong")

    joints = hand_animation("left", frames=3).joints
    for model, shape in ((official, "official"), (mended, "mended")):
        fits = {"left": fit_mano(joints, model, fps=8)}
        with np.load(save_mano(tmp_path / "mano.npz", fits, 8.0), allow_pickle=False) as file:
            assert str(file["left_shapedirs"]) == shape


def test_mano_needs_no_smplx(models, tmp_path):
    """smplx's licence is non-commercial: nothing imports it, and whoever has no use for it may remove it."""
    program = """
        import sys
        sys.modules["smplx"] = None  # as if it were not installed
        from svimo_core.export.glb import write_glb
        from svimo_core.mano import load_mano
        from svimo_core.motion import HandObjectMotion
        from svimo_core.rigged import rig_motion

        motion = HandObjectMotion.load(sys.argv[1])
        write_glb("capsule.glb", rig_motion(motion))
        mano = {side: load_mano(f"{side}.npz", side) for side in ("left", "right")}
        rigged = rig_motion(motion, mano=mano)
        write_glb("mano.glb", rigged)
        rigged.mano["left"].vertices()
    """
    for side in HAND_NAMES:
        np.savez(tmp_path / f"{side}.npz", **mano_arrays(side))
    command = [sys.executable, "-c", textwrap.dedent(program), ROOT / "assets" / "motions" / "stir_cup.npz"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert min((tmp_path / f"{hands}.glb").stat().st_size for hands in ("capsule", "mano")) > 100_000


def test_saved_parameters_are_plain_arrays(models, tmp_path):
    fits = {side: fit_mano(hand_animation(side, frames=5).joints, models[side], fps=8) for side in HAND_NAMES}
    with np.load(save_mano(tmp_path / "mano.npz", fits, 8.0), allow_pickle=False) as file:
        assert file["fps"] == 8
        np.testing.assert_allclose(file["left_hand_pose"], fits["left"].hand_pose, atol=1e-6)
        assert {file[f"right_{name}"].shape for name in ("global_orient", "transl")} == {(5, 3)}
        assert file["right_betas"].shape == (10,)


# Files


class Ch:
    """What the official files hold: see test_official_pickle_is_read_without_chumpy."""


class Select(Ch):
    pass


Ch.__module__, Select.__module__ = "chumpy.ch", "chumpy.reordering"


class Python2Pickler(pickle._Pickler):
    """Writes byte strings as Python 2 did."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_bytes(self, value):
        self.write(b"T" + struct.pack("<I", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes


def test_official_pickle_is_read_without_chumpy(tmp_path, monkeypatch):
    arrays = mano_arrays("right")
    source, shapedirs = Ch(), Select()
    source.x = np.concatenate([arrays["shapedirs"], np.ones((778, 3, 10))], axis=2)
    shapedirs.a, shapedirs.preferred_shape = source, (778, 3, 10)
    shapedirs.idxs = np.arange(778 * 3 * 20).reshape(778, 3, 20)[:, :, :10].ravel()
    content = {
        **arrays,
        "shapedirs": shapedirs,
        "J_regressor": csc_matrix(arrays["J_regressor"]),
        "bs_type": "lrotmin",
    }
    content["posedirs"] = np.asfortranarray(arrays["posedirs"])

    for name in ("chumpy", "chumpy.ch", "chumpy.reordering"):
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(Ch=Ch, Select=Select))
    path = tmp_path / "MANO_RIGHT.pkl"
    with path.open("wb") as file:
        Python2Pickler(file, protocol=2).dump(content)
    data = path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    path.write_bytes(data.replace(b"scipy.sparse._csc", b"scipy.sparse.csc"))
    monkeypatch.undo()
    assert "chumpy" not in sys.modules

    model = load_mano(path, "right")
    for name in ("v_template", "shapedirs", "posedirs", "J_regressor", "weights", "hands_mean"):
        np.testing.assert_allclose(getattr(model, name), arrays[name], err_msg=name)
    assert model.parents.tolist() == [-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14]
    np.testing.assert_array_equal(model.faces, arrays["f"])


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_converted_pickles_are_read(tmp_path, protocol):
    path = tmp_path / "hand.pkl"
    path.write_bytes(pickle.dumps(mano_arrays("left"), protocol))
    np.testing.assert_array_equal(load_mano(path, "left").v_template, mano_arrays("left")["v_template"])


@pytest.mark.parametrize("ending", ["matrix", "array"])
@pytest.mark.parametrize("kind", ["csc", "csr", "coo"])
@pytest.mark.parametrize("age", ["old", "new"])
def test_every_sparse_regressor_is_read(tmp_path, kind, ending, age):
    arrays = mano_arrays("left")
    content = arrays | {"J_regressor": getattr(sparse, f"{kind}_{ending}")(arrays["J_regressor"])}
    data = pickle.dumps(content, 2)
    if age == "old":  # before scipy 1.8 modules had public names, before 1.13 coo had row and col
        data = data.replace(f"scipy.sparse._{kind}".encode(), f"scipy.sparse.{kind}".encode())
        assert f"cscipy.sparse.{kind}\n".encode() in data
    path = tmp_path / "hand.pkl"
    path.write_bytes(data)
    np.testing.assert_allclose(load_mano(path, "left").J_regressor, arrays["J_regressor"])


class coo_matrix:
    """scipy's before 1.13."""

    def __init__(self, array):
        self.row, self.col = np.nonzero(array)
        self.data, self._shape = array[self.row, self.col], array.shape


coo_matrix.__module__ = "scipy.sparse.coo"


def test_coordinates_of_older_scipy_are_read(tmp_path, monkeypatch):
    arrays = mano_arrays("left")
    monkeypatch.setitem(sys.modules, "scipy.sparse.coo", types.SimpleNamespace(coo_matrix=coo_matrix))
    path = tmp_path / "hand.pkl"
    path.write_bytes(pickle.dumps(arrays | {"J_regressor": coo_matrix(arrays["J_regressor"])}, 2))
    np.testing.assert_allclose(load_mano(path, "left").J_regressor, arrays["J_regressor"])


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.parametrize("file", ["pkl", "npz"])
def test_numbers_of_any_kind_are_read(tmp_path, file):
    arrays = mano_arrays("left")
    more = np.concatenate([arrays["shapedirs"], np.ones((778, 3, 35))], axis=2)
    for kintree in (np.int32, np.uint32, np.int64):
        content = arrays | {
            "shapedirs": more.astype(np.float16),
            "v_template": arrays["v_template"].astype(">f4"),
            "kintree_table": arrays["kintree_table"].astype(kintree),
        }
        path = tmp_path / f"hand.{file}"
        if file == "pkl":
            path.write_bytes(pickle.dumps(content | {"J_regressor": np.matrix(arrays["J_regressor"])}, 2))
        else:
            np.savez(path, **content)
        model = load_mano(path, "left")
        assert model.shapedirs.shape == (778, 3, 10)
        assert model.parents[0] == -1
        np.testing.assert_allclose(model.shapedirs, arrays["shapedirs"], atol=1e-4)
        np.testing.assert_array_equal(model.J_regressor, arrays["J_regressor"])
        np.testing.assert_array_equal(model.hands_components, arrays["hands_components"])


class Hostile:
    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("where", ["instead", "inside", "beside"])
@pytest.mark.parametrize("call", [os.mkdir, eval, getattr])
def test_hostile_pickles_run_nothing(tmp_path, protocol, where, call):
    trap = tmp_path / "trap"
    args = {os.mkdir: (str(trap),), eval: (f"__import__('os').mkdir({str(trap)!r})",), getattr: ("", "join")}[
        call
    ]
    bomb = Hostile(call, *args)
    content = {
        "instead": bomb,
        "inside": mano_arrays() | {"weights": bomb},
        "beside": mano_arrays() | {"x": [bomb]},
    }
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(pickle.dumps(content[where], protocol))
    with pytest.raises(ValueError, match="do not trust this file"):
        load_mano(path, "right")
    assert not trap.exists()


def broken(**changes):
    arrays = mano_arrays()
    return {name: value for name, value in (arrays | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a readable MANO pickle"),
        (b"\x80\x04garbage", "not a readable MANO pickle"),
        (pickle.dumps([1, 2]), "no dictionary"),
        (pickle.dumps(broken(weights=None)), "weights should be 778 x 16, got nothing"),
        (pickle.dumps(broken(v_template=np.zeros((6890, 3)))), "v_template should be 778 x 3, got 6890 x 3"),
        (pickle.dumps(broken(v_template=np.array([{}] * 3))), "instead of numbers"),
        (
            pickle.dumps(broken(posedirs=np.full((778, 3, 135), np.nan))),
            "posedirs has values that are not finite",
        ),
        (pickle.dumps(broken(f=np.array([[0, 1, 778]]))), "do not index 778 vertices"),
        (pickle.dumps(broken(kintree_table=np.tile(np.arange(16), (2, 1)))), "before its parent"),
    ],
)
def test_bad_files_are_one_clear_error(tmp_path, content, message):
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_mano(path, "right")


def test_missing_and_unknown_files_say_where_mano_comes_from(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"register at https://mano.is.tue.mpg.de"):
        load_mano(tmp_path / "MANO_LEFT.pkl", "left")
    (tmp_path / "hand.obj").touch()
    with pytest.raises(ValueError, match=r"MANO comes as .pkl or .npz"):
        load_mano(tmp_path / "hand.obj", "left")


def test_npz_with_pickled_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "hand.npz", v_template=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="cannot be read as plain arrays"):
        load_mano(tmp_path / "hand.npz", "left")


def sparse_with(**changes):
    regressor = csc_matrix(mano_arrays()["J_regressor"])
    for name, value in changes.items():
        setattr(regressor, name, value)
    return pickle.dumps(mano_arrays() | {"J_regressor": regressor}, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: sparse_with(_shape=(10**9, 10**9)), "a sparse array should be 16 x 778"),
        (lambda: sparse_with(indices=np.full(96, 16)), "a number outside of its 16 x 778"),
        (lambda: sparse_with(indices=np.full(96, -1)), "a number outside of its 16 x 778"),
        (lambda: sparse_with(indptr=np.arange(5)), "not where its index says"),
        (lambda: sparse_with(data=np.ones(5)), "not a readable MANO pickle"),
        (lambda: b"\x80\x04\x8e" + b"\xff\xff\xff\xff\x00\x00\x00\x00" + b"x.", "not a readable MANO pickle"),
        (lambda: b"\x80\x05\x96" + b"\xff\xff\xff\xff\x00\x00\x00\x00" + b"x.", "not a readable MANO pickle"),
        (lambda: b"\x80\x02}r\xff\xff\xff\x7f.", "numbers its parts up to 2147483647"),
        (lambda: pickle.dumps(mano_arrays() | {"weights": [[0] * 16] * 778}), "a list instead of an array"),
    ],
)
def test_pickles_that_lie_about_sizes_take_no_memory(tmp_path, content, message):
    path = tmp_path / "MANO_RIGHT.pkl"
    path.write_bytes(content())
    with limited_memory(), pytest.raises(ValueError, match=message) as error:
        load_mano(path, "right")
    assert str(error.value).startswith("MANO_RIGHT.pkl")


def test_archives_that_lie_about_sizes_take_no_memory(tmp_path):
    path = tmp_path / "hand.npz"
    for name, shape, dtype in (
        ("v_template", (2**40, 3), "<f8"),
        ("f", (2**36, 3), "<i8"),
        ("weights", (778, 16), "<M8[s]"),
    ):
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file,
            file.open(f"{name}.npy", "w") as member,
        ):
            np.lib.format.write_array_header_1_0(
                member, {"descr": dtype, "fortran_order": False, "shape": shape}
            )
        with (
            limited_memory(),
            pytest.raises(ValueError, match=rf"hand.npz cannot be read .*: {name} ") as error,
        ):
            load_mano(path, "left")
        assert "\n" not in str(error.value)


@contextlib.contextmanager
def limited_memory(mebibytes=256):
    """Fails what allocates more, whether or not it comes to use it."""
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < mebibytes * 2**20


@pytest.mark.parametrize("kind", ["pkl", "npz"])
def test_truncated_and_damaged_files_are_one_clear_error(tmp_path, kind):
    whole = tmp_path / f"whole.{kind}"
    if kind == "npz":
        np.savez_compressed(whole, **mano_arrays())
    else:
        whole.write_bytes(pickle.dumps(mano_arrays(), 2))
    data, rng = whole.read_bytes(), np.random.default_rng(0)
    path = tmp_path / f"hand.{kind}"
    cut = [data[: int(len(data) * share)] for share in (0, 0.001, 0.1, 0.5, 0.99)]
    for content in [*cut, data[:-1], b"PK\x03\x04", bytes(100), rng.bytes(1000)]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"^hand.{kind} ") as error:
            load_mano(path, "right")
        assert "\n" not in str(error.value)
    said = []
    for _ in range(30):  # flipped bytes: read as something, or refused in one sentence
        damaged = bytearray(data)
        for place in rng.integers(0, len(data) if kind == "npz" else 400, 5):
            damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(bytes(damaged))
        try:
            load_mano(path, "right")
        except ValueError as error:
            said.append(str(error))
    assert len(said) > 5
    assert all(message.startswith(f"hand.{kind} ") for message in said)
