"""Image-text contrastive training of a CLIP model, for teachers that one makes oneself.

Model, tokeniser and loss are open_clip's; a checkpoint of this model is one of
``open_clip.model.CLIP``. For CLIP at scale use open_clip's own trainer.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.dist import get_dist_info
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS, TRANSFORMS
from open_clip import SimpleTokenizer
from open_clip.loss import ClipLoss
from open_clip.model import CLIP
from torch import Tensor

from eva_mm.engine.image_data import ImageDataset, PathList
from eva_mm.engine.strict_loading import StrictLoading
from eva_mm.errors import InputError, MissingFileError

# Highest value of the learnt temperature's inverse (CLIP, arXiv 2103.00020, section 2.5).
_MAX_LOGIT_SCALE = math.log(100)


@DATASETS.register_module()
class CaptionedImages(ImageDataset):
    """Images with a sentence each, from a table as open_clip's trainer reads it.

    Samples are those of :class:`~eva_mm.engine.image_data.ImageDataset` with ``caption``, a
    string.

    Args:
        data_root: folder of the table and of what its paths are relative to.
        ann_file: the table, below ``data_root``: a first line that names the columns, then a line
            per image, columns separated by tabs.
        image_column, caption_column: names of the columns (open_clip's ``--csv-img-key`` and
            ``--csv-caption-key``).
        **kwargs: see :class:`~eva_mm.engine.image_data.ImageDataset`.

    Raises:
        InputError: the table is not there, is empty, lacks a column or has a line without a path
            or a caption.
    """

    def __init__(
        self,
        data_root: str,
        ann_file: str,
        image_column: str = 'filepath',
        caption_column: str = 'title',
        **kwargs: Any,
    ) -> None:
        self.columns = (image_column, caption_column)
        self.captions: list[str] = []
        super().__init__(data_root, ann_file, **kwargs)

    def load_lists(self, data_root: str, ann_file: str) -> list[PathList]:
        """Read paths and captions; see the class."""
        rows = _read_table(os.path.join(data_root, ann_file), self.columns)
        self.captions = [caption for _, caption in rows]
        names = b''.join(os.fsencode(name) + b'\n' for name, _ in rows)
        return [PathList(data_root, names)]

    def get_data_info(self, idx: int) -> dict:
        """``img_path`` and ``caption`` of an image."""
        return dict(super().get_data_info(idx), caption=self.captions[idx])


def _read_table(path: str, columns: Sequence[str]) -> list[tuple[str, str]]:
    try:
        with open(path, newline='', encoding='utf-8') as file:
            reader = csv.DictReader(file, delimiter='\t')
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise InputError(
                    f'{path}: no column {missing[0]!r}, the first line names {reader.fieldnames}; '
                    'expected names separated by tabs'
                )
            rows = [(reader.line_num, *(row[name] for name in columns)) for row in reader]
    except FileNotFoundError as error:
        raise MissingFileError(f'caption table not found: {path} (check ann_file)') from error
    except UnicodeDecodeError as error:
        raise InputError(f'{path} is no text in UTF-8: {error}') from error
    for number, name, caption in rows:
        if not name or not caption:
            raise InputError(f'{path}, line {number}: expected a path, a tab and a caption')
    if not rows:
        raise InputError(f'{path} lists no images')
    return [(name, caption) for _, name, caption in rows]


@TRANSFORMS.register_module()
class TokenizeCaption:
    """Turns ``caption`` into ``text``, the tokens of CLIP's own vocabulary: int64 (L,).

    Args:
        context_length: tokens L; longer captions are cut, as open_clip does.
    """

    def __init__(self, context_length: int = 77) -> None:
        self.tokenizer = SimpleTokenizer(context_length=context_length)

    def __call__(self, results: dict) -> dict:
        """Replace the caption."""
        results = dict(results)
        results['text'] = self.tokenizer(results.pop('caption'))[0]
        return results


@MODELS.register_module()
class ContrastiveCLIP(StrictLoading, CLIP, BaseModel):
    """open_clip's CLIP with its contrastive loss over the batches of all processes.

    Args:
        embed_dim: width of the joint space.
        vision_cfg, text_cfg: arguments of open_clip's ``CLIPVisionCfg`` and ``CLIPTextCfg``.
        data_preprocessor: config of one that normalises ``image``.
        init_cfg: of mmengine's ``BaseModule``.
        **kwargs: see :class:`open_clip.model.CLIP` and
            :class:`~eva_mm.engine.strict_loading.StrictLoading`.
    """

    def __init__(
        self,
        embed_dim: int,
        vision_cfg: Mapping[str, Any],
        text_cfg: Mapping[str, Any],
        data_preprocessor: Mapping[str, Any] | None = None,
        init_cfg: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            embed_dim=embed_dim, vision_cfg=dict(vision_cfg), text_cfg=dict(text_cfg), **kwargs
        )
        # open_clip's constructor calls that of BaseModel, without its arguments.
        self.init_cfg = init_cfg
        if data_preprocessor is not None:
            self.data_preprocessor = MODELS.build(data_preprocessor)

    def forward(self, image: Tensor, text: Tensor, mode: str = 'tensor') -> Any:
        """Dispatch as mmengine's loops ask.

        Args:
            image: (B, 3, H, W), normalised.
            text: (B, L) int64 tokens.
            mode: 'loss', 'predict' or 'tensor'.

        Returns:
            'loss': ``dict(loss=...)``. 'predict': per pair ``image_feature`` and ``text_feature``
            (embed_dim,), of length 1, and ``text``. 'tensor': both features, (B, embed_dim) each.
        """
        if mode == 'loss':
            with torch.no_grad():
                self.logit_scale.clamp_(0, _MAX_LOGIT_SCALE)
        features = self.encode_image(image, normalize=True), self.encode_text(text, normalize=True)
        if mode == 'tensor':
            return features
        features = tuple(feature.float() for feature in features)
        if mode == 'predict':
            names = ('image_feature', 'text_feature', 'text')
            return [dict(zip(names, row)) for row in zip(*(t.cpu() for t in (*features, text)))]
        return dict(loss=self._contrast(*features))

    def _contrast(self, image: Tensor, text: Tensor) -> Tensor:
        """Mean over the batch of all processes, once DDP has averaged the gradients."""
        rank, world_size = get_dist_info()
        loss = ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=world_size)
        with torch.autocast(image.device.type, enabled=False):
            return loss(image, text, self.logit_scale.exp())


@METRICS.register_module()
class RetrievalMetric(BaseMetric):
    """Share of images (texts) whose most similar text (image) of the data set is their own, in %.

    Pairs of the same tokens count as one another's. Gives ``image_to_text`` and
    ``text_to_image``.
    """

    default_prefix = 'retrieval'

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Keep the features of a batch."""
        self.results += data_samples

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Compare every image with every text."""
        image, text, tokens = (
            torch.stack([result[key] for result in results])
            for key in ('image_feature', 'text_feature', 'text')
        )
        similarity = image @ text.T
        shares = {
            'image_to_text': (tokens[similarity.argmax(1)] == tokens).all(1),
            'text_to_image': (tokens[similarity.argmax(0)] == tokens).all(1),
        }
        return {name: 100 * share.float().mean().item() for name, share in shares.items()}
