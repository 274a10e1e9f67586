"""Generators of small data sets in the real formats, and the drawing of results.

Everything here needs numpy and OpenCV only (pycocotools where masks are decoded).
"""

from eva_mm.demo.captions import generate_captions
from eva_mm.demo.contact_sheet import draw_contact_sheet
from eva_mm.demo.generate import generate_lvis
from eva_mm.demo.image_folder import generate_imagenet
from eva_mm.demo.landscapes import generate_ade20k
from eva_mm.demo.motions import generate_kinetics

__all__ = [
    'draw_contact_sheet',
    'generate_ade20k',
    'generate_captions',
    'generate_imagenet',
    'generate_kinetics',
    'generate_lvis',
]
