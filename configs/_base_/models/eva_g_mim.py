# EVA-g as the student of OpenAI's CLIP ViT-L/14.
# Source: EVA-01/eva/modeling_pretrain.py and EVA-01/eva/README.md,
# https://github.com/baaivision/EVA. Layer scale, relative positions and stop-gradient are off.
model = dict(
    type='EVAForMIM',
    size='giant',
    img_size=224,
    drop_path_rate=0.1,
    # As published. True trades a third more computation for far less memory; so does a list of
    # block numbers, in part.
    activation_checkpointing=False,
    data_preprocessor=dict(type='PretrainDataPreprocessor'),
    teacher=dict(type='CLIPTeacher', model='ViT-L-14', weights='openai'),
    target=dict(type='CosineRegression'),
)
