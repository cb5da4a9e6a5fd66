"""The run folder: where a run's files lie, how they are written whole, and who may read them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recame.errors import CheckpointError, ConfigError, DataError
from recame.files import file_name, read_json, write_json, write_whole
from recame.label_space import LabelSpace

if TYPE_CHECKING:  # a line's machine, which only asks whether a run is finished, has neither
    import pandas as pd

    from recame.config import Config

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

    def begin(
        self,
        source: Path,
        fingerprint: str,
        config: Config,
        *,
        asked: Config | None = None,
        device: str = "cpu",
    ) -> None:
        """Make the folder, and mark it as a run in training once it holds the settings.

        Args:
            source: the data, as given.
            fingerprint: of the images' content.
            config: the run's settings.
            asked: the settings as the user gave them, with every `auto`; None: these.
            device: the kind of device that the run's precision was chosen for.
        """
        from recame.config import save_config

        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"The run folder {self.path} cannot be made ({error.strerror}): choose another "
                "--out."
            ) from error
        save_config(asked or config, self._asked_path)
        self.save_config(config)
        write_json(
            self._marker,
            {
                "schema": RUN_SCHEMA,
                "state": "training",
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
                "data": str(source.resolve()),
                "data_fingerprint": fingerprint,
                "device": device,
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
        return read_json(
            self._marker, newest=RUN_SCHEMA, advice="It is damaged: train the run again."
        )

    @property
    def _marker(self) -> Path:
        return self.path / "run.json"

    @classmethod
    def open(cls, path: Path, *, finished: bool = False) -> RunFolder:
        """Open an existing run.

        Args:
            path: the folder.
            finished: refuse a run that still trains, or was interrupted.

        Raises:
            CheckpointError: no run lies there, it is damaged, of a newer schema, or not finished.
        """
        folder = cls(path)
        if not folder._marker.is_file():
            raise CheckpointError(
                f"{path} holds no run and no bundle (no run.json, no bundle.json). Give the folder "
                "that `recame train ... --out FOLDER` or `recame export ... --out FOLDER` wrote."
            )
        if folder.info().get("state") != "finished" and finished:
            raise CheckpointError(
                f"{path} is not finished: it was interrupted, or still trains. Continue it with: "
                f"recame train DATA --out {path} --resume"
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
        from recame.config import save_config

        save_config(config, self.path / "config.yaml")

    def load_config(self) -> Config:
        """Read `config.yaml`."""
        from recame.config import load_config

        return load_config(self.path / "config.yaml")

    @property
    def keeps_asked(self) -> bool:
        """Whether what the user asked was kept; the versions before kept what was decided alone."""
        return self._asked_path.exists()

    def asked(self) -> Config:
        """The settings as the user gave them: `auto` is what was left to be decided.

        Of a run of the version before, its settings with `auto` where its reasons say that they
        were decided; those that followed from another decision without a reason are missing.
        """
        from recame.config import Config, load_config

        if self.keeps_asked:
            return load_config(self._asked_path)
        default = Config().model_dump()
        names = (reason.split(" = ")[0].split(".") for reason in self.reasons())
        open_names = (n for n in names if len(n) == 2 and default.get(n[0], {}).get(n[1]) == "auto")
        return self.load_config().updated(dict.fromkeys(map(".".join, open_names), "auto"))

    @property
    def _asked_path(self) -> Path:
        return self.path / "asked.yaml"

    @property
    def device(self) -> str:
        """The kind of device that the run began on; of a run of the version before a GPU's."""
        return str(self.info().get("device", "cuda"))

    @property
    def decisions_path(self) -> Path:
        """What is made of the network's answers: the temperature."""
        return self.path / "decisions.json"

    def answers(self, config: Config) -> dict[str, object]:
        """What decides the ensemble's probabilities, so that a temperature holds for them."""
        return {
            "views": config.evaluation.views,
            "weighting": config.evaluation.weighting,
            "weights_sha256": self.weights_sha256(),
        }

    def save_manifest(self, table: pd.DataFrame) -> None:
        """Write `manifest.csv`, without the columns that hold for this process alone."""
        self.save_table(self.manifest_path, table.drop(columns=["target", "row"], errors="ignore"))

    def save_broken(self, broken: Sequence[tuple[str, str]]) -> None:
        """Write `broken_images.csv`: every image that was left out, with the reason."""
        import pandas as pd

        table = pd.DataFrame(broken, columns=["image", "reason"])
        self.save_table(self.path / "broken_images.csv", table)

    def save_table(self, path: Path, table: pd.DataFrame) -> None:
        """Write a CSV file of the run."""
        with write_whole(path) as partial:
            table.to_csv(partial, index=False)

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
        return LabelSpace.from_dict(read_json(self.path / "label_space.json"))

    def explain(self, reasons: Sequence[str]) -> None:
        """Add to `reasons.json`: what was decided for this run, and why."""
        if reasons:
            known = dict.fromkeys([*self.reasons(), *reasons])
            write_json(self.path / "reasons.json", list(known))

    def reasons(self) -> list[str]:
        """What `explain` noted, in that order."""
        path = self.path / "reasons.json"
        if not path.exists():
            return []
        try:
            noted = json.loads(path.read_bytes())
            if not isinstance(noted, list) or not all(isinstance(text, str) for text in noted):
                raise TypeError("it holds no list of sentences")
        except (OSError, ValueError, TypeError, RecursionError) as reason:
            raise CheckpointError(
                f"{path} cannot be read as JSON ({reason}). It was edited or damaged: remove it, "
                "which loses nothing but the reasons for the settings."
            ) from reason
        return noted

    def update_json(self, name: str, values: dict[str, Any]) -> None:
        """Merge top-level keys into a JSON file of the run."""
        path = self.path / name
        old = read_json(path) if path.exists() else {}
        write_json(path, {**old, **values})


def check_weighting(run: Path, weighting: str) -> None:
    """Refuse a run whose experts are weighed anew for each set of images.

    Raises:
        ConfigError: `evaluation.weighting` is not `mean`.
    """
    if weighting != "mean":
        raise ConfigError(
            f"{run} was evaluated with evaluation.weighting={weighting}, which learns the experts' "
            "weights from all images that are judged together; images that come one by one would "
            "be decided differently. Set evaluation.weighting: mean in its config.yaml and "
            "evaluate it again: those figures then hold here."
        )
