"""Which part of a large image to keep."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from svimo_core.motion import Camera


class Box(NamedTuple):
    """A part of an image, whole pixels."""

    left: int
    top: int
    width: int
    height: int

    def cut(self, image: np.ndarray) -> np.ndarray:
        """This part of an image (H x W x ...)."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]

    def camera(self, camera: Camera) -> Camera:
        """The camera of the part, from the whole image's."""
        return Camera(
            fx=camera.fx,
            fy=camera.fy,
            cx=camera.cx - self.left,
            cy=camera.cy - self.top,
            width=self.width,
            height=self.height,
        )

    def contains(self, pixels: np.ndarray) -> np.ndarray:
        """Which pixels (... x 2) lie within, ... bool."""
        inside = (pixels >= (self.left, self.top)) & (
            pixels < (self.left + self.width, self.top + self.height)
        )
        return inside.all(axis=-1)


def crop_around(
    pixels: np.ndarray, image: tuple[int, int], least: tuple[int, int], margin: float = 0.1
) -> Box:
    """The part of an image around projected points, in the shape of `least` and no smaller.

    It has the points in its middle as far as the image's borders let it, and is the largest of its shape in the image
    where the points take up more.

    Args:
        pixels: ... x 2; what lies outside of the image counts as on its border.
        image: its width and height.
        least: width and height, of which the crop has the shape; where the image has room the crop is no smaller, so
            that a video of this size is never enlarged.
        margin: around the points, as a share of their extent on each side.
    """
    size, ratio = np.array(image), least[0] / least[1]
    flat = np.clip(pixels.reshape(-1, 2), 0, size)
    low, high = flat.min(axis=0), flat.max(axis=0)
    wanted = np.maximum((high - low) * (1 + 2 * margin), least)
    width = min(max(wanted[0], wanted[1] * ratio), size[0], size[1] * ratio)
    shape = np.minimum(np.rint([width, width / ratio]), size)
    corner = np.clip(np.rint((low + high - shape) / 2), 0, size - shape)
    return Box(*(int(value) for value in (*corner, *shape)))
