"""The teacher: where its weights come from, what it computes, and what it refuses."""

import copy
import pickle

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from eva_mm.engine.dry_run import Report, build_meta_model, describe_weights
from eva_mm.errors import InputError, MissingFileError
from eva_mm.pretraining import teacher as teacher_module
from eva_mm.pretraining.teacher import CLIPTeacher
from eva_mm.resize import resize_pos_embed

from .small import CLIP, FEATURES, GRID, SIDE, small_leaf

TIMM = dict(
    embed_dim=FEATURES,
    vision_cfg=dict(
        image_size=224, timm_model_name='vit_tiny_patch16_224', timm_pool='token', timm_proj=None
    ),
)
TEXT = dict(context_length=8, vocab_size=16, width=16, heads=1, layers=1)


@pytest.fixture(scope='module')
def clip():
    """A whole CLIP model of open_clip with random weights."""
    torch.manual_seed(0)
    return open_clip.model.CLIP(**copy.deepcopy(CLIP), text_cfg=TEXT).eval()


@pytest.fixture
def image():
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def expected_tokens(clip, image):
    """Patch tokens by the tower's parts, one by one."""
    tower = clip.visual
    x = tower.conv1(image).flatten(2).transpose(1, 2)
    x = torch.cat((tower.class_embedding.expand(len(x), 1, -1), x), 1) + tower.positional_embedding
    x = tower.transformer(tower.ln_pre(x))
    return (tower.ln_post(x[:, 1:]) @ tower.proj).detach()


def files_of(clip, folder):
    """The same tower in the files that there are of CLIP models."""
    whole = clip.state_dict()
    tower = {k.removeprefix('visual.'): v for k, v in whole.items() if k.startswith('visual.')}
    contents = dict(
        whole=whole,
        tower=tower,
        open_clip=dict(epoch=3, state_dict={f'module.{k}': v for k, v in whole.items()}),
        trained_here=dict(meta={}, state_dict={f'clip.{k}': v for k, v in whole.items()}),
        half={k: v.half() for k, v in whole.items()},
    )
    for name, content in contents.items():
        torch.save(content, folder / f'{name}.pt')
        yield name, str(folder / f'{name}.pt')
    save_file({k: v.contiguous() for k, v in whole.items()}, folder / 'whole.safetensors')
    yield 'safetensors', str(folder / 'whole.safetensors')


def test_every_kind_of_file(clip, image, tmp_path):
    expected = expected_tokens(clip, image)
    for name, file in files_of(clip, tmp_path):
        teacher = CLIPTeacher(CLIP, file)
        assert teacher.tower is None  # nothing is read before it is needed
        tokens = teacher(image)
        assert tokens.shape == (2, GRID * GRID, FEATURES)
        tolerance = 2e-2 if name == 'half' else 1e-5
        torch.testing.assert_close(tokens, expected, atol=tolerance, rtol=0, msg=name)
        assert {p.dtype for p in teacher.parameters()} == {torch.float32}


def test_towers_of_timm_and_eva_clip(tmp_path):
    """Norm, then the trunk's head, on patch tokens; the authors leave out ``trunk.``."""
    torch.manual_seed(0)
    tower = open_clip.model._build_vision_tower(**copy.deepcopy(TIMM)).eval()
    image = torch.randn(1, 3, 224, 224)
    expected = tower.trunk.head(tower.trunk.forward_features(image)[:, 1:]).detach()
    weights = {f'visual.{k}': v for k, v in tower.state_dict().items()}
    authors = {k.replace('trunk.', ''): v for k, v in weights.items()}
    for content in (weights, dict(module={**authors, 'text.logit_scale': torch.zeros(())})):
        torch.save(content, tmp_path / 'clip.pt')
        teacher = CLIPTeacher(TIMM, str(tmp_path / 'clip.pt'))
        assert teacher.grid == (14, 14)
        torch.testing.assert_close(teacher(image), expected, atol=1e-5, rtol=1e-5)


def test_published_teachers_have_the_grid_and_width_of_their_students():
    for name, weights, grid, dim, quick_gelu in (
        ('ViT-L-14', 'openai', 16, 768, True),
        ('ViT-B-16', 'openai', 14, 512, True),
        ('ViT-L-14', None, 16, 768, False),
        ('EVA01-g-14', 'laion400m_s11b_b41k', 16, 1024, False),
    ):
        teacher = CLIPTeacher(name, weights)
        assert (teacher.grid, teacher.feature_dim) == ((grid, grid), dim)
        assert teacher.config['quick_gelu'] is quick_gelu
        assert teacher.tower is None
    # Blocks, patches, class token with positions, norm; and the projection with its bias.
    encoder = 1_009_950_720 + 829_312 + 258 * 1408 + 2 * 1408
    assert teacher.num_bytes == 4 * (encoder + 1409 * 1024)


def test_position_embedding_of_another_grid(clip, tmp_path):
    torch.save(clip.state_dict(), tmp_path / 'clip.pt')
    teacher = CLIPTeacher(CLIP, str(tmp_path / 'clip.pt'), image_size=2 * SIDE)
    assert teacher.grid == (2 * GRID, 2 * GRID)
    teacher.load()
    table = clip.visual.positional_embedding.detach()[None]
    expected = resize_pos_embed(table, (2 * GRID, 2 * GRID))[0]
    torch.testing.assert_close(teacher.tower.positional_embedding, expected)
    assert teacher(torch.zeros(1, 3, 2 * SIDE, 2 * SIDE)).shape == (1, 4 * GRID**2, FEATURES)


def test_random_weights_are_the_same_in_every_process(image):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = CLIPTeacher(CLIP, None)
    tokens = first(image)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    other = CLIPTeacher(CLIP, None)
    assert torch.equal(other(image), tokens)
    assert other.digest() == first.digest()
    other.tower.proj.data[0, 0] += 1
    assert other.digest() != first.digest()


def test_computes_in_the_precision_of_the_caller(image):
    teacher = CLIPTeacher(CLIP, None)
    exact = teacher(image)
    with torch.autocast('cpu', torch.bfloat16):
        tokens = teacher(image)
    assert tokens.dtype == torch.float32
    assert 0 < (tokens - exact).norm() / exact.norm() < 0.02


# ------------------------------------------------------------------------------------- bad input


def test_unknown_names():
    with pytest.raises(InputError, match="'ViT-L14' is no model of open_clip; near: ViT-L-14"):
        CLIPTeacher('ViT-L14')
    with pytest.raises(InputError, match="'opnai' of the teacher ViT-L-14 .* openai, laion400m"):
        CLIPTeacher('ViT-L-14', 'opnai')
    with pytest.raises(InputError, match="lacks the key 'vision_cfg', has .'embed_dim'."):
        CLIPTeacher(dict(embed_dim=3), None)
    for name in ('RN50', 'ViT-B-16-SigLIP', 'coca_ViT-B-32'):
        with pytest.raises(InputError, match=f'{name} has no patch tokens'):
            CLIPTeacher(name, None)


def test_files_that_do_not_fit(clip, image, tmp_path):
    with pytest.raises(MissingFileError, match='weights of the teacher CLIP: no file .*none.pt'):
        CLIPTeacher(CLIP, str(tmp_path / 'none.pt')).load()
    file = str(tmp_path / 'clip.pt')
    torch.save({k: v for k, v in clip.state_dict().items() if 'ln_post' not in k}, file)
    with pytest.raises(InputError, match='2 of 32 parameters are missing, first ln_post.weight'):
        CLIPTeacher(CLIP, file).load()
    torch.save(clip.state_dict(), file)
    wider = dict(CLIP, embed_dim=32)
    with pytest.raises(InputError, match=r'proj is \(64, 24\), expected \(64, 32\)'):
        CLIPTeacher(wider, file).load()
    with pytest.raises(InputError, match='takes images of 56 x 56 px, got 28 x 56'):
        CLIPTeacher(CLIP, file)(image[:, :, :28])


def test_torchscript_archives_are_not_opened(tmp_path):
    file = str(tmp_path / 'ViT-L-14.pt')
    torch.jit.script(torch.nn.Linear(2, 2)).save(file)
    with pytest.raises(InputError, match=r"TorchScript archive.*weights='openai' fetches the same"):
        CLIPTeacher(CLIP, file).load()


def test_warns_of_the_gelu_of_openai(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(teacher_module, 'print_log', lambda text, *_, **__: told.append(text))
    torch.save(dict(nothing=torch.zeros(1)), tmp_path / 'clip.pt')
    for name in ('ViT-B-16', 'ViT-B-16-quickgelu'):
        with pytest.raises(InputError, match='does not hold the image tower'):
            CLIPTeacher(name, str(tmp_path / 'clip.pt')).load()
    assert len(told) == 1
    assert 'has to be ViT-B-16-quickgelu' in told[0]


class Attack:
    def __reduce__(self):
        return print, ('ran',)


def test_files_never_run_code(tmp_path, capsys):
    with open(tmp_path / 'clip.pt', 'wb') as file:
        pickle.dump(dict(state_dict=Attack()), file)
    with pytest.raises(InputError):
        CLIPTeacher(CLIP, str(tmp_path / 'clip.pt')).load()
    assert 'ran' not in capsys.readouterr().out


def test_a_failed_download_names_the_way_out(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError('no network')

    monkeypatch.setattr(open_clip, 'download_pretrained', fail)
    with pytest.raises(MissingFileError, match=r"'openai' .* no network.*weights=FILE"):
        CLIPTeacher('ViT-B-16').load()


def test_dry_run_tells_of_the_teacher(tmp_path, capsys):
    cfg = small_leaf('pilot_tokenized_short')
    cfg.model.teacher.weights = str(tmp_path / 'none.pt')
    cfg.model.target.codebook = str(tmp_path / 'codes.pth')
    report = Report()
    describe_weights(report, cfg, build_meta_model(cfg))
    out = capsys.readouterr().out
    assert f'teacher CLIP, {tmp_path}/none.pt: missing' in out
    assert report.missing == [
        f'teacher CLIP, {tmp_path}/none.pt',
        f'codebook {tmp_path}/codes.pth',
    ]
    (tmp_path / 'none.pt').touch()
    (tmp_path / 'codes.pth').touch()
    report = Report()
    describe_weights(report, cfg, build_meta_model(cfg))
    assert report.missing == []
