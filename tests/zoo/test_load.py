"""load_model on small files with the published names, one per kind of model."""

import dataclasses
import pickle
import subprocess
import sys
import textwrap

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from eva_mm.errors import InputError
from eva_mm.vit import EVAVisionTransformer
from eva_mm.zoo import load
from eva_mm.zoo.table import CORE_KINDS, find_model, published_models

from ..helpers import ROOT, relative_error
from .test_timm import IMAGES, MLP, TINY, randomise, tiny_timm

IMAGE = IMAGES[..., :56, :56]
SMALL = dict(TINY, img_size=56, mlp_dim=MLP)


@pytest.fixture
def published(monkeypatch, tmp_path):
    """Publish a small file in place of a real one: ``published(name, checkpoint)`` -> its path."""
    files = {}

    def publish(name, checkpoint, **model):
        row = find_model(name)
        row = dataclasses.replace(row, model={**row.model, **SMALL, **model})
        path = tmp_path / row.file
        torch.save(checkpoint, path)
        files[row.name] = row, path
        return path

    def find(name):
        row = find_model(name)
        return files.get(row.name, [row])[0]

    monkeypatch.setattr(load, 'find_model', find)
    monkeypatch.setattr(load, 'cached_file', lambda name, download: files[find_model(name).name][1])
    return publish


def model(size='giant', **kwargs) -> EVAVisionTransformer:
    return randomise(EVAVisionTransformer(size, **SMALL, **kwargs))


@pytest.mark.parametrize(
    ('name', 'size'),
    [('eva_21k_1k_336px', 'giant'), ('eva_l_psz14_196px_1k_ft', 'large')],
)
@torch.no_grad()
def test_classifier(published, name, size):
    source = model(size, num_classes=9)
    published(name, {'model': source.state_dict()})
    module, _ = load.load_model(f'eva://{name}')
    assert torch.equal(module(IMAGE), source(IMAGE))
    assert not module.training
    assert all(p.requires_grad for p in module.blocks.parameters())


@pytest.mark.parametrize('beside', ['mim', 'mae'])
@torch.no_grad()
def test_pretrained_encoder(published, beside):
    """Tokens are normalised as in pretraining; fp16 files come as fp32."""
    name, size = {'mim': ('eva_psz14', 'giant'), 'mae': ('eva_l_psz14', 'large')}[beside]
    source = model(size, pooling='cls').half()
    extra = {
        'mim': ['mask_token', 'lm_head.weight', 'lm_head.bias'],
        'mae': ['mask_token', 'decoder_pos_embed', 'decoder_blocks.0.norm1.weight'],
    }[beside]
    state = {**source.state_dict(), **{key: torch.ones(2).half() for key in extra}}
    published(name, {'module': state})
    module, _ = load.load_model(name)

    source = source.float()
    tokens = source.forward_features(IMAGE)
    assert relative_error(module.forward_patch_tokens(IMAGE), tokens[:, 1:]) < 1e-6
    raw = source.forward_intermediates(IMAGE, [-1])[0].mean((2, 3))
    assert relative_error(module(IMAGE), source.norm(raw)) < 1e-6


@torch.no_grad()
def test_pretrained_encoder_equals_timms_reading_of_it(published):
    """timm moves the final norm behind the pooling too."""
    state = model(pooling='cls').state_dict() | {'mask_token': torch.ones(1, 1, 32)}
    published('eva_psz14', {'module': state})
    theirs = tiny_timm('eva_giant_patch14_224', 56, num_classes=0)
    theirs.load_state_dict(timm.models.eva.checkpoint_filter_fn(state, theirs))
    assert relative_error(load.load_model('eva_psz14')[0](IMAGE), theirs(IMAGE)) < 1e-5


@torch.no_grad()
def test_linear_probe(published):
    source = model(pooling='cls')
    mean, var = torch.randn(32), torch.rand(32) + 0.1
    weight, bias = torch.randn(9, 32), torch.randn(9)
    head = {
        'head.0.running_mean': mean,
        'head.0.running_var': var,
        'head.0.num_batches_tracked': torch.tensor(80),
        'head.1.weight': weight,
        'head.1.bias': bias,
    }
    published('eva_clip_lincls_224px', {'model': {**source.state_dict(), **head}})
    module, _ = load.load_model('eva_clip_lincls_224px')
    feature = (source(IMAGE) - mean) / (var + 1e-6).sqrt()
    assert relative_error(module(IMAGE), F.linear(feature, weight, bias)) < 1e-5
    assert module.head[0].num_batches_tracked.dtype == torch.int64


@pytest.mark.parametrize('prefix', ['', 'visual.'])
@pytest.mark.parametrize('classes', [0, 16])
@torch.no_grad()
def test_clip_image_tower(published, prefix, classes):
    """With the projection or without, alone or as it stands in the whole model."""
    source = model(pooling='cls', num_classes=classes)
    state = {prefix + key: value for key, value in source.state_dict().items()}
    published('eva_clip_vision_enc', {'module': state})
    module, _ = load.load_model('eva_clip_vision_enc')
    assert torch.equal(module(IMAGE), source(IMAGE))


@pytest.fixture
def tiny_open_clip(monkeypatch):
    def create_model(name, **kwargs):
        kwargs |= dict(TINY, img_size=56, mlp_ratio=MLP / TINY['embed_dim'])
        return timm.create_model(name, **kwargs)

    config = open_clip.get_model_config('EVA01-g-14') | dict(embed_dim=16)
    config['text_cfg'].update(context_length=8, vocab_size=50, width=24, heads=2, layers=2)
    timm_of_open_clip = type('timm', (), {'create_model': staticmethod(create_model)})
    monkeypatch.setattr(open_clip.timm_model, 'timm', timm_of_open_clip)
    monkeypatch.setattr(open_clip, 'get_model_config', lambda name: dict(config))
    built = {key: value for key, value in config.items() if key != 'custom_text'}
    return randomise(open_clip.CustomTextCLIP(**built))


@pytest.mark.parametrize('names', ['published', 'open_clip'])
@torch.no_grad()
def test_whole_clip(published, tiny_open_clip, names):
    """Non-persistent buffers too: timm's key biases and the causal mask of the text tower."""
    state = tiny_open_clip.state_dict()
    if names == 'published':
        state['text.logit_scale'] = state.pop('logit_scale')
        state = {k.replace('visual.trunk.', 'visual.'): v for k, v in state.items()}
    published('eva_clip', {'module': {key: value.half() for key, value in state.items()}})
    module, _ = load.load_model('eva_clip')
    source, text = tiny_open_clip.half().float(), torch.randint(1, 50, (3, 8))
    assert torch.equal(module.encode_image(IMAGE), source.encode_image(IMAGE))
    assert torch.equal(module.encode_text(text), source.encode_text(text))
    assert torch.equal(module.logit_scale, source.logit_scale)
    assert not any(t.is_meta for t in (*module.parameters(), *module.buffers()))


def test_clip_without_open_clip(monkeypatch):
    monkeypatch.setattr(load, 'cached_file', None)  # nothing is fetched in vain
    monkeypatch.setitem(sys.modules, 'open_clip', None)
    with pytest.raises(InputError, match='pip install open_clip_torch'):
        load.load_model('eva_clip')
    with pytest.raises(InputError, match='eva_clip has no classes'):
        load.load_model('eva_clip', num_classes=10)


@torch.no_grad()
def test_number_of_classes(published):
    source = model(num_classes=9)
    published('eva_21k_1k_336px', {'model': source.state_dict()})
    pooled, _ = load.load_model('eva_21k_1k_336px', num_classes=0)
    assert torch.equal(pooled(IMAGE), source.pool(source.forward_features(IMAGE)))
    fresh, _ = load.load_model('eva_21k_1k_336px', num_classes=4, dtype=torch.bfloat16)
    assert fresh(IMAGE.bfloat16()).shape == (2, 4)
    assert 0 < fresh.head.weight.abs().max() < 1e-3
    same, _ = load.load_model('eva_21k_1k_336px', num_classes=9)
    assert torch.equal(same.head.weight, source.head.weight)


@pytest.mark.parametrize('suffix', ['.pt', '.safetensors'])
@torch.no_grad()
def test_own_checkpoint(published, tmp_path, suffix):
    """Another class list and grid, in the training loop's own layout."""
    published('eva_21k_1k_336px', {})
    source = randomise(EVAVisionTransformer('giant', **{**SMALL, 'img_size': 84}, num_classes=3))
    file = tmp_path / f'my{suffix}'
    if suffix == '.pt':
        torch.save({'state_dict': source.state_dict(), 'meta': {}}, file)
    else:
        save_file(source.state_dict(), file)
    module, _ = load.load_model('eva_21k_1k_336px', checkpoint=file)
    assert module.pos_embed.shape == (1, 17, 32)
    assert torch.equal(module.head.weight, source.head.weight)
    # The other grid is resized as a forward pass at that size would.
    assert relative_error(module(IMAGE), source(IMAGE)) < 1e-5


def test_path_of_a_published_file(published, tmp_path):
    source = model(num_classes=9)
    path = published('eva_21k_1k_336px', {'model': source.state_dict()})
    module, _ = load.load_model(path)
    assert torch.equal(module.head.weight, source.head.weight)
    other = path.rename(tmp_path / 'renamed.pt')
    with pytest.raises(
        InputError, match=r"renamed.pt has not the name.*checkpoint='/.*renamed.pt'"
    ):
        load.load_model(other)
    with pytest.raises(InputError, match='gone.pt does not exist'):
        load.load_model('eva_21k_1k_336px', tmp_path / 'gone.pt')


def test_dtypes(published):
    published('eva_21k_1k_336px', {'model': model(num_classes=9).half().state_dict()})
    for asked, expected in (
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (None, torch.float16),
    ):
        module, _ = load.load_model('eva_21k_1k_336px', dtype=asked)
        assert {p.dtype for p in module.parameters()} == {expected}


@torch.no_grad()
def test_a_file_of_two_dtypes_takes_the_usual_one(published):
    """``eva_psz14to16.pt`` is fp16 but for its patch kernel."""
    state = {**model(pooling='cls').half().state_dict(), 'mask_token': torch.ones(1, 1, 32).half()}
    state['patch_embed.proj.weight'] = state['patch_embed.proj.weight'].float()
    published('eva_psz14to16', {'model': state}, patch_size=14)
    module, _ = load.load_model('eva_psz14to16', dtype=None)
    assert {t.dtype for t in module.parameters()} == {torch.float16}
    exact, _ = load.load_model('eva_psz14to16')
    assert relative_error(module(IMAGE.half()).float(), exact(IMAGE)) < 1e-2


def test_no_random_numbers_and_no_tie_to_the_file(published):
    """Nothing is initialised only to be overwritten, and the file may be overwritten after."""
    path = published('eva_21k_1k_336px', {'model': model(num_classes=9).state_dict()})
    before = torch.get_rng_state()
    module, _ = load.load_model('eva_21k_1k_336px')
    assert torch.equal(torch.get_rng_state(), before)
    expected = {k: v.clone() for k, v in module.state_dict().items()}
    with open(path, 'r+b') as file:
        file.write(b'\0' * path.stat().st_size)
    assert all(torch.equal(value, expected[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s: s.pop('fc_norm.bias'), r'the file lacks fc_norm\.bias'),
        (lambda s: s.update(stem=torch.ones(1)), 'the model does not know stem'),
        (lambda s: s.update({'cls_token': torch.ones(1, 1, 31)}), r'cls_token: .*\[1, 1, 31\]'),
        (lambda s: s.update(epoch=3), r'expected names and tensors, found epoch \(int\)'),
        (lambda s: s.pop('blocks.0.norm1.bias'), r'the file lacks blocks\.0\.norm1\.bias'),
        (lambda s: s.clear(), 'expected names and tensors, found nothing'),
    ],
)
def test_files_that_do_not_fit(published, change, message):
    state = model(num_classes=9).state_dict()
    change(state)
    path = published('eva_21k_1k_336px', {'model': state})
    with pytest.raises(InputError, match=message) as caught:
        load.load_model('eva_21k_1k_336px')
    assert str(path) in str(caught.value)


@pytest.mark.parametrize('kind', ['detector', 'segmentor', 'video'])
def test_kinds_that_need_a_framework(kind, monkeypatch):
    monkeypatch.setattr(load, 'cached_file', None)  # nothing is fetched in vain
    build = {'detector': 'mmdet', 'segmentor': 'mmseg', 'video': 'mmaction'}[kind]
    rows = [row for row in published_models().values() if row.kind == kind]
    assert rows
    for row in rows:
        here = (ROOT / (row.test_config or row.config)).is_file()
        way = rf"{build}\.apis\..*'eva://{row.name}'" if here else 'is not in this version'
        with pytest.raises(InputError, match=way):
            load.load_model(row.name)


def test_rows_without_weights():
    with pytest.raises(InputError, match='holds no weights'):
        load.load_model('eva_video_data_list')


def test_rows_build_at_full_size():
    """With as many parameters as the table tells."""
    counted = 0
    for row in published_models().values():
        if row.kind not in CORE_KINDS:
            continue
        with torch.device('meta'):
            built = EVAVisionTransformer(**row.model)
        assert built.size.embed_dim == (1024 if row.name.startswith('eva_l') else 1408), row.name
        if row.kind == 'classifier' and row.params:
            counted += 1
            assert sum(p.numel() for p in built.parameters()) == row.params, row.name
        assert load._preprocess_of(row), row.name
    assert counted > 5


# ----------------------------------------------------------------------------- preprocessing


def test_preprocess_is_the_published_one(published):
    """timm's transform with the published figures, and grey images too."""
    published('eva_21k_1k_336px', {'model': model(num_classes=9).state_dict()})
    _, preprocess = load.load_model('eva_21k_1k_336px')
    pixels = np.random.default_rng(0).integers(0, 256, (400, 500, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    transform = timm.data.create_transform(
        (3, 336, 336),
        crop_pct=1.0,
        interpolation='bicubic',
        mean=timm.data.OPENAI_CLIP_MEAN,
        std=timm.data.OPENAI_CLIP_STD,
    )
    tensor = preprocess(image)
    assert tensor.shape == (3, 336, 336)
    assert torch.equal(tensor, transform(image))
    assert preprocess(image.convert('L')).shape == (3, 336, 336)
    assert torch.equal(pickle.loads(pickle.dumps(preprocess))(image), tensor)


@pytest.mark.parametrize(('crop_pct', 'resized'), [(1.0, 224), (224 / 256, 256), (0.9, 248)])
def test_crop_fraction(crop_pct, resized):
    image = Image.new('RGB', (320, 480))
    steps = load.make_preprocess(224, crop_pct).transforms
    assert steps[1](image).size[0] == resized
    assert load.make_preprocess(224, crop_pct)(image).shape == (3, 224, 224)


def test_needs_no_image_packages_on_import():
    code = textwrap.dedent("""
        import sys
        import eva_mm.zoo.load
        heavy = {'torchvision', 'open_clip', 'timm', 'PIL', 'mmengine', 'mmcv'} & set(sys.modules)
        assert not heavy, heavy
    """)
    subprocess.run([sys.executable, '-c', code], check=True, timeout=120)
