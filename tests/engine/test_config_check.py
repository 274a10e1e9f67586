"""Misspelt keys, spent variables and other options without effect; our configs are silent."""

import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope

import eva_mm
from eva_mm.engine.config_check import accepted_arguments, check_config, check_options

pytest.importorskip('mmdet')
CONFIGS = [name for name in eva_mm.list_configs() if '_base_' not in name]


@pytest.fixture
def cfg():
    init_default_scope('mmdet')
    return eva_mm.get_config('lvis/eva_cascade')


@pytest.mark.parametrize('name', CONFIGS)
def test_shipped_configs_are_silent(name):
    assert check_config(eva_mm.get_config(name)) == []


@pytest.mark.parametrize(
    'name',
    [
        'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
        'dino/dino-4scale_r50_8xb2-12e_coco.py',
        'retinanet/retinanet_r50_fpn_1x_coco.py',
        'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
    ],
)
def test_mmdets_own_configs_are_silent(name, tmp_path):
    leaf = tmp_path / 'leaf.py'
    leaf.write_text(f"_base_ = 'mmdet::{name}'\n")
    assert check_config(Config.fromfile(leaf)) == []


@pytest.mark.parametrize(
    ('key', 'near'),
    [
        ('model.backbone.drop_path_rat', 'drop_path_rate'),
        ('model.backbone.embed_dims', 'embed_dim'),  # an argument of a base class
        ('model.roi_head.bbox_head.num_clases', 'num_classes'),
        ('model.roi_head.bbox_head.loss_cls.num_sampled_class', 'num_sampled_classes'),
        ('model.test_cfg.rcnn.score_th', 'score_thr'),
        ('model.test_cfg.rcnn.nms.iou_treshold', 'iou_threshold'),
        ('model.train_cfg.rpn.sampler.pos_fractions', 'pos_fraction'),
        ('optim_wrapper.optimizer.weigth_decay', 'weight_decay'),
        ('optim_wrapper.paramwise_cfg.layer_decays', 'layer_decay'),
        ('train_cfg.max_iter', 'max_iters'),
        ('train_dataloader.batchsize', 'batch_size'),
        ('train_dataloader.sampler.repeat_threshold', 'repeat_thr'),
        ('train_dataloader.sampler.colour', None),
        ('train_dataloader.dataset.skip_unreadble', 'skip_unreadable'),
        ('train_dataloader.dataset.filter_cfg.filter_empty', 'filter_empty_gt'),
        ('val_evaluator.max_det', 'max_dets'),
        ('default_hooks.checkpoint.max_keep_ckpt', 'max_keep_ckpts'),
        ('param_schedulers', 'param_scheduler'),
        ('optim_wraper', 'optim_wrapper'),
    ],
)
def test_misspelt_keys(cfg, key, near):
    cfg.merge_from_dict({key: 1})
    (warning,) = check_config(cfg)
    assert key.rpartition('.')[2] in warning
    if near:
        assert warning.endswith(f"'{near}'?")
    else:
        assert 'it takes' in warning


@pytest.mark.parametrize(
    ('key', 'meant'),
    [
        ('optim_wrapper.optimizer.weigth_decay', 'optim_wrapper.optimizer.weight_decay'),
        ('optm_wrapper.optimizer.lr', 'optim_wrapper.optimizer.lr'),
        ('param_scheduler.1.milestone', 'param_scheduler.1.milestones'),
        ('train_dataloader.batch_size', None),
        ('model.backbone.init_cfg.checkpoint', None),
    ],
)
def test_misspelt_options(cfg, key, meant):
    warnings = check_options(cfg, {key: 1})
    assert [w.split('; ')[1] for w in warnings] == ([f'{meant}?'] if meant else [])


def test_a_variable_that_the_config_alone_uses():
    cfg = eva_mm.get_config('demo/pretrain')
    (warning,) = check_options(cfg, {'data_root': 'elsewhere/', 'load_from': None})
    assert warning.startswith('--cfg-options data_root changes nothing')
    (place,) = [w for w in warning.split() if w.startswith('train_dataloader')]
    node = cfg
    for part in place.rstrip(',').split('.'):
        node = node[int(part)] if part.isdigit() else node[part]
    assert node.startswith(cfg.data_root)


def test_a_variable_that_is_read_later():
    cfg = eva_mm.get_config('coco/eva_cascade_finetune')
    assert check_options(cfg, {'data_root': 'elsewhere', 'own_data.epochs': 3}) == []


@pytest.mark.parametrize(
    ('name', 'length', 'told'),
    [
        ('lvis/eva_cascade', 70000, '75,000'),
        ('lvis/eva_cascade', 80000, None),  # the last step stays the last
        ('imagenet/eva_g_in1k_336', 25020, None),
        ('imagenet/eva_g_in1k_336', 25021, '25,020'),
        ('imagenet/eva_g_in1k_336', 100, '25,020'),
        ('imagenet/eva_g_finetune', 100, None),  # fits its schedule to it
    ],
)
def test_a_length_without_its_schedule(name, length, told):
    warnings = check_options(eva_mm.get_config(name), {'train_cfg.max_iters': length})
    assert [told in w for w in warnings] == ([True] if told else [])


def test_entries_of_lists_are_named_by_their_number(cfg):
    cfg.param_scheduler[1].gama = 0.5
    cfg.train_dataloader.dataset.pipeline[3].ratio_ranges = (1, 2)
    first, second = sorted(check_config(cfg))
    assert 'param_scheduler[1].gama' in first
    assert "'gamma'" in first
    assert 'train_dataloader.dataset.pipeline[3].ratio_ranges' in second


def test_variables_of_the_user_are_fine(cfg):
    cfg.merge_from_dict(dict(image_size=3, my_classes=('a',), num_gpus=8, albu_transforms=[]))
    assert check_config(cfg) == []


def test_keyword_arguments_are_followed_to_the_bases():
    class Base:
        def __init__(self, a, b=1): ...

    class Middle(Base):
        pass

    class Child(Middle):
        def __init__(self, c, **kwargs): ...

    class Open(Child):
        def __init__(self, *args, d=0, **kwargs): ...

    class Swallows:
        def __init__(self, e, **kwargs): ...

    assert accepted_arguments(Open) == ({'a', 'b', 'c', 'd'}, True)
    assert accepted_arguments(Swallows) == ({'e'}, False)
    assert accepted_arguments(lambda x, *, y: None) == ({'x', 'y'}, True)
