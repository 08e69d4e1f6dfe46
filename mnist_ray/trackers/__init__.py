"""Trackers: TensorBoard, MLflow and Optuna's dashboard show a run while it goes on (`log_to` in a spec).

Each tracker is a process of its own that reads the run's record, as any reader may, and logs what its files or its
server do not have yet. The record is the queue, so nothing is lost where a tracker is slow or away for a while, a
resumed run goes on without a doubled point, and the run waits for a tracker at its end alone.

    processes.py    starts and ends the trackers, in the process of the run
    follower.py     the loop of a tracker's process
    tensorboard.py, mlflow.py, optuna.py    what is logged, and how
"""
