"""Leaves of the segmentor at test size, through options a user could type; no type changes."""

from mmengine.config import Config

from ..helpers import load_config

WIDTH, NUM_CLASSES, CROP = 32, 5, 64


def small_sizes(num_classes: int = NUM_CLASSES) -> dict:
    """Options under ``model``: narrow layers, crops of 64 px and few classes."""
    attention = dict(embed_dims=WIDTH, num_heads=4)
    layer = dict(
        self_attn_cfg=attention, ffn_cfg=dict(embed_dims=WIDTH, feedforward_channels=WIDTH)
    )
    sine = dict(num_feats=WIDTH // 2)
    return dict(
        data_preprocessor=dict(size=(CROP, CROP)),
        backbone=dict(
            img_size=CROP,
            embed_dim=WIDTH,
            depth=4,
            num_heads=4,
            mlp_dim=2 * WIDTH,
            drop_path_rate=0.0,
            stem_channels=8,
            deform_num_heads=4,
            interaction_indexes=[[0, 0], [1, 1], [2, 2], [3, 3]],
        ),
        decode_head=dict(
            in_channels=[WIDTH] * 4,
            feat_channels=WIDTH,
            out_channels=WIDTH,
            num_classes=num_classes,
            num_queries=8,
            pixel_decoder=dict(
                encoder=dict(num_layers=2, layer_cfg=layer), positional_encoding=sine
            ),
            positional_encoding=sine,
            transformer_decoder=dict(num_layers=2, layer_cfg=dict(layer, cross_attn_cfg=attention)),
            loss_cls=dict(class_weight=[1.0] * num_classes + [0.1]),
            train_cfg=dict(num_points=64),
        ),
        test_cfg=dict(crop_size=(CROP, CROP), stride=(32, 32)),
    )


def shrink_segmentor(cfg: Config, num_classes: int = NUM_CLASSES) -> Config:
    """A leaf at test size, in place; see :func:`small_sizes`."""
    cfg.model.backbone.pop('init_cfg', None)  # weights of the real size
    cfg.merge_from_dict(dict(model=small_sizes(num_classes)))
    return cfg


def dotted(node: dict, path: str) -> list[str]:
    """Nested options as they are typed: ``model.backbone.depth=4``."""
    words = []
    for key, value in node.items():
        if isinstance(value, dict):
            words += dotted(value, f'{path}.{key}')
        else:
            words.append(f'{path}.{key}={value}'.replace(' ', '').replace("'", ''))
    return words


def shrunk_leaf(name: str, **options) -> Config:
    """A leaf by name; see :func:`shrink_segmentor`."""
    return shrink_segmentor(load_config(name, 'mmseg'), **options)
