"""C sources of this folder, compiled by the machine's own compiler when they are first needed.

That takes half a second once: what comes out is kept in the user's cache folder (`$XDG_CACHE_HOME/zoo`, else `~/.cache/zoo`),
under a name made from all sources, the options, the compiler and torch's version. Without a compiler, or where anything goes
wrong, there is nothing, and the caller takes torch's operators instead.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import mmap
import os
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from zoo.kernel.switch import COMPILED

LIMIT = 60  # seconds
PAGE = 2**21  # bytes of a large page
_FEATURES = {"-mavx512bf16": "avx512_bf16", "-mamx-tile": "amx_tile", "-mamx-bf16": "amx_bf16"}
log = logging.getLogger(__name__)


@lru_cache
def library(name: str, *options: str) -> ctypes.CDLL | None:
    """The functions of `name`.c in this folder; None where there is no way to have them.

    Args:
        options: the compiler's, for what it needs of the processor, which must have all of it.

    Their threads are those of torch: two kinds of them in one process would wait for each other.
    """
    compiler, threads = shutil.which("gcc"), _threads()
    needed = {_FEATURES.get(option, option.removeprefix("-m")) for option in options}
    if not COMPILED or compiler is None or threads is None or not needed <= _features():
        return None
    try:
        sources = {file.name: file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.c"))}  # one may include others
        command = [compiler, "-std=gnu11", "-O3", "-fPIC", "-shared", "-fopenmp", *options]
        key = hashlib.sha256(repr((sources, command, threads, torch.__version__)).encode()).hexdigest()[:16]
        cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "zoo"
        known = cache / f"{name}-{key}.so"
        found = _load(known) if _ours(known) else None
        return _compile(command, name, sources, threads, known) if found is None else found
    except (OSError, subprocess.SubprocessError) as error:
        log.debug("%s.c is not used: %s", name, error)
        return None


def _compile(command: list[str], name: str, sources: dict[str, bytes], threads: str, known: Path) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as scratch:
        for file, text in sources.items():
            Path(scratch, file).write_bytes(text)
        made = Path(scratch, known.name)
        # The threads' own library stands first, so that the compiler's is not needed.
        command = [*command, str(Path(scratch, f"{name}.c")), "-Wl,--as-needed", threads, "-lm", "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, timeout=LIMIT)
        _keep(made, known)
        return ctypes.CDLL(str(made))


def _load(file: Path) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(file))
    except OSError:  # half a file, or of another machine
        return None


@lru_cache
def _features() -> frozenset[str]:
    """What the processor can do, in the system's words."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # another system than Linux
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def _threads() -> str | None:
    """The file of the OpenMP library (GNU's) that torch has loaded into this process."""
    try:
        files = [line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libgomp" in line]
    except OSError:  # another system than Linux
        return None
    return files[0] if files else None


def _ours(file: Path) -> bool:
    """Whether a file is there that nobody but this user can have written."""
    try:
        found, folder = file.stat(), file.parent.stat()
    except OSError:
        return False
    return all(each.st_uid == os.getuid() and not each.st_mode & 0o022 for each in (found, folder))


def _keep(made: Path, known: Path) -> None:
    """Puts the file into the cache, whole or not at all; where it may not, the next process compiles again."""
    try:
        known.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=known.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(made.read_bytes())
        os.replace(name, known)
    except OSError as error:
        log.debug("%s is not kept: %s", known.name, error)


def memory(size: int) -> Tensor:
    """So many bytes, as bfloat16 numbers, in large pages as far as they fill them: reading 340 MB in small ones takes a fifth
    more time.
    """
    if size < PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size // 2, dtype=torch.bfloat16)
    space = mmap.mmap(-1, size + PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # what is shared gets small pages only
    start = -torch.frombuffer(space, dtype=torch.uint8).data_ptr() % PAGE
    space.madvise(mmap.MADV_HUGEPAGE, start, size // PAGE * PAGE)
    return torch.frombuffer(space, dtype=torch.bfloat16, offset=start, count=size // 2)
