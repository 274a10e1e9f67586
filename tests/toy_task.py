"""A whole task in small, registered at mmengine's root: tells dark images from light ones.

Lets the engine and the tools be tested without a host package; its model has the parts (backbone
with depths, head) that they ask for.
"""

import json
from pathlib import Path

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS, TRANSFORMS
from torch import nn

SIDE = 8


class ToyBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, width)

    def forward(self, x):
        return x + self.fc(self.norm(x))


@MODELS.register_module()
class ToyBackbone(nn.Module):
    """(B, 3, h, w) -> (B, N, width)."""

    def __init__(self, depth=3, width=4, frozen_patches=False):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 1, width))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.patch_embed = nn.Conv2d(3, width, 4, 4)
        self.patch_embed.requires_grad_(not frozen_patches)
        self.blocks = nn.ModuleList(ToyBlock(width) for _ in range(depth))
        self.fpn = nn.Linear(width, width)

    def forward(self, x):
        x = self.patch_embed(x).flatten(2).transpose(1, 2) + self.pos_embed
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), 1)
        for block in self.blocks:
            x = block(x)
        return self.fpn(x)

    def get_layer_depth(self, param_name, prefix=''):
        top = len(self.blocks) + 1
        name = param_name.removeprefix(prefix)
        if name.startswith(('pos_embed', 'cls_token', 'patch_embed')):
            return 0, top + 1
        if name.startswith('blocks.'):
            return int(name.split('.')[1]) + 1, top + 1
        return top, top + 1


@MODELS.register_module()
class ToyClassifier(BaseModel):
    def __init__(self, backbone, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.backbone = MODELS.build(backbone)
        self.query = nn.Embedding(1, 2)
        self.head = nn.Linear(self.backbone.fpn.out_features, 2)

    def extract_feat(self, inputs):
        return self.backbone(inputs)

    def forward(self, inputs, label, mode='tensor'):
        logits = self.head(self.extract_feat(inputs).mean(1)) + self.query.weight
        if mode == 'loss':
            return dict(loss=nn.functional.cross_entropy(logits, label))
        return [dict(predicted=int(p), label=int(t)) for p, t in zip(logits.argmax(1), label)]


@DATASETS.register_module()
class ToyImages(BaseDataset):
    METAINFO = dict(classes=('dark', 'light'))


@TRANSFORMS.register_module()
class LoadToyImage:
    def __call__(self, results):
        image = torch.from_numpy(np.load(results['img_path']))
        return dict(inputs=image, label=torch.tensor(results['label']))


@TRANSFORMS.register_module()
class ToyCrop:
    """Does nothing, but names a size like the transforms of mmcv, which give (width, height)."""

    def __init__(self, crop_size):
        pass

    def __call__(self, results):
        return results


@METRICS.register_module()
class ToyAccuracy(BaseMetric):
    default_prefix = 'toy'

    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        return dict(accuracy=100 * float(np.mean([r['predicted'] == r['label'] for r in results])))

    def evaluate_results_file(self, path):
        accuracy = self.compute_metrics(json.loads(Path(path).read_text()))['accuracy']
        return {'toy/accuracy': accuracy, 'toy/classes': len(self.dataset_meta['classes'])}


def make_data(root, number=16):
    """Write `number` images and their list below `root`; return the list's path."""
    generator = np.random.default_rng(0)
    (root / 'images').mkdir(parents=True)
    data_list = []
    for index in range(number):
        label = index % 2
        image = generator.normal(2 * label - 1, 0.1, (3, SIDE, SIDE)).astype(np.float32)
        np.save(root / 'images' / f'{index}.npy', image)
        data_list.append(dict(img_path=f'{index}.npy', label=label))
    ann_file = root / 'list.json'
    ann_file.write_text(json.dumps(dict(metainfo={}, data_list=data_list)))
    return ann_file


def config_text(root):
    """A config of 30 iterations on the data below `root`."""
    return f"""
custom_imports = dict(imports=['tests.toy_task'], allow_failed_imports=False)
default_scope = 'mmengine'
model = dict(type='ToyClassifier', backbone=dict(type='ToyBackbone', frozen_patches=True))
dataset = dict(
    type='ToyImages', data_root={str(root)!r}, ann_file='list.json',
    data_prefix=dict(img_path='images'),
    pipeline=[dict(type='LoadToyImage'), dict(type='ToyCrop', crop_size=(16, {SIDE}))],
)
train_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dataset, collate_fn=dict(type='default_collate'),
)
val_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dataset, collate_fn=dict(type='default_collate'),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='ToyAccuracy')
test_evaluator = val_evaluator
train_cfg = dict(type='IterBasedTrainLoop', max_iters=30, val_interval=30)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper', constructor='EVALayerDecay', paramwise_cfg=dict(layer_decay=0.5),
    optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.1),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=11),
    dict(type='MultiStepLR', by_epoch=False, milestones=[20], gamma=0.1),
]
auto_scale_lr = dict(enable=False, base_batch_size=8)
default_hooks = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=15))
log_processor = dict(by_epoch=False)
"""
