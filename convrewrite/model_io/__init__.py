"""Reading and writing ONNX files: weights stay in the file until a pass asks for one.

A file is mapped and only its skeleton parsed (`protofile`); the skeleton becomes a graphsurgeon graph (`protograph`)
whose constants know where their bytes lie. Saving streams untouched weights from file to file. What is written
appears whole or not at all, and the file that was read is never changed: where both have one path, the old file stays
readable until the process ends. (Windows does not replace a file that is mapped: there, choose another path.)
"""

from convrewrite.model_io.likeness import recognized
from convrewrite.model_io.model import Model, Origin
from convrewrite.model_io.reading import data_files, load
from convrewrite.model_io.writing import (
    Staged,
    content,
    content_sha256,
    copy_bytes,
    fingerprint,
    same_network,
    save,
    staged,
    to_bytes,
    write_stream,
)

__all__ = [
    "Model",
    "Origin",
    "Staged",
    "content",
    "content_sha256",
    "copy_bytes",
    "data_files",
    "fingerprint",
    "load",
    "recognized",
    "same_network",
    "save",
    "staged",
    "to_bytes",
    "write_stream",
]
