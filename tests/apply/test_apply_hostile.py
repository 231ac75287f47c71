"""`convrewrite apply` on images whose headers lie: exit 2, one line, bounded memory; SIGTERM ends what takes long."""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import subprocess
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_models import COMMAND, call
from processes import HANGS

from convrewrite.cli import supervisor
from convrewrite.errors import UsageError
from convrewrite.tiling.images import Source, find, settled


def zarr_v2(path: Path, shape: list[Any], chunks: list[Any]) -> None:
    path.mkdir()
    head = {"zarr_format": 2, "shape": shape, "chunks": chunks, "dtype": "|u1", "fill_value": 0}
    (path / ".zarray").write_text(json.dumps({**head, "compressor": None, "order": "C", "filters": None}))


def zarr_v3(path: Path, shape: list[Any], chunks: list[Any]) -> None:
    path.mkdir()
    head = {"zarr_format": 3, "node_type": "array", "shape": shape, "data_type": "uint8", "fill_value": 0}
    grid = {"name": "regular", "configuration": {"chunk_shape": chunks}}
    keys = {"name": "default", "configuration": {"separator": "/"}}
    more = {"chunk_grid": grid, "chunk_key_encoding": keys, "codecs": [{"name": "bytes"}], "attributes": {}}
    (path / "zarr.json").write_text(json.dumps({**head, **more}))


def tiff(path: Path, width: int, height: int, *, rows: int = 0, tile: int = 0, offset: int = 8, bits: int = 8) -> None:
    """A header, and 200 bytes in the place of what it tells of."""
    tags = {256: (4, width), 257: (4, height), 258: (3, bits), 259: (3, 1), 262: (3, 1), 277: (3, 1)}
    tags |= {322: (4, tile), 323: (4, tile), 324: (4, offset), 325: (4, 100)} if tile else {}
    tags |= {} if tile else {273: (4, offset), 278: (4, rows or height), 279: (4, 100)}
    entries = [
        struct.pack("<HHI", tag, kind, 1) + (struct.pack("<I", value) if kind == 4 else struct.pack("<HH", value, 0))
        for tag, (kind, value) in sorted(tags.items())
    ]
    ifd = struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", 0)
    path.write_bytes(b"II*\0" + struct.pack("<I", 208) + bytes(200) + ifd)


def png(path: Path, width: int, height: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def npy(path: Path, shape: tuple[int, ...]) -> None:
    head = repr({"descr": "|u1", "fortran_order": False, "shape": shape}).encode()
    head = head + b" " * (117 - len(head)) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + bytes(100))


HOSTILE: dict[str, Any] = {
    "big.zarr": lambda path: zarr_v2(path, [10**15, 10**15], [256, 256]),
    "line.zarr": lambda path: zarr_v3(path, [10**15, 40], [256, 40]),
    "chunk-big.zarr": lambda path: zarr_v3(path, [10**6, 10**6], [10**6, 10**6]),
    "chunk-0.zarr": lambda path: zarr_v2(path, [100, 100], [0, 10]),
    "chunk-negative.zarr": lambda path: zarr_v3(path, [100, 100], [-1, 10]),
    "negative.zarr": lambda path: zarr_v2(path, [-100, -100], [10, 10]),
    "zero.zarr": lambda path: zarr_v3(path, [0, 100], [10, 10]),
    "over.zarr": lambda path: zarr_v2(path, [2**63, 2**63], [10, 10]),
    "huge.zarr": lambda path: zarr_v3(path, [10**30, 100], [10, 10]),
    "fraction.zarr": lambda path: zarr_v2(path, [100.5, 100], [10, 10]),
    "text.zarr": lambda path: zarr_v2(path, ["a", 100], [10, 10]),
    "axes.zarr": lambda path: zarr_v3(path, [2] * 70, [1] * 70),
    "strip.tif": lambda path: tiff(path, 64, 2**31),
    "strips.tif": lambda path: tiff(path, 64, 2**31, rows=1),
    "all.tif": lambda path: tiff(path, 2**32 - 1, 2**32 - 1, rows=1),
    "tiles.tif": lambda path: tiff(path, 2**31, 2**31, tile=16),
    "tile-big.tif": lambda path: tiff(path, 4096, 4096, tile=2**31 - 16),
    "beyond.tif": lambda path: tiff(path, 64, 64, tile=64, offset=10**9),
    "empty.tif": lambda path: tiff(path, 0, 64),
    "flat.tif": lambda path: tiff(path, 64, 0),
    "bits.tif": lambda path: tiff(path, 64, 64, bits=60000),
    "bomb.png": lambda path: png(path, 2**31 - 1, 2**31 - 1),
    "large.png": lambda path: png(path, 90000, 90000),
    "empty.png": lambda path: png(path, 0, 5),
    "big.npy": lambda path: npy(path, (10**15, 100)),
    "empty.npy": lambda path: np.save(path, np.zeros((0, 5), np.uint8)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_header_that_lies_is_one_line(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    HOSTILE[name](tmp_path / name)
    monkeypatch.chdir(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code = call(monkeypatch, "apply", model, name, "o.zarr", "--workers", "1")
    told = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("<tifffile.")]
    assert code == 2, told
    assert len(told) == 1
    assert len(told[0]) < 600
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kB
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_long_name_is_one_line(
    model: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for words in (["x" * 5000, "o.zarr"], [model, "x" * 5000]):
        assert call(monkeypatch, "apply", model, *words) == 2
        assert len(capfd.readouterr().err.strip().splitlines()) == 1


def test_images_without_pixels_or_with_too_many() -> None:
    for shape in ((0, 5), (-3, -5), (2**31, 2**31)):
        with pytest.raises(UsageError, match="pixels"):
            settled(Source("x", "npy", "", shape, "uint8"), 2, 1)


def test_a_picture_is_held_against_the_memory(tmp_path: Path) -> None:
    png(tmp_path / "p.png", 1000, 1000)
    with pytest.raises(UsageError, match="is unpacked whole"):
        find(str(tmp_path / "p.png"), "", tmp_path, 999_999)


def test_sigterm_ends_apply(tmp_path: Path, model: str) -> None:
    """In the midst of an image of 10^11 pixels."""
    zarr_v3(tmp_path / "im.zarr", [10**6, 10**5], [512, 512])
    words = [*COMMAND, "apply", model, "im.zarr", "o.zarr", "--workers", "1", "--memory", "1GB"]
    with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, start_new_session=True) as process:
        deadline = time.monotonic() + HANGS
        while not (tmp_path / "o.zarr" / "zarr.json").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        begin = time.monotonic()
        process.terminate()
        assert process.wait(timeout=HANGS) in (143, -signal.SIGTERM)
        assert time.monotonic() - begin < 6 * supervisor.GRACE, "seconds, on a machine that does other things too"
        _wait_for_group(process.pid)


def _wait_for_group(group: int) -> None:
    """Workers go with the process that started them."""
    deadline = time.monotonic() + HANGS
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("workers are left")
