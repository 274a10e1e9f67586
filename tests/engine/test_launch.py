"""What the tools do before a Runner is there."""

import re

import pytest
from mmengine.config import Config

from eva_mm.engine import launch
from tests.toy_task import config_text, make_data


@pytest.fixture
def config(tmp_path):
    make_data(tmp_path / 'data')
    path = tmp_path / 'configs' / 'toy' / 'small.py'
    path.parent.mkdir(parents=True)
    path.write_text(config_text(tmp_path / 'data'))
    return str(path)


@pytest.mark.parametrize(
    ('path', 'work_dir'),
    [
        ('configs/lvis/eva_cascade.py', 'work_dirs/lvis/eva_cascade'),
        ('/a/configs/b/configs/demo/lvis.py', 'work_dirs/demo/lvis'),
        ('/a/mine/run.v2.py', 'work_dirs/mine/run.v2'),
    ],
)
def test_default_work_dir(path, work_dir):
    assert launch.default_work_dir(path) == work_dir


def test_near_names_of_a_config_that_is_not_there(config):
    with pytest.raises(launch.UsageError, match=r'smll\.py not found; near: .*toy/small\.py'):
        launch.find_config(config.replace('small', 'smll'))


def test_command_line_precedes_the_config(config):
    cfg = launch.prepare_train_config(
        config, {'train_cfg.max_iters': 7, 'work_dir': 'a'}, work_dir='b', launcher='pytorch'
    )
    assert (cfg.train_cfg.max_iters, cfg.work_dir, cfg.launcher) == (7, 'b', 'pytorch')
    assert launch.prepare_train_config(config, {'work_dir': 'a'}).work_dir == 'a'
    assert launch.prepare_train_config(config).work_dir == 'work_dirs/toy/small'


@pytest.mark.parametrize('before', ['OptimWrapper', 'AmpOptimWrapper', 'BF16OptimWrapper'])
@pytest.mark.parametrize(
    ('device', 'bf16', 'after'),
    [
        ('cpu', False, dict(type='BF16OptimWrapper', on_cpu=True)),
        ('cuda', True, dict(type='BF16OptimWrapper', on_cpu=False)),
        ('cuda', False, dict(type='AmpOptimWrapper', dtype='float16', loss_scale='dynamic')),
    ],
)
def test_amp_takes_the_best_of_the_device(monkeypatch, config, before, device, bf16, after):
    monkeypatch.setattr(launch, 'get_device', lambda: device)
    monkeypatch.setattr(launch, 'gpu_has_bf16', lambda: bf16)
    cfg = launch.load_config(config)
    cfg.optim_wrapper.type = before
    if before == 'AmpOptimWrapper':
        cfg.optim_wrapper.update(dtype='float16', loss_scale=512.0)
    launch.enable_amp(cfg)
    keys = ('type', 'dtype', 'loss_scale', 'on_cpu')
    assert {k: cfg.optim_wrapper[k] for k in keys if k in cfg.optim_wrapper} == after


def test_amp_needs_a_plain_wrapper(config):
    cfg = launch.load_config(config, {'optim_wrapper.type': 'ApexOptimWrapper'})
    with pytest.raises(launch.UsageError, match='got ApexOptimWrapper'):
        launch.enable_amp(cfg)


@pytest.mark.parametrize(
    ('device', 'bf16', 'dtype', 'after'),
    [
        ('cpu', False, 'bfloat16', ('OptimWrapper', None)),
        ('cuda', False, 'bfloat16', ('AmpOptimWrapper', 'float16')),
        ('cuda', True, 'bfloat16', ('AmpOptimWrapper', 'bfloat16')),
        ('cuda', False, 'float16', ('AmpOptimWrapper', 'float16')),
    ],
)
def test_precision_falls_back_to_what_the_device_has(
    monkeypatch, config, device, bf16, dtype, after
):
    monkeypatch.setattr(launch, 'get_device', lambda: device)
    monkeypatch.setattr(launch, 'gpu_has_bf16', lambda: bf16)
    cfg = launch.load_config(
        config, {'optim_wrapper.type': 'AmpOptimWrapper', 'optim_wrapper.dtype': dtype}
    )
    launch.fit_precision(cfg)
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.get('dtype')) == after


def test_auto_scaling_needs_the_published_batch(config):
    cfg = launch.load_config(config)
    launch.enable_auto_scale_lr(cfg, images=8)
    assert cfg.auto_scale_lr.enable
    cfg.pop('auto_scale_lr')
    with pytest.raises(launch.UsageError, match=r'base_batch_size, which .*small\.py lacks'):
        launch.enable_auto_scale_lr(cfg, images=8)


@pytest.mark.parametrize(
    ('hook', 'after'),
    [
        (
            'DetVisualizationHook',
            dict(draw=True, show=True, wait_time=1, test_out_dir='d'),
        ),
        ('VisualizationHook', dict(enable=True, show=True, wait_time=1, out_dir='d')),
        ('SegVisualizationHook', dict(draw=True, show=True, wait_time=1)),
    ],
)
def test_drawing_by_each_host(hook, after):
    hooks = dict(visualization=dict(type=hook))
    cfg = Config(dict(default_hooks=hooks, visualizer=dict(type='Visualizer')))
    launch.enable_drawing(cfg, True, 'd', 1)
    assert cfg.default_hooks.visualization == dict(type=hook, **after)
    assert cfg.visualizer.get('save_dir') == ('d' if hook.startswith('Seg') else None)


def test_tta_wraps_the_model_and_reads_by_its_pipeline():
    inner = dict(type='Images', pipeline=['plain'])
    cfg = Config(
        dict(
            model=dict(type='Detector'),
            tta_model=dict(type='TTA', merge='mean'),
            tta_pipeline=['views'],
            test_dataloader=dict(dataset=dict(type='Repeat', dataset=inner)),
        )
    )
    launch.enable_tta(cfg)
    assert cfg.model == dict(type='TTA', merge='mean', module=dict(type='Detector'))
    assert cfg.test_dataloader.dataset.dataset.pipeline == ['views']


def test_results_need_a_metric_that_reads_files(config, tmp_path):
    results = tmp_path / 'results.json'
    results.write_text('[]')
    dump = dict(type='DumpResults', out_file_path='a.pkl')
    cfg = launch.prepare_test_config(config, cfg_options={'test_evaluator': dump})
    with pytest.raises(launch.UsageError, match=r'none of the metrics \(DumpResults\)'):
        launch.evaluate_results(cfg, str(results))


def test_a_config_that_evaluates_nothing(config):
    with pytest.raises(launch.UsageError, match='evaluates nothing: it has no test_dataloader'):
        launch.prepare_test_config(config, cfg_options={'test_dataloader': None})


def test_a_folder_of_shards_is_tested(config, tmp_path):
    assert launch.prepare_test_config(config, str(tmp_path)).load_from == str(tmp_path)


@pytest.mark.parametrize(
    ('base', 'accumulate', 'told'),
    [
        (4, 1, None),
        (16, 1, '4 images per update, .* meant for 16: --accumulate 4 keeps to it, --auto-scale'),
        (16, 2, '8 images per update, .* meant for 16: --accumulate 4 keeps to it, --auto-scale'),
        (6, 1, '4 images per update, .* meant for 6: --auto-scale-lr scales the rate'),
        (2, 1, '4 images per update, .* meant for 2: --auto-scale-lr scales the rate'),
    ],
)
def test_another_batch_than_meant_is_told(config, monkeypatch, base, accumulate, told):
    cfg = launch.prepare_train_config(
        config,
        {'auto_scale_lr.base_batch_size': base, 'train_dataloader.batch_size': 4},
        accumulate=accumulate,
    )
    texts = []
    monkeypatch.setattr(launch, 'print_log', lambda text, **_: texts.append(text))
    launch.warn_of_another_batch(cfg)
    assert bool(texts) == bool(told)
    assert told is None or re.search(told, texts[0])


def test_only_torchrun_starts_several_processes_on_cpus(monkeypatch, config):
    monkeypatch.setattr(launch, 'get_device', lambda: 'cpu')
    cfg = launch.prepare_train_config(config, launcher='slurm')
    with pytest.raises(launch.UsageError, match='on CPUs use torchrun'):
        launch.fit_device(cfg)
