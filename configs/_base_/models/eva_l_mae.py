# EVA-L, encoder of visible patches and light decoder, as the student of EVA-CLIP.
# Source: EVA-01/eva/modeling_mae_pretrain.py (`mae_vit_large_patch16_dec512d4b`, whose patches are
# of 14 px in spite of its name), https://github.com/baaivision/EVA.
model = dict(
    type='EVAMAE',
    size='large',
    img_size=224,
    mask_ratio=0.75,
    decoder_embed_dim=512,
    decoder_depth=4,
    decoder_num_heads=16,
    activation_checkpointing=False,
    data_preprocessor=dict(type='PretrainDataPreprocessor'),
    # The published trainer cannot build this teacher; the published parameter count fits its
    # 1024 outputs: patch tokens after the final norm and the projection.
    teacher=dict(type='CLIPTeacher', model='EVA01-g-14', weights='laion400m_s11b_b41k'),
    target=dict(type='CosineRegression'),
)
