"""The learning rate that most trainings here follow: up along a line, then down along a cosine."""

import keras


def warm_cosine(
    highest: float, steps: int, warmup: float, start: float = 0.0
) -> keras.optimizers.schedules.LearningRateSchedule:
    """From `start` times `highest` in a line to `highest`, for the fraction `warmup` of all `steps`; then to 0.

    Source of the second half: Loshchilov and Hutter, "SGDR" (2016), without restarts.
    """
    rising = int(steps * warmup)
    return keras.optimizers.schedules.CosineDecay(
        start * highest, steps - rising, warmup_target=highest, warmup_steps=rising
    )
