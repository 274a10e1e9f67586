"""Contrastive training of a small CLIP: data, loss, metric, and its use as a teacher."""

import copy
import math

import open_clip
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from mmengine.registry import DATASETS, METRICS, MODELS

from eva_mm.demo import generate_captions
from eva_mm.errors import InputError, MissingFileError
from eva_mm.pretraining.contrastive import CaptionedImages, ContrastiveCLIP, RetrievalMetric
from tests.helpers import free_port, load_config

VISION = dict(image_size=32, patch_size=8, width=32, layers=2, head_width=16)
TEXT = dict(context_length=16, width=16, heads=2, layers=1)


@pytest.fixture(scope='module')
def pairs(tmp_path_factory):
    return generate_captions(tmp_path_factory.mktemp('captions') / 'set', 12, 5, 64)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return ContrastiveCLIP(16, VISION, TEXT)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    tokenizer = open_clip.SimpleTokenizer(context_length=16)
    texts = ['a red disc', 'two blue squares', 'a star', 'a green heart and a bar']
    return dict(image=torch.randn(4, 3, 32, 32, generator=generator), text=tokenizer(texts))


# ----------------------------------------------------------------------------------------- data


def test_images_come_with_their_captions(pairs):
    dataset = CaptionedImages(str(pairs), 'train.csv')
    lines = (pairs / 'train.csv').read_text().splitlines()[1:]
    assert len(dataset) == len(lines) == 12
    for index, line in enumerate(lines):
        path, caption = line.split('\t')
        assert dataset.get_data_info(index) == dict(img_path=str(pairs / path), caption=caption)
        assert dataset[index]['image'].size == (64, 64)


def test_demo_samples_are_an_image_and_the_tokens_of_its_caption(pairs):
    cfg = load_config('demo/clip_teacher', 'mmengine').train_dataloader.dataset
    cfg.data_root = str(pairs)
    dataset = DATASETS.build(cfg)
    sample = dataset[3]
    assert sample['image'].shape == (3, 64, 64)
    assert sample['image'].dtype == torch.uint8
    expected = open_clip.tokenize(dataset.captions[3], context_length=48)[0]
    torch.testing.assert_close(sample['text'], expected)
    assert set(sample) == {'image', 'text', 'img_path'}


def test_other_column_names(tmp_path, pairs):
    text = (pairs / 'val.csv').read_text().replace('filepath\ttitle', 'url\tsentence')
    (pairs / 'other.csv').write_text(text)
    dataset = CaptionedImages(str(pairs), 'other.csv', 'url', 'sentence')
    assert dataset.captions == CaptionedImages(str(pairs), 'val.csv').captions


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('filepath,title\na.jpg,a disc\n', r"no column 'filepath', .*expected names separated by"),
        ('filepath\ttitle\na.jpg\ta disc\nb.jpg\n', 'line 3: expected a path, a tab'),
        ('filepath\ttitle\n', 'lists no images'),
        ('', "no column 'filepath'"),
        (b'filepath\ttitle\na.jpg\t\xff\xfe\n', 'no text in UTF-8'),
    ],
)
def test_tables_that_are_none(tmp_path, content, message):
    content = content if isinstance(content, bytes) else content.encode()
    (tmp_path / 'bad.csv').write_bytes(content)
    with pytest.raises(InputError, match=message):
        CaptionedImages(str(tmp_path), 'bad.csv')


def test_missing_table_is_named(tmp_path):
    with pytest.raises(MissingFileError, match='caption table not found: .*none.csv'):
        CaptionedImages(str(tmp_path), 'none.csv')


# ---------------------------------------------------------------------------------------- model


def test_state_dict_is_open_clips(model):
    theirs = open_clip.model.CLIP(16, dict(VISION), dict(TEXT))
    theirs.load_state_dict(model.state_dict())
    assert list(theirs.state_dict()) == list(model.state_dict())


def test_features_are_those_of_open_clip(model, batch):
    theirs = open_clip.model.CLIP(16, dict(VISION), dict(TEXT))
    theirs.load_state_dict(model.state_dict())
    image, text = model(**batch)
    expected = theirs(**batch)
    torch.testing.assert_close(image, expected[0])
    torch.testing.assert_close(text, expected[1])


def test_loss_is_the_symmetric_cross_entropy(model, batch):
    image, text = model(**batch)
    logits = model.logit_scale.exp() * image @ text.T
    labels = torch.arange(4)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    loss = model(**batch, mode='loss')['loss']
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_temperature_is_bounded(model, batch):
    model.logit_scale.data.fill_(9)
    model(**batch, mode='loss')
    assert model.logit_scale.item() == pytest.approx(math.log(100))


def test_a_few_steps_tell_four_pairs_apart(model, batch):
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        model(**batch, mode='loss')['loss'].backward()
        optimizer.step()
    metric = RetrievalMetric()
    metric.process(None, model.eval()(**batch, mode='predict'))
    assert metric.evaluate(4) == {
        'retrieval/image_to_text': 100.0,
        'retrieval/text_to_image': 100.0,
    }


def test_demo_config_takes_a_training_step(batch):
    cfg = load_config('demo/clip_teacher', 'mmengine')
    cfg.model.update(vision_cfg=VISION, text_cfg=TEXT, embed_dim=16)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    from mmengine.optim import build_optim_wrapper

    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    decayed = {
        name
        for group in wrapper.optimizer.param_groups
        for name in group['param_names']
        if group['weight_decay']
    }
    assert 'positional_embedding' not in decayed
    assert 'visual.positional_embedding' not in decayed
    assert {'visual.conv1.weight', 'token_embedding.weight', 'visual.proj'} <= decayed
    assert not any(name.endswith('bias') or name == 'logit_scale' for name in decayed)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    before = model.visual.conv1.weight.detach().clone()
    logged = model.train_step(dict(image=images, text=batch['text'], img_path=['a'] * 4), wrapper)
    assert torch.isfinite(logged['loss'])
    assert not torch.equal(model.visual.conv1.weight, before)


# --------------------------------------------------------------------------------------- metric


def pair(image, text, tokens):
    values = dict(image_feature=image, text_feature=text, text=tokens)
    return {key: torch.tensor(value) for key, value in values.items()}


def test_retrieval_is_counted_both_ways():
    # Text 0 draws every image; image 1 is nearest to every text.
    results = [
        pair([1.0, 0.0], [2.0, 2.0], [1, 0]),
        pair([3.0, 3.0], [0.0, 1.0], [2, 0]),
        pair([0.0, 1.0], [1.0, 0.0], [3, 0]),
    ]
    values = METRICS.build(dict(type='RetrievalMetric')).compute_metrics(results)
    assert values['image_to_text'] == pytest.approx(100 / 3)
    assert values['text_to_image'] == pytest.approx(100 / 3)
    same = copy.deepcopy(results)
    same[2]['text'] = same[0]['text']
    assert RetrievalMetric().compute_metrics(same)['image_to_text'] == pytest.approx(200 / 3)


# ------------------------------------------------------------------------------------ as teacher


def test_its_checkpoint_serves_as_a_teacher(model, batch, tmp_path):
    torch.save(dict(meta={}, state_dict=model.state_dict()), tmp_path / 'clip.pth')
    teacher = MODELS.build(
        dict(
            type='CLIPTeacher',
            model=dict(embed_dim=16, vision_cfg=VISION, text_cfg=TEXT),
            weights=str(tmp_path / 'clip.pth'),
        )
    )
    features = teacher(batch['image'])
    assert features.shape == (4, 16, 16)
    tower = model.visual.eval()
    with torch.no_grad():
        # All tokens through the tower, then its final norm and projection.
        x = tower._embeds(batch['image'])
        expected = tower.ln_post(tower.transformer(x))[:, 1:] @ tower.proj
    torch.testing.assert_close(features, expected)


# ----------------------------------------------------------------------------- several processes


def _gradients_of_half(rank: int, port: int, folder: str) -> None:
    """One of two processes: its half of the batch, gradients averaged as DDP does."""
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    saved = torch.load(f'{folder}/start.pth')
    model = ContrastiveCLIP(16, VISION, TEXT)
    model.load_state_dict(saved['weights'])
    half = slice(2 * rank, 2 * rank + 2)
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    wrapped(saved['image'][half], saved['text'][half], mode='loss')['loss'].backward()
    if rank == 0:
        torch.save({n: p.grad for n, p in model.named_parameters()}, f'{folder}/grads.pth')
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_contrast_the_whole_batch(model, batch, tmp_path):
    torch.save(dict(batch, weights=model.state_dict()), tmp_path / 'start.pth')
    torch.multiprocessing.spawn(_gradients_of_half, (free_port(), str(tmp_path)), nprocs=2)
    model(**batch, mode='loss')['loss'].backward()
    gradients = torch.load(tmp_path / 'grads.pth')
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)
