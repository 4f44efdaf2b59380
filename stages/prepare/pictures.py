"""Pictures in a row of a data set: bytes, a Hugging Face image, or base64, checked by opening them."""

from __future__ import annotations

import base64
import binascii
import io
from typing import Any

from stages.images import encode_picture
from stages.prepare.values import Fault

KEPT = {"PNG", "JPEG", "WEBP"}  # formats that stay as they came


def drawn(value: Any, field: str) -> str:
    """Base64 of a picture file: as it came if it is a PNG, JPEG or WebP, else as a PNG."""
    from PIL import Image

    raw = _bytes(value, field)
    try:
        with Image.open(io.BytesIO(raw)) as opened:
            opened.load()
            if opened.format in KEPT:
                return base64.b64encode(raw).decode("ascii")
            return encode_picture(opened.convert("L" if opened.mode in {"1", "L"} else "RGB"))
    except Exception:  # Pillow raises a dozen types for a broken file
        raise Fault("not a picture that can be opened", field) from None


def shown(image: str, score: float | None = None) -> dict:
    """An image that came with the data."""
    return {"image": image, "score": score}


def _bytes(value: Any, field: str) -> bytes:
    """The file's bytes: parquet gives them bare or as `{bytes, path}`, JSON as base64, perhaps a data URL."""
    if isinstance(value, dict):
        value = value.get("bytes")
    if value is None:
        raise Fault("missing", field)
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise Fault("wrong type", field)
    text = value.partition(";base64,")[2] if value.startswith("data:") else value
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise Fault("neither bytes nor base64", field) from None
