"""Going on with a run that was stopped: when a state is saved, and how one is taken up."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

from torchdistill.common.main_util import is_main_process

from akd_ext.logit_cache import describe_teacher
from akd_ext.train.boxes import current_stage, original_student, temperature_and_phi
from akd_ext.train.config.document import Tagged
from akd_ext.train.distributed import group as processes
from akd_ext.train.system.errors import ConfigError
from akd_ext.train.system.signals import Stop, Stopped
from akd_ext.train.tasks.text.data import TextDataset

from .state_file import SavedState, StateFile, refuse_another
from .training_state import Unsavable, capture, lives_on, plain, random_state, restore, restore_random, to_stage

logger = logging.getLogger(__name__)
_PLACES = ("root", "cache_dir")  # where data and caches are, which may be elsewhere the next time


def run_fingerprint(args: Any, config: Any, teacher: Any, datasets: dict) -> dict[str, Any]:
    """What must be the same for a run to go on: everything that the student depends on, but where it is computed."""
    home = os.path.join(args.output_dir, "") if args.output_dir else None

    def shown(value: Any) -> Any:
        if isinstance(value, Tagged):
            return {value.tag: shown(value.value)}
        if isinstance(value, dict):
            return {str(key): shown(item) for key, item in value.items() if key not in _PLACES}
        if isinstance(value, (list, tuple)):
            return [shown(item) for item in value]
        if isinstance(value, str) and home and value.startswith(home):
            return f"<output_dir>/{value[len(home) :]}"  # the folder may be moved between two commands
        return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)

    told = shown(config.tree.plain())
    if teacher is not None and told["models"].get("teacher_model"):
        told["models"]["teacher_model"].pop("src_ckpt", None)  # its weights count, below
    return {
        "config": told,
        "seed": args.seed,
        "amp": args.amp,
        "adjust_lr": args.adjust_lr,
        "processes": processes.world_size(),
        "teacher weights": describe_teacher(teacher)["weights"] if teacher is not None else None,
        "samples": {name: len(dataset) for name, dataset in datasets.items() if hasattr(dataset, "__len__")},
        # Of text: images may be made anew at every look.
        "token ids and labels": {n: d.fingerprint() for n, d in datasets.items() if isinstance(d, TextDataset)},
    }


def find(store: StateFile, args: Any, identity: dict[str, Any], is_there: bool) -> SavedState | None:
    """The state to go on from, or of a finished run; None: the run begins.

    Args:
        store: where states are.
        args: ``--resume`` and ``--overwrite`` count.
        identity: of this run.
        is_there: whether a finished run's results are.

    Raises:
        ConfigError: there is nothing to go on from and ``--resume`` was given; there is what this command cannot go on
            from; or not all processes see it.
    """
    saved = None if args.overwrite else store.read()
    if saved is not None:
        refuse_another(saved, identity, args.output_dir)
    if saved is not None and saved.complete and not is_there:
        logger.info("'%s' holds a finished run whose results are gone; it starts over", args.output_dir)
        saved = None
    if saved is None and args.resume:
        raise ConfigError(
            f"--resume: there is no state in '{store.folder}' to go on from; leave --resume out to start from the beginning"
        )
    where = saved and saved.where
    if any(other != where for other in processes.all_gather_object(where)):
        raise ConfigError(f"--output_dir: the processes do not all see the same '{args.output_dir}'; to go on they need "
                          "a folder that all machines share")  # fmt: skip
    return saved


class Checkpointer:
    """Saves a run's state after every epoch and inside of one, and takes one up. Without a store it does neither.

    Under torch.distributed every process calls its methods and rank 0 writes; a signal then ends the run at once, because
    the processes are not in the same step when it comes.

    Attributes:
        epoch: where the run goes on; None: at its beginning.
        step: how many steps there were before that epoch.
        reached: how many with those inside of it.
    """

    def __init__(
        self, store: StateFile | None, identity: dict[str, Any], every_steps: int, stop: Stop, *, settings: Any,
        stage_configs: list[dict], results: Any, keeper: Any,
    ):  # fmt: skip
        self._store, self._identity, self._every, self._stop = store, identity, every_steps, stop
        self._settings, self._stage_configs, self._results, self._keeper = settings, stage_configs, results, keeper
        self._alone = not processes.is_distributed()
        self._inside: dict[str, Any] | None = None  # the state to go on from, if it lies inside of an epoch
        self._at_start: dict[str, Any] = {}  # random states before the epoch's first batch
        self.epoch: int | None = None
        self.step = self.reached = 0

    def take_up(self, saved: SavedState, box: Any) -> None:
        """Brings a fresh ``box``, the results and the checkpoints to where the state was saved.

        Raises:
            ConfigError: the state is damaged, or of another model.
        """
        state = self._store.load(saved)
        tags = state["keeper"]["tags"]
        files = {role: self._store.path(saved, role) for role in tags}
        self._store.remember(saved, tags)
        if is_main_process():
            self._keeper.put_back(files)
        processes.barrier()  # entering a stage may load what was put back
        to_stage(box, state["box"], state["epoch"])
        restore(box, state["box"], self._stage_configs)
        self._keeper.restore(state["keeper"], files, original_student(box))
        if self._settings.precision.scaler is not None:
            self._settings.precision.scaler.load_state_dict(state["scaler"])
        self._results.restore(state["results"])
        self._inside = state if self._own(state)["inside"] else None
        self.epoch, self.step = state["epoch"], state["step"]
        self.reached = self.step + saved.where["step"]
        self._stop.saved = progress_of(saved.where)
        logger.info("the run goes on from %s", self._stop.saved)
        restore_random(box, self._settings.device, self._own(state)["now"])

    def begin_epoch(self, box: Any) -> dict[str, Any] | None:
        """To be called after the pre-epoch process. From here to `after_epoch` a signal waits until a state is saved.

        Returns:
            Where in the epoch the run goes on, as `after_step` got it; None: at its start.
        """
        self._stop.deferred = self._store is not None and self._alone
        if self._inside is None:
            return None
        restore(box, self._inside["box"], self._stage_configs)  # the pre-epoch process may have loaded other weights
        return self._own(self._inside)["inside"]

    def batches(self, box: Any, at: int) -> Iterator[Any]:
        """The epoch's batches from the one after step ``at``. Those before are loaded and dropped.

        Their order, and what the workers draw, follows from the random states at the epoch's start; everything else
        from those after step ``at``.
        """
        if self._store is None:
            return iter(box.train_data_loader)
        device, inside = self._settings.device, self._inside
        if inside is None:
            self._at_start = random_state(box, device) | {"lives_on": lives_on(box.train_data_loader)}
        else:
            self._at_start = self._own(inside)["at_start"]
            if not self._at_start["lives_on"] and lives_on(box.train_data_loader):
                box.train_data_loader._iterator = None  # it began with this epoch: the seed that it draws comes now
            restore_random(box, device, self._at_start)
        batches = iter(box.train_data_loader)
        for _ in range(at):
            next(batches, None)
        if inside is not None:
            restore_random(box, device, self._own(inside)["now"])
            self._inside = None
        return batches

    def after_step(self, box: Any, epoch: int, step: int, inside: Callable[[], dict[str, Any]]) -> None:
        """Saves a state if it is time to.

        Args:
            box: after its post-forward process.
            epoch: the running epoch.
            step: how many steps there were before it.
            inside: gives what the loop itself must know to go on in the middle of the epoch; ``at`` is the step in it.

        Raises:
            Stopped: the run was asked to stop.
        """
        interval = self._every * box.grad_accum_step  # in batches; the optimizer steps at the same ones
        if self._stop.asked or (interval and box.stage_grad_count % interval == 0):
            self._save(box, epoch, step, inside())
        if self._stop.asked:
            raise Stopped(self._stop.asked)

    def after_epoch(self, box: Any, epoch: int, step: int) -> None:
        """Saves the state before ``epoch``, the next one. Raises Stopped if the run was asked to stop."""
        self._save(box, epoch, step, None)
        self._stop.deferred = False
        if self._stop.asked:
            raise Stopped(self._stop.asked)

    def finish(self) -> None:
        """The results are complete: there is nothing to go on with any more."""
        if self._store is not None and is_main_process():
            self._store.finish(self._identity, {"epoch": self._results.data["last"]["epoch"] + 1})

    def _save(self, box: Any, epoch: int, step: int, inside: dict[str, Any] | None) -> None:
        if self._store is None:
            return
        temperature, phi = temperature_and_phi(box)
        where = {"stage": current_stage(box), "epoch": epoch, "step": inside["at"] if inside else 0}
        where |= {"T": temperature, "phi": phi} if inside and phi is not None else {}
        scaler = self._settings.precision.scaler
        try:
            state = {
                "epoch": epoch,
                "step": step,
                "box": capture(box, self._stage_configs),
                "scaler": scaler and scaler.state_dict(),
                "processes": processes.all_gather_object(
                    {
                        "inside": inside,
                        "at_start": self._at_start if inside else None,
                        "now": random_state(box, self._settings.device),
                    }
                ),
                "results": plain(self._results.data, "results.json"),
                "keeper": plain(self._keeper.state(), "the checkpoints"),
            }
        except Unsavable as error:
            logger.warning(
                "%s, which a file could bring back only by executing code: this run cannot be resumed", error
            )
            self._store = None
            return
        if is_main_process():
            self._store.write(self._identity, where, state, self._keeper.files())
        self._stop.saved = progress_of(where)

    def _own(self, state: dict[str, Any]) -> dict[str, Any]:
        """The part of a state that each process has for itself."""
        return state["processes"][processes.rank()]


def progress_of(where: dict[str, Any]) -> str:
    """How a place in a run is called on the screen."""
    inside = f", step {where['step']}" if where["step"] else ""
    return f"epoch {where['epoch']}{inside} (stage {where['stage']})"
