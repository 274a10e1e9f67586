"""Published checkpoints by name, from the authors' repository on the Hugging Face hub."""

from pathlib import Path

REPOSITORY = 'BAAI/EVA'
SCHEME = 'eva://'

# Names as users write them -> files (https://huggingface.co/BAAI/EVA).
FILES = {
    'eva_psz14': 'eva_psz14.pt',
    'eva_psz14to16': 'eva_psz14to16.pt',
    'eva_o365': 'eva_o365.pth',
    'eva_coco_det': 'eva_coco_det.pth',
    'eva_coco_seg': 'eva_coco_seg.pth',
    'eva_lvis': 'eva_lvis.pth',
}


def published_file(name: str) -> str:
    """File of a published checkpoint.

    Args:
        name: with or without ``eva://``, e.g. ``'eva_lvis'``.

    Raises:
        ValueError: no checkpoint of that name is known.
    """
    key = name.removeprefix(SCHEME)
    if key not in FILES:
        raise ValueError(f'unknown checkpoint {name!r}, expected one of {sorted(FILES)}')
    return FILES[key]


def cached_file(name: str, download: bool = False) -> Path | None:
    """Local copy of a published checkpoint, in the cache of huggingface_hub.

    ``HF_ENDPOINT``, ``HF_HOME``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` are honoured.

    Args:
        name: with or without ``eva://``.
        download: fetch the file when it is not there; an interrupted download continues.

    Returns:
        Its path; None when it is not cached and ``download`` is off.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    file = published_file(name)
    if download:
        return Path(hf_hub_download(REPOSITORY, file))
    cached = try_to_load_from_cache(REPOSITORY, file)
    return Path(cached) if isinstance(cached, str) else None
