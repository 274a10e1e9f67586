"""Generators of small data sets in the real formats, and the drawing of results.

Everything here needs numpy and OpenCV only (pycocotools where masks are decoded).
"""

from eva_mm.demo.contact_sheet import draw_contact_sheet
from eva_mm.demo.generate import generate_lvis

__all__ = ['draw_contact_sheet', 'generate_lvis']
