"""What a model is trained for, a file each: its batches, its loss, how it is judged."""

from ml_collections import ConfigDict

from vit_jax.errors import UserError, nearest
from vit_jax.tasks.classification import Classification
from vit_jax.tasks.detection import Detect
from vit_jax.tasks.distillation import Distillation
from vit_jax.tasks.masked import Masked
from vit_jax.tasks.task import Entries, Task
from vit_jax.user_code import imported

__all__ = ["TASKS", "Entries", "Task", "find_task"]

TASKS: dict[str, type[Task]] = {
    "classification": Classification, "detection": Detect, "masked": Masked,
}  # fmt: skip


def find_task(config: ConfigDict) -> type[Task]:
    """The task that a config names: one of `TASKS`, or one of the user's own by its import path,
    `my_package.my_module:MyTask`. With `distill`, the classifier learns from a teacher too.

    Raises UserError where there is no such task.
    """
    name = config.task
    task = imported(name, "a task") if ":" in name else TASKS.get(name)
    if not (isinstance(task, type) and issubclass(task, Task)):
        hint = nearest(name, TASKS) if task is None else "it is no vit_jax.tasks.Task"
        raise UserError(f"unknown task {name!r}: {hint}; or give my_package.my_module:MyTask")
    if config.distill:
        if task is not Classification:
            raise UserError(f"distill teaches classifiers; it is set, and task is {name}")
        return Distillation
    return task
