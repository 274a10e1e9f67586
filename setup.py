"""Package eva_mm. torch is the only hard requirement.

The extras name what a task needs beside OpenMMLab's packages. Those are left out on purpose: each
exists in more than one distribution that provide the same import name and overwrite each other's
files, so that the choice stays with the user; `requirements/*.txt` hold the tested one.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SHIPPED = ('configs', 'requirements')

ENGINE = [
    'filelock',
    'huggingface_hub>=0.30',
    'numpy',
    'PyYAML',
    'safetensors',
    'tensorboard',
]
# Pillow 13 breaks timm's RandAugment (posterize with 0 bits).
EXTRAS = {
    'engine': ENGINE,
    'det': [
        *ENGINE,
        'faster-coco-eval>=1.6.7',
        'Pillow<13',
        'pycocotools',
        'shapely>=2',
        'terminaltables',
    ],
    'seg': [*ENGINE, 'Pillow<13', 'scipy'],
    'video': [*ENGINE, 'decord', 'einops', 'importlib_metadata<9', 'Pillow<13', 'torchvision'],
    'cls': [*ENGINE, 'Pillow<13', 'timm>=1.0.17', 'torchvision'],
    'clip': [*ENGINE, 'open_clip_torch>=3.0', 'Pillow<13', 'timm>=1.0.17', 'torchvision'],
}
EXTRAS['all'] = sorted({requirement for extra in EXTRAS.values() for requirement in extra})
EXTRAS['dev'] = [*EXTRAS['all'], 'pre-commit', 'psutil', 'pytest', 'pytest-xdist', 'ruff']


class BuildWithResources(build_py):
    """Copies configs and requirement files into the wheel, as eva_mm/.mim/<folder>.

    An editable install reads them from the checkout.
    """

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for folder in SHIPPED:
            target = Path(self.build_lib, 'eva_mm', '.mim', folder)
            shutil.rmtree(target, ignore_errors=True)  # no leftovers of an earlier build
            shutil.copytree(ROOT / folder, target, ignore=shutil.ignore_patterns('__pycache__'))


def read_version() -> str:
    text = (ROOT / 'eva_mm' / 'version.py').read_text(encoding='utf-8')
    return re.search(r"__version__ = '([^']+)'", text).group(1)


setup(
    name='eva_mm',
    version=read_version(),
    description='EVA (arXiv 2211.07636) for OpenMMLab 2.x',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    packages=find_packages(include=['eva_mm', 'eva_mm.*']),
    package_data={'': ['*.json', '*.yml', '*.txt']},
    python_requires='>=3.10',
    install_requires=['torch>=2.6'],
    extras_require=EXTRAS,
    cmdclass={'build_py': BuildWithResources},
    zip_safe=False,
)
