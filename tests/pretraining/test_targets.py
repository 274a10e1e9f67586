"""Targets, the codebook behind one of them, and the metric over a validation set."""

import json
import math
import multiprocessing
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from mmengine.registry import MODELS

from eva_mm.errors import InputError, MissingFileError
from eva_mm.pretraining.codebook import build_codebook, spherical_kmeans
from eva_mm.pretraining.metrics import MIMLossMetric
from eva_mm.pretraining.targets import CodebookClassification, CosineRegression

from ..helpers import ROOT
from .small import FEATURES, GRID, build, random_batch, small_leaf


@pytest.fixture
def tokens():
    """Prediction and features (3, 16, 24), and places of different number per image."""
    torch.manual_seed(0)
    where = torch.rand(3, 16) < torch.tensor([0.2, 0.5, 0.9])[:, None]
    return torch.randn(3, 16, FEATURES), torch.randn(3, 16, FEATURES) * 7 + 1, where


def codebook(num_codes=5):
    torch.manual_seed(1)
    target = CodebookClassification(None, num_codes, FEATURES)
    target.codes.copy_(torch.randn(num_codes, FEATURES) * torch.rand(num_codes, 1))
    return target


def test_regression_ignores_lengths(tokens):
    prediction, features, where = tokens
    target = CosineRegression()
    loss = target.loss(prediction, features, where)['loss']
    units = [F.normalize(t.double(), dim=-1) for t in (prediction, features)]
    expected = -(units[0] * units[1]).sum(-1)[where].mean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert float(target.loss(prediction * 3, features / 5, where)['loss']) == pytest.approx(
        float(loss), rel=1e-5
    )
    perfect = target.loss(features / 2, features, where)['loss']
    assert float(perfect) == pytest.approx(-1, abs=1e-6)


def test_classification_of_the_nearest_direction(tokens):
    _, features, where = tokens
    target = codebook()
    logits = torch.randn(3, 16, 5)
    cosines = torch.stack([F.cosine_similarity(features, code, dim=-1) for code in target.codes])
    codes = cosines.argmax(0)
    assert torch.equal(target.assign(features), codes)
    terms = target.loss(logits, features, where)
    expected = F.cross_entropy(logits[where], codes[where])
    torch.testing.assert_close(terms['loss'], expected)
    hits = (logits.argmax(-1) == codes)[where].float().mean()
    torch.testing.assert_close(terms['accuracy'], hits)


@pytest.mark.parametrize('autocast', [True, False])
def test_loss_and_codes_are_fp32_under_autocast(autocast):
    """From the same predictions, in whatever precision these are."""
    torch.manual_seed(0)
    where = torch.rand(2, 32) < 0.5
    prediction, features = torch.randn(2, 32, FEATURES).bfloat16(), torch.randn(2, 32, FEATURES)
    books, logits = codebook(700), torch.randn(2, 32, 700).bfloat16()
    similarity = F.cosine_similarity(prediction.double(), features.double(), dim=-1)
    codes = (features.double() @ F.normalize(books.codes.double(), dim=-1).t()).argmax(-1)
    entropy = F.cross_entropy(logits[where].double(), codes[where])
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        losses = [
            CosineRegression().loss(prediction, features, where)['loss'],
            books.loss(logits, features, where)['loss'],
        ]
        found = books.assign(features)
        rows = CosineRegression().evaluate(prediction, features, where)
    assert torch.equal(found, codes)
    assert [loss.dtype for loss in losses] == [torch.float32] * 2
    # bf16 is off by 1e-3.
    assert float(losses[0]) == pytest.approx(-float(similarity[where].mean()), rel=1e-6)
    assert float(losses[1]) == pytest.approx(float(entropy), rel=1e-6)
    assert rows[0]['loss'] == pytest.approx(-float(similarity[0][where[0]].mean()), rel=1e-6)


def test_nothing_hidden_is_no_loss_of_zero(tokens):
    prediction, features, where = tokens
    nothing = torch.zeros_like(where)
    assert CosineRegression().loss(prediction, features, nothing)['loss'].isnan()
    where = where.clone()
    where[1] = False
    with pytest.raises(InputError, match='an image of the batch has no hidden patch'):
        MIMLossMetric().process({}, CosineRegression().evaluate(prediction, features, where))


def _evaluate_share(rank, rows, folder):
    """What one of two processes finds: every second of seven images, the eighth repeated."""
    dist.init_process_group('gloo', f'file://{folder}/meet', rank=rank, world_size=2)
    metric = MIMLossMetric()
    for row in [*rows, rows[0]][rank::2]:
        metric.process({}, [row])
    (folder / f'{rank}.json').write_text(json.dumps(metric.evaluate(len(rows))))
    dist.destroy_process_group()


@pytest.mark.parametrize('target', [CosineRegression(), codebook()], ids=lambda t: type(t).__name__)
def test_metric_of_two_processes_counts_each_image_once(target, tmp_path):
    torch.manual_seed(0)
    prediction = torch.randn(7, 16, target.output_dim(FEATURES))
    where = torch.rand(7, 16) < torch.linspace(0.3, 1, 7)[:, None]
    rows = target.evaluate(prediction, torch.randn(7, 16, FEATURES) + 1, where)
    metric = MIMLossMetric()
    for part in (rows[:3], rows):  # epochs do not add up
        metric.process({}, part)
        alone = metric.evaluate(len(part))
    losses = [row['loss'] for row in rows]
    assert alone['pretrain/loss'] == pytest.approx(sum(losses) / 7, rel=1e-12)
    context = multiprocessing.get_context('fork')
    share = [context.Process(target=_evaluate_share, args=(r, rows, tmp_path)) for r in (0, 1)]
    for process in share:
        process.start()
    for process in share:
        process.join(60)
    for rank in (0, 1):
        found = json.loads((tmp_path / f'{rank}.json').read_text())
        assert found == pytest.approx(alone, rel=1e-12)


@pytest.mark.parametrize('sizes', [(3,), (1, 2)])
def test_metric_over_batches(tokens, sizes):
    """The loss is per image; what a constant would reach is over patches."""
    prediction, features, where = tokens
    metric = MIMLossMetric()
    for p, f, w in zip(*(t.split(sizes) for t in tokens)):
        metric.process({}, CosineRegression().evaluate(p, f, w))
    result = metric.evaluate(3)
    cosine = F.cosine_similarity(prediction, features, dim=-1)
    expected = -np.mean([float(c[w].mean()) for c, w in zip(cosine, where)])
    assert result['pretrain/loss'] == pytest.approx(expected, rel=1e-5)
    units = F.normalize(features[where], dim=-1)
    # The best constant prediction is the direction of the mean.
    constant = -float((units @ F.normalize(units.mean(0), dim=0)).mean())
    assert result['pretrain/mean_feature_loss'] == pytest.approx(constant, rel=1e-5)


def test_metric_of_classification(tokens):
    _, features, where = tokens
    target, metric, logits = codebook(), MIMLossMetric(), torch.randn(3, 16, 5)
    metric.process({}, target.evaluate(logits, features, where))
    result = metric.evaluate(3)
    codes = target.assign(features)[where]
    shares = torch.bincount(codes, minlength=5) / len(codes)
    # Cross-entropy of the best constant prediction.
    constant = float(F.cross_entropy((shares + 1e-12).log().expand(len(codes), -1), codes))
    assert result['pretrain/constant_loss'] == pytest.approx(constant, rel=1e-4)
    assert 0 <= result['pretrain/accuracy'] <= 1


# -------------------------------------------------------------------------------------- codebook


def test_kmeans_finds_directions():
    torch.manual_seed(0)
    centres = F.normalize(torch.randn(6, FEATURES), dim=-1)
    labels = torch.arange(600) % 6
    features = (centres[labels] + 0.05 * torch.randn(600, FEATURES)) * torch.rand(600, 1).add(0.1)
    # Two starts in one cluster are k-means's own way to fail; the best of a few starts has none.
    books = [spherical_kmeans(features, 6, iterations=20, seed=seed) for seed in range(8)]
    book = max(books, key=lambda book: book.similarity)
    cosines = book.codes @ centres.t()
    assert sorted(cosines.argmax(1).tolist()) == list(range(6))
    assert cosines.max(1).values.min() > 0.99
    assert book.counts.tolist() == [100] * 6
    assert book.similarity == pytest.approx(1 / math.sqrt(1 + FEATURES * 0.05**2), abs=0.02)


def test_kmeans_moves_codes_that_nothing_is_nearest_to():
    """Two thirds of the features are one and the same: most codes start on it."""
    features = torch.cat((torch.eye(4)[:1].repeat(40, 1), torch.eye(4).repeat_interleave(5, 0)))
    book = spherical_kmeans(features, 4, iterations=10)
    assert (book.counts > 0).all()
    assert book.similarity == pytest.approx(1)
    with pytest.raises(InputError, match='60 features are too few for 61 codes'):
        spherical_kmeans(features, 61)


def test_codebook_of_a_config_and_training_with_it(photos, tmp_path):
    file = str(tmp_path / 'codes.pth')
    cfg = small_leaf('pilot_tokenized_short', str(photos))
    cfg.model.target.codebook = file
    out, book = build_codebook(cfg, num_images=10, patches_per_image=5, iterations=5)
    assert out == file
    assert book.codes.shape == (16, FEATURES)
    assert int(book.counts.sum()) == 50
    model = build('pilot_tokenized_short', target=dict(codebook=file))
    model.target.load(model.teacher)
    torch.testing.assert_close(model.target.codes, book.codes)
    assert not any('codes' in name for name in model.state_dict())
    batch = model.data_preprocessor(random_batch())
    loss = model(batch['image'], batch['mask'], mode='loss')['loss']
    assert float(loss) == pytest.approx(math.log(16), abs=0.3)  # of a fresh model
    other = build(
        'pilot_tokenized_short',
        target=dict(codebook=file),
        teacher=dict(model=dict(quick_gelu=False)),
    )
    expected = r'codes.pth is of the features of CLIP \(None, \w{12}\), expected CLIP \(None'
    with pytest.raises(InputError, match=expected):
        other(batch['image'], batch['mask'], mode='loss')


@pytest.mark.slow
def test_tool_writes_the_file_that_the_config_names(photos, tmp_path):
    cfg = small_leaf('pilot_tokenized_short', str(photos))
    cfg.model.target.codebook = str(tmp_path / 'codes.pth')
    cfg.dump(tmp_path / 'small.py')
    tool = [sys.executable, str(ROOT / 'tools/build_codebook.py'), str(tmp_path / 'small.py')]
    options = ['--num-images', '12', '--patches-per-image', str(GRID), '--device', 'cpu']
    done = subprocess.run(tool + options, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f'{tmp_path}/codes.pth: 16 codes' in done.stdout
    few = subprocess.run(
        [*tool, *options, '--num-codes', '900'], capture_output=True, text=True, cwd=tmp_path
    )
    assert few.returncode == 1
    assert few.stderr.strip().endswith('48 features are too few for 900 codes')


def test_bad_codebooks(tmp_path):
    teacher = MODELS.build(small_leaf('pilot_tokenized_short').model.teacher)
    meta = dict(teacher_digest=teacher.digest())
    target = CodebookClassification(str(tmp_path / 'none.pth'), 5, FEATURES)
    with pytest.raises(MissingFileError, match='none.pth does not exist: tools/build_codebook.py'):
        target.load(teacher)
    for content, message in (
        (dict(codes=torch.zeros(5, 8), meta=meta), r'codes of 5 x 8, expected 5 x 24'),
        (dict(weights=torch.zeros(5, 8)), r'no codebook: it holds'),
        (dict(codes=torch.zeros(5, FEATURES)), r'a teacher that it does not tell the digest of'),
    ):
        torch.save(content, tmp_path / 'codes.pth')
        with pytest.raises(InputError, match=message):
            CodebookClassification(str(tmp_path / 'codes.pth'), 5, FEATURES).load(teacher)
    with pytest.raises(InputError, match='feature_dim is 24, but the teacher has features of 32'):
        codebook().output_dim(32)
