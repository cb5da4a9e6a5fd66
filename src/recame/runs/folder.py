"""The run folder: where a run's files lie, how they are written whole, and who may read them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from recame.config import Config, load_config, save_config
from recame.errors import CheckpointError, ConfigError, DataError
from recame.files import write_json, write_whole

RUN_SCHEMA = 1


@dataclass(frozen=True)
class RunFolder:
    """Paths and files of one run.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def last_checkpoint(self) -> Path:
        """The fine-tuning phase's newest whole checkpoint."""
        return self.path / "last.ckpt"

    @property
    def probe_dir(self) -> Path:
        """The probe phase's model, while the run goes on."""
        return self.path / "probe"

    @property
    def trunk_paths(self) -> tuple[Path, Path]:
        """The frozen trunk's outputs, maps and pooled, while the run goes on."""
        return self.path / "trunk_maps.npy", self.path / "trunk_pooled.npy"

    @property
    def history_path(self) -> Path:
        """One row an epoch."""
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
            raise ConfigError(f"{path} is a file, and a run needs a folder: choose another --out.")
        return cls(path)

    def begin(self, source: Path, fingerprint: str, config: Config) -> None:
        """Make the folder, and mark it as a run in training once it holds the settings.

        Args:
            source: the data, as given.
            fingerprint: of the images' content.
            config: the run's settings.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"The run folder {self.path} cannot be made ({error.strerror}): choose another "
                "--out."
            ) from error
        self.save_config(config)
        write_json(
            self._marker,
            {
                "schema": RUN_SCHEMA,
                "state": "training",
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
                "data": str(source.resolve()),
                "data_fingerprint": fingerprint,
            },
        )

    def check_same_data(self, fingerprint: str) -> None:
        """Refuse to resume on other images.

        Raises:
            DataError: the images' content differs from what the run began with.
        """
        before = self.info()["data_fingerprint"]
        if before != fingerprint:
            raise DataError(
                f"The images have changed since {self.path} began (fingerprint {before}, now "
                f"{fingerprint}), so the run cannot be continued as it was. Restore the images, "
                "or start a new run with another --out."
            )

    def info(self) -> dict[str, Any]:
        """What `run.json` holds."""
        values: dict[str, Any] = json.loads(self._marker.read_text(encoding="utf-8"))
        return values

    @property
    def _marker(self) -> Path:
        return self.path / "run.json"

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open an existing run.

        Raises:
            CheckpointError: no run lies there, or it is of a newer schema.
        """
        marker = path / "run.json"
        if not marker.is_file():
            raise CheckpointError(
                f"{path} holds no run (no run.json). Give the folder that "
                "`recame train ... --out FOLDER` wrote."
            )
        try:
            schema = json.loads(marker.read_text(encoding="utf-8")).get("schema")
        except (ValueError, AttributeError) as error:
            raise CheckpointError(f"{marker} is damaged ({error}): train the run again.") from error
        if not isinstance(schema, int) or schema > RUN_SCHEMA:
            raise CheckpointError(
                f"{path} is a run of schema {schema!r}; this version reads up to {RUN_SCHEMA}. "
                "Update recame: pip install -U recame"
            )
        return cls(path)

    @property
    def state(self) -> str:
        """`training`, `fine-tuning` or `finished`."""
        return str(self.info().get("state"))

    @property
    def finished(self) -> bool:
        """Whether training ended."""
        return self.state == "finished"

    def mark(self, state: str, **facts: object) -> None:
        """Change the state, and note further facts."""
        write_json(self._marker, {**self.info(), "state": state, **facts})

    def finish(self) -> None:
        """Mark the run finished and drop what only an unfinished one needs."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.mark("finished", finished=now)
        shutil.rmtree(self.probe_dir, ignore_errors=True)
        for path in self.trunk_paths:
            path.unlink(missing_ok=True)

    def save_config(self, config: Config) -> None:
        """Write `config.yaml`."""
        save_config(config, self.path / "config.yaml")

    def load_config(self) -> Config:
        """Read `config.yaml`."""
        return load_config(self.path / "config.yaml")

    def save_manifest(self, table: pd.DataFrame) -> None:
        """Write `manifest.csv`: every image with its split, as this run used it."""
        keep = [c for c in table.columns if c not in {"target", "row"}]
        with write_whole(self.path / "manifest.csv") as partial:
            table[keep].to_csv(partial, index=False)

    def save_broken(self, broken: Sequence[tuple[str, str]]) -> None:
        """Write `broken_images.csv`: every image that was left out, with the reason."""
        with write_whole(self.path / "broken_images.csv") as partial:
            pd.DataFrame(broken, columns=["image", "reason"]).to_csv(partial, index=False)

    def save_unlabelled(
        self, images: Sequence[str], predicted: Sequence[str], confidence: Sequence[float]
    ) -> None:
        """Write `unlabelled.csv`: images without labels, and what the teacher says of each."""
        table = pd.DataFrame({"image": images, "teacher": predicted, "confidence": confidence})
        with write_whole(self.path / "unlabelled.csv") as partial:
            table.to_csv(partial, index=False)

    def weights_sha256(self) -> str:
        """Checksum of the run's weights, as the model's description holds it."""
        document = json.loads((self.path / "model.json").read_text(encoding="utf-8"))
        return str(document["weights_sha256"])

    def explain(self, reasons: Sequence[str]) -> None:
        """Add to `reasons.json`: what was decided for this run, and why."""
        if reasons:
            known = dict.fromkeys([*self.reasons(), *reasons])
            write_json(self.path / "reasons.json", list(known))

    def reasons(self) -> list[str]:
        """What `explain` noted, in that order."""
        path = self.path / "reasons.json"
        noted: list[str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        return noted

    def update_json(self, name: str, values: dict[str, Any]) -> None:
        """Merge top-level keys into a JSON file of the run."""
        path = self.path / name
        old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        write_json(path, {**old, **values})


#: Beside a split's predictions: which images they are of.
JUDGED = "judged.json"
