"""What a tuning found, and its JSON (``shufflectl.tuning/1``)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import shufflectl
from shufflectl.benchmarks.halving import NATIVE, Outcome
from shufflectl.benchmarks.records import encode
from shufflectl.benchmarks.results import Config, RunnerInfo, Target
from shufflectl.benchmarks.statistics import median, median_interval
from shufflectl.converters.metadata import ModelInfo
from shufflectl.deploy.forms import Form, Written
from shufflectl.deploy.tuning import SCHEMA, Source, form_to_json, validate

__all__ = ["Entry", "Race", "TuneResult"]

JSON = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A form in a race.

    Attributes:
        form: The form.
        written: Its file; None where it was never written.
        ratios: Its time over native's, a list a rung.
        dropped: Why it is not the winner; empty where it is, and for native.
    """

    form: Form
    written: Written | None
    ratios: tuple[tuple[float, ...], ...]
    dropped: str

    @property
    def all(self) -> tuple[float, ...]:
        """All ratios of the selection."""
        return tuple(ratio for rung in self.ratios for ratio in rung)

    def to_json(self) -> JSON:
        """Return the entry as JSON values."""
        written = self.written
        interval = median_interval(self.all)
        return {
            "name": self.form.name,
            "form": form_to_json(self.form.candidate, self.form.layout),
            "same_as": list(self.form.same_as),
            "sha256": (written.sha256 or None) if written is not None else None,
            "bytes": 0 if written is None else written.bytes,
            "max_rel": None if written is None else written.max_rel,
            "sqnr": None if written is None else written.sqnr,
            "ratios": [list(rung) for rung in self.ratios],
            "ratio": median(self.all) if self.all else None,
            "interval": None if interval is None else list(interval),
            "dropped": self.dropped,
        }


@dataclass(frozen=True)
class Race:
    """What was found with one number of threads.

    Attributes:
        threads: That number; None where the runtime chooses it.
        entries: All forms.
        outcome: How the race ended.
        automatic: The place of what export takes without a tuning.
        choice: The place of what export takes with this one.
        tuned: Whether that is another one, and proved to be faster.
        why: In one sentence.
        native_ns: Median of the native form's medians over all processes of the race.
        choice_ns: The same of the choice.
        state: The most noise that any process met.
    """

    threads: int | None
    entries: tuple[Entry, ...]
    outcome: Outcome
    automatic: int
    choice: int
    tuned: bool
    why: str
    native_ns: float | None
    choice_ns: float | None
    state: Mapping[str, float | None]

    @property
    def winner(self) -> Entry | None:
        """The form that looked fastest, whether or not it is proved to be."""
        return None if self.outcome.winner is None else self.entries[self.outcome.winner]

    def to_json(self, mode: str) -> JSON:
        """Return the race as JSON values."""
        choice = self.entries[self.choice]
        return {
            "threads": self.threads,
            "candidates": [entry.to_json() for entry in self.entries],
            "rungs": [
                {"candidates": rung.candidates, "rounds": rung.rounds, "seconds": round(rung.seconds, 3)}
                for rung in self.outcome.rungs
            ],
            "winner": None if self.winner is None else self.winner.form.name,
            "auto": self.entries[self.automatic].form.name,
            "proofs": [
                {
                    "baseline": "native" if proof.baseline == NATIVE else "auto",
                    "candidate": "winner" if proof.candidate == self.outcome.winner else "auto",
                    "mode": "paired" if mode == "paired" else "unpaired",
                    "ratio": proof.ratio,
                    "interval": None if proof.interval is None else list(proof.interval),
                    "ratios": list(proof.ratios),
                }
                for proof in self.outcome.proofs
            ],
            "choice": {
                "form": form_to_json(choice.form.candidate, choice.form.layout),
                "sha256": "" if choice.written is None else choice.written.sha256,
                "threads": self.threads,
                "tuned": self.tuned,
                "why": self.why,
            },
            "native_ns": self.native_ns,
            "choice_ns": self.choice_ns,
            "state": dict(self.state),
        }


@dataclass(frozen=True)
class TuneResult:
    """What tune found.

    Attributes:
        model: What was tuned.
        source: The same as `export` compares it.
        target: The format.
        precision: Of the files.
        device: Where they ran.
        runner: What ran them.
        config: How.
        races: One for each number of threads.
        chosen: The place of the race whose choice export takes: the fastest.
        created: When it began, UTC.
        budget_s: Seconds that it was given.
        elapsed_s: Seconds that it took.
        notes: What the user should know, a sentence each.
        calibration: The calibration of int8 files, as a file; None for others.
    """

    model: ModelInfo
    source: Source
    target: str
    precision: str
    device: Target
    runner: RunnerInfo
    config: Config
    races: tuple[Race, ...]
    chosen: int
    created: str
    budget_s: float
    elapsed_s: float
    notes: tuple[str, ...] = ()
    calibration: bytes | None = field(default=None, repr=False)

    def to_json(self) -> JSON:
        """Return the document of ``schemas/tuning-1.schema.json``."""
        document = {
            "schema": SCHEMA,
            "created": self.created,
            "tool": f"shufflectl {shufflectl.__version__}",
            **self.source.to_json(),
            "weights": self.model.weights,
            "target": self.target,
            "precision": self.precision,
            "device": encode(self.device),
            "runner": encode(self.runner),
            "config": encode(self.config),
            "seed": self.config.seed,
            "budget_s": self.budget_s,
            "elapsed_s": round(self.elapsed_s, 3),
            "races": [entry.to_json(self.config.mode) for entry in self.races],
            "chosen": self.chosen,
        }
        validate(document, "the tuning")
        return document
