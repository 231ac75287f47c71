"""What a user installs: the wheel, the sdist, and an editable install, built from a copy of the tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections import Counter
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
VERSION: str = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
SYMLINKS = ("convrewrite/passes", "convrewrite/models")
MODELS = ("lenet5.onnx", "digits_vgg.onnx", "digits_dw7.onnx")
DATA = (
    "convrewrite/py.typed",
    "convrewrite/pipeline/report.schema.json",
    "convrewrite/batch/run.schema.json",
    *(f"convrewrite/page/templates/{path.name}" for path in sorted((ROOT / "convrewrite/page/templates").iterdir())),
    *(f"convrewrite/models/{name}" for name in MODELS),
)


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run it, and show all that it said where it fails. PYTHONPATH would let the checkout in."""
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        command,
        cwd=cwd,
        env=clean | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def site_packages() -> list[str]:
    """Where the dependencies are. Named as plain paths, so that no .pth in them brings the checkout back."""
    return [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git tracks or would track: a build leaves its litter there, and takes none from here."""
    copy = tmp_path_factory.mktemp("packaging") / "tree"
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in sorted(set(filter(None, listed.split("\0")))):
        source, target = ROOT / name, copy / name
        if source.is_symlink() or source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    return copy


@pytest.fixture(scope="session")
def dist(tree: Path) -> Path:
    """The sdist, and the wheel built from that sdist. Without isolation, so that it works offline."""
    out = tree.parent / "dist"
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, tree, cwd=tree.parent)
    return out


@pytest.fixture(scope="session")
def wheel(dist: Path) -> Path:
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def installed(wheel: Path) -> Path:
    """A folder that holds the wheel's content and nothing else."""
    target = wheel.parent.parent / "installed"
    pip = (sys.executable, "-m", "pip", "install", "-q", "--no-deps")
    run(*pip, "--target", target, wheel, cwd=wheel.parent)
    return target


@pytest.fixture(scope="session")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode())


def sources(tree: Path) -> dict[str, str]:
    """Each module's place in the wheel, and its place in the tree."""
    places = {}
    for folder in ("convrewrite", "passes", "models"):
        for path in (tree / folder).rglob("*.py"):
            name = path.relative_to(tree).as_posix()
            if not name.startswith(tuple(f"{link}/" for link in SYMLINKS)):
                places[name if folder == "convrewrite" else f"convrewrite/{name}"] = name
    assert len(places) > 10
    return places


def test_the_symlinks_are_relative_and_lead_to_the_folders() -> None:
    for link in SYMLINKS:
        assert (ROOT / link).is_symlink()
        assert os.readlink(ROOT / link) == f"../{Path(link).name}"


def test_the_wheel_holds_each_module_once_and_nothing_else(tree: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    packaged = [name for name in names if ".dist-info/" not in name]
    assert Counter(packaged) == Counter([*sources(tree), *DATA])
    assert {name.split("/")[0] for name in names} == {"convrewrite", f"convrewrite-{VERSION}.dist-info"}
    assert f"convrewrite-{VERSION}.dist-info/licenses/LICENSE" in names


def test_the_sdist_holds_each_module_once(tree: Path, dist: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    assert all(member.isfile() or member.isdir() for member in members), "a link in the sdist"
    names = [member.name.partition("/")[2] for member in members if member.isfile()]
    assert not [name for name in names if name.startswith(tuple(f"{link}/" for link in SYMLINKS))]
    folders = ("convrewrite/", "passes/", "models/")
    modules = [name for name in names if name.endswith(".py") and name.startswith(folders)]
    assert Counter(modules) == Counter(sources(tree).values())
    data = {"convrewrite/py.typed", "convrewrite/pipeline/report.schema.json", *(f"models/{name}" for name in MODELS)}
    assert data | {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml"} <= set(names)
    assert not [name for name in names if name.startswith("tests/")], "tests that miss what they need"


def test_the_content_is_that_of_the_tree(tree: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for packaged, source in sources(tree).items():
            assert archive.read(packaged) == (tree / source).read_bytes(), packaged
        for name in MODELS:
            assert archive.read(f"convrewrite/models/{name}") == (tree / "models" / name).read_bytes(), name


def test_the_console_script_is_declared(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        points = archive.read(f"convrewrite-{VERSION}.dist-info/entry_points.txt").decode().split("\n")
    assert "[console_scripts]" in points
    assert "convrewrite = convrewrite.cli.app:main" in points


def test_the_metadata(metadata: Message) -> None:
    assert metadata["Name"] == "convrewrite"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert {"cpu", "gpu", "cuda", "plot", "docs", "train", "scale", "test", "dev"} == set(
        metadata.get_all("Provides-Extra", [])
    )


def required(metadata: Message, extra: str, platform: tuple[str, str] = ("linux", "x86_64")) -> list[str]:
    """Names of all that an extra brings on a platform, with those that it takes from other extras."""
    environment = {"sys_platform": platform[0], "platform_machine": platform[1], "extra": extra}
    lines = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    chosen = [one for one in lines if one.marker is None or one.marker.evaluate(environment)]
    names = [one.name for one in chosen if one.name != "convrewrite"]
    others = sorted({more for one in chosen if one.name == "convrewrite" for more in one.extras})
    return sorted({*names, *(name for more in others for name in required(metadata, more, platform))})


def runtimes(names: list[str]) -> list[str]:
    return [name for name in names if name.startswith("onnxruntime")]


BASE = set("onnx onnx-graphsurgeon numpy scipy threadpoolctl typer rich pydantic jinja2 pillow".split())


def test_no_runtime_comes_unasked(metadata: Message) -> None:
    """A second distribution of ONNX Runtime would break the one that the user has."""
    assert set(required(metadata, "")) == BASE
    for extra in ("plot", "scale", "docs", "test", "train"):
        assert runtimes(required(metadata, extra)) == [], extra


def test_maps_are_drawn_without_matplotlib(metadata: Message) -> None:
    assert "matplotlib" not in required(metadata, "scale")


@pytest.mark.parametrize(
    ("sys_platform", "machine", "expected"),
    [
        ("linux", "x86_64", "onnxruntime-gpu"),
        ("win32", "AMD64", "onnxruntime-gpu"),
        ("linux", "aarch64", "onnxruntime"),
        ("darwin", "arm64", "onnxruntime"),
        ("darwin", "x86_64", "onnxruntime"),
        ("win32", "ARM64", "onnxruntime"),
    ],
)
def test_each_platform_gets_one_onnxruntime(metadata: Message, sys_platform: str, machine: str, expected: str) -> None:
    for extra in ("gpu", "dev"):
        assert runtimes(required(metadata, extra, (sys_platform, machine))) == [expected], extra
    assert runtimes(required(metadata, "cpu", (sys_platform, machine))) == ["onnxruntime"]
    assert runtimes(required(metadata, "cuda", (sys_platform, machine))) == ["onnxruntime-gpu"]


IMPORT = """
import importlib, pathlib, sys
home = pathlib.Path(sys.argv[1]).resolve()
for name in ("", ".passes", ".passes.fcn", ".models", ".cli"):
    name = f"convrewrite{name}"
    place = pathlib.Path(importlib.import_module(name).__file__).resolve()
    assert home in place.parents, (name, str(place))
for name in ("passes", "models"):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        continue
    raise AssertionError(f"import {name} works: it is a top-level package")
import convrewrite
print(convrewrite.__version__)
"""


def test_the_installed_wheel_imports_without_the_checkout(installed: Path, tmp_path: Path) -> None:
    # -S: no .pth is read, so an editable install of the checkout in this environment has no say.
    path = os.pathsep.join([str(installed), *site_packages()])
    printed = run(sys.executable, "-S", "-P", "-c", IMPORT, installed, cwd=tmp_path, PYTHONPATH=path)
    assert printed.strip() == VERSION


@pytest.mark.skipif(os.name == "nt", reason="a POSIX virtual environment")
@pytest.mark.parametrize("links", [True, False], ids=["symlinks", "no-symlinks"])
def test_an_editable_install_works(tree: Path, tmp_path: Path, links: bool) -> None:
    """It goes by the symlinks where git made them, and by package-dir where it could not."""
    source, home = tmp_path / "source", tmp_path / "environment"
    shutil.copytree(tree, source, symlinks=True)  # an editable install writes into its tree
    for link in SYMLINKS if not links else ():
        (source / link).unlink()
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    (site,) = home.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text("\n".join(site_packages()) + "\n")
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "-q", "--no-deps", "--no-build-isolation", "--editable", source, cwd=tmp_path)
    assert run(python, "-P", "-c", IMPORT, source, cwd=tmp_path).strip() == VERSION
    assert (home / "bin" / "convrewrite").exists()
