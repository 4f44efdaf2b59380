"""Write to scratch, publish by rename: a reader sees a whole artefact or none, whenever the process dies.

Scratch lies in `.scratch/`, outside DVC's outs, since DVC deletes the outs of a stage before it runs. It is keyed by a
fingerprint of everything that decides the result, so that work is resumed only by the run that would repeat it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import UserError
from stages.parts import ROOT

if TYPE_CHECKING:
    from torch import Tensor

SCRATCH = Path(".scratch")
LARGE = 2**20  # bytes from which a file is not read again while its time and size stay

_known: dict[tuple[int, ...], str] = {}  # digests of large files, by device, inode, size and time


def digest(path: Path) -> str:
    """Content hash of a file, or of a folder with the names in it. A process reads a large file once.

    Raises:
        UserError: nothing is there.
    """
    if path.is_dir():
        listed = [(f.relative_to(path).as_posix(), digest(f)) for f in sorted(path.rglob("*")) if f.is_file()]
        return hashlib.blake2b(json.dumps(listed).encode(), digest_size=16).hexdigest()
    try:
        with path.open("rb") as file:
            about = os.fstat(file.fileno())
            key = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns)
            if about.st_size < LARGE or key not in _known:
                _known[key] = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
            return _known[key]
    except FileNotFoundError:
        raise UserError("no such file", where=str(path), mend="run `dvc repro` for the stage that writes it") from None


def source_digest() -> str:
    """Content hash of the code of all stages: half-done work of other code is never taken up."""
    listed = [(f.relative_to(ROOT).as_posix(), digest(f)) for f in sorted((ROOT / "stages").rglob("*.py"))]
    return hashlib.blake2b(json.dumps(listed).encode(), digest_size=16).hexdigest()


def scratch(stage: str, config: dict[str, Any], inputs: dict[str, Path]) -> Path:
    """The folder in which a stage with this config and these inputs works, made or found half full."""
    with ThreadPoolExecutor() as pool:  # hashing lets other threads run
        digests = dict(zip(inputs, pool.map(digest, inputs.values()), strict=True))
    decides = {"config": config, "source": source_digest(), "inputs": digests}
    key = hashlib.blake2b(json.dumps(decides, sort_keys=True).encode(), digest_size=8).hexdigest()
    folder = SCRATCH / stage.replace("/", "-") / key
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def publish(made: Path, place: Path) -> None:
    """Move a finished file or folder to its place by rename; what stood there is replaced whole."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_dir():
        old = made.with_name(made.name + ".old")
        place.rename(old)
        made.rename(place)
        shutil.rmtree(old)
    else:
        os.replace(made, place)


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def save_tensors(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors and a few JSON facts as one safetensors file, whole or not at all."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    held = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    save_file(held, part, metadata={"facts": json.dumps(facts)})
    os.replace(part, path)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote.

    Raises:
        UserError: the file is corrupt.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return tensors, json.loads(file.metadata()["facts"])
    except (SafetensorError, OSError) as error:
        mend = "delete the file; the stage starts it anew"
        raise UserError(f"not a safetensors file: {error}", where=str(path), mend=mend) from error
