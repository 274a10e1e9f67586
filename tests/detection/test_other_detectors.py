"""EVA under stock mmdet detectors: the examples of docs/plug_in.md train on demo data."""

from __future__ import annotations

import json

import pytest
import torch
from mmengine.config import Config

from eva_mm.demo import generate_lvis
from eva_mm.engine import launch
from eva_mm.engine.layer_decay import param_group_table

from ..test_docs import ROOT, code_blocks

PAGE = ROOT / 'docs' / 'plug_in.md'
DETECTORS = ('faster_rcnn', 'mask_rcnn', 'retinanet', 'atss', 'deformable_detr', 'dino')
SIDE = 128
BACKBONE = dict(
    size='tiny',
    img_size=SIDE,
    embed_dim=32,
    depth=2,
    num_heads=4,
    mlp_dim=64,
    window_size=4,
    global_block_indexes=[1],
)


def examples() -> dict[str, str]:
    """Detector -> its config in the page."""
    found = {}
    for language, code in code_blocks(PAGE.read_text()):
        if language == 'python' and code.startswith("_base_ = 'mmdet::"):
            found[code.split('::')[1].split('/')[0]] = code
    return found


def learning_rates() -> str:
    """The page's optimizer, which each of the examples is completed with."""
    (code,) = (c for _, c in code_blocks(PAGE.read_text()) if c.startswith('optim_wrapper ='))
    return code


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    return generate_lvis(tmp_path_factory.mktemp('demo') / 'lvis', num_train=6, num_val=6)


def set_everywhere(node, key, value) -> None:
    """Set a key wherever it is, at any depth."""
    for name, child in node.items() if isinstance(node, dict) else enumerate(node):
        if name == key:
            node[name] = value
        elif isinstance(child, (dict, list)):
            set_everywhere(child, key, value)


def pipeline(with_mask: bool) -> list[dict]:
    return [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=with_mask),
        # No multiple of 32, so that the padding is needed.
        dict(type='Resize', scale=(SIDE - 12, SIDE - 12), keep_ratio=True),
        dict(
            type='PackDetInputs',
            meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
        ),
    ]


def shrink(cfg: Config, demo) -> None:
    """Three updates of two demo images each, at test size, at the full learning rate."""
    names = json.loads((demo / 'annotations' / 'instances_val2017.json').read_text())['categories']
    model = cfg.model
    model.backbone.update(BACKBONE)
    model.neck.in_channels = BACKBONE['embed_dim']
    set_everywhere(model, 'num_classes', len(names))
    if 'rpn_head' in model:
        model.train_cfg.rpn_proposal.max_per_img = model.test_cfg.rpn.max_per_img = 60
        model.train_cfg.rcnn.sampler.num = 32
        model.roi_head.bbox_head.fc_out_channels = 64
    if 'num_queries' in model:
        model.num_queries = 60  # DINO picks its queries of 340 positions
    split = dict(
        data_root=f'{demo}/',
        metainfo=dict(classes=tuple(entry['name'] for entry in names)),
        pipeline=pipeline('mask_head' in model.get('roi_head', {})),
        indices=6,
    )
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loader.dataset.update(split)
    cfg.train_cfg.max_epochs = 1
    cfg.param_scheduler = []
    cfg.val_dataloader = cfg.val_evaluator = cfg.val_cfg = None
    cfg.test_evaluator.ann_file = f'{demo}/annotations/instances_val2017.json'
    cfg.default_hooks.logger.interval = 1


def test_the_page_shows_all_six():
    assert sorted(examples()) == sorted(DETECTORS)


@pytest.mark.slow
@pytest.mark.parametrize('detector', DETECTORS)
def test_example_trains_and_predicts(detector, demo, tmp_path):
    file = tmp_path / f'{detector}.py'
    file.write_text(examples()[detector] + learning_rates())
    cfg = launch.prepare_train_config(str(file), work_dir=str(tmp_path / 'work'))
    layer_decay, rate = cfg.optim_wrapper.paramwise_cfg.layer_decay, cfg.optim_wrapper.optimizer.lr
    shrink(cfg, demo)
    torch.manual_seed(0)
    runner = launch.build_runner(cfg)
    before = {name: p.detach().clone() for name, p in runner.model.named_parameters()}
    runner.train()

    history = runner.message_hub.log_scalars
    losses = {name: scalar for name, scalar in history.items() if 'loss' in name}
    assert {f'train/{name}' for name in ('loss', 'loss_cls', 'loss_bbox')} <= set(losses)
    for name, scalar in losses.items():
        values, _ = scalar.data
        assert len(values) == 3
        assert torch.tensor(values).isfinite().all(), name

    parameters = dict(runner.model.named_parameters())
    still = [n for n, p in parameters.items() if p.requires_grad and torch.equal(p, before[n])]
    assert [name for name in still if name.startswith(('backbone.', 'neck.'))] == []

    rows = param_group_table(runner.optim_wrapper)
    rates = {row.name: row.lr for row in rows}
    assert sorted(rates) == sorted(n for n, p in parameters.items() if p.requires_grad)
    assert len(rows) == len(rates)
    depth = BACKBONE['depth']
    for name, value in rates.items():
        below = depth + 1
        if name.startswith(('backbone.patch_embed', 'backbone.pos_embed')):
            below = 0
        elif name.startswith('backbone.blocks.'):
            below = int(name.split('.')[2]) + 1
        assert value == pytest.approx(rate * layer_decay ** (depth + 1 - below)), name

    with torch.no_grad():
        results = runner.model.eval().test_step(
            next(iter(runner.build_dataloader(cfg.test_dataloader)))
        )
    assert len(results) == 2
    for sample in results:
        found = sample.pred_instances
        height, width = sample.ori_shape
        assert found.bboxes.isfinite().all()
        assert (found.bboxes <= torch.tensor([width, height] * 2) + 1e-3).all()
        assert len(found.bboxes) == len(found.scores) == len(found.labels)
        if 'mask_head' in cfg.model.get('roi_head', {}):
            assert found.masks.shape == (len(found), height, width)
