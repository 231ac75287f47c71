"""Files whose names are not UTF-8, for libraries that take no other names.

POSIX file names are bytes; Python holds those that are no UTF-8 with surrogates, which ONNX Runtime does not take. Such
a model is handed over as bytes, and the folder that its external data lies in under the name of a link to it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def spelled(source: str | Path | bytes, folder: Path | None) -> Iterator[tuple[str | bytes, str | None]]:
    """A model and the folder of its external data, in names that are UTF-8; they hold as long as the context does.

    Args:
        source: path of a model, or its bytes. folder: of the external data; None is that of the path.
    """
    if not isinstance(source, bytes):
        if _is_utf8(source):
            yield str(source), None if folder is None else str(folder)
            return
        folder = folder or Path(source).absolute().parent
        source = Path(source).read_bytes()
    if folder is None or _is_utf8(folder):
        yield source, None if folder is None else str(folder)
        return
    with tempfile.TemporaryDirectory(prefix="convrewrite-") as place:
        link = os.path.join(place, "folder")
        os.symlink(folder.absolute(), link, target_is_directory=True)
        yield source, link


def _is_utf8(path: str | Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True
