"""What general compressors make of a text, to compare a language model with."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Any

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "zlib": lambda content: zlib.compress(content, 9),
    "bz2": lambda content: bz2.compress(content, 9),
    "lzma": lambda content: lzma.compress(content, preset=9 | lzma.PRESET_EXTREME),
}
LARGEST = 2**24
"""How many bytes of text are compressed at most, which takes lzma some twenty seconds."""


def references(data: Any, split: Any) -> dict[str, float]:
    """The bits for each byte of a part that compressors need, which were given the training part before.

    That is by how much the compressed training part grows when the part is put behind it, one text after another with a
    line break behind each; as for a model, which pays for the end of each text, the line breaks cost something and are no
    bytes of the texts. Unlike a model, a compressor also knows the texts of the part that stand before.

    Args:
        data: data of texts in memory; of a stream or of very much text nothing is said.
    """
    if not hasattr(data.split("train"), "__len__"):
        return {}
    known, new = (_joined(data, name) for name in ("train", split))
    size = sum(len(text.encode("utf-8")) for text in data.texts(split))
    if len(known) + len(new) > LARGEST or size == 0:
        return {}
    return {
        f"{name}_bits_per_byte": 8 * (len(compress(known + new)) - len(compress(known))) / size
        for name, compress in COMPRESSORS.items()
    }


def _joined(data: Any, split: Any) -> bytes:
    return b"".join(text.encode("utf-8") + b"\n" for text in data.texts(split))
