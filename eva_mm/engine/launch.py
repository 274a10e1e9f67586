"""What `tools/train.py` and `tools/test.py` do once their arguments are parsed."""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.device import get_device
from mmengine.dist import get_world_size, is_main_process
from mmengine.logging import print_log
from mmengine.registry import DATASETS, METRICS, RUNNERS, init_default_scope
from mmengine.runner import Runner

import eva_mm
from eva_mm import compat
from eva_mm.errors import InputError, UsageError
from eva_mm.zoo.table import SCHEME, find_model, suggest_scheme

from .accumulation import set_accumulation
from .batch_scaling import as_list, scale_to_images
from .compilation import enable_compilation
from .config_check import check_config, check_options
from .hooks.non_finite import NonFiniteError
from .optim_wrapper import gpu_has_bf16
from .processes import (
    join_processes,
    leave_process_group,
    on_first_process,
    told_rank,
    told_world_size,
)
from .resume import fit_to_checkpoint, newest_readable, read_state
from .sharding import check_sharded_training, is_sharded_run, set_strategy

# mmdet's own dump encodes instance masks, which would fill the memory as bitmaps.
_DUMP_METRICS = {'mmdet': 'DumpDetResults'}

# How each host's visualization hook is told to draw, to open windows, and where to write.
_DRAWING_HOOKS = {
    'DetVisualizationHook': dict(draw='draw', folder='test_out_dir'),
    'SegVisualizationHook': dict(draw='draw', folder=None),
    'VisualizationHook': dict(draw='enable', folder='out_dir'),
}

# Of the variables that eva_mm reads.
ENV_PREFIX = 'EVA_MM_'

# Optimizer wrappers that differ in precision alone, so that --amp may exchange them.
_PLAIN_WRAPPERS = ('OptimWrapper', 'AmpOptimWrapper', 'BF16OptimWrapper')


@contextmanager
def plain_errors(tool: str) -> Iterator[None]:
    """End the program with one message, without a traceback, where the input is at fault.

    Args:
        tool (str): Name of the script, which the message begins with.
    """
    try:
        yield
    except Exception as error:
        text = plain_message(error)
        if text is None:
            raise
        sys.exit(f'{tool}: {text}')


def plain_message(error: BaseException) -> str | None:
    """What to tell the user of an error in his input or environment; None for any other error."""
    if isinstance(error, NonFiniteError) and error.__cause__ is None:
        return str(error)
    if isinstance(error, (InputError, compat.HostError)):
        # What a worker of a DataLoader raised comes with its traceback in front.
        return re.split(r'(?m)^[\w.]*\.\w+Error: ', str(error))[-1].strip()
    if isinstance(error, ValueError) and str(error).startswith(
        f'environment variable {ENV_PREFIX}'
    ):
        return str(error)
    if 'EADDRINUSE' in str(error) and not isinstance(error, SyntaxError):
        port = os.environ.get('MASTER_PORT', 'of the launcher')
        return (
            f'port {port} (MASTER_PORT) is in use, by another run or one that did not end; '
            'give this run another one: PORT=29501 tools/dist_train.sh ..., or torchrun '
            '--master_port=29501'
        )
    if isinstance(error, (ImportError, FileNotFoundError)):
        # mmengine names the module or config file that failed, and drops the reason.
        inner = error.__cause__ or error.__context__
        if inner is not None and (text := plain_message(inner)):
            return text
        for host in compat.HOSTS:
            if host in str(error) or MODULE2PACKAGE.get(host, host) in str(error):
                try:
                    compat.require(host)
                except compat.HostError as missing:
                    return str(missing)
    return None


def load_config(path: str, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a config from a file or by the name it ships under, and merge `--cfg-options` into it.

    Args:
        path (str): A file, or a name as in `eva_mm.get_config` (`'lvis/eva_cascade'`).
        overrides (Mapping, optional): Dotted key -> value. A key that is not in the config while a
            near one is, is warned about: mmengine would take it in silence; and so is a variable
            that the config has used while it was read.

    Raises:
        UsageError: No such config (lists near names), or one that cannot be parsed.
    """
    compat.prepare()
    file = find_config(path)
    try:
        cfg = Config.fromfile(file)
    except SyntaxError as error:
        raise UsageError(f'config {file} is no Python: {error}') from error
    if overrides:
        check_options(cfg, overrides)
        cfg.merge_from_dict(dict(overrides))
    if not any(map(told_rank, ('pytorch', 'slurm', 'mpi'))):
        check_config(cfg)
    return cfg


def find_config(path: str) -> str:
    """Return the file of a config named by path or by the name it ships under."""
    if Path(path).is_file():
        return path
    with suppress(ValueError, FileNotFoundError):
        return str(eva_mm.config_path(path))
    folder = Path(path).parent
    beside = sorted(str(p) for p in folder.glob('*.py')) if folder.is_dir() else []
    with suppress(FileNotFoundError):
        beside += [f'configs/{name}.py' for name in eva_mm.list_configs()]
    wanted = Path(path).with_suffix('.py').as_posix()
    near = difflib.get_close_matches(wanted, list(dict.fromkeys(beside)), n=5, cutoff=0.5)
    raise UsageError(f'config {path} not found' + (f'; near: {", ".join(near)}' if near else ''))


def default_work_dir(config: str) -> str:
    """Return `work_dirs/<folder>/<name>` of a config, with the folders below `configs/`.

    Examples:
        >>> default_work_dir('configs/lvis/eva_cascade.py')
        'work_dirs/lvis/eva_cascade'
    """
    path = Path(config).resolve().with_suffix('')
    below = path.parts
    if 'configs' in below:
        below = below[len(below) - below[::-1].index('configs') :]
    else:
        below = below[-2:]
    return str(Path('work_dirs', *below))


def prepare_train_config(
    config: str,
    cfg_options: Mapping[str, Any] | None = None,
    work_dir: str | None = None,
    resume: str | None = None,
    amp: bool = False,
    auto_scale_lr: bool = False,
    launcher: str = 'none',
    accumulate: int = 1,
    for_dry_run: bool = False,
    num_gpus: int | None = None,
    strategy: str | None = None,
    compile: bool = False,
) -> Config:
    """Build the config of a training run from the command line.

    Args:
        config (str): File or name of the config.
        cfg_options (Mapping, optional): Dotted key -> value.
        work_dir (str, optional): Precedes the config's; defaults to `default_work_dir`.
        resume (str, optional): 'auto' goes on from the newest checkpoint of the work dir that can
            be read, if there is one, and else starts as without it (weights of `load_from`
            included); otherwise a checkpoint's path. The run keeps the checkpoint's seed.
        amp (bool): Mixed precision, bfloat16 where the device has it.
        auto_scale_lr (bool): Scale the rate by the total batch over the published one, and runs
            that count iterations to as many images; see `batch_scaling`.
        launcher (str): 'none', 'pytorch', 'slurm' or 'mpi'.
        accumulate (int): Forward passes per update; see `accumulation.set_accumulation`.
        for_dry_run (bool): Form no process group.
        num_gpus (int, optional): Processes that a dry run reckons with; by default those of the
            launcher.
        strategy (str, optional): 'ddp' or 'fsdp'; see `sharding.set_strategy`.
        compile (bool): Compile the transformer's blocks; see `compilation`.

    Raises:
        UsageError: The config lacks what an option needs, or a file is not there or is broken.
    """
    cfg = load_config(config, cfg_options)
    cfg.launcher = launcher
    cfg.work_dir = work_dir or cfg.get('work_dir') or default_work_dir(cfg.filename)
    if amp:
        enable_amp(cfg)
    if compile:
        enable_compilation(cfg)
    set_strategy(cfg, strategy)
    check_sharded_training(cfg)
    if accumulate < 1:
        raise UsageError(f'--accumulate takes passes per update, 1 or more, not {accumulate}')
    if (auto_scale_lr or resume or 'fit_config' in cfg) and not for_dry_run:
        join_processes(cfg)
    if 'fit_config' in cfg and not (for_dry_run and told_rank(launcher)):
        processes = dry_run_processes(cfg, num_gpus if for_dry_run else None)
        purpose = 'dry_run' if for_dry_run else 'train'
        fit_config(cfg, cfg_options, purpose, processes * accumulate)
    if auto_scale_lr:
        processes = dry_run_processes(cfg, num_gpus) if for_dry_run else get_world_size()
        enable_auto_scale_lr(cfg, cfg.train_dataloader.batch_size * processes * accumulate)
    accumulate_gradients(cfg, accumulate)
    if resume:
        set_resume(cfg, resume)
    return cfg


def fit_config(
    cfg: Config, cfg_options: Mapping[str, Any] | None, purpose: str, passes: int = 1
) -> None:
    """Let a config fit itself to its data, by the function that its key `fit_config` names.

    The function takes the config, images per update, the keys that the command line set, whose
    values stand in the end, and the purpose. It may set `fitted_length`, which checkpoints note
    and a resumed run has to share.

    Args:
        cfg (Config): With `work_dir`; changed in place.
        cfg_options (Mapping, optional): What was merged into it, dotted key -> value.
        purpose (str): 'train', 'test' or 'dry_run', in which nothing is to be left behind.
        passes (int): Forward passes per update, of all processes together.
    """
    module, _, function = cfg.fit_config.rpartition('.')
    fit = getattr(importlib.import_module(module), function)
    images = cfg.train_dataloader.batch_size * passes
    fit(cfg, images, kept=frozenset(cfg_options or ()), purpose=purpose)
    try:
        cfg.merge_from_dict(dict(cfg_options or {}))
    except TypeError as error:  # of what the data left out, as the mask head
        raise UsageError(f'--cfg-options: {error}') from error


def enable_amp(cfg: Config) -> None:
    """Make the optimizer wrapper one of mixed precision, in the best dtype of this device."""
    wrapper = cfg.optim_wrapper
    kind = wrapper.get('type', 'OptimWrapper')
    if kind not in _PLAIN_WRAPPERS:
        raise UsageError(f'--amp needs optim_wrapper.type in {_PLAIN_WRAPPERS}, but got {kind}')
    _drop_amp_keys(wrapper)
    device = get_device()
    if device == 'cpu' or (device == 'cuda' and gpu_has_bf16()):
        wrapper.update(type='BF16OptimWrapper', on_cpu=device == 'cpu')
    else:
        wrapper.update(type='AmpOptimWrapper', dtype='float16', loss_scale='dynamic')


def fit_precision(cfg: Config) -> None:
    """Replace a mixed precision that this device lacks: bfloat16 by float16, and none on a CPU."""
    wrapper = cfg.get('optim_wrapper')
    if wrapper is None or wrapper.get('type') != 'AmpOptimWrapper':
        return
    device = get_device()
    if device in ('cpu', 'mps'):
        _drop_amp_keys(wrapper)
        wrapper.type = 'OptimWrapper'
        print_log(f'mixed precision off: this run is on {device} (see --amp)', logger='current')
    elif wrapper.get('dtype') == 'bfloat16' and device == 'cuda' and not gpu_has_bf16():
        wrapper.update(dtype='float16', loss_scale='dynamic')
        print_log('float16 with loss scaling: this GPU has no bfloat16', logger='current')


def _drop_amp_keys(wrapper: ConfigDict) -> None:
    for key in ('dtype', 'loss_scale', 'use_fsdp'):
        wrapper.pop(key, None)


def enable_auto_scale_lr(cfg: Config, images: int) -> None:
    """Scale the rate by the batch, and what is counted in iterations against it.

    Args:
        cfg (Config): Of the run, before `accumulate_gradients`: it counts updates.
        images (int): Images per update.
    """
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise UsageError(
            f'--auto-scale-lr needs auto_scale_lr.base_batch_size, which {cfg.filename} lacks'
        )
    by_hand = (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)
    if by_hand > 1:
        raise UsageError(
            f'--auto-scale-lr with optim_wrapper.accumulative_counts={by_hand}: leave the latter '
            f'out, --accumulate {by_hand} sets it'
        )
    cfg.auto_scale_lr.enable = True
    factor = cfg.auto_scale_lr.base_batch_size / images
    before = cfg.train_cfg.get('max_iters')
    try:
        scaled = scale_to_images(cfg, factor)
    except InputError as error:
        raise UsageError(str(error)) from error
    if scaled:
        cfg.length_factor = factor
        print_log(
            f'--auto-scale-lr: {1 / factor:g} times the images per update, hence '
            f'{cfg.train_cfg.max_iters:,} iterations instead of {before:,}; rates, warm-up, '
            f'milestones and intervals follow',
            logger='current',
        )


def accumulate_gradients(cfg: Config, count: int) -> None:
    """Set the forward passes per update; warn of a config that sets them by mmengine's key."""
    try:
        set_accumulation(cfg, count)
    except InputError as error:
        raise UsageError(str(error)) from error
    by_hand = (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)
    if by_hand > 1 and 'accumulate' not in cfg:
        print_log(
            f'optim_wrapper.accumulative_counts={by_hand}: max_iters, schedules and intervals '
            f'count forward passes, and rates move between updates; --accumulate {by_hand} '
            f'in its place keeps the schedule of the config',
            logger='current',
            level=30,
        )


def set_resume(cfg: Config, resume: str) -> None:
    """Let a run go on from a checkpoint; see `prepare_train_config`.

    The first process chooses, and the others take its choice: each for itself may see another
    newest file, while one is being written or on a file system that lags behind.
    """
    choice = on_first_process(lambda: _choose_checkpoint(cfg, resume))
    if choice is not None:
        cfg.load_from, randomness = choice
        cfg.resume = True
        if cfg.get('model', {}).get('allowed_missing'):
            cfg.model.allowed_missing = []  # for other weights to start from; these are its own
        if randomness is not None:
            cfg.randomness = ConfigDict(randomness)


def _choose_checkpoint(cfg: Config, resume: str) -> tuple[str, dict | None] | None:
    """File to resume and the seed settings that go with it; None when there is nothing yet."""
    try:
        if resume == 'auto':
            # Found here rather than by the Runner, which drops `load_from` when it finds nothing.
            found = newest_readable(cfg)
            if found is None:
                return None
            resume, meta = found
        else:
            meta = read_state(resume)
        fit_to_checkpoint(cfg, resume, meta)
    except FileNotFoundError as error:
        raise UsageError(f'--resume: checkpoint {resume} not found') from error
    except InputError as error:
        raise UsageError(f'--resume: {error}') from error
    except Exception as error:  # of a storage, say
        problem = f'{type(error).__name__}: {error}'
        raise UsageError(f'--resume {resume}: no checkpoint could be read, {problem}') from error
    randomness = cfg.get('randomness')
    return resume, None if randomness is None else randomness.to_dict()


def prepare_test_config(
    config: str,
    checkpoint: str | None = None,
    cfg_options: Mapping[str, Any] | None = None,
    work_dir: str | None = None,
    launcher: str = 'none',
    show: bool = False,
    show_dir: str | None = None,
    wait_time: float = 2.0,
    tta: bool = False,
    compile: bool = False,
) -> Config:
    """Build the config of a test run from the command line.

    Args:
        config (str): File or name of the config.
        checkpoint (str, optional): A path, URL or `eva://` name.
        cfg_options (Mapping, optional): Dotted key -> value.
        work_dir (str, optional): Precedes the config's; defaults to `default_work_dir`.
        launcher (str): 'none', 'pytorch', 'slurm' or 'mpi'.
        show (bool): Open a window per image.
        show_dir (str, optional): Folder for drawings, relative to `work_dir/<timestamp>`.
        wait_time (float): Seconds a window stays.
        tta (bool): Use the config's `tta_model` and `tta_pipeline`.
        compile (bool): Compile the transformer's blocks; see `compilation`.

    Raises:
        UsageError: The config lacks what an option needs, or the checkpoint is not there.
    """
    if checkpoint and '://' not in checkpoint and not Path(checkpoint).exists():  # or a folder
        raise UsageError(f'checkpoint {checkpoint} not found{suggest_scheme(checkpoint)}')
    if checkpoint and checkpoint.startswith(SCHEME):
        find_model(checkpoint)  # before data and model are built
    cfg = load_config(config, cfg_options)
    if not cfg.get('test_dataloader'):
        raise UsageError(f'{cfg.filename} evaluates nothing: it has no test_dataloader')
    cfg.launcher = launcher
    cfg.work_dir = work_dir or cfg.get('work_dir') or default_work_dir(cfg.filename)
    cfg.load_from, cfg.resume = checkpoint, False
    if 'fit_config' in cfg:
        join_processes(cfg)
        fit_config(cfg, cfg_options, 'test')
        cfg.load_from, cfg.resume = checkpoint, False  # whatever the options say
    if show or show_dir:
        enable_drawing(cfg, show, show_dir, wait_time)
    if tta:
        enable_tta(cfg)
    if compile:
        enable_compilation(cfg)
    drop_unused_labels(cfg)
    return cfg


def enable_drawing(cfg: Config, show: bool, show_dir: str | None, wait_time: float) -> None:
    """Switch on the host's visualization hook."""
    hook = cfg.get('default_hooks', {}).get('visualization')
    kind = hook and hook.get('type')
    if kind not in _DRAWING_HOOKS:
        raise UsageError(
            f'--show and --show-dir need default_hooks.visualization of type '
            f'{" or ".join(_DRAWING_HOOKS)}, but {cfg.filename} has {kind}'
        )
    keys = _DRAWING_HOOKS[kind]
    hook[keys['draw']] = True
    if show:
        hook.update(show=True, wait_time=wait_time)
    if show_dir and keys['folder']:
        hook[keys['folder']] = show_dir
    elif show_dir:
        cfg.visualizer.save_dir = show_dir


def enable_tta(cfg: Config) -> None:
    """Wrap the model by the config's `tta_model` and read test data by its `tta_pipeline`."""
    missing = [key for key in ('tta_model', 'tta_pipeline') if key not in cfg]
    if missing:
        raise UsageError(f'--tta needs {" and ".join(missing)}, which {cfg.filename} lacks')
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    dataset.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def drop_unused_labels(cfg: Config) -> None:
    """Let a segmentor's test do without label maps where its metrics only write predictions.

    mmseg's metric leaves labels alone under `format_only`, but its pipelines load them.
    """
    metrics = as_list(cfg.get('test_evaluator'))
    if cfg.get('default_scope') != 'mmseg' or not metrics:
        return
    if all(metric.get('format_only') for metric in metrics):
        dataset = cfg.test_dataloader.dataset
        while 'dataset' in dataset:
            dataset = dataset.dataset
        dataset.pipeline = _without_labels(dataset.pipeline)


def _without_labels(steps: Sequence) -> list:
    """Transforms, and lists of those that are tried in turn, without `LoadAnnotations`."""
    kept = []
    for step in steps:
        if isinstance(step, (list, tuple)):
            if inner := _without_labels(step):
                kept.append(inner)
        elif getattr(step['type'], '__name__', step['type']).split('.')[-1] != 'LoadAnnotations':
            views = step.get('transforms')
            kept.append(dict(step, transforms=_without_labels(views)) if views else step)
    return kept


def build_runner(cfg: Config) -> Runner:
    """Build the Runner of a config, of its `runner_type` if it names one; see `fit_device`."""
    fit_device(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    tell_of_the_core()
    return runner


def tell_of_the_core() -> None:
    """Print what the core logs, which knows no mmengine: the choice of attention kernels."""
    logger = logging.getLogger('eva_mm')
    if is_main_process() and not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(
            logging.Formatter('%(asctime)s - eva_mm - %(levelname)s - %(message)s')
        )
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def fit_device(cfg: Config) -> None:
    """Fit precision and process group to the device; several processes on CPUs talk by gloo."""
    fit_precision(cfg)
    join_processes(cfg)
    if cfg.get('launcher', 'none') == 'none' or get_device() != 'cpu' or is_sharded_run(cfg):
        return
    wrapper = cfg.setdefault('model_wrapper_cfg', ConfigDict(type='MMDistributedDataParallel'))
    wrapper.setdefault('broadcast_buffers', False)
    wrapper.setdefault('find_unused_parameters', cfg.get('find_unused_parameters', False))
    wrapper.device_ids = None  # DDP refuses any on CPUs


def run_training(cfg: Config) -> None:
    """Train as the config says."""
    runner = build_runner(cfg)
    warn_of_another_batch(cfg)
    runner.train()
    leave_process_group()


def warn_of_another_batch(cfg: Config) -> None:
    """Warn of fewer or more images per update than the learning rate is meant for.

    Args:
        cfg (Config): Of a run whose process group is there.
    """
    scaling = cfg.get('auto_scale_lr') or {}
    meant = scaling.get('base_batch_size')
    passes = cfg.get('accumulate', 1)
    # --accumulate has taken its passes out of the base.
    images = cfg.train_dataloader.batch_size * get_world_size()
    if meant is None or scaling.get('enable') or images == meant:
        return
    more = meant / images
    options = f'--accumulate {passes * int(more)} keeps to it, ' if more == int(more) else ''
    print_log(
        f'{images * passes:g} images per update, but the learning rate is meant for '
        f'{meant * passes:g}: {options}--auto-scale-lr scales the rate',
        logger='current',
        level=30,
    )


def run_test(cfg: Config, out: str | None = None) -> dict:
    """Test a checkpoint as the config says.

    Args:
        cfg (Config): From `prepare_test_config`.
        out (str, optional): `.pkl` file for the predictions.

    Returns:
        dict: Metric name -> value.
    """
    if out and not out.endswith(('.pkl', '.pickle')):
        raise UsageError(f'--out should end in .pkl or .pickle, but got {out}')
    if out and _gives_run_lengths(cfg):
        raise UsageError(
            '--out and model.test_cfg.rcnn.rle_masks do not go together, since mmdet saves '
            'bitmaps: leave one out, or write JSON by test_evaluator.outfile_prefix'
        )
    _save_config_apart(cfg)
    runner = build_runner(cfg)
    if out:
        dump = _DUMP_METRICS.get(cfg.get('default_scope'), 'DumpResults')
        # First, since metrics after it may change the predictions in place.
        runner.test_evaluator.metrics.insert(0, METRICS.build(dict(type=dump, out_file_path=out)))
    values = runner.test()
    del runner
    leave_process_group()
    return values


def run_variants(cfg: Config, names: str) -> None:
    """Test a checkpoint on variants of the data, by the function that `variants.run` names.

    The function takes the config and the names, and returns a table, which is printed.

    Args:
        cfg (Config): From `prepare_test_config`.
        names (str): 'all', or some of the config's `variants.sets`, separated by commas.

    Raises:
        UsageError: The config has no variants.
    """
    if 'variants' not in cfg:
        raise UsageError(f'--variants needs the key variants, which {cfg.filename} lacks')
    _save_config_apart(cfg)
    module, _, function = cfg.variants.run.rpartition('.')
    table = getattr(importlib.import_module(module), function)(cfg, names)
    if is_main_process():
        print(table)
    leave_process_group()


def _gives_run_lengths(cfg: Config) -> bool:
    return bool(((cfg.model.get('test_cfg') or {}).get('rcnn') or {}).get('rle_masks'))


def _save_config_apart(cfg: Config) -> None:
    """Let the Runner of a test save its config as `test_<name>.py`.

    Under its own name it would replace the one of a training in the same work dir, which may hold
    more: what was fitted to the data, and the weights that the training started from.
    """
    path = Path(cfg.filename or 'config.py')
    if not path.name.startswith('test_'):
        object.__setattr__(cfg, '_filename', str(path.with_name(f'test_{path.name}')))


def evaluate_results(cfg: Config, results: str) -> dict:
    """Evaluate saved results with the metrics of `test_evaluator`, without a model.

    Args:
        cfg (Config): From `prepare_test_config`.
        results (str): Results file in the format of the benchmark (COCO and LVIS: a JSON list).

    Returns:
        dict: Metric name -> value.

    Raises:
        UsageError: The file is missing or malformed, or no metric can evaluate a file.
    """
    if not Path(results).is_file():
        raise UsageError(f'--results: file {results} not found')
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    evaluators = cfg.test_evaluator
    evaluators = list(evaluators) if isinstance(evaluators, Sequence) else [evaluators]
    try:
        metrics = [METRICS.build(evaluator) for evaluator in evaluators]
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(f'--results: {error}') from error
    able = [metric for metric in metrics if hasattr(metric, 'evaluate_results_file')]
    if not able:
        names = ', '.join(type(metric).__name__ for metric in metrics)
        raise UsageError(f'--results: none of the metrics ({names}) evaluates a file')
    # Unread, a data set with fixed class names still tells them; ours read them with the metric.
    dataset = DATASETS.build({**cfg.test_dataloader.dataset, 'lazy_init': True})
    values: dict[str, Any] = {}
    for metric in able:
        metric.dataset_meta = dataset.metainfo
        try:
            values.update(metric.evaluate_results_file(results))
        except (FileNotFoundError, ValueError) as error:
            raise UsageError(f'--results: {error}') from error
    print_log('\n'.join(f'{name}: {value}' for name, value in values.items()), logger='current')
    return values


def dry_run_processes(cfg: Config, num_gpus: int | None) -> int:
    """Number of processes that a dry run reckons with."""
    if num_gpus is not None and num_gpus < 1:
        raise UsageError(f'--gpus takes a number of GPUs, 1 or more, not {num_gpus}')
    return num_gpus or told_world_size(cfg.get('launcher', 'none'))


def dry_run(cfg: Config, num_gpus: int | None = None) -> int:
    """Print what a training run would be and what it lacks; return the exit status."""
    from eva_mm.engine.dry_run import dry_run as run  # tells of data and memory: slow to import

    if told_rank(cfg.get('launcher', 'none')):
        return 0  # one report is enough
    return run(cfg, dry_run_processes(cfg, num_gpus))
