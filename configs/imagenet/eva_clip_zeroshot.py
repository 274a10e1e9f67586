"""Zero-shot ImageNet classification by EVA-CLIP, 224 px: class names in 80 prompts, no training.

Command:    python tools/test.py configs/imagenet/eva_clip_zeroshot.py eva://eva_clip
            python tools/test.py configs/imagenet/eva_clip_zeroshot.py eva://eva_clip --variants all
            python tools/infer.py IMAGE --model eva_clip --classes "a dog,a cat,a diagram"
Hardware:   not stated; the 80,000 prompts of ImageNet are some 10^15 operations (counted, not
            timed), so a GPU.
Published:  78.53 top-1, 95.51 top-5, with CLIP Benchmark (EVA-01/clip/benchmark.md; the paper: 78.2
            after a shorter training); its prompts are not stated there. Weights `eva_clip`.
Source:     EVA, arXiv 2211.07636; EVA-01/clip/README.md, https://github.com/baaivision/EVA. Class
            names and prompts are those of CLIP's authors (arXiv 2103.00020), from open_clip.
Proved:     logits equal open_clip's own classifier on reduced sizes, under both sets of parameter
            names (tests/classification/test_zero_shot.py). The accuracy was not measured here.
"""

_base_ = ['../_base_/datasets/imagenet_1k.py', '../_base_/mmengine_runtime.py']
custom_imports = dict(
    # The second needs open_clip.
    imports=['eva_mm.classification', 'eva_mm.classification.zero_shot'],
    allow_failed_imports=False,
)

image_size = 224
model = dict(
    type='EVACLIPZeroShot',
    model='EVA01-g-14',
    classes='imagenet-1k',
    templates='openai',
    logit_scale=100.0,
    # Mean and standard deviation are CLIP's by default.
    data_preprocessor=dict(type='ClassificationDataPreprocessor'),
)

test_pipeline = [dict(type='TimmTransform', size=image_size, crop_pct=1.0)]
test_dataloader = dict(batch_size=64, dataset=dict(pipeline=test_pipeline))
test_cfg = dict(type='TestLoop')
train_dataloader = None
val_dataloader = None
val_evaluator = None
default_hooks = dict(class_count=dict(type='ClassCountHook'))

# Names given to tools/infer.py by --classes are taken as they are, as in the published example.
own_class_templates = ['{}']

# CLIP Benchmark cuts all of them alike, and lets the model choose among ObjectNet's own classes.
variants = dict(
    published_of='eva_clip at 224 px',
    sets=dict(
        in1k=dict(published=dict(_delete_=True, top1=78.53, top5=95.51)),
        v2=dict(interpolation='bicubic', published=dict(_delete_=True, top1=71.52, top5=92.11)),
        real=dict(published=None),
        a=dict(published=dict(_delete_=True, top1=73.59, top5=90.93)),
        r=dict(published=dict(_delete_=True, top1=92.50, top5=98.24)),
        sketch=dict(published=dict(_delete_=True, top1=67.31, top5=89.07)),
        objectnet=dict(
            interpolation='bicubic',
            dataset=dict(own_classes=True),
            published=dict(_delete_=True, top1=72.33, top5=89.37),
        ),
    ),
)
