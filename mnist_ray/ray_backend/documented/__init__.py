"""A search and a training as Ray's documentation writes them: what the benchmark compares mnist_ray with.

Nothing here is used by a job. The programs use Ray's defaults, and nothing of mnist_ray but the figures' form.
"""
