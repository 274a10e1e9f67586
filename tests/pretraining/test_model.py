"""The masked student: what it sees, what it is scored on, and what of it is saved."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS

from eva_mm.backbones import EVAViT
from eva_mm.errors import InputError
from eva_mm.pretraining.model import INIT_STD
from eva_mm.resize import resize_patch_kernel
from eva_mm.zoo import load as zoo_load
from eva_mm.zoo.files import convert_file

from .small import FEATURES, GRID, PATCH, SIDE, build, random_batch, small_leaf

LEAF = 'eva_g_merged30m'
SMALL = dict(
    size='tiny', img_size=SIDE, patch_size=PATCH, embed_dim=32, depth=3, num_heads=2, mlp_dim=64
)


def prepared(model, batch=None):
    """Batch as the model gets it in training."""
    return model.data_preprocessor(copy.deepcopy(batch or random_batch()), True)


def test_preprocessor_normalises_and_drops_the_paths():
    model, batch = build(LEAF), random_batch()
    batch['teacher_image'] = batch['image'] // 2
    ready = prepared(model, batch)
    assert set(ready) == {'image', 'mask', 'noise', 'teacher_image'}
    mean = torch.tensor((0.48145466, 0.4578275, 0.40821073)).view(3, 1, 1)
    std = torch.tensor((0.26862954, 0.26130258, 0.27577711)).view(3, 1, 1)
    for key in ('image', 'teacher_image'):
        torch.testing.assert_close(ready[key], (batch[key] / 255 - mean) / std)


def test_hidden_pixels_do_not_reach_the_student():
    model = build(LEAF).eval()
    batch = prepared(model)
    image, mask = batch['image'], batch['mask']
    pixels = mask.view(-1, 1, GRID, GRID).float()
    pixels = F.interpolate(pixels, scale_factor=PATCH).bool()
    noise = torch.randn_like(image)
    expected = model(image, mask)
    assert torch.equal(model(torch.where(pixels, noise, image), mask), expected)
    assert not torch.allclose(model(torch.where(pixels, image, noise), mask), expected)
    # Hidden patches know where they are.
    hidden = expected[0][mask[0]]
    assert not torch.allclose(hidden[0], hidden[1])


def test_loss_is_the_mean_over_all_hidden_patches_of_the_batch():
    model = build(LEAF).eval()
    batch = prepared(model)
    prediction, mask = model(batch['image'], batch['mask']), batch['mask']
    features = model.teacher(batch['image'])
    expected = -F.cosine_similarity(prediction[mask], features[mask], dim=-1).mean()
    batch.pop('noise')
    torch.testing.assert_close(model(**batch, mode='loss')['loss'], expected)
    rows = model(**batch, mode='predict')
    assert [row['num_patches'] for row in rows] == mask.sum(1).tolist()
    total = sum(row['loss'] * row['num_patches'] for row in rows)
    assert total / int(mask.sum()) == pytest.approx(float(expected), rel=1e-5)


def test_distillation_hides_nothing_and_scores_every_patch():
    model = build('pilot_distill_short').eval()
    assert model.predict == 'all'
    assert not model.mask_token.requires_grad
    image = prepared(model)['image']
    features = model.teacher(image)
    expected = -F.cosine_similarity(model(image), features, dim=-1).mean()
    loss = model(image, mode='loss')['loss']
    torch.testing.assert_close(loss, expected)
    loss.backward()
    # DistributedDataParallel refuses parameters that no gradient reaches.
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_every_parameter_learns_from_masked_patches():
    model = build(LEAF).train()
    batch = prepared(model)
    batch.pop('noise')
    model(**batch, mode='loss')['loss'].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_initialisation_is_the_published_one():
    model = build(LEAF, embed_dim=96, mlp_dim=384)
    for name in (
        'pos_embed',
        'cls_token',
        'mask_token',
        'lm_head.weight',
        'blocks.1.mlp.fc1.weight',
    ):
        weight = model.get_parameter(name)
        assert weight.abs().max() <= INIT_STD
        # A normal cut at one standard deviation keeps 0.5396 of it.
        assert float(weight.std()) == pytest.approx(0.5396 * INIT_STD, rel=0.15), name
    for number, block in enumerate(model.blocks, start=1):
        std = 0.5396 * INIT_STD / (2 * number) ** 0.5
        assert float(block.mlp.fc2.weight.std()) == pytest.approx(std, rel=0.05)
    assert model.lm_head.bias.abs().sum() == 0


def test_learns_more_than_the_mean_feature():
    """A handful of images, seen often: the loss passes what a constant prediction reaches."""
    model = build(LEAF, drop_path_rate=0.0)
    cfg = small_leaf(LEAF)
    cfg.optim_wrapper.optimizer.lr = 1e-2
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    batch = random_batch()
    batch.pop('noise')
    for _ in range(60):
        log = model.train_step(copy.deepcopy(batch), wrapper)
    mask = batch['mask']
    features = F.normalize(model.teacher(prepared(model, batch)['image'])[mask], dim=-1)
    assert log['loss'] < -float(features.mean(0).norm()) - 0.02


def test_recomputed_blocks_give_the_same_gradients():
    plain, recomputing = build(LEAF), build(LEAF, activation_checkpointing=[0, 2])
    batch = prepared(plain)
    batch.pop('noise')
    for model in (plain, recomputing):
        for block in model.blocks:
            block.drop_path.rate = 0.0
        model.train()(**batch, mode='loss')['loss'].backward()
    for (name, p), q in zip(plain.named_parameters(), recomputing.parameters()):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


def test_bf16_autocast_stays_near_fp32():
    model = build(LEAF).eval()
    batch = prepared(model)
    batch.pop('noise')
    exact = model(**batch, mode='loss')['loss']
    with torch.autocast('cpu', torch.bfloat16):
        loss = model(**batch, mode='loss')['loss']
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(exact), abs=5e-3)


# ----------------------------------------------------------------------------- the teacher's place


def test_the_teacher_is_no_part_of_the_student():
    model = build(LEAF)
    assert not any('teacher' in name for name in model.state_dict())
    assert not any('teacher' in name for name, _ in model.named_modules())
    own = {id(p) for p in model.parameters()}
    assert not own & {id(p) for p in model.teacher.parameters()}
    model.train()
    assert not any(module.training for module in model.teacher.modules())
    assert not any(p.requires_grad for p in model.teacher.parameters())
    # It goes where the student goes; copies share it.
    model.double()
    assert {p.dtype for p in model.teacher.parameters()} == {torch.float64}
    assert copy.deepcopy(model).teacher is model.teacher


def test_another_grid_is_told_with_both_sizes():
    with pytest.raises(InputError, match=r'student has 4 x 4 patches .56 x 56 px.* 2 x 2 .28 x 28'):
        build(LEAF, teacher=dict(image_size=28))


def test_what_the_data_lack_is_told():
    model = build(LEAF)
    batch = prepared(model)
    with pytest.raises(InputError, match="no 'mask'.*BlockMask"):
        model(batch['image'], mode='loss')
    with pytest.raises(InputError, match=r'\(4, 9\) do not fit 4 images of 4 x 4 patches'):
        model(batch['image'], batch['mask'][:, :9], mode='loss')
    batch['mask'] = torch.zeros_like(batch['mask'])
    with pytest.raises(InputError, match=r'masks of shape \(4, 16\) hide no patch'):
        model.data_preprocessor(batch, True)
    with pytest.raises(InputError, match='images of 42 x 42 px, expected 56 x 56 px'):
        model(torch.zeros(1, 3, 42, 42), mode='tensor')
    with pytest.raises(ValueError, match="'masked' or 'all', got 'some'"):
        build(LEAF, predict='some')


# -------------------------------------------------------------------------------- in other tasks


@pytest.fixture
def saved(tmp_path):
    """A student with random weights, and the checkpoint that training would write."""
    model = build(LEAF)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path / 'iter_9.pth'
    torch.save(dict(meta={}, state_dict=model.state_dict()), path)
    return model.eval(), path


def test_names_are_the_published_ones(saved):
    names = set(saved[0].state_dict())
    top = {name for name in names if not name.startswith('blocks.')}
    layers = {f'{part}.{kind}' for part in ('norm', 'lm_head') for kind in ('weight', 'bias')}
    patches = {'patch_embed.proj.weight', 'patch_embed.proj.bias'}
    assert top == {'cls_token', 'mask_token', 'pos_embed'} | layers | patches
    block = {name.removeprefix('blocks.0.') for name in names if name.startswith('blocks.0.')}
    assert {'attn.q_bias', 'attn.v_bias', 'attn.qkv.weight', 'mlp.fc1.weight', 'norm2.bias'} < block


def test_loads_into_the_plain_backbone(saved):
    model, path = saved
    backbone = EVAViT(
        **SMALL,
        qkv_bias='qv',
        out_norm=True,
        init_cfg=dict(type='Pretrained', checkpoint=str(path)),
    )
    backbone.init_weights()
    image = prepared(model)['image']
    expected = model.forward_features(image)[:, 1:].transpose(1, 2).reshape(4, 32, GRID, GRID)
    torch.testing.assert_close(backbone.eval()(image)[-1], expected)


def test_loads_into_the_zoo_loader(saved, monkeypatch):
    model, path = saved
    row = zoo_load.find_model('eva_psz14')
    monkeypatch.setattr(zoo_load, 'find_model', lambda name: replace(row, model=SMALL))
    module, _ = zoo_load.load_model('eva_psz14', checkpoint=path)
    image = prepared(model)['image']
    expected = model.forward_features(image)[:, 1:]
    torch.testing.assert_close(module.forward_patch_tokens(image), expected)


def test_converts_to_patches_of_16_px(saved, tmp_path):
    model, path = saved
    convert_file(path, tmp_path / '16.pth', patch_size=16, img_size=(64, 64), allow_partial=True)
    weights = torch.load(tmp_path / '16.pth', weights_only=True)['state_dict']
    kernel = resize_patch_kernel(model.patch_embed.proj.weight.detach(), 16)
    torch.testing.assert_close(weights['patch_embed.proj.weight'], kernel)
    torch.testing.assert_close(weights['lm_head.weight'], model.lm_head.weight.detach())


def test_loads_into_the_detector_backbone(saved):
    pytest.importorskip('mmdet')
    from eva_mm.detection.backbone import EVAViTDet

    model, path = saved
    backbone = EVAViTDet(
        **{**SMALL, 'patch_size': 16, 'img_size': 64},
        pretrain_img_size=64,
        window_size=2,
        global_block_indexes=[2],
        init_cfg=dict(type='Pretrained', checkpoint=str(path)),
    )
    backbone.init_weights()
    own = backbone.blocks[1].attn.qkv.weight
    torch.testing.assert_close(own, model.blocks[1].attn.qkv.weight)
    kernel = resize_patch_kernel(model.patch_embed.proj.weight.detach(), 16)
    torch.testing.assert_close(backbone.patch_embed.proj.weight.detach(), kernel)


def test_its_own_checkpoint_fits_strictly(saved):
    model, path = saved
    again = MODELS.build(small_leaf(LEAF).model)
    again.init_cfg = dict(type='Pretrained', checkpoint=str(path))
    again.init_weights()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value)
    weights = torch.load(path, weights_only=True)['state_dict']
    del weights['lm_head.weight']
    torch.save(dict(state_dict=weights), path)
    again._is_init = False
    with pytest.raises(InputError, match='missing in the checkpoint.*\n.*lm_head.weight'):
        again.init_weights()


def test_output_width_follows_the_target():
    assert build(LEAF).lm_head.out_features == FEATURES
    assert build('pilot_tokenized_short').lm_head.out_features == 16
