"""Recognising the form of a folder of images."""

from pathlib import Path

from mnist_ray.data.own_images.class_folders import ClassFolders, class_folders_without_train
from mnist_ray.data.own_images.forms import Form
from mnist_ray.data.own_images.idx_files import IdxFiles
from mnist_ray.data.own_images.images import OwnImages
from mnist_ray.data.own_images.npz import NpzArchive
from mnist_ray.errors import DataError

FORMS = (
    "class folders (train/CLASS/*.png and, if there, test/CLASS/*.png), IDX files (*train-images*, *train-labels*, "
    "*test-images*, *test-labels*), or one .npz archive (x_train, y_train, x_test, y_test)"
)


def find_own_images(folder: Path, is_transposed: bool = False, test_fraction: float = 0.2) -> OwnImages:
    """Recognise the form of a folder and read its labels; no image is read yet.

    is_transposed: rows and columns of IDX files or of an archive are exchanged. test_fraction: what is set apart where
    the folder has no test part. Raises DataError for a folder in none of the forms, in two, or with unfit labels.
    """
    try:
        if not folder.is_dir():
            raise DataError(
                f"data.dir {folder} is {'no folder' if folder.exists() else 'not there'}: name a folder of images"
            )
        candidates = (
            ClassFolders.found_in(folder),
            IdxFiles.found_in(folder, is_transposed),
            NpzArchive.found_in(folder, is_transposed),
        )
    except OSError as error:
        raise DataError(f"data.dir {error.filename or folder} cannot be read: {error.strerror}") from None
    forms: list[Form] = [form for form in candidates if form is not None]
    if len(forms) > 1:
        names = " and ".join(form.name for form in forms)
        raise DataError(f"data.dir {folder} holds images in two forms, {names}: keep one")
    if not forms:
        loose = class_folders_without_train(folder)
        hint = f"; {', '.join(loose[:5])} look like classes: move them into {folder / 'train'}" if loose else ""
        raise DataError(f"data.dir {folder} holds no images in a known form: {FORMS}{hint}")
    [form] = forms
    if is_transposed and isinstance(form, ClassFolders):
        raise DataError(f"data.transpose: true is for arrays, and data.dir {folder} holds class folders: leave it out")
    return OwnImages.of(folder, form, test_fraction)
