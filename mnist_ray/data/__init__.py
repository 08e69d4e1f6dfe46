"""Data sets: verified files, an embedded set, a stratified split, pixel statistics.

from mnist_ray import data
data.fetch("mnist", folder)
training = data.load_training("mnist", folder)
split = data.stratified_split(training.labels, num_validation=10_000, seed=0)

Importing this package imports neither torch, torchvision nor scikit-learn.
"""

from mnist_ray.data.datasets import DATA_SETS, SECOND_TESTS, DataSet
from mnist_ray.data.files import data_dir_of, default_data_dir
from mnist_ray.data.labelled_images import NUM_CLASSES, LabelledImages, content_sha256
from mnist_ray.data.loading import OWN_IMAGES, fetch, is_present, load_second_test, load_test, load_training, presence
from mnist_ray.data.opened import OpenedData, SizesOfData, load_test_half, open_data, sizes_of_data
from mnist_ray.data.pixels import PixelStatistics, pixel_statistics
from mnist_ray.data.split import Split, check_num_validation, split_by_part, stratified_split

__all__ = [
    "DATA_SETS",
    "NUM_CLASSES",
    "OWN_IMAGES",
    "SECOND_TESTS",
    "DataSet",
    "LabelledImages",
    "OpenedData",
    "PixelStatistics",
    "SizesOfData",
    "Split",
    "check_num_validation",
    "content_sha256",
    "data_dir_of",
    "default_data_dir",
    "fetch",
    "is_present",
    "load_second_test",
    "load_test",
    "load_test_half",
    "load_training",
    "open_data",
    "pixel_statistics",
    "presence",
    "sizes_of_data",
    "split_by_part",
    "stratified_split",
]
