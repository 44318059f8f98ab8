"""Tokenizers from before `tokenizer.json`: a list of tokens and one of merges, which transformers makes one of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.data.tokenizer import CONFIG_FILE, LibraryTokenizer, _named
from zoo.errors import DataError
from zoo.extras import require

OLD = ("vocab.json", "merges.txt", CONFIG_FILE)
"""The files; the last one says of which kind the tokenizer is."""


def old_tokenizer(folder: Path, place: str) -> LibraryTokenizer:
    """The tokenizer that the files in a folder describe, as transformers reads them; no code from there is run.

    Args:
        place: what errors call the model or the data.

    Raises:
        DataError: they describe no tokenizer.
        MissingExtraError: transformers is not installed.
    """
    transformers: Any = require("transformers", "verify", f"{place}: a tokenizer without tokenizer.json")
    try:
        found = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        library = found.backend_tokenizer
    except Exception as error:  # whatever files of another kind make the library say
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DataError(f"{place}: tokenizer: {', '.join(OLD)} in {folder} describe none: {reason}") from None
    return LibraryTokenizer(library, _named(folder / CONFIG_FILE))


__all__ = ["OLD", "old_tokenizer"]
