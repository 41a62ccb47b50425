"""Every key of a run, written once as a row: name, default, meaning, what it may hold.

`config.py` makes the tree of them. The fields of families stand in `models/configs.py`, and are
keys behind `model.`.
"""

import re

from ml_collections import ConfigDict

from vit_jax import ranking
from vit_jax.fields import (
    COUNT,
    INSIDE,
    NATURAL,
    NOT_NEGATIVE,
    POSITIVE,
    RATE,
    SHARE,
    Fits,
    Key,
    one_of,
)

AUTO = "auto"  # of microbatch
OTHERS = "*"  # every choice of a component that is not listed
OWN = ":"  # a choice of the user's own, by its import path
SEED = Fits(int, lambda n: 0 <= n < 2**32, "a whole number in 0 … 2**32 - 1")
PASS = Fits(
    object, lambda n: n == AUTO or (type(n) is int and n >= 1), "a number of examples or auto"
)
BEST = Fits(str, ranking.fits, ranking.WANTED)
TRACED = Fits(
    str,
    lambda text: re.fullmatch(r"|[1-9]\d*:[1-9]\d*(:(all|\d+(,\d+)*))?", text) is not None,
    "FIRST:COUNT steps, and of which processes where not of the first alone, as in 100:5, "
    "100:5:all or 100:5:0,3",
)

WRITERS = ("tensorboard", "wandb", "mlflow", "trackio")
WRITTEN = Fits(
    str,
    lambda text: all(re.fullmatch(rf"{'|'.join(WRITERS)}|[\w.]+:\w+|", name.strip())
                     for name in text.split(",")),
    f"names of {', '.join(WRITERS)}, joined by commas, or a writer of your own by its import path",
)  # fmt: skip

# A row: name, default (or the type of a key that is empty by default), meaning, what it may hold,
# and which choices of its component read it, where not all do. An empty key takes what its meaning
# says.
KEYS = (
    Key("task", "classification", "what is learned: classification, detection, masked, or a task "
        "of your own by its import path, my_package.my_module:MyTask", later=True),
    Key("seed", 0, "decides the first parameters, the order of examples, augmentation and dropout",
        SEED),
    Key("batch_size", 128, "examples in a step, over all devices", COUNT),
    Key("microbatch", object, "examples in one pass; if fewer than batch_size, gradients are "
        "summed over passes. auto: as many as the memory holds", PASS, free=True),
    Key("total_steps", int, "length of the training. Exactly one of total_steps, total_epochs and "
        "total_examples is set", free=True),
    Key("total_epochs", float, "the length in passes over the training split", free=True),
    Key("total_examples", int, "the length in examples, over all epochs", free=True),
    Key("log_every_steps", int, "steps between two rows of metrics. Empty: 50, and less in a short "
        "run, so that there are 10 rows", COUNT, free=True),
    Key("writers", "tensorboard", "who gets every row beside metrics.jsonl, joined by commas: "
        "tensorboard | wandb | mlflow | trackio, or a writer of your own by its import path, "
        "my_package.my_module:MyWriter. None: nobody", WRITTEN, free=True, later=True),
    Key("eval_every_steps", int, "steps between two evaluations. Without it and "
        "eval_every_epochs: at the end alone", free=True),
    Key("eval_every_epochs", float, "the same in epochs; at most one of the two is set", free=True),
    Key("eval_batch_size", int, "examples in a step of evaluation. Empty: batch_size", COUNT,
        free=True),
    Key("evaluators", str, "evaluations beside that of data.eval: fewshot('folder:PATH')|knn(…)|…; "
        "a metric of your own by its import path, my_package.my_module:NAME(…), is one of "
        "data.eval", free=True),
    Key("best", str, "how evaluations of data.eval are ranked: max or min and a metric, as in "
        "'min loss'. Empty: as the task does, such as 'max accuracy'", BEST, free=True),
    Key("stop_after", int, "evaluations of data.eval in a row without a gain by `best` that end "
        "the run. Empty: it goes on to its length", COUNT, free=True, later=True),
    Key("init", str, "weights, checkpoint or work folder that the parameters come from; the head "
        "is new", free=True),
    Key("source_image_size", object, "(height, width) of the images that the weights of init were "
        "trained on, if their file does not state it", free=True),
    Key("resume", str, "checkpoint or work folder that the whole state comes from", free=True),
    Key("max_skipped_steps", 20, "this many non-finite steps in a row end the run", COUNT,
        free=True),
    Key("deterministic", False, "the same config gives the same bits on a GPU too, at some cost "
        "of speed"),
    Key("preflight", True, "refuse a run that the devices' memory cannot hold, before it starts",
        free=True),
    Key("profile", str, "steps to trace for xprof, as FIRST:COUNT; processes as in "
        "FIRST:COUNT:all or :0,3", TRACED, free=True),
    Key("step_timeout", 300.0, "seconds without a step (or the time of 20 usual ones) that end "
        "the run with exit code 76", POSITIVE, free=True),
    Key("heartbeat_timeout", 20.0, "seconds of silence after which a process counts as dead",
        POSITIVE, free=True),

    # The fields of the families follow it, model.FIELD: models/configs.py. All of them are empty;
    # what is left empty comes with the name.
    Key("model.name", "vit_base_patch16_224", "a name that `list_models` gives, or a family of "
        "your own by its import path, my_package.my_module:MY_FAMILY"),

    Key("data.train.source", "digits", "where the examples are: digits | folder:PATH | csv:FILE "
        "| tfds:NAME | synthetic, with boxes coco:PATH | voc:PATH | digit_scenes"),
    Key("data.train.split", "train", "which part of the source, by the source's name for it; "
        "several together: train+val"),
    Key("data.train.pipeline", "decode|inception_crop|flip_lr",
        "operations on each image, joined by |"),
    Key("data.eval.source", str, "where the examples of evaluation are. Empty: data.train.source"),
    Key("data.eval.split", "val", "the part that is evaluated. Empty: no evaluation"),
    Key("data.eval.pipeline", "decode|resize_small|central_crop",
        "operations on each image in evaluation, none of them random"),
    Key("data.mean", object, "subtracted from pixels in 0 … 1; a number, or one for each channel. "
        "Empty: that of init, or 0.5"),
    Key("data.std", object, "then divides them; a number, or one for each channel. Empty: that of "
        "init, or 0.5"),
    Key("data.threads", 2, "threads of each process that read and augment", NATURAL, free=True),
    Key("data.workers", 0, "processes that read and augment instead of the threads", NATURAL,
        free=True),
    Key("data.damaged", "skip", "what happens at a file that cannot be read: skip takes the next "
        "one", one_of("skip", "fail")),
    Key("mixup", 0.0, "p of Beta(p, p), from which an image's share in its mix with another is "
        "drawn; 0: off", NOT_NEGATIVE),
    Key("cutmix", 0.0, "p of Beta(p, p), from which the share outside of another image's box is "
        "drawn; 0: off", NOT_NEGATIVE),
    Key("mix_each", False, "every example has its own share and box; otherwise a batch has one"),

    Key("optimizer.name", "adamw", "one of those named here, or any other function of optax",
        one_of("adam", "adamw", "sgd", "adafactor", "muon", "schedule_free", OTHERS)),
    Key("optimizer.lr", 1e-3, "learning rate at its peak, after the warm-up", NOT_NEGATIVE),
    Key("optimizer.lr_per", int, "batch size for which lr is stated; the rate grows in proportion "
        "to batch_size", COUNT),
    Key("optimizer.weight_decay", 0.0, "decay of the kernels", NOT_NEGATIVE,
        ("adamw", "sgd", "adafactor", "muon", "schedule_free", OTHERS)),
    Key("optimizer.decay_by", "rate", "what multiplies the decay. rate: the learning rate; "
        "schedule: its share of the peak", one_of("rate", "schedule")),
    Key("optimizer.layer_decay", float, "factor by which the rate shrinks from a block to the one "
        "before it", SHARE),
    Key("optimizer.freeze", str, "regular expression of the parameters' paths that do not train"),
    Key("optimizer.clip_norm", float, "largest norm of the global gradient, to which longer ones "
        "are scaled", NOT_NEGATIVE),
    Key("optimizer.skip_norm", float, "steps with a gradient of a larger norm are skipped",
        NOT_NEGATIVE),
    Key("optimizer.b1", 0.9, "decay of Adam's first moment", RATE,
        ("adam", "adamw", "adafactor", "muon", "schedule_free")),
    Key("optimizer.b2", 0.999, "decay of its second moment", RATE,
        ("adam", "adamw", "muon", "schedule_free")),
    Key("optimizer.eps", 1e-8, "added to the second moment's root", None,
        ("adam", "adamw", "schedule_free")),
    Key("optimizer.offload", False, "the optimiser's state is in the host's memory, fetched for "
        "every update", free=True),
    Key("optimizer.mu_dtype", str, "number format of the first moment. Empty: float32", None,
        ("adam", "adamw", "adafactor", "muon")),
    Key("optimizer.momentum", 0.9, "momentum of sgd; 0 is plain gradient descent", RATE, ("sgd",)),
    Key("optimizer.kwargs", ConfigDict(),
        "further arguments of sgd, muon, or another function of optax", None,
        ("sgd", "muon", OTHERS)),
    Key("ema", float, "decay of a moving average of the weights, which is evaluated beside them",
        INSIDE),

    Key("schedule.name", "cosine", "how the learning rate falls after the warm-up",
        one_of("constant", "cosine", "linear", "rsqrt", "drop")),
    Key("schedule.warmup_steps", int, "steps in which the rate rises linearly; at most one of the "
        "three lengths is set"),
    Key("schedule.warmup_epochs", float, "the warm-up in epochs"),
    Key("schedule.warmup_examples", int, "the warm-up in examples"),
    Key("schedule.end_lr", 0.0, "learning rate after the last step", None,
        ("cosine", "linear", "rsqrt")),
    Key("schedule.timescale", 10_000, "timescale of rsqrt, in steps", None, ("rsqrt",)),
    Key("schedule.cooldown_steps", 0, "last steps of rsqrt, in which the rate falls linearly to "
        "end_lr", None, ("rsqrt",)),

    Key("loss.name", "softmax", "cross-entropy by a softmax over the classes, or a sigmoid for "
        "each; or a loss of your own by its import path, my_package.my_module:NAME(…)",
        one_of("softmax", "sigmoid", OWN)),
    Key("loss.label_smoothing", 0.0, "share of the target that is spread over all classes", RATE,
        ("softmax", OWN)),
    Key("loss.class_weights", object, "how much each class counts, a number for each", None,
        ("softmax", "sigmoid")),
    Key("distill", str, "teacher: soft('WEIGHTS', temperature=2) | hard('WEIGHTS', weight=0.5)"),

    # Sizes multiply to the device count; a -1 takes what is left.
    Key("mesh.data", -1, "devices among which the batch is split; one -1 takes the devices that "
        "are left", free=True),
    Key("mesh.fsdp", 1, "devices that split batch, parameters and optimiser's state. Both -1: up "
        "to 16", free=True),
    Key("mesh.tensor", 1, "devices that split heads and hidden widths", free=True),
    Key("mesh.min_shard_size", 2**16, "parameters with fewer elements are replicated", free=True),

    Key("checkpoint.every_steps", int, "steps between two checkpoints. Empty: a tenth of the run",
        COUNT, free=True),
    Key("checkpoint.every_minutes", float,
        "minutes between further checkpoints, of which the newest stays", POSITIVE, free=True),
    Key("checkpoint.keep", 3, "how many of the last checkpoints stay", COUNT, free=True),
    Key("checkpoint.keep_best", True, "the best evaluated checkpoint stays, too", free=True),
)  # fmt: skip

# Keys that are always there, and that a task without labels does not read.
OF_LABELS = ("mixup", "cutmix", "mix_each", "loss.name", "loss.label_smoothing",
             "loss.class_weights", "distill")  # fmt: skip
UNREAD = {"detection": OF_LABELS, "masked": OF_LABELS}

# Keys of one task alone, which are there where `task` names it.
OF_TASK = {
    "detection": (
        Key("detection.l1", 5.0, "weight of the distance of boxes, in the matching and in the "
            "loss", NOT_NEGATIVE),
        Key("detection.giou", 2.0, "weight of their generalised intersection over union",
            NOT_NEGATIVE),
        Key("detection.empty", 0.1, "weight of a query without an object", NOT_NEGATIVE),
        Key("detection.auxiliary", True, "every layer of the decoder has the loss, not only the "
            "last"),
        Key("detection.backbone_rate", 1.0, "factor of the learning rate of the backbone",
            NOT_NEGATIVE),
    ),
}  # fmt: skip
