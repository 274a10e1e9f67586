"""Class folders, file lists and tar files; what is told of bad ones."""

import tarfile
import time

import numpy as np
import pytest
from timm.data import ImageNetInfo
from torchvision.datasets import ImageFolder

from eva_mm.classification import ClassificationImages, TarImages
from eva_mm.classification.datasets import check_classes, read_classes
from eva_mm.errors import InputError, MissingFileError, UnreadableFileError

from .small import make_folders

COUNTS = {'n02': 3, 'n01': 2, 'n10': 4}


def labels(dataset):
    return [dataset.get_data_info(i)['label'] for i in range(len(dataset))]


@pytest.fixture
def root(tmp_path):
    return make_folders(tmp_path / 'train', COUNTS)


def test_equals_torchvision(root):
    (root / 'n02' / 'deeper').mkdir()
    (root / 'n02' / '001.png').rename(root / 'n02' / 'deeper' / '9.png')
    ours, theirs = ClassificationImages(str(root)), ImageFolder(str(root))
    assert list(ours.metainfo['classes']) == theirs.classes == ['n01', 'n02', 'n10']
    found = {ours.get_data_info(i)['img_path']: labels(ours)[i] for i in range(len(ours))}
    assert found == dict(theirs.samples)
    sample = ours[0]
    assert np.array_equal(np.array(sample['image']), np.array(theirs[0][0]))
    assert sample['label'] == 0
    assert sample['img_path'].endswith('n01/000.png')


def test_given_classes_give_the_order(root, tmp_path):
    file = tmp_path / 'classes.txt'
    file.write_text('n10\nn01\nn02\n')
    for classes in (['n10', 'n01', 'n02'], str(file)):
        dataset = ClassificationImages(str(root), classes=classes)
        assert labels(dataset) == [1, 1, 2, 2, 2, 0, 0, 0, 0]
        assert dataset.metainfo['classes'] == ('n10', 'n01', 'n02')


def test_missing_and_further_classes_are_named(root):
    with pytest.raises(InputError) as caught:
        ClassificationImages(str(root), classes=['n01', 'n02', 'n03', 'n04'])
    text = str(caught.value)
    assert str(root) in text
    assert 'missing: 2 (n03, n04)' in text
    assert 'not among them: 1 (n10)' in text
    dataset = ClassificationImages(
        str(root), classes=['n01', 'n02', 'n03', 'n10'], require_all=False
    )
    assert set(labels(dataset)) == {0, 1, 3}
    with pytest.raises(InputError, match='not among them: 1 .n10.'):
        ClassificationImages(str(root), classes=['n01', 'n02', 'n03'], require_all=False)


def test_imagenet_lists():
    assert read_classes('imagenet-1k')[:2] == ('n01440764', 'n01443537')
    assert len(read_classes('imagenet-1k')) == 1000
    assert len(read_classes('imagenet-22k')) == 21841
    names = ImageNetInfo('imagenet-1k').label_names()
    with pytest.raises(InputError, match=r'missing: 1 \(n01440764\)'):
        check_classes(names[1:], names, 'here')
    with pytest.raises(MissingFileError, match="'imagenet-1k'?"):
        read_classes('imagenet1k')
    with pytest.raises(InputError, match=r"each once; found \['a'\]"):
        read_classes(['a', 'b', 'a'])


def test_images_beside_the_folders(root):
    (root / 'n01' / '000.png').rename(root / 'stray.png')
    with pytest.raises(InputError, match=r'stray\.png lies in no class folder'):
        ClassificationImages(str(root))


def test_empty_class_folder(root):
    (root / 'n05').mkdir()
    with pytest.raises(InputError, match='1 class folders hold no image, as n05'):
        ClassificationImages(str(root))


def test_flat_validation_folder(tmp_path):
    """ImageNet's validation archive as it unpacks."""
    make_folders(tmp_path, {'val': 2})
    with pytest.raises(InputError, match='no class folder.*file list with labels'):
        ClassificationImages(str(tmp_path / 'val'))


def test_file_list(root, tmp_path):
    file = tmp_path / 'list.txt'
    file.write_text('n10/000.png 2\nn01/001.png 0\n')
    dataset = ClassificationImages(str(root), ann_file=str(file))
    assert labels(dataset) == [2, 0]
    assert dataset.metainfo['classes'] == ('0', '1', '2')
    file.write_text('n10/000.png\nn01/001.png\n')
    assert labels(ClassificationImages(str(root), ann_file=str(file))) == [1, 0]


@pytest.mark.parametrize('label', [3, -1])
def test_label_out_of_range(root, tmp_path, label):
    file = tmp_path / 'list.txt'
    file.write_text(f'n10/000.png 2\nn01/001.png {label}\n')
    with pytest.raises(InputError, match=rf'01\.png, line 2 .* has label {label}, expected 0 to 2'):
        ClassificationImages(str(root), ann_file=str(file), classes=['a', 'b', 'c'])


@pytest.mark.parametrize('label', [-1, 5_000_000])
def test_label_out_of_range_without_classes(root, label):
    (root / 'list.txt').write_text(f'n10/000.png {label}\n')
    with pytest.raises(InputError, match=f'line 1 .* has label {label}, expected 0 to 99999'):
        ClassificationImages(str(root), ann_file='list.txt')


def test_labels_on_one_list_alone(root, tmp_path):
    """They would be replaced by the numbers of the folders."""
    other = make_folders(tmp_path / 'other', COUNTS)
    (root / 'list.txt').write_text('n10/000.png 0\nn01/001.png 1\n')
    roots = [str(root), str(other)]
    for files, unlabelled in ((['list.txt', ''], 'folder .*other'), (['list.txt', 'l'], 'l of')):
        (other / 'l').write_text('n10/000.png\n')
        with pytest.raises(InputError, match=f'list.txt of .* has labels, {unlabelled}.* has none'):
            ClassificationImages(roots, ann_file=files)


@pytest.mark.parametrize(
    'form', ['{root}/{path}', './{path}', 'n01/.././{path}', '{path}', '//{path}']
)
def test_paths_lead_through_class_folders_however_written(root, form):
    paths = ['n10/000.png', 'n01/001.png', 'n02/000.png']
    form = form.replace('//', str(root) + '//')
    lines = [form.format(root=root, path=path) for path in paths]
    (root / 'list.txt').write_text('\n'.join(lines))
    dataset = ClassificationImages(str(root), ann_file='list.txt')
    assert dataset.metainfo['classes'] == ('n01', 'n02', 'n10')
    assert labels(dataset) == [2, 0, 1]
    dataset[2]


@pytest.mark.parametrize(
    'path', ['/elsewhere/n01/000.png', '../n01/000.png', './000.png', '/0.png']
)
def test_paths_without_a_class_folder(root, path):
    (root / 'list.txt').write_text(f'n01/001.png\n{path}\n')
    with pytest.raises(InputError, match='lies in no class folder'):
        ClassificationImages(str(root), ann_file='list.txt')


def test_an_image_with_two_labels(root):
    file = root / 'list.txt'
    file.write_text('n10/000.png 1\nn01/000.png 0\nn10/000.png 1\n')
    assert len(ClassificationImages(str(root), ann_file='list.txt')) == 3  # seen more often
    file.write_text('n10/000.png 1\nn01/000.png 0\nn10/000.png 2\n')
    with pytest.raises(InputError, match='n10/000.png of .* labels 1 and 2, in lines 1 and 3'):
        ClassificationImages(str(root), ann_file='list.txt')


@pytest.mark.parametrize('label', [' 0', ''])
def test_an_image_listed_twice_is_not_held_out(root, label):
    lines = ['n10/000.png', 'n10/001.png', 'n10/000.png']
    (root / 'list.txt').write_text(''.join(f'{line}{label}\n' for line in lines))
    with pytest.raises(InputError, match='n10/000.png of .* listed 2 times'):
        ClassificationImages(
            str(root), ann_file='list.txt', holdout=dict(part='train', fraction=0.5)
        )


def test_classes_that_are_no_text(root):
    with pytest.raises(InputError, match=r'000\.png is no text'):
        read_classes(str(root / 'n01' / '000.png'))


def test_many_classes_are_compared_in_a_moment():
    names = [f'n{i:08d}' for i in range(20_000)]
    start = time.process_time()
    check_classes(names, names, 'here')
    assert time.process_time() - start < 2  # 15 s where a set is built for each name


def test_unreadable_image(root):
    broken = root / 'n01' / '000.png'
    broken.write_bytes(b'no picture')
    with pytest.raises(UnreadableFileError, match='n01/000.png'):
        ClassificationImages(str(root))[0]
    dataset = ClassificationImages(str(root), skip_unreadable=True)
    assert dataset[0]['img_path'] != str(broken)
    assert dataset.num_replaced == 1
    with pytest.raises(UnreadableFileError):
        ClassificationImages(str(root), skip_unreadable=True, test_mode=True)[0]


def test_several_roots_share_their_classes(tmp_path):
    first = make_folders(tmp_path / 'a', {'x': 1, 'z': 1})
    second = make_folders(tmp_path / 'b', {'y': 2})
    dataset = ClassificationImages([str(first), str(second)])
    assert dataset.metainfo['classes'] == ('x', 'y', 'z')
    assert labels(dataset) == [0, 2, 1, 1]


# ------------------------------------------------------------------------------------- held out


def parts(root, fraction=0.25, seed=0):
    split = dict(fraction=fraction, seed=seed)
    return [
        ClassificationImages(str(root), holdout=dict(part=part, **split))
        for part in ('train', 'val')
    ]


def paths(dataset):
    return {dataset.get_data_info(i)['img_path'] for i in range(len(dataset))}


def test_held_out_parts(tmp_path):
    root = make_folders(tmp_path, {'a': 8, 'b': 2, 'c': 1})
    train, val = parts(root)
    assert paths(train) | paths(val) == paths(ClassificationImages(str(root)))
    assert not paths(train) & paths(val)
    assert np.bincount(labels(val), minlength=3).tolist() == [2, 1, 0]
    assert train.metainfo == val.metainfo
    assert paths(parts(root)[1]) == paths(val)
    others = [paths(parts(root, seed=seed)[1]) for seed in range(1, 6)]
    assert any(other != paths(val) for other in others)
    for dataset in (train, val):
        for i in range(len(dataset)):
            info = dataset.get_data_info(i)
            assert info['img_path'].split('/')[-2] == 'abc'[info['label']]


def test_held_out_arguments(tmp_path):
    root = make_folders(tmp_path, {'a': 1, 'b': 1})
    with pytest.raises(InputError, match='no class has a second image'):
        parts(root)
    with pytest.raises(InputError, match='fraction between 0 and 1'):
        parts(root, fraction=1.0)
    with pytest.raises(InputError, match='holdout takes part, fraction .* has part, fractoin'):
        ClassificationImages(str(root), holdout=dict(part='train', fractoin=0.1))


def test_held_out_number_is_rounded(tmp_path):
    root = make_folders(tmp_path, {'a': 6, 'b': 5})
    assert np.bincount(labels(parts(root, 0.25)[1])).tolist() == [2, 1]
    assert np.bincount(labels(parts(root, 0.35)[1])).tolist() == [2, 2]


# ----------------------------------------------------------------------------------------- tars


def pack(folder, target, prefix=''):
    with tarfile.open(target, 'w') as tar:
        for file in sorted(folder.rglob('*.png')):
            tar.add(file, prefix + str(file.relative_to(folder)))


def test_one_tar_per_class(root, tmp_path):
    tars = tmp_path / 'tars'
    tars.mkdir()
    for folder in root.iterdir():
        pack(folder, tars / f'{folder.name}.tar')
    check_tars(TarImages(str(tars)), root)


def test_shards(root, tmp_path):
    tars = tmp_path / 'tars'
    tars.mkdir()
    for index, folder in enumerate(sorted(root.iterdir())):
        pack(folder, tars / f'shard_{index}.tar', f'{folder.name}/')
    check_tars(TarImages(str(tars)), root)


def check_tars(ours, root):
    theirs = ImageFolder(str(root))
    assert list(ours.metainfo['classes']) == theirs.classes
    assert len(ours) == len(theirs)
    wanted = sorted((label, np.array(image).tobytes()) for image, label in theirs)
    found = sorted(
        (s['label'], np.array(s['image']).tobytes()) for s in map(ours.__getitem__, range(9))
    )
    assert found == wanted
    assert '.tar!' in ours[0]['img_path']


def test_classes_of_tars_are_checked(root, tmp_path):
    pack(root, tmp_path / 'all.tar')
    dataset = TarImages(str(tmp_path / 'all.tar'), classes=['n10', 'n02', 'n01'])
    assert sorted(labels(dataset)) == [0] * 4 + [1] * 3 + [2] * 2
    with pytest.raises(InputError, match='missing: 1 .n03.'):
        TarImages(str(tmp_path / 'all.tar'), classes=['n01', 'n02', 'n03', 'n10'])


def test_bad_tars(root, tmp_path):
    with pytest.raises(MissingFileError, match='nowhere'):
        TarImages(str(tmp_path / 'nowhere'))
    with pytest.raises(MissingFileError, match='no tar file'):
        TarImages(str(root))
    (tmp_path / 'broken.tar').write_bytes(b'0' * 2000)
    with pytest.raises(InputError, match='broken.tar'):
        TarImages(str(tmp_path / 'broken.tar'))
    (root / 'n01' / '000.png').write_bytes(b'no picture')
    pack(root, tmp_path / 'all.tar')
    dataset = TarImages(str(tmp_path / 'all.tar'), skip_unreadable=True)
    index = next(
        i for i in range(9) if dataset.get_data_info(i)['img_path'].endswith('n01/000.png')
    )
    assert dataset[index]['img_path'] == dataset.get_data_info(index + 1)['img_path']
    assert dataset.num_replaced == 1
