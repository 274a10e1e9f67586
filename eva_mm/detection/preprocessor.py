"""Batches of a fixed size, in training and in testing."""

import torch.nn.functional as F
from mmdet.models import DetDataPreprocessor
from mmdet.registry import MODELS


@MODELS.register_module()
class FixedSizeDetDataPreprocessor(DetDataPreprocessor):
    """Normalises images, then pads them right and below with zeros to one fixed size.

    Stock batches are padded to the largest image instead, which changes what the windows and the
    relative positions of the ViT see. ``img_shape`` stays the size before padding, and boxes are
    clipped to it.

    Args:
        pad_size: (height, width) in pixels of every batch.
        **kwargs: see :class:`mmdet.models.DetDataPreprocessor`.

    Raises:
        ValueError: an image is larger than ``pad_size``.
    """

    def __init__(self, pad_size: tuple[int, int] = (1280, 1280), **kwargs):
        super().__init__(**kwargs)
        self.pad_size = tuple(pad_size)

    def _get_pad_shape(self, data: dict) -> list[tuple[int, int]]:
        return [self.pad_size] * len(data['inputs'])

    def forward(self, data: dict, training: bool = False) -> dict:
        """See the base class; ``inputs`` becomes (B, 3, *pad_size), float32."""
        for index, image in enumerate(data['inputs']):
            if image.shape[-2] > self.pad_size[0] or image.shape[-1] > self.pad_size[1]:
                sample = (data.get('data_samples') or [None] * (index + 1))[index]
                raise ValueError(
                    f'image {getattr(sample, "img_path", index)} of {tuple(image.shape[-2:])} '
                    f'pixels does not fit into pad_size={self.pad_size}; resize it in the pipeline'
                )
        data = super().forward(data, training)
        h, w = data['inputs'].shape[-2:]
        pad_h, pad_w = self.pad_size
        data['inputs'] = F.pad(data['inputs'], (0, pad_w - w, 0, pad_h - h))
        for sample in data['data_samples'] or []:
            sample.set_metainfo(dict(batch_input_shape=self.pad_size))
        return data
