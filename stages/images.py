"""Images in records and in memory: base64 of a PNG on disk, `[c,h,w]` in [-1, 1] in memory."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stages.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image


def encode(pixels: Tensor) -> str:
    """Base64 of the PNG of an image `[c,h,w]` in [-1, 1] (c = 1 grey, 3 colour), rounded to 8 bits.

    >>> pixels = torch.tensor([[[-1.0, 1.0]]])
    >>> decode(encode(pixels)).tolist()
    [[[-1.0, 1.0]]]
    """
    return encode_picture(picture(pixels))


def encode_picture(image: Image) -> str:
    """Base64 of the PNG of a picture."""
    out = io.BytesIO()
    image.save(out, format="PNG")
    return base64.b64encode(out.getvalue()).decode("ascii")


def decode(image: str) -> Tensor:
    """The image `[c,h,w]` in [-1, 1] of base64 of any picture file: c = 1 for grey ones, else 3.

    Raises:
        UserError: it is no picture.
    """
    opened = open_picture(image)
    grey = opened.mode in {"1", "L", "I;16", "LA"}
    values = torch.frombuffer(bytearray(opened.convert("L" if grey else "RGB").tobytes()), dtype=torch.uint8)
    shape = (opened.height, opened.width, 1 if grey else 3)
    return values.view(shape).permute(2, 0, 1).float() / 127.5 - 1


def open_picture(image: str) -> Image:
    """The picture of base64 of its file.

    Raises:
        UserError: it is no picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        opened = Image.open(io.BytesIO(base64.b64decode(image, validate=True)))
        opened.load()
        return opened
    except (binascii.Error, UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        what = f"not a picture: {str(error).splitlines()[0][:100]}"
        raise UserError(what, where="image", mend="give base64 of a PNG, JPEG or WebP file") from None


def picture(pixels: Tensor) -> Image:
    """An image `[c,h,w]` in [-1, 1] as a picture; what lies outside is clamped."""
    from PIL import Image

    values = ((pixels.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).cpu()
    return Image.fromarray(values.squeeze(-1).numpy() if values.shape[-1] == 1 else values.numpy())


def grid(rows: Sequence[Sequence[str]], *, side: int = 64, gap: int = 4) -> Image:
    """One picture of rows of images, each drawn `side` pixels high without smoothing; an empty name leaves a gap."""
    from PIL import Image

    width = max(map(len, rows), default=0)
    sheet = Image.new("RGB", (width * (side + gap) + gap, len(rows) * (side + gap) + gap), "lightgrey")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            if image:
                tile = open_picture(image).convert("RGB").resize((side, side), Image.Resampling.NEAREST)
                sheet.paste(tile, (gap + x * (side + gap), gap + y * (side + gap)))
    return sheet


def pack(values: Tensor) -> str:
    """Base64 of a tensor's float32 values; its shape is kept beside it by whoever reads it."""
    return base64.b64encode(values.detach().float().cpu().contiguous().numpy().tobytes()).decode("ascii")


def unpack(packed: str, shape: Sequence[int]) -> Tensor:
    """What `pack` packed, `-1` in the shape for what follows from the length.

    >>> unpack(pack(torch.tensor([[1.0, 2.0]])), (-1, 2)).tolist()
    [[1.0, 2.0]]
    """
    return torch.frombuffer(bytearray(base64.b64decode(packed)), dtype=torch.float32).view(*shape).clone()
