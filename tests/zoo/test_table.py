"""Facts of the published checkpoints, and what the table's reader refuses."""

import importlib
import re
from pathlib import Path

import pytest
import torch
import yaml

from eva_mm.errors import InputError
from eva_mm.vit import SIZES, EVAVisionTransformer
from eva_mm.zoo import table
from eva_mm.zoo.table import MODELS_FILE, find_model, published_jobs, published_models, read_table

ROOT = Path(__file__).resolve().parents[2]
MODELS = published_models()
NAMES = [
    'eva_psz14',
    'eva_psz14to16',
    'eva_21k_224px',
    'eva_21k_1k_336px',
    'eva_21k_1k_560px',
    'eva_l_psz14',
    'eva_l_psz14_21k_ft',
    'eva_l_psz14_196px_1k_ft',
    'eva_l_psz14_336px_1k_ft',
    'eva_l_psz14_196px_21k_to_1k_ft',
    'eva_l_psz14_336px_21k_to_1k_ft',
    'eva_clip',
    'eva_clip_vision_enc',
    'eva_clip_lincls_224px',
    'eva_clip_lincls_336px',
    'eva_clip_ft_224px',
    'eva_clip_ft_336px',
    'eva_o365',
    'eva_coco_det',
    'eva_coco_seg',
    'eva_lvis',
    'eva_sem_seg_coco_stuff',
    'eva_sem_seg_coco_stuff_relpos',
    'eva_sem_seg_ade',
    'eva_sem_seg_ade_relpos',
    'eva_video_k722',
    'eva_video_k400',
    'eva_video_k600',
    'eva_video_k700',
]

# Parameters that the files have beside the core's: mask token and `lm_head` of EVA-g
# (EVA-01/eva/modeling_pretrain.py); the decoder of EVA-L (modeling_mae_pretrain.py), less the
# fixed position embedding of the encoder, which the log's count of trained parameters leaves out.
GIANT_MIM_HEAD = 1408 + 1408 * 768 + 768
DECODER_BLOCK = 12 * 512**2 + (3 + 1 + 4 + 1) * 512 + 2 * 2 * 512
LARGE_MIM_DECODER = (
    (1024 * 512 + 512) + 512 + 4 * DECODER_BLOCK + 2 * 512 + (512 * 1024 + 1024) - 257 * 1024
)


def core_model(model):
    with torch.device('meta'):
        return EVAVisionTransformer(**model.model)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def of_kind(*kinds):
    return [name for name, model in MODELS.items() if model.kind in kinds]


# ----------------------------------------------------------------------------------- the facts


def test_names_are_those_that_users_write():
    assert set(MODELS) == {*NAMES, 'eva_video_data_list'}


@pytest.mark.parametrize('name', of_kind('classifier'))
def test_classifiers_have_the_published_number_of_parameters(name):
    model = MODELS[name]
    assert count(core_model(model)) == model.params


def test_pretrained_models_have_the_published_number_of_parameters():
    giant, large = MODELS['eva_psz14'], MODELS['eva_l_psz14']
    assert count(core_model(giant)) + GIANT_MIM_HEAD == giant.params
    assert count(core_model(large)) + LARGE_MIM_DECODER == large.params


@pytest.mark.parametrize('name', of_kind('linear'))
def test_linear_probes_train_the_published_number_of_parameters(name):
    assert count(core_model(MODELS[name]).head) == MODELS[name].params


@pytest.mark.parametrize('name', of_kind(*table.CORE_KINDS))
def test_core_models_have_the_grid_and_patch_of_their_name(name):
    """`psz14` and `NNNpx` stand in the names that the authors gave."""
    model = core_model(MODELS[name])
    patch = 16 if 'psz14to16' in name else 14
    size = int((re.search(r'(\d{3})px', name) or [0, '224'])[1])
    assert model.size.patch_size == patch
    assert model.pos_embed_grid == (size // patch, size // patch)
    assert model.size.depth == SIZES['large' if name.startswith('eva_l_') else 'giant'].depth
    preprocessing = MODELS[name].preprocessing
    assert preprocessing.get('size', size) == size
    assert bool(preprocessing) == (MODELS[name].kind not in ('mim', 'mae'))


def test_accuracies_agree_with_the_file_names():
    """The authors put the accuracy into many names: `89p6`, `ss61p5_ms62p3`."""
    checked = 0
    for model in MODELS.values():
        for whole, rest in re.findall(r'(\d\d)p(\d+)', model.file):
            assert any(abs(v - float(f'{whole}.{rest}')) < 0.06 for v in model.metrics.values())
            checked += 1
    assert checked == 16


@pytest.mark.parametrize(
    ('name', 'classes', 'last'),
    [
        ('eva_coco_det', 80, 'toothbrush'),
        ('eva_coco_seg', 80, 'toothbrush'),
        ('eva_lvis', 1203, 'zucchini'),
        ('eva_sem_seg_coco_stuff', 171, 'wood'),
        ('eva_sem_seg_ade', 150, 'flag'),
    ],
)
def test_class_names(name, classes, last):
    module, _, attribute = MODELS[name].dataset.rpartition('.')
    pytest.importorskip(module.partition('.')[0])
    names = getattr(importlib.import_module(module), attribute).METAINFO['classes']
    assert (len(names), names[-1]) == (classes, last)


@pytest.mark.parametrize('name', [name for name, model in MODELS.items() if model.config])
def test_configs_exist_once_their_folder_does(name):
    for config in filter(None, (MODELS[name].config, MODELS[name].test_config)):
        path = ROOT / config
        assert path.is_file() or not path.parent.is_dir(), f'{config} does not exist'


def test_detection_is_built():
    """Else the test above would check nothing."""
    assert (ROOT / MODELS['eva_lvis'].test_config).is_file()
    assert (ROOT / MODELS['eva_coco_seg'].test_config).is_file()


def test_every_name_in_a_config_is_published():
    found = [
        (path, name)
        for path in (ROOT / 'configs').rglob('*.py')
        for name in re.findall(r'eva://([\w.]+)', path.read_text(encoding='utf-8'))
    ]
    assert len(found) >= 4
    for path, name in found:
        assert name in MODELS, f'{path.relative_to(ROOT)} names eva://{name}'


def test_every_task_is_wanted_by_some_job():
    wanted = {MODELS[name].task for job in published_jobs() for name in job.take}
    assert wanted == set(table.TASKS)


# ------------------------------------------------------------------------------- finding a row


@pytest.mark.parametrize('scheme', ['', 'eva://'])
@pytest.mark.parametrize(
    'name',
    ['eva_21k_224px', 'eva_21k_224px_psz14.pt', 'eva_21k_224px_psz14'],
)
def test_a_row_is_found_by_name_file_and_stem(scheme, name):
    assert find_model(scheme + name).name == 'eva_21k_224px'


def test_every_file_and_name_leads_to_its_own_row():
    for name, model in MODELS.items():
        assert {find_model(key) for key in (name, model.file, Path(model.file).stem)} == {model}


@pytest.mark.parametrize(
    ('name', 'told'),
    [
        ('eva://eva_lvs', r"unknown checkpoint 'eva://eva_lvs', did you mean eva_lvis"),
        ('eva_21k_1k_336', 'did you mean eva_21k_1k_336px'),
        ('EVA_CLIP', r'did you mean eva_clip\b'),
        ('eva_clip_psz14.pth', r'did you mean eva_clip\b'),
        ('resnet50', "expected a name such as 'eva_lvis'.*--list"),
    ],
)
def test_unknown_names_are_answered_by_near_ones(name, told):
    with pytest.raises(InputError, match=told):
        find_model(name)


# ------------------------------------------------------------------------------- wrong tables


@pytest.fixture
def broken(tmp_path):
    """Write the table with a change to it: ``broken(change)`` gives the path."""

    def write(change):
        content = yaml.safe_load(MODELS_FILE.read_text(encoding='utf-8'))
        change(content, {row['name']: row for row in content['models']})
        path = tmp_path / 'models.yml'
        path.write_text(yaml.safe_dump(content), encoding='utf-8')
        return path

    return write


def test_the_table_survives_being_written_anew(broken):
    assert read_table(broken(lambda content, rows: None)).models == MODELS


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        (
            lambda c, rows: rows['eva_lvis'].update(metric=1),
            "model eva_lvis: unknown key 'metric', expected one of",
        ),
        (lambda c, rows: rows['eva_lvis'].pop('task'), "model eva_lvis: key 'task' is missing"),
        (
            lambda c, rows: rows['eva_lvis'].update(name='eva_o365'),
            'model eva_o365: name stands twice',
        ),
        (
            lambda c, rows: rows['eva_lvis'].update(file='eva_o365.pth'),
            "model eva_lvis: key 'file' is that of model eva_o365",
        ),
        (
            lambda c, rows: rows['eva_lvis'].update(init_from='eva_objects'),
            "model eva_lvis: key 'init_from' names 'eva_objects', which is no model",
        ),
        (
            lambda c, rows: rows['eva_lvis'].update(kind='detectr'),
            "model eva_lvis: key 'kind' should be one of .*'detectr'",
        ),
        (
            lambda c, rows: rows['eva_psz14'].update(params='1.0B'),
            "model eva_psz14: key 'params' should be int.*found '1.0B'",
        ),
        (lambda c, rows: rows['eva_psz14'].pop('model'), "model eva_psz14: key 'model' is missing"),
        (lambda c, rows: c['models'].insert(0, {'file': 'a.pt'}), 'model number 1: .* is missing'),
        (lambda c, rows: c['models'].append('eva'), "model number 31: expected keys .*'eva'"),
        (
            lambda c, rows: c['jobs'][0].update(take=['eva_huge']),
            "key 'take' names 'eva_huge', which is no model",
        ),
        (lambda c, rows: c.update(modles=[]), "expected the keys .*'modles'"),
        (lambda c, rows: c.update(jobs={}), "'jobs' should be a list, found dict"),
    ],
)
def test_wrong_tables_are_refused(broken, change, told):
    path = broken(change)
    with pytest.raises(InputError, match=rf'(?s){re.escape(str(path))}: .*{told}'):
        read_table(path)


def test_missing_and_unreadable_tables(tmp_path):
    path = tmp_path / 'models.yml'
    with pytest.raises(InputError, match='models.yml does not exist'):
        read_table(path)
    path.write_text('models: [}', encoding='utf-8')
    with pytest.raises(InputError, match='models.yml is no YAML file: .*line 1'):
        read_table(path)
