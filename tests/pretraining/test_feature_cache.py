"""Features on disk: exact, safe against torn writes, and of the right teacher only."""

import json
import multiprocessing
import os
import shutil

import numpy as np
import pytest
import torch
from mmengine.runner import Runner

from eva_mm.errors import InputError, UnreadableFileError
from eva_mm.pretraining.feature_cache import FeatureCache

from .small import FEATURES, GRID, small_leaf

SHAPE = (4, 3)
IDENTITY = dict(teacher='abc', seed=1)


class Teacher:
    """Counts the images that it is asked about; features are (first pixel + 0 ... 11)."""

    def __init__(self):
        self.seen = 0

    def __call__(self, image):
        self.seen += len(image)
        return image[:, :1, 0, 0, None] + torch.arange(12.0).view(1, 4, 3)


@pytest.fixture
def cache(tmp_path):
    return FeatureCache(tmp_path / 'cache', 6, SHAPE, IDENTITY)


def images(*values):
    return torch.tensor([float(v) for v in values]).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)


def test_the_teacher_is_asked_once_for_each_slot(cache, tmp_path):
    teacher = Teacher()
    first = cache.fetch(torch.tensor([4, 0]), images(1, 2), teacher)
    torch.testing.assert_close(first, Teacher()(images(1, 2)))
    again = FeatureCache(tmp_path / 'cache', 6, SHAPE, IDENTITY)
    mixed = again.fetch(torch.tensor([0, 5, 4]), images(2, 9, 1), teacher)
    torch.testing.assert_close(mixed, Teacher()(images(2, 9, 1)))
    assert teacher.seen == 3
    again.fetch(torch.tensor([5, 4, 0]), images(0, 0, 0), teacher)
    assert teacher.seen == 3


def test_fresh_features_are_rounded_like_kept_ones(cache):
    value = 1 + 2**-12  # fp16 has 10 bits behind the point
    fresh = cache.fetch(torch.tensor([1]), images(value), Teacher())
    kept = cache.fetch(torch.tensor([1]), images(value), Teacher())
    assert torch.equal(fresh, kept)
    assert fresh[0, 0, 0] == 1


def test_torn_rows_are_computed_again(cache):
    teacher = Teacher()
    cache.fetch(torch.tensor([2, 3]), images(1, 2), teacher)
    path = os.path.join(cache.folder, 'features.f16')
    with open(path, 'r+b') as file:
        file.seek(2 * cache.row_bytes + 5)
        file.write(b'\x77')
    rows = cache.fetch(torch.tensor([2, 3]), images(1, 2), teacher)
    torch.testing.assert_close(rows, Teacher()(images(1, 2)))
    assert teacher.seen == 3
    assert cache.read(np.array([2, 3]))[1].all()


def test_a_kill_between_row_and_checksum_leaves_an_empty_slot(cache, monkeypatch):
    real, calls = os.pwrite, []

    def killed(descriptor, data, offset):
        calls.append(descriptor)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, 'pwrite', killed)
    with pytest.raises(KeyboardInterrupt):
        cache.fetch(torch.tensor([2]), images(1), Teacher())
    # The checksum says that a row is there, so it must not be first.
    with open(os.path.join(cache.folder, 'checksums.u32'), 'rb') as file:
        assert not any(file.read())
    assert not cache.read(np.array([2]))[1].any()


def test_samples_without_a_slot_pass_by(cache):
    teacher = Teacher()
    for _ in range(2):
        rows = cache.fetch(torch.tensor([-1, 3]), images(5, 6), teacher)
        torch.testing.assert_close(rows, Teacher()(images(5, 6)))
    assert teacher.seen == 3  # one of the two is known in the second round
    assert cache.read(np.arange(6))[1].tolist() == [False] * 3 + [True] + [False] * 2


def test_what_fp16_cannot_hold_is_not_kept(cache):
    """Neither rounded to infinity, nor computed wrongly for the images beside it."""
    teacher = Teacher()
    for _ in range(2):
        rows = cache.fetch(torch.tensor([0, 1, 2]), images(1, 70000, float('nan')), teacher)
        expected = Teacher()(images(1, 70000, float('nan')))
        torch.testing.assert_close(rows, expected, equal_nan=True)
    assert teacher.seen == 3 + 2
    assert cache.read(np.arange(3))[1].tolist() == [True, False, False]


def test_closing_returns_the_files(tmp_path):
    def num_files():
        return len(os.listdir('/proc/self/fd'))

    before = num_files()
    cache = FeatureCache(tmp_path / 'cache', 6, SHAPE, IDENTITY)
    assert num_files() == before + 2
    cache.close()
    cache.close()
    assert num_files() == before
    dropped = FeatureCache(tmp_path / 'cache', 6, SHAPE, IDENTITY)
    del dropped
    assert num_files() == before
    with pytest.raises(OSError):
        cache.read(np.array([0]))


def _fill(folder, slots):
    cache = FeatureCache(folder, 40, SHAPE, IDENTITY)
    for slot in slots:
        cache.fetch(torch.tensor([slot]), images(slot), Teacher())


def test_processes_of_a_machine_share_it(tmp_path):
    folder = str(tmp_path / 'cache')
    context = multiprocessing.get_context('fork')
    workers = [context.Process(target=_fill, args=(folder, range(i, 40, 2))) for i in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    rows, known = FeatureCache(folder, 40, SHAPE, IDENTITY).read(np.arange(40))
    assert known.all()
    assert rows[:, 0, 0].tolist() == list(range(40))


def test_a_full_disk_ends_the_writing_not_the_training(cache, monkeypatch):
    def fail(*args):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'pwrite', fail)
    teacher = Teacher()
    for _ in range(2):
        rows = cache.fetch(torch.tensor([1]), images(3), teacher)
        assert rows[0, 0, 0] == 3
    assert teacher.seen == 2


def test_a_folder_of_other_features_is_refused(cache, tmp_path):
    folder = tmp_path / 'cache'
    for arguments, message in (
        ((6, SHAPE, dict(IDENTITY, teacher='xyz')), "teacher is 'abc', expected 'xyz'"),
        ((7, SHAPE, IDENTITY), 'num_slots is 6, expected 7'),
        ((6, (4, 5), IDENTITY), 'feature_dim is 3, expected 5'),
    ):
        with pytest.raises(InputError, match=f'meta.json is of other features: {message}'):
            FeatureCache(folder, *arguments)
    (folder / 'meta.json').write_text('{"num_')
    with pytest.raises(UnreadableFileError, match='cannot read .*meta.json'):
        FeatureCache(folder, 6, SHAPE, IDENTITY)


def test_bad_slots_and_small_disks(cache, tmp_path):
    with pytest.raises(InputError, match='cache_slot 2 ... 6 is beyond the 6 slots'):
        cache.read(np.array([6, 2]))
    with pytest.raises(InputError, match='cache_slot -2 ... 3 is beyond'):
        cache.read(np.array([-2, 3]))
    with pytest.raises(InputError, match=r'needs \d+\.\d GiB for 10,000,000,000,000 views'):
        FeatureCache(tmp_path / 'large', 10**13, SHAPE, IDENTITY)
    assert not (tmp_path / 'large/meta.json').exists()


# ------------------------------------------------------------------------------------ in training


def run(photos, work_dir, monkeypatch, folder=None, num_views=1, **changes):
    """Nine iterations of four out of twelve images; the losses, and the images per teacher call.

    ``changes`` are dotted keys of the config, with '__' for the dot.
    """
    cfg = small_leaf('eva_g_merged30m', str(photos))
    cfg.work_dir = str(work_dir)
    # Runs of the same second would share mmengine's loggers otherwise.
    cfg.experiment_name = str(work_dir).replace('/', '_')
    cfg.train_cfg.update(max_iters=9, val_interval=9)
    cfg.param_scheduler = None
    cfg.randomness = dict(seed=3)
    cfg.train_dataloader.dataset.num_views = num_views
    cfg.default_hooks.logger.interval = 1
    cfg.visualizer = None
    cfg.log_level = 'ERROR'
    if folder is not None:
        cfg.custom_hooks = [dict(type='FeatureCacheHook', folder=str(folder))]
    cfg.merge_from_dict({key.replace('__', '.'): value for key, value in changes.items()})
    runner = Runner.from_cfg(cfg)
    calls, losses = [], []
    teacher = runner.model.teacher
    monkeypatch.setattr(
        teacher,
        'forward',
        lambda image: calls.append(len(image)) or type(teacher).forward(teacher, image),
    )
    step = runner.model.train_step
    monkeypatch.setattr(
        runner.model, 'train_step', lambda *a, **k: losses.append(step(*a, **k)) or losses[-1]
    )
    runner.train()
    assert runner.model.feature_cache is None
    files = [os.path.realpath(f'/proc/self/fd/{number}') for number in os.listdir('/proc/self/fd')]
    assert not any(name.endswith(('.f16', '.u32')) for name in files)
    return [float(log['loss']) for log in losses], calls


def test_epochs_that_repeat_need_no_teacher(photos, tmp_path, monkeypatch):
    plain, always = run(photos, tmp_path / 'a', monkeypatch)
    kept, once = run(photos, tmp_path / 'b', monkeypatch, tmp_path / 'cache')
    later, never = run(photos, tmp_path / 'c', monkeypatch, tmp_path / 'cache')
    validation = [4, 1]
    assert always == [4] * 9 + validation
    assert once == [4] * 3 + validation
    assert never == validation
    assert kept == later
    np.testing.assert_allclose(kept, plain, atol=2e-3)
    meta = json.loads((tmp_path / 'cache/meta.json').read_text())
    assert (meta['num_slots'], meta['num_patches'], meta['feature_dim']) == (12, GRID**2, FEATURES)


@pytest.fixture(scope='module')
def filled(photos, tmp_path_factory):
    """Cache of a run with seed 3."""
    root = tmp_path_factory.mktemp('filled')
    with pytest.MonkeyPatch.context() as patch:
        run(photos, root / 'run', patch, root / 'cache', train_cfg__max_iters=1)
    return root / 'cache'


@pytest.mark.parametrize(
    ('key', 'changes'),
    [
        ('teacher', dict(model__teacher__model__quick_gelu=False)),
        ('normalisation', dict(model__data_preprocessor__mean=[0.5, 0.5, 0.5])),
        ('normalisation', dict(model__data_preprocessor__std=[0.5, 0.5, 0.5])),
        ('precision', dict(optim_wrapper__on_cpu=True)),
        ('seed', dict(randomness__seed=4)),
        ('transforms', dict(train_dataloader__dataset__pipeline__0__flip_prob=0.0)),
    ],
)
def test_features_of_another_run_are_refused(photos, filled, tmp_path, monkeypatch, key, changes):
    with pytest.raises(InputError, match=f'meta.json is of other features: {key} is '):
        run(photos, tmp_path, monkeypatch, filled, **changes)


def test_other_images_of_the_same_names_are_refused(photos, tmp_path, monkeypatch):
    own = shutil.copytree(photos, tmp_path / 'photos')
    run(own, tmp_path / 'a', monkeypatch, tmp_path / 'cache', train_cfg__max_iters=1)
    shutil.copy(own / 'train/03.png', own / 'train/04.png')
    with pytest.raises(InputError, match='meta.json is of other features: images is '):
        run(own, tmp_path / 'b', monkeypatch, tmp_path / 'cache')


def test_other_masks_take_the_same_features(photos, filled, tmp_path, monkeypatch):
    """The teacher sees no mask; fewer hidden patches change the student alone."""
    changes = dict(train_dataloader__dataset__pipeline__1__num_masked=4, train_cfg__max_iters=1)
    _, calls = run(photos, tmp_path, monkeypatch, filled, **changes)
    assert calls == [4, 1]  # of the validation


def test_views_that_do_not_repeat_are_refused(photos, tmp_path, monkeypatch):
    with pytest.raises(InputError, match='needs train_dataloader.dataset.num_views'):
        run(photos, tmp_path / 'a', monkeypatch, tmp_path / 'cache', num_views=None)
