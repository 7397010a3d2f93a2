"""Run a study: every sweep, then what dev chose, in parallel processes; stopped at any moment, it goes on."""

import multiprocessing
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from minipeft.compare.inputs import check_inputs, check_test_splits
from minipeft.compare.machine import commit
from minipeft.compare.one_run import JUDGE_FOLDER, SCRATCH_FOLDER, Performer
from minipeft.compare.protocol import told_of
from minipeft.compare.results import RESULTS_FILE, Results, Row, alone
from minipeft.compare.study import Run, Study, StudyError
from minipeft.compare.writing import judge_in
from minipeft.devices import cores
from minipeft.files import write_json
from minipeft.formats.hub import WEIGHTS_FILE
from minipeft.progress import progress_bar
from minipeft.tuned import CONFIG_FILE

if TYPE_CHECKING:  # Windows has no fork server
    from multiprocessing.context import ForkServerContext, SpawnContext

STUDY_FILE = "study.json"


def compete(study: Study, out: str | Path, *, workers: int | None = None, device: str = "cpu") -> Results:
    """Fill `OUT/results.jsonl` with the runs of a study that are not there yet, a part after another.

    Of each part first the sweep; then it is closed, with the choices written down; then the runs that see test.
    `workers`: processes at once, by default one for each core (one in all where there is an accelerator); 0: none, this
    process does it all, and peaks of memory are of all its runs so far. Raises StudyError for a study that cannot run,
    and KeyboardInterrupt on Ctrl-C, when only the runs in progress are lost.
    """
    out = Path(out)
    if other := [name for name in (CONFIG_FILE, WEIGHTS_FILE) if (out / name).exists()]:
        raise StudyError(f"{out} holds a model or an adapter ({other[0]}); take another --out.")
    with alone(out):
        check_inputs(study, out)
        results = Results(out / RESULTS_FILE)
        shutil.rmtree(out / SCRATCH_FOLDER, ignore_errors=True)
        write_json(out / STUDY_FILE, told_of(study))
        if workers is None:
            workers = cores() if device == "cpu" else 1
        crew = _Crew(_Order(study, out, device, commit(), max(1, cores() // workers) if workers else None), workers)
        for part in study.parts:
            crew.run(f"{part.name}: sweep", study.sweep(part), results)
            if part.chosen_by is None and not results.is_closed(study, part):
                results.close(study, part)
            if part.seeds:
                check_test_splits(study, part, out, partial(results.is_closed, study, part))
            if part.seeds and any(study.is_steered(task) for task in part.tasks):
                judge_in(out / JUDGE_FOLDER)  # here, so that processes find it
            crew.run(f"{part.name}: test", study.finals(part, results.choices(study, part)), results)
        return results


@dataclass(frozen=True)
class _Order:
    """What a process is told beside its run."""

    study: Study
    out: Path
    device: str
    commit: str
    threads: int | None

    def performer(self) -> Performer:
        """Whoever performs runs here. On CUDA products of fp32 are taken in TF32, as the rows' `machine` says."""
        if self.threads:
            torch.set_num_threads(self.threads)
        if torch.device(self.device).type == "cuda":
            torch.set_float32_matmul_precision("high")

        def is_closed(run: Run) -> bool:
            return Results(self.out / RESULTS_FILE).is_closed(self.study, self.study.part(run.part))

        return Performer(self.study, self.out, self.device, is_closed, self.commit)


class _Crew:
    """Performs runs, several at once, each in a process of its own, so that its memory is its own, too."""

    def __init__(self, order: _Order, workers: int) -> None:
        self.order, self.workers = order, workers
        # Where it can be: a server that has read PyTorch, from which each process is forked with nothing else in it.
        self.context: ForkServerContext | SpawnContext
        if "forkserver" not in multiprocessing.get_all_start_methods():
            self.context = multiprocessing.get_context("spawn")
        else:
            self.context = multiprocessing.get_context("forkserver")
            self.context.set_forkserver_preload([__name__, "torch._dynamo"])  # an optimizer imports the latter

    def run(self, label: str, runs: Iterator[Run], results: Results) -> None:
        """Perform the runs that have no row yet."""
        wanted = {self.order.study.key(run): run for run in runs}
        missing = [run for key, run in wanted.items() if key not in results.rows]
        with progress_bar(label, len(wanted), len(wanted) - len(missing)) as show:
            for row in self._performed(missing):
                results.append(row)
                show(_in_words(row))

    def _performed(self, runs: Sequence[Run]) -> Iterator[Row]:
        if not self.workers:
            yield from map(self.order.performer().perform, runs)
            return
        waiting = list(reversed(runs))
        at_work: dict[Any, tuple[Run, BaseProcess]] = {}
        try:
            while waiting or at_work:
                while waiting and len(at_work) < self.workers:
                    receiver, sender = self.context.Pipe(duplex=False)
                    run = waiting.pop()
                    process = self.context.Process(target=_perform, args=(self.order, run, sender), daemon=True)
                    process.start()
                    sender.close()
                    at_work[receiver] = run, process
                for done in wait(list(at_work)):
                    run, worker = at_work.pop(done)
                    yield _received(done, run)
                    worker.join()
        finally:
            for _, worker in at_work.values():
                worker.terminate()
            shutil.rmtree(self.order.out / SCRATCH_FOLDER, ignore_errors=True)


def _perform(order: _Order, run: Run, sender: Connection) -> None:
    """In a process of its own: perform a run and send its row, or the sentence that says why there is none."""
    try:
        sender.send(order.performer().perform(run))
    except Exception as error:  # raised again by whoever receives it
        kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        sender.send(f"{run.told()}: {kind}{error}")
    except KeyboardInterrupt:  # the process that waits for this one was interrupted, too, and says so
        pass


def _received(receiver: Any, run: Run) -> Row:
    try:
        found: Row | str = receiver.recv()
    except EOFError:
        advice = "for want of memory? The same command goes on; with --workers 1 it needs less"
        raise StudyError(f"{run.told()}: its process died, perhaps {advice}.") from None
    if isinstance(found, str):
        raise StudyError(found)
    return found


def _in_words(row: Row) -> str:
    """A row in a few words."""
    found = row["diverged"] or (f"dev {row['dev']:.3f}" if row["dev"] is not None else "")
    return f"{row['task']}, {row['model']}, {row['contender']}: {found}"
