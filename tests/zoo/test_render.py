"""model_zoo.md is what the table says; the list fits a terminal."""

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

from eva_mm.errors import InputError
from eva_mm.zoo import render
from eva_mm.zoo.table import TASKS, published_models

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools' / 'render_zoo.py'
MODELS = published_models()


def tool(*args):
    done = subprocess.run(
        [sys.executable, str(TOOL), *map(str, args)], capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope='module')
def text():
    return render.render(ROOT)


def test_model_zoo_is_up_to_date(text):
    assert (ROOT / 'model_zoo.md').read_text(encoding='utf-8') == text, (
        'run: python tools/render_zoo.py'
    )


def test_the_tool_tells_a_stale_file_and_mends_it(tmp_path, text):
    out = tmp_path / 'zoo.md'
    assert tool('--check', '--out', out) == (
        1,
        f'{out} is stale, run: python tools/render_zoo.py\n',
    )
    assert not out.exists()
    assert tool('--out', out) == (0, f'written: {out}\n')
    assert out.read_text(encoding='utf-8') == text
    assert tool('--check', '--out', out) == (0, f'{out} is up to date\n')
    out.write_text(text.replace('89.6', '89.7'), encoding='utf-8')
    assert tool('--check', '--out', out)[0] == 1
    assert [path.name for path in tmp_path.iterdir()] == ['zoo.md']


def test_each_file_has_a_row_in_the_table_of_its_task(text):
    sections = dict(zip(TASKS, re.split(r'(?m)^### .*\n', text)[1:], strict=True))
    for model in MODELS.values():
        rows = [
            line
            for line in sections[model.task].split('\n')
            if line.startswith(f'| [`{model.name}`]')
        ]
        assert len(rows) == 1
        link = re.search(r'\((https://huggingface\.co/BAAI/EVA/blob/main/[^)]*)\)', rows[0])[1]
        assert ' ' not in link
        assert unquote(link).endswith('/' + model.file)
        assert all(f'{value} {label}' in rows[0] for label, value in model.metrics.items())
        assert model.params is None or f'{model.params:,}' in rows[0]


def test_tables_are_well_formed(text):
    """As many cells in each row as in the header, or Markdown drops some."""
    header = 0
    for line in text.split('\n'):
        cells = line.count(' | ') if line.startswith('|') else 0
        assert not (header and cells) or cells == header, line
        header = cells


def test_links_within_the_page_and_the_repository_lead_somewhere(text):
    headings = re.findall(r'(?m)^#+ (.*)$', text)
    anchors = {re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-') for heading in headings}
    targets = set(re.findall(r'\]\(([^)]*)\)', text))
    inside = {target[1:] for target in targets if target.startswith('#')}
    files = {target for target in targets if not target.startswith(('#', 'https://'))}
    assert len(inside) == len(TASKS)
    assert inside <= anchors
    assert 'configs/lvis/eva_cascade.py' in files
    assert all((ROOT / file).is_file() for file in files)


def test_configs_are_linked_once_they_exist(tmp_path):
    config = MODELS['eva_video_k400'].config
    job = 'recognise what people do in videos'

    def lines():
        found = render.render(tmp_path).split('\n')
        row = next(line for line in found if line.startswith('| [`eva_video_k400`]'))
        return row, next(line for line in found if job in line)

    row, wanted = lines()
    assert f'planned: `{config}`' in row
    assert 'configs are planned' in wanted
    (tmp_path / config).parent.mkdir(parents=True)
    (tmp_path / config).touch()
    row, wanted = lines()
    assert f'[train]({config})' in row
    assert 'planned' not in row + wanted


def test_the_list_fits_a_terminal_and_is_aligned():
    lines = render.format_list(MODELS).split('\n')
    assert max(map(len, lines)) <= 120
    rows = {line.split()[0]: line for line in lines if line.startswith('  eva')}
    assert list(rows) == [
        model.name for task in TASKS for model in MODELS.values() if model.task == task
    ]
    starts = {line.index(MODELS[name].description[:20]) for name, line in rows.items()}
    assert len(starts) == 1
    assert rows['eva_lvis'].split()[1] == '4GB'


def test_the_list_of_one_task():
    listed = render.format_list(MODELS, 'detection')
    assert re.findall(r'(?m)^  (eva\w+)', listed) == [
        'eva_o365',
        'eva_coco_det',
        'eva_coco_seg',
        'eva_lvis',
    ]
    assert '62.2 LVIS v1 val box AP' in ' '.join(listed.split())


def test_unknown_task():
    with pytest.raises(
        InputError, match="unknown task 'detect', expected one of pretrain, imagenet"
    ):
        render.format_list(MODELS, 'detect')
