"""Pictures of features, and of what a student predicts."""

import random
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from mmengine.registry import MODELS
from PIL import Image

from eva_mm.errors import InputError, UnreadableFileError, UsageError
from eva_mm.pretraining import looking
from eva_mm.pretraining.looking import (
    draw_features,
    draw_masked,
    masked_pipeline,
    masked_similarity,
    normalise,
    patch_features,
    principal_colours,
)
from tests.helpers import load_config


def small_config():
    """The demo's model without a teacher's file."""
    cfg = load_config('demo/pretrain', 'mmengine')
    cfg.model.teacher.weights = None
    cfg.model.depth = 2
    return cfg


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """CONFIG:CHECKPOINT of a small student."""
    folder = tmp_path_factory.mktemp('run')
    cfg = small_config()
    cfg.dump(folder / 'small.py')
    torch.manual_seed(0)
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), folder / 'small.pth')
    return f'{folder / "small.py"}:{folder / "small.pth"}'


@pytest.fixture
def photo(tmp_path):
    """Left half red, right half blue, 120 x 80."""
    pixels = np.zeros((80, 120, 3), np.uint8)
    pixels[:, :60, 0] = 200
    pixels[:, 60:, 2] = 200
    path = tmp_path / 'photo.png'
    Image.fromarray(pixels).save(path)
    return path


def test_features_have_a_vector_per_patch_of_the_whole_image(trained, photo):
    model, _ = looking.open_model(trained)
    image = Image.open(photo)
    features = patch_features(model, image)
    assert features.shape == (8, 12, 128)  # shorter side 64 px, patches of 8 px
    assert patch_features(model, image, 30).shape == (4, 6, 128)
    pixels = torch.from_numpy(np.asarray(image.resize((96, 64), Image.Resampling.BICUBIC)).copy())
    with torch.no_grad():
        expected = model.forward_patch_tokens(normalise(model, pixels.permute(2, 0, 1)[None]))
    torch.testing.assert_close(features, expected.reshape(8, 12, 128))


def test_normalisation_is_the_preprocessors(trained):
    model, _ = looking.open_model(trained)
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    batch = model.data_preprocessor(dict(image=image))
    torch.testing.assert_close(normalise(model, image), batch['image'])


def test_normalisation_of_a_detector_is_in_values_up_to_255():
    pytest.importorskip('mmdet')
    from eva_mm.detection.preprocessor import FixedSizeDetDataPreprocessor

    holder = torch.nn.Module()
    holder.data_preprocessor = FixedSizeDetDataPreprocessor(
        pad_size=(8, 8), mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]
    )
    image = torch.tensor([255, 0, 100], dtype=torch.uint8).reshape(3, 1, 1)
    expected = torch.tensor([131.325 / 58.395, -116.28 / 57.12, -3.53 / 57.375])
    torch.testing.assert_close(normalise(holder, image).flatten(), expected)
    with pytest.raises(InputError, match='Linear has no data_preprocessor'):
        normalise(torch.nn.Linear(1, 1), image)


def test_colours_are_the_principal_components():
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(20, 30, 3, generator=generator) * torch.tensor([5.0, 2.0, 0.5])
    directions = torch.linalg.qr(torch.randn(16, 3, generator=generator))[0].T
    (colours,) = principal_colours([weights @ directions])
    assert colours.shape == (20, 30, 3)
    assert colours.min() >= 0
    assert colours.max() <= 1
    for channel in range(3):
        found = np.corrcoef(colours[..., channel].ravel(), weights[..., channel].ravel())[0, 1]
        assert abs(found) > 0.9


def test_colours_mean_the_same_in_all_images():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 3, 4, 8, generator=generator)
    together = principal_colours([first, second])
    shared = principal_colours([first, torch.cat((first[:1], second[1:]))])
    np.testing.assert_array_equal(shared[0][0], shared[1][0])
    assert not np.allclose(together[0], principal_colours([first])[0])


def test_drawing_of_features(trained, photo, tmp_path):
    out = draw_features([photo, photo], trained, tmp_path / 'features.png')
    picture = cv2.imread(str(out))
    assert picture is not None
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20


# ---------------------------------------------------------------------------- masked prediction


@pytest.fixture
def sample():
    torch.manual_seed(0)
    return dict(
        image=torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8),
        mask=torch.arange(64) % 3 == 0,
        img_path='x.jpg',
    )


def test_similarity_is_the_negative_loss(trained, sample):
    model, _ = looking.open_model(trained)
    cosines, where = masked_similarity(model, sample)
    assert cosines.shape == where.shape == (8, 8)
    np.testing.assert_array_equal(where.ravel(), sample['mask'].numpy())
    batch = model.data_preprocessor({k: v[None] for k, v in sample.items() if k != 'img_path'})
    with torch.no_grad():
        loss = model(**batch, mode='loss')['loss']
    assert cosines[where].mean() == pytest.approx(-float(loss), abs=1e-6)


def test_crop_is_the_validations_and_mask_the_trainings(photo):
    pipeline = masked_pipeline(small_config())
    assert isinstance(pipeline, Compose)
    random.seed(0)
    masks = [
        pipeline(dict(image=Image.open(photo).convert('RGB'), img_path=''))['mask']
        for _ in range(2)
    ]
    assert not torch.equal(*masks)
    assert all(0 < mask.sum() <= 26 for mask in masks)


def test_a_model_that_hides_nothing_is_refused():
    cfg = small_config()
    cfg.train_dataloader.dataset.pipeline.pop(1)
    with pytest.raises(InputError, match='has no mask'):
        masked_pipeline(cfg)


def test_drawing_of_masked_prediction(trained, photo, tmp_path):
    first = cv2.imread(str(draw_masked([photo], trained, tmp_path / 'a.png')))
    again = cv2.imread(str(draw_masked([photo], trained, tmp_path / 'b.png')))
    other = cv2.imread(str(draw_masked([photo], trained, tmp_path / 'c.png', seed=5)))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_bad_input_is_named(trained, photo, tmp_path):
    with pytest.raises(UnreadableFileError, match='none.jpg'):
        draw_features([tmp_path / 'none.jpg'], trained, tmp_path / 'o.png')
    with pytest.raises(UsageError, match='needs its checkpoint'):
        draw_masked([photo], trained.split(':')[0], tmp_path / 'o.png')
    assert not (tmp_path / 'o.png').exists()


LOOK = Path(__file__).resolve().parents[2] / 'tools' / 'look.py'


@pytest.mark.parametrize(
    ('kind', 'options'), [('features', ('--size', '32')), ('mim', ('--seed', '3'))]
)
def test_command_line(kind, options, trained, photo, tmp_path, capsys):
    look = runpy.run_path(str(LOOK))['main']
    out = tmp_path / f'{kind}.png'
    look([kind, str(photo), '--model', trained, '--out', str(out), *options])
    assert f'drawn: {out}' in capsys.readouterr().out
    assert cv2.imread(str(out)) is not None


def test_command_line_tells_of_mistakes_in_one_line(trained, tmp_path):
    look = runpy.run_path(str(LOOK))['main']
    with pytest.raises(SystemExit, match='^look.py: image not found: .*none.jpg'):
        look(['mim', 'none.jpg', '--model', trained, '--out', str(tmp_path / 'o.png')])
