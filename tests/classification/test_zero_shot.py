"""Zero-shot classification against open_clip's own functions, and names of a user's own."""

import subprocess
import sys

import open_clip
import pytest
import torch
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader, load_checkpoint
from timm.data import ImageNetInfo

from eva_mm.classification import variants, zero_shot
from eva_mm.engine.strict_loading import CheckpointMismatchError
from eva_mm.errors import InputError, MissingFileError

from ..helpers import ROOT, load_config
from .small import save_image

TINY = dict(
    embed_dim=24,
    vision_cfg=dict(
        image_size=32,
        timm_model_name='eva_giant_patch14_224',
        timm_model_pretrained=False,
        timm_pool='token',
        timm_proj=None,
        timm_model_kwargs=dict(
            img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, mlp_ratio=2
        ),
    ),
    text_cfg=dict(context_length=77, vocab_size=49408, width=16, heads=2, layers=1),
)
NAMES = ('ant', 'polar bear', 'cat')
TEMPLATES = ['a photo of a {}.', 'a drawing of the {}.', '{}']


@pytest.fixture(autouse=True, scope='module')
def _small_eva_clip():
    """The leaf's model, of open_clip's own architecture, at test size."""
    configs = open_clip.factory._MODEL_CONFIGS
    before = configs['EVA01-g-14']
    vision = {k: v for k, v in TINY['vision_cfg'].items() if k != 'timm_model_kwargs'}
    build = open_clip.timm_model.timm.create_model
    sizes = TINY['vision_cfg']['timm_model_kwargs']

    def create_model(name, **kwargs):
        return build(name, **{**kwargs, **sizes})

    configs['EVA01-g-14'] = dict(TINY, vision_cfg=vision, custom_text=True)
    open_clip.timm_model.timm.create_model = create_model
    yield
    configs['EVA01-g-14'] = before
    open_clip.timm_model.timm.create_model = build


def small_leaf(**model):
    cfg = load_config('imagenet/eva_clip_zeroshot', 'mmengine')
    cfg.model.update(dict(classes=list(NAMES), templates=TEMPLATES) | model)
    cfg.test_dataloader.dataset.pipeline = [dict(type='TimmTransform', size=32, crop_pct=1.0)]
    cfg.test_dataloader.update(num_workers=0, persistent_workers=False, pin_memory=False)
    return cfg


def build(**model):
    torch.manual_seed(0)
    return MODELS.build(small_leaf(**model).model)


def logits_of(clip, image, names=NAMES, templates=TEMPLATES):
    """By open_clip alone, a prompt at a time."""
    tokenizer = open_clip.get_tokenizer('EVA01-g-14')
    columns = []
    with torch.no_grad():
        for name in names:
            texts = [t.format(name) if isinstance(t, str) else t(name) for t in templates]
            feature = clip.encode_text(tokenizer(texts), normalize=True).mean(0)
            columns.append(feature / feature.norm())
        return 100 * clip.encode_image(image, normalize=True) @ torch.stack(columns).T


IMAGE = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def test_logits_are_those_of_open_clip():
    model = build()
    expected = logits_of(model.clip, IMAGE)
    torch.testing.assert_close(model(IMAGE), expected)
    found = model(IMAGE, torch.tensor([2, 0, 1]), 'predict', ['a', 'b', 'c'])
    torch.testing.assert_close(torch.stack([f['logits'] for f in found]), expected)
    assert [(int(f['label']), f['img_path']) for f in found] == [(2, 'a'), (0, 'b'), (1, 'c')]
    with pytest.raises(InputError, match='is for tests'):
        model(IMAGE, torch.tensor([2, 0, 1]), 'loss')


def test_other_classes():
    model = build()
    model(IMAGE)
    model.set_classes(['dog', 'fish'])
    assert model.num_classes == 2
    torch.testing.assert_close(model(IMAGE), logits_of(model.clip, IMAGE, ['dog', 'fish']))
    model.set_classes(['dog', 'fish'], ['{}'])
    expected = logits_of(model.clip, IMAGE, ['dog', 'fish'], ['{}'])
    torch.testing.assert_close(model(IMAGE), expected)


def test_imagenet_and_its_prompts():
    model = build(classes='imagenet-1k', templates='openai')
    assert (model.num_classes, len(model.templates)) == (1000, 80)
    # In the order of WordNet ids, as the labels of the folders are.
    for index, name in {0: 'tench', 1: 'goldfish', 207: 'golden retriever'}.items():
        assert model.classes[index].lower() == name
        assert ImageNetInfo().index_to_description(index).startswith(name)
    model.set_classes(['tench', 'crane'])
    expected = logits_of(model.clip, IMAGE, ['tench', 'crane'], open_clip.OPENAI_IMAGENET_TEMPLATES)
    torch.testing.assert_close(model(IMAGE), expected)


def published_names(weights):
    """Names of the authors' file: no `trunk.`, and the temperature in the text tower."""
    renamed = {name.replace('visual.trunk.', 'visual.'): value for name, value in weights.items()}
    renamed['text.logit_scale'] = renamed.pop('logit_scale')
    return renamed


@pytest.mark.parametrize('layout', ['published', 'open_clip', 'own'])
def test_weights_under_every_name(layout, tmp_path):
    source, target = build(), build()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.copy_(0.1 * torch.randn_like(parameter))
    weights = source.clip.state_dict()
    if layout == 'published':
        weights = dict(module=published_names(weights))
        assert 'visual.blocks.1.attn.qkv.weight' in weights['module']
    elif layout == 'own':
        weights = dict(state_dict=source.state_dict())
    torch.save(weights, tmp_path / 'clip.pt')
    before = target(IMAGE)  # features of texts are not to outlive the weights
    load_checkpoint(target, str(tmp_path / 'clip.pt'), map_location='cpu')
    expected = logits_of(source.clip, IMAGE)
    assert not torch.allclose(before, expected, atol=1e-2)
    torch.testing.assert_close(target(IMAGE), expected)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    model = build()
    weights = published_names(model.clip.state_dict())
    del weights['text.text_projection']
    torch.save(weights, tmp_path / 'clip.pt')
    with pytest.raises(CheckpointMismatchError, match=r'missing in the checkpoint \(1\)'):
        load_checkpoint(model, str(tmp_path / 'clip.pt'), map_location='cpu')
    weights['text.text_projection'] = torch.zeros(16, 7)
    torch.save(weights, tmp_path / 'clip.pt')
    with pytest.raises(CheckpointMismatchError, match='model 16 x 24, checkpoint 16 x 7'):
        load_checkpoint(model, str(tmp_path / 'clip.pt'), map_location='cpu')


def test_any_clip_model_of_open_clip():
    vision = dict(image_size=32, patch_size=16, width=16, layers=1, head_width=8)
    model = build(model=dict(TINY, vision_cfg=vision))
    assert type(model.clip) is open_clip.CLIP
    torch.testing.assert_close(model(IMAGE), logits_of(model.clip, IMAGE))


def test_wrong_arguments():
    with pytest.raises(InputError, match="'EVA1-g-14' is no model of open_clip; near: EVA01-g-14"):
        build(model='EVA1-g-14')
    for templates in (['a photo'], ['{} {}'], ['{x}']):
        with pytest.raises(InputError, match='has no place for a name'):
            build(templates=templates)
    with pytest.raises(InputError, match='found none'):
        build(templates=[])
    with pytest.raises(InputError, match='expected class names, each once'):
        build(classes=['ant', 'bee', 'ant'])


def test_weights_of_open_clip_by_tag(monkeypatch, tmp_path):
    model = build()
    file = tmp_path / 'clip.pt'
    torch.save(model.clip.state_dict(), file)
    asked = []
    monkeypatch.setattr(
        open_clip, 'download_pretrained', lambda config: asked.append(config) or str(file)
    )
    load_checkpoint(model, 'open_clip://EVA01-g-14/laion400m_s11b_b41k', map_location='cpu')
    assert asked[0]['hf_hub'].startswith('timm/eva_giant_patch14_clip_224')
    with pytest.raises(InputError, match='has open_clip://EVA01-g-14/laion400m_s11b_b41k'):
        CheckpointLoader.load_checkpoint('open_clip://EVA01-g-14/laion2b')

    def fail(config):
        raise OSError('no network')

    monkeypatch.setattr(open_clip, 'download_pretrained', fail)
    with pytest.raises(MissingFileError, match='could not be fetched: no network'):
        CheckpointLoader.load_checkpoint('open_clip://EVA01-g-14/laion400m_s11b_b41k')


def test_objectnet_is_judged_by_its_own_names(monkeypatch, tmp_path):
    from .test_variants import make_objectnet

    cfg = small_leaf()
    spec = cfg.variants.sets.objectnet
    assert (spec.interpolation, spec.published.top1) == ('bicubic', 72.33)
    spec.dataset.data_root = str(make_objectnet(tmp_path / 'objectnet'))
    cfg.work_dir, cfg.load_from = str(tmp_path / 'run'), str(tmp_path / 'clip.pt')
    cfg.log_level = 'WARNING'
    torch.save(build().clip.state_dict(), cfg.load_from)
    asked = []
    texts = zero_shot.EVACLIPZeroShot.set_classes
    monkeypatch.setattr(
        zero_shot.EVACLIPZeroShot,
        'set_classes',
        lambda self, classes, *rest: asked.append(tuple(classes)) or texts(self, classes, *rest),
    )
    table = variants.evaluate_variants(cfg, 'objectnet')
    own = ('alarm clock', 'beer bottle', 'weather vane')
    assert asked == [NAMES, own, NAMES]
    images, published, top1, published_top5, top5 = table.splitlines()[2].split()[1:6]
    assert (images, published, published_top5) == ('6', '72.330', '89.370')
    assert float(top1) in {round(100 * hits / 6, 3) for hits in range(7)}
    assert top5 == '-'  # of three classes


@pytest.mark.slow
def test_missing_open_clip_is_told(tmp_path):
    save_image(tmp_path / 'a.png', (9, 9, 9))
    code = (
        'import sys; sys.modules["open_clip"] = None; sys.argv = ["infer.py", "a.png", "--model", '
        '"eva_clip"]; import runpy; '
        f'runpy.run_path({str(ROOT / "tools" / "infer.py")!r}, run_name="__main__")'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 1
    assert done.stderr.strip().endswith(
        'EVA-CLIP needs open_clip: pip install open_clip_torch==3.3.0'
    )
