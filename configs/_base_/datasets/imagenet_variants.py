# ImageNet and its variants, for `tools/test.py CONFIG CHECKPOINT --variants all`. Transforms are
# those of the config's own test but for what is stated; which classes count is the data set's.
# Published: EVA-01/eva/README.md (Evaluate EVA on ImageNet-1K and its variants).
variants = dict(
    run='eva_mm.classification.variants.evaluate_variants',
    published_of='eva_21k_1k_336px at 336 px',
    sets=dict(
        in1k=dict(
            title='ImageNet-1K',
            layout='class folders, n01440764/*.JPEG',
            dataset=dict(
                type='ClassificationImages', data_root='data/imagenet/val', classes='imagenet-1k'
            ),
            published=dict(top1=89.622, top5=98.930, loss=0.948),
        ),
        # Resized bilinearly, by a transform that was written apart (EVA-01/eva/datasets.py).
        v2=dict(
            title='ImageNetV2 (matched frequency)',
            layout='folders of class numbers, 0/*.jpeg to 999/*.jpeg',
            interpolation='bilinear',
            dataset=dict(
                type='NumberedImages', data_root='data/imagenetv2-matched-frequency-format-val'
            ),
            published=dict(top1=81.570, top5=96.230, loss=1.274),
        ),
        # Labels that timm ships; dataset.real_labels names another file.
        real=dict(
            title='ImageNet-ReaL',
            layout='the validation images of ImageNet-1K, n01440764/*.JPEG',
            dataset=dict(type='RealImages', data_root='data/imagenet/val'),
            evaluator=dict(type='RealLabelsMetric', topk=(1, 5)),
            published=dict(top1=90.828, top5=98.683, loss=0.947),
        ),
        a=dict(
            title='ImageNet-A',
            layout='200 class folders, n01498041/*.jpg',
            dataset=dict(type='SubsetImages', data_root='data/imagenet-a', subset='imagenet-a'),
            evaluator=dict(type='SubsetMetric', topk=(1, 5)),
            published=dict(top1=86.154, top5=96.509, loss=0.979),
        ),
        r=dict(
            title='ImageNet-R',
            layout='200 class folders, n01443537/*.jpg',
            dataset=dict(type='SubsetImages', data_root='data/imagenet-r', subset='imagenet-r'),
            evaluator=dict(type='SubsetMetric', topk=(1, 5)),
            published=dict(top1=88.283, top5=95.830, loss=0.965),
        ),
        sketch=dict(
            title='ImageNet-Sketch',
            layout='class folders, n01440764/*.JPEG',
            dataset=dict(
                type='ClassificationImages',
                data_root='data/imagenet-sketch/sketch',
                classes='imagenet-1k',
            ),
            published=dict(top1=67.724, top5=87.964, loss=1.955),
        ),
        # Bilinear as well. The images' red frame was left on;
        # crop_border_pixels=2 cuts it off.
        objectnet=dict(
            title='ObjectNet',
            layout='images/air_freshener/*.png and the like, and mappings/*.json beside',
            interpolation='bilinear',
            crop_border_pixels=0,
            dataset=dict(type='ObjectNetImages', data_root='data/objectnet-1.0'),
            published=dict(top1=60.907, top5=82.768, loss=2.305),
        ),
    ),
)
