"""The runs of benchmark `attacks`: one federation with malicious sites, and its global test."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from vltune.algorithms.fedmpt import build_participant
from vltune.config import to_mapping
from vltune.evaluation import predict_scores
from vltune.flare.federation import FederationError
from vltune.flare.persistor import LAST_FILE
from vltune.metrics import multilabel_metrics
from vltune.parameters import apply_shared
from vltune.site_config import SiteConfig, Split
from vltune_lab.bench.attackers import BUILDER, Attack, stamped_features
from vltune_lab.jobs.collect import read_state
from vltune_lab.jobs.in_process import run_in_process
from vltune_lab.jobs.resolve import Job

Figures = dict[str, Any]


class GlobalTest:
    """The test set that no site owns, as it is and with the backdoor's stamp; loaded once.

    Args:
        world: The world's folder.
        job: Any job of the benchmark; backbone and classes are the same in all.
        target: The backdoor's class.
    """

    def __init__(self, world: Path, job: Job, target: str) -> None:
        place = world / "global" / "test"
        files = Split(images=place / "images", annotations=place / "instances.json")
        site = SiteConfig(train=files, validation=files, cache_dir=place / "vltune_cache")
        self._participant = build_participant(job, site, "global", place, torch.get_num_threads())
        backbone = self._participant.load_model()
        self._split = self._participant.encode_split(files)
        self._column = job["classnames"].index(target)
        labels = self._split.samples.labels
        self._without = np.flatnonzero(labels[:, self._column] == 0)
        self._stamped = stamped_features(self._split, backbone, self._without)
        self._threshold = float(job.get("threshold", 0.5))

    def measure(self, adapter: Mapping[str, Tensor]) -> Figures:
        """Figures of a global model.

        Returns:
            `mAP`, `CF1`, `OF1`; `backdoor`: share of the stamped images without the target class in
            which the model sees it; `backdoor_unstamped`: the same without the stamp.
        """
        model = self._participant.model
        apply_shared(model, dict(adapter), model.shared_keys())
        scores = self._participant.predict(self._split)
        metrics = multilabel_metrics(scores, self._split.samples.labels, self._threshold)
        clean = scores[self._without, self._column]
        return {
            "mAP": metrics.mAP,
            "CF1": metrics.CF1,
            "OF1": metrics.OF1,
            "backdoor": float((self._stamped_scores() >= self._threshold).mean()),
            "backdoor_unstamped": float((clean >= self._threshold).mean()),
        }

    def _stamped_scores(self) -> np.ndarray:
        patches, pooled = (torch.from_numpy(part) for part in self._stamped)
        model = self._participant.model
        model.eval()
        with torch.no_grad():
            predict = model.predictor()
        return predict_scores(
            lambda rows: predict(patches[rows].float(), pooled[rows]), len(pooled)
        )[:, self._column]


def run_attacked(
    job: Job, attack: Attack | None, sites: tuple[str, ...], world: Path, test: GlobalTest
) -> Figures:
    """One federation in this process and its figures on the global test set.

    A federation that the attack brings to an end has no figures; `ended` says why.
    """
    told = None if attack is None else to_mapping(attack)
    whole = job | {"participant": BUILDER, "attack": told}
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="vltune-bench-") as place:
        try:
            files = world / "{site}" / "vltune_site.yaml"
            server = run_in_process(whole, sites, Path(place), site_files=files)
        except FederationError as error:
            return {"mAP": None, "ended": str(error)[:300]}
        seconds = time.perf_counter() - began
        rounds = read_state(server)["rounds"]
        figures = test.measure(load_file(server / LAST_FILE))
    bad = set(attack.sites) if attack is not None else set()
    decisions = [entry for record in rounds for entry in record.get("robust", [])]
    return figures | {
        "acted_on_malicious": sum(entry["site"] in bad for entry in decisions),
        "acted_on_honest": sum(entry["site"] not in bad for entry in decisions),
        "refused": sum(len(record["rejected"]) for record in rounds),
        "seconds": seconds,
    }
