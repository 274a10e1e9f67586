"""What several tests share."""

import functools
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, init_default_scope

import eva_mm
from eva_mm.engine.dry_run import build_meta_optim_wrapper

ROOT = Path(__file__).resolve().parents[1]


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """||actual - expected|| / ||expected||."""
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).norm() / expected.norm().clamp(min=1e-12))


def load_config(name: str, scope: str = 'mmdet') -> Config:
    """Config of the checkout by name, with its modules imported and its scope set."""
    config = eva_mm.get_config(name)
    init_default_scope(scope)
    return config


@functools.lru_cache(maxsize=16)
def build_leaf(name: str, scope: str = 'mmdet') -> tuple[Config, torch.nn.Module, OptimWrapper]:
    """A leaf's config, its model at full size on the meta device, and its optimizer wrapper."""
    cfg = load_config(name, scope)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    return cfg, model, build_meta_optim_wrapper(cfg, model)


def rates_of_schedule(cfg: Config, rates: Sequence[float]) -> Iterator[list[float]]:
    """Learning rates of groups that start from ``rates``, at every step, without an end."""
    optimizer = torch.optim.SGD(
        [dict(params=[torch.nn.Parameter(torch.zeros(1))], lr=rate) for rate in rates]
    )
    schedulers = [
        PARAM_SCHEDULERS.build(s, default_args=dict(optimizer=optimizer))
        for s in cfg.param_scheduler
    ]
    while True:
        yield [group['lr'] for group in optimizer.param_groups]
        for scheduler in schedulers:
            scheduler.step()


def free_port() -> int:
    """A TCP port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def one_to_one(allowed: np.ndarray) -> bool:
    """Whether a square bool matrix holds a perfect matching of rows and columns."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import maximum_bipartite_matching

    matching = maximum_bipartite_matching(csr_matrix(allowed), perm_type='column')
    return bool((matching >= 0).all())


def detector_options(
    *,
    pad_size: tuple[int, int] = (128, 128),
    img_size: int = 128,
    patch_size: int = 16,
    embed_dim: int = 32,
    depth: int = 4,
    num_heads: int = 4,
    mlp_dim: int = 64,
    window_size: int = 4,
    global_block_indexes: tuple[int, ...] = (3,),
    channels: int = 16,
    fc_channels: int = 32,
    num_classes: int = 5,
) -> dict:
    """Options under ``model`` that shrink a leaf of the cascade detector; no type changes."""
    extractor = dict(out_channels=channels)
    return dict(
        data_preprocessor=dict(pad_size=pad_size),
        backbone=dict(
            img_size=img_size,
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_dim=mlp_dim,
            window_size=window_size,
            global_block_indexes=list(global_block_indexes),
            drop_path_rate=0.0,
        ),
        neck=dict(in_channels=embed_dim, out_channels=channels),
        rpn_head=dict(in_channels=channels, feat_channels=channels),
        roi_head=dict(
            bbox_roi_extractor=extractor,
            mask_roi_extractor=extractor,
            bbox_head=dict(
                in_channels=channels,
                conv_out_channels=channels,
                fc_out_channels=fc_channels,
                num_classes=num_classes,
            ),
            mask_head=dict(
                in_channels=channels, conv_out_channels=channels, num_classes=num_classes
            ),
        ),
    )


def shrink_detector(cfg: Config, **sizes) -> Config:
    """A leaf of the cascade detector at test size, in place. See :func:`detector_options`."""
    options = detector_options(**sizes)
    if cfg.model.roi_head.get('mask_head') is None:
        del options['roi_head']['mask_head'], options['roi_head']['mask_roi_extractor']
    cfg.model.backbone.pop('init_cfg', None)  # weights of the real size
    cfg.merge_from_dict(dict(model=options))
    num_classes = options['roi_head']['bbox_head']['num_classes']
    loss_cls = cfg.model.roi_head.bbox_head.loss_cls
    if loss_cls.type == 'FederatedLoss':
        loss_cls.update(
            num_classes=num_classes,
            num_sampled_classes=num_classes + 1,
            class_image_counts=list(range(1, num_classes + 1)),
        )
    return cfg
