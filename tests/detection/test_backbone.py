"""Backbone, pyramid and preprocessing of the detector."""

import pytest
import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from mmengine.registry import init_default_scope

from eva_mm.detection import EVAViTDet, FixedSizeDetDataPreprocessor, SimpleFeaturePyramid
from eva_mm.detection.layers import LayerNorm2d
from eva_mm.resize import resize_patch_kernel, resize_pos_embed
from eva_mm.vit import EVAVisionTransformer

from ..helpers import relative_error

TINY = dict(
    size='tiny', img_size=128, embed_dim=32, depth=4, num_heads=4, mlp_dim=64, window_size=3
)


@pytest.fixture(autouse=True)
def _setting():
    init_default_scope('mmdet')
    torch.manual_seed(0)


def randomized(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return model


def test_published_shapes_of_the_giant():
    with torch.device('meta'):
        model = EVAViTDet('giant')
    tables = [tuple(block.attn.rel_pos_h.shape) for block in model.blocks]
    assert tables == [(159, 88) if i % 4 == 3 else (31, 88) for i in range(40)]
    assert model.pos_embed.shape == (1, 197, 1408)
    assert model.cls_token is None
    assert model.patch_embed.proj.weight.requires_grad
    with torch.device('meta'):
        frozen = EVAViTDet('tiny', freeze_patch_embed=True)
    assert not frozen.patch_embed.proj.weight.requires_grad
    assert model.pos_embed.requires_grad


@pytest.mark.parametrize('size', [(128, 128), (96, 112), (160, 64)])
def test_any_size_gives_one_map_of_stride_16(size):
    (feature,) = randomized(EVAViTDet(**TINY))(torch.randn(1, 3, *size))
    assert feature.shape == (1, 32, size[0] // 16, size[1] // 16)


def test_padding_tokens_take_part_in_window_attention():
    """8 x 8 tokens in windows of 3: the last windows hold zeros that still carry biases."""
    model = randomized(EVAViTDet(**{**TINY, 'depth': 1, 'global_block_indexes': []}))
    image = torch.randn(1, 3, 128, 128)
    padded = model(image)[0]
    with torch.no_grad():
        model.blocks[0].attn.v_bias.add_(1)
    shifted = model(image)[0]
    # A constant added to every value, those of the padding included, passes attention unchanged.
    shift = model.blocks[0].attn.proj.weight.sum(dim=1)
    difference = shifted - padded
    # ... through the MLP it is not constant, so compare the attention branch alone.
    x, grid = model.embed(image)
    block = model.blocks[0]
    after = block._attend(block.norm1(x), grid)
    with torch.no_grad():
        block.attn.v_bias.sub_(1)
    before = block._attend(block.norm1(x), grid)
    assert torch.allclose(after - before, shift.expand_as(after), atol=1e-4)
    assert difference.abs().max() > 1e-3


def test_interpolation_type_matters_only_off_the_table_size():
    linear = randomized(EVAViTDet(**TINY))
    cubic = EVAViTDet(**TINY, rel_pos_interpolation='beit')
    cubic.load_state_dict(linear.state_dict())
    at_size, larger = torch.randn(1, 3, 128, 128), torch.randn(1, 3, 160, 160)
    assert torch.equal(linear(at_size)[0], cubic(at_size)[0])
    assert relative_error(linear(larger)[0], cubic(larger)[0]) > 1e-5


def test_weights_of_14_px_patches_are_resized_on_loading():
    """`eva_psz14` gives what `eva_psz14to16` holds."""
    options = dict(size='tiny', embed_dim=32, depth=1, num_heads=4, mlp_dim=64)
    source = EVAVisionTransformer(patch_size=14, img_size=224, **options)
    model = EVAViTDet(patch_size=16, pretrain_img_size=224, img_size=128, **options)
    model.load_state_dict(source.state_dict(), strict=False)
    expected = resize_patch_kernel(source.patch_embed.proj.weight, 16)
    assert torch.equal(model.patch_embed.proj.weight, expected)
    assert torch.equal(model.pos_embed, resize_pos_embed(source.pos_embed, (14, 14)))


def test_maps_are_contiguous_for_roi_align():
    assert EVAViTDet(**TINY)(torch.randn(1, 3, 128, 128))[0].is_contiguous()


def test_bad_arguments():
    with pytest.raises(ValueError, match="rel_pos_interpolation should be one of.*'cubic'"):
        EVAViTDet(**TINY, rel_pos_interpolation='cubic')
    with pytest.raises(ValueError, match=r'global_block_indexes \[7\] exceed a depth of 4'):
        EVAViTDet(**{**TINY, 'global_block_indexes': [7]})
    with pytest.raises(ValueError, match=r'drop path rate should lie in \[0, 1\), got 1'):
        EVAViTDet(**TINY, drop_path_rate=1.5)


def test_pyramid_levels():
    neck = SimpleFeaturePyramid(32, 16)
    levels = neck((torch.randn(1, 32, 8, 6),))
    assert [tuple(level.shape[2:]) for level in levels] == [
        (32, 24), (16, 12), (8, 6), (4, 3), (2, 2),
    ]  # fmt: skip
    assert torch.equal(levels[4], levels[3][:, :, ::2, ::2])
    p3_to_p7 = SimpleFeaturePyramid(32, 16, scale_factors=(2, 1, 0.5), num_outs=5)
    sizes = [level.shape[-1] for level in p3_to_p7((torch.randn(1, 32, 8, 8),))]
    assert sizes == [16, 8, 4, 2, 1]
    assert p3_to_p7.stage_names == ['simfp_3', 'simfp_4', 'simfp_5']


def test_pyramid_is_contiguous_for_roi_align():
    """mmcv's RoIAlign reads other layouts wrongly, without an error."""
    from mmcv.ops import RoIAlign

    neck = SimpleFeaturePyramid(32, 16).to(memory_format=torch.channels_last)
    feature = torch.randn(1, 32, 8, 8).to(memory_format=torch.channels_last)
    level = neck((feature,))[0]
    rois = torch.tensor([[0, 3.0, 5.0, 60.0, 70.0]])
    pooled = RoIAlign(7, 0.25, 0)(level, rois)
    assert torch.equal(pooled, RoIAlign(7, 0.25, 0)(level.clone().contiguous(), rois))
    assert level.is_contiguous()


def test_layer_norm_is_torchs_over_the_channels():
    norm = randomized(LayerNorm2d(6))
    x = torch.randn(2, 6, 3, 4)
    expected = F.layer_norm(x.permute(0, 2, 3, 1), (6,), norm.weight, norm.bias, 1e-6)
    assert torch.allclose(norm(x), expected.permute(0, 3, 1, 2), atol=1e-5)


@pytest.mark.parametrize('training', [False, True])
def test_images_are_normalised_and_then_padded_to_the_full_square(training):
    preprocessor = FixedSizeDetDataPreprocessor(
        pad_size=(8, 8), mean=[1.0, 2.0, 3.0], std=[2.0, 2.0, 2.0], bgr_to_rgb=True
    )
    image = torch.full((3, 5, 6), 7, dtype=torch.uint8)
    sample = DetDataSample(metainfo=dict(img_shape=(5, 6)))
    out = preprocessor(dict(inputs=[image], data_samples=[sample]), training)
    batch = out['inputs']
    assert batch.shape == (1, 3, 8, 8)
    assert batch[0, :, 0, 0].tolist() == [3.0, 2.5, 2.0]
    # Zero after normalising: not a black pixel, (0 - mean) / std.
    assert torch.count_nonzero(batch[:, :, 5:]) == torch.count_nonzero(batch[..., 6:]) == 0
    sample = out['data_samples'][0]
    assert sample.img_shape == (5, 6)
    assert sample.pad_shape == sample.batch_input_shape == (8, 8)


def test_an_image_that_is_too_large_is_named():
    preprocessor = FixedSizeDetDataPreprocessor(pad_size=(8, 8))
    sample = DetDataSample(metainfo=dict(img_path='holiday.jpg'))
    data = dict(inputs=[torch.zeros(3, 9, 4)], data_samples=[sample])
    with pytest.raises(ValueError, match=r'holiday.jpg of \(9, 4\) pixels.*pad_size=\(8, 8\)'):
        preprocessor(data)


def test_frozen_blocks_keep_no_activations_and_their_weights():
    def saved(frozen: int) -> tuple[int, EVAViTDet]:
        model = randomized(EVAViTDet(**TINY, frozen_blocks=frozen)).train()
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.append(t.numel()) or t, lambda t: t
        ):
            (feature,) = model(torch.randn(1, 3, 128, 128))
        feature.sum().backward()
        return sum(sizes), model

    whole, _ = saved(0)
    half, model = saved(len(model_blocks := EVAViTDet(**TINY).blocks) // 2)
    assert half < 0.6 * whole
    for name, param in model.named_parameters():
        frozen = not name.startswith('blocks.') or int(name.split('.')[1]) < len(model_blocks) // 2
        assert (param.grad is None) == frozen, name
    with pytest.raises(ValueError, match='frozen_blocks should lie in'):
        EVAViTDet(**TINY, frozen_blocks=len(model_blocks) + 1)
