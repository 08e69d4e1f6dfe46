"""A user's own images, in one of three forms: class folders, IDX files, or one .npz archive.

own = find_own_images(folder)
training = own.load().training

The rule that makes any picture 28x28 and grey stands in grey.py.
"""

from mnist_ray.data.own_images.finding import find_own_images
from mnist_ray.data.own_images.grey import in_network_form
from mnist_ray.data.own_images.images import Loaded, OwnImages

__all__ = ["Loaded", "OwnImages", "find_own_images", "in_network_form"]
