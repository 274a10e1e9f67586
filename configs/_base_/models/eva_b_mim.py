# ViT-B/16 as the student of OpenAI's CLIP ViT-B/16: the size of the paper's pilot study. The
# teacher is ours, chosen for its equal grid of 14 x 14 patches; the size of the teacher and the
# rate of drop path are not stated.
model = dict(
    type='EVAForMIM',
    size='base',
    img_size=224,
    drop_path_rate=0.1,
    activation_checkpointing=False,
    data_preprocessor=dict(type='PretrainDataPreprocessor'),
    teacher=dict(type='CLIPTeacher', model='ViT-B-16', weights='openai'),
    target=dict(type='CosineRegression'),
)
