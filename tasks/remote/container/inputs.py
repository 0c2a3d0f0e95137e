"""The fixed inputs of the smoke test. A change of them makes every golden worthless: `inputs_sha256` is kept with these."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

QUERIES = (
    "what was the total revenue per quarter",
    "which page shows the red bar chart",
    "invoice number and date",
)
PAGES = 3


def pages() -> list[Any]:
    """Three pages as images, drawn by code: no fonts, no files, the same pixels everywhere.

    The last is tall, as paper is. Some families take an image in its own proportions and make another number of vectors of it.
    """
    from PIL import Image, ImageDraw

    made = []
    for number in range(PAGES):
        image = Image.new("RGB", (448, 632 if number == 2 else 448), (255, 255, 250 - 10 * number))
        draw = ImageDraw.Draw(image)
        for i in range(6 + number):
            x, height = 30 + 55 * i % 390, 40 + (i * 67 + number * 131) % 240
            colour = ((220, 30, 30), (30, 120, 40), (30, 60, 200))[(i * (number + 1)) % 3]
            if number == 1:
                draw.ellipse((x, 420 - height, x + 60, 480 - height), fill=colour)
            else:
                draw.rectangle((x, 430 - height, x + 30 + 6 * number, 430), fill=colour)
        for row in range(4 + 2 * number):
            line = (20, 20 + 14 * row, 200 + (row * 53 + number * 29) % 220, 20 + 14 * row)
            draw.line(line, fill=(20, 20, 20), width=3)
        made.append(image)
    return made


def inputs_sha256(images: Sequence[Any]) -> str:
    """The digest of the queries and of the images' pixels."""
    sha = hashlib.sha256("\n".join(QUERIES).encode())
    for image in images:
        sha.update(image.tobytes())
    return sha.hexdigest()
