"""The one place that makes ONNX Runtime sessions.

    open_session(path, provider="cuda")  ->  Session that runs on CUDA, or UsageError with the cause and the remedy

ONNX Runtime falls back to the CPU where a provider does not load, rounds to TF32 on CUDA, and prints. All of that is
settled here. `onnxruntime` is imported when the first session is opened.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import functools
import importlib
import io
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from convrewrite.errors import ConvrewriteError, UsageError
from convrewrite.running import installed
from convrewrite.running.unloadable import refuse_missing, unloadable
from convrewrite.system.board import doing, mine
from convrewrite.system.leftovers import shown
from convrewrite.system.spelling import spelled
from convrewrite.text import as_line, counted, parameter

PROVIDERS = ("auto", "cpu", "cuda", "tensorrt")
"""The providers that can be asked for. "auto" is CUDA where a session really gets it, else the CPU."""

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_log_is_shown = contextvars.ContextVar("log_is_shown", default=False)

_ORT_NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
_DTYPES = {"float": "float32", "double": "float64"} | {
    name: name for name in "float16 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool".split()
}

_OF_DEVICE = re.compile(
    r"(cuda|cudnn|cublas)\w* (failure|error)|allocate memory|out of memory|bad_alloc", re.IGNORECASE
)

Array = np.ndarray[Any, Any]


class RunFailed(ConvrewriteError):
    """A session was made, but running it failed: shapes that do not fit, an operator that gave up."""

    exit_code = 2


class DeviceFailed(RunFailed):
    """It failed for want of memory, or since the provider died: that says nothing of the model."""


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a session.

    Attributes:
        name: of the tensor. shape: numbers where known, a name or None where not.
        dtype: numpy type; object for strings, sequences, maps and types that numpy lacks.
        kind: ONNX Runtime's own word for the type, such as "tensor(float)".
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]
    kind: str


@dataclass(frozen=True)
class Session:
    """A model that is ready to run.

    Attributes:
        label: what to call the model in messages. provider: what the session got: "cpu", "cuda" or "tensorrt".
        inputs: without initializers. outputs: in the model's order.
        tf32: whether float32 factors may be rounded to 10 bits; always False on the CPU.
        placement: operators by the provider that runs them, before fusion; {} where ONNX Runtime (< 1.24) does not say.
    """

    label: str
    provider: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    _raw: Any
    tf32: bool = False
    placement: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def nodes(self) -> dict[str, int]:
        """The number of nodes that each provider runs."""
        return {provider: len(ops) for provider, ops in self.placement.items()}

    @property
    def warning(self) -> str:
        """A line on the nodes that fell to the CPU although another provider runs the rest; empty where none did."""
        fallen = self.placement.get("cpu", ())
        if self.provider == "cpu" or not fallen:
            return ""
        ops = ", ".join(op if n == 1 else f"{n} {op}" for op, n in sorted(Counter(fallen).items()))
        nodes = f"{len(fallen)} of the {counted(sum(self.nodes.values()), 'node')} of {self.label}"
        return f"{nodes} run on the CPU, not on {self.provider}: {ops}"

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Run once; `outputs` picks some by name. Raises RunFailed with one line."""
        names = self._names(outputs)
        with self._failing(), doing(f"running {self.label} in ONNX Runtime"):
            return dict(zip(names, self._raw.run(names, dict(feeds)), strict=True))

    def bind(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> BoundRun:
        """Copy the inputs to the device once; `outputs` (all by default) will stay there. Raises RunFailed."""
        device = "cpu" if self.provider == "cpu" else "cuda"
        names = self._names(outputs)
        mine().activity = f"running {self.label} in ONNX Runtime"  # what is timed must not note it
        with self._failing():
            binding = self._raw.io_binding()
            values = {
                name: library().OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), device, 0)
                for name, array in feeds.items()
            }
            for name, value in values.items():
                binding.bind_ortvalue_input(name, value)
            for name in names:
                binding.bind_output(name, device, 0)
        return BoundRun(self, names, binding, values)

    def end_profile(self) -> Path:
        """Close the profile that `open_session(profile=...)` began; the JSON file that holds it."""
        return Path(self._raw.end_profiling())

    def _names(self, outputs: Sequence[str] | None) -> tuple[str, ...]:
        return tuple(info.name for info in self.outputs) if outputs is None else tuple(outputs)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Turn whatever ONNX Runtime raises (its classes share no base but Exception) into RunFailed."""
        try:
            yield
        except Exception as error:
            kind = DeviceFailed if _OF_DEVICE.search(str(error)) else RunFailed
            raise kind(f"ONNX Runtime failed while running {self.label}: {one_line(error)}") from None


@dataclass(frozen=True)
class BoundRun:
    """A model bound to inputs and outputs on its device: a run copies nothing, so what is timed is the model alone."""

    session: Session
    names: tuple[str, ...]
    _binding: Any
    _inputs: Mapping[str, Any]

    def run(self) -> None:
        """Run once and wait until the device is done. Raises RunFailed."""
        with self.session._failing():
            self.session._raw.run_with_iobinding(self._binding)
            self._binding.synchronize_outputs()

    def outputs(self) -> dict[str, Array]:
        """Copies of the outputs of the last run."""
        with self.session._failing():
            values = self._binding.copy_outputs_to_cpu()
        return {name: np.array(value) for name, value in zip(self.names, values, strict=True)}


def open_session(
    source: str | Path | bytes,
    provider: str = "cpu",
    optimize: bool = True,
    threads: int | None = None,
    tf32: bool = False,
    *,
    label: str | None = None,
    data_folder: Path | None = None,
    verbose: bool | None = None,
    shared_threads: bool = False,
    profile: str | Path | None = None,
) -> Session:
    """Make a session, on the provider that was asked for or not at all.

    Args:
        source: path of the model; bytes only where it has none (standard input, a temporary variant).
        provider: one of PROVIDERS.
        optimize: all graph optimizations of ONNX Runtime, or none.
        threads: of the CPU inside an operator; None leaves it to ONNX Runtime.
        tf32: let CUDA round float32 factors to 10 bits (its own default, and faster).
        label: name of the model in messages. data_folder: where the external data of a model in bytes lies.
        verbose: let ONNX Runtime's own log through; None does as `log_shown` says.
        shared_threads: use the process-wide pool (`onnxruntime.set_global_thread_pool_sizes`).
        profile: prefix of the file that the time of every node goes to, until `Session.end_profile`.
    """
    if provider not in PROVIDERS:
        raise UsageError(f"unknown provider '{provider}'", remedy=f"choose one of {', '.join(PROVIDERS)}")
    label = label or ("the model" if isinstance(source, bytes) else shown(source))
    verbose = _log_is_shown.get() if verbose is None else verbose
    ort = library()
    wanted = _usable(ort, provider)
    options, levels = ort.SessionOptions(), ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    options.log_severity_level = 2 if verbose else 4
    if shared_threads:  # which ONNX Runtime below 1.23 cannot
        options.use_per_session_threads = False
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.intra_op_num_threads = threads or 0
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    refuse_missing(label, source)

    def make(names: Sequence[str]) -> Any:
        requested = [(_ORT_NAMES[name], _provider_options(name, tf32)) for name in names]
        quiet = contextlib.nullcontext() if verbose else _silenced(ort)
        with quiet, doing(f"loading {label} in ONNX Runtime"), spelled(source, data_folder) as (given, folder):
            if folder is not None:
                options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
            return ort.InferenceSession(given, options, providers=requested, enable_fallback=0)

    try:
        raw = make(wanted)
    except Exception as error:
        if wanted == ["cpu"]:
            raise unloadable(label, source, one_line(error)) from None
        try:
            raw = make(["cpu"])  # the model loads there: then it is the provider that failed
        except Exception:
            raise unloadable(label, source, one_line(error)) from None
        if provider != "auto":
            raise _not_obtained(ort, provider, one_line(error)) from None
    obtained = [name for name, ort_name in _ORT_NAMES.items() if ort_name in raw.get_providers()]
    if provider in ("cuda", "tensorrt") and provider not in obtained:
        raise _not_obtained(ort, provider)
    got = next(name for name in ("tensorrt", "cuda", "cpu") if name in obtained)
    inputs, outputs = _infos(raw.get_inputs()), _infos(raw.get_outputs())
    rounds = os.environ.get("NVIDIA_TF32_OVERRIDE") != "0" if got == "tensorrt" else tf32 and got == "cuda"
    return Session(label, got, inputs, outputs, _raw=raw, tf32=rounds, placement=_placement(raw))


@contextlib.contextmanager
def log_shown(shown: bool = True) -> Iterator[None]:
    """Let ONNX Runtime's own log through for all sessions that are opened inside."""
    token = _log_is_shown.set(shown)
    try:
        yield
    finally:
        _log_is_shown.reset(token)


def one_line(error: BaseException | str) -> str:
    """What ONNX Runtime says, without its prefixes and source positions, on one line of reasonable length."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", as_line(error))
    text = re.sub(r"^Load model from .*? failed:|\bThis is an invalid model\. |\bType Error: ", "", text)
    text = re.sub(r"\S*/onnxruntime/\S+:\d+ (?:\S+ )*?\S+\([^)]*\) ?", "", text)
    return text if len(text) <= 300 else text[:297] + "..."


@functools.cache
def library() -> ModuleType:
    """ONNX Runtime, of whichever distribution is installed. Raises RuntimeMissing where it cannot be imported."""
    try:
        found = importlib.import_module("onnxruntime")
    except (Exception, SystemExit) as error:  # of damaged files: ImportError, AttributeError, OSError
        absent = isinstance(error, ModuleNotFoundError) and error.name == "onnxruntime"
        raise installed.missing(installed.distributions(), "" if absent else one_line(error)) from None
    if not hasattr(found, "InferenceSession"):  # a folder of that name, without the files
        raise installed.missing(installed.distributions())
    return found


@functools.cache
def _preloaded() -> None:
    """Load CUDA libraries that came as Python packages (best effort: what is missing shows when a session is made)."""
    ort = library()
    if hasattr(ort, "preload_dlls"):
        with _quiet(), contextlib.suppress(Exception):
            ort.preload_dlls()


def _usable(ort: ModuleType, provider: str) -> list[str]:
    """The providers to ask ONNX Runtime for, best first."""
    built_in = ort.get_available_providers()
    if provider in ("cuda", "tensorrt") and _ORT_NAMES[provider] not in built_in:
        raise _not_obtained(ort, provider)
    if provider == "cpu" or (provider == "auto" and _ORT_NAMES["cuda"] not in built_in):
        return ["cpu"]
    _preloaded()
    return ["tensorrt", "cuda", "cpu"] if provider == "tensorrt" else ["cuda", "cpu"]


def _provider_options(name: str, tf32: bool) -> dict[str, str]:
    """Options of one provider; TF32 is stated either way. (TensorRT follows the variable of NVIDIA's libraries.)"""
    if name == "tensorrt" and not tf32:
        os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
    return {"use_tf32": "1" if tf32 else "0"} if name == "cuda" else {}


def _placement(raw: Any) -> dict[str, tuple[str, ...]]:
    """The operators that each provider was given."""
    names = {ort_name: name for name, ort_name in _ORT_NAMES.items()}
    found: dict[str, list[str]] = {}
    with contextlib.suppress(Exception):  # not there below ONNX Runtime 1.24
        for part in raw.get_provider_graph_assignment_info():
            found.setdefault(names.get(part.ep_name, part.ep_name), []).extend(n.op_type for n in part.get_nodes())
    return {name: tuple(ops) for name, ops in found.items()}


def _not_obtained(ort: ModuleType, provider: str, cause: str = "") -> UsageError:
    """The error for a provider that was asked for; finds the cause by loading the library itself."""
    found, wanted = installed.distributions(), '"convrewrite[cuda]"'
    install = f"pip install {wanted}"
    if _ORT_NAMES[provider] not in ort.get_available_providers():
        cause = installed.clash(found) or "the installed ONNX Runtime was built without it"
        install = installed.one_of(found, wanted)
    else:
        cause = _not_loaded(ort, provider) or cause or "no usable NVIDIA GPU was found"
        if (missing := _load_error(_DRIVER)) and _DRIVER not in cause:
            cause += f", and there is no NVIDIA driver ({missing})"
    more = " and TensorRT" if provider == "tensorrt" else ""
    remedy = f"{install}{more}, or use {parameter('provider', 'cpu')}"
    return UsageError(f"provider '{provider}' cannot be used here: {cause}", remedy=remedy)


def _not_loaded(ort: ModuleType, provider: str) -> str:
    """Which library kept a provider from loading; empty where that was not the cause."""
    cause = ""
    for library in (Path(str(ort.__file__)).parent / "capi").glob(f"*onnxruntime_providers_{provider}.*"):
        text = _load_error(str(library))
        if text and "undefined symbol" not in text:  # the library itself was found; it wants ONNX Runtime around it
            cause = f"it did not load ({text})"
    return cause


def _load_error(library: str) -> str:
    """What the system says when it loads a library; empty where it loads."""
    try:
        with _quiet():
            ctypes.CDLL(library)
    except OSError as error:
        return one_line(error)
    return ""


def _infos(arguments: Sequence[Any]) -> tuple[TensorInfo, ...]:
    """Read the description of a session's inputs or outputs."""
    return tuple(TensorInfo(a.name, _dtype(a.type), tuple(a.shape or ()), a.type) for a in arguments)


def _dtype(kind: str) -> np.dtype[Any]:
    """Numpy type for ONNX Runtime's "tensor(float)" and its like."""
    match = re.fullmatch(r"tensor\((\w+)\)", kind)
    return np.dtype(_DTYPES.get(match[1], "object") if match else "object")


@contextlib.contextmanager
def _silenced(ort: ModuleType) -> Iterator[None]:
    """Keep the process-wide logger quiet as well: a provider that does not load is reported there."""
    ort.set_default_logger_severity(4)
    try:
        with _quiet():
            yield
    finally:
        ort.set_default_logger_severity(2)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what ONNX Runtime's Python side prints: standard output may carry a model."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
