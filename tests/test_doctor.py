"""The doctor: what it says of this environment, of an empty one, and of all that can break."""

import os
import re
import subprocess
import sys
import textwrap
import venv
from pathlib import Path

import pytest

from eva_mm import doctor
from eva_mm.doctor import BROKEN, NOTE, OK

ROOT = Path(__file__).resolve().parents[1]
DOCTOR = ROOT / 'tools' / 'doctor.py'
TORCH = dict(version='2.11.0+cu130', cuda='13.0', gpus=[], reason='', archs=[])
H100 = ['NVIDIA H100', 80 * 10**9, [9, 0]]
OPERATORS = dict(version='2.3.6', cuda='not available', kept=[0, 2], on_gpu='')


def call(python, folder, **environment):
    done = subprocess.run(
        [str(python), str(DOCTOR)],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_this_environment(tmp_path):
    pytest.importorskip('mmdet')
    status, text = call(sys.executable, tmp_path)
    print(text)
    assert ('BROKEN' in text) == bool(status)
    for name in ('python', 'torch', 'mmengine', 'mmcv', 'mmdet', 'libraries', 'disk', 'weights'):
        assert re.search(rf'^ +(note |BROKEN )? *{name} ', text, re.MULTILINE), name
    assert 'operators run' in text
    assert len(text.splitlines()) < 40
    assert 'Traceback' not in text


def test_an_empty_environment_gets_the_lines_that_fill_it(tmp_path):
    """A Python without a single package, as after `python -m venv`."""
    venv.create(tmp_path / 'empty', with_pip=False)
    status, text = call(tmp_path / 'empty' / 'bin' / 'python', ROOT, PYTHONPATH='')
    assert status == 1, text
    assert 'Traceback' not in text
    for name in ('torch', 'mmengine', 'mmcv', 'mmdet'):
        assert re.search(rf'BROKEN +{name} ', text), name
    assert re.search(r'note +mmseg ', text)
    assert 'pip install -r requirements/torch.txt' in text
    assert 'MMCV_WITH_OPS=1 pip install --no-build-isolation' in text
    assert 'requirements/det.txt' in text


def test_help():
    done = subprocess.run(
        [sys.executable, '-S', str(DOCTOR), '--help'], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert 'exit status' in ' '.join(done.stdout.split())


def distribution(site, name, version, provides):
    info = site / f'{name.replace("-", "_")}-{version}.dist-info'
    info.mkdir(parents=True)
    (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')
    (info / 'top_level.txt').write_text(f'{provides}\n')
    (info / 'RECORD').write_text('')


def test_two_distributions_of_one_import_name(tmp_path, monkeypatch):
    distribution(tmp_path, 'some-mmdet', '3.3.0', 'mmdet_twice')
    distribution(tmp_path, 'other-mmdet', '3.4.0', 'mmdet_twice')
    monkeypatch.syspath_prepend(str(tmp_path))
    found = doctor.distributions_of('mmdet_twice')
    assert found == {'other-mmdet': '3.4.0', 'some-mmdet': '3.3.0'}
    (finding,) = doctor.check_duplicates('mmdet', found)
    assert finding.level == BROKEN
    assert 'other-mmdet 3.4.0 and some-mmdet 3.3.0' in finding.text
    assert 'det.txt' in finding.remedy
    assert list(doctor.check_duplicates('mmdet', {'mmdet': '3.3.0'})) == []


def test_probes_report_what_went_wrong():
    assert doctor.probe('answer = dict(a=1)\nprint("noise")') == {'a': 1}
    assert doctor.probe('import a_package_nobody_has') == {
        'error': "ModuleNotFoundError: No module named 'a_package_nobody_has'"
    }
    crash = doctor.probe('import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)')
    assert crash == {'error': 'ended by signal 11'}
    assert doctor.probe('import time\ntime.sleep(9)', timeout=0.5) == {
        'error': 'no answer after 0 s'
    }


@pytest.mark.parametrize(
    ('version', 'level'),
    [((3, 9, 1), BROKEN), ((3, 10, 0), OK), ((3, 12, 9), OK), ((3, 13, 0), BROKEN)],
)
def test_python(version, level):
    assert doctor.check_python(version, '/bin/python').level == level


@pytest.mark.parametrize(
    ('answer', 'level', 'says'),
    [
        (TORCH, OK, '2.11.0+cu130, built with CUDA 13.0'),
        ({**TORCH, 'cuda': None}, OK, 'built for the CPU only'),
        ({**TORCH, 'version': '1.13.1'}, BROKEN, 'accepted: 2.6 or later'),
        ({'error': 'OSError: libcudart'}, BROKEN, 'libcudart'),
    ],
)
def test_torch(answer, level, says):
    finding = doctor.check_torch(answer)
    assert finding.level == level
    assert says in finding.text
    assert bool(finding.remedy) == (level == BROKEN)


LISTED = ['NVIDIA H100, 580.65.06']


@pytest.mark.parametrize(
    ('torch', 'listed', 'environment', 'level', 'says'),
    [
        (TORCH, [], {}, NOTE, 'none'),
        ({**TORCH, 'gpus': [H100], 'archs': ['sm_90']}, LISTED, {}, OK, 'driver 580.65.06'),
        (
            {**TORCH, 'gpus': [H100], 'archs': ['sm_80', 'compute_80']},
            LISTED,
            {},
            OK,
            '80 GB, bf16',
        ),
        ({**TORCH, 'gpus': [H100], 'archs': ['sm_80']}, LISTED, {}, BROKEN, 'no kernels for'),
        ({**TORCH, 'gpus': [['V100', 10**9, [7, 0]]]}, LISTED, {}, OK, 'no bf16'),
        (TORCH, LISTED, {'CUDA_VISIBLE_DEVICES': '-1'}, NOTE, "CUDA_VISIBLE_DEVICES='-1' hides"),
        ({**TORCH, 'cuda': None}, LISTED, {}, BROKEN, 'built for the CPU only'),
        ({**TORCH, 'reason': 'driver too old'}, LISTED, {}, BROKEN, 'driver too old'),
    ],
)
def test_gpu(torch, listed, environment, level, says):
    finding = doctor.check_gpu(torch, listed, environment)
    assert finding.level == level
    assert says in finding.text
    assert bool(finding.remedy) == (level == BROKEN)


WITH_GPU = {**TORCH, 'gpus': [H100], 'archs': ['sm_90']}
ON_GPU = dict(cuda='13.0', on_gpu=[0, 2])


@pytest.mark.parametrize(
    ('answer', 'torch', 'level', 'says'),
    [
        (OPERATORS, TORCH, OK, '2.3.6, operators run, built for the CPU'),
        ({**OPERATORS, **ON_GPU}, WITH_GPU, OK, 'built for CUDA 13.0'),
        (OPERATORS, WITH_GPU, BROKEN, 'while there is a GPU'),
        ({**OPERATORS, **ON_GPU, 'cuda': '12.4'}, WITH_GPU, BROKEN, 'torch for CUDA 13.0'),
        ({**OPERATORS, **ON_GPU, 'on_gpu': 'no kernel'}, WITH_GPU, BROKEN, 'no kernel'),
        ({**OPERATORS, 'kept': [0, 1, 2]}, TORCH, BROKEN, 'nms keeps [0, 1, 2]'),
        ({**OPERATORS, 'version': '2.0.1'}, TORCH, BROKEN, '2.1.0 <= version'),
        (
            {'error': "ModuleNotFoundError: No module named 'mmcv._ext'"},
            TORCH,
            BROKEN,
            'without compiled operators',
        ),
        (
            {'error': 'ImportError: _ext.so: undefined symbol: _ZN3c10'},
            TORCH,
            BROKEN,
            'compiled for another torch',
        ),
        ({'error': "ModuleNotFoundError: No module named 'mmcv'"}, TORCH, BROKEN, 'not installed'),
    ],
)
def test_operators(answer, torch, level, says):
    finding = doctor.check_operators(answer, torch)
    assert finding.level == level
    assert says in finding.text
    assert ('mmcv.txt' in finding.remedy) == (level == BROKEN)


@pytest.mark.parametrize(
    ('found', 'level', 'says'),
    [
        ({'opencv-python': '4.12.0'}, None, ''),
        (
            {'opencv-python': '4.12.0', 'opencv-python-headless': '4.12.0'},
            OK,
            '4.12.0, the same in opencv-python and opencv-python-headless',
        ),
        ({'opencv-python': '4.12.0', 'opencv-contrib-python': '4.8.0'}, BROKEN, 'different'),
    ],
)
def test_opencv(found, level, says):
    findings = list(doctor.check_opencv(found))
    assert [finding.level for finding in findings] == ([level] if level else [])
    assert all(says in finding.text for finding in findings)
    if level == BROKEN:
        assert 'pip uninstall -y opencv-python opencv-contrib-python' in findings[0].remedy


def test_libraries_and_traps():
    missing_gl = dict(cv2='ImportError: libGL.so.1: cannot open shared object file', numpy='')
    broken, fine = doctor.check_libraries(missing_gl)
    assert (broken.name, broken.level, fine.level) == ('opencv-python', BROKEN, OK)
    assert 'opencv-python-headless' in broken.remedy
    (absent,) = doctor.check_libraries(dict(shapely="ModuleNotFoundError: No module 'shapely'"))
    assert absent.text == 'not installed: shapely'
    assert 'det.txt' in absent.remedy
    (pillow,) = doctor.check_traps({'Pillow': '13.0.0', 'numpy': '2.2.6', 'lvis': ''}.get)
    assert pillow.remedy == 'pip install "Pillow<13"'
    (lvis,) = doctor.check_traps({'Pillow': '12.3.0', 'numpy': '2.2.6', 'lvis': '0.5.3'}.get)
    assert lvis.level == NOTE
    assert list(doctor.check_traps({'Pillow': '12.3.0', 'numpy': '1.23', 'lvis': '0.5'}.get)) == []


def test_space(tmp_path):
    assert doctor.check_disk(tmp_path, 500e9).level == OK
    assert 'up to 52 GB' in doctor.check_disk(tmp_path, 20e9).text
    assert doctor.check_disk(tmp_path, 0.1e9).level == BROKEN
    assert list(doctor.check_shared_memory(None)) == list(doctor.check_shared_memory(8e9)) == []
    (small,) = doctor.check_shared_memory(64e6)
    assert '--shm-size' in small.remedy


def test_weights(tmp_path):
    snapshot = tmp_path / 'hub' / 'models--BAAI--EVA' / 'snapshots' / 'abc'
    snapshot.mkdir(parents=True)
    (snapshot / 'eva_o365.pth').touch()
    finding = doctor.check_weights({'HF_HOME': str(tmp_path)}, Path('/nowhere'))
    assert finding.text.startswith('eva_o365.pth in ')
    assert finding.text.endswith('from https://huggingface.co')
    mirror = {'HF_HOME': str(tmp_path), 'HF_ENDPOINT': 'mirror.example'}
    assert doctor.check_weights(mirror, Path()).remedy.endswith(
        'HF_ENDPOINT=https://mirror.example'
    )
    offline = doctor.check_weights({'HF_HUB_OFFLINE': '1'}, tmp_path)
    assert offline.level == NOTE
    assert 'none yet' in offline.text


def test_the_screen():
    findings = [
        doctor.Finding('python', '3.11.9'),
        doctor.Finding('lvis', 'old', NOTE),
        doctor.Finding('mmdet', '2.28', BROKEN, '    pip uninstall -y mmdet\n    pip install x'),
    ]
    text = doctor.report(findings).split('\n', 2)[2]
    assert text == textwrap.dedent("""\
                python  3.11.9
          note  lvis    old
        BROKEN  mmdet   2.28

        1. mmdet: mend it with
               pip uninstall -y mmdet
               pip install x""")
    assert doctor.report(findings[:2]).endswith('Nothing is broken.')
    same = [doctor.Finding(name, 'absent', BROKEN, 'pip install all') for name in ('a', 'b')]
    assert '1. a, b: mend them with\n       pip install all' in doctor.report(same)
    long = doctor.report([doctor.Finding('libraries', ', '.join(['package 1.0'] * 20))])
    assert all(len(line) <= doctor.COLUMNS for line in long.splitlines())


def test_what_videos_need():
    fine = doctor.check_video(dict(version='1.2.0', decord='0.6.0'))
    assert (fine.level, fine.text) == (doctor.OK, '1.2.0, decord 0.6.0')
    blind = doctor.check_video(dict(version='1.2.0', reason="No module named 'decord'"))
    assert blind.level == doctor.BROKEN
    assert "no videos can be read: No module named 'decord'" in blind.text
    assert '--no-deps' in blind.remedy
    assert 'video.txt' in blind.remedy
    absent = doctor.check_video(dict(error="ModuleNotFoundError: No module named 'mmaction'"))
    assert (absent.level, absent.text) == (doctor.NOTE, 'not installed (for videos only)')
    old = doctor.check_video(dict(version='1.1.0', decord='0.6.0'))
    assert old.level == doctor.BROKEN
