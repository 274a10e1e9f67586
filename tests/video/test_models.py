"""Backbone, head and recognizer: shapes, loading of other clips, refusals, a training step."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmaction.structures import ActionDataSample
from mmengine.optim import build_optim_wrapper
from mmengine.runner import load_checkpoint

from eva_mm.engine.strict_loading import CheckpointMismatchError
from eva_mm.errors import InputError, MissingFileError
from eva_mm.video import EVAVideoHead, EVAVideoTransformer, MixupOrCutmix
from eva_mm.video.backbone import resize_clip_pos_embed
from eva_mm.video.head import read_class_rows

from ..helpers import load_config
from .small import TINY, shrink_video

LEAVES = ('eva_g_k722', 'eva_g_k400', 'eva_g_k600', 'eva_g_k700')


def small_model(leaf='eva_g_k400', **options):
    from mmaction.registry import MODELS

    cfg = shrink_video(load_config(f'kinetics/{leaf}', 'mmaction'), **options)
    torch.manual_seed(0)
    return cfg, MODELS.build(cfg.model)


def backbone(num_frames=4, img_size=56, **options):
    return EVAVideoTransformer(num_frames=num_frames, img_size=img_size, **{**TINY, **options})


def test_tokens_attend_over_all_frames():
    model = backbone().eval()
    clip = torch.randn(1, 3, 4, 56, 56)
    with torch.no_grad():
        before = model(clip)
        clip[:, :, 3] += 1
        after = model(clip)
    assert before.shape == (1, 24, 4, 4, 4)
    # The first frame's tokens see the change in the last.
    assert not torch.allclose(before[:, :, 0], after[:, :, 0])


def test_tokens_run_frame_after_frame():
    model = backbone()
    with torch.no_grad():
        model.patch_embed.proj.weight.zero_()
        model.pos_embed[0, 1:] = torch.arange(64.0)[:, None]
        tokens, grid = model.embed(torch.zeros(1, 3, 4, 56, 56))
    assert grid == (4, 4, 4)
    # Frame 2, row 1, column 3.
    assert tokens[0, 1 + 2 * 16 + 1 * 4 + 3, 0] == 2 * 16 + 1 * 4 + 3


def test_other_clips_than_its_own():
    model = backbone()
    assert model(torch.randn(2, 3, 6, 56, 84)).shape == (2, 24, 6, 4, 6)
    with pytest.raises(ValueError, match='4 x 56 x 57 .* not divisible into tubelets of 1 x 14'):
        model(torch.randn(1, 3, 4, 56, 57))
    with pytest.raises(ValueError, match='5 frames are not divisible into tubelets of 2'):
        backbone(num_frames=5, tubelet_size=2)


def test_linear_motion_of_positions_stays_linear_inside():
    steps = torch.arange(4.0)[:, None, None, None].expand(4, 2, 2, 3)
    table = torch.cat((torch.full((1, 1, 3), 9.0), steps.reshape(1, -1, 3)), dim=1)
    resized = resize_clip_pos_embed(table, (4, 2, 2), (8, 2, 2))
    assert (resized[:, 0] == 9).all()
    inner = resized[0, 1:].reshape(8, 4, 3)[1:-1, 0, 0]
    torch.testing.assert_close(inner, torch.arange(6) * 0.5 + 0.25)


def test_image_kernel_is_shared_among_a_tubelets_frames():
    model = backbone(tubelet_size=2)
    image = torch.randn(24, 3, 14, 14)
    state = {**model.state_dict(), 'patch_embed.proj.weight': image}
    state['pos_embed'] = torch.randn(1, 17, 24)
    model.load_state_dict(state)
    # A still clip gives what the image gave.
    picture = torch.randn(1, 3, 56, 56)
    tokens = model.patch_embed(picture[:, :, None].expand(-1, -1, 4, -1, -1))
    expected = F.conv2d(picture, image, model.patch_embed.proj.bias, stride=14)
    torch.testing.assert_close(tokens[:, :, 0], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tokens[:, :, 1], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(model.pos_embed[:, 1:17], model.pos_embed[:, 17:33])


def test_frames_of_a_checkpoint_of_another_size(tmp_path):
    big = backbone(num_frames=2, img_size=224)
    torch.save(big.state_dict(), tmp_path / 'big.pth')
    with pytest.raises(InputError, match='512 patches.*4 x 4 .*16 x 16.*checkpoint_frames'):
        load_checkpoint(backbone(), str(tmp_path / 'big.pth'))
    model = backbone(checkpoint_frames=2)
    load_checkpoint(model, str(tmp_path / 'big.pth'))
    expected = resize_clip_pos_embed(big.pos_embed, (2, 16, 16), (4, 4, 4))
    torch.testing.assert_close(model.pos_embed.detach(), expected.detach())
    with pytest.raises(InputError, match='512 patches is not one of 3 steps'):
        load_checkpoint(backbone(checkpoint_frames=3), str(tmp_path / 'big.pth'))


def test_what_is_saved_is_loaded_again(tmp_path):
    _, model = small_model()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'own.pth')
    _, other = small_model()
    with torch.no_grad():
        other.backbone.pos_embed.zero_()
    load_checkpoint(other, str(tmp_path / 'own.pth'))
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_head_of_other_classes_is_refused(tmp_path):
    _, model = small_model(num_classes=7)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'seven.pth')
    cfg, other = small_model()
    other.cls_head.class_rows = None
    other.init_weights()
    with pytest.raises(CheckpointMismatchError, match='fc_cls.weight: model 5 x 24, checkpoint 7'):
        load_checkpoint(other, str(tmp_path / 'seven.pth'))
    assert cfg.model.cls_head.class_rows == 'data/kinetics400/k722_to_k400.npy'
    other.cls_head.class_rows = 'nowhere.npy'
    with pytest.raises(MissingFileError, match='class mapping not found: nowhere.npy'):
        load_checkpoint(other, str(tmp_path / 'seven.pth'))
    other.cls_head.class_rows = [0, 1, 2, 3, 7]
    with pytest.raises(InputError, match='5 rows up to 7, expected 5 below 7'):
        load_checkpoint(other, str(tmp_path / 'seven.pth'))


def test_class_rows_as_text_and_as_published(tmp_path):
    (tmp_path / 'rows.txt').write_text('3\n0\n12\n')
    np.save(tmp_path / 'rows.npy', np.array([3, 0, 12]))
    assert read_class_rows(tmp_path / 'rows.txt') == [3, 0, 12]
    assert read_class_rows(tmp_path / 'rows.npy') == [3, 0, 12]
    for text, message in (('a\n', 'expected a number'), ('1\n-2\n', '-2'), ('1\n1\n', 'twice')):
        (tmp_path / 'bad.txt').write_text(text)
        with pytest.raises(InputError, match=message):
            read_class_rows(tmp_path / 'bad.txt')


def test_head_gives_fp32_and_starts_near_zero():
    torch.manual_seed(0)
    head = EVAVideoHead(num_classes=5, in_channels=24)
    tokens = torch.randn(2, 24, 2, 4, 4)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        logits = head(tokens)
    assert logits.dtype == torch.float32
    # 0.02 * 0.001 * sqrt(24) for a normalised feature.
    assert 0 < logits.abs().max() < 1e-3


@pytest.mark.parametrize('prob', [0.0, 1.0])
def test_blending_keeps_the_labels_in_step_with_the_pixels(prob):
    torch.manual_seed(1)
    blending = MixupOrCutmix(num_classes=2, cutmix_prob=prob)
    shares, values = set(), set()
    for _ in range(20):
        clips = torch.stack((torch.zeros(1, 3, 2, 16, 16), torch.ones(1, 3, 2, 16, 16)))
        samples = [ActionDataSample().set_gt_label(i) for i in range(2)]
        mixed, samples = blending(clips, samples)
        for clip, sample in zip(mixed, samples):
            # Class 1 is white: its share in the pixels is its share in the label.
            assert clip.mean() == pytest.approx(float(sample.gt_label[1]), abs=1e-5)
            assert sample.gt_label.sum() == pytest.approx(1)
            assert (clip[0, :, 0] == clip[0, :, 1]).all()
        shares.add(round(float(mixed[0].mean()), 3))
        values |= set(mixed.unique().tolist())
    assert len(shares) > 3
    # CutMix moves pixels, Mixup blends them.
    assert (values == {0.0, 1.0}) is (prob == 1)
    with pytest.raises(ValueError, match='cutmix_prob within'):
        MixupOrCutmix(2, cutmix_prob=1.5)


@pytest.mark.parametrize('leaf', LEAVES)
def test_small_recognizer_takes_a_training_and_a_test_step(leaf):
    cfg, model = small_model(leaf)
    model.init_weights()
    wrapper = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))
    torch.manual_seed(0)
    clip = torch.randint(0, 256, (2, 1, 3, 4, 56, 56), dtype=torch.uint8)

    def batch(clips, labels):
        samples = [ActionDataSample().set_gt_label(label) for label in labels]
        return dict(inputs=list(clips), data_samples=samples)

    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    losses = model.train().train_step(batch(clip, [1, 4]), wrapper)
    # Near-zero logits: the loss is that of a guess, whatever the labels.
    assert losses['loss'].item() == pytest.approx(np.log(5), abs=0.01)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert {'backbone.patch_embed.proj.weight', 'backbone.cls_token'} <= moved
    assert {'cls_head.fc_norm.weight', 'cls_head.fc_cls.bias', 'backbone.pos_embed'} <= moved

    views = torch.randint(0, 256, (1, 12, 3, 4, 56, 56), dtype=torch.uint8)
    with torch.no_grad():
        (result,) = model.eval().test_step(batch(views, [2]))
        each = [model.test_step(batch(views[:, i : i + 1], [2]))[0] for i in range(12)]
    mean = torch.stack([one.pred_score for one in each]).mean(dim=0)
    torch.testing.assert_close(result.pred_score, mean)
