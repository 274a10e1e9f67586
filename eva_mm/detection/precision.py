"""Detection heads in fp32, whatever precision the backbone runs in."""

import functools
from collections.abc import Callable

import torch


def heads_in_fp32(method: Callable) -> Callable:
    """Decorate ``method(self, features, ...)`` to see fp32 features and to run without autocast.

    Published training computes the backbone and the pyramid in half precision and everything
    after them in fp32 (EVA-01/det/detectron2/modeling/meta_arch/rcnn.py).
    """

    @functools.wraps(method)
    def in_fp32(self, features, *args, **kwargs):
        features = tuple(level.float() for level in features)
        with torch.autocast(features[0].device.type, enabled=False):
            return method(self, features, *args, **kwargs)

    return in_fp32
