"""A sweep in a process of its own, whose trials are the stand-in of trainer.py:
driver.py METHOD PARALLEL FOLDER SPACE."""

import sys
from pathlib import Path

from vit_jax.launch import local
from vit_jax.launch.job import Job

from vit_jax import errors, recipe
from vit_jax.sweeping import report, space, study
from vit_jax.sweeping.trials import Sweep

METRIC = "eval/val/accuracy"


class Trainer(Job):
    """A job that runs the stand-in."""

    @property
    def command(self) -> list[str]:
        return [sys.executable, str(Path(__file__).with_name("trainer.py")), *self.arguments]


def launch(name, folder, overrides, slot):
    keys = [f"--config.{key}={value}" for key, value in overrides.items()]
    arguments = ("train", f"--workdir={folder}", *keys)
    return local.start(Trainer(name, arguments, folder / "logs", platform="cpu"))


def main(method: str, parallel: str, path: str, text: str) -> int:
    folder, config = Path(path), recipe.load("digits.py")
    found = space.read(text, "digits.py", config)
    count = 12 if found.ranges else len(found.points)
    method, plus, _ = method.partition("+")
    search = study.Search(found, method, METRIC, count, prunes=bool(plus))
    with study.locked(folder):
        begun = study.begin("s", study.opened(None, folder), search, study.identity(config, search))
        sweep = Sweep(begun, search, folder, int(parallel), launch, print)
        try:
            sweep.run()
        except (errors.Stopped, errors.UserError) as error:
            print(error)
            return getattr(error, "code", errors.USER_ERROR)
        finally:
            report.write(begun, folder)
    return len(sweep.failed)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
