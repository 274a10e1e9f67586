"""Runs of the toy tasks, several one after another in one process group: starting one is slow.

`torchrun sharded_task.py FILE` trains what the JSON file lists: arguments of
`launch.prepare_train_config`, with `error` where one is expected to be told, and `apart` where each
process has a work dir of its own.
"""

import json
import sys
from pathlib import Path

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from eva_mm.engine import launch, processes, saving
from eva_mm.engine.compilation import transformer_blocks
from eva_mm.pretraining.model import EVAForMIM
from eva_mm.vit import EVAVisionTransformer, ViTSize
from tests.engine.exact_task import exact_config_text

WIDTH, SIDE = 16, 8
TEACHER = dict(
    type='CLIPTeacher',
    model=dict(
        embed_dim=8,
        vision_cfg=dict(layers=1, width=16, head_width=8, patch_size=4, image_size=SIDE),
        text_cfg=dict(context_length=8, vocab_size=16, width=64, heads=1, layers=1),
    ),
    weights=None,
)


@MODELS.register_module(force=True)
class TinyEVA(EVAVisionTransformer, BaseModel):
    """Tells dark images from light ones by EVA's own blocks; `poisoned` spoils one loss."""

    def __init__(self, poisoned=-1, **kwargs):
        size = ViTSize(depth=2, embed_dim=WIDTH, num_heads=2, mlp_dim=24, patch_size=4)
        super().__init__(size, img_size=SIDE, pooling='mean', num_classes=2, **kwargs)
        self.poisoned, self.passes = poisoned, 0

    def forward(self, inputs, label, mode='tensor'):
        logits = self.head(self.pool(self.forward_features(inputs)))
        if mode == 'predict':
            return [dict(predicted=int(p), label=int(t)) for p, t in zip(logits.argmax(1), label)]
        self.passes += 1
        loss = nn.functional.cross_entropy(logits, label)
        return dict(loss=loss * torch.nan if self.passes == self.poisoned else loss)


@MODELS.register_module(force=True)
class TinyMIM(EVAForMIM):
    """EVA's pretraining with a random teacher; hides every other patch."""

    def __init__(self, **kwargs):
        size = ViTSize(depth=2, embed_dim=WIDTH, num_heads=2, mlp_dim=24, patch_size=4)
        super().__init__(size, img_size=SIDE, teacher=dict(TEACHER), drop_path_rate=0.0, **kwargs)

    def forward(self, inputs, label, mode='tensor'):
        if mode == 'predict':
            return [dict(predicted=0, label=int(t)) for t in label]
        mask = torch.tensor([[True, False, True, False]]).expand(len(inputs), -1)
        return super().forward(inputs, mask=mask, mode=mode)


def config_text(root):
    """The exact toy task, with everything that pretraining trains with, for either model."""
    text = exact_config_text(root).replace('tests.engine.exact_task', 'tests.engine.sharded_task')
    return text + (
        'model["drop"] = 0.0\n'
        'optim_wrapper["optimizer"]["fused"] = True\n'
        'optim_wrapper["clip_grad"] = dict(max_norm=0.5)\n'
        'default_hooks["non_finite"] = dict(type="NonFiniteLossHook", max_skips=1)\n'
        'default_hooks["checkpoint"].update(save_best="toy/accuracy", rule="greater")\n'
    )


EVA = {
    'train_cfg.max_iters': 10,
    'model': dict(_delete_=True, type='TinyEVA', drop_path_rate=0.0),
    'optim_wrapper.paramwise_cfg': dict(layer_decay=0.9, no_decay=dict(one_dim=True)),
}

COMPILED = {
    'custom_hooks': [dict(type='LossRecorder'), dict(type='CompileBlocksHook', backend='eager')]
}
MIM = EVA | {'model': dict(_delete_=True, type='TinyMIM')}


def train(run):
    """One run; returns its Runner, or the message of the error it ended in."""
    run = dict(run)
    expected = run.pop('error', False)
    if run.pop('apart', False):
        run['work_dir'] += f'_{torch.distributed.get_rank()}'
    try:
        runner = launch.build_runner(launch.prepare_train_config(**run))
        runner.train()
    except Exception as error:
        if not expected:
            raise
        return str(error)
    return runner


def share(runner: Runner) -> float:
    """Part of the parameters that this process holds."""
    params = list(runner.model.parameters())
    local = [p.to_local() if hasattr(p, 'to_local') else p for p in params]
    return sum(p.numel() for p in local) / sum(p.numel() for p in params)


def facts(runner: Runner) -> dict:
    """What one process knows of a run that is over."""
    blocks = [block for block in runner.model.modules() if hasattr(block, 'drop_path')]
    return dict(
        share=share(runner),
        blocks=len(blocks),
        sharded_blocks=sum(
            isinstance(block, FSDPModule)
            and all(isinstance(param, DTensor) for param in block.parameters())
            for block in blocks
        ),
        grad_norms=grad_norms(runner),
        compiled=compiled(runner),
    )


def compiled(runner: Runner) -> dict[str, int]:
    """Blocks whose forward pass, and whose whole call, is compiled; those of the teacher."""
    blocks = transformer_blocks(runner.model)
    teacher = getattr(runner.model, 'teacher', None)
    return dict(
        forward=sum('forward' in vars(block) for block in blocks),
        call=sum(block._compiled_call_impl is not None for block in blocks),
        teacher=teacher
        and sum(b._compiled_call_impl is not None for b in transformer_blocks(teacher)),
    )


def grad_norms(runner: Runner) -> list[float]:
    """Norm of the gradient in each update, before it is clipped."""
    return [float(norm) for norm in runner.message_hub.get_scalar('train/grad_norm').data[0]]


def failed_saves(runner: Runner) -> list[str]:
    """Errors of a save to a folder of each process's own, and of one whose state meets a full disk.

    Found by the error's text: only the first process writes the state.
    """
    told, rank = [], torch.distributed.get_rank()
    own = Path(runner.work_dir, f'of_{rank}')
    own.mkdir(exist_ok=True)
    write = saving.write_whole

    def full(path, content):
        raise OSError(28, 'No space left on device')

    for out_dir, saving.write_whole in ((own, write), (Path(runner.work_dir), full)):
        try:
            runner.save_checkpoint(str(out_dir), 'iter_99')
        except Exception as error:
            told.append(str(error))
    saving.write_whole = write
    return told


def main():
    torch.set_num_threads(1)
    processes._LAG = 0.3  # one machine, one file system
    results, runner = [], None
    for run in json.loads(Path(sys.argv[1]).read_text()):
        done = train(dict(run, launcher='pytorch'))
        if not isinstance(done, str):
            runner = done
        results.append(done if isinstance(done, str) else facts(done))
        del done
    results.append(failed_saves(runner))
    del runner
    rank = torch.distributed.get_rank()
    Path(f'{sys.argv[1]}.{rank}').write_text(json.dumps(results))
    launch.leave_process_group()


if __name__ == '__main__':
    main()
