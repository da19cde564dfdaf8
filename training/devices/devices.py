"""Which devices train: every GPU of this host if there is one, else the CPU; of all hosts that TF_CONFIG names.

They are found without a flag.
"""

from functools import cache

import tensorflow as tf

from bookserve.training.devices import hosts


def strategy() -> tf.distribute.Strategy:
    """The default strategy for CPU or one GPU; with more, one replica on each with gradients summed over all.

    The batch size of a model's `Config` is always the global one: it is split over the replicas, and the loss divided
    by it. Where TF_CONFIG names other hosts, this waits until they are there.

    Raises:
        TrainingError: TF_CONFIG is wrong, or the other hosts cannot be joined.
    """
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    cluster = hosts.cluster()
    if cluster is not None:
        return hosts.join(cluster)
    if len(gpus) > 1:
        return _mirrored()
    return tf.distribute.get_strategy()


def describe() -> str:
    """The devices in words, for the run's record: "CPU", "8 GPUs (NVIDIA ...)", "CPU on each of 2 hosts"."""
    cluster = hosts.cluster()
    here = _describe_host()
    return here if cluster is None else f"{here} on each of {len(cluster.addresses)} hosts"


@cache
def _mirrored() -> tf.distribute.MirroredStrategy:
    """One for the whole process: a second one numbers its sums over the replicas like the first, which TensorFlow takes
    for the same sums and refuses where the network has other shapes."""
    return tf.distribute.MirroredStrategy()


def _describe_host() -> str:
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return "CPU"
    names = sorted({str(tf.config.experimental.get_device_details(gpu).get("device_name", "GPU")) for gpu in gpus})
    return f"{len(gpus)} GPU{'s' if len(gpus) > 1 else ''} ({', '.join(names)})"
