"""The run folder: paths of its files, and how they are written, locked and read."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recame.contracts import AnyPath
from recame.errors import CheckpointError, ConfigError
from recame.files import (
    csv_text,
    file_name,
    held,
    make_folder,
    read_json,
    remove_partial,
    write_bytes,
    write_json,
)
from recame.folders import folder_of
from recame.label_space import LabelSpace
from recame.names import command
from recame.runs.classes import load_classes
from recame.runs.judging import Judging
from recame.runs.marker import RUN_SCHEMA, fact, identity, read_marker
from recame.runs.merged_json import merge_json
from recame.runs.settings import load_reasons, load_run_settings, settings_digest, with_auto
from recame.runs.tables import digests_to_note, read_history, read_table

if TYPE_CHECKING:  # a line's machine, which only asks whether a run is finished, has neither
    import pandas as pd

    from recame.config import Config

#: Files of a run that a new run would mistake for its own; `begin` replaces the others.
_LEFT = ("model.json", "metrics.json", "phases.json", "history.csv", "evaluation", "graph")
_BROKEN = "broken_images.csv"


@dataclass(frozen=True)
class RunFolder:
    """Paths and files of one run.

    Attributes:
        path: the folder.
    """

    path: Path

    def __post_init__(self) -> None:
        """Turn a text into a path."""
        object.__setattr__(self, "path", folder_of(self.path))

    def __fspath__(self) -> str:
        """Let a run be used as a path."""
        return str(self.path)

    __str__ = __fspath__

    @property
    def last_checkpoint(self) -> Path:
        """The fine-tuning phase's newest whole checkpoint."""
        return self.path / "last.ckpt"

    @property
    def previous_checkpoint(self) -> Path:
        """The checkpoint before the newest, while the run goes on."""
        return self.path / "previous.ckpt"

    @property
    def probe_dir(self) -> Path:
        """The probe phase's model, while the run goes on."""
        return self.path / "probe"

    @property
    def trunk_paths(self) -> tuple[Path, Path, Path]:
        """Files of the frozen shared backbone (maps, pooled outputs, note); during the run only."""
        maps, pooled, note = (f"trunk_{name}" for name in ("maps.npy", "pooled.npy", "run.json"))
        return self.path / maps, self.path / pooled, self.path / note

    @property
    def history_path(self) -> Path:
        """The table with one row for each epoch."""
        return self.path / "history.csv"

    @classmethod
    def free(cls, path: Path) -> RunFolder:
        """A folder for a new run; nothing is written yet.

        Raises:
            ConfigError: the path is a file, or the folder holds a run.
        """
        if (path / "run.json").exists():
            raise ConfigError(
                f"{path} already holds a run, which would be overwritten. Continue it with "
                "--resume, or choose another folder with --out."
            )
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path} is a file, but a run needs a folder: choose another --out.")
        folder = cls(path)
        rest = [path / name for name in _LEFT]
        rest += [folder.last_checkpoint, folder.previous_checkpoint, folder.probe_dir]
        if left := [found.name for found in (*rest, *folder.trunk_paths) if found.exists()]:
            raise ConfigError(
                f"{path} holds {', '.join(left)} of a run whose run.json is missing, and a new run "
                "would mix with it. Remove the folder, or choose another with --out."
            )
        return folder

    def in_training(self) -> AbstractContextManager[None]:
        """Keep other processes from training here, for a block.

        Raises:
            ConfigError: another one does; says which process, and on which machine.
        """
        return held(
            self.path / ".training.lock",
            f"The run {self.path}",
            "Wait until that process ends, or end it; a killed process does not block the run.",
            error=ConfigError,
        )

    @contextmanager
    def in_evaluation(self, split: str) -> Iterator[None]:
        """Keep other processes from evaluating a split and writing its report, for a block.

        Raises:
            ConfigError: another one does; says which process, and on which machine.
        """
        place = self.evaluation_dir(split)
        with held(
            self.path / f".evaluation-{place.name}.lock",
            f"The evaluation of {self.path} on {split}",
            "Call again when it has ended; other splits can be evaluated meanwhile.",
            error=ConfigError,
        ):
            remove_partial(place)
            yield

    def make(self) -> None:
        """Make the folder if it is missing.

        Raises:
            ConfigError: it cannot be made.
        """
        try:
            make_folder(self.path)
        except OSError as error:
            raise ConfigError(
                f"The run folder {self.path} cannot be made ({error.strerror}): choose another "
                "--out."
            ) from error

    def begin(
        self,
        source: Path,
        fingerprint: str,
        config: Config,
        *,
        asked: Config | None = None,
        device: str = "cpu",
        loss: str | None = None,
        reasons: Sequence[str] = (),
    ) -> None:
        """Make the folder, and mark it as a run in training once it holds the settings.

        Args:
            source: the data, as given.
            fingerprint: of the images' content.
            config: the run's settings.
            asked: the settings as the user gave them, with every `auto`; None: these.
            device: the kind of device that the run's precision was chosen for.
            loss: the qualified name of the function that makes the user's own loss; None: the
                settings define it.
            reasons: why open settings (`auto`) were decided as they are.
        """
        from recame.config import save_config

        self.make()
        self._reasons_path.unlink(missing_ok=True)  # of a start that never came to its marker
        self.explain(reasons)
        asked = asked or config
        save_config(asked, self._asked_path)
        save_config(config, self._config_path)
        write_json(
            self._marker,
            {
                "schema": RUN_SCHEMA,
                "state": "training",
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
                "data": str(source.resolve()),
                "data_fingerprint": fingerprint,
                "device": device,
                "loss": loss,
                "precision": config.run.precision,
                "settings": {
                    path.name: [settings_digest(values.model_dump(mode="json"))]
                    for path, values in ((self._asked_path, asked), (self._config_path, config))
                },
            },
        )

    @property
    def identity(self) -> str | None:
        """A hash that ties files of an unfinished run to it; None: a run of an older version."""
        return identity(self.info()) if self._marker.exists() else None  # of measured costs

    def info(self) -> dict[str, Any]:
        """What `run.json` holds."""
        return read_marker(self._marker)

    def fact(self, name: str) -> str:
        """One fact that every run's `run.json` holds."""
        return fact(self._marker, name)

    @property
    def source(self) -> Path:
        """The data, as they were given."""
        return Path(self.fact("data"))

    @property
    def _marker(self) -> Path:
        return self.path / "run.json"

    @classmethod
    def open(cls, path: AnyPath, *, finished: bool = False) -> RunFolder:
        """Open an existing run.

        Args:
            path: the folder.
            finished: refuse a run that still trains, or was interrupted.

        Raises:
            CheckpointError: no run lies there, it is damaged, of a newer schema, or not finished.
        """
        folder = cls(folder_of(path))
        if not folder._marker.is_file():
            raise CheckpointError(
                f"{path} holds no run and no bundle (no run.json, no bundle.json). Give the folder "
                "that `recame train ... --out FOLDER` or `recame export ... --out FOLDER` wrote."
            )
        if folder.info().get("state") != "finished" and finished:
            raise CheckpointError(
                f"{path} is not finished: it was interrupted, or is still training. Continue it "
                "with: " + command("recame", "train", "--out", folder.path, "--resume")
            )
        return folder

    @property
    def manifest_path(self) -> Path:
        """Every image with its split, as this run used it."""
        return self.path / "manifest.csv"

    def evaluation_dir(self, split: str) -> Path:
        """Where a split's predictions, figures and report lie."""
        return self.path / "evaluation" / file_name(split)

    @property
    def state(self) -> str:
        """`training`, `fine-tuning` or `finished`."""
        return str(self.info().get("state"))

    @property
    def finished(self) -> bool:
        """Whether training ended."""
        return self.state == "finished"

    @property
    def stopped(self) -> str | None:
        """Why training ended early with the last good weights; None: it did not."""
        reason = self.info().get("stopped")
        return None if reason is None else str(reason)

    def mark(self, state: str, **facts: object) -> None:
        """Change the state, and note further facts."""
        write_json(self._marker, {**self.info(), "state": state, **facts})

    def finish(self) -> None:
        """Mark the run finished and drop what only an unfinished one needs."""
        self.mark("finished", finished=datetime.now(UTC).isoformat(timespec="seconds"))
        self.drop_unfinished()

    def drop_unfinished(self) -> None:
        """Remove what only an unfinished run needs."""
        shutil.rmtree(self.probe_dir, ignore_errors=True)
        for path in (self.previous_checkpoint, *self.trunk_paths):
            path.unlink(missing_ok=True)

    def save_config(self, config: Config) -> None:
        """Write `config.yaml`, and note beforehand that it may hold this from now on."""
        from recame.config import read_settings, save_config

        if self._marker.exists() and "settings" in (info := self.info()):
            now = settings_digest(config.model_dump(mode="json"))
            then = settings_digest(read_settings(self._config_path))
            # Both are right until the new file has taken the old one's place.
            settings = {**info["settings"], self._config_path.name: [now, then]}
            write_json(self._marker, {**info, "settings": settings})
        save_config(config, self._config_path)

    def load_config(self) -> Config:
        """Read `config.yaml`.

        Raises:
            ConfigError: it is damaged, or was edited since the run wrote it.
        """
        return self._load(self._config_path)

    def _load(self, path: Path) -> Config:
        known = self.info().get("settings", {}) if self._marker.exists() else {}
        return load_run_settings(path, known.get(path.name))

    @property
    def keeps_asked(self) -> bool:
        """Whether the user's own settings were kept; older versions kept only the decided ones."""
        return self._asked_path.exists() or "settings" in self.info()

    def asked(self) -> Config:
        """The settings as the user gave them, with `auto` for open ones.

        For a run of an older version: its settings, with `auto` where its reasons say that recame
        decided them; decisions without a noted reason are not marked.
        """
        if self.keeps_asked:
            return self._load(self._asked_path)
        return with_auto(self.load_config(), self.reasons())

    @property
    def _asked_path(self) -> Path:
        return self.path / "asked.yaml"

    @property
    def _config_path(self) -> Path:
        return self.path / "config.yaml"

    @property
    def device(self) -> str:
        """The kind of device on which the run began; for runs of older versions a GPU."""
        return str(self.info().get("device", "cuda"))

    @property
    def decisions_path(self) -> Path:
        """The file of decisions: temperature and thresholds."""
        return self.path / "decisions.json"

    def answers(self, config: Config) -> dict[str, object]:
        """The facts on which the ensemble's probabilities, and so a fitted temperature, depend."""
        return Judging.of(config, self.path).answers(self.weights_sha256())

    def save_manifest(self, table: pd.DataFrame) -> None:
        """Write `manifest.csv`, without the columns that hold for this process alone."""
        self.save_table(self.manifest_path, table.drop(columns=["target", "row"], errors="ignore"))

    def save_broken(self, broken: Sequence[tuple[str, str]]) -> None:
        """Write `broken_images.csv`: every image that was left out, with the reason."""
        import pandas as pd

        self.save_table(self.path / _BROKEN, pd.DataFrame(broken, columns=["image", "reason"]))

    def broken(self) -> list[tuple[str, str]]:
        """What `save_broken` wrote; nothing without it.

        Raises:
            CheckpointError: the file is damaged.
        """
        table = self.listed(self.path / _BROKEN, ("image", "reason"))
        return [] if table is None else list(zip(table["image"], table["reason"], strict=True))

    @property
    def corrections_path(self) -> Path:
        """Every label that `data.corrections` changed; only where it was given."""
        return self.path / "corrections.csv"

    def listed(self, path: Path, columns: Sequence[str]) -> pd.DataFrame | None:
        """A list that `save_table` may have written, as text; a damaged one is an error."""
        way_out = "Restore it from a copy of the run, or remove it: only that list is lost."
        return read_table(path, self.digests(path), columns, way_out) if path.exists() else None

    def history(self) -> pd.DataFrame | None:
        """The rows of `history.csv`, numbers as text; None without it.

        Raises:
            CheckpointError: the file is damaged.
        """
        path = self.history_path
        return read_history(path, self.digests(path)) if path.exists() else None

    def save_table(self, path: Path, table: pd.DataFrame) -> None:
        """Write a CSV file of the run, and note in `run.json` that it alone is right."""
        content = csv_text(table, index=False).encode()
        noted = digests_to_note(path, content, self.digests(path) or ())
        self._note(path, noted)  # a kill before the next line leaves the old one, which is right
        write_bytes(path, content)
        if len(noted) > 1:
            self._note(path, noted[:1])

    def _note(self, path: Path, digests: list[str]) -> None:
        if self._marker.exists():  # where costs are measured there is no run
            info = self.info()
            tables = {**info.get("tables", {}), path.name: digests}
            write_json(self._marker, {**info, "tables": tables})

    def digests(self, path: Path) -> list[str] | None:
        """What `table_digest` may be of a table of the run; None: a version before kept none."""
        tables = self.info().get("tables", {}) if self._marker.exists() else {}
        found: list[str] | None = tables.get(path.name)
        return found

    def weights_sha256(self) -> str:
        """Checksum of the run's weights, as the model's description holds it."""
        path = self.path / "model.json"
        if not isinstance(found := read_json(path).get("weights_sha256"), str):
            raise CheckpointError(
                f"{path} holds no checksum of the weights: it was edited or damaged. Take it again "
                "from the run that wrote it."
            )
        return found

    def save_label_space(self, label_space: LabelSpace) -> None:
        """Write `label_space.json`."""
        write_json(self.path / "label_space.json", label_space.to_dict())

    def label_space(self) -> LabelSpace:
        """Read `label_space.json`."""
        return load_classes(self.path)

    def explain(self, reasons: Sequence[str]) -> None:
        """Add to `reasons.json`: what was decided for this run, and why."""
        if reasons:
            known = dict.fromkeys([*self.reasons(), *reasons])
            write_json(self._reasons_path, list(known))

    def reasons(self) -> list[str]:
        """What `explain` noted, in that order."""
        return load_reasons(self._reasons_path)

    @property
    def _reasons_path(self) -> Path:
        return self.path / "reasons.json"

    def update_json(self, name: str, values: dict[str, Any]) -> None:
        """Merge top-level keys into a JSON file of the run; two processes keep each other's."""
        merge_json(self.path / name, values)
