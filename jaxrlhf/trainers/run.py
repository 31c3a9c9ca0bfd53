"""The folder of a run: what was asked, what happened, where it can go on, and what came out.

config.yaml    metrics.jsonl    events.jsonl    histograms.jsonl    samples.jsonl    checkpoints/    export/
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxrlhf.checkpoint.card import Card
from jaxrlhf.checkpoint.export import export_hf
from jaxrlhf.checkpoint.fingerprint import fingerprint
from jaxrlhf.checkpoint.peft import export_adapter
from jaxrlhf.checkpoint.state import Checkpoints
from jaxrlhf.config import dump, to_dict
from jaxrlhf.data.encoder import with_template
from jaxrlhf.metrics import MetricsWriter
from jaxrlhf.models.attention import check_attention
from jaxrlhf.ops.trees import overlay
from jaxrlhf.sharding.distributed import initialize, is_main
from jaxrlhf.sharding.mesh import check_batch, open_mesh
from jaxrlhf.trackers import check_installed, open_trackers
from jaxrlhf.trainers.base import base_record
from jaxrlhf.trainers.card import make_card, recorded_card
from jaxrlhf.trainers.config import FEW_STEPS, TrainConfig
from jaxrlhf.trainers.invocation import invocation, versions
from jaxrlhf.trainers.journal import Journal
from jaxrlhf.trainers.same_run import check_same_run
from jaxrlhf.trainers.start import Start
from jaxrlhf.types import Params

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """What a run returns.

    Attributes:
        folder: of the run.
        model: the trained model, in memory.
        steps: number of steps of the whole run.
        metrics: the last value of each metric, those of evaluations under `eval/`; empty if all steps had been taken.
    """

    folder: Path
    model: Start
    steps: int
    metrics: dict[str, float]


@dataclasses.dataclass(kw_only=True)
class Run:
    """A run that is open.

    Attributes:
        config: what was asked.
        folder: where it is kept.
        mesh: the devices; it is set while the run is open.
        checkpoints: where it can go on.
        journal: what it writes down.
        digest: of the data, once `plan` was called.
        frozen: fingerprint of the models that are not trained, once `resume` was called.
        base: what is recorded of the model that it starts from, once `resume` was called; None for one in memory.
        total: number of steps, once `plan` was called.
        rows: of the data, one epoch, once `plan` was called.
        card: what is known of the model that would be exported; None before the first checkpoint.
        begun: whether anything was written, which `resume` does.
    """

    config: TrainConfig
    folder: Path
    mesh: Mesh
    checkpoints: Checkpoints
    journal: Journal
    writer: MetricsWriter
    digest: str = ""
    frozen: str = ""
    base: dict[str, str] | None = None
    total: int = 0
    rows: int = 0
    card: Card | None = None
    begun: bool = False

    def plan(self, digest: str, rows: int) -> int:
        """Fixes the number of steps.

        Args:
            digest: of the data.
            rows: of the data, one epoch.

        Returns:
            Number of steps of the whole run.
        """
        config = self.config
        steps = round(rows * config.epochs / config.batch_size) if config.steps is None else config.steps
        self.total = max(1, steps)
        self.digest, self.rows = digest, rows
        log.info("%d rows in batches of %d: %d steps", rows, config.batch_size, self.total)
        if self.total < FEW_STEPS:
            log.warning(
                "%d steps teach next to nothing; lower batch_size, or raise epochs or steps, and perhaps "
                "optim.learning_rate",
                self.total,
            )
        return self.total

    def also_reads(self, digest: str) -> None:
        """Adds further data to those that a resumed run must find unchanged."""
        self.digest = hashlib.sha256(f"{self.digest} {digest}".encode()).hexdigest()

    def resume(self, state: Any, frozen: Params) -> tuple[Any, int]:
        """The state to go on from, and the number of steps that were taken: `state` itself and 0 for a new run.

        Args:
            state: pytree of the arrays that a checkpoint holds, where they belong.
            frozen: parameters that the run reads and does not train.

        Raises:
            ValueError: if the data or the frozen parameters are not those that the run began with.
        """
        self.frozen, self.base = fingerprint(frozen), base_record(self.config.model)
        step = self.checkpoints.latest()
        if step is None:
            self._begin(-1, 0)
            return state, 0
        if step > self.total:
            raise ValueError(
                f"{self.folder} has taken {step} steps, and this run would have {self.total}; raise `steps` or `epochs`"
            )
        record = self.checkpoints.record(step)
        if record["data"] != self.digest:
            raise ValueError(
                f"{self.folder} was trained on other data (digest {record['data'][:12]}, now {self.digest[:12]}); "
                "restore the data, or start a new run in another folder"
            )
        if record.get("frozen") != self.frozen:
            raise ValueError(
                f"{self.folder} was trained against another base, reference or reward model than the one named now; "
                "restore it, or start a new run in another folder"
            )
        self._begin(step, record["num_tokens"])
        self.card = recorded_card(record)
        log.info("going on from step %d of %s", step, self.folder)
        return self.checkpoints.restore(step, _layout(state)), step

    def _begin(self, step: int, num_tokens: int) -> None:
        """Writes the config, since nothing speaks against the run, and drops what was written after its last step."""
        if is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "config.yaml").write_text(dump(self.config), encoding="utf-8")
        self.writer.truncate(step)
        taken = max(step, 0)
        self.writer.write_event("start" if step < 0 else "resume", taken, **invocation(self.mesh))
        self.begun = True
        names = self.config.trackers if is_main() else ()
        trackers = open_trackers(names, self.folder, step, to_dict(self.config))
        self.journal.begin(self.total, taken, num_tokens, trackers)

    def evaluates_at(self, step: int) -> bool:
        """Whether an evaluation follows this many steps."""
        every = self.config.eval_every
        return step in (0, self.total) or (every > 0 and step % every == 0)

    def report_evaluation(self, step: int, values: Mapping[str, float]) -> dict[str, float]:
        """Writes the metrics of an evaluation under `eval/`, and returns them by these names.

        Raises:
            ValueError: if the metric that chooses the best step is not among them.
        """
        metrics = {f"eval/{name}": value for name, value in values.items() if name != "num_tokens"}
        wanted = self.config.best_metric
        if wanted is not None and wanted not in metrics:
            near = difflib.get_close_matches(wanted, metrics, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(metrics))}"
            raise ValueError(f"best_metric={wanted!r} is no metric of this method; {hint}")
        self.journal.write(step, metrics)
        return metrics

    def saves_at(self, step: int) -> bool:
        """Whether a checkpoint follows this many steps: also wherever the metric that chooses the best is known."""
        every = self.config.save_every
        best = self.config.best_metric is not None and step > 0 and self.evaluates_at(step)
        return step == self.total or best or (every > 0 and step % every == 0)

    def save(self, step: int, state: Any, metrics: Mapping[str, float] | None = None) -> None:
        """Saves a checkpoint in the background.

        Args:
            step: number of steps taken, which is also the position in the data.
            state: pytree of arrays.
            metrics: of the evaluation after this step, if there was one.
        """
        self.journal.flush()
        self.card = make_card(self.config, self.rows, step, self.journal.last)
        record = {
            "step": step,
            "position": step * self.config.batch_size,
            "seed": self.config.seed,
            "data": self.digest,
            "frozen": self.frozen,
            "base": self.base,
            "num_tokens": self.journal.num_tokens,
            "versions": versions(),
            "card": dataclasses.asdict(self.card),
        }
        self.checkpoints.save(step, state, record, metrics)

    def best(self, state: Any) -> Any:
        """The state to export: that of the best step if a metric chooses, else the one given."""
        step = self.checkpoints.best() if self.config.best_metric is not None else None
        if step is None or step == self.total:
            return state
        log.info("exporting step %d, the best by %s", step, self.config.best_metric)
        self.card = recorded_card(self.checkpoints.record(step))
        return self.checkpoints.restore(step, _layout(state))

    def finish(self, start: Start, params: Params) -> Trained:
        """Writes `export/` in Hugging Face format, replacing one that an earlier end of the run left.

        Args:
            start: what the run started from.
            params: what came out: the model, or adapters over it.
        """
        target, lora = self.folder / "export", self.config.lora
        tokenizer = with_template(start.tokenizer, self.config.data)
        if lora.rank is None:
            stops, card = start.stops, self.card
            export_hf(target, params, start.config, tokenizer=tokenizer, eos_token_ids=stops, card=card, overwrite=True)
            model = dataclasses.replace(start, params=params, tokenizer=tokenizer)
        else:
            export_adapter(
                target,
                params,
                start.config,
                lora,
                base=start.base,
                earlier=start.earlier,
                tokenizer=tokenizer,
                card=self.card,
                overwrite=True,
            )
            whole = overlay(start.params, params)
            model = dataclasses.replace(start, params=whole, tokenizer=tokenizer, lora=lora)
        log.info("wrote %s", target)
        return Trained(folder=self.folder, model=model, steps=self.total, metrics=dict(self.journal.last))


@contextlib.contextmanager
def open_run(config: TrainConfig) -> Iterator[Run]:
    """Opens the folder of a run and sets its mesh.

    Args:
        config: what is asked. If the folder holds a run already it must be the same one, apart from keys such as
            `log_every` that change nothing, and `steps` or `epochs`, which may grow.

    Raises:
        ValueError: if batch sizes do not divide over the devices, these cannot have the attention that is asked for,
            the folder holds another run, or the package of a tracker is missing.
    """
    check_installed(config.trackers)
    initialize()
    mesh = open_mesh(config.mesh)
    for name in ("batch_size", "eval_batch_size"):
        if getattr(config, name) is not None:
            check_batch(mesh, name, getattr(config, name))
    check_batch(mesh, "rows of a micro-batch", config.micro_rows)
    check_attention(mesh, config.compute, prefixes=config.data.share_prompts is True)
    folder = Path(config.out)
    if folder.is_file():
        raise ValueError(f"out={folder} is a file; name a folder")
    writer = MetricsWriter(folder, main=is_main())
    checkpoints = Checkpoints(
        folder / "checkpoints", keep=config.keep, best_metric=config.best_metric, best_mode=config.best_is
    )
    if checkpoints.steps():
        check_same_run(folder, config)
    journal = Journal(writer, config.log_every, main=is_main())
    run = Run(
        config=config,
        folder=folder,
        mesh=mesh,
        checkpoints=checkpoints,
        journal=journal,
        writer=writer,
    )
    with jax.set_mesh(mesh), writer, _end_noted(run), checkpoints, journal:
        yield run


@contextlib.contextmanager
def _end_noted(run: Run) -> Iterator[None]:
    """Writes into the events how a run that had begun ended, once all else is on disk."""
    try:
        yield
    except BaseException as error:
        if run.begun:
            run.writer.write_event("stopped", run.journal.step, why=_why(error))
        raise
    if run.begun:
        run.writer.write_event("finished", run.total)


def _why(error: BaseException) -> str:
    """One line that says what ended a run."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    message = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _layout(state: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
