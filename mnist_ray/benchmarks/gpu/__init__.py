"""A GPU in one command: whether trainings on it are correct, and how fast they are.

Needs torch and what mnist_ray.training imports, and neither Ray nor a network; the part `ray` needs Ray.
"""
