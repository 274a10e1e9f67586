"""The documentation against the tree: what it names exists, and its examples load."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENGLISH = ROOT / 'README.md'
CHINESE = ROOT / 'README_zh-CN.md'
PAGES = sorted([ENGLISH, CHINESE, *(ROOT / 'docs').glob('*.md')])
# Paths that a user's machine or a run provides.
PROVIDED = ('data/', 'work_dirs/')
FORBIDDEN = {
    'a private absolute path': re.compile(r'(?<![\w.$-])/(?:work|root|home|tmp|mnt)/'),
    'a host of one machine': re.compile(r'localhost|127\.0\.0\.1|file://'),
    'unfinished text': re.compile(
        r'\b(?:TODO|FIXME|XXX|FIGURES|REPOSITORY_URL|lorem ipsum)\b', re.IGNORECASE
    ),
    'advertising': re.compile(
        r'state[- ]of[- ]the[- ]art|blazing|world[- ]class|best[- ]in[- ]class|revolutionary'
        r'|seamless|cutting[- ]edge|effortless|业界领先|最先进|无与伦比|极致',
        re.IGNORECASE,
    ),
}


def code_blocks(text: str) -> list[tuple[str, str]]:
    """(language, code) of every fenced block."""
    return re.findall(r'^```(\w*)\n(.*?)^```$', text, re.DOTALL | re.MULTILINE)


def without_code(text: str) -> str:
    return re.sub(r'^```.*?^```$', '', text, flags=re.DOTALL | re.MULTILINE)


def heading_levels(text: str) -> list[int]:
    return [len(marks) for marks in re.findall(r'^(#+) ', without_code(text), re.MULTILINE)]


def links(text: str) -> list[str]:
    return re.findall(r'\]\(([^)\s]+)\)', without_code(text))


def named_paths(text: str) -> set[str]:
    """Paths in code spans and code blocks that should be in the tree."""
    pieces = re.findall(r'`([^`\n]+)`', without_code(text))
    pieces += [code for _, code in code_blocks(text)]
    found = set()
    for piece in pieces:
        found.update(
            re.findall(
                r'(?<![\w/:.])((?:configs|tools|eva_mm|tests|docs|requirements)/[\w./-]*)', piece
            )
        )
    return {path.rstrip('.') for path in found}


def test_both_readmes_have_the_same_headings():
    assert heading_levels(CHINESE.read_text()) == heading_levels(ENGLISH.read_text())


def test_both_readmes_have_the_same_code():
    assert code_blocks(CHINESE.read_text()) == code_blocks(ENGLISH.read_text())


def test_both_readmes_have_the_same_links_and_figures():
    """Links aside from those to one another; numbers in tables and text."""
    english, chinese = (page.read_text() for page in (ENGLISH, CHINESE))
    own = {ENGLISH.name, CHINESE.name}
    assert [x for x in links(chinese) if x not in own] == [
        x for x in links(english) if x not in own
    ]
    decimals = re.compile(r'\b\d+\.\d+\b')
    assert sorted(decimals.findall(chinese)) == sorted(decimals.findall(english))


def test_readme_opens_with_the_two_commands():
    language, code = code_blocks(ENGLISH.read_text())[0]
    assert language == 'bash'
    assert code.split('\n') == ['make demo', 'make test', '']


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page):
    broken = [
        target
        for target in links(page.read_text())
        if '://' not in target and not (page.parent / target.partition('#')[0]).exists()
    ]
    assert broken == []


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_named_paths_exist(page):
    missing = [path for path in named_paths(page.read_text()) if not (ROOT / path).exists()]
    assert sorted(missing) == []


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_no_forbidden_text(page):
    text = page.read_text()
    found = {
        what: hit.group() for what, pattern in FORBIDDEN.items() if (hit := pattern.search(text))
    }
    assert found == {}


def test_make_targets_that_are_named_exist():
    targets = set(re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
    for page in PAGES:
        for code in re.findall(r'`make ([^`\n]+)`', page.read_text()):
            named = [word for word in code.split() if '=' not in word]
            assert set(named) <= targets, f'{page.name}: make {code}'


def test_options_in_the_training_page_exist():
    options = re.findall(r'^\| `(--[\w-]+)', (ROOT / 'docs/train_detection.md').read_text(), re.M)
    source = (ROOT / 'tools/train.py').read_text()
    assert options
    for option in options:
        assert f"'{option}'" in source


def test_sizes_in_the_plug_in_page_are_those_of_the_table():
    from eva_mm.vit import SIZES

    rows = re.findall(
        r'^\| `(\w+)` \| (\d+) \| (\d+) \| (\d+) \|', (ROOT / 'docs/plug_in.md').read_text(), re.M
    )
    told = {name: tuple(map(int, numbers)) for name, *numbers in rows}
    assert told == {n: (s.depth, s.embed_dim, s.num_heads) for n, s in SIZES.items()}


def mmdet_examples() -> list[str]:
    examples = []
    for page in (ENGLISH, ROOT / 'docs/plug_in.md'):
        for language, code in code_blocks(page.read_text()):
            if language == 'python' and code.startswith("_base_ = 'mmdet::"):
                examples.append(code)
    return examples


@pytest.mark.parametrize('index', range(len(mmdet_examples())))
def test_examples_build_and_change_backbone_and_neck_only(index, tmp_path):
    pytest.importorskip('mmdet')
    import torch
    from mmengine.config import Config
    from mmengine.registry import MODELS, DefaultScope

    import eva_mm.detection  # noqa: F401
    from eva_mm import compat

    compat.prepare()
    example = mmdet_examples()[index]
    path, base = tmp_path / 'example.py', tmp_path / 'base.py'
    path.write_text(example)
    base.write_text(example.splitlines()[0])
    config, stock = Config.fromfile(str(path)), Config.fromfile(str(base))
    changed = {key for key in config.model if config.model[key] != stock.model.get(key)}
    # Whole patches need padding, which the DETR family leaves out.
    assert changed - {'data_preprocessor'} == {'backbone', 'neck'}
    assert config.model.data_preprocessor.pad_size_divisor == 32
    config.model.backbone.size = 'tiny'
    config.model.neck.in_channels = 192
    with DefaultScope.overwrite_default_scope('mmdet'), torch.no_grad():
        levels = MODELS.build(config.model).extract_feat(torch.zeros(1, 3, 256, 256))
    strides = [256 // level.shape[-1] for level in levels]
    if 'encoder' in config.model:  # of the DETR family
        assert strides == [8, 16, 32, 64]
    else:
        anchors = (config.model.get('rpn_head') or config.model.bbox_head).anchor_generator
        assert strides == anchors.strides
