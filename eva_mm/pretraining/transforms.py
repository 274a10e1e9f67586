"""One crop of an image, for the student and, where it sees another size, for the teacher.

Transforms take a sample with a PIL image under ``image``; :class:`PackImage` comes last.
"""

from __future__ import annotations

import torch
from mmengine.registry import TRANSFORMS
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as F  # noqa: N812

_BICUBIC = InterpolationMode.BICUBIC


@TRANSFORMS.register_module()
class TwoViewCrop:
    """Random flip, then one random crop, resized to the student's and to the teacher's size.

    The crop is torchvision's: ten tries, then the largest central one. Source: arXiv 2211.07636,
    appendix; github.com/baaivision/EVA, EVA-01/eva/{datasets,transforms}.py, where both sizes are
    224 and the two images therefore the same.

    Args:
        size: side of ``image``, in pixels.
        teacher_size: side of ``teacher_image``, which is added only if it is another one.
        scale: bounds of the crop's area, as a share of the image.
        ratio: bounds of width over height of the crop.
        flip_prob: of the horizontal flip.
    """

    def __init__(
        self,
        size: int = 224,
        teacher_size: int | None = None,
        scale: tuple[float, float] = (0.2, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip_prob: float = 0.5,
    ) -> None:
        self.size = size
        self.teacher_size = size if teacher_size is None else teacher_size
        self.scale = scale
        self.ratio = ratio
        self.flip_prob = flip_prob

    def __call__(self, results: dict) -> dict:
        """Replace ``image``, add ``teacher_image`` if needed."""
        image = results['image']
        if torch.rand(1) < self.flip_prob:
            image = F.hflip(image)
        box = RandomResizedCrop.get_params(image, self.scale, self.ratio)
        results['image'] = _crop(image, box, self.size)
        if self.teacher_size != self.size:
            results['teacher_image'] = _crop(image, box, self.teacher_size)
        return results


def _crop(image: Image.Image, box: tuple[int, int, int, int], size: int) -> Image.Image:
    """Part (top, left, height, width) of an image as a square of ``size`` pixels."""
    return F.resized_crop(image, *box, [size, size], _BICUBIC)


@TRANSFORMS.register_module()
class ResizeCenterCrop:
    """Shorter side to ``resize`` pixels, bicubic; then the central square: for validation.

    Args:
        size: side of ``image``, in pixels.
        resize: shorter side before the crop.
        teacher_size: side of ``teacher_image``, which is added only if it is another one; it
            shows the same part of the photo.
    """

    def __init__(self, size: int = 224, resize: int = 256, teacher_size: int | None = None) -> None:
        self.size = size
        self.resize = resize
        self.teacher_size = size if teacher_size is None else teacher_size

    def __call__(self, results: dict) -> dict:
        """Replace ``image``, add ``teacher_image`` if needed."""
        image = results['image']
        results['image'] = self._square(image, self.size)
        if self.teacher_size != self.size:
            results['teacher_image'] = self._square(image, self.teacher_size)
        return results

    def _square(self, image: Image.Image, size: int) -> Image.Image:
        shorter = round(self.resize * size / self.size)
        return F.center_crop(F.resize(image, shorter, _BICUBIC), [size, size])


@TRANSFORMS.register_module()
class PackImage:
    """PIL images under ``image`` and ``teacher_image`` to uint8 tensors, (3, height, width) RGB."""

    def __call__(self, results: dict) -> dict:
        """Convert the images of a sample."""
        for key in ('image', 'teacher_image'):
            if key in results:
                results[key] = F.pil_to_tensor(results[key])
        return results
