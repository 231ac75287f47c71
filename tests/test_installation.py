"""Whatever ONNX Runtime is installed, and whatever is not: each environment is a folder of links to what is installed
here, with the distributions that a test asks for in the place of the real one."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import onnxruntime
import pytest
from processes import HANGS

from convrewrite.errors import UsageError
from convrewrite.running import installed, runtime
from convrewrite.running.installed import OLDEST, distributions
from convrewrite.timing.worker import _share_threads

ROOT = Path(__file__).resolve().parent.parent
LENET = ROOT / "models" / "lenet5.onnx"
REAL = Path(onnxruntime.__file__).parent

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links, and a POSIX virtual environment")

ONE_TO_INSTALL = 'run: pip install "convrewrite[cpu]"'


class Environment:
    """An environment without any ONNX Runtime, and a folder that a test fills with what it is to have of one."""

    def __init__(self, python: Path, folder: Path) -> None:
        self.python, self.folder, self.site = python, folder, folder / "site"
        self.site.mkdir()

    def add(
        self, name: str, version: str = "1.30.0", files: Sequence[str] | None = ("onnxruntime/__init__.py",)
    ) -> None:
        """What is known of a distribution; `files` of it, or None where it does not say."""
        info = self.site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        if files is not None:
            (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))

    def link_the_package(self) -> None:
        """The package itself, which works."""
        (self.site / "onnxruntime").symlink_to(REAL)

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """A command of convrewrite."""
        return self.python_("-m", "convrewrite", *words)

    def python_(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONHOME", "VIRTUAL_ENV")}
        return subprocess.run(
            [self.python, *words],
            cwd=self.folder,
            env={**clean, "PYTHONPATH": str(self.site)},
            capture_output=True,
            text=True,
            check=False,
            timeout=HANGS,
        )


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has links to all that is installed here but for ONNX Runtime."""
    home = tmp_path_factory.mktemp("without")
    venv.create(home, with_pip=False, symlinks=True)
    (site,) = home.glob("lib/python*/site-packages")
    left_out = re.compile(r"(onnxruntime|ort[-_]|convrewrite|__editable__|_?distutils).*|.*\.pth", re.IGNORECASE)
    for folder in sys.path:
        if Path(folder).name in ("site-packages", "dist-packages"):
            for entry in Path(folder).iterdir():
                if not left_out.fullmatch(entry.name) and not (site / entry.name).exists():
                    (site / entry.name).symlink_to(entry)
    (site / "convrewrite.pth").write_text(f"{ROOT}\n")
    return home / "bin" / "python"


@pytest.fixture
def environment(without: Path, tmp_path: Path) -> Environment:
    return Environment(without, tmp_path)


def line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a command ended with, and exit code 2."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


# None, or a damaged one ---------------------------------------------------------------------------------------------


def none(environment: Environment) -> str:
    return f"error: ONNX Runtime is not installed; {ONE_TO_INSTALL}"


def left_over(environment: Environment) -> str:
    """Everything was uninstalled, but a folder has stayed."""
    (environment.site / "onnxruntime" / "capi").mkdir(parents=True)
    return f"error: ONNX Runtime is not installed; {ONE_TO_INSTALL}"


def one_of_two_uninstalled(environment: Environment) -> str:
    """What `pip uninstall onnxruntime` leaves of onnxruntime-gpu: the files that it has alone."""
    (environment.site / "onnxruntime" / "capi").mkdir(parents=True)
    (environment.site / "onnxruntime" / "capi" / "libonnxruntime_providers_cuda.so").write_bytes(b"")
    environment.add("onnxruntime-gpu", "1.31.1")
    return (
        "error: onnxruntime-gpu 1.31.1 is installed, but cannot be imported: its folder has lost files, as when "
        "another distribution of it is uninstalled; run: pip install --force-reinstall --no-deps "
        "onnxruntime-gpu==1.31.1"
    )


def two_that_lost_files(environment: Environment) -> str:
    (environment.site / "onnxruntime").mkdir()
    environment.add("onnxruntime")
    environment.add("onnxruntime-gpu")
    return (
        "error: ONNX Runtime cannot be imported: onnxruntime 1.30.0 and onnxruntime-gpu 1.30.0 are both installed and "
        "overwrite each other's files; run: pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
    )


def import_that_fails(environment: Environment) -> str:
    (environment.site / "onnxruntime").mkdir()
    (environment.site / "onnxruntime" / "__init__.py").write_text("raise ImportError('libfoo.so.1: no such file')\n")
    environment.add("ort-nightly-gpu", "1.32.0.dev1")
    return (
        "error: ort-nightly-gpu 1.32.0.dev1 is installed, but cannot be imported: libfoo.so.1: no such file; "
        "run: pip install --force-reinstall --no-deps ort-nightly-gpu==1.32.0.dev1"
    )


def files_without_the_middle(environment: Environment) -> str:
    """An __init__ that finds nothing behind it."""
    (environment.site / "onnxruntime").mkdir()
    shutil.copy(REAL / "__init__.py", environment.site / "onnxruntime")
    environment.add("onnxruntime", "1.31.1")
    return (
        "error: onnxruntime 1.31.1 is installed, but cannot be imported: No module named 'onnxruntime.capi'; run: pip"
    )


BROKEN = [none, left_over, one_of_two_uninstalled, two_that_lost_files, import_that_fails, files_without_the_middle]
COMMANDS = {
    "fcn": ("fcn", LENET, "out.onnx"),
    "separable": ("separable", LENET, "out.onnx", "--tol", "0.1"),
    "groups": ("groups", LENET, "out.onnx"),
    "fc-to-conv": ("fc-to-conv", LENET, "out.onnx"),
    "verify": ("verify", LENET, LENET),
    "bench": ("bench", LENET, LENET),
    "toeplitz": ("inspect", LENET, "--toeplitz", "c1"),
    "run": ("run", "convrewrite.toml"),
    "apply": ("apply", LENET, "image.npy", "out.npy"),
    "no-verify-cuda": ("fcn", LENET, "out.onnx", "--no-verify", "--provider", "cuda"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_runs_models_names_what_to_install(command: str, environment: Environment) -> None:
    config = environment.folder / "convrewrite.toml"
    config.write_text('models = ["*.onnx"]\noutput = "o/{name}.onnx"\n[[steps]]\npass = "fcn"\n')
    shutil.copy(LENET, config.with_name("lenet5.onnx"))
    assert line(environment.run(*COMMANDS[command])).startswith(
        f"error: ONNX Runtime is not installed; {ONE_TO_INSTALL}"
    )
    assert not config.with_name("out.onnx").exists()
    assert not config.with_name("o").exists()


@pytest.mark.parametrize("state", BROKEN, ids=lambda state: state.__name__)
def test_a_damaged_installation_is_one_line(state: Callable[[Environment], str], environment: Environment) -> None:
    wanted = state(environment)
    assert line(environment.run(*COMMANDS["fcn"])).startswith(wanted)


def test_what_runs_no_model_works_without_a_runtime(environment: Environment) -> None:
    for words in (
        ["--version"],
        ["--help"],
        ["fcn", "--help"],
        ["explain"],
        ["inspect", LENET, "--json", "layers.json", "--html", "layers.html"],
        ["init", "some.toml"],
        ["fcn", LENET, "any.onnx", "--no-verify", "--report", "report.json"],
        ["separable", LENET, "smaller.onnx", "--tol", "0.5", "--no-verify"],
        ["fc-to-conv", LENET, "convs.onnx", "--no-verify"],
    ):
        done = environment.run(*words)
        assert done.returncode == 0, (words, done.stderr)
    assert (environment.folder / "any.onnx").is_file()


def test_a_model_is_not_blamed_for_a_missing_runtime(environment: Environment) -> None:
    """What shape inference holds against a model is a suspicion, and there is nobody to confirm it: it is not told
    that ONNX Runtime "cannot load" the file."""
    script = """
import sys, convrewrite as cr
from onnx import TensorProto, helper, numpy_helper
import numpy as np
x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 3, 8, 8]), ("y", None)))
weight = numpy_helper.from_array(np.ones((2, 4, 3, 3), np.float32), "w")
graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"])], "g", [x], [y], [weight])
cr.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]).SerializeToString())
"""
    done = environment.python_("-c", script)
    assert "ONNX Runtime" not in done.stderr, done.stderr


# Any one ------------------------------------------------------------------------------------------------------------

NAMES = """onnxruntime onnxruntime-gpu onnxruntime-directml onnxruntime-openvino onnxruntime-training onnxruntime-rocm
onnxruntime-migraphx onnxruntime-qnn onnxruntime-cann ort-nightly ort-nightly-gpu ort-nightly-directml""".split()


@pytest.mark.parametrize(
    "files", [("onnxruntime/__init__.py", "x.dist-info/RECORD"), None], ids=["record", "no-record"]
)
def test_every_distribution_is_known(
    files: Sequence[str] | None, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        environment.add(name, files=files)
    environment.add("onnxruntime-of-a-vendor")
    environment.add("onnxruntime-extensions", files=("onnxruntime_extensions/__init__.py",))
    environment.add("onnxruntime-genai", files=None)
    environment.add("onnxruntime-ep-openvino", files=("onnxruntime_ep_openvino/__init__.py",))
    monkeypatch.setattr(sys, "path", [str(environment.site)])
    assert sorted(distributions()) == sorted([*NAMES, "onnxruntime-of-a-vendor"])


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime-openvino", "ort-nightly"])
def test_whichever_is_installed_is_used(name: str, environment: Environment) -> None:
    environment.link_the_package()
    environment.add(name)
    done = environment.run("fcn", LENET, "out.onnx", "--report", "-")
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    assert f'"{name}": "1.30.0"' in done.stdout


def test_an_old_one_is_a_warning(environment: Environment) -> None:
    environment.link_the_package()
    environment.add("onnxruntime", "1.17.3")
    done = environment.run("fcn", LENET, "out.onnx")
    assert done.returncode == 0
    told = 'warning: onnxruntime 1.17.3 is older than 1.24, the oldest tested; run: pip install "onnxruntime>=1.24"'
    assert done.stderr.splitlines()[0] == told


def test_one_that_cannot_share_threads_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As 1.22 is; a session of it is opened all the same."""
    monkeypatch.setattr(runtime, "library", lambda: SimpleNamespace(__version__="1.22.0"))
    with pytest.raises(UsageError, match=r"ONNX Runtime 1\.22\.0 cannot time .*; install 1\.24 or later"):
        _share_threads(2)


def test_the_oldest_is_what_the_extras_ask_for() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    asked = re.findall(r'"onnxruntime(?:-gpu)?(?:\[[\w,]+\])?>=([\d.]+)', text)
    assert len(asked) == 4
    assert set(asked) == {".".join(map(str, OLDEST))}


# Two ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def two(environment: Environment) -> Environment:
    environment.link_the_package()
    environment.add("onnxruntime", "1.31.1")
    environment.add("onnxruntime-gpu", "1.31.1")
    return environment


TWO = (
    "warning: onnxruntime 1.31.1 and onnxruntime-gpu 1.31.1 are both installed and overwrite each other's files; the "
    "one that works is used; to have one alone, run: pip uninstall -y onnxruntime onnxruntime-gpu && pip install "
    "onnxruntime-gpu"
)


def test_two_are_one_warning(two: Environment) -> None:
    done = two.run("fcn", LENET, "out.onnx", "--report", "report.json")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[0] == TWO
    assert done.stderr.count("both installed") == 1
    told = (two.folder / "report.json").read_text()
    assert '"onnxruntime": "1.31.1"' in told
    assert '"onnxruntime-gpu": "1.31.1"' in told


def test_workers_do_not_repeat_the_warning(two: Environment) -> None:
    folder = two.folder
    for name in ("a", "b", "c"):
        shutil.copy(LENET, folder / f"{name}.onnx")
    (folder / "convrewrite.toml").write_text(
        'models = ["*.onnx"]\noutput = "o/{name}.onnx"\njobs = 2\n[[steps]]\npass = "fcn"\n'
    )
    done = two.run("run")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("both installed") == 1
    timed = two.run("bench", LENET, LENET, "--seconds", "0.05", "--verbose")
    assert timed.returncode == 0, timed.stderr
    assert timed.stderr.count("both installed") == 1


def test_quiet_is_quiet(two: Environment) -> None:
    done = two.run("fcn", LENET, "out.onnx", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")


def test_from_python_it_is_a_warning_of_python(two: Environment) -> None:
    script = "import sys, convrewrite as cr; m = cr.load(sys.argv[1]); cr.fcn(m); cr.fcn(m)"
    done = two.python_("-W", "always", "-c", script, LENET)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("InstallationWarning: onnxruntime 1.31.1 and onnxruntime-gpu 1.31.1") == 1
    strict = two.python_("-W", "error::UserWarning", "-c", script, LENET)
    assert "InstallationWarning" in strict.stderr.splitlines()[-1]


def test_two_are_the_error_where_the_provider_is_not_had(two: Environment) -> None:
    """The files of onnxruntime lie over those of onnxruntime-gpu: CUDA is not among the providers."""
    (two.site / "onnxruntime").unlink()
    (two.site / "onnxruntime").mkdir()
    for entry in REAL.iterdir():
        (two.site / "onnxruntime" / entry.name).symlink_to(entry)
    (two.site / "onnxruntime" / "__init__.py").unlink()
    text = (REAL / "__init__.py").read_text(encoding="utf-8")
    (two.site / "onnxruntime" / "__init__.py").write_text(
        f"{text}\ndef get_available_providers(): return ['CPUExecutionProvider']\n"
    )
    done = two.run("fcn", LENET, "out.onnx", "--provider", "cuda")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        TWO,
        "error: provider 'cuda' cannot be used here: onnxruntime 1.31.1 and onnxruntime-gpu 1.31.1 are both installed "
        "and overwrite each other's files; pip uninstall -y onnxruntime onnxruntime-gpu && pip install "
        '"convrewrite[cuda]", or use --provider cpu',
    ]
    assert two.run("fcn", LENET, "out.onnx", "--provider", "cpu").returncode == 0


def test_the_real_one_is_found() -> None:
    found = distributions()
    assert found
    for name, version in found.items():
        assert importlib.metadata.version(name) == version
    installed.check_installation()


def test_a_distribution_whose_metadata_is_damaged_counts_for_nothing(environment: Environment) -> None:
    environment.link_the_package()
    environment.add("onnxruntime")
    broken = environment.site / "onnxruntime_x-1.dist-info"
    broken.mkdir()
    (broken / "METADATA").write_bytes(b"\xff\xfe\0\0garbage")
    done = environment.run("--version", "-v")
    assert done.returncode == 0, done.stderr
    assert "(onnxruntime 1.30.0)" in done.stdout


@pytest.mark.parametrize("content", ["raise SystemExit(5)", "x = 1 / 0", ""])
def test_a_folder_of_that_name_in_the_way_is_named(environment: Environment, content: str) -> None:
    other = environment.site / "elsewhere"
    environment.add("onnxruntime")
    (environment.folder / "onnxruntime").mkdir()
    (environment.folder / "onnxruntime" / "__init__.py").write_text(content)
    other.mkdir()
    done = environment.run("verify", LENET, LENET)
    assert str(environment.folder / "onnxruntime") in line(done)
    assert "rename it" in done.stderr
    assert environment.run("--version", "-v").returncode == 0
