"""Going on with a run that was stopped: when a state is saved, and how one is loaded."""

from __future__ import annotations

import logging
from typing import Any

from torchdistill.common.main_util import is_main_process

from akd_ext.train.boxes import current_stage
from akd_ext.train.distributed import group as processes
from akd_ext.train.system.errors import ConfigError
from akd_ext.train.system.signals import Stop, Stopped

from .state import RandomState, Unsavable
from .state_file import SavedState, StateFile, refuse_another

logger = logging.getLogger(__name__)


def find_state(store: StateFile, args: Any, identity: dict[str, Any], is_there: bool) -> SavedState | None:
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
    """Saves a run's state after every epoch and inside of one, and loads one. Without a file it does neither.

    The state is that of its ``parts``, each with ``state_dict`` and ``load_state_dict``, of the running epoch, and of the
    random numbers. Under torch.distributed every process calls its methods and rank 0 writes; a signal then ends the run
    at once, because the processes are not in the same step when it comes.

    Args:
        file: where; None: nowhere.
        fingerprint: of the run, see `akd_ext.train.fingerprint`.
        every_steps: steps of the optimizer between two states inside an epoch; 0: none.
        stop: tells when a signal has come.
    """

    def __init__(self, file: StateFile | None, fingerprint: dict[str, Any], every_steps: int, stop: Stop):
        self._file, self._fingerprint, self._every, self._stop = file, fingerprint, every_steps, stop
        self._inside: dict[str, Any] | None = None  # the state to go on from, if it lies inside of an epoch

    def attach(self, parts: dict[str, Any], random: RandomState) -> None:
        """What is saved: ``parts`` in the order in which they are loaded, ``box`` among them, and this process's random
        numbers."""
        self._parts, self._random = parts, random

    def load(self, saved: SavedState) -> dict[str, int]:
        """Brings all parts to where the state was saved; says which ``epoch``, and how many steps were before it.

        Raises:
            ConfigError: the state is damaged, or of another model.
        """
        state = self._file.load(saved)
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        self._inside = state if self._own(state)["epoch"] else None
        self._stop.saved = progress_of(saved.where)
        logger.info("the run goes on from %s", self._stop.saved)
        self._random.load_state_dict(self._own(state)["random"])  # the parts may have drawn some
        return state["progress"]

    def begin_epoch(self, epoch: Any) -> None:
        """After the pre-epoch process; an epoch that a state lies in goes on there.

        From here to `after_epoch` a signal waits until a state is saved.
        """
        self._stop.deferred = self._file is not None and not processes.is_distributed()
        if self._inside is not None:
            # The pre-epoch process may have loaded other weights.
            self._parts["box"].load_state_dict(self._inside["box"])
            epoch.load_state_dict(self._own(self._inside)["epoch"])
            self._inside = None

    def after_step(self, epoch: Any) -> None:
        """Saves a state if it is time to; to be called after the box's post-forward process.

        Raises:
            Stopped: the run was asked to stop.
            RunError: what would be saved is not finite.
        """
        box = self._parts["box"].box
        interval = self._every * box.grad_accum_step  # in batches; the optimizer steps at the same ones
        if self._file is not None and (self._stop.asked or (interval and box.stage_grad_count % interval == 0)):
            epoch.require_finite()  # it takes the place of a sound state, and nobody may have looked since
            annealing = {} if epoch.phi is None else {"T": epoch.temperature, "phi": epoch.phi}
            progress = {"epoch": epoch.number, "step": epoch.first_step}
            self._save(progress, {"step": epoch.step, **annealing}, epoch.state_dict())
        self._end_if_asked()

    def after_epoch(self, epoch: int, step: int) -> None:
        """Saves the state before ``epoch``, the next one. Raises Stopped if the run was asked to stop."""
        if self._file is not None:
            self._save({"epoch": epoch, "step": step}, {"step": 0}, None)
        self._stop.deferred = False
        self._end_if_asked()

    def finish(self, epochs: int) -> None:
        """The results are complete: there is nothing to go on with any more."""
        if self._file is not None and is_main_process():
            self._file.finish(self._fingerprint, {"epoch": epochs})

    def _end_if_asked(self) -> None:
        if self._stop.asked:
            raise Stopped(self._stop.asked)

    def _save(self, progress: dict[str, int], more: dict[str, Any], epoch: dict[str, Any] | None) -> None:
        where = {"stage": current_stage(self._parts["box"].box), "epoch": progress["epoch"], **more}
        try:
            state = {name: part.state_dict() for name, part in self._parts.items()}
        except Unsavable as error:
            logger.warning(
                "%s, which a file could bring back only by executing code: this run cannot be resumed", error
            )
            self._file = None
            return
        own = {"random": self._random.state_dict(), "epoch": epoch}
        state |= {"progress": progress, "processes": processes.all_gather_object(own)}
        if is_main_process():
            self._file.write(self._fingerprint, where, state)
        self._stop.saved = progress_of(where)

    def _own(self, state: dict[str, Any]) -> dict[str, Any]:
        """The part of a state that each process has for itself."""
        return state["processes"][processes.rank()]


def progress_of(where: dict[str, Any]) -> str:
    """How a place in a run is called on the screen: the epoch that comes next, or goes on."""
    inside = f", step {where['step']}" if where["step"] else ""
    return f"epoch {where['epoch'] + 1}{inside} (stage {where['stage']})"
