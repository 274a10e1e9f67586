"""Transforms of clips where mmaction2's differ from the published ones.

Source: EVA-01/video/datasets/{build,pipeline}.py, https://github.com/baaivision/EVA. Images of a
clip are (H, W, 3) uint8 RGB arrays.
"""

import cv2
import numpy as np
import torch
from mmaction.registry import TRANSFORMS
from mmcv.transforms import BaseTransform

from eva_mm.engine.unreadable import BrokenImageError

CLIPS = ('random', 'even')


@TRANSFORMS.register_module()
class SampleSegments(BaseTransform):
    """Choose one frame of each of as many equal segments as a clip has frames.

    A random frame of segments of ``floor(n / num_frames)`` frames; of a video of n < num_frames
    frames, frames ``round(i * n / num_frames)``, those beyond the end counted from the start
    again. With ``clips='even'`` nothing is random: clip k of K takes frames
    ``floor((i + (k + 0.5) / K) * n / num_frames)``, so that a single clip takes the middles.

    Args:
        num_frames: of a clip.
        num_clips: K. The published multi-view test draws its four at random, so that its result
            varies with the seed; 'even' is ours.
        clips: 'random' or 'even'.

    Raises:
        ValueError: a number below 1, or another word.
    """

    def __init__(self, num_frames: int, num_clips: int = 1, clips: str = 'random'):
        if num_frames < 1 or num_clips < 1 or clips not in CLIPS:
            raise ValueError(
                f'num_frames and num_clips should be 1 or more and clips one of {CLIPS}, got '
                f'{num_frames}, {num_clips} and {clips!r}'
            )
        self.num_frames = num_frames
        self.num_clips = num_clips
        self.clips = clips

    def _random(self, total: int) -> np.ndarray:
        steps = np.arange(self.num_frames)
        length = total // self.num_frames
        if length:
            return steps * length + np.random.randint(length, size=self.num_frames)
        return np.around(steps * (total / self.num_frames)).astype(int) % total

    def _even(self, total: int, number: int) -> np.ndarray:
        places = np.arange(self.num_frames) + (number + 0.5) / self.num_clips
        return (places * (total / self.num_frames)).astype(int)

    def transform(self, results: dict) -> dict:
        """Read ``total_frames``; set ``frame_inds``, ``clip_len`` and ``num_clips``.

        Raises:
            UnreadableFileError: the video has no frames.
        """
        total = results['total_frames']
        if total < 1:
            raise BrokenImageError(f'video without frames: {results.get("filename")}')
        draw = self._even if self.clips == 'even' else lambda total, _: self._random(total)
        chosen = np.concatenate([draw(total, number) for number in range(self.num_clips)])
        results['frame_inds'] = (chosen + results.get('start_index', 0)).astype(np.int32)
        results['clip_len'] = self.num_frames
        results['num_clips'] = self.num_clips
        results['frame_interval'] = None
        return results


def shift_hue(image: np.ndarray, shift: float) -> np.ndarray:
    """Turn the colours of an image.

    torchvision's ``adjust_hue`` of tensors within one grey level, several times faster.

    Args:
        image: (H, W, 3), uint8 RGB.
        shift: in turns.

    Returns:
        A new image like it.
    """
    hsv = cv2.cvtColor(np.ascontiguousarray(image, dtype=np.float32) / 255, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + 360 * shift) % 360
    # As torchvision turns floats into bytes: cut, not rounded.
    return (cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * (256 - 1e-3)).clip(0, 255).astype(np.uint8)


@TRANSFORMS.register_module()
class ColorJitterPerFrame(BaseTransform):
    """torchvision's ``ColorJitter``, each frame of a clip with parameters of its own.

    The published jitter is decided per clip and drawn per frame: ``RandomApply`` around this.
    mmaction2's ``TorchVisionWrapper`` alone changes all frames alike. What is drawn, and in which
    order, is torchvision's for one frame after the other.

    Args:
        **kwargs: ``brightness``, ``contrast``, ``saturation`` and ``hue``, as torchvision's.
    """

    def __init__(self, **kwargs):
        from torchvision.transforms import ColorJitter
        from torchvision.transforms import functional as F

        self.jitter = ColorJitter(**kwargs)
        # In the order by which torchvision numbers them; hue, the last one, is ours.
        self.changes = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)

    def transform(self, results: dict) -> dict:
        """Change ``imgs``, a list of uint8 RGB arrays (H, W, 3)."""
        results['imgs'] = [self._change(image) for image in results['imgs']]
        return results

    def _change(self, image: np.ndarray) -> np.ndarray:
        jitter = self.jitter
        order, *factors = jitter.get_params(
            jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue
        )
        for place in order.tolist():
            factor = factors[place]
            if factor is None:
                continue
            if place == len(self.changes):
                image = shift_hue(image, factor)
            else:
                tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
                image = self.changes[place](tensor, factor).permute(1, 2, 0).numpy()
        return image

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.jitter})'
