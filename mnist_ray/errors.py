"""Every error that a user can meet, each with the exit code of the command that it ends."""

OSERROR_EXIT_CODE = 6  # a file could not be written or read
WORSE_EXIT_CODE = 8  # a compared run is worse, or a replayed trial or an exported model came to other numbers
NOT_COMPARED_EXIT_CODE = 9  # a check that was asked for had nothing to check


class MnistRayError(Exception):
    """The base of this project's errors; its text says what is wrong, with which value, and what to do."""

    exit_code = 1


class SpecError(MnistRayError, ValueError):
    """A request that cannot be met; the message names the key, the value and the remedy."""

    exit_code = 2


class ImageFileError(MnistRayError, ValueError):
    """A file that is not an image that can be predicted."""

    exit_code = 2


class DataError(MnistRayError, ValueError):
    """A data set that is missing, incomplete or wrong."""

    exit_code = 3


class CorruptFileError(MnistRayError, ValueError):
    """A file whose content is not what was written: torn, cut, changed or gone."""

    exit_code = 3


class TrainingFailedError(MnistRayError, RuntimeError):
    """A run in which nothing could be selected or tested: every trial failed, or the retraining did."""

    exit_code = 4


class OtherAnswersError(MnistRayError, RuntimeError):
    """An exported model that does not answer as the network does; its file is not written."""

    exit_code = WORSE_EXIT_CODE


class InterruptedRunError(MnistRayError, RuntimeError):
    """A run that was stopped before its end; the same command goes on with it."""

    exit_code = 5


class OwnedByAnotherError(MnistRayError, RuntimeError):
    """A run that another process is working on."""

    exit_code = 7


class TakenOverError(MnistRayError, RuntimeError):
    """A run that another process has taken over; this process publishes nothing more."""

    exit_code = 7
