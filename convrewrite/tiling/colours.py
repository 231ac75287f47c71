"""The two tables of colours of the maps that `apply` draws: one for classes, one for values.

They are matplotlib's "tab20" and "inferno" (by N. J. Smith and S. van der Walt), so that a picture looks as people are
used to; the library itself is 65 MB. Each entry of a table is red, green and blue in hexadecimal digits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def of_classes(classes: Array) -> Array:
    """Colours [..., 3] (uint8) of whole numbers [...]; each 20th has the same."""
    return np.take(CLASSES, classes % len(CLASSES), axis=0)


def of_values(values: Array) -> Array:
    """Colours [..., 3] (uint8) of values [...] from 0 (black) to 1 (pale yellow); what lies outside takes its end."""
    places: Array = np.clip(values * len(VALUES), 0, len(VALUES) - 1).astype(np.intp)
    return np.take(VALUES, places, axis=0)


def _table(digits: str) -> Array:
    return np.frombuffer(bytes.fromhex(digits), np.uint8).reshape(-1, 3)


CLASSES = _table("""
    1f77b4 aec7e8 ff7f0e ffbb78 2ca02c 98df8a d62728 ff9896 9467bd c5b0d5 8c564b c49c94 e377c2 f7b6d2 7f7f7f c7c7c7
    bcbd22 dbdb8d 17becf 9edae5
""")

VALUES = _table("""
    000003 000004 000006 010007 010109 01010b 02010e 020210 030212 040314 040316 050418 06041b 07051d 08061f 090621
    0a0723 0b0726 0d0828 0e082a 0f092d 10092f 120a32 130a34 140b36 160b39 170b3b 190b3e 1a0b40 1c0c43 1d0c45 1f0c47
    200c4a 220b4c 240b4e 260b50 270b52 290b54 2b0a56 2d0a58 2e0a5a 300a5c 32095d 34095f 350960 370961 390962 3b0964
    3c0965 3e0966 400966 410967 430a68 450a69 460a69 480b6a 4a0b6a 4b0c6b 4d0c6b 4f0d6c 500d6c 520e6c 530e6d 550f6d
    570f6d 58106d 5a116d 5b116e 5d126e 5f126e 60136e 62146e 63146e 65156e 66156e 68166e 6a176e 6b176e 6d186e 6e186e
    70196e 72196d 731a6d 751b6d 761b6d 781c6d 7a1c6d 7b1d6c 7d1d6c 7e1e6c 801f6b 811f6b 83206b 85206a 86216a 88216a
    892269 8b2269 8d2369 8e2468 902468 912567 932567 952666 962666 982765 992864 9b2864 9c2963 9e2963 a02a62 a12b61
    a32b61 a42c60 a62c5f a72d5f a92e5e ab2e5d ac2f5c ae305b af315b b1315a b23259 b43358 b53357 b73456 b83556 ba3655
    bb3754 bd3753 be3852 bf3951 c13a50 c23b4f c43c4e c53d4d c73e4c c83e4b c93f4a cb4049 cc4148 cd4247 cf4446 d04544
    d14643 d24742 d44841 d54940 d64a3f d74b3e d94d3d da4e3b db4f3a dc5039 dd5238 de5337 df5436 e05634 e25733 e35832
    e45a31 e55b30 e65c2e e65e2d e75f2c e8612b e9622a ea6428 eb6527 ec6726 ed6825 ed6a23 ee6c22 ef6d21 f06f1f f0701e
    f1721d f2741c f2751a f37719 f37918 f47a16 f57c15 f57e14 f68012 f68111 f78310 f7850e f8870d f8880c f88a0b f98c09
    f98e08 f99008 fa9107 fa9306 fa9506 fa9706 fb9906 fb9b06 fb9d06 fb9e07 fba007 fba208 fba40a fba60b fba80d fbaa0e
    fbac10 fbae12 fbb014 fbb116 fbb318 fbb51a fbb71c fbb91e fabb21 fabd23 fabf25 fac128 f9c32a f9c52c f9c72f f8c931
    f8cb34 f8cd37 f7cf3a f7d13c f6d33f f6d542 f5d745 f5d948 f4db4b f4dc4f f3de52 f3e056 f3e259 f2e45d f2e660 f1e864
    f1e968 f1eb6c f1ed70 f1ee74 f1f079 f1f27d f2f381 f2f485 f3f689 f4f78d f5f891 f6fa95 f7fb99 f9fc9d fafda0 fcfea4
""")
